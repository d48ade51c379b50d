//! The works: what is raced against what, and what both sides must agree on.

mod bin_packing;
mod clip_score;
mod fetch;
mod generate;
mod images;
mod models;
mod pack;
mod read;
mod reshard;

use super::Context;
use super::record::WorkRecord;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    /// Name on the command line.
    pub(super) name: &'static str,
    pub(super) run: fn(&Context) -> anyhow::Result<WorkRecord>,
    /// Whether it needs torch and transformers: gigabytes that the smoke run does without.
    pub(super) runs_networks: bool,
}

/// All works, in the order of the table.
pub(super) const WORKS: [Work; 8] = [
    Work { name: fetch::NAME, run: fetch::run, runs_networks: false },
    Work { name: reshard::NAME, run: reshard::run, runs_networks: false },
    Work { name: pack::NAME, run: pack::run, runs_networks: false },
    Work { name: bin_packing::NAME, run: bin_packing::run, runs_networks: false },
    Work { name: images::NAME, run: images::run, runs_networks: false },
    Work { name: read::NAME, run: read::run, runs_networks: false },
    Work { name: clip_score::NAME, run: clip_score::run, runs_networks: true },
    Work { name: generate::NAME, run: generate::run, runs_networks: true },
];
