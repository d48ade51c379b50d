//! What is wrong with a query, in words for whoever wrote it.

use std::ops::ControlFlow;

use arrow_array::StringArray;
use datafusion::arrow::compute::regexp_is_match_scalar;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use datafusion::sql::sqlparser::ast::{Query, Select, Statement, TableFactor, Visit, Visitor};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::Token;

use crate::columns::list_names;

/// A query that cannot be planned.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mistake {
    pub(crate) problem: String,
    /// It names a column that is not there.
    pub(crate) lacks_column: bool,
}

/// Checks that a text is one SQL condition and nothing behind it.
pub(crate) fn check_condition(condition: &str) -> Result<(), String> {
    let parse = || {
        let mut parser = Parser::new(&GenericDialect {}).try_with_sql(condition)?;
        Ok((parser.parse_expr()?, parser.peek_token()))
    };
    let (expression, rest) = parse().map_err(|error| not_sql(&error))?;
    check_clauses(&expression)?;
    if rest.token == Token::EOF {
        return Ok(());
    }
    let place = rest.span.start;
    Err(format!(
        "is no SQL condition: nothing may follow it, and there is `{}` in line {}, column {}",
        rest.token, place.line, place.column
    ))
}

/// Checks that a text is one SQL query.
pub(crate) fn check_query(sql: &str) -> Result<(), String> {
    let statements = Parser::parse_sql(&GenericDialect {}, sql).map_err(|error| not_sql(&error))?;
    match &statements[..] {
        [Statement::Query(query)] => check_clauses(query),
        [_] => Err("must be a query, that is, begin with SELECT or WITH".to_owned()),
        several => Err(format!("must be one query, and has {} statements", several.len())),
    }
}

/// Refuses clauses that are read and then left out of the plan.
fn check_clauses(sql: &impl Visit) -> Result<(), String> {
    match sql.visit(&mut IgnoredClauses) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(clause) => Err(format!("must do without {clause}, which would have no effect")),
    }
}

struct IgnoredClauses;

impl Visitor for IgnoredClauses {
    type Break = &'static str;

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<&'static str> {
        let clauses = [
            (!query.locks.is_empty(), "FOR UPDATE and FOR SHARE"),
            (query.settings.is_some(), "SETTINGS"),
            (query.for_clause.is_some(), "FOR"),
            (query.format_clause.is_some(), "FORMAT"),
        ];
        first_of(clauses)
    }

    fn pre_visit_select(&mut self, select: &Select) -> ControlFlow<&'static str> {
        first_of([(select.prewhere.is_some(), "PREWHERE")])
    }

    fn pre_visit_table_factor(&mut self, table: &TableFactor) -> ControlFlow<&'static str> {
        let sample = match table {
            TableFactor::Table { sample, .. } | TableFactor::Derived { sample, .. } => sample,
            _ => &None,
        };
        first_of([(sample.is_some(), "SAMPLE and TABLESAMPLE")])
    }
}

fn first_of<const N: usize>(clauses: [(bool, &'static str); N]) -> ControlFlow<&'static str> {
    match clauses.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, clause)) => ControlFlow::Break(clause),
        None => ControlFlow::Continue(()),
    }
}

fn not_sql(error: &ParserError) -> String {
    let problem = match error {
        ParserError::TokenizerError(problem) | ParserError::ParserError(problem) => problem,
        ParserError::RecursionLimitExceeded => return "is nested too deeply".to_owned(),
    };
    let problem = problem
        .replace("Expected: ", "expected ")
        .replace(", found: EOF", ", found the end")
        .replace(", found: ", ", found ")
        .replace(" at Line: ", " in line ")
        .replace(", Column: ", ", column ");
    format!("is no SQL: {}", one_sentence(&problem))
}

/// Why `sql` cannot be planned. `tables` are those there are, with their columns, the pool first.
pub(crate) fn explain(error: &DataFusionError, sql: &str, tables: &[(String, Vec<String>)]) -> Mistake {
    let names = || match tables {
        [(only, _)] => format!("there is only `{only}`"),
        _ => format!("there are {}", list_names(tables.iter().map(|(name, _)| name.as_str()))),
    };
    let no_table =
        |name: &str| Mistake { problem: format!("no table `{name}`; {}", names()), lacks_column: false };
    let with_columns = |problem: String| {
        let columns = |(name, columns): &(String, Vec<String>)| {
            format!("`{name}` has {}", list_names(columns.iter().map(String::as_str)))
        };
        format!("{problem} ({})", tables.iter().map(columns).collect::<Vec<_>>().join("; "))
    };
    let problem = match error.find_root() {
        DataFusionError::SQL(error, _) => {
            return Mistake { problem: not_sql(error), lacks_column: false };
        }
        DataFusionError::SchemaError(schema_error, _) => match schema_error.as_ref() {
            SchemaError::FieldNotFound { field, .. } => {
                if let Some(table) = field.relation.as_ref().map(|table| table.table())
                    && !tables.iter().any(|(name, _)| name == table)
                    && !is_alias(table, sql)
                {
                    return no_table(table);
                }
                let name = field.name();
                let mut problem = format!("no column `{}`", field.flat_name().replace('"', ""));
                let mut known = tables.iter().flat_map(|(_, columns)| columns);
                if let Some(other) = known.find(|known| *known != name && known.eq_ignore_ascii_case(name)) {
                    problem += &format!("; names with capitals go in double quotes: \"{other}\"");
                } else if sql.contains(&format!("\"{name}\"")) {
                    problem += &format!("; text goes in single quotes: '{name}'");
                }
                return Mistake { problem: with_columns(problem), lacks_column: true };
            }
            other => one_sentence(&other.to_string()),
        },
        other => {
            let message = one_sentence(&other.message());
            let table = message.strip_prefix("table '").and_then(|rest| rest.strip_suffix("' not found"));
            if let Some(table) = table {
                return no_table(table.rsplit('.').next().unwrap_or(table));
            }
            message
        }
    };
    Mistake { problem: with_columns(problem), lacks_column: false }
}

/// Compiles the regular expressions that a plan has written out: where they are wrong, some functions say so only when the
/// query runs.
pub(crate) fn check_patterns(plan: &LogicalPlan) -> Result<(), String> {
    let mut problem = None;
    let visited = plan.apply_with_subqueries(|node| {
        for expression in node.expressions() {
            let _continued = expression.apply(|part| {
                if let Some(pattern) = pattern_of(part)
                    && let Err(error) = regexp_is_match_scalar(&StringArray::new_null(0), pattern, None)
                {
                    problem = Some(one_sentence(&error.to_string()));
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(visited.is_ok(), "the visitor does not fail");
    problem.map_or(Ok(()), Err)
}

/// The regular expression that an expression compares with, if it is written out.
fn pattern_of(expression: &Expr) -> Option<&str> {
    use Operator::{RegexIMatch, RegexMatch, RegexNotIMatch, RegexNotMatch};
    let pattern = match expression {
        Expr::BinaryExpr(it)
            if matches!(it.op, RegexMatch | RegexIMatch | RegexNotMatch | RegexNotIMatch) =>
        {
            &it.right
        }
        Expr::SimilarTo(it) => &it.pattern,
        Expr::ScalarFunction(it) if it.func.name().starts_with("regexp_") => {
            let num_arguments_before_flags = if it.func.name() == "regexp_replace" { 3 } else { 2 };
            // Flags may make another expression of it; the query will say.
            it.args.get(1).filter(|_| it.args.len() <= num_arguments_before_flags)?
        }
        _ => return None,
    };
    match pattern {
        Expr::Literal(value, _) => value.try_as_str().flatten(),
        _ => None,
    }
}

/// Whether a query gives something the name `word`, as far as can be told without planning it.
fn is_alias(word: &str, sql: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let mut rest = sql;
    while let Some(at) = rest.find(word) {
        let (before, after) = (&rest[..at], &rest[at + word.len()..]);
        let is_word = !before.ends_with(is_part) && !after.starts_with(is_part);
        if is_word && !after.starts_with('.') {
            return true;
        }
        rest = after;
    }
    false
}

/// A message of several lines as one; of a regular expression that is none, what is wrong with it.
pub(crate) fn one_sentence(text: &str) -> String {
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if let Some(start) = lines.iter().position(|line| line.contains("regex parse error")) {
        let reason = lines.iter().find_map(|line| line.strip_prefix("error: "));
        if let (Some(pattern), Some(reason)) = (lines.get(start + 1), reason) {
            return format!("`{pattern}` is no regular expression: {reason}");
        }
    }
    lines.join(" ").trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sql_is_told_by_its_place_in_the_text() {
        for (condition, expected) in [
            ("width > ", "is no SQL: expected an expression, found the end"),
            ("", "is no SQL: expected an expression, found the end"),
            ("width > 3 AND\n  )", "is no SQL: expected an expression, found ) in line 2, column 3"),
            ("caption = 'a", "is no SQL: Unterminated string literal in line 1, column 11"),
            (
                "width > 3) OR (1=1",
                "is no SQL condition: nothing may follow it, and there is `)` in line 1, column 10",
            ),
            (
                "true; DROP TABLE pool",
                "is no SQL condition: nothing may follow it, and there is `;` in line 1, column 5",
            ),
        ] {
            assert_eq!(check_condition(condition), Err(expected.to_owned()), "{condition}");
        }
        for (sql, expected) in [
            ("SELECT uid FROM", "is no SQL: expected identifier, found the end"),
            ("SELECT uid FROM pool; SELECT uid FROM pool", "must be one query, and has 2 statements"),
            ("", "must be one query, and has 0 statements"),
            ("DROP TABLE pool", "must be a query, that is, begin with SELECT or WITH"),
            ("EXPLAIN SELECT uid FROM pool", "must be a query, that is, begin with SELECT or WITH"),
        ] {
            assert_eq!(check_query(sql), Err(expected.to_owned()), "{sql}");
        }
        for (sql, clause) in [
            ("SELECT uid FROM pool PREWHERE width > 3", "PREWHERE"),
            ("SELECT uid FROM pool TABLESAMPLE BERNOULLI (10 PERCENT)", "SAMPLE and TABLESAMPLE"),
            ("SELECT uid FROM pool SAMPLE 0.1 UNION SELECT uid FROM pool", "SAMPLE and TABLESAMPLE"),
            ("SELECT uid FROM (SELECT uid FROM pool SETTINGS a = 1)", "SETTINGS"),
            ("SELECT uid FROM pool FOR UPDATE", "FOR UPDATE and FOR SHARE"),
        ] {
            let expected = format!("must do without {clause}, which would have no effect");
            assert_eq!(check_query(sql), Err(expected.clone()), "{sql}");
            assert_eq!(check_condition(&format!("uid IN ({sql})")), Err(expected), "{sql}");
        }
        assert_eq!(check_condition("width > 3 -- a comment at the end"), Ok(()));
        assert_eq!(check_query("WITH w AS (SELECT uid FROM pool) SELECT uid FROM w;"), Ok(()));
    }

    #[test]
    fn regular_expressions_keep_their_reason() {
        let error = "regex parse error:\n    (a\n    ^\nerror: unclosed group";
        assert_eq!(one_sentence(error), "`(a` is no regular expression: unclosed group");
        assert_eq!(
            one_sentence("Invalid function 'foo'.\nDid you mean 'floor'?"),
            "Invalid function 'foo'. Did you mean 'floor'?"
        );
    }
}
