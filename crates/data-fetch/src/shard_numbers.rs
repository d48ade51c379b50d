//! `shard_numbers.json`: which shards of the directory are of which list.
//!
//! A directory has one list, unless it was extended. The numbers of a list are set aside for it when it is first
//! fetched, so that a list that was interrupted can be completed when others have come after it.

use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::url_list::UrlList;
use oqvl_shard_io::{read_json, write_json_atomic};
use oqvl_stage::RunContext;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

const FILE_NAME: &str = "shard_numbers.json";

/// The shards of one list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    /// Fingerprint of the run.
    request: String,
    /// The list, as the config names it.
    url_list: String,
    first_shard: usize,
    num_shards: usize,
}

/// What the file is to hold.
pub(crate) struct ShardNumbers {
    path: PathBuf,
    entries: Vec<Entry>,
}

impl ShardNumbers {
    /// Gives the list its shard numbers: those it had before, or the first that are free. (What becomes of the shards of
    /// other lists is decided before: unless the directory is extended, they are gone, and with them this file.) Nothing is
    /// written yet.
    pub(crate) fn choose(
        config: &DataFetchConfig,
        run: &RunContext,
        list: UrlList,
    ) -> Result<(UrlList, Self), DataFetchError> {
        let path = run.out_dir.join(FILE_NAME);
        let mut entries: Vec<Entry> = if path.exists() { read_json(&path)? } else { Vec::new() };
        let first_shard = match entries.iter().find(|entry| entry.request == run.fingerprint) {
            Some(entry) => entry.first_shard,
            None => entries.iter().map(|entry| entry.first_shard + entry.num_shards).max().unwrap_or(0),
        };
        let list = list.numbered_from(first_shard);
        if !list.shards().is_empty() {
            entries.retain(|entry| entry.request != run.fingerprint);
            entries.push(Entry {
                request: run.fingerprint.clone(),
                url_list: config.url_list.display().to_string(),
                first_shard,
                num_shards: list.shards().len(),
            });
            entries.sort_by_key(|entry| entry.first_shard);
        }
        Ok((list, Self { path, entries }))
    }

    pub(crate) fn write(&self) -> Result<(), DataFetchError> {
        if self.entries.is_empty() { Ok(()) } else { Ok(write_json_atomic(&self.path, &self.entries)?) }
    }
}

/// The lists whose shards are in a directory, as their configs named them.
pub(crate) fn lists_in(out_dir: &Path) -> Vec<String> {
    let entries: Vec<Entry> = read_json(&out_dir.join(FILE_NAME)).unwrap_or_default();
    entries.into_iter().map(|entry| entry.url_list).collect()
}
