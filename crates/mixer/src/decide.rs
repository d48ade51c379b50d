//! The decision: which samples of the pool go on, and why the others do not.

use std::collections::HashSet;

use oqvl_shard_io::{Uid, UidSubset};
use oqvl_stage::Tally;

use crate::pool::{Digest, SampleRecord, ShardEnd, ShardScan};
use crate::reject::Reject;
use crate::subset::Subset;
use crate::{DedupKey, MixerConfig, Select};

/// The outcome for the whole pool.
#[derive(Debug)]
pub(crate) struct Decision {
    /// Per input shard the positions of the samples that go on, ascending.
    pub(crate) kept: Vec<Vec<usize>>,
    /// Their uids.
    pub(crate) uids: UidSubset,
    /// The counts.
    pub(crate) tally: Tally,
}

/// Decides sample by sample, in shard and position order: first selection, then duplicates.
///
/// Only samples that go on can make a later one a duplicate; what was not selected does not shadow what was.
pub(crate) fn decide(config: &MixerConfig, pool: &[ShardScan], subsets: &[Subset]) -> Decision {
    let mut tally = Tally::default();
    let mut seen = Seen::default();
    let mut uids = Vec::new();
    let mut kept = Vec::with_capacity(pool.len());
    for (shard, scan) in pool.iter().enumerate() {
        let mut positions = Vec::new();
        for (position, sample) in scan.samples.iter().enumerate() {
            let outcome = sample.uid.and_then(|uid| {
                select(config.select, pool, subsets, shard, position)?;
                seen.admit(uid, sample, &config.dedup)?;
                Ok(uid)
            });
            match outcome {
                Ok(uid) => {
                    tally.keep();
                    positions.push(position);
                    uids.push(uid);
                }
                Err(reject) => tally.reject(scan.display_name(position), reject.as_str()),
            }
        }
        if scan.end == ShardEnd::Damaged {
            // How many samples the damage cost is unknown; it is counted as one.
            tally.reject(&scan.shard.name, Reject::DamagedShard.as_str());
        }
        kept.push(positions);
    }
    tally.assert_balanced();
    Decision { kept, uids: uids.into_iter().collect(), tally }
}

/// Whether the subsets select the sample.
fn select(
    select: Select,
    pool: &[ShardScan],
    subsets: &[Subset],
    shard: usize,
    position: usize,
) -> Result<(), Reject> {
    let mut memberships = subsets.iter().map(|subset| subset.members[shard][position]);
    let is_selected = match select {
        Select::All => true,
        Select::Union => memberships.any(|is_member| is_member),
        Select::Intersection => memberships.all(|is_member| is_member),
    };
    if is_selected {
        return Ok(());
    }
    let lacks_score = |scores: &Vec<f64>| scores.get(position).is_some_and(|score| score.is_nan());
    if pool[shard].scores.iter().any(lacks_score) {
        Err(Reject::MissingScore)
    } else {
        Err(Reject::NotSelected)
    }
}

/// What the samples that go on are known by.
#[derive(Debug, Default)]
struct Seen {
    uids: HashSet<Uid>,
    contents: HashSet<Digest>,
    captions: HashSet<Digest>,
}

impl Seen {
    /// Lets the sample on unless it equals an earlier one in one of `keys`; the first of them is the reason.
    fn admit(&mut self, uid: Uid, sample: &SampleRecord, keys: &[DedupKey]) -> Result<(), Reject> {
        for key in keys {
            let (is_seen, reject) = match key {
                DedupKey::Uid => (self.uids.contains(&uid), Reject::DuplicateUid),
                DedupKey::Content => {
                    (sample.content.is_some_and(|it| self.contents.contains(&it)), Reject::DuplicateContent)
                }
                DedupKey::Caption => {
                    (sample.caption.is_some_and(|it| self.captions.contains(&it)), Reject::DuplicateCaption)
                }
            };
            if is_seen {
                return Err(reject);
            }
        }
        for key in keys {
            match key {
                DedupKey::Uid => self.uids.extend([uid]),
                DedupKey::Content => self.contents.extend(sample.content),
                DedupKey::Caption => self.captions.extend(sample.caption),
            }
        }
        Ok(())
    }
}
