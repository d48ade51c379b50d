//! `target/bench/peers.json`: a list with one object per work.

use super::race::{Measurement, Metric};
use super::{Context, WORKS};
use crate::machine::{self, Machine};
use crate::{cargo, json_file};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

/// What running a work has shown.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WorkRecord {
    /// Its name on the command line.
    pub(super) work: String,
    /// What is done, in a sentence.
    pub(super) description: String,
    /// What is counted: `images`, `samples`, …
    pub(super) items: String,
    /// The input, with its sizes.
    pub(super) input: Value,
    pub(super) races: Vec<RaceRecord>,
    pub(super) checks: Vec<Check>,
    pub(super) machine: Machine,
    pub(super) commit: Option<String>,
    pub(super) rustc: Option<String>,
    /// Python, and every package of the peers' environment.
    pub(super) versions: Map<String, Value>,
    /// One-minute load average before the first and after the last run, our own work included.
    pub(super) load: [Option<f64>; 2],
    /// Seconds since 1970.
    pub(super) measured_at: u64,
    pub(super) rounds: usize,
    pub(super) quick: bool,
}

/// Sides that ran in turn.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RaceRecord {
    pub(super) name: String,
    pub(super) num_items: u64,
    pub(super) peer: SideRecord,
    pub(super) ours: Vec<Ours>,
}

/// Medians over the rounds, and the rounds.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct SideRecord {
    pub(super) name: String,
    /// User and system time of the whole process tree.
    pub(super) cpu_seconds: f64,
    pub(super) wall_seconds: f64,
    /// Wall time of the loop alone, where the side tells it.
    pub(super) loop_seconds: Option<f64>,
    /// Largest sum of the proportional set sizes of the process tree.
    pub(super) peak_memory_bytes: u64,
    pub(super) runs: Vec<Measurement>,
}

/// One of our sides against the peer.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ours {
    #[serde(flatten)]
    pub(super) side: SideRecord,
    pub(super) ratios: Ratios,
    pub(super) target: Option<Target>,
}

/// The peer's figure over ours: how many times less we take.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ratios {
    pub(super) cpu_seconds: f64,
    pub(super) wall_seconds: f64,
    pub(super) loop_seconds: Option<f64>,
    pub(super) peer_loop_to_our_wall: Option<f64>,
    pub(super) peak_memory: Option<f64>,
}

/// A bound on a ratio, and whether it is met.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Target {
    pub(super) metric: Metric,
    pub(super) at_least: f64,
    pub(super) measured: f64,
    pub(super) met: bool,
}

/// Whether both sides did the same.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Check {
    pub(super) what: String,
    pub(super) passed: bool,
    /// The figures the verdict rests on.
    pub(super) detail: Value,
}

impl Check {
    pub(super) fn new(what: impl Into<String>, passed: bool, detail: Value) -> Check {
        Check { what: what.into(), passed, detail }
    }

    /// A value that both sides tell must be the same.
    pub(super) fn equal(what: impl Into<String>, peer: &Value, ours: &Value) -> Check {
        let passed = peer == ours && !peer.is_null();
        Check::new(what, passed, serde_json::json!({ "peer": peer, "ours": ours }))
    }
}

impl WorkRecord {
    /// A record of this machine and commit, to be filled.
    pub(super) fn begin(
        context: &Context,
        work: &str,
        items: &str,
        description: &str,
    ) -> anyhow::Result<Self> {
        Ok(WorkRecord {
            work: work.to_owned(),
            description: description.to_owned(),
            items: items.to_owned(),
            input: Value::Null,
            races: Vec::new(),
            checks: Vec::new(),
            machine: Machine::this(),
            commit: cargo::commit(),
            rustc: machine::rustc(),
            versions: context.venv.versions()?,
            load: [machine::load(), None],
            measured_at: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            rounds: context.rounds,
            quick: context.quick,
        })
    }

    /// The finished record.
    pub(super) fn end(mut self) -> Self {
        self.load[1] = machine::load();
        self
    }

    pub(super) fn failed_checks(&self) -> Vec<String> {
        let failed = self.checks.iter().filter(|check| !check.passed);
        failed.map(|check| format!("{}: {}: {}", self.work, check.what, check.detail)).collect()
    }
}

/// All records of a file, none if there is no file.
pub(super) fn load(path: &Path) -> anyhow::Result<Vec<WorkRecord>> {
    if path.is_file() { json_file::read(path) } else { Ok(Vec::new()) }
}

/// Puts a record into the file, in place of an older one of the same work. A file of another layout is replaced.
pub(super) fn store(path: &Path, record: WorkRecord) -> anyhow::Result<()> {
    let mut records = load(path).unwrap_or_default();
    records.retain(|other| other.work != record.work);
    records.push(record);
    let place = |record: &WorkRecord| WORKS.iter().position(|work| work.name == record.work);
    records.sort_by_key(place);
    json_file::write(path, &records)
}
