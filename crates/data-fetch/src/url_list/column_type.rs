//! Types of the columns that are carried along.

use serde_json::Value;

/// Type of a carried column in the parquet. The samples' JSON keeps each value as it was in the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// No value at all so far; stored as text.
    Empty,
    /// `true` and `false`.
    Boolean,
    /// 64-bit integers.
    Integer,
    /// 64-bit floats, possibly mixed with integers.
    Float,
    /// Text; and anything nested or mixed, as compact JSON.
    Text,
}

impl ColumnType {
    /// The type of one value.
    #[must_use]
    pub fn of(value: &Value) -> Self {
        match value {
            Value::Null => Self::Empty,
            Value::Bool(_) => Self::Boolean,
            Value::Number(number) if number.is_i64() => Self::Integer,
            Value::Number(number) if number.is_f64() => Self::Float,
            // Integers above `i64::MAX` would lose digits as floats.
            Value::Number(_) | Value::String(_) | Value::Array(_) | Value::Object(_) => Self::Text,
        }
    }

    /// The narrowest type that holds values of both.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        match (self, other) {
            (same, also) if same == also => same,
            (Self::Empty, some) | (some, Self::Empty) => some,
            (Self::Integer, Self::Float) | (Self::Float, Self::Integer) => Self::Float,
            _ => Self::Text,
        }
    }
}

/// A value as text: a string as it is, anything else as compact JSON.
pub(crate) fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_narrowest_common_type_wins() {
        for (values, expected) in [
            (vec![], ColumnType::Empty),
            (vec![json!(null)], ColumnType::Empty),
            (vec![json!(null), json!(true)], ColumnType::Boolean),
            (vec![json!(1), json!(null), json!(2)], ColumnType::Integer),
            (vec![json!(1), json!(0.5)], ColumnType::Float),
            (vec![json!(0.5), json!(1)], ColumnType::Float),
            (vec![json!(1), json!("a")], ColumnType::Text),
            (vec![json!(true), json!(1)], ColumnType::Text),
            (vec![json!(u64::MAX)], ColumnType::Text),
            (vec![json!([1, 2])], ColumnType::Text),
        ] {
            let found = values.iter().map(ColumnType::of).fold(ColumnType::Empty, ColumnType::merged);
            assert_eq!(found, expected, "{values:?}");
        }
    }
}
