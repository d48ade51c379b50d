//! `<work_dir>/run.json`: what every stage of a run cost, for the report stage to read.
//!
//! The cost of a stage is in its manifest; the record adds what only the runner knows: which stages were skipped,
//! the memory of the world server, and the wall clock of the invocation.

use crate::json_file;
use crate::runner::StageRun;
use crate::stages::StageName;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Content of `run.json`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct RunRecord {
    /// Name of the run.
    pub(crate) name: String,
    /// The config file as it was given.
    pub(crate) config: PathBuf,
    /// `--set` arguments.
    pub(crate) sets: Vec<String>,
    /// Wall clock of the last invocation that had anything to do, from the first stage to this moment.
    pub(crate) last_run_seconds: f64,
    /// Whether the report stage has seen the record as it is.
    pub(crate) reported: bool,
    /// The stages in running order, without the report itself.
    pub(crate) stages: Vec<StageRecord>,
}

/// Cost of one stage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct StageRecord {
    /// Name of the stage.
    pub(crate) name: String,
    /// Wall clock of the run that produced the output.
    pub(crate) seconds: f64,
    /// Largest memory of the stage in that run, the world server included.
    pub(crate) peak_rss_bytes: u64,
    /// The world server's part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) server_peak_rss_bytes: Option<u64>,
    /// Whether the last invocation found it up to date.
    pub(crate) skipped: bool,
}

/// The part of a stage's `manifest.json` that the runner reads.
#[derive(Debug, Deserialize)]
pub(crate) struct StageManifest {
    /// Wall clock of the run.
    pub(crate) seconds: f64,
    /// Largest memory of the process.
    pub(crate) peak_rss_bytes: u64,
    /// The stage's report.
    #[serde(default)]
    pub(crate) report: Value,
}

impl StageManifest {
    pub(crate) fn read(work_dir: &Path, stage: StageName) -> anyhow::Result<Self> {
        json_file::read(&work_dir.join(stage.as_str()).join("manifest.json"))
    }
}

impl RunRecord {
    fn path(work_dir: &Path) -> PathBuf {
        work_dir.join("run.json")
    }

    /// The record of earlier invocations; an empty one if there is none that can be read.
    pub(crate) fn read_or_default(work_dir: &Path) -> Self {
        json_file::read(&Self::path(work_dir)).unwrap_or_default()
    }

    pub(crate) fn write(&self, work_dir: &Path) -> anyhow::Result<()> {
        json_file::write(&Self::path(work_dir), self)
    }

    /// Notes a stage that ran just now, or, with `run` absent, one that was up to date.
    pub(crate) fn note(&mut self, stage: StageName, manifest: &StageManifest, run: Option<StageRun>) {
        let before = self.stages.iter().find(|record| record.name == stage.as_str());
        let server_peak_rss_bytes = match run {
            Some(run) => run.server_peak_rss_bytes,
            None => before.and_then(|record| record.server_peak_rss_bytes),
        };
        let record = StageRecord {
            name: stage.as_str().to_owned(),
            seconds: manifest.seconds,
            peak_rss_bytes: manifest.peak_rss_bytes + server_peak_rss_bytes.unwrap_or(0),
            server_peak_rss_bytes,
            skipped: run.is_none(),
        };
        self.stages.retain(|record| record.name != stage.as_str());
        self.stages.push(record);
        self.stages.sort_by_key(|record| StageName::find(&record.name).map(StageName::position));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skipped_stage_keeps_the_cost_of_the_run_that_made_it() {
        let (fetch, mixer) = (StageName::find("data-fetch").unwrap(), StageName::find("mixer").unwrap());
        let manifest = StageManifest { seconds: 2.0, peak_rss_bytes: 100, report: Value::Null };
        let mut record = RunRecord::default();
        record.note(mixer, &manifest, Some(StageRun::default()));
        record.note(fetch, &manifest, Some(StageRun { server_peak_rss_bytes: Some(11) }));
        record.note(fetch, &manifest, None);
        let names: Vec<_> = record.stages.iter().map(|stage| stage.name.as_str()).collect();
        assert_eq!(names, ["data-fetch", "mixer"]);
        assert_eq!((record.stages[0].peak_rss_bytes, record.stages[0].skipped), (111, true));
        assert_eq!((record.stages[1].peak_rss_bytes, record.stages[1].skipped), (100, false));
    }
}
