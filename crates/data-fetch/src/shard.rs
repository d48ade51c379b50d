//! One shard on disk: `{shard}.tar`, `{shard}.parquet`, `{shard}_network.local.json` and, last,
//! `{shard}_stats.json`, which says that it is finished.
//!
//! Samples are written in key order (img2dataset: in the order downloads finish), so the same list and the
//! same answers give the same bytes.

use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::reject::{Reject, RowStatus};
use crate::reorder::{ReorderBuffer, RowOutcome};
use crate::sample_json::{metadata, to_python_json};
use crate::sample_table::SampleTable;
use crate::transform::{ContentLabel, StoredImage};
use crate::url_list::{CarriedColumn, ShardRows, UrlRow};
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, write_atomic};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;
use tokio::sync::mpsc;

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
    /// Seconds from the first request to the last image.
    pub duration: f64,
    /// When the first request was queued, in seconds since 1970.
    pub start_time: f64,
    /// When the last image was written, in seconds since 1970.
    pub end_time: f64,
}

impl ShardStats {
    fn count_row(&mut self, outcome: &RowOutcome) {
        self.count += 1;
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
                match reject.status() {
                    RowStatus::FailedToResize => self.failed_to_resize += 1,
                    _ => self.failed_to_download += 1,
                }
            }
        }
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
            stats: out_dir.join(format!("{name}_stats.json")),
        }
    }

    /// Whether the shard is finished: the stats are written last, and nothing has been taken away since.
    pub(crate) fn is_finished(&self) -> bool {
        [&self.tar, &self.table, &self.network, &self.stats].iter().all(|path| path.exists())
    }
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
    Finished,
    /// The run stopped first; nothing is left.
    Abandoned,
}

impl ShardJob {
    /// Takes the outcomes of the shard's rows in any order and writes the shard once all are there. Blocks:
    /// it wants a thread of its own.
    pub(crate) fn write(&self, outcomes: &mut mpsc::Receiver<RowOutcome>) -> Result<Written, DataFetchError> {
        let paths = ShardPaths::new(&self.out_dir, &self.config, self.shard.shard_idx);
        let mut tar = ShardWriter::create(&paths.tar)?;
        let mut table = SampleTable::new(&self.columns, self.config.compute_hash);
        let mut stats = ShardStats::default();
        let mut network = ShardNetwork { start_time: unix_seconds(), ..ShardNetwork::default() };
        let mut buffer = ReorderBuffer::new(&self.out_dir, self.config.reorder_buffer_bytes);
        let spill_error = |source| DataFetchError::Io { path: self.out_dir.clone(), source };
        while (stats.count as usize) < self.shard.rows.len() {
            let Some(outcome) = outcomes.blocking_recv() else { return Ok(Written::Abandoned) };
            buffer.insert(outcome).map_err(spill_error)?;
            while let Some(outcome) = buffer.pop().map_err(spill_error)? {
                if self.cancelled.load(Ordering::Relaxed) {
                    return Ok(Written::Abandoned);
                }
                let row = &self.shard.rows[outcome.row_idx];
                let key = self.config.sample_key(self.shard.shard_idx, outcome.row_idx);
                stats.count_row(&outcome);
                network.retries += outcome.num_retries;
                table.push(row, &key, &outcome.result);
                if let Ok(image) = outcome.result {
                    tar.push(&self.sample(row, &key, image)?)?;
                }
            }
        }
        tar.finish()?;
        table.write(&paths.table)?;
        network.end_time = unix_seconds();
        network.duration = network.end_time - network.start_time;
        write_atomic(&paths.network, &to_python_json(&network))
            .map_err(DataFetchError::io(&paths.network))?;
        write_atomic(&paths.stats, &to_python_json(&stats)).map_err(DataFetchError::io(&paths.stats))?;
        Ok(Written::Finished)
    }

    fn sample(&self, row: &UrlRow, key: &str, image: StoredImage) -> Result<Sample, DataFetchError> {
        let caption = row.caption.as_deref();
        // A row that was fetched has a URL.
        let url = row.url.as_deref().unwrap_or_default();
        let hash = self.config.compute_hash;
        let metadata = metadata(&self.columns, &row.extra, caption, url, key, &image, hash);
        let mut sample = Sample::new(SampleKey::new(key)?);
        sample.push(self.config.encode_format.extension(), image.bytes);
        sample.push("json", to_python_json(&metadata));
        sample.push("txt", caption.unwrap_or_default().as_bytes().to_vec());
        Ok(sample)
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
