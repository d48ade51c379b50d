//! The functions on texts that conditions on captions need, beside the operators SQL has (`LIKE`, `~`, `||`).
//!
//! DataFusion has more, behind features that would double what has to be compiled.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, StringArray};
use arrow_schema::DataType;
use datafusion::common::DataFusionError;
use datafusion::logical_expr::{ColumnarValue, ScalarUDF, Volatility, create_udf};
use datafusion::prelude::SessionContext;

use crate::columns::texts;

/// Makes `length`, `num_words`, `lower` and `upper` known to `context`.
pub(crate) fn register(context: &SessionContext) {
    let count = |name: &str, count: fn(&str) -> usize| {
        function(name, DataType::Int64, move |texts| {
            Arc::new(Int64Array::from_iter(texts.iter().map(|text| text.map(|text| count(text) as i64))))
        })
    };
    let change = |name: &str, change: fn(&str) -> String| {
        function(name, DataType::Utf8, move |texts| {
            Arc::new(StringArray::from_iter(texts.iter().map(|text| text.map(change))))
        })
    };
    context.register_udf(count("length", |text| text.chars().count()));
    context.register_udf(count("num_words", |text| text.split_whitespace().count()));
    context.register_udf(change("lower", str::to_lowercase));
    context.register_udf(change("upper", str::to_uppercase));
}

/// A function of one text that gives null for null.
fn function(
    name: &str,
    result: DataType,
    compute: impl Fn(&StringArray) -> ArrayRef + Send + Sync + 'static,
) -> ScalarUDF {
    let called = name.to_owned();
    let run = move |arguments: &[ColumnarValue]| -> Result<ColumnarValue, DataFusionError> {
        let columns = ColumnarValue::values_to_arrays(arguments)?;
        let texts = texts(&columns[0])
            .ok_or_else(|| DataFusionError::Execution(format!("`{called}` takes a text")))?;
        Ok(ColumnarValue::Array(compute(&texts)))
    };
    create_udf(name, vec![DataType::Utf8], result, Volatility::Immutable, Arc::new(run))
}
