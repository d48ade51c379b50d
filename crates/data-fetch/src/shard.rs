//! One shard on disk: `{shard}.tar`, `{shard}.parquet`, `{shard}_network.local.json` and, last,
//! `{shard}_stats.json`, which says that it is finished.
//!
//! Samples are written in key order (img2dataset: in the order downloads finish), so the same list and the
//! same answers give the same bytes.

use crate::config::{DataFetchConfig, RetryFailed};
use crate::error::DataFetchError;
use crate::pipeline::Arrival;
use crate::reject::{Reject, RowStatus};
use crate::reorder::{ReorderBuffer, RowOutcome};
use crate::sample_json::{metadata, to_python_json};
use crate::sample_table::{RowRecord, SampleTable, num_rows};
use crate::transform::{ContentLabel, StoredImage};
use crate::url_list::{CarriedColumn, ShardRows, UrlRow};
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, is_cut_short, read_json, remove_if_there, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// How the name of a finished shard's last file ends.
const STATS_SUFFIX: &str = "_stats.json";

/// `{shard}_stats.json`.
///
/// The first five keys are img2dataset's. Its `duration`, `start_time` and `end_time` are in
/// [`ShardNetwork`], because here they would make every run's output differ.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStats {
    /// Rows of the list in this shard.
    pub count: u64,
    /// Samples in the tar.
    pub successes: u64,
    /// Rows without usable bytes.
    pub failed_to_download: u64,
    /// Rows with bytes but without a usable image.
    pub failed_to_resize: u64,
    /// Rows by `error_message`, and `success`.
    pub status_dict: BTreeMap<String, u64>,
    /// Rejected rows by reason: `status_dict` without `success`.
    pub rejected: BTreeMap<String, u64>,
    /// Bytes of all bodies that came complete.
    pub bytes_downloaded: u64,
    /// Kept images whose `Content-Type` named another format, or no image at all.
    pub content_type_mismatch: u64,
}

/// `{shard}_network.local.json`: how the download went, which is another story every time. Files with
/// `.local.` in their name are no part of a stage's output in the manifest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct ShardNetwork {
    /// Requests sent again after a transient failure.
    pub retries: u64,
    /// Seconds from the first request to the last image, those of a later run for failed rows included.
    pub duration: f64,
    /// When the first request was queued, in seconds since 1970.
    pub start_time: f64,
    /// When the last image was written, in seconds since 1970.
    pub end_time: f64,
}

impl ShardStats {
    fn count_row(&mut self, outcome: &RowOutcome) {
        self.count += 1;
        self.count_outcome(outcome);
    }

    /// Replaces the rejection of a row by what became of it later.
    pub(crate) fn recount_row(&mut self, before: Reject, outcome: &RowOutcome) {
        let reason = before.reason();
        for counts in [&mut self.status_dict, &mut self.rejected] {
            if let Some(count) = counts.get_mut(&*reason) {
                *count = count.saturating_sub(1);
            }
            counts.retain(|_, count| *count > 0);
        }
        let failed = self.failed(before);
        *failed = failed.saturating_sub(1);
        self.count_outcome(outcome);
    }

    fn count_outcome(&mut self, outcome: &RowOutcome) {
        self.bytes_downloaded += outcome.num_bytes;
        match &outcome.result {
            Ok(image) => {
                self.successes += 1;
                self.content_type_mismatch += u64::from(image.label == ContentLabel::Mismatch);
                *self.status_dict.entry(RowStatus::Success.as_str().to_owned()).or_default() += 1;
            }
            Err(reject) => {
                let reason = reject.reason().into_owned();
                *self.status_dict.entry(reason.clone()).or_default() += 1;
                *self.rejected.entry(reason).or_default() += 1;
                *self.failed(*reject) += 1;
            }
        }
    }

    fn failed(&mut self, reject: Reject) -> &mut u64 {
        match reject.status() {
            RowStatus::FailedToResize => &mut self.failed_to_resize,
            _ => &mut self.failed_to_download,
        }
    }

    /// Rejected rows that `retry` includes.
    pub(crate) fn num_to_retry(&self, retry: &RetryFailed) -> u64 {
        self.rejected.iter().filter(|(reason, _)| retry.includes(reason)).map(|(_, count)| count).sum()
    }
}

/// Where the files of a shard lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ShardPaths {
    pub(crate) tar: PathBuf,
    pub(crate) table: PathBuf,
    pub(crate) network: PathBuf,
    pub(crate) stats: PathBuf,
}

impl ShardPaths {
    pub(crate) fn new(out_dir: &Path, config: &DataFetchConfig, shard_idx: usize) -> Self {
        let name = config.shard_name(shard_idx);
        Self {
            tar: out_dir.join(format!("{name}.tar")),
            table: out_dir.join(format!("{name}.parquet")),
            network: out_dir.join(format!("{name}_network.local.json")),
            stats: out_dir.join(format!("{name}{STATS_SUFFIX}")),
        }
    }

    /// Whether the shard is finished: it is there and whole.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_there() && self.damage().is_none()
    }

    /// Whether the shard was finished, the stats being written last, and nothing has been taken away since. (How the
    /// download went is no part of it: a copy of the output goes without.)
    pub(crate) fn is_there(&self) -> bool {
        [&self.tar, &self.table, &self.stats].iter().all(|path| path.exists())
    }

    /// What shows at a glance that the files are no longer as they were written, if something does: copied in part, cut by a
    /// full disk. Where there is a manifest, it knows their sizes; a run that was stopped leaves none.
    pub(crate) fn damage(&self) -> Option<String> {
        let Ok(stats) = read_json::<ShardStats>(&self.stats) else {
            return Some(format!("{} cannot be read", self.stats.display()));
        };
        match num_rows(&self.table) {
            Err(error) => return Some(format!("{error}")),
            Ok(found) if found != stats.count => {
                let expected = stats.count;
                return Some(format!(
                    "{} has {found} rows, its stats count {expected}",
                    self.table.display()
                ));
            }
            Ok(_) => {}
        }
        is_cut_short(&self.tar)
            .then(|| format!("{} is cut short: the end of the tar is missing", self.tar.display()))
    }
}

/// Finished shards in a directory, of whatever request. A directory that cannot be read has none.
pub(crate) fn num_finished(out_dir: &Path) -> usize {
    let entries = std::fs::read_dir(out_dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().ends_with(STATS_SUFFIX)).count()
}

/// Writes one shard.
#[derive(Debug)]
pub(crate) struct ShardJob {
    pub(crate) config: Arc<DataFetchConfig>,
    pub(crate) columns: Arc<[CarriedColumn]>,
    pub(crate) shard: Arc<ShardRows>,
    pub(crate) out_dir: PathBuf,
    /// Set when the run is over before its time.
    pub(crate) cancelled: Arc<AtomicBool>,
}

/// How writing a shard ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Written {
    /// The shard is on disk.
    Finished {
        shard_idx: usize,
        /// Digest of its tar, if that was written now.
        tar_digest: Option<String>,
    },
    /// The run stopped first; nothing is left.
    Abandoned,
}

impl ShardJob {
    /// Takes the outcomes of the shard's rows in any order and writes the shard once all are there. Blocks:
    /// it wants a thread of its own.
    pub(crate) fn write(&self, arrivals: &mut mpsc::Receiver<Arrival>) -> Result<Written, DataFetchError> {
        let paths = ShardPaths::new(&self.out_dir, &self.config, self.shard.shard_idx);
        // Old stats beside a new tar would speak of a finished shard.
        remove_if_there(&paths.stats).map_err(DataFetchError::io(&paths.stats))?;
        let mut files = self.create(&paths)?;
        files.network.start_time = files.started;
        let mut buffer = self.buffer(0..self.shard.rows.len());
        while !buffer.is_drained() {
            let Some(Arrival { outcome, room }) = arrivals.blocking_recv() else {
                return Ok(Written::Abandoned);
            };
            buffer.insert(outcome).map_err(self.spill_error())?;
            while let Some(outcome) = buffer.pop().map_err(self.spill_error())? {
                if self.is_cancelled() {
                    return Ok(Written::Abandoned);
                }
                files.stats.count_row(&outcome);
                files.push(self, outcome)?;
            }
            // It has been written or is in the buffer, whose bytes are bounded.
            drop(room);
        }
        let tar_digest = Some(files.finish()?);
        Ok(Written::Finished { shard_idx: self.shard.shard_idx, tar_digest })
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    pub(crate) fn buffer(&self, rows: impl IntoIterator<Item = usize>) -> ReorderBuffer {
        ReorderBuffer::new(&self.out_dir, self.config.reorder_buffer_bytes, rows)
    }

    /// For `map_err` on what the [`ReorderBuffer`] returns.
    pub(crate) fn spill_error(&self) -> impl FnOnce(std::io::Error) -> DataFetchError {
        DataFetchError::io(&self.out_dir)
    }

    /// Begins the files of the shard.
    pub(crate) fn create(&self, paths: &ShardPaths) -> Result<ShardFiles, DataFetchError> {
        Ok(ShardFiles {
            paths: paths.clone(),
            tar: ShardWriter::create(&paths.tar)?,
            table: SampleTable::new(&self.columns, &self.config),
            stats: ShardStats::default(),
            network: ShardNetwork::default(),
            started: unix_seconds(),
        })
    }

    pub(crate) fn key(&self, row_idx: usize) -> String {
        self.config.sample_key(self.shard.shard_idx, row_idx)
    }

    fn sample(&self, row: &UrlRow, key: &str, image: StoredImage) -> Result<Sample, DataFetchError> {
        let caption = row.caption.as_deref();
        // A row that was fetched has a URL.
        let url = row.url.as_deref().unwrap_or_default();
        let metadata = metadata(&self.columns, &row.extra, caption, url, key, &image, &self.config);
        let mut sample = Sample::new(SampleKey::new(key)?);
        sample.push(self.config.encode_format.extension(), image.bytes);
        sample.push("json", to_python_json(&metadata));
        sample.push("txt", caption.unwrap_or_default().as_bytes().to_vec());
        Ok(sample)
    }
}

/// The files of a shard that is being written. Dropped, they leave nothing.
pub(crate) struct ShardFiles {
    paths: ShardPaths,
    tar: ShardWriter,
    table: SampleTable,
    pub(crate) stats: ShardStats,
    pub(crate) network: ShardNetwork,
    started: f64,
}

impl ShardFiles {
    /// Appends what became of the next row; the stats are the caller's.
    pub(crate) fn push(&mut self, job: &ShardJob, outcome: RowOutcome) -> Result<(), DataFetchError> {
        let row = &job.shard.rows[outcome.row_idx];
        let key = job.key(outcome.row_idx);
        self.network.retries += outcome.num_retries;
        self.push_row(row, &key, &RowRecord::of(&outcome.result))?;
        if let Ok(image) = outcome.result {
            self.tar.push(&job.sample(row, &key, image)?)?;
        }
        Ok(())
    }

    /// Appends the next row as it was before, with its sample if it has one.
    pub(crate) fn copy(
        &mut self,
        job: &ShardJob,
        row_idx: usize,
        record: &RowRecord,
        sample: Option<&Sample>,
    ) -> Result<(), DataFetchError> {
        self.push_row(&job.shard.rows[row_idx], &job.key(row_idx), record)?;
        if let Some(sample) = sample {
            self.tar.push(sample)?;
        }
        Ok(())
    }

    fn push_row(&mut self, row: &UrlRow, key: &str, record: &RowRecord) -> Result<(), DataFetchError> {
        self.table.push(row, key, record).map_err(DataFetchError::table(&self.paths.table))
    }

    /// Writes everything, the stats last; returns the digest of the tar.
    pub(crate) fn finish(mut self) -> Result<String, DataFetchError> {
        let paths = &self.paths;
        let summary = self.tar.finish()?;
        self.table.write(&paths.table)?;
        self.network.end_time = unix_seconds();
        self.network.duration += self.network.end_time - self.started;
        write_atomic(&paths.network, &to_python_json(&self.network))
            .map_err(DataFetchError::io(&paths.network))?;
        write_atomic(&paths.stats, &to_python_json(&self.stats)).map_err(DataFetchError::io(&paths.stats))?;
        Ok(summary.digest)
    }
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl RowOutcome {
    /// The outcome of a row that was not even tried.
    pub(crate) fn rejected(row_idx: usize, reject: Reject) -> Self {
        Self { row_idx, result: Err(reject), num_retries: 0, num_bytes: 0 }
    }
}
