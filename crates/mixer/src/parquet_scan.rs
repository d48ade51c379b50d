//! Reading columns of many parquet files, file by file, in parallel and in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use arrow_array::{RecordBatch, new_null_array};
use arrow_schema::{DataType, SchemaRef};
use oqvl_shard_io::{CheckedParquet, ShardError, open_parquet, without_parquet_panic};
use oqvl_stage::{ConfigError, RunContext};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderOptions, ParquetRecordBatchReader, ParquetRecordBatchReaderBuilder,
};
use parquet::errors::ParquetError;
use rayon::prelude::*;

use crate::MixerError;
use crate::columns::{MergedColumns, is_text, list_names};
use crate::sample_table::batch_of;

/// Rows decoded at once.
const BATCH_ROWS: usize = 16_384;

/// Batches of a file that wait to be taken while the next one is decoded.
const BATCHES_AHEAD: usize = 2;

/// Parquet files whose rows, one file after the other, are numbered from 0.
#[derive(Debug)]
pub(crate) struct ParquetFiles {
    pub(crate) files: Vec<ParquetFile>,
    /// The columns of all files.
    pub(crate) columns: MergedColumns,
    pub(crate) num_rows: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    pub(crate) path: PathBuf,
    /// Its first row among those of all files.
    pub(crate) first_row: u64,
    pub(crate) num_rows: u64,
}

/// Some consecutive rows of one file.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Index of the file.
    pub(crate) file: usize,
    /// The first of them among those of all files.
    pub(crate) first_row: u64,
    /// The columns asked for, in that order.
    pub(crate) batch: RecordBatch,
}

impl ParquetFiles {
    /// Reads the footers of `paths`.
    pub(crate) fn open(paths: Vec<PathBuf>, run: &RunContext) -> Result<ParquetFiles, MixerError> {
        ParquetFiles::with_columns(MergedColumns::default(), paths, run)
    }

    /// Reads the footers of `paths`; the schema begins with `columns`.
    pub(crate) fn with_columns(
        mut columns: MergedColumns,
        paths: Vec<PathBuf>,
        run: &RunContext,
    ) -> Result<ParquetFiles, MixerError> {
        let footers = paths.par_iter().map(|path| {
            run.check_interrupt()?;
            read_footer(path)
        });
        let footers = footers.collect::<Result<Vec<_>, MixerError>>()?;
        let (mut files, mut end) = (Vec::with_capacity(paths.len()), 0_u64);
        for (path, (schema, num_rows)) in paths.into_iter().zip(footers) {
            columns.add(&schema, num_rows);
            let first_row = end;
            end = end.checked_add(num_rows).ok_or_else(|| wrong_row_count(&path))?;
            files.push(ParquetFile { path, first_row, num_rows });
        }
        Ok(ParquetFiles { files, columns, num_rows: end })
    }

    /// The schema of the columns of all files.
    pub(crate) fn schema(&self) -> &SchemaRef {
        self.columns.schema()
    }

    /// Checks that at least one file has the text column `name`; `key` of the config names the files.
    pub(crate) fn require_text(&self, name: &str, key: &str) -> Result<(), ConfigError> {
        if self.num_rows == 0 {
            return Ok(());
        }
        let path = self.files.first().map(|file| file.path.display().to_string()).unwrap_or_default();
        match self.schema().field_with_name(name).map(|field| field.data_type()) {
            Ok(kind) if is_text(kind) => Ok(()),
            Ok(kind) => {
                let message = format!("{path}: the column `{name}` is of type {kind}, and must be text");
                Err(ConfigError::new(key, message))
            }
            Err(_) => {
                let known = list_names(self.schema().fields().iter().map(|field| field.name().as_str()));
                Err(ConfigError::new(key, format!("{path}: no column `{name}`; it has {known}")))
            }
        }
    }

    /// Hands the columns `names` of all rows (nulls where a file lacks one) to `map`, a file per thread at a time, and
    /// what it makes of them to `take`, in row order. A few batches per thread are in memory at a time.
    pub(crate) fn scan<T: Send>(
        &self,
        names: &[&str],
        run: &RunContext,
        map: impl Fn(Rows) -> Result<T, MixerError> + Sync,
        mut take: impl FnMut(T) -> Result<(), MixerError>,
    ) -> Result<(), MixerError> {
        let num_threads = rayon::current_num_threads().min(self.files.len());
        if num_threads <= 1 {
            for file in 0..self.files.len() {
                for rows in self.read_file(file, names)? {
                    run.check_interrupt()?;
                    take(map(rows?)?)?;
                }
            }
            return Ok(());
        }
        // Threads of their own, not those of rayon: they wait for each other.
        let (next_file, map) = (Mutex::new(0), &map);
        let (announce, announced) = sync_channel(num_threads);
        std::thread::scope(|scope| {
            for _ in 0..num_threads {
                let (announce, next_file) = (announce.clone(), &next_file);
                scope.spawn(move || {
                    // Files are announced in their order, and only so many ahead of what has been taken.
                    let claim = || {
                        let mut next = next_file.lock().unwrap_or_else(PoisonError::into_inner);
                        if *next == self.files.len() {
                            return None;
                        }
                        let (sender, batches) = sync_channel(BATCHES_AHEAD);
                        announce.send(batches).ok()?;
                        *next += 1;
                        Some((*next - 1, sender))
                    };
                    while let Some((file, sender)) = claim() {
                        self.send_file(file, names, map, &sender);
                    }
                });
            }
            drop(announce);
            // Whoever still reads when this ends early finds nobody to send to, and ends too.
            for batches in announced {
                for batch in batches {
                    run.check_interrupt()?;
                    take(batch?)?;
                }
            }
            Ok(())
        })
    }

    /// Sends what `map` makes of the rows of a file, up to the first error, or until nobody listens.
    fn send_file<T>(
        &self,
        file: usize,
        names: &[&str],
        map: impl Fn(Rows) -> Result<T, MixerError>,
        sender: &SyncSender<Result<T, MixerError>>,
    ) {
        match self.read_file(file, names) {
            Ok(mut rows) => {
                let _nobody_listens = rows.try_for_each(|rows| sender.send(rows.and_then(&map)));
            }
            Err(error) => {
                let _nobody_listens = sender.send(Err(error));
            }
        }
    }

    fn read_file(&self, file: usize, names: &[&str]) -> Result<FileRows<'_>, MixerError> {
        let path = &self.files[file].path;
        let builder = project(open_table(path)?, names).with_batch_size(BATCH_ROWS);
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        let next_row = self.files[file].first_row;
        Ok(FileRows { files: self, file, batches: Batches::start(path, builder)?, names, next_row })
    }

    /// The columns `names` of one row.
    pub(crate) fn read_row(&self, row: u64, names: &[&str]) -> Result<RecordBatch, MixerError> {
        let index = self.files.partition_point(|file| file.first_row <= row) - 1;
        let file = &self.files[index];
        let builder = project(open_table(&file.path)?, names)
            .with_offset((row - file.first_row) as usize)
            .with_limit(1);
        let batch = Batches::start(&file.path, builder)?.next();
        let batch = batch.ok_or_else(|| MixerError::InputChanged { path: file.path.clone() })?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(in_order(&batch?, &names))
    }
}

/// The rows of one file.
#[derive(Debug)]
struct FileRows<'a> {
    files: &'a ParquetFiles,
    file: usize,
    batches: Batches,
    names: Vec<String>,
    next_row: u64,
}

impl Iterator for FileRows<'_> {
    type Item = Result<Rows, MixerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let file = &self.files.files[self.file];
        let end = file.first_row + file.num_rows;
        let batch = match self.batches.next() {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => {
                self.next_row = end;
                return Some(Err(error));
            }
            None if self.next_row == end => return None,
            None => {
                self.next_row = end;
                return Some(Err(wrong_row_count(&file.path)));
            }
        };
        let first_row = self.next_row;
        self.next_row += batch.num_rows() as u64;
        if self.next_row > end {
            return Some(Err(wrong_row_count(&file.path)));
        }
        Some(Ok(Rows { file: self.file, first_row, batch: in_order(&batch, &self.names) }))
    }
}

/// The batches of a parquet file. It may be damaged: a panic of the library is an error, and ends them.
#[derive(Debug)]
pub(crate) struct Batches {
    path: PathBuf,
    reader: Option<ParquetRecordBatchReader>,
}

impl Batches {
    /// Starts to read what `builder` was told to of the file at `path`.
    pub(crate) fn start(
        path: &Path,
        builder: ParquetRecordBatchReaderBuilder<CheckedParquet>,
    ) -> Result<Batches, MixerError> {
        let reader = without_parquet_panic(|| builder.build()).map_err(table_error(path))?;
        Ok(Batches { path: path.to_path_buf(), reader: Some(reader) })
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, MixerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let reader = self.reader.as_mut()?;
        let batch = without_parquet_panic(|| Ok(reader.next().transpose()?));
        if !matches!(batch, Ok(Some(_))) {
            // What a decoder holds after an error is of no more use.
            self.reader = None;
        }
        batch.map_err(table_error(&self.path)).transpose()
    }
}

/// Opens a parquet file, which may be damaged.
pub(crate) fn open_table(path: &Path) -> Result<ParquetRecordBatchReaderBuilder<CheckedParquet>, MixerError> {
    let file = open_file(path)?;
    open_parquet(file, ArrowReaderOptions::new()).map_err(table_error(path))
}

/// The columns and the number of rows of a file.
fn read_footer(path: &Path) -> Result<(SchemaRef, u64), MixerError> {
    let footer = open_table(path)?;
    let groups = footer.metadata().row_groups().iter();
    let num_rows = groups.map(|group| u64::try_from(group.num_rows()).ok());
    let num_rows = num_rows.reduce(|sum, group| sum?.checked_add(group?)).unwrap_or(Some(0));
    Ok((footer.schema().clone(), num_rows.ok_or_else(|| wrong_row_count(path))?))
}

fn wrong_row_count(path: &Path) -> MixerError {
    let problem = "has another number of rows than its footer says".to_owned();
    MixerError::Table { path: path.to_path_buf(), problem }
}

/// Restricts a reader to those of the columns `names` that the file has.
fn project(
    builder: ParquetRecordBatchReaderBuilder<CheckedParquet>,
    names: &[&str],
) -> ParquetRecordBatchReaderBuilder<CheckedParquet> {
    let columns: Vec<usize> = names.iter().filter_map(|name| builder.schema().index_of(name).ok()).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    builder.with_projection(mask)
}

/// The columns `names` in this order; nulls for one that the file does not have.
fn in_order(batch: &RecordBatch, names: &[String]) -> RecordBatch {
    if names.is_empty() {
        // Rows without columns: they can be counted.
        return batch.clone();
    }
    let column = |name: &String| {
        let absent = || new_null_array(&DataType::Null, batch.num_rows());
        (name.clone(), batch.column_by_name(name).cloned().unwrap_or_else(absent))
    };
    batch_of(names.iter().map(column).collect())
}

fn open_file(path: &Path) -> Result<File, MixerError> {
    File::open(path).map_err(|source| ShardError::Io { path: path.to_path_buf(), source }.into())
}

fn table_error(path: &Path) -> impl FnOnce(ParquetError) -> MixerError + '_ {
    |error| MixerError::Table { path: path.to_path_buf(), problem: error.to_string() }
}

/// The files of a metadata folder that match `pattern`, by name; `key` of the config says which.
pub(crate) fn metadata_files(dir: &Path, pattern: &str, key: &str) -> Result<Vec<PathBuf>, MixerError> {
    let failed = |source| ShardError::Io { path: dir.to_path_buf(), source };
    let pattern_text = pattern.to_owned();
    let pattern = glob::Pattern::new(pattern).expect("the pattern was checked with the config");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') && pattern.matches(&name) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        let message = format!("{}: no file here is called `{pattern_text}`", dir.display());
        return Err(ConfigError::new(key, message).into());
    }
    paths.sort();
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int64Array, cast::AsArray, types::Int64Type};
    use oqvl_shard_io::TableWriter;

    use super::*;
    use crate::Mixer;

    fn write(path: &Path, numbers: std::ops::Range<i64>) {
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(numbers));
        let batch = batch_of(vec![("n".into(), numbers)]);
        let mut writer = TableWriter::create(path, batch.schema(), &[]).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    }

    /// Files of many sizes, some of several batches, whose rows are numbered.
    fn numbered(dir: &Path) -> (ParquetFiles, RunContext) {
        let (mut paths, mut next) = (Vec::new(), 0);
        for (index, len) in [3, 0, 50_000, 1, 1, 1, 1, 1, 1, 20_000, 7].into_iter().enumerate() {
            let path = dir.join(format!("{index:02}.parquet"));
            write(&path, next..next + len);
            next += len;
            paths.push(path);
        }
        let run = RunContext::for_test::<Mixer>(dir, 7).unwrap();
        (ParquetFiles::open(paths, &run).unwrap(), run)
    }

    fn with_threads<T: Send>(threads: usize, work: impl FnOnce() -> T + Send) -> T {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(work)
    }

    #[test]
    fn rows_come_in_order_whatever_the_threads() {
        let dir = tempfile::tempdir().unwrap();
        let (files, run) = numbered(dir.path());
        for threads in [1, 2, 5, 40] {
            let mut next = 0;
            let numbers = |rows: Rows| {
                let numbers = rows.batch.column(0).as_primitive::<Int64Type>().values().to_vec();
                assert_eq!(rows.first_row, numbers[0] as u64);
                Ok(numbers)
            };
            let take = |numbers: Vec<i64>| {
                assert_eq!(numbers, (next..next + numbers.len() as i64).collect::<Vec<_>>());
                next += numbers.len() as i64;
                Ok(())
            };
            with_threads(threads, || files.scan(&["n"], &run, numbers, take)).unwrap();
            assert_eq!(next as u64, files.num_rows);
        }
    }

    #[test]
    fn the_first_error_in_row_order_ends_a_scan() {
        let dir = tempfile::tempdir().unwrap();
        let (files, run) = numbered(dir.path());
        let fail = |file: usize| MixerError::InputChanged { path: file.to_string().into() };
        for threads in [1, 4] {
            let map = |rows: Rows| if rows.file >= 5 { Err(fail(rows.file)) } else { Ok(()) };
            let error = with_threads(threads, || files.scan(&["n"], &run, map, |()| Ok(()))).unwrap_err();
            assert!(matches!(error, MixerError::InputChanged { path } if path == Path::new("5")));
            let refuse = |file| if file == 2 { Err(fail(file)) } else { Ok(()) };
            let scan = || files.scan(&["n"], &run, |rows| Ok(rows.file), refuse);
            assert!(with_threads(threads, scan).is_err());
        }
        // One that is shorter than its footer was when it was opened.
        write(&files.files[2].path, 0..100);
        let scan = || files.scan(&["n"], &run, |_| Ok(()), |()| Ok(()));
        assert!(matches!(with_threads(2, scan), Err(MixerError::Table { .. })));
    }

    #[test]
    fn files_that_make_the_library_panic_are_errors() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/parquet");
        let dir = tempfile::tempdir().unwrap();
        let run = RunContext::for_test::<Mixer>(dir.path(), 7).unwrap();
        for name in ["bit_width.parquet", "short_page.parquet"] {
            let files = ParquetFiles::open(vec![seeds.join(name)], &run).unwrap();
            let columns: Vec<&str> = files.schema().fields().iter().map(|it| it.name().as_str()).collect();
            let error = files.scan(&columns, &run, |_| Ok(()), |()| Ok(())).unwrap_err();
            assert!(matches!(error, MixerError::Table { .. }), "{name}: {error}");
        }
    }
}
