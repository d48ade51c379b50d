//! The works: what is raced against what, and what both sides must agree on.

mod bin_packing;
mod fetch;
mod images;
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
}

/// All works, in the order of the table.
pub(super) const WORKS: [Work; 6] = [
    Work { name: fetch::NAME, run: fetch::run },
    Work { name: reshard::NAME, run: reshard::run },
    Work { name: pack::NAME, run: pack::run },
    Work { name: bin_packing::NAME, run: bin_packing::run },
    Work { name: images::NAME, run: images::run },
    Work { name: read::NAME, run: read::run },
];
