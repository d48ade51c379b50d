//! What was fetched, what was not and why, and what the known faults turned into.

use crate::error::ReportError;
use crate::fetch_table::{self, FetchedUrl};
use crate::finished_stage::FinishedStage;
use crate::lines;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// What is known about one URL; the report reads these fields of a line of `truth.jsonl`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Truth {
    /// 32 hexadecimal digits.
    pub uid: String,
    /// Class of the pair: `clean`, `mismatched`, and grades of noise.
    pub pair: String,
    /// What the server does with the URL; `None` if it answers well.
    pub fault: Option<String>,
}

impl Truth {
    /// Reads `truth.jsonl`.
    ///
    /// # Errors
    /// If the file cannot be read or a line lacks a field.
    pub fn read(path: &Path) -> Result<Vec<Self>, ReportError> {
        lines::read(path)
    }
}

/// What became of the URLs with one fault.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FaultOutcome {
    /// URLs with this fault.
    pub seen: u64,
    /// Fetched all the same, as a careful fetcher does with a slow or a mislabelled one.
    pub kept: u64,
    /// Rejected, by the reason that data-fetch gave.
    pub rejected: BTreeMap<String, u64>,
}

/// All URLs of the list.
#[derive(Debug, Clone, Default)]
pub struct FetchOutcome {
    urls: Vec<FetchedUrl>,
}

impl FetchOutcome {
    /// Reads the parquet beside each shard.
    pub(crate) fn read(data_fetch: &FinishedStage) -> Result<Self, ReportError> {
        let mut urls = Vec::new();
        for path in data_fetch.files_ending(".parquet") {
            urls.extend(fetch_table::read(&path)?);
        }
        Ok(Self { urls })
    }

    /// The uids whose image is in a shard.
    #[must_use]
    pub fn kept_uids(&self) -> BTreeSet<&str> {
        self.urls.iter().filter(|url| url.reject.is_none()).filter_map(|url| url.uid.as_deref()).collect()
    }

    /// What became of every fault, by its name; URLs without a fault are under `none`.
    #[must_use]
    pub fn by_fault(&self, truth: &[Truth]) -> BTreeMap<String, FaultOutcome> {
        let fault_of: BTreeMap<&str, &str> =
            truth.iter().map(|line| (line.uid.as_str(), line.fault.as_deref().unwrap_or("none"))).collect();
        let mut outcomes: BTreeMap<String, FaultOutcome> = BTreeMap::new();
        for url in &self.urls {
            let Some(fault) = url.uid.as_deref().and_then(|uid| fault_of.get(uid)) else { continue };
            let outcome = outcomes.entry((*fault).to_owned()).or_default();
            outcome.seen += 1;
            match &url.reject {
                None => outcome.kept += 1,
                Some(reason) => *outcome.rejected.entry(reason.clone()).or_default() += 1,
            }
        }
        outcomes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(uid: &str, reject: Option<&str>) -> FetchedUrl {
        FetchedUrl { uid: Some(uid.to_owned()), reject: reject.map(str::to_owned) }
    }

    fn truth(uid: &str, fault: Option<&str>) -> Truth {
        Truth { uid: uid.to_owned(), pair: "clean".to_owned(), fault: fault.map(str::to_owned) }
    }

    #[test]
    fn every_fault_has_its_row() {
        let urls = vec![url("a", None), url("b", Some("gone")), url("c", None), url("d", Some("timeout"))];
        let outcome = FetchOutcome { urls };
        let truth =
            [truth("a", None), truth("b", Some("gone")), truth("c", Some("slow")), truth("d", Some("slow"))];
        let faults = outcome.by_fault(&truth);
        assert_eq!(faults.keys().collect::<Vec<_>>(), ["gone", "none", "slow"]);
        assert_eq!((faults["slow"].seen, faults["slow"].kept, faults["slow"].rejected["timeout"]), (2, 1, 1));
        assert_eq!(faults["gone"].rejected["gone"], 1);
        assert_eq!(outcome.kept_uids().into_iter().collect::<Vec<_>>(), ["a", "c"]);
    }

    #[test]
    fn urls_nobody_knows_anything_about_have_no_row() {
        let outcome = FetchOutcome { urls: vec![url("a", None), FetchedUrl { uid: None, reject: None }] };
        assert!(outcome.by_fault(&[]).is_empty());
    }
}
