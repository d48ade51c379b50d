//! The decision: which samples of the pool go on, and why the others do not.

use std::collections::BTreeMap;

use oqvl_stage::{RejectedSample, RunContext, Tally};

use crate::benchmark_images::Contamination;
use crate::duplicates::Ties;
use crate::pool::Pool;
use crate::reject::Reject;
use crate::row_set::RowSet;
use crate::scratch::Scratch;
use crate::subset::Subset;
use crate::{MixerConfig, MixerError, Select};

/// How many rejected samples, and how many matches of images, are named one by one; counts are always complete.
pub(crate) const MAX_LISTED: usize = 1000;

/// How many rows are looked at between two looks at the clock.
const ROWS_PER_CHECK: u64 = 1 << 20;

/// The outcome for the whole pool.
#[derive(Debug)]
pub(crate) struct Decision {
    /// The samples that go on.
    pub(crate) kept: RowSet,
    /// The counts.
    pub(crate) tally: Tally,
    /// The first near-duplicates with the earlier samples they resemble.
    pub(crate) near_duplicates: Vec<(u64, u64)>,
}

/// Counts outcomes; names of rejected samples are looked up when the counting is done.
#[derive(Debug, Default)]
struct Counts {
    kept: u64,
    rejected: BTreeMap<&'static str, u64>,
    listed: Vec<(Listed, Reject)>,
}

/// What a reject is about.
#[derive(Debug, Clone, Copy)]
enum Listed {
    Row(u64),
    Part(usize),
}

impl Counts {
    fn reject(&mut self, what: Listed, reject: Reject) {
        *self.rejected.entry(reject.as_str()).or_default() += 1;
        if self.listed.len() < MAX_LISTED {
            self.listed.push((what, reject));
        }
    }

    fn into_tally(self, pool: &Pool) -> Result<Tally, MixerError> {
        let name = |what: &Listed| match what {
            Listed::Row(row) => pool.name_of(*row),
            Listed::Part(part) => Ok(pool.parts[*part].name.clone()),
        };
        let mut rejects = Vec::with_capacity(self.listed.len());
        for (what, reject) in &self.listed {
            rejects.push(RejectedSample { key: name(what)?, reason: reject.as_str().to_owned() });
        }
        let rejected: BTreeMap<String, u64> =
            self.rejected.into_iter().map(|(reason, count)| (reason.to_owned(), count)).collect();
        let seen = self.kept + rejected.values().sum::<u64>();
        Ok(Tally { seen, kept: self.kept, rejected, rejects })
    }
}

/// Decides sample by sample, in shard and position order: selection, then contamination, then duplicates.
///
/// Only samples that go on can make a later one a duplicate; what was not selected does not shadow what was.
pub(crate) fn decide(
    config: &MixerConfig,
    pool: &Pool,
    subsets: &[Subset],
    contamination: Option<&Contamination>,
    scratch: &Scratch,
    run: &RunContext,
) -> Result<Decision, MixerError> {
    let selected = select(config.select, pool, subsets);
    let missing_score = subsets.iter().filter_map(|subset| subset.missing_score.as_ref());
    let missing_score = missing_score.fold(RowSet::none(pool.num_rows), |mut all, rows| {
        all.unite(rows);
        all
    });
    let mut candidates = selected.clone();
    if let Some(contamination) = contamination {
        candidates.subtract(&contamination.rows);
    }
    let ties = Ties::find(config, pool, &candidates, scratch, run)?;
    let mut walk = ties.walk()?;
    let mut counts = Counts::default();
    let mut kept = RowSet::none(pool.num_rows);
    let mut near_duplicates = Vec::new();
    for part in 0..pool.parts.len() {
        for row in pool.rows_of(part) {
            if row % ROWS_PER_CHECK == 0 {
                run.check_interrupt()?;
            }
            let reject = if !pool.usable.contains(row) {
                pool.uid_problem(row)
            } else if !selected.contains(row) {
                if missing_score.contains(row) { Reject::MissingScore } else { Reject::NotSelected }
            } else if !candidates.contains(row) {
                Reject::BenchmarkImage
            } else {
                match walk.admit(row)? {
                    Ok(()) => {
                        counts.kept += 1;
                        kept.insert(row);
                        continue;
                    }
                    Err((reject, earlier)) => {
                        if reject == Reject::NearDuplicate && near_duplicates.len() < MAX_LISTED {
                            near_duplicates.push((row, earlier));
                        }
                        reject
                    }
                }
            };
            counts.reject(Listed::Row(row), reject);
        }
        if let Some(reject) = pool.parts[part].end.reject() {
            // How many samples are missing is unknown; they are counted as one.
            counts.reject(Listed::Part(part), reject);
        }
    }
    let tally = counts.into_tally(pool)?;
    tally.assert_balanced();
    Ok(Decision { kept, tally, near_duplicates })
}

/// The usable samples that the subsets select.
fn select(select: Select, pool: &Pool, subsets: &[Subset]) -> RowSet {
    let rows = subsets.iter().map(|subset| &subset.rows);
    match select {
        Select::All => pool.usable.clone(),
        Select::Union => rows.fold(RowSet::none(pool.num_rows), |mut all, rows| {
            all.unite(rows);
            all
        }),
        Select::Intersection => rows.fold(pool.usable.clone(), |mut all, rows| {
            all.intersect(rows);
            all
        }),
    }
}
