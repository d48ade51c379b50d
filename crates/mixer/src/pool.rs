//! The pool: all samples, numbered; where they are, who they are, and what columns they have.
//!
//! Nothing here grows with the number of samples but a few bits for each, and the uids in order, which go to scratch
//! files when they are many.

use std::path::{Path, PathBuf};

use arrow_array::Array;
use oqvl_shard_io::{Uid, UidReader, UidWriter};
use oqvl_stage::RunContext;

use crate::MixerError;
use crate::columns::{MergedColumns, texts};
use crate::config::PoolSource;
use crate::external_sort::interruptible;
use crate::parquet_scan::{ParquetFiles, metadata_files};
use crate::places::{Place, Places, ShardEnd};
use crate::reject::Reject;
use crate::row_set::RowSet;
use crate::sample_index::{IndexPlan, SampleIndex};
use crate::scratch::Scratch;
use crate::uid_order::{FoundRows, RowSorter, SortedRows, UidSorter};

/// A part of the pool: a shard, or a file of a metadata folder.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    /// Its file name without ending.
    pub(crate) name: String,
    pub(crate) first_row: u64,
    pub(crate) num_rows: u64,
    /// Whether there was more that cannot be read.
    pub(crate) end: ShardEnd,
}

/// All samples.
#[derive(Debug)]
pub(crate) struct Pool {
    /// The shards and their index; none for a metadata folder.
    pub(crate) index: Option<SampleIndex>,
    pub(crate) parts: Vec<Part>,
    /// The columns of all rows, in row order.
    pub(crate) files: ParquetFiles,
    pub(crate) num_rows: u64,
    /// The rows whose uid can be used.
    pub(crate) usable: RowSet,
    bad_uid: RowSet,
    uids: SortedRows,
}

impl Pool {
    /// The pool of a source: runs the first pass over shards, reads the uids of a metadata folder.
    pub(crate) fn open(
        source: PoolSource<'_>,
        plan: &IndexPlan,
        scratch: &Scratch,
        run: &RunContext,
    ) -> Result<Pool, MixerError> {
        match source {
            PoolSource::Shards(dir) => {
                let index = SampleIndex::create(&index_dir(run), plan, &run.resolve(dir))?;
                index.fill(plan, run)?;
                Pool::of_index(index, scratch, run)
            }
            PoolSource::Metadata(dir, pattern) => {
                let paths = metadata_files(&run.resolve(dir), pattern, "metadata_files")?;
                Pool::of_metadata(paths, scratch, run)
            }
        }
    }

    fn of_index(index: SampleIndex, scratch: &Scratch, run: &RunContext) -> Result<Pool, MixerError> {
        let (mut parts, mut tables, mut num_rows) = (Vec::new(), Vec::new(), 0);
        for (shard, input) in index.shards.iter().enumerate() {
            let path = index.places_path(shard);
            let Some((len, end)) = Places::read_summary(&path) else {
                return Err(MixerError::InputChanged { path });
            };
            let pieces = (len as usize).div_ceil(crate::sample_index::ROWS_PER_FILE);
            tables.extend((0..pieces).map(|piece| index.table_path(shard, piece)));
            parts.push(Part { name: input.name.clone(), first_row: num_rows, num_rows: len, end });
            num_rows += len;
        }
        let files = ParquetFiles::with_columns(MergedColumns::of_shards(), tables, run)?;
        if files.num_rows != num_rows {
            return Err(MixerError::InputChanged { path: index.dir().to_path_buf() });
        }
        let mut rows = UidRows::new(num_rows, scratch);
        for shard in 0..index.shards.len() {
            run.check_interrupt()?;
            for place in read_places(&index, shard)?.samples {
                rows.push(place.uid)?;
            }
        }
        rows.into_pool(Some(index), parts, files)
    }

    fn of_metadata(paths: Vec<PathBuf>, scratch: &Scratch, run: &RunContext) -> Result<Pool, MixerError> {
        let files = ParquetFiles::open(paths, run)?;
        files.require_text("uid", "metadata_dir")?;
        let part = |file: &crate::parquet_scan::ParquetFile| Part {
            name: file.path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            first_row: file.first_row,
            num_rows: file.num_rows,
            end: ShardEnd::Whole,
        };
        let parts = files.files.iter().map(part).collect();
        let mut rows = UidRows::new(files.num_rows, scratch);
        scan_uids(&files, run, |uid| rows.push(uid))?;
        rows.into_pool(None, parts, files)
    }

    /// The part that holds `row`, and its position there.
    pub(crate) fn locate(&self, row: u64) -> (usize, u64) {
        let part = self.parts.partition_point(|part| part.first_row <= row) - 1;
        (part, row - self.parts[part].first_row)
    }

    /// The range of rows of a part.
    pub(crate) fn rows_of(&self, part: usize) -> std::ops::Range<u64> {
        let part = &self.parts[part];
        part.first_row..part.first_row + part.num_rows
    }

    /// Why the uid of `row` cannot be used; the row is not in `usable`.
    pub(crate) fn uid_problem(&self, row: u64) -> Reject {
        if self.bad_uid.contains(row) { Reject::BadUid } else { Reject::BadMetadata }
    }

    /// What the first pass noted of the samples of a shard.
    pub(crate) fn places(&self, shard: usize) -> Result<Places, MixerError> {
        read_places(self.index.as_ref().expect("only shards have places"), shard)
    }

    /// What it noted of one sample.
    pub(crate) fn place(&self, row: u64) -> Result<Place, MixerError> {
        let (part, position) = self.locate(row);
        let path = self.index.as_ref().expect("only shards have places").places_path(part);
        Places::read_one(&path, position)?.ok_or(MixerError::InputChanged { path })
    }

    /// The uid of every usable row, as a number, with the row, by uid, then row.
    pub(crate) fn by_uid<'a>(
        &'a self,
        run: &'a RunContext,
    ) -> Result<impl Iterator<Item = Result<(u128, u64), MixerError>> + 'a, MixerError> {
        self.uids.iter(run)
    }

    /// The rows of ascending `uids`, which may repeat.
    pub(crate) fn rows_with(
        &self,
        uids: impl Iterator<Item = Result<Uid, MixerError>>,
        run: &RunContext,
    ) -> Result<FoundRows, MixerError> {
        self.uids.join(uids, self.num_rows, run)
    }

    /// The rows that the list at `path` names. A list out of order is sorted, in scratch files if need be.
    pub(crate) fn rows_in_list(
        &self,
        path: &Path,
        scratch: &Scratch,
        run: &RunContext,
    ) -> Result<FoundRows, MixerError> {
        let uids = || -> Result<_, MixerError> {
            Ok(interruptible(UidReader::open(path)?.map(|uid| Ok(uid?)), run))
        };
        let (mut is_sorted, mut last) = (true, None);
        for uid in uids()? {
            let uid = uid?;
            if last.replace(uid).is_some_and(|last| last > uid) {
                is_sorted = false;
                break;
            }
        }
        if is_sorted {
            return self.rows_with(uids()?, run);
        }
        tracing::warn!(path = %path.display(), "the list is not in order; it is sorted first");
        let mut sorter = UidSorter::new(scratch);
        for uid in uids()? {
            sorter.push(uid?)?;
        }
        self.rows_with(sorter.finish()?.iter()?, run)
    }

    /// Writes the uids of `rows` as a list, each once; returns how many.
    pub(crate) fn write_list(&self, rows: &RowSet, path: &Path, run: &RunContext) -> Result<u64, MixerError> {
        let mut len = 0;
        self.for_each_uid(rows, run, |_| {
            len += 1;
            Ok(())
        })?;
        let mut writer = UidWriter::create(path, len)?;
        self.for_each_uid(rows, run, |uid| Ok(writer.push(uid)?))?;
        writer.finish()?;
        Ok(len)
    }

    /// The uids of `rows`, ascending, each once.
    fn for_each_uid(
        &self,
        rows: &RowSet,
        run: &RunContext,
        mut take: impl FnMut(Uid) -> Result<(), MixerError>,
    ) -> Result<(), MixerError> {
        let mut last = None;
        for entry in self.by_uid(run)? {
            let (uid, row) = entry?;
            if rows.contains(row) && last.replace(uid) != Some(uid) {
                take(Uid::from(uid))?;
            }
        }
        Ok(())
    }

    /// What the report calls a row: its uid if it has one of its own, or `{part}/{key}`.
    pub(crate) fn name_of(&self, row: u64) -> Result<String, MixerError> {
        let (part, position) = self.locate(row);
        let shard = &self.parts[part].name;
        let text = |column: &str| -> Result<Option<String>, MixerError> {
            let batch = self.files.read_row(row, &[column])?;
            let texts = texts(batch.column(0)).filter(|texts| !texts.is_null(0));
            Ok(texts.map(|texts| texts.value(0).to_owned()))
        };
        if self.index.is_none() {
            return if self.usable.contains(row) {
                Ok(text("uid")?.unwrap_or_default())
            } else {
                Ok(format!("{shard}/{position}"))
            };
        }
        let place = self.place(row)?;
        match place.uid {
            Ok(uid) if place.named_by_uid => Ok(uid.to_string()),
            _ => Ok(format!("{shard}/{}", text("key")?.unwrap_or_default())),
        }
    }
}

/// Collects what is known of the uids of all rows.
struct UidRows {
    next_row: u64,
    usable: RowSet,
    bad_uid: RowSet,
    uids: RowSorter,
}

impl UidRows {
    fn new(num_rows: u64, scratch: &Scratch) -> UidRows {
        let none = RowSet::none(num_rows);
        UidRows { next_row: 0, usable: none.clone(), bad_uid: none, uids: RowSorter::new(scratch) }
    }

    fn push(&mut self, uid: Result<Uid, Reject>) -> Result<(), MixerError> {
        let row = self.next_row;
        self.next_row += 1;
        match uid {
            Ok(uid) => {
                self.usable.insert(row);
                self.uids.push(u128::from(uid), row)?;
            }
            Err(Reject::BadUid) => self.bad_uid.insert(row),
            Err(_) => {}
        }
        Ok(())
    }

    fn into_pool(
        self,
        index: Option<SampleIndex>,
        parts: Vec<Part>,
        files: ParquetFiles,
    ) -> Result<Pool, MixerError> {
        let num_rows = files.num_rows;
        let (usable, bad_uid, uids) = (self.usable, self.bad_uid, self.uids.finish()?);
        Ok(Pool { index, parts, files, num_rows, usable, bad_uid, uids })
    }
}

fn read_places(index: &SampleIndex, shard: usize) -> Result<Places, MixerError> {
    let path = index.places_path(shard);
    Places::read(&path)?.ok_or(MixerError::InputChanged { path })
}

/// The directory of the index: hidden, and gone when the selection is written.
pub(crate) fn index_dir(run: &RunContext) -> PathBuf {
    run.out_dir.join(".index")
}

/// The uid of every row of `files`, in row order.
pub(crate) fn scan_uids(
    files: &ParquetFiles,
    run: &RunContext,
    mut take: impl FnMut(Result<Uid, Reject>) -> Result<(), MixerError>,
) -> Result<(), MixerError> {
    let path = |file: usize| files.files[file].path.clone();
    files.scan(
        &["uid"],
        run,
        |rows| parse_uids(rows.batch.column(0), || path(rows.file)),
        |uids| uids.into_iter().try_for_each(&mut take),
    )
}

/// The uids of a column.
pub(crate) fn parse_uids(
    column: &arrow_array::ArrayRef,
    path: impl FnOnce() -> PathBuf,
) -> Result<Vec<Result<Uid, Reject>>, MixerError> {
    let Some(uids) = texts(column) else {
        let problem = format!("the column `uid` is not text but {}", column.data_type());
        return Err(MixerError::Table { path: path(), problem });
    };
    let parse = |uid: Option<&str>| uid.and_then(|uid| uid.parse().ok()).ok_or(Reject::BadUid);
    Ok(uids.iter().map(parse).collect())
}
