//! `{shard}.parquet`: one row per URL of the shard, kept or not, in list order.
//!
//! Columns as img2dataset writes them: the carried ones with their types, `caption`, `url`, `key`, `status`,
//! `error_message` (text), `width`, `height`, `original_width`, `original_height` (32-bit integers), `exif`
//! (text), and the digest (text) under the name of its kind. Two deviations: `caption` is always there, and a shard is one row group (img2dataset
//! flushes every 100 rows). Snappy-compressed.

use crate::config::ComputeHash;
use crate::error::DataFetchError;
use crate::reject::{Reject, RowStatus};
use crate::transform::StoredImage;
use crate::url_list::{CarriedColumn, ColumnType, UrlRow};
use arrow_array::builder::{BooleanBuilder, Float64Builder, Int32Builder, Int64Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::{Array as _, ArrayRef, RecordBatch, StringArray};
use oqvl_shard_io::AtomicFile;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::arrow::{ArrowWriter, ProjectionMask};
use parquet::basic::Compression;
use parquet::errors::ParquetError;
use parquet::file::properties::WriterProperties;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

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
    exif: StringBuilder,
    digest: Option<(&'static str, StringBuilder)>,
}

enum CarriedBuilder {
    Boolean(BooleanBuilder),
    Integer(Int64Builder),
    Float(Float64Builder),
    Text(StringBuilder),
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

impl SampleTable {
    pub(crate) fn new(columns: &[CarriedColumn], compute_hash: ComputeHash) -> Self {
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
            exif: StringBuilder::new(),
            digest: compute_hash.column().map(|name| (name, StringBuilder::new())),
        }
    }

    /// Appends the next row.
    pub(crate) fn push(&mut self, row: &UrlRow, key: &str, outcome: &Result<StoredImage, Reject>) {
        for ((_, builder), value) in self.carried.iter_mut().zip(&row.extra) {
            builder.push(value);
        }
        self.caption.append_option(row.caption.as_deref());
        self.url.append_option(row.url.as_deref().ok());
        self.key.append_value(key);
        let status = outcome.as_ref().map_or_else(|reject| reject.status(), |_| RowStatus::Success);
        self.status.append_value(status.as_str());
        self.error_message.append_option(outcome.as_ref().err().map(|reject| reject.reason()));
        let image = outcome.as_ref().ok();
        let sides = image.map(|image| {
            [image.size.width, image.size.height, image.original_size.width, image.original_size.height]
        });
        for (idx, builder) in self.sizes.iter_mut().enumerate() {
            // `max_decoded_pixels` is at most 2^30, so every side fits.
            builder.append_option(sides.map(|sides| i32::try_from(sides[idx]).unwrap_or(i32::MAX)));
        }
        self.exif.append_null();
        if let Some((_, digest)) = &mut self.digest {
            digest.append_option(image.and_then(|image| image.digest.as_deref()));
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
        let mut columns: Vec<(String, ArrayRef)> =
            self.carried.into_iter().map(|(name, builder)| (name, builder.finish())).collect();
        let mut add = |name: &str, column: ArrayRef| columns.push((name.to_owned(), column));
        add("caption", text(self.caption));
        add("url", text(self.url));
        add("key", text(self.key));
        add("status", text(self.status));
        add("error_message", text(self.error_message));
        let names = ["width", "height", "original_width", "original_height"];
        for (name, mut builder) in names.into_iter().zip(self.sizes) {
            add(name, Arc::new(builder.finish()));
        }
        add("exif", text(self.exif));
        if let Some((name, digest)) = self.digest {
            add(name, text(digest));
        }
        Ok(RecordBatch::try_from_iter_with_nullable(
            columns.into_iter().map(|(name, column)| (name, column, true)),
        )?)
    }
}

impl CarriedBuilder {
    fn new(column: &CarriedColumn) -> Self {
        match column.column_type {
            ColumnType::Boolean => Self::Boolean(BooleanBuilder::new()),
            ColumnType::Integer => Self::Integer(Int64Builder::new()),
            ColumnType::Float => Self::Float(Float64Builder::new()),
            ColumnType::Empty | ColumnType::Text => Self::Text(StringBuilder::new()),
        }
    }

    fn push(&mut self, value: &Value) {
        match self {
            Self::Boolean(builder) => builder.append_option(value.as_bool()),
            Self::Integer(builder) => builder.append_option(value.as_i64()),
            Self::Float(builder) => builder.append_option(value.as_f64()),
            Self::Text(builder) => match value {
                Value::Null => builder.append_null(),
                Value::String(text) => builder.append_value(text),
                other => builder.append_value(other.to_string()),
            },
        }
    }

    fn finish(self) -> ArrayRef {
        match self {
            Self::Boolean(mut builder) => Arc::new(builder.finish()),
            Self::Integer(mut builder) => Arc::new(builder.finish()),
            Self::Float(mut builder) => Arc::new(builder.finish()),
            Self::Text(mut builder) => Arc::new(builder.finish()),
        }
    }
}

/// Calls `on_row` with every row of a finished shard's table.
pub(crate) fn for_each_row(
    path: &Path,
    compute_hash: ComputeHash,
    on_row: &mut dyn FnMut(TableRow<'_>),
) -> Result<(), DataFetchError> {
    let broken = DataFetchError::table;
    let file = File::open(path).map_err(DataFetchError::io(path))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken(path))?;
    let names = ["key", "error_message"];
    let hash_column = compute_hash.column();
    let roots = names.iter().chain(&hash_column).filter_map(|name| builder.schema().index_of(name).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    for batch in builder.with_projection(mask).build().map_err(broken(path))? {
        let batch = batch.map_err(|error| broken(path)(error.into()))?;
        let column = |name: &str| {
            let found = batch.column_by_name(name).and_then(|column| column.as_string_opt::<i32>());
            found.ok_or_else(|| broken(path)(ParquetError::General(format!("no text column `{name}`"))))
        };
        let (keys, messages) = (column(names[0])?, column(names[1])?);
        let digests = hash_column.map(column).transpose()?;
        for row_idx in 0..batch.num_rows() {
            on_row(TableRow {
                key: keys.value(row_idx),
                error_message: text_at(messages, row_idx),
                digest: digests.and_then(|digests| text_at(digests, row_idx)),
            });
        }
    }
    Ok(())
}

fn text_at(column: &StringArray, row_idx: usize) -> Option<&str> {
    column.is_valid(row_idx).then(|| column.value(row_idx))
}
