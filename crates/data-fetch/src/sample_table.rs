//! `{shard}.parquet`: one row per URL of the shard, kept or not, in list order.
//!
//! Columns as img2dataset writes them: the carried ones with their types, `caption`, `url`, `key`, `status`,
//! `error_message` (text), `width`, `height`, `original_width`, `original_height` (32-bit integers), `exif`
//! (text), and the digest (text) under the name of its kind. Two deviations: `caption` is always there, and a shard is one row group (img2dataset
//! flushes every 100 rows). Snappy-compressed.

use crate::config::{ComputeHash, DataFetchConfig};
use crate::error::DataFetchError;
use crate::reject::{Reject, RowStatus};
use crate::transform::StoredImage;
use crate::url_list::{CarriedBuilder, CarriedColumn, UrlRow};
use arrow_array::builder::{Int32Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int32Type;
use arrow_array::{Array as _, ArrayRef, Int32Array, RecordBatch, StringArray};
use oqvl_shard_io::AtomicFile;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The columns of the sizes.
const SIDES: [&str; 4] = ["width", "height", "original_width", "original_height"];

/// Collects the rows of a shard.
pub(crate) struct SampleTable {
    carried: Vec<(String, CarriedBuilder)>,
    caption: StringBuilder,
    url: StringBuilder,
    key: StringBuilder,
    status: StringBuilder,
    error_message: StringBuilder,
    /// `width`, `height`, `original_width`, `original_height`.
    sizes: [Int32Builder; 4],
    exif: Option<StringBuilder>,
    digest: Option<(&'static str, StringBuilder)>,
}

/// What became of a row: the columns the stage fills itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowRecord {
    /// The reason, for a rejected row.
    pub(crate) reject: Option<Reject>,
    /// `width`, `height`, `original_width`, `original_height`.
    pub(crate) sides: [Option<u32>; 4],
    pub(crate) exif: Option<String>,
    pub(crate) digest: Option<String>,
}

/// What the report needs to know of a row of a finished shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TableRow<'a> {
    pub(crate) key: &'a str,
    /// The reason, for a rejected row.
    pub(crate) error_message: Option<&'a str>,
    /// Digest of the downloaded bytes, for a kept row.
    pub(crate) digest: Option<&'a str>,
}

impl RowRecord {
    /// The record of a row that was fetched.
    pub(crate) fn of(outcome: &Result<StoredImage, Reject>) -> Self {
        let image = outcome.as_ref().ok();
        let sides = image.and_then(|image| image.sizes).map(|sizes| {
            [sizes.stored.width, sizes.stored.height, sizes.original.width, sizes.original.height].map(Some)
        });
        Self {
            reject: outcome.as_ref().err().copied(),
            sides: sides.unwrap_or_default(),
            exif: image.and_then(|image| image.exif.clone()),
            digest: image.and_then(|image| image.digest.clone()),
        }
    }
}

impl SampleTable {
    pub(crate) fn new(columns: &[CarriedColumn], config: &DataFetchConfig) -> Self {
        Self {
            carried: columns
                .iter()
                .map(|column| (column.name.clone(), CarriedBuilder::new(column)))
                .collect(),
            caption: StringBuilder::new(),
            url: StringBuilder::new(),
            key: StringBuilder::new(),
            status: StringBuilder::new(),
            error_message: StringBuilder::new(),
            sizes: std::array::from_fn(|_| Int32Builder::new()),
            exif: config.extract_exif.then(StringBuilder::new),
            digest: config.compute_hash.column().map(|name| (name, StringBuilder::new())),
        }
    }

    /// Appends the next row.
    pub(crate) fn push(&mut self, row: &UrlRow, key: &str, record: &RowRecord) {
        for ((_, builder), value) in self.carried.iter_mut().zip(&row.extra) {
            builder.push(value);
        }
        self.caption.append_option(row.caption.as_deref());
        self.url.append_option(row.url.as_deref().ok());
        self.key.append_value(key);
        let status = record.reject.map_or(RowStatus::Success, Reject::status);
        self.status.append_value(status.as_str());
        self.error_message.append_option(record.reject.map(Reject::reason));
        for (builder, side) in self.sizes.iter_mut().zip(record.sides) {
            // `max_decoded_pixels` is at most 2^30, so every side fits.
            builder.append_option(side.map(|side| i32::try_from(side).unwrap_or(i32::MAX)));
        }
        if let Some(exif) = &mut self.exif {
            exif.append_option(record.exif.as_deref());
        }
        if let Some((_, digest)) = &mut self.digest {
            digest.append_option(record.digest.as_deref());
        }
    }

    /// Writes the table under its final name.
    pub(crate) fn write(self, path: &Path) -> Result<(), DataFetchError> {
        let batch = self.into_batch().map_err(DataFetchError::table(path))?;
        let properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(batch.num_rows().max(1)))
            .build();
        let mut file = AtomicFile::create(path).map_err(DataFetchError::io(path))?;
        let write = |file: &mut AtomicFile| -> Result<(), ParquetError> {
            let mut writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
            writer.write(&batch)?;
            writer.close().map(|_| ())
        };
        write(&mut file).map_err(DataFetchError::table(path))?;
        file.commit().map_err(DataFetchError::io(path))
    }

    fn into_batch(self) -> Result<RecordBatch, ParquetError> {
        let text = |mut builder: StringBuilder| -> ArrayRef { Arc::new(builder.finish()) };
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (name, builder) in self.carried {
            columns.push((name, builder.finish()?));
        }
        let mut add = |name: &str, column: ArrayRef| columns.push((name.to_owned(), column));
        add("caption", text(self.caption));
        add("url", text(self.url));
        add("key", text(self.key));
        add("status", text(self.status));
        add("error_message", text(self.error_message));
        for (name, mut builder) in SIDES.into_iter().zip(self.sizes) {
            add(name, Arc::new(builder.finish()));
        }
        if let Some(exif) = self.exif {
            add("exif", text(exif));
        }
        if let Some((name, digest)) = self.digest {
            add(name, text(digest));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )?)
    }
}

/// Calls `on_row` with every row of a finished shard's table.
pub(crate) fn for_each_row(
    path: &Path,
    compute_hash: ComputeHash,
    on_row: &mut dyn FnMut(TableRow<'_>),
) -> Result<(), DataFetchError> {
    let names: Vec<_> = ["key", "error_message"].into_iter().chain(compute_hash.column()).collect();
    for_each_batch(path, &names, &mut |batch| {
        let text = |name: &str| text_column(path, batch, name);
        let (keys, messages) = (text("key")?, text("error_message")?);
        let digests = compute_hash.column().map(text).transpose()?;
        for row_idx in 0..batch.num_rows() {
            on_row(TableRow {
                key: keys.value(row_idx),
                error_message: text_at(messages, row_idx),
                digest: digests.and_then(|digests| text_at(digests, row_idx)),
            });
        }
        Ok(())
    })
}

/// The records of a finished shard's table, in the order of its rows.
pub(crate) fn read_records(path: &Path, config: &DataFetchConfig) -> Result<Vec<RowRecord>, DataFetchError> {
    let exif_column = config.extract_exif.then_some("exif");
    let own = [exif_column, config.compute_hash.column()].into_iter().flatten();
    let names: Vec<_> = ["error_message"].into_iter().chain(SIDES).chain(own).collect();
    let mut records = Vec::new();
    for_each_batch(path, &names, &mut |batch| {
        let text = |name: &str| text_column(path, batch, name);
        let messages = text("error_message")?;
        let exif = exif_column.map(text).transpose()?;
        let digests = config.compute_hash.column().map(text).transpose()?;
        let mut sides = Vec::new();
        for name in SIDES {
            let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<Int32Type>());
            sides.push(column.ok_or_else(|| lacks(path, "integer", name))?);
        }
        for row_idx in 0..batch.num_rows() {
            let owned = |column: Option<&StringArray>| {
                column.and_then(|column| text_at(column, row_idx)).map(str::to_owned)
            };
            let reject = text_at(messages, row_idx).map(|reason| {
                Reject::from_reason(reason).ok_or_else(|| {
                    DataFetchError::table(path)(ParquetError::General(format!("unknown reason `{reason}`")))
                })
            });
            let side = |column: &&Int32Array| {
                column.is_valid(row_idx).then(|| u32::try_from(column.value(row_idx)).unwrap_or(0))
            };
            records.push(RowRecord {
                reject: reject.transpose()?,
                sides: std::array::from_fn(|idx| side(&sides[idx])),
                exif: owned(exif),
                digest: owned(digests),
            });
        }
        Ok(())
    })?;
    Ok(records)
}

fn for_each_batch(
    path: &Path,
    columns: &[&str],
    on_batch: &mut dyn FnMut(&RecordBatch) -> Result<(), DataFetchError>,
) -> Result<(), DataFetchError> {
    let broken = DataFetchError::table;
    let file = File::open(path).map_err(DataFetchError::io(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken(path))?;
    let roots = columns.iter().filter_map(|name| builder.schema().index_of(name).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    for batch in builder.with_projection(mask).build().map_err(broken(path))? {
        on_batch(&batch.map_err(|error| broken(path)(error.into()))?)?;
    }
    Ok(())
}

fn text_column<'a>(
    path: &Path,
    batch: &'a RecordBatch,
    name: &str,
) -> Result<&'a StringArray, DataFetchError> {
    let column = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
    column.ok_or_else(|| lacks(path, "text", name))
}

fn lacks(path: &Path, kind: &str, name: &str) -> DataFetchError {
    DataFetchError::table(path)(ParquetError::General(format!("no {kind} column `{name}`")))
}

fn text_at(column: &StringArray, row_idx: usize) -> Option<&str> {
    column.is_valid(row_idx).then(|| column.value(row_idx))
}
