//! What a run says of itself, put together from the finished shards alone, so that a run that was killed and
//! resumed reports what an undisturbed one does.

use crate::config::{ComputeHash, DataFetchConfig};
use crate::error::DataFetchError;
use crate::sample_table::for_each_row;
use crate::shard::{ShardPaths, ShardStats};
use crate::url_list::UrlList;
use oqvl_shard_io::read_json;
use oqvl_stage::{RunContext, Tally};
use serde::Serialize;
use serde_json::Value;
use std::collections::{BTreeMap, HashSet};
use std::path::PathBuf;

/// Digests compared in one pass over the shards: 16 bytes each, hence at most a few hundred MiB.
const DIGESTS_PER_PASS: u64 = 8 << 20;

/// The stage's report. It speaks of what came out and not of how the download went, which is another story every time (see
/// [`ShardNetwork`](crate::ShardNetwork)): from the same answers comes the same report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DataFetchReport {
    /// Rows of the list: kept in a tar, or rejected by reason.
    #[serde(flatten)]
    pub tally: Tally,
    /// Shards that are finished.
    pub num_shards: u64,
    /// Rejected rows without usable bytes.
    pub failed_to_download: u64,
    /// Rejected rows with bytes but without a usable image.
    pub failed_to_resize: u64,
    /// Bytes of all bodies that came complete.
    pub bytes_downloaded: u64,
    /// Kept images whose `Content-Type` named another format, or no image at all.
    pub content_type_mismatch: u64,
    /// Kept images whose downloaded bytes equal those of another kept image that is counted already:
    /// placeholders, copies. They are kept; removing them is for a later stage.
    /// Unknown without `compute_hash`.
    pub duplicate_downloads: Option<u64>,
}

impl DataFetchReport {
    /// Reads what this process's share of the shards holds. Unfinished shards do not count.
    pub(crate) fn of_shards(
        config: &DataFetchConfig,
        run: &RunContext,
        list: &UrlList,
    ) -> Result<Self, DataFetchError> {
        let mut report = Self::default();
        let mut tables = Vec::new();
        for shard_idx in list.shards().filter(|shard_idx| run.owns_shard(*shard_idx)) {
            run.check_interrupt()?;
            let paths = ShardPaths::new(&run.out_dir, config, shard_idx);
            if !paths.is_finished() {
                continue;
            }
            let stats: ShardStats = read_json(&paths.stats)?;
            let expected = list.rows_in_shard(shard_idx);
            if stats.count != expected {
                return Err(DataFetchError::ForeignShard { path: paths.stats, expected, found: stats.count });
            }
            report.add(stats);
            tables.push(paths.table);
        }
        report.list_rejects(&tables, config.compute_hash)?;
        if config.compute_hash != ComputeHash::None {
            report.duplicate_downloads = Some(report.count_duplicates(&tables, config.compute_hash, run)?);
        }
        report.tally.assert_balanced();
        Ok(report)
    }

    /// # Errors
    /// [`DataFetchError::TooManyFailed`] if more rows were rejected than the config allows.
    pub(crate) fn check_failures(&self, config: &DataFetchConfig) -> Result<(), DataFetchError> {
        check_failures(config, self.tally.seen, &self.tally.rejected)
    }

    /// The same of a report that was written before.
    ///
    /// # Errors
    /// As those of [`check_failures`](Self::check_failures).
    pub(crate) fn check_written(report: &Value, config: &DataFetchConfig) -> Result<(), DataFetchError> {
        let rejected = report.get("rejected").and_then(Value::as_object).into_iter().flatten();
        let rejected =
            rejected.map(|(reason, count)| (reason.clone(), count.as_u64().unwrap_or(0))).collect();
        check_failures(config, report.get("seen").and_then(Value::as_u64).unwrap_or(0), &rejected)
    }

    fn add(&mut self, stats: ShardStats) {
        self.num_shards += 1;
        self.failed_to_download += stats.failed_to_download;
        self.failed_to_resize += stats.failed_to_resize;
        self.bytes_downloaded += stats.bytes_downloaded;
        self.content_type_mismatch += stats.content_type_mismatch;
        let counts =
            Tally { seen: stats.count, kept: stats.successes, rejected: stats.rejected, rejects: Vec::new() };
        self.tally.merge(counts);
    }

    /// Names the first rejected rows; the tally knows how many it wants.
    fn list_rejects(&mut self, tables: &[PathBuf], compute_hash: ComputeHash) -> Result<(), DataFetchError> {
        let mut listed = Tally::default();
        for table in tables {
            let before = listed.rejects.len();
            let mut num_rejected = 0;
            for_each_row(table, compute_hash, &mut |row| {
                if let Some(reason) = row.error_message {
                    num_rejected += 1;
                    listed.reject(row.key, reason);
                }
            })?;
            if listed.rejects.len() < before + num_rejected {
                break;
            }
        }
        self.tally.rejects = listed.rejects;
        Ok(())
    }

    /// Kept images less distinct digests. The digests are compared in as many passes as keep the set small,
    /// each pass taking those with its remainder; half of each digest is enough to tell them apart.
    fn count_duplicates(
        &self,
        tables: &[PathBuf],
        compute_hash: ComputeHash,
        run: &RunContext,
    ) -> Result<u64, DataFetchError> {
        let num_passes = self.tally.kept.div_ceil(DIGESTS_PER_PASS);
        let mut num_distinct = 0;
        for pass in 0..num_passes {
            let mut digests = HashSet::new();
            for table in tables {
                run.check_interrupt()?;
                for_each_row(table, compute_hash, &mut |row| {
                    let digest =
                        row.digest.and_then(|digest| u128::from_str_radix(digest.get(..32)?, 16).ok());
                    if let Some(digest) = digest
                        && digest % u128::from(num_passes) == u128::from(pass)
                    {
                        digests.insert(digest);
                    }
                })?;
            }
            num_distinct += digests.len() as u64;
        }
        Ok(self.tally.kept.saturating_sub(num_distinct))
    }
}

fn check_failures(
    config: &DataFetchConfig,
    seen: u64,
    by_reason: &BTreeMap<String, u64>,
) -> Result<(), DataFetchError> {
    let rejected = by_reason.values().sum();
    let Some(allowed) = config.max_failed_fraction else { return Ok(()) };
    if rejected as f64 <= allowed * seen as f64 {
        return Ok(());
    }
    let most = by_reason.iter().max_by_key(|(_, count)| **count);
    let most = most.map(|(reason, count)| format!(" (most often: {reason}, {count} times)"));
    Err(DataFetchError::TooManyFailed { rejected, seen, most: most.unwrap_or_default(), allowed })
}
