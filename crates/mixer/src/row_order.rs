//! Whether the result of a query depends on the order in which it meets rows, or on chance.

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::expr::{AggregateFunction, WindowFunction};
use datafusion::logical_expr::{
    Distinct, DistinctOn, Expr, ExprSchemable, LogicalPlan, Volatility, WindowFunctionDefinition,
};

/// Whether the result of a query depends on the order in which it meets rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RowOrder {
    /// It does not: any number of threads may look for it.
    Any,
    /// It does: they come in one partition, in the order of the files.
    Fixed,
}

/// Refuses what would make the result depend on chance, and says whether it depends on the order of rows.
pub(crate) fn order_needed(plan: &LogicalPlan) -> Result<RowOrder, String> {
    let (mut order, mut problem) = (RowOrder::Any, None);
    let visited = plan.apply_with_subqueries(|node| {
        match order_of_node(node) {
            Ok(needed) => order = order.max(needed),
            Err(refusal) => {
                problem = Some(refusal);
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    problem.map_or(Ok(order), Err)
}

fn order_of_node(node: &LogicalPlan) -> Result<RowOrder, String> {
    let mut order = match node {
        LogicalPlan::Limit(limit) => {
            let mut below = limit.input.as_ref();
            while let LogicalPlan::Projection(it) = below {
                below = it.input.as_ref();
            }
            if !matches!(below, LogicalPlan::Sort(_)) {
                return Err(
                    "a LIMIT needs an ORDER BY (that leaves no ties): without, it takes any rows".into()
                );
            }
            RowOrder::Fixed
        }
        LogicalPlan::Distinct(Distinct::On(DistinctOn { sort_expr: None, .. })) => {
            return Err("DISTINCT ON needs an ORDER BY: without, it takes any rows".into());
        }
        LogicalPlan::Distinct(Distinct::On(_)) => RowOrder::Fixed,
        _ => RowOrder::Any,
    };
    let mut problem = None;
    for expression in node.expressions() {
        let visited = expression.apply(|part| {
            let needed = match part {
                // `random()`; but `now()` too: the same within a query, not in a run that goes on tomorrow, or in a share.
                Expr::ScalarFunction(it) if it.func.signature().volatility != Volatility::Immutable => Err(
                    format!("{}() gives another value in another run and has no place here", it.func.name()),
                ),
                Expr::AggregateFunction(it) => order_of_aggregate(it, node),
                Expr::WindowFunction(it) => order_of_window(it, node),
                _ => Ok(RowOrder::Any),
            };
            match needed {
                Ok(needed) => order = order.max(needed),
                Err(refusal) => problem = Some(refusal),
            }
            Ok(TreeNodeRecursion::Continue)
        });
        debug_assert!(visited.is_ok(), "the visitor does not fail");
    }
    problem.map_or(Ok(order), Err)
}

fn order_of_aggregate(it: &AggregateFunction, node: &LogicalPlan) -> Result<RowOrder, String> {
    order_of_function(it.func.name(), &it.params.args, !it.params.order_by.is_empty(), node)
}

fn order_of_window(it: &WindowFunction, node: &LogicalPlan) -> Result<RowOrder, String> {
    if !it.params.order_by.is_empty() {
        return Ok(RowOrder::Fixed);
    }
    let frame = &it.params.window_frame;
    match &it.fun {
        // The same for every row of the partition, whatever stands where.
        WindowFunctionDefinition::AggregateUDF(function)
            if frame.start_bound.is_unbounded() && frame.end_bound.is_unbounded() =>
        {
            order_of_function(function.name(), &it.params.args, false, node)
        }
        function => {
            Err(format!("{} needs an ORDER BY in its window: without, it goes by chance", function.name()))
        }
    }
}

/// What an aggregate over rows needs, which may say how it orders them.
fn order_of_function(
    name: &str,
    args: &[Expr],
    is_ordered: bool,
    node: &LogicalPlan,
) -> Result<RowOrder, String> {
    match name {
        "count" | "min" | "max" | "bool_and" | "bool_or" | "bit_and" | "bit_or" | "bit_xor" | "median"
        | "approx_distinct" | "grouping" => Ok(RowOrder::Any),
        "sum" => {
            let input = node.inputs().first().map(|input| input.schema().clone());
            let kind = |arg: &Expr| arg.get_type(input.as_ref()?.as_ref()).ok();
            let is_exact = |arg: &Expr| kind(arg).is_some_and(|kind| kind.is_integer());
            Ok(if args.iter().all(is_exact) { RowOrder::Any } else { RowOrder::Fixed })
        }
        "first_value" | "last_value" | "nth_value" | "any_value" | "array_agg" | "string_agg"
            if !is_ordered =>
        {
            Err(format!("{name} needs an ORDER BY (that leaves no ties): without, it goes by chance"))
        }
        // Sums of fractions are rounded, and what is not known here may do anything.
        _ => Ok(RowOrder::Fixed),
    }
}
