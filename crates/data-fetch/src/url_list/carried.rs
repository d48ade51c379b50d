//! Columns that are carried from the list into the samples: their types, and their way into the parquet.
//!
//! A parquet list brings its types; of a text list they are found by looking at every value. Either way a
//! value travels as JSON, which is what the sample's metadata needs, and becomes an Arrow value again in the
//! shard's table.

use arrow_array::{ArrayRef, new_empty_array};
use arrow_cast::cast;
use arrow_json::ReaderBuilder;
use arrow_schema::{ArrowError, DataType, Field, FieldRef, Fields};
use serde_json::{Map, Value};
use std::sync::Arc;

/// Deepest nesting that gets a nested type; what goes deeper is stored as compact JSON.
const MAX_DEPTH: usize = 8;
/// Most members of an object that gets a struct type. Objects used as maps, with a key for every row, would
/// otherwise become tables of a million columns.
const MAX_MEMBERS: usize = 64;

/// A column that is carried from the list into the samples' metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarriedColumn {
    /// Its name in the metadata.
    pub name: String,
    /// Its type in the shards' parquet.
    pub data_type: DataType,
    pub(super) wanted_idx: usize,
}

/// The type of one value of a text list; [`DataType::Null`] says nothing of the column.
pub(super) fn type_of(value: &Value) -> DataType {
    type_at_depth(value, 0)
}

fn type_at_depth(value: &Value, depth: usize) -> DataType {
    match value {
        Value::Null => DataType::Null,
        Value::Bool(_) => DataType::Boolean,
        Value::Number(number) if number.is_i64() => DataType::Int64,
        Value::Number(number) if number.is_u64() => DataType::UInt64,
        Value::Number(_) => DataType::Float64,
        Value::Array(items) if depth < MAX_DEPTH => {
            let types = items.iter().map(|item| type_at_depth(item, depth + 1));
            list_of(types.fold(DataType::Null, |all, item| merged(&all, &item)))
        }
        Value::Object(members) if depth < MAX_DEPTH && (1..=MAX_MEMBERS).contains(&members.len()) => {
            let field = |(name, value): (&String, &Value)| {
                Field::new(name.clone(), type_at_depth(value, depth + 1), true)
            };
            DataType::Struct(members.iter().map(field).collect())
        }
        Value::String(_) | Value::Array(_) | Value::Object(_) => DataType::Utf8,
    }
}

/// The narrowest type that holds the values of both; text, if there is no other.
pub(super) fn merged(left: &DataType, right: &DataType) -> DataType {
    use DataType::{Float64, Int64, List, Null, Struct, Utf8};
    match (left, right) {
        (same, also) if same == also => same.clone(),
        (Null, some) | (some, Null) => some.clone(),
        (a, b) if is_small_integer(a) && is_small_integer(b) => Int64,
        // As floats, large integers lose digits, which is what every reader of JSON and CSV does to them.
        (a, b) if is_number(a) && is_number(b) && (a.is_floating() || b.is_floating()) => Float64,
        (List(a), List(b)) => list_of(merged(a.data_type(), b.data_type())),
        (Struct(a), Struct(b)) => merged_structs(a, b),
        _ => Utf8,
    }
}

fn is_number(data_type: &DataType) -> bool {
    data_type.is_integer() || data_type.is_floating()
}

/// An integer type whose values all fit 64 bits with a sign.
fn is_small_integer(data_type: &DataType) -> bool {
    data_type.is_integer() && *data_type != DataType::UInt64
}

fn list_of(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new("element", item, true)))
}

fn merged_structs(left: &Fields, right: &Fields) -> DataType {
    let mut fields: Vec<FieldRef> = left.to_vec();
    for field in right {
        match fields.iter_mut().find(|known| known.name() == field.name()) {
            Some(known) => {
                let both = merged(known.data_type(), field.data_type());
                *known = Arc::new(Field::new(field.name(), both, true));
            }
            None => fields.push(Arc::clone(field)),
        }
    }
    if fields.len() > MAX_MEMBERS { DataType::Utf8 } else { DataType::Struct(fields.into()) }
}

/// The type as it is stored: a column without any value is text.
pub(super) fn stored(data_type: &DataType) -> DataType {
    let field =
        |field: &FieldRef| Arc::new(Field::new(field.name(), stored(field.data_type()), field.is_nullable()));
    match data_type {
        DataType::Null => DataType::Utf8,
        DataType::List(item) => DataType::List(field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        other => other.clone(),
    }
}

/// The type a column of a parquet list is carried as; `None` if its values cannot be carried: bytes have no
/// form in the samples' JSON.
pub(super) fn of_parquet(data_type: &DataType) -> Option<DataType> {
    let field = |field: &FieldRef| Some(Field::new(field.name(), of_parquet(field.data_type())?, true));
    Some(match data_type {
        DataType::List(item) => DataType::List(Arc::new(field(item)?)),
        DataType::Struct(fields) => {
            DataType::Struct(fields.iter().map(|member| field(member).map(Arc::new)).collect::<Option<_>>()?)
        }
        DataType::Map(entries, is_sorted) => {
            let DataType::Struct(fields) = entries.data_type() else { return None };
            let [key, value] = &fields[..] else { return None };
            if *key.data_type() != DataType::Utf8 {
                return None;
            }
            let fields: Fields = vec![Arc::clone(key), Arc::new(field(value)?)].into();
            let entries = Field::new(entries.name(), DataType::Struct(fields), false);
            DataType::Map(Arc::new(entries), *is_sorted)
        }
        // Few who read parquet know half floats; nothing is lost in a wider one.
        DataType::Float16 => DataType::Float32,
        DataType::Null
        | DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float32
        | DataType::Float64
        | DataType::Utf8
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Decimal32(..)
        | DataType::Decimal64(..)
        | DataType::Decimal128(..)
        | DataType::Decimal256(..) => data_type.clone(),
        _ => return None,
    })
}

/// The type whose JSON is right: a 32-bit float becomes one of 64 bits with all its digits, as in Python, and a
/// decimal a text, because the numbers of JSON are floats to those who read them.
pub(super) fn json_type(data_type: &DataType) -> DataType {
    replaced(data_type, &|leaf| match leaf {
        DataType::Float32 => DataType::Float64,
        decimal if is_decimal(decimal) => DataType::Utf8,
        other => with_offset(other),
    })
}

/// Parquet calls the zone of its moments UTC; the library knows offsets, and no names without a table of them.
fn with_offset(leaf: &DataType) -> DataType {
    match leaf {
        DataType::Timestamp(unit, Some(_)) => DataType::Timestamp(*unit, Some("+00:00".into())),
        other => other.clone(),
    }
}

/// The type with every type in it that is not nested replaced.
fn replaced(data_type: &DataType, leaf: &dyn Fn(&DataType) -> DataType) -> DataType {
    let field =
        |field: &FieldRef| Arc::new(field.as_ref().clone().with_data_type(replaced(field.data_type(), leaf)));
    match data_type {
        DataType::List(item) => DataType::List(field(item)),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(field).collect()),
        DataType::Map(entries, is_sorted) => DataType::Map(field(entries), *is_sorted),
        other => leaf(other),
    }
}

/// A value as text: a string as it is, anything else as compact JSON.
pub(super) fn text_of(value: Value) -> String {
    match value {
        Value::String(text) => text,
        other => other.to_string(),
    }
}

/// Collects the values of a carried column for the shard's table.
#[derive(Debug)]
pub(crate) struct CarriedBuilder {
    field: FieldRef,
    values: Vec<Value>,
}

impl CarriedBuilder {
    pub(crate) fn new(column: &CarriedColumn) -> Self {
        let field = Field::new(column.name.clone(), column.data_type.clone(), true);
        Self { field: Arc::new(field), values: Vec::new() }
    }

    pub(crate) fn push(&mut self, value: &Value) {
        self.values.push(conform(value, self.field.data_type()));
    }

    pub(crate) fn finish(self) -> Result<ArrayRef, ArrowError> {
        let Self { field, values } = self;
        if values.is_empty() {
            return Ok(new_empty_array(field.data_type()));
        }
        let read_as = field.as_ref().clone().with_data_type(replaced(field.data_type(), &with_offset));
        let mut decoder =
            ReaderBuilder::new_with_field(read_as).with_batch_size(values.len()).build_decoder()?;
        decoder.serialize(&values)?;
        match decoder.flush()? {
            Some(batch) => cast(batch.column(0), field.data_type()),
            None => Ok(new_empty_array(field.data_type())),
        }
    }
}

/// The value as one of the type: in a text column anything else becomes compact JSON. What does not fit, in a
/// list that changed since the survey, becomes null.
fn conform(value: &Value, data_type: &DataType) -> Value {
    match (data_type, value) {
        (DataType::Boolean, Value::Bool(_)) | (DataType::Utf8, Value::String(_)) => value.clone(),
        (_, Value::Null) => Value::Null,
        (DataType::Utf8, other) => text_of(other.clone()).into(),
        (DataType::UInt64, Value::Number(number)) if number.is_u64() => value.clone(),
        (DataType::UInt64, _) => Value::Null,
        (integer, Value::Number(number)) if integer.is_integer() && number.is_i64() => value.clone(),
        (float, Value::Number(_)) if float.is_floating() => value.clone(),
        (DataType::List(item), Value::Array(items)) => {
            items.iter().map(|value| conform(value, item.data_type())).collect()
        }
        (DataType::Struct(fields), Value::Object(members)) => {
            let member = |field: &FieldRef| {
                let value = members.get(field.name()).unwrap_or(&Value::Null);
                (field.name().clone(), conform(value, field.data_type()))
            };
            Value::Object(fields.iter().map(member).collect::<Map<_, _>>())
        }
        // Dates, times and decimals are texts or numbers that the same library wrote.
        (DataType::Map(..), Value::Object(_)) => value.clone(),
        (other, Value::String(_) | Value::Number(_)) if other.is_temporal() || is_decimal(other) => {
            value.clone()
        }
        _ => Value::Null,
    }
}

fn is_decimal(data_type: &DataType) -> bool {
    use DataType::{Decimal32, Decimal64, Decimal128, Decimal256};
    matches!(data_type, Decimal32(..) | Decimal64(..) | Decimal128(..) | Decimal256(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow_array::Array as _;
    use serde_json::json;

    fn inferred(values: &[Value]) -> DataType {
        stored(&values.iter().map(type_of).fold(DataType::Null, |all, one| merged(&all, &one)))
    }

    fn array(values: &[Value], data_type: DataType) -> ArrayRef {
        let mut builder =
            CarriedBuilder::new(&CarriedColumn { name: "c".to_owned(), data_type, wanted_idx: 3 });
        values.iter().for_each(|value| builder.push(value));
        builder.finish().unwrap()
    }

    #[test]
    fn the_narrowest_common_type_wins() {
        let list = |item| list_of(item);
        let pair = DataType::Struct(
            vec![Field::new("a", DataType::Float64, true), Field::new("b", DataType::Utf8, true)].into(),
        );
        for (values, expected) in [
            (vec![], DataType::Utf8),
            (vec![json!(null)], DataType::Utf8),
            (vec![json!(null), json!(true)], DataType::Boolean),
            (vec![json!(1), json!(null), json!(-2)], DataType::Int64),
            (vec![json!(1), json!(0.5)], DataType::Float64),
            (vec![json!(0.5), json!(1)], DataType::Float64),
            (vec![json!(1), json!("a")], DataType::Utf8),
            (vec![json!(true), json!(1)], DataType::Utf8),
            (vec![json!(u64::MAX)], DataType::UInt64),
            (vec![json!(u64::MAX), json!(-1)], DataType::Utf8),
            (vec![json!([1, 2]), json!([])], list(DataType::Int64)),
            (vec![json!([]), json!(null)], list(DataType::Utf8)),
            (vec![json!([[1, 2.5]]), json!([[]]), json!([])], list(list(DataType::Float64))),
            (vec![json!([1]), json!(1)], DataType::Utf8),
            (vec![json!({"a": 1}), json!({"b": "x"}), json!({"a": 0.5, "b": null})], pair),
            (vec![json!({})], DataType::Utf8),
        ] {
            assert_eq!(inferred(&values), expected, "{values:?}");
        }
        let deep = (0..40).fold(json!(1), |inner, _| json!([inner]));
        let found = inferred(std::slice::from_ref(&deep));
        assert_eq!(array(&[deep], found).len(), 1);
        let wide: Value =
            (0..100).map(|member| (format!("k{member}"), json!(1))).collect::<Map<_, _>>().into();
        assert_eq!(inferred(&[wide]), DataType::Utf8);
    }

    #[test]
    fn values_of_any_shape_become_arrays() {
        let boxes = [json!([[0.5, 1.0, 2.0, 3.0, 0.9]]), json!([]), json!(null), json!([[1, 2], null])];
        let column = array(&boxes, inferred(&boxes));
        assert_eq!((column.len(), column.null_count()), (4, 1));
        let objects = [json!({"a": {"b": [1]}}), json!({"a": null}), json!({"c": "x"})];
        assert_eq!(array(&objects, inferred(&objects)).len(), 3);
        // Not of the type any more.
        let changed = array(&[json!("x"), json!(1), json!([]), json!({}), json!(1.5)], DataType::Int64);
        assert_eq!((changed.len(), changed.null_count()), (5, 4));
        assert_eq!(array(&[], DataType::Boolean).len(), 0);
        let text = array(&[json!([1, {"a": null}]), json!(true)], DataType::Utf8);
        let text: &arrow_array::StringArray = arrow_array::cast::AsArray::as_string(&text);
        assert_eq!(text.iter().flatten().collect::<Vec<_>>(), ["[1,{\"a\":null}]", "true"]);
    }
}
