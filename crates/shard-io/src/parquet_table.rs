//! Parquet as this crate writes it: deterministic bytes, named columns, string metadata.

use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::checked_parquet::CheckedParquet;
use crate::{AtomicFile, ShardError};

/// Stands where the library would write its version, so that an upgrade alone does not change the bytes.
const CREATED_BY: &str = "oqvl-shard-io";

/// A parquet file under construction: the same tables always give the same bytes. It appears under its name when
/// [`finish`](TableWriter::finish) succeeds; dropped before, it leaves nothing behind.
#[derive(Debug)]
pub struct TableWriter {
    writer: ArrowWriter<AtomicFile>,
    path: PathBuf,
}

impl TableWriter {
    /// Starts the table that will be called `path`, Zstandard-compressed; `metadata` goes into the file in this order.
    ///
    /// # Errors
    /// [`ShardError::Io`] if the file cannot be created, [`ShardError::Parquet`] if parquet cannot hold `schema`.
    pub fn create(
        path: &Path,
        schema: SchemaRef,
        metadata: &[(&str, String)],
    ) -> Result<TableWriter, ShardError> {
        Self::create_compressed(path, schema, metadata, Compression::ZSTD(ZstdLevel::default()))
    }

    /// The same without metadata and Snappy-compressed, as pyarrow, and so img2dataset, compresses unless told otherwise.
    ///
    /// # Errors
    /// As [`create`](TableWriter::create).
    pub fn create_snappy(path: &Path, schema: SchemaRef) -> Result<TableWriter, ShardError> {
        Self::create_compressed(path, schema, &[], Compression::SNAPPY)
    }

    fn create_compressed(
        path: &Path,
        schema: SchemaRef,
        metadata: &[(&str, String)],
        compression: Compression,
    ) -> Result<TableWriter, ShardError> {
        let metadata =
            metadata.iter().map(|(key, value)| KeyValue::new((*key).to_owned(), value.clone())).collect();
        let properties = WriterProperties::builder()
            .set_created_by(CREATED_BY.to_owned())
            .set_compression(compression)
            .set_key_value_metadata(Some(metadata))
            .build();
        let file = AtomicFile::create(path).map_err(ShardError::io(path))?;
        let writer =
            ArrowWriter::try_new(file, schema, Some(properties)).map_err(ShardError::parquet(path))?;
        Ok(TableWriter { writer, path: path.to_path_buf() })
    }

    /// Appends rows, which have the schema of the table.
    ///
    /// # Errors
    /// [`ShardError::Parquet`] if they have another one or writing fails.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), ShardError> {
        self.writer.write(batch).map_err(ShardError::parquet(&self.path))
    }

    /// Ends the row group, which until then is held in memory, encoded.
    pub(crate) fn end_row_group(&mut self) -> Result<(), ShardError> {
        self.writer.flush().map_err(ShardError::parquet(&self.path))
    }

    /// Closes the file, makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`ShardError::Io`] or [`ShardError::Parquet`] if that fails.
    pub fn finish(self) -> Result<(), ShardError> {
        let file = self.writer.into_inner().map_err(ShardError::parquet(&self.path))?;
        file.commit().map_err(ShardError::io(&self.path))
    }
}

/// An open parquet file.
pub(crate) struct TableFile {
    path: PathBuf,
    builder: ParquetRecordBatchReaderBuilder<CheckedParquet>,
}

impl TableFile {
    pub(crate) fn open(path: &Path) -> Result<TableFile, ShardError> {
        let file = File::open(path).map_err(ShardError::io(path))?;
        let builder = open_parquet(file, ArrowReaderOptions::new()).map_err(ShardError::parquet(path))?;
        Ok(TableFile { path: path.to_path_buf(), builder })
    }

    pub(crate) fn schema(&self) -> Arc<Schema> {
        self.builder.schema().clone()
    }

    /// The metadata value under `key`.
    pub(crate) fn metadata(&self, key: &str) -> Result<String, ShardError> {
        self.optional_metadata(key)
            .ok_or_else(|| table_error(&self.path, key, "the file metadata has no such entry"))
    }

    /// The metadata value under `key`, if there is one.
    pub(crate) fn optional_metadata(&self, key: &str) -> Option<String> {
        let pairs = self.builder.metadata().file_metadata().key_value_metadata()?;
        pairs.iter().find(|pair| pair.key == key)?.value.clone()
    }

    /// The rows, `batch_rows` at a time.
    pub(crate) fn batches(
        self,
        batch_rows: usize,
    ) -> Result<impl Iterator<Item = Result<RecordBatch, ShardError>>, ShardError> {
        let TableFile { path, builder } = self;
        let mut reader = Some(without_panic(&path, || builder.with_batch_size(batch_rows).build())?);
        Ok(std::iter::from_fn(move || {
            let from = reader.as_mut()?;
            let batch = without_panic(&path, || Ok(from.next().transpose()?)).transpose();
            if !matches!(batch, Some(Ok(_))) {
                // What a decoder holds after an error is of no more use.
                reader = None;
            }
            batch
        }))
    }
}

/// Opens a parquet file of others, which may be damaged: neither false claims in its footer and page headers nor a panic of the
/// library takes the stage with it. What is then read from it goes through [`without_parquet_panic`].
///
/// # Errors
/// If it is not a parquet file, or a damaged one.
pub fn open_parquet(
    file: File,
    options: ArrowReaderOptions,
) -> Result<ParquetRecordBatchReaderBuilder<CheckedParquet>, ParquetError> {
    let file = CheckedParquet::new(file)?;
    without_parquet_panic(|| ParquetRecordBatchReaderBuilder::try_new_with_options(file, options))
}

/// Runs a piece of the parquet library and turns a panic of it into an error: it checks most of what a file claims,
/// but not all. Every batch of a file of others is read through this; a reader that has panicked must not be used again.
///
/// # Errors
/// What `read` returns, or [`ParquetError::General`] if it panicked.
pub fn without_parquet_panic<T>(read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ParquetError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| {
        Err(ParquetError::General("the parquet library panicked on this file".to_owned()))
    })
}

fn without_panic<T>(path: &Path, read: impl FnOnce() -> Result<T, ParquetError>) -> Result<T, ShardError> {
    without_parquet_panic(read).map_err(ShardError::parquet(path))
}

/// The column `name` of `batch` as an array of type `A`, without nulls.
pub(crate) fn required_column<'a, A: Array + 'static>(
    batch: &'a RecordBatch,
    path: &Path,
    name: &str,
) -> Result<&'a A, ShardError> {
    let array: &A = nullable_column(batch, path, name)?;
    no_nulls(array, path, name)?;
    Ok(array)
}

/// The column `name` of `batch` as an array of type `A`.
pub(crate) fn nullable_column<'a, A: Array + 'static>(
    batch: &'a RecordBatch,
    path: &Path,
    name: &str,
) -> Result<&'a A, ShardError> {
    let column =
        batch.column_by_name(name).ok_or_else(|| table_error(path, name, "the table has no such column"))?;
    downcast(column.as_ref(), path, name)
}

/// `array`, which belongs to the column `name`, as an array of type `A`.
pub(crate) fn downcast<'a, A: Array + 'static>(
    array: &'a dyn Array,
    path: &Path,
    name: &str,
) -> Result<&'a A, ShardError> {
    array
        .as_any()
        .downcast_ref()
        .ok_or_else(|| table_error(path, name, format!("unexpected type {}", array.data_type())))
}

/// Refuses nulls in `array`, which belongs to the column `name`.
pub(crate) fn no_nulls(array: &dyn Array, path: &Path, name: &str) -> Result<(), ShardError> {
    if array.null_count() > 0 {
        return Err(table_error(path, name, "the column holds nulls"));
    }
    Ok(())
}

pub(crate) fn table_error(path: &Path, column: &str, problem: impl Into<String>) -> ShardError {
    ShardError::Table { path: path.to_path_buf(), column: column.to_owned(), problem: problem.into() }
}
