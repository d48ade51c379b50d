//! One page on a whole run: what was fetched and kept and why, what the filters found, curves, cost and scores.
//!
//! The stage [`Report`] reads what the other stages left in the work directory and writes two files at its root:
//! `report.json` for programs (a [`RunReport`]) and `report.md` for people. Where the truth about the data is known,
//! as in the micro world, it also measures the filters against it: [`metrics`] has the few formulas.
//!
//! Nouns: a [`RunReport`] is the whole page; its parts are the [`cost`] of each stage, the [`fetch`] outcome with
//! the fault table, the [`filters`] against the truth, the [`curves`] of training and the evaluation scores.
//!
//! ```
//! use oqvl_report::metrics::{Selection, roc_auc};
//!
//! // Scores of pairs known to match, and of pairs known not to: one of four comparisons goes the wrong way.
//! assert_eq!(roc_auc(&[0.9, 0.4], &[0.5, 0.1]), Some(0.75));
//!
//! // Of three clean samples two were selected, and one that is not clean.
//! let samples = [(true, true), (true, true), (true, false), (false, true)];
//! let selection = Selection::of(samples.map(|(is_clean, is_selected)| (is_selected, is_clean)));
//! assert_eq!((selection.precision(), selection.recall()), (Some(2.0 / 3.0), Some(2.0 / 3.0)));
//! ```
//!
//! It computes nothing that a stage could say itself, and it judges nothing: bounds belong to tests.

mod config;
pub mod cost;
pub mod curves;
mod error;
pub mod fetch;
mod fetch_table;
pub mod filters;
mod finished_stage;
mod lines;
mod markdown;
pub mod metrics;
mod run_report;

pub use config::ReportConfig;
pub use error::ReportError;
pub use run_report::{Counts, RunReport, Subset};

use oqvl_shard_io::{write_atomic, write_json_atomic};
use oqvl_stage::{RunContext, Stage};

/// The stage that writes `report.json` and `report.md` at the root of the work directory.
#[derive(Debug)]
pub struct Report;

impl Stage for Report {
    const NAME: &'static str = "report";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Config = ReportConfig;
    type Report = RunReport;
    type Error = ReportError;

    fn run(config: &ReportConfig, run: &RunContext) -> Result<RunReport, ReportError> {
        let report = RunReport::collect(config, run)?;
        write_json_atomic(&run.resolve("report.json".as_ref()), &report)?;
        let path = run.resolve("report.md".as_ref());
        write_atomic(&path, markdown::render(&report).as_bytes()).map_err(ReportError::io(path))?;
        Ok(report)
    }
}
