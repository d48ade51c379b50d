//! What a run cost: wall clock and memory of each stage.

use crate::error::ReportError;
use crate::finished_stage::FinishedStage;
use oqvl_shard_io::read_json;
use oqvl_stage::RunContext;
use serde::{Deserialize, Serialize};

/// File at the root of the work directory in which the runner leaves what only it knows.
const RUN_FILE: &str = "run.json";

/// Cost of one stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// Name of the stage.
    pub name: String,
    /// Wall clock of the run that produced the output.
    pub seconds: f64,
    /// Largest resident memory in that run, in bytes; of data-fetch with the world server's beside it.
    pub peak_rss_bytes: u64,
    /// Whether the last invocation found the stage up to date.
    pub skipped: bool,
}

/// Cost of a whole run.
#[derive(Debug, Clone, PartialEq)]
pub struct RunCost {
    /// What producing the work directory cost: the sum over the stages.
    pub seconds: f64,
    /// Wall clock of the invocation that wrote the report, up to the report; of an invocation that skipped nothing
    /// it is [`seconds`](Self::seconds) plus the runner's own part. `None` if the stages were run by hand.
    pub last_run_seconds: Option<f64>,
    /// Largest resident memory of any stage, in bytes; stages run one after another.
    pub peak_rss_bytes: u64,
    /// Stage by stage, in running order.
    pub stages: Vec<StageCost>,
}

#[derive(Debug, Deserialize)]
struct RunRecord {
    last_run_seconds: f64,
    stages: Vec<StageCost>,
}

impl RunCost {
    /// Takes the runner's record where there is one, and the manifests for stages it does not know.
    pub(crate) fn collect(run: &RunContext, stages: &[FinishedStage]) -> Result<Self, ReportError> {
        let path = run.resolve(RUN_FILE.as_ref());
        let record: Option<RunRecord> = if path.is_file() { Some(read_json(&path)?) } else { None };
        Ok(Self::of(record, stages))
    }

    fn of(record: Option<RunRecord>, stages: &[FinishedStage]) -> Self {
        let (last_run_seconds, recorded) =
            record.map(|record| (record.last_run_seconds, record.stages)).unzip();
        let recorded = recorded.unwrap_or_default();
        let stages: Vec<StageCost> = stages
            .iter()
            .map(|stage| {
                let known = recorded.iter().find(|cost| cost.name == stage.name()).cloned();
                known.unwrap_or_else(|| StageCost {
                    name: stage.name().to_owned(),
                    seconds: stage.manifest.seconds,
                    peak_rss_bytes: stage.manifest.peak_rss_bytes,
                    skipped: false,
                })
            })
            .collect();
        let seconds = stages.iter().map(|stage| stage.seconds).sum();
        let peak_rss_bytes = stages.iter().map(|stage| stage.peak_rss_bytes).max().unwrap_or(0);
        Self { seconds, last_run_seconds, peak_rss_bytes, stages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::Manifest;
    use serde_json::{Value, json};

    fn finished(name: &str, seconds: f64, peak_rss_bytes: u64) -> FinishedStage {
        let manifest = Manifest {
            stage: name.to_owned(),
            version: String::new(),
            commit: String::new(),
            fingerprint: String::new(),
            seed: 0,
            config: Value::Null,
            inputs: Default::default(),
            outputs: Default::default(),
            output_bytes: Default::default(),
            seconds,
            peak_rss_bytes,
            report: Value::Null,
        };
        FinishedStage { manifest, out_dir: name.into() }
    }

    #[test]
    fn the_runner_knows_better_and_the_manifests_fill_in() {
        let record = json!({
            "name": "demo", "last_run_seconds": 9.0,
            "stages": [{"name": "data-fetch", "seconds": 2.0, "peak_rss_bytes": 70, "skipped": true}],
        });
        let record: RunRecord = serde_json::from_value(record).unwrap();
        let cost = RunCost::of(Some(record), &[finished("data-fetch", 2.0, 50), finished("mixer", 3.0, 60)]);
        assert_eq!((cost.seconds, cost.peak_rss_bytes, cost.last_run_seconds), (5.0, 70, Some(9.0)));
        assert_eq!(cost.stages.iter().map(|stage| stage.skipped).collect::<Vec<_>>(), [true, false]);
    }

    #[test]
    fn without_a_runner_the_manifests_are_enough() {
        let cost = RunCost::of(None, &[finished("mixer", 3.0, 60)]);
        assert_eq!((cost.seconds, cost.peak_rss_bytes, cost.last_run_seconds), (3.0, 60, None));
        assert_eq!(RunCost::of(None, &[]).peak_rss_bytes, 0);
    }
}
