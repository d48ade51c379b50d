//! Lists in parquet: the footer tells rows and types, the wanted columns are read batch by batch.

use super::{FileSurvey, OnRecord, UID_IDX, URL_IDX, carried};
use crate::error::DataFetchError;
use arrow_array::{Array, ArrayRef, RecordBatch};
use arrow_cast::cast;
use arrow_json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use arrow_schema::{ArrowError, DataType, Field, FieldRef};
use oqvl_shard_io::{CheckedParquet, open_parquet, without_parquet_panic};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::errors::ParquetError;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// Rows decoded at a time.
const BATCH_ROWS: usize = 1024;

/// Rows, column names and types, from the footer alone.
pub(super) fn survey(path: &Path, wanted: &[String]) -> Result<FileSurvey, DataFetchError> {
    let builder = open(path)?;
    let schema = builder.schema();
    let mut types = vec![DataType::Null; wanted.len()];
    let mut found = vec![false; wanted.len()];
    for (idx, column) in wanted.iter().enumerate() {
        let Ok(field) = schema.field_with_name(column) else { continue };
        let carried = carried_type(idx, field.data_type());
        let is_right =
            |carried: &DataType| idx != URL_IDX || matches!(carried, DataType::Utf8 | DataType::Null);
        found[idx] = true;
        types[idx] = carried.filter(is_right).ok_or_else(|| DataFetchError::ColumnType {
            path: path.to_path_buf(),
            column: column.clone(),
            found: field.data_type().to_string(),
        })?;
    }
    let num_rows = u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0);
    let names = schema.fields().iter().map(|field| field.name().clone()).collect();
    Ok(FileSurvey { num_rows, names, types, found })
}

/// The type a column is read as. Old writers leave texts without the mark that says so; for the columns that
/// can only be text, bytes are taken for it.
fn carried_type(wanted_idx: usize, data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Binary if wanted_idx <= UID_IDX => Some(DataType::Utf8),
        other => carried::of_parquet(other),
    }
}

/// Calls `on_record` with every row from `first_row` on.
pub(super) fn read(
    path: &Path,
    wanted: &[String],
    first_row: u64,
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
    let builder = builder.with_projection(mask).with_batch_size(BATCH_ROWS);
    let builder = builder.with_offset(usize::try_from(first_row).unwrap_or(usize::MAX));
    let failed = |error: ParquetError| broken(error.to_string());
    let mut reader = without_parquet_panic(|| builder.build()).map_err(failed)?;
    // Nulls inside objects are values too.
    let options = EncoderOptions::default().with_explicit_nulls(true);
    while let Some(batch) = without_parquet_panic(|| Ok(reader.next().transpose()?)).map_err(failed)? {
        let columns = without_parquet_panic(|| Ok(columns(&batch, wanted)?)).map_err(failed)?;
        let encoders: Result<Vec<_>, _> = columns
            .iter()
            .map(|column| {
                column.as_ref().map(|(field, values)| make_encoder(field, values, &options)).transpose()
            })
            .collect();
        let mut encoders = encoders.map_err(|error: ArrowError| broken(error.to_string()))?;
        for row_idx in 0..batch.num_rows() {
            let mut value =
                |encoder: &mut Option<NullableEncoder<'_>>| encoder.as_mut().map(|it| value_at(it, row_idx));
            let record = without_parquet_panic(|| Ok(encoders.iter_mut().map(&mut value).collect()));
            if on_record(Ok(record.map_err(failed)?)).is_break() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The wanted columns, in the types whose JSON is right.
fn columns(batch: &RecordBatch, wanted: &[String]) -> Result<Vec<Option<(FieldRef, ArrayRef)>>, ArrowError> {
    let column = |(idx, name): (usize, &String)| {
        let Some(values) = batch.column_by_name(name) else { return Ok(None) };
        let Some(data_type) = carried_type(idx, values.data_type()) else { return Ok(None) };
        let data_type = carried::json_type(&data_type);
        let values =
            if *values.data_type() == data_type { Arc::clone(values) } else { cast(values, &data_type)? };
        Ok(Some((Arc::new(Field::new(name, data_type, true)), values)))
    };
    wanted.iter().enumerate().map(column).collect()
}

fn open(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<CheckedParquet>, DataFetchError> {
    let file = File::open(path).map_err(DataFetchError::io(path))?;
    // The embedded Arrow schema may ask for dictionaries and views; the parquet types alone are plainer.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    open_parquet(file, options).map_err(|error| DataFetchError::ListFormat {
        path: path.to_path_buf(),
        format: "parquet",
        problem: error.to_string(),
    })
}

/// The value of a row as JSON. Float columns may hold NaN and infinities, which JSON does not have: they
/// become null. Dates and times are ISO 8601 texts, decimals texts.
fn value_at(encoder: &mut NullableEncoder<'_>, row_idx: usize) -> Value {
    if encoder.is_null(row_idx) {
        return Value::Null;
    }
    let mut json = Vec::new();
    encoder.encode(row_idx, &mut json);
    serde_json::from_slice(&json).unwrap_or_default()
}
