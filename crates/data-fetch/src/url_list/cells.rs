//! The cells of a CSV or TSV list, which say nothing of their types: those of a column are found as pyarrow finds them.
//!
//! Source: Arrow's `cpp/src/arrow/csv/inference_internal.h` (the order of the types) and `options.cc` (what counts as
//! null, true and false), which img2dataset uses as they are. Two deviations: dates and times stay texts, and so does a
//! column of nothing but nulls.

use arrow_schema::DataType;
use serde_json::Value;

/// Cells that hold no value, in a column that is not text.
const NULLS: [&str; 17] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA",
    "NULL", "NaN", "n/a", "nan", "null",
];

/// The types that can hold all cells seen so far.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inference {
    has_value: bool,
    fits_int64: bool,
    fits_boolean: bool,
    fits_float64: bool,
}

impl Default for Inference {
    fn default() -> Self {
        Self { has_value: false, fits_int64: true, fits_boolean: true, fits_float64: true }
    }
}

impl Inference {
    pub(super) fn look_at(&mut self, cell: &str) {
        // A text stays one, and most columns are.
        let is_text = self.has_value && !(self.fits_int64 || self.fits_boolean || self.fits_float64);
        if is_text || is_null(cell) {
            return;
        }
        self.has_value = true;
        self.fits_int64 &= int64(cell).is_some();
        self.fits_boolean &= boolean(cell).is_some();
        self.fits_float64 &= float64(cell).is_some();
    }

    /// [`DataType::Null`] if there was no value.
    pub(super) fn data_type(self) -> DataType {
        match self {
            Self { has_value: false, .. } => DataType::Null,
            Self { fits_int64: true, .. } => DataType::Int64,
            Self { fits_boolean: true, .. } => DataType::Boolean,
            Self { fits_float64: true, .. } => DataType::Float64,
            _ => DataType::Utf8,
        }
    }
}

/// The value of a cell in a column of that type; null if it has none.
pub(super) fn typed(cell: Value, data_type: &DataType) -> Value {
    let Value::String(text) = &cell else { return cell };
    match data_type {
        DataType::Int64 => int64(text).into(),
        DataType::Boolean => boolean(text).into(),
        DataType::Float64 => float64(text).into(),
        _ => cell,
    }
}

fn is_null(cell: &str) -> bool {
    NULLS.contains(&cell)
}

fn int64(cell: &str) -> Option<i64> {
    let digits = cell.trim_matches([' ', '\t']);
    if digits.starts_with('+') { None } else { digits.parse().ok() }
}

fn boolean(cell: &str) -> Option<bool> {
    match cell {
        "1" | "true" | "True" | "TRUE" => Some(true),
        "0" | "false" | "False" | "FALSE" => Some(false),
        _ => None,
    }
}

fn float64(cell: &str) -> Option<f64> {
    let digits = cell.trim_matches([' ', '\t']);
    if digits.starts_with('+') || is_null(cell) { None } else { digits.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The types are those that pyarrow 17 gives the columns, but for the last two.
    #[test]
    fn columns_have_the_types_of_pyarrow() {
        for (cells, expected) in [
            (&["1", "", "-2"][..], DataType::Int64),
            (&["007", " 8 "], DataType::Int64),
            (&["0.25", "1", "NaN"], DataType::Float64),
            (&["1e3", "inf"], DataType::Float64),
            (&["9223372036854775808"], DataType::Float64),
            (&["true", "False", "null"], DataType::Boolean),
            (&["true", "1"], DataType::Boolean),
            (&["0", "1"], DataType::Int64),
            (&["true", "2"], DataType::Utf8),
            (&["1", "x", "2"], DataType::Utf8),
            (&["+1"], DataType::Utf8),
            (&["2024-01-01"], DataType::Utf8),
            (&["", "NA"], DataType::Null),
        ] {
            let mut inference = Inference::default();
            cells.iter().for_each(|cell| inference.look_at(cell));
            assert_eq!(inference.data_type(), expected, "{cells:?}");
        }
    }

    #[test]
    fn cells_become_values_of_their_columns() {
        for (cell, data_type, expected) in [
            ("007", DataType::Int64, json!(7)),
            ("", DataType::Int64, json!(null)),
            ("1", DataType::Float64, json!(1.0)),
            ("inf", DataType::Float64, json!(null)),
            ("nan", DataType::Float64, json!(null)),
            ("1", DataType::Boolean, json!(true)),
            ("N/A", DataType::Boolean, json!(null)),
            ("N/A", DataType::Utf8, json!("N/A")),
        ] {
            assert_eq!(typed(json!(cell), &data_type), expected, "{cell} as {data_type}");
        }
        assert_eq!(typed(json!(null), &DataType::Int64), json!(null));
    }
}
