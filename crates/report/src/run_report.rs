//! The whole page as data: `report.json`.

use crate::config::ReportConfig;
use crate::cost::{RunCost, StageCost};
use crate::curves::{LossCurve, METRICS_FILE};
use crate::error::ReportError;
use crate::fetch::{FaultOutcome, FetchOutcome, Truth};
use crate::filters::{self, FilterQuality, FilterVerdicts};
use crate::finished_stage::FinishedStage;
use oqvl_shard_io::read_json;
use oqvl_stage::RunContext;
use serde::Serialize;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Results file of the evaluator.
const RESULTS_FILE: &str = "results.json";

/// Samples seen, kept and rejected by one stage: `seen == kept + sum(rejected)`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Counts {
    /// Samples looked at.
    pub seen: u64,
    /// Samples that went on.
    pub kept: u64,
    /// Rejections by reason.
    pub rejected: BTreeMap<String, u64>,
}

/// The packer's distributions with what they count: lists of counts, or objects with `bin_tokens` and `counts`.
pub(crate) const PACKING_DISTRIBUTIONS: [(&str, &str); 4] = [
    ("length_histogram", "documents by tokens"),
    ("fill_histogram", "packs by tokens"),
    ("documents_by_images", "documents by images"),
    ("packs_by_images", "packs by images"),
];

/// A subset of the pool, as the mixer reports it.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize)]
pub struct Subset {
    /// Its name in the mixer's config.
    pub name: String,
    /// The lowest score that is in, for a subset by score.
    pub threshold: Option<f64>,
    /// Samples in it, before duplicates are dropped.
    pub samples: u64,
}

/// The page.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    /// What producing the work directory cost: the sum over the stages.
    pub seconds: f64,
    /// Wall clock of the invocation that wrote this, up to here; absent if the stages were run by hand.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_run_seconds: Option<f64>,
    /// Largest resident memory of any stage.
    pub peak_rss_bytes: u64,
    /// Commit of the stage binaries; `unknown` where it was not known at build time.
    pub commit: String,
    /// Seed of the run.
    pub seed: u64,
    /// Cost by stage, in running order.
    pub stages: Vec<StageCost>,
    /// What data-fetch kept and rejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fetch: Option<Counts>,
    /// What became of every known fault; the key `none` holds the URLs without one.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub faults: BTreeMap<String, FaultOutcome>,
    /// The filters against the truth, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub filters: Option<FilterQuality>,
    /// What every counting stage kept and rejected, by stage.
    pub counts: BTreeMap<String, Counts>,
    /// The subsets the mixer selected from, with their thresholds and sizes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<Subset>,
    /// The packer's numbers, `efficiency` among them (tokens that are not padding per token of all packs), and its
    /// distributions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packing: Option<Map<String, Value>>,
    /// Loss curves by training stage.
    pub training: BTreeMap<String, LossCurve>,
    /// Accuracy by benchmark.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub eval: BTreeMap<String, f64>,
    /// The evaluator's results in full: intervals, categories, other rules.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub eval_results: Map<String, Value>,
}

impl RunReport {
    /// Reads what the stages of the config left.
    pub(crate) fn collect(config: &ReportConfig, run: &RunContext) -> Result<Self, ReportError> {
        let mut stages = Vec::with_capacity(config.stages.len());
        for name in &config.stages {
            stages.push(FinishedStage::read(run, name)?);
        }
        let find = |name: &str| stages.iter().find(|stage| stage.name() == name);
        let cost = RunCost::collect(run, &stages)?;
        let counts: BTreeMap<String, Counts> = stages.iter().filter_map(counts_of).collect();
        let (faults, filters) = match (&config.truth, find("data-fetch")) {
            (Some(truth), Some(data_fetch)) => {
                let truth = Truth::read(&run.resolve(truth))?;
                let fetched = FetchOutcome::read(data_fetch)?;
                let verdicts = read_verdicts(config, run, find("clip-filter"))?;
                (fetched.by_fault(&truth), Some(FilterQuality::measure(&truth, &fetched, &verdicts)))
            }
            _ => (BTreeMap::new(), None),
        };
        let eval_results = match find("evaluator") {
            Some(evaluator) => read_json(&evaluator.out_dir.join(RESULTS_FILE))?,
            None => Map::new(),
        };
        Ok(Self {
            seconds: cost.seconds,
            last_run_seconds: cost.last_run_seconds,
            peak_rss_bytes: cost.peak_rss_bytes,
            commit: stages.first().map(|stage| stage.manifest.commit.clone()).unwrap_or_default(),
            seed: run.seed,
            stages: cost.stages,
            fetch: counts.get("data-fetch").cloned(),
            faults,
            filters,
            counts,
            subsets: find("mixer").map(subsets_of).unwrap_or_default(),
            packing: find("packer").map(packing_numbers).transpose()?,
            training: read_curves(&stages)?,
            eval: accuracies(&eval_results),
            eval_results,
        })
    }
}

fn read_verdicts(
    config: &ReportConfig,
    run: &RunContext,
    clip_filter: Option<&FinishedStage>,
) -> Result<FilterVerdicts, ReportError> {
    let subset = |path: &Option<std::path::PathBuf>| {
        path.as_ref().map(|path| filters::read_subset(&run.resolve(path))).transpose()
    };
    let mut verdicts = FilterVerdicts {
        clip_subset: subset(&config.clip_subset)?,
        mlm_subset: subset(&config.mlm_subset)?,
        selected: subset(&config.selected)?,
        ..FilterVerdicts::default()
    };
    if let Some(clip_filter) = clip_filter {
        verdicts.read_clip_scores(clip_filter)?;
    }
    Ok(verdicts)
}

/// The tally of a stage whose report has one.
fn counts_of(stage: &FinishedStage) -> Option<(String, Counts)> {
    let counts = serde_json::from_value(stage.manifest.report.clone()).ok()?;
    Some((stage.name().to_owned(), counts))
}

/// The mixer's subsets, if its report lists any.
fn subsets_of(mixer: &FinishedStage) -> Vec<Subset> {
    let subsets = mixer.manifest.report.get("subsets").cloned();
    subsets.and_then(|subsets| serde_json::from_value(subsets).ok()).unwrap_or_default()
}

/// The packer's numbers, of which `efficiency` must be one, then its distributions.
fn packing_numbers(packer: &FinishedStage) -> Result<Map<String, Value>, ReportError> {
    packer.number("efficiency")?;
    let mut packing = packer.numbers();
    for (key, _) in PACKING_DISTRIBUTIONS {
        packing.extend(packer.manifest.report.get(key).map(|value| (key.to_owned(), value.clone())));
    }
    Ok(packing)
}

fn read_curves(stages: &[FinishedStage]) -> Result<BTreeMap<String, LossCurve>, ReportError> {
    let mut curves = BTreeMap::new();
    for stage in stages {
        let path = stage.out_dir.join(METRICS_FILE);
        if path.is_file() {
            curves.extend(LossCurve::read(&path)?.map(|curve| (stage.name().to_owned(), curve)));
        }
    }
    Ok(curves)
}

fn accuracies(results: &Map<String, Value>) -> BTreeMap<String, f64> {
    let accuracy = |result: &Value| result.get("accuracy").and_then(Value::as_f64);
    results.iter().filter_map(|(name, result)| Some((name.clone(), accuracy(result)?))).collect()
}
