//! Finished shards, gone through again: rows that were rejected for a passing reason are fetched once more, and the
//! shard is written anew with what came of it.
//!
//! What was kept stays byte for byte. The new files are made in `.retry-{shard}/` beside the old ones; when all of
//! them are there a file says so, and they take the places of the old ones. A run that is killed before that loses
//! what it fetched; one that is killed while they move leaves the rest of the moving to the next run ([`settle`]).

use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::pipeline::Arrival;
use crate::reject::Reject;
use crate::reorder::ReorderBuffer;
use crate::sample_table::{RowRecord, for_each_row, read_records};
use crate::shard::{ShardFiles, ShardJob, ShardNetwork, ShardPaths, ShardStats, Written};
use oqvl_shard_io::{Sample, ShardError, ShardReader, read_json, write_atomic};
use std::fs;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc;

/// How the directories of shards that are being rewritten begin.
const RETRY_PREFIX: &str = ".retry-";
/// Says that all files of the directory are complete.
const COMPLETE_FILE: &str = "complete";

/// The rows of a finished shard that are to be fetched again.
pub(crate) fn rows_to_retry(
    paths: &ShardPaths,
    config: &DataFetchConfig,
) -> Result<Vec<usize>, DataFetchError> {
    let (mut rows, mut row_idx) = (Vec::new(), 0);
    for_each_row(&paths.table, config.compute_hash, &mut |row| {
        if row.error_message.is_some_and(|reason| config.retry_failed.includes(reason)) {
            rows.push(row_idx);
        }
        row_idx += 1;
    })?;
    Ok(rows)
}

impl ShardJob {
    /// Takes the outcomes of `rows`, in any order, and writes the finished shard anew, unless they are what they were.
    /// Blocks, as [`write`](ShardJob::write) does.
    pub(crate) fn rewrite(
        &self,
        rows: &[usize],
        arrivals: &mut mpsc::Receiver<Arrival>,
    ) -> Result<Written, DataFetchError> {
        let paths = ShardPaths::new(&self.out_dir, &self.config, self.shard.shard_idx);
        let records = read_records(&paths.table, &self.config)?;
        if records.len() != self.shard.rows.len() {
            return Err(DataFetchError::ForeignShard {
                path: paths.table,
                expected: self.shard.rows.len() as u64,
                found: records.len() as u64,
            });
        }
        let mut buffer = self.buffer(rows.iter().copied());
        let mut is_changed = false;
        while !buffer.is_complete() {
            let Some(Arrival { outcome, room }) = arrivals.blocking_recv() else {
                return Ok(Written::Abandoned);
            };
            is_changed |= outcome.result.as_ref().err() != records[outcome.row_idx].reject.as_ref();
            buffer.insert(outcome).map_err(self.spill_error())?;
            drop(room);
        }
        if !is_changed {
            return Ok(Written::Finished { shard_idx: self.shard.shard_idx, tar_digest: None });
        }
        let directory = retry_directory(&self.out_dir, &self.config, self.shard.shard_idx);
        fs::create_dir(&directory).map_err(DataFetchError::io(&directory))?;
        let merged = self.merge(&records, buffer, &paths, &directory);
        match &merged {
            Ok(Written::Finished { .. }) => settle_directory(&directory, &self.out_dir)?,
            // The error that ended it says more than one about what is left would; the next run clears that.
            _ => drop(fs::remove_dir_all(&directory)),
        }
        merged
    }

    /// Writes all files of the shard into `directory`: the rows in `buffer` as they are there, the others as before.
    fn merge(
        &self,
        records: &[RowRecord],
        mut buffer: ReorderBuffer,
        paths: &ShardPaths,
        directory: &Path,
    ) -> Result<Written, DataFetchError> {
        let mut files = self.create(&ShardPaths::new(directory, &self.config, self.shard.shard_idx))?;
        files.stats = read_json::<ShardStats>(&paths.stats)?;
        // A copy of the output goes without.
        if paths.network.exists() {
            files.network = read_json::<ShardNetwork>(&paths.network)?;
        }
        let mut samples = ShardReader::open(&paths.tar)?;
        let mut next = buffer.pop().map_err(self.spill_error())?;
        for (row_idx, record) in records.iter().enumerate() {
            if self.is_cancelled() {
                return Ok(Written::Abandoned);
            }
            match next.take_if(|outcome| outcome.row_idx == row_idx) {
                Some(outcome) => {
                    // Only rejected rows are fetched again.
                    let before = record.reject.unwrap_or(Reject::BadRow);
                    files.stats.recount_row(before, &outcome);
                    files.push(self, outcome)?;
                    next = buffer.pop().map_err(self.spill_error())?;
                }
                None => self.copy_row(&mut samples, &mut files, row_idx, record, paths)?,
            }
        }
        let tar_digest = Some(files.finish()?);
        let complete = directory.join(COMPLETE_FILE);
        write_atomic(&complete, b"").map_err(DataFetchError::io(&complete))?;
        Ok(Written::Finished { shard_idx: self.shard.shard_idx, tar_digest })
    }

    fn copy_row(
        &self,
        samples: &mut impl Iterator<Item = Result<Sample, ShardError>>,
        files: &mut ShardFiles,
        row_idx: usize,
        record: &RowRecord,
        paths: &ShardPaths,
    ) -> Result<(), DataFetchError> {
        if record.reject.is_some() {
            return files.copy(self, row_idx, record, None);
        }
        let sample = samples.next().transpose()?;
        let key = self.key(row_idx);
        if sample.as_ref().is_none_or(|sample| sample.key.as_str() != key) {
            let problem = format!("sample `{key}` is in the table and not in the tar");
            return Err(DataFetchError::BrokenShard { path: paths.tar.clone(), problem });
        }
        files.copy(self, row_idx, record, sample.as_ref())
    }
}

/// Completes or clears what a killed run left of its rewritten shards, those that `owns` says.
pub(crate) fn settle(
    out_dir: &Path,
    config: &DataFetchConfig,
    owns: &dyn Fn(usize) -> bool,
) -> Result<(), DataFetchError> {
    for entry in fs::read_dir(out_dir).map_err(DataFetchError::io(out_dir))? {
        let entry = entry.map_err(DataFetchError::io(out_dir))?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(RETRY_PREFIX)?.parse::<usize>().ok());
        let Some(shard_idx) = number else { continue };
        if owns(shard_idx) && entry.path() == retry_directory(out_dir, config, shard_idx) {
            settle_directory(&entry.path(), out_dir)?;
        }
    }
    Ok(())
}

/// Moves the files of a complete directory to their places and removes the directory.
fn settle_directory(directory: &Path, out_dir: &Path) -> Result<(), DataFetchError> {
    let complete = directory.join(COMPLETE_FILE);
    if complete.exists() {
        for entry in fs::read_dir(directory).map_err(DataFetchError::io(directory))? {
            let path = entry.map_err(DataFetchError::io(directory))?.path();
            if path != complete
                && let Some(name) = path.file_name()
            {
                fs::rename(&path, out_dir.join(name)).map_err(DataFetchError::io(&path))?;
            }
        }
        // The moves are to be on disk before the word that they are to be made is not.
        sync_directory(out_dir)?;
    }
    fs::remove_dir_all(directory).map_err(DataFetchError::io(directory))?;
    sync_directory(out_dir)
}

fn sync_directory(path: &Path) -> Result<(), DataFetchError> {
    fs::File::open(path).and_then(|directory| directory.sync_all()).map_err(DataFetchError::io(path))
}

fn retry_directory(out_dir: &Path, config: &DataFetchConfig, shard_idx: usize) -> PathBuf {
    out_dir.join(format!("{RETRY_PREFIX}{}", config.shard_name(shard_idx)))
}
