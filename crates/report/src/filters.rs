//! The filters against the known truth.
//!
//! All numbers are over the samples that were fetched and whose truth is known:
//!
//! * `clip_auc`: [`roc_auc`] of the CLIP score, pairs known to be `clean` against pairs known to be `mismatched`;
//! * `mlm_precision`, `mlm_recall`: [`Selection`] of MLM-Filter's subset against `clean`; every other class of
//!   pair, however slight its flaw, counts as not to be selected;
//! * `clip_precision`, `clip_recall`: the same for the CLIP filter's subset;
//! * `mix_precision`, `mix_recall`: the same for what the mixer selected in the end, duplicates removed.

use crate::error::ReportError;
use crate::fetch::{FetchOutcome, Truth};
use crate::finished_stage::FinishedStage;
use crate::metrics::{Selection, roc_auc};
use oqvl_shard_io::{ScoreTable, UidSubset};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Ending of a CLIP sidecar.
const CLIP_SIDECAR: &str = ".clip.parquet";
/// Metric in a CLIP sidecar.
const CLIP_METRIC: &str = "clip_score";
/// Class of the pairs to be kept.
const CLEAN: &str = "clean";
/// Class of the pairs whose text belongs to another image.
const MISMATCHED: &str = "mismatched";

/// How the filters did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FilterQuality {
    /// See the [module](self); `None` if one of the two classes is empty.
    pub clip_auc: Option<f64>,
    /// See the [module](self); `None` without a subset, or if nothing was selected.
    pub mlm_precision: Option<f64>,
    /// See the [module](self).
    pub mlm_recall: Option<f64>,
    /// See the [module](self).
    pub clip_precision: Option<f64>,
    /// See the [module](self).
    pub clip_recall: Option<f64>,
    /// See the [module](self).
    pub mix_precision: Option<f64>,
    /// See the [module](self).
    pub mix_recall: Option<f64>,
    /// Class by class, in the order of their names.
    pub by_class: BTreeMap<String, ClassOutcome>,
}

/// What the filters did with one class of pairs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ClassOutcome {
    /// Fetched samples of the class.
    pub fetched: u64,
    /// Mean CLIP score of those that have one.
    pub mean_clip_score: Option<f64>,
    /// How many the CLIP filter selected.
    pub clip_selected: Option<u64>,
    /// How many MLM-Filter selected.
    pub mlm_selected: Option<u64>,
    /// How many went into the mix in the end.
    pub mixed: Option<u64>,
}

/// What the filters said, by uid.
#[derive(Debug, Default)]
pub(crate) struct FilterVerdicts {
    pub(crate) clip_scores: BTreeMap<String, f64>,
    pub(crate) clip_subset: Option<BTreeSet<String>>,
    pub(crate) mlm_subset: Option<BTreeSet<String>>,
    pub(crate) selected: Option<BTreeSet<String>>,
}

impl FilterVerdicts {
    /// Reads the CLIP sidecars; samples without uid or score are left out.
    pub(crate) fn read_clip_scores(&mut self, clip_filter: &FinishedStage) -> Result<(), ReportError> {
        for path in clip_filter.files_ending(CLIP_SIDECAR) {
            let table = ScoreTable::read(&path)?;
            let scores = table.metric(CLIP_METRIC);
            let scores =
                scores.ok_or_else(|| ReportError::Metric { path, metric: CLIP_METRIC.to_owned() })?;
            let known =
                table.uids.iter().zip(scores).filter_map(|(uid, score)| Some((uid.clone()?, (*score)?)));
            self.clip_scores.extend(known);
        }
        Ok(())
    }
}

/// Reads a uid subset.
pub(crate) fn read_subset(path: &Path) -> Result<BTreeSet<String>, ReportError> {
    Ok(UidSubset::read(path)?.iter().map(|uid| uid.to_string()).collect())
}

impl FilterQuality {
    /// Measures the verdicts against the truth.
    pub(crate) fn measure(truth: &[Truth], fetched: &FetchOutcome, verdicts: &FilterVerdicts) -> Self {
        let kept = fetched.kept_uids();
        let known: Vec<&Truth> = truth.iter().filter(|line| kept.contains(line.uid.as_str())).collect();
        let scores_of = |class: &str| -> Vec<f64> {
            let members = known.iter().filter(|line| line.pair == class);
            members.filter_map(|line| verdicts.clip_scores.get(&line.uid).copied()).collect()
        };
        let selection = |subset: &Option<BTreeSet<String>>| {
            let judged =
                |line: &&Truth, uids: &BTreeSet<String>| (uids.contains(&line.uid), line.pair == CLEAN);
            subset.as_ref().map(|uids| Selection::of(known.iter().map(|line| judged(line, uids))))
        };
        let (clip, mlm) = (selection(&verdicts.clip_subset), selection(&verdicts.mlm_subset));
        let mix = selection(&verdicts.selected);
        let classes: BTreeSet<&str> = known.iter().map(|line| line.pair.as_str()).collect();
        let by_class = classes.into_iter().map(|class| {
            let members: Vec<&str> =
                known.iter().filter(|l| l.pair == class).map(|l| l.uid.as_str()).collect();
            (class.to_owned(), ClassOutcome::of(&members, &scores_of(class), verdicts))
        });
        Self {
            clip_auc: roc_auc(&scores_of(CLEAN), &scores_of(MISMATCHED)),
            mlm_precision: mlm.and_then(|selection| selection.precision()),
            mlm_recall: mlm.and_then(|selection| selection.recall()),
            clip_precision: clip.and_then(|selection| selection.precision()),
            clip_recall: clip.and_then(|selection| selection.recall()),
            mix_precision: mix.and_then(|selection| selection.precision()),
            mix_recall: mix.and_then(|selection| selection.recall()),
            by_class: by_class.collect(),
        }
    }
}

impl ClassOutcome {
    fn of(uids: &[&str], scores: &[f64], verdicts: &FilterVerdicts) -> Self {
        let selected = |subset: &Option<BTreeSet<String>>| {
            subset.as_ref().map(|subset| uids.iter().filter(|uid| subset.contains(**uid)).count() as u64)
        };
        Self {
            fetched: uids.len() as u64,
            mean_clip_score: (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64),
            clip_selected: selected(&verdicts.clip_subset),
            mlm_selected: selected(&verdicts.mlm_subset),
            mixed: selected(&verdicts.selected),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch_table::tests::write;
    use oqvl_shard_io::Manifest;
    use serde_json::Value;

    fn truth(uid: &str, pair: &str) -> Truth {
        Truth { uid: uid.to_owned(), pair: pair.to_owned(), fault: None }
    }

    fn fetched(kept: &[&str], rejected: &[&str]) -> FetchOutcome {
        let dir = tempfile::tempdir().unwrap();
        let rows: Vec<_> = (kept.iter().map(|uid| (Some(*uid), "success", None)))
            .chain(rejected.iter().map(|uid| (Some(*uid), "failed_to_download", Some("gone"))))
            .collect();
        write(&dir.path().join("00000.parquet"), &rows);
        let manifest = Manifest {
            stage: "data-fetch".to_owned(),
            version: String::new(),
            commit: String::new(),
            fingerprint: String::new(),
            seed: 0,
            config: Value::Null,
            inputs: BTreeMap::new(),
            outputs: BTreeMap::from([("00000.parquet".to_owned(), String::new())]),
            output_bytes: Default::default(),
            seconds: 0.0,
            peak_rss_bytes: 0,
            report: Value::Null,
        };
        FetchOutcome::read(&FinishedStage { manifest, out_dir: dir.path().to_path_buf() }).unwrap()
    }

    fn set(uids: &[&str]) -> Option<BTreeSet<String>> {
        Some(uids.iter().map(|uid| (*uid).to_owned()).collect())
    }

    #[test]
    fn only_fetched_samples_count() {
        let truth = [
            truth("a", "clean"),
            truth("b", "clean"),
            truth("c", "mismatched"),
            truth("d", "vague"),
            truth("e", "clean"),
        ];
        let scores = [("a", 0.9), ("b", 0.2), ("c", 0.4), ("e", 0.0)];
        let verdicts = FilterVerdicts {
            clip_scores: scores.iter().map(|(uid, score)| ((*uid).to_owned(), *score)).collect(),
            clip_subset: None,
            mlm_subset: set(&["a", "d", "e"]),
            selected: set(&["a", "c"]),
        };
        let quality = FilterQuality::measure(&truth, &fetched(&["a", "b", "c", "d"], &["e"]), &verdicts);
        // a beats c, b does not; e, with its score of 0, was never fetched.
        assert_eq!(quality.clip_auc, Some(0.5));
        // Selected and fetched: a (clean) and d (vague). Clean and fetched: a and b.
        assert_eq!((quality.mlm_precision, quality.mlm_recall), (Some(0.5), Some(0.5)));
        assert_eq!((quality.clip_precision, quality.clip_recall), (None, None));
        assert_eq!((quality.mix_precision, quality.mix_recall), (Some(0.5), Some(0.5)));
        let vague = &quality.by_class["vague"];
        assert_eq!((vague.fetched, vague.mean_clip_score, vague.mlm_selected), (1, None, Some(1)));
        assert_eq!(vague.clip_selected, None);
        assert_eq!(quality.by_class["clean"].fetched, 2);
        assert!((quality.by_class["clean"].mean_clip_score.unwrap() - 0.55).abs() < 1e-12);
    }

    #[test]
    fn nothing_fetched_measures_nothing() {
        let quality =
            FilterQuality::measure(&[truth("a", "clean")], &fetched(&[], &["a"]), &FilterVerdicts::default());
        assert_eq!((quality.clip_auc, quality.mlm_recall), (None, None));
        assert!(quality.by_class.is_empty());
    }
}
