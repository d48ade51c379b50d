//! `{shard}.parquet`: one row per URL of the shard, kept or not, in list order.
//!
//! Columns as img2dataset writes them: the carried ones with their types, `caption`, `url`, `key`, `status`,
//! `error_message` (text), `width`, `height`, `original_width`, `original_height` (32-bit integers), `exif`
//! (text), and the digest (text) under the name of its kind. Three deviations: `uid` is the first column wherever the list
//! has it, `caption` is always there, and a shard is one row group of up to a million rows (img2dataset flushes every 100).
//! Snappy-compressed.

use crate::config::{ComputeHash, DataFetchConfig};
use crate::error::DataFetchError;
use crate::reject::{Reject, RowStatus};
use crate::transform::StoredImage;
use crate::url_list::{CarriedBuilder, CarriedColumn, UrlRow};
use arrow_array::builder::{Int32Builder, StringBuilder};
use arrow_array::cast::AsArray as _;
use arrow_array::types::Int32Type;
use arrow_array::{Array as _, ArrayRef, Int32Array, RecordBatch, StringArray};
use oqvl_shard_io::{TableWriter, open_parquet, without_parquet_panic};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ArrowReaderOptions;
use parquet::errors::ParquetError;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::sync::Arc;

/// The columns of the sizes.
const SIDES: [&str; 4] = ["width", "height", "original_width", "original_height"];

/// Bytes of text in a batch: its offsets have 31 bits. A shard has one batch, but for one with absurd captions.
const MAX_BATCH_TEXT_BYTES: usize = 256 << 20;

/// Collects the rows of a shard.
pub(crate) struct SampleTable {
    columns: Arc<[CarriedColumn]>,
    extract_exif: bool,
    compute_hash: ComputeHash,
    max_batch_text_bytes: usize,
    full: Vec<RecordBatch>,
    rows: Rows,
}

/// The rows of a batch.
struct Rows {
    /// About.
    text_bytes: usize,
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
    pub(crate) fn new(columns: &Arc<[CarriedColumn]>, config: &DataFetchConfig) -> Self {
        let (extract_exif, compute_hash) = (config.extract_exif, config.compute_hash);
        Self {
            columns: Arc::clone(columns),
            extract_exif,
            compute_hash,
            max_batch_text_bytes: MAX_BATCH_TEXT_BYTES,
            full: Vec::new(),
            rows: Rows::new(columns, extract_exif, compute_hash),
        }
    }

    /// Appends the next row.
    ///
    /// # Errors
    /// If the values of a carried column are none of its type.
    pub(crate) fn push(&mut self, row: &UrlRow, key: &str, record: &RowRecord) -> Result<(), ParquetError> {
        let text_bytes = text_bytes(row, record);
        if self.rows.text_bytes > 0 && self.rows.text_bytes + text_bytes > self.max_batch_text_bytes {
            let next = Rows::new(&self.columns, self.extract_exif, self.compute_hash);
            self.full.push(std::mem::replace(&mut self.rows, next).into_batch()?);
        }
        self.rows.text_bytes += text_bytes;
        self.rows.push(row, key, record);
        Ok(())
    }

    /// Writes the table under its final name.
    pub(crate) fn write(self, path: &Path) -> Result<(), DataFetchError> {
        let last = self.rows.into_batch().map_err(DataFetchError::table(path))?;
        let mut writer = TableWriter::create_snappy(path, last.schema())?;
        for batch in self.full.iter().chain([&last]) {
            writer.write(batch)?;
        }
        Ok(writer.finish()?)
    }
}

/// Bytes of the texts a row has that may be long.
fn text_bytes(row: &UrlRow, record: &RowRecord) -> usize {
    fn of_value(value: &Value) -> usize {
        match value {
            Value::String(text) => text.len(),
            // As it looks where it is stored as text.
            Value::Array(items) => 2 + items.iter().map(|item| of_value(item) + 3).sum::<usize>(),
            Value::Object(members) => {
                2 + members.iter().map(|(name, value)| name.len() + of_value(value) + 6).sum::<usize>()
            }
            _ => 24,
        }
    }
    let texts = [row.caption.as_ref(), row.url.as_ref().ok(), record.exif.as_ref()];
    let carried: usize = row.extra.iter().map(of_value).sum();
    texts.into_iter().flatten().map(String::len).sum::<usize>() + carried
}

impl Rows {
    fn new(columns: &[CarriedColumn], extract_exif: bool, compute_hash: ComputeHash) -> Self {
        Self {
            text_bytes: 0,
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
            exif: extract_exif.then(StringBuilder::new),
            digest: compute_hash.column().map(|name| (name, StringBuilder::new())),
        }
    }

    fn push(&mut self, row: &UrlRow, key: &str, record: &RowRecord) {
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

/// Rows of a table, from its footer alone.
pub(crate) fn num_rows(path: &Path) -> Result<u64, DataFetchError> {
    let file = File::open(path).map_err(DataFetchError::io(path))?;
    let builder = open_parquet(file, ArrowReaderOptions::new()).map_err(DataFetchError::table(path))?;
    Ok(u64::try_from(builder.metadata().file_metadata().num_rows()).unwrap_or(0))
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
    let builder = open_parquet(file, ArrowReaderOptions::new()).map_err(broken(path))?;
    let roots = columns.iter().filter_map(|name| builder.schema().index_of(name).ok());
    let mask = ProjectionMask::roots(builder.parquet_schema(), roots);
    let mut reader = without_parquet_panic(|| builder.with_projection(mask).build()).map_err(broken(path))?;
    while let Some(batch) = without_parquet_panic(|| Ok(reader.next().transpose()?)).map_err(broken(path))? {
        on_batch(&batch)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    fn row(number: usize) -> UrlRow {
        let caption = Some("c".repeat(number));
        UrlRow { url: Ok(format!("u{number}")), caption, expected_hash: None, extra: Vec::new() }
    }

    fn table(config: &DataFetchConfig) -> SampleTable {
        let columns: Arc<[CarriedColumn]> = Arc::new([]);
        SampleTable::new(&columns, config)
    }

    fn record() -> RowRecord {
        RowRecord { reject: None, sides: [Some(1); 4], exif: Some("{}".to_owned()), digest: None }
    }

    #[test]
    fn a_table_of_many_batches_is_that_of_one() {
        let dir = tempfile::tempdir().unwrap();
        let config = DataFetchConfig::default();
        let write = |name: &str, max_batch_text_bytes: usize| {
            let mut table = SampleTable { max_batch_text_bytes, ..table(&config) };
            (0..100).for_each(|idx| table.push(&row(idx), &format!("{idx:04}"), &record()).unwrap());
            let num_batches = table.full.len() + 1;
            let path = dir.path().join(name);
            table.write(&path).unwrap();
            let mut keys = Vec::new();
            for_each_row(&path, config.compute_hash, &mut |row| keys.push(row.key.to_owned())).unwrap();
            (num_batches, keys, read_records(&path, &config).unwrap())
        };
        let (one, many) = (write("one", 1 << 20), write("many", 1000));
        assert!((one.0, many.0 > 4) == (1, true), "{} batches", many.0);
        assert_eq!((one.1, one.2), (many.1, many.2));
    }

    #[test]
    fn tables_name_this_program_and_not_the_library_and_damaged_ones_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let config = DataFetchConfig::default();
        let path = dir.path().join("t.parquet");
        let mut table = table(&config);
        (0..20).for_each(|idx| table.push(&row(idx), &format!("{idx:04}"), &record()).unwrap());
        table.write(&path).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let has = |word: &[u8]| bytes.windows(word.len()).any(|window| window == word);
        assert!(has(b"oqvl-shard-io") && !has(b"parquet-rs"));
        for position in (0..bytes.len()).step_by(3) {
            let mut damaged = bytes.clone();
            damaged[position] ^= 0xff;
            oqvl_shard_io::write_atomic(&path, &damaged).unwrap();
            // Whatever it is, it is no panic.
            let _ = read_records(&path, &config);
        }
    }
}
