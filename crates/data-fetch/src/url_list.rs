//! The list of URLs: which files it consists of, what columns it has, and its rows, shard by shard.
//!
//! A list is read twice: [`UrlList::survey`] counts the rows and finds the types of the columns to carry along, so that
//! the number of shards is known and a column has one type in all of them; [`UrlList::for_each_shard`] then hands out
//! the rows of the wanted shards, holding one shard of them at a time. In a text format the survey looks at every value,
//! and a broken list is noticed before the first download; of a parquet list it reads the footer alone.
//!
//! Shards are cut as img2dataset cuts them: files in the order of their names, the last shard of every file
//! short, numbering continued from file to file. Blank lines are not rows.

mod carried;
mod cells;
mod files;
mod parquet_records;
mod text_records;

pub(crate) use carried::CarriedBuilder;
pub use carried::CarriedColumn;
pub(crate) use files::is_list_in_folder;

use crate::config::{DataFetchConfig, InputFormat};
use crate::error::DataFetchError;
use crate::reject::Reject;
use arrow_schema::DataType;
use oqvl_stage::ConfigError;
use serde_json::Value;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};

/// Position of the URL, the caption and the uid among the wanted columns; additional columns follow.
const URL_IDX: usize = 0;
const CAPTION_IDX: usize = 1;
const UID_IDX: usize = 2;

/// Most shards of one file.
const MAX_SHARDS_OF_FILE: usize = 1 << 28;

/// One record of a list: for each wanted column its value, or `None` where the record has no such column.
type Record = Result<Vec<Option<Value>>, Reject>;

/// Takes the records of a list one by one.
type OnRecord<'a> = dyn FnMut(Record) -> ControlFlow<()> + 'a;

/// One row of the list.
#[derive(Debug, Clone, PartialEq)]
pub struct UrlRow {
    /// The URL as it stands in the list, trimmed; or why there is none.
    pub url: Result<String, Reject>,
    /// The caption, if the row has one.
    pub caption: Option<String>,
    /// The digest the downloaded bytes must have, if the config names a column of digests.
    pub expected_hash: Option<String>,
    /// Values of the [carried columns](UrlList::columns), null where the row has none.
    pub extra: Vec<Value>,
}

/// The rows of one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardRows {
    /// Number of the shard.
    pub shard_idx: usize,
    /// Its rows, in list order.
    pub rows: Vec<UrlRow>,
}

/// A list, counted and checked.
#[derive(Debug, Clone)]
pub struct UrlList {
    files: Vec<ListFile>,
    wanted: Vec<String>,
    columns: Vec<CarriedColumn>,
    /// Position of the boxes among the columns.
    box_idx: Option<usize>,
    /// Position of the digests to verify among the wanted columns.
    hash_idx: Option<usize>,
    rows_per_shard: u64,
}

#[derive(Debug, Clone)]
struct ListFile {
    path: PathBuf,
    format: InputFormat,
    num_rows: u64,
    shards: Range<usize>,
}

impl UrlList {
    /// Reads the list at `path` (a file, a folder or a pattern) once, to count its rows and to find its columns.
    /// `check_interrupt` is called every few thousand rows.
    ///
    /// # Errors
    /// If a file cannot be read, is not in its format, or lacks a column the config names; or whatever
    /// `check_interrupt` returns.
    pub fn survey(
        config: &DataFetchConfig,
        path: &Path,
        check_interrupt: &dyn Fn() -> Result<(), DataFetchError>,
    ) -> Result<Self, DataFetchError> {
        let mut wanted = vec![
            config.url_col.clone(),
            config.caption_col.clone().unwrap_or_else(|| "caption".to_owned()),
            config.uid_col.clone().unwrap_or_else(|| "uid".to_owned()),
        ];
        let additional = config.save_additional_columns.iter().filter(|name| *name != "uid");
        wanted.extend(additional.chain(&config.bbox_col).cloned());
        let hash_idx = config.verify_hash.as_ref().map(|(column, _)| {
            wanted.push(column.clone());
            wanted.len() - 1
        });
        let rows_per_shard = u64::from(config.number_sample_per_shard);
        let mut types = vec![DataType::Null; wanted.len()];
        let mut found = vec![false; wanted.len()];
        let mut files = Vec::new();
        let mut next_shard = 0;
        for (path, format) in files::list_files(path, config.input_format)? {
            let survey =
                survey_file(&path, format, &wanted, check_interrupt).map_err(|error| match error {
                    DataFetchError::ColumnType { path, column, found } => {
                        let idx = wanted.iter().position(|name| *name == column).unwrap_or(URL_IDX);
                        let message = format!(
                            "column `{column}` of {} is of type {found}, which cannot be stored",
                            path.display()
                        );
                        ConfigError::new(naming_key(config, idx, &column, hash_idx).0, message).into()
                    }
                    other => other,
                })?;
            survey.check_required(config, &path, &wanted, hash_idx)?;
            for idx in 0..wanted.len() {
                types[idx] = carried::merged(&types[idx], &survey.types[idx]);
                found[idx] |= survey.found[idx];
            }
            let num_shards = num_shards(&path, format, survey.num_rows, rows_per_shard)?;
            files.push(ListFile {
                path,
                format,
                num_rows: survey.num_rows,
                shards: next_shard..next_shard + num_shards,
            });
            next_shard += num_shards;
        }
        let carried = (UID_IDX..wanted.len())
            .filter(|idx| (*idx != UID_IDX || found[UID_IDX]) && Some(*idx) != hash_idx);
        let columns: Vec<_> = carried
            .map(|idx| CarriedColumn {
                name: if idx == UID_IDX { "uid".to_owned() } else { wanted[idx].clone() },
                data_type: carried::stored(&types[idx]),
                wanted_idx: idx,
            })
            .collect();
        // The boxes are the last that are carried.
        let box_idx = config.bbox_col.as_ref().map(|_| columns.len() - 1);
        Ok(Self { files, wanted, columns, box_idx, hash_idx, rows_per_shard })
    }

    /// The columns carried into the metadata: `uid` first, if the list has it, then the additional columns.
    #[must_use]
    pub fn columns(&self) -> &[CarriedColumn] {
        &self.columns
    }

    /// Position of the boxes to blur among the [columns](UrlList::columns), if the config names such a column.
    #[must_use]
    pub fn box_idx(&self) -> Option<usize> {
        self.box_idx
    }

    /// The numbers of the list's shards.
    #[must_use]
    pub fn shards(&self) -> Range<usize> {
        let first = self.files.first().map_or(0, |file| file.shards.start);
        first..self.files.last().map_or(first, |file| file.shards.end)
    }

    /// The same list with its shards numbered from `first_shard` instead of 0.
    #[must_use]
    pub fn numbered_from(mut self, first_shard: usize) -> Self {
        for file in &mut self.files {
            file.shards = first_shard + file.shards.start..first_shard + file.shards.end;
        }
        self
    }

    /// Number of rows in shard `shard_idx`; 0 if there is no such shard.
    #[must_use]
    pub fn rows_in_shard(&self, shard_idx: usize) -> u64 {
        let Some(file) = self.files.iter().find(|file| file.shards.contains(&shard_idx)) else { return 0 };
        let before = (shard_idx - file.shards.start) as u64 * self.rows_per_shard;
        (file.num_rows - before).min(self.rows_per_shard)
    }

    /// Hands the rows of every shard that `wants` to `emit`, in order; stops when `emit` or `poll` (called
    /// for every row read) says so.
    ///
    /// # Errors
    /// If a file cannot be read any more, or its number of rows has changed since the survey.
    pub fn for_each_shard(
        &self,
        wants: &dyn Fn(usize) -> bool,
        poll: &dyn Fn() -> ControlFlow<()>,
        emit: &mut dyn FnMut(ShardRows) -> ControlFlow<()>,
    ) -> Result<(), DataFetchError> {
        for file in &self.files {
            // Nothing after the last wanted shard of a file needs to be read.
            let Some(last) = file.shards.clone().rev().find(|shard_idx| wants(*shard_idx)) else { continue };
            let end = if last + 1 == file.shards.end {
                u64::MAX
            } else {
                (last + 1 - file.shards.start) as u64 * self.rows_per_shard
            };
            if self.read_shards(file, end, wants, poll, emit)?.is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read_shards(
        &self,
        file: &ListFile,
        end: u64,
        wants: &dyn Fn(usize) -> bool,
        poll: &dyn Fn() -> ControlFlow<()>,
        emit: &mut dyn FnMut(ShardRows) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, DataFetchError> {
        let mut rows = Vec::new();
        // What comes before the first wanted shard need not be decoded where the format can skip it.
        let first = file.shards.clone().find(|shard_idx| wants(*shard_idx)).unwrap_or(file.shards.start);
        let first_row = match file.format {
            InputFormat::Parquet => (first - file.shards.start) as u64 * self.rows_per_shard,
            _ => 0,
        };
        let mut num_rows = first_row;
        let mut flow = ControlFlow::Continue(());
        read_records(file, &self.wanted, first_row, &mut |record| {
            flow = poll();
            if flow.is_break() || num_rows == end || num_rows == file.num_rows {
                // One row too many is enough to know that the file has grown.
                num_rows += u64::from(num_rows == file.num_rows);
                return ControlFlow::Break(());
            }
            let shard_idx = file.shards.start + (num_rows / self.rows_per_shard) as usize;
            num_rows += 1;
            if wants(shard_idx) {
                rows.push(self.row(record, file.format));
            }
            let is_last = num_rows.is_multiple_of(self.rows_per_shard) || num_rows == file.num_rows;
            if is_last && !rows.is_empty() {
                flow = emit(ShardRows { shard_idx, rows: std::mem::take(&mut rows) });
            }
            flow
        })?;
        if flow.is_continue() && num_rows != end.min(file.num_rows) {
            let (path, expected) = (file.path.clone(), file.num_rows);
            return Err(DataFetchError::ListChanged { path, expected, found: num_rows });
        }
        Ok(flow)
    }

    fn row(&self, record: Record, format: InputFormat) -> UrlRow {
        let mut values = match record {
            Ok(values) => values,
            Err(reject) => {
                return UrlRow {
                    url: Err(reject),
                    caption: None,
                    expected_hash: None,
                    extra: vec![Value::Null; self.columns.len()],
                };
            }
        };
        let url = match values[URL_IDX].take() {
            Some(Value::String(url)) if !url.trim().is_empty() => Ok(url.trim().to_owned()),
            _ => Err(Reject::BadUrl),
        };
        let caption = values[CAPTION_IDX].take().filter(|value| !value.is_null()).map(carried::text_of);
        // A row without a digest cannot be verified and does not pass, as in img2dataset.
        let expected_hash = self.hash_idx.map(|idx| {
            values[idx].take().filter(|value| !value.is_null()).map(carried::text_of).unwrap_or_default()
        });
        let carried = |column: &CarriedColumn| {
            let value = values[column.wanted_idx].take().unwrap_or_default();
            if format.is_delimited() { cells::typed(value, &column.data_type) } else { value }
        };
        let extra = self.columns.iter().map(carried).collect();
        UrlRow { url, caption, expected_hash, extra }
    }
}

/// A damaged file may claim any number of rows.
fn num_shards(
    path: &Path,
    format: InputFormat,
    num_rows: u64,
    rows_per_shard: u64,
) -> Result<usize, DataFetchError> {
    let num_shards = usize::try_from(num_rows.div_ceil(rows_per_shard)).ok();
    num_shards.filter(|num_shards| *num_shards <= MAX_SHARDS_OF_FILE).ok_or_else(|| {
        let problem = format!("claims {num_rows} rows, more than {MAX_SHARDS_OF_FILE} shards of them");
        DataFetchError::ListFormat { path: path.to_path_buf(), format: format.name(), problem }
    })
}

/// What one reading of a file showed.
struct FileSurvey {
    num_rows: u64,
    /// Names in the header, or keys of the first object.
    names: Vec<String>,
    /// For each wanted column: its type.
    types: Vec<DataType>,
    /// For each wanted column: whether the file has it.
    found: Vec<bool>,
}

impl FileSurvey {
    /// A column that the config names must be there; one that is only looked for by default need not.
    fn check_required(
        &self,
        config: &DataFetchConfig,
        path: &Path,
        wanted: &[String],
        hash_idx: Option<usize>,
    ) -> Result<(), DataFetchError> {
        for (idx, column) in wanted.iter().enumerate() {
            let (key, is_required) = naming_key(config, idx, column, hash_idx);
            if is_required && !self.found[idx] && self.num_rows > 0 {
                let names: Vec<_> = self.names.iter().map(|name| format!("`{name}`")).collect();
                let available = if names.is_empty() { "URLs".to_owned() } else { names.join(", ") };
                let message = format!("names column `{column}`, but {} has only {available}", path.display());
                return Err(ConfigError::new(key, message).into());
            }
        }
        Ok(())
    }
}

/// The key that names a wanted column, and whether it says that the column must be there.
fn naming_key(
    config: &DataFetchConfig,
    idx: usize,
    column: &str,
    hash_idx: Option<usize>,
) -> (&'static str, bool) {
    const ADDITIONAL: &str = "save_additional_columns";
    match idx {
        _ if Some(idx) == hash_idx => ("verify_hash", true),
        URL_IDX => ("url_col", true),
        CAPTION_IDX => ("caption_col", config.caption_col.is_some()),
        UID_IDX
            if config.save_additional_columns.iter().any(|name| name == "uid")
                && config.uid_col.is_none() =>
        {
            (ADDITIONAL, true)
        }
        UID_IDX => ("uid_col", config.uid_col.is_some()),
        _ if Some(column) == config.bbox_col.as_deref() => ("bbox_col", true),
        _ => (ADDITIONAL, true),
    }
}

fn survey_file(
    path: &Path,
    format: InputFormat,
    wanted: &[String],
    check_interrupt: &dyn Fn() -> Result<(), DataFetchError>,
) -> Result<FileSurvey, DataFetchError> {
    /// Rows between two looks at the interrupt flag: a few milliseconds of parsing.
    const ROWS_PER_CHECK: u64 = 4096;
    check_interrupt()?;
    if format == InputFormat::Parquet {
        return parquet_records::survey(path, wanted);
    }
    let mut types = vec![DataType::Null; wanted.len()];
    let mut cells = vec![cells::Inference::default(); wanted.len()];
    let mut found = vec![false; wanted.len()];
    let (mut num_rows, mut num_readable) = (0_u64, 0_u64);
    let mut checked = Ok(());
    let names = text_records::read(path, format, wanted, &mut |record| {
        num_rows += 1;
        num_readable += u64::from(record.is_ok());
        for (idx, value) in record.iter().flatten().enumerate() {
            if let Some(value) = value {
                found[idx] = true;
                match value {
                    // Uids are texts, whatever their digits.
                    Value::String(cell) if format.is_delimited() && idx > UID_IDX => cells[idx].look_at(cell),
                    value => types[idx] = carried::merged(&types[idx], &carried::type_of(value)),
                }
            }
        }
        if num_rows.is_multiple_of(ROWS_PER_CHECK) {
            checked = check_interrupt();
        }
        if checked.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    checked?;
    if num_rows > 0 && num_readable == 0 {
        let problem = format!("none of its {num_rows} rows can be read as such");
        return Err(DataFetchError::ListFormat { path: path.to_path_buf(), format: format.name(), problem });
    }
    for (idx, column) in wanted.iter().enumerate() {
        found[idx] |= names.contains(column);
        types[idx] = carried::merged(&types[idx], &cells[idx].data_type());
    }
    Ok(FileSurvey { num_rows, names, types, found })
}

fn read_records(
    file: &ListFile,
    wanted: &[String],
    first_row: u64,
    on_record: &mut OnRecord<'_>,
) -> Result<(), DataFetchError> {
    match file.format {
        InputFormat::Parquet => parquet_records::read(&file.path, wanted, first_row, on_record),
        format => text_records::read(&file.path, format, wanted, on_record).map(|_| ()),
    }
}

#[cfg(test)]
mod tests;
