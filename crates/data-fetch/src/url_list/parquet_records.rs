//! Lists in parquet: the footer tells rows and types, the wanted columns are read batch by batch.

use super::{ColumnType, FileSurvey, OnRecord, URL_IDX};
use crate::error::DataFetchError;
use arrow_array::cast::AsArray as _;
use arrow_array::types::{
    Float32Type, Float64Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef};
use arrow_schema::DataType;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use serde_json::{Map, Value};
use std::fs::File;
use std::path::Path;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

/// Rows, column names and types, from the footer alone.
pub(super) fn survey(path: &Path, wanted: &[String]) -> Result<FileSurvey, DataFetchError> {
    let builder = open(path)?;
    let schema = builder.schema();
    let mut types = vec![ColumnType::Empty; wanted.len()];
    let mut found = vec![false; wanted.len()];
    for (idx, column) in wanted.iter().enumerate() {
        let Ok(field) = schema.field_with_name(column) else { continue };
        let wrong = || DataFetchError::ColumnType {
            path: path.to_path_buf(),
            column: column.clone(),
            found: field.data_type().to_string(),
        };
        found[idx] = true;
        types[idx] = column_type(field.data_type()).ok_or_else(wrong)?;
        if idx == URL_IDX && !matches!(types[idx], ColumnType::Text | ColumnType::Empty) {
            return Err(wrong());
        }
    }
    let num_rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let names = schema.fields().iter().map(|field| field.name().clone()).collect();
    Ok(FileSurvey { num_rows, names, types, found })
}

/// Calls `on_record` with every row.
pub(super) fn read(
    path: &Path,
    wanted: &[String],
    on_record: &mut OnRecord<'_>,
) -> Result<(), DataFetchError> {
    let broken =
        |problem: String| DataFetchError::ListFormat { path: path.to_path_buf(), format: "parquet", problem };
    // Once more: the file may have been replaced since.
    survey(path, wanted)?;
    let builder = open(path)?;
    let schema = builder.schema();
    let roots = wanted.iter().filter_map(|column| schema.index_of(column).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let reader = builder.with_projection(mask).with_batch_size(BATCH_ROWS).build();
    for batch in reader.map_err(|error| broken(error.to_string()))? {
        let batch = batch.map_err(|error| broken(error.to_string()))?;
        let columns: Vec<_> = wanted.iter().map(|column| batch.column_by_name(column)).collect();
        for row_idx in 0..batch.num_rows() {
            let record =
                columns.iter().map(|column| column.map(|column| value_at(column, row_idx))).collect();
            if on_record(Ok(record)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<File>, DataFetchError> {
    let file = File::open(path).map_err(DataFetchError::io(path))?;
    // The embedded Arrow schema may ask for dictionaries and views; the parquet types alone are plainer.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    ParquetRecordBatchReaderBuilder::try_new_with_options(file, options).map_err(|error: ParquetError| {
        DataFetchError::ListFormat { path: path.to_path_buf(), format: "parquet", problem: error.to_string() }
    })
}

/// The type a column is carried as; `None` if its values cannot be carried.
fn column_type(data_type: &DataType) -> Option<ColumnType> {
    match data_type {
        DataType::Null => Some(ColumnType::Empty),
        DataType::Boolean => Some(ColumnType::Boolean),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => Some(ColumnType::Integer),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => Some(ColumnType::Integer),
        DataType::Float32 | DataType::Float64 => Some(ColumnType::Float),
        DataType::Utf8 | DataType::UInt64 => Some(ColumnType::Text),
        DataType::List(item) => column_type(item.data_type()).map(|_| ColumnType::Text),
        DataType::Struct(fields) => {
            let all = fields.iter().all(|field| column_type(field.data_type()).is_some());
            all.then_some(ColumnType::Text)
        }
        _ => None,
    }
}

/// The value of a row as JSON. Float columns may hold NaN and infinities, which JSON does not have: they
/// become null.
fn value_at(column: &ArrayRef, row_idx: usize) -> Value {
    if column.is_null(row_idx) {
        return Value::Null;
    }
    match column.data_type() {
        DataType::Boolean => column.as_boolean().value(row_idx).into(),
        DataType::Int8 => column.as_primitive::<Int8Type>().value(row_idx).into(),
        DataType::Int16 => column.as_primitive::<Int16Type>().value(row_idx).into(),
        DataType::Int32 => column.as_primitive::<Int32Type>().value(row_idx).into(),
        DataType::Int64 => column.as_primitive::<Int64Type>().value(row_idx).into(),
        DataType::UInt8 => column.as_primitive::<UInt8Type>().value(row_idx).into(),
        DataType::UInt16 => column.as_primitive::<UInt16Type>().value(row_idx).into(),
        DataType::UInt32 => column.as_primitive::<UInt32Type>().value(row_idx).into(),
        DataType::UInt64 => column.as_primitive::<UInt64Type>().value(row_idx).into(),
        DataType::Float32 => f64::from(column.as_primitive::<Float32Type>().value(row_idx)).into(),
        DataType::Float64 => column.as_primitive::<Float64Type>().value(row_idx).into(),
        DataType::Utf8 => column.as_string::<i32>().value(row_idx).into(),
        DataType::List(_) => {
            let items = column.as_list::<i32>().value(row_idx);
            (0..items.len()).map(|idx| value_at(&items, idx)).collect()
        }
        DataType::Struct(fields) => {
            let columns = column.as_struct().columns();
            let members = fields.iter().zip(columns);
            let object: Map<_, _> =
                members.map(|(field, column)| (field.name().clone(), value_at(column, row_idx))).collect();
            Value::Object(object)
        }
        other => unreachable!("a column of type {other} is refused before the first row is read"),
    }
}
