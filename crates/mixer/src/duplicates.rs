//! Which samples equal earlier ones, decided sample by sample without holding what they are compared by.
//!
//! For every key (uid, content, caption) all candidates are sorted by it, in scratch files if need be; those that are
//! alone drop out. What remains are *ties*: a row, and a group it belongs to. Sorted by row they are walked through once:
//! a row goes on if no group of its has an owner yet, and then owns them all. So only samples that go on can make a
//! later one a duplicate, whatever the keys; that is the rule a person would apply, reading the pool from the start.
//!
//! Near-duplicates are ties of another kind: a row belongs to the group of its own hash and looks into those of close
//! hashes.

use std::collections::HashMap;
use std::iter::Peekable;

use oqvl_stage::RunContext;

use crate::external_sort::{Merge, Sorted, Sorter, interruptible};
use crate::hamming::{close_pairs, parts};
use crate::pool::Pool;
use crate::reject::Reject;
use crate::row_set::RowSet;
use crate::scratch::Scratch;
use crate::uid_order::{RowSorter, SortedRows};
use crate::{DedupKey, MixerConfig, MixerError};

/// Row, rank of the key, whether the row belongs to the group or only looks at it, group.
const TIE_BYTES: usize = 8 + 1 + 1 + 8;

/// Belongs to the group.
const MEMBER: u8 = 0;
/// Must not go on if the group has an owner.
const NEIGHBOUR: u8 = 1;

/// The ties between candidates.
#[derive(Debug)]
pub(crate) struct Ties {
    sorted: Sorted<TIE_BYTES>,
    num_groups: u64,
    reasons: Vec<Reject>,
}

impl Ties {
    /// Finds them among `candidates`.
    pub(crate) fn find(
        config: &MixerConfig,
        pool: &Pool,
        candidates: &RowSet,
        scratch: &Scratch,
        run: &RunContext,
    ) -> Result<Ties, MixerError> {
        let mut ties = TieWriter { sorter: Sorter::new(scratch), num_groups: 0, rank: 0 };
        let mut reasons = Vec::new();
        for key in &config.dedup {
            ties.rank = reasons.len() as u8;
            match key {
                DedupKey::Uid => {
                    let is_candidate =
                        |it: &Result<_, _>| !matches!(it, Ok((_, row)) if !candidates.contains(*row));
                    ties.add_equal(pool.by_uid(run)?.filter(is_candidate))?;
                    reasons.push(Reject::DuplicateUid);
                }
                DedupKey::Content => {
                    let digests = digests(pool, candidates, scratch, run, |place| place.content)?;
                    ties.add_equal(digests.iter(run)?)?;
                    reasons.push(Reject::DuplicateContent);
                }
                DedupKey::Caption => {
                    let digests = digests(pool, candidates, scratch, run, |place| place.caption)?;
                    ties.add_equal(digests.iter(run)?)?;
                    reasons.push(Reject::DuplicateCaption);
                }
            }
        }
        if let Some(near) = config.near_duplicates {
            ties.rank = reasons.len() as u8;
            ties.add_near(pool, candidates, near.max_distance, scratch, run)?;
            reasons.push(Reject::NearDuplicate);
        }
        Ok(Ties { sorted: ties.sorter.finish()?, num_groups: ties.num_groups, reasons })
    }

    /// The walk through the rows.
    pub(crate) fn walk(&self) -> Result<TieWalk<'_>, MixerError> {
        let owners = vec![0; self.num_groups as usize];
        Ok(TieWalk { ties: self.sorted.iter()?.peekable(), owners, reasons: &self.reasons })
    }
}

/// Rows come to it in ascending order.
#[derive(Debug)]
pub(crate) struct TieWalk<'a> {
    ties: Peekable<Merge<'a, TIE_BYTES>>,
    /// For every group one more than the row that owns it, 0 for none: 8 bytes for every group of duplicates.
    owners: Vec<u64>,
    reasons: &'a [Reject],
}

impl TieWalk<'_> {
    /// Lets `row` go on, or says why not and which earlier row it resembles.
    pub(crate) fn admit(&mut self, row: u64) -> Result<Result<(), (Reject, u64)>, MixerError> {
        let (mut own, mut verdict) = (Vec::new(), Ok(()));
        while let Some(tie) = self.ties.next_if(|tie| !matches!(tie, Ok(tie) if row_of(tie) > row)) {
            let tie = tie?;
            if row_of(&tie) < row {
                continue;
            }
            let group = u64::from_be_bytes(tie[10..].try_into().expect("eight bytes")) as usize;
            // Ties of a row come by rank: the first that has an owner is the reason.
            if verdict.is_ok() && self.owners[group] != 0 {
                verdict = Err((self.reasons[usize::from(tie[8])], self.owners[group] - 1));
            }
            if tie[9] == MEMBER {
                own.push(group);
            }
        }
        if verdict.is_ok() {
            own.into_iter().for_each(|group| self.owners[group] = row + 1);
        }
        Ok(verdict)
    }
}

fn row_of(tie: &[u8; TIE_BYTES]) -> u64 {
    u64::from_be_bytes(tie[..8].try_into().expect("eight bytes"))
}

struct TieWriter {
    sorter: Sorter<TIE_BYTES>,
    num_groups: u64,
    rank: u8,
}

impl TieWriter {
    fn push(&mut self, row: u64, kind: u8, group: u64) -> Result<(), MixerError> {
        let mut tie = [0; TIE_BYTES];
        tie[..8].copy_from_slice(&row.to_be_bytes());
        tie[8] = self.rank;
        tie[9] = kind;
        tie[10..].copy_from_slice(&group.to_be_bytes());
        self.sorter.push(tie)
    }

    /// Adds a group for every value that several rows have; `rows` come sorted by value.
    fn add_equal(
        &mut self,
        rows: impl Iterator<Item = Result<(u128, u64), MixerError>>,
    ) -> Result<(), MixerError> {
        let mut last: Option<(u128, u64)> = None;
        let mut is_open = false;
        for entry in rows {
            let (value, row) = entry?;
            match last.replace((value, row)) {
                Some((other, first)) if other == value => {
                    if !is_open {
                        self.num_groups += 1;
                        self.push(first, MEMBER, self.num_groups - 1)?;
                        is_open = true;
                    }
                    self.push(row, MEMBER, self.num_groups - 1)?;
                }
                _ => is_open = false,
            }
        }
        Ok(())
    }

    /// Adds a group for every hash that several rows have or that is close to another one. Memory holds 24 bytes for
    /// each of these hashes while it does.
    fn add_near(
        &mut self,
        pool: &Pool,
        candidates: &RowSet,
        max_distance: u32,
        scratch: &Scratch,
        run: &RunContext,
    ) -> Result<(), MixerError> {
        let mut sorter = Sorter::<16>::new(scratch);
        for_each_place(pool, candidates, run, |row, place| match place.image_hash {
            Some(hash) => sorter.push((u128::from(hash) << 64 | u128::from(row)).to_be_bytes()),
            None => Ok(()),
        })?;
        let rows = sorter.finish()?;
        let distinct = || -> Result<_, MixerError> {
            let mut last = None;
            let hashes = rows.iter()?.map(|record| record.map(|record| parts(record).0));
            Ok(hashes.filter(move |hash| match hash {
                Ok(hash) => last.replace(*hash) != Some(*hash),
                Err(_) => true,
            }))
        };
        let num_hashes = distinct()?.count() as u64;
        let pairs = close_pairs(distinct, num_hashes, max_distance, scratch, run)?;
        let mut groups: HashMap<u64, u64> = HashMap::new();
        for pair in interruptible(pairs.iter()?, run) {
            self.group_of(parts(pair?).0, &mut groups);
        }
        let mut pairs = pairs.iter()?.peekable();
        let mut rows = interruptible(rows.iter()?, run).peekable();
        while let Some(first) = rows.next() {
            let (hash, first) = parts(first?);
            let mut neighbours = Vec::new();
            while let Some(pair) = pairs.next_if(|pair| !matches!(pair, Ok(pair) if parts(*pair).0 > hash)) {
                neighbours.push(groups[&parts(pair?).1]);
            }
            let is_same = |record: &Result<[u8; 16], _>| !matches!(record, Ok(it) if parts(*it).0 != hash);
            let is_alone = rows.peek().is_none_or(|next| !is_same(next));
            if is_alone && neighbours.is_empty() {
                continue;
            }
            let group = self.group_of(hash, &mut groups);
            let mut row = Some(first);
            while let Some(this) = row {
                self.push(this, MEMBER, group)?;
                for neighbour in &neighbours {
                    self.push(this, NEIGHBOUR, *neighbour)?;
                }
                row = rows.next_if(is_same).transpose()?.map(|record| parts(record).1);
            }
        }
        Ok(())
    }

    fn group_of(&mut self, hash: u64, groups: &mut HashMap<u64, u64>) -> u64 {
        *groups.entry(hash).or_insert_with(|| {
            self.num_groups += 1;
            self.num_groups - 1
        })
    }
}

/// Every candidate with what the first pass noted of it, in row order.
pub(crate) fn for_each_place(
    pool: &Pool,
    candidates: &RowSet,
    run: &RunContext,
    mut take: impl FnMut(u64, &crate::places::Place) -> Result<(), MixerError>,
) -> Result<(), MixerError> {
    for part in 0..pool.parts.len() {
        run.check_interrupt()?;
        let rows = pool.rows_of(part);
        if candidates.count_range(rows.clone()) == 0 {
            continue;
        }
        let places = pool.places(part)?;
        for row in candidates.iter_range(rows.clone()) {
            take(row, &places.samples[(row - rows.start) as usize])?;
        }
    }
    Ok(())
}

/// The candidates that have a digest, in its order.
fn digests(
    pool: &Pool,
    candidates: &RowSet,
    scratch: &Scratch,
    run: &RunContext,
    digest: impl Fn(&crate::places::Place) -> Option<crate::places::Digest>,
) -> Result<SortedRows, MixerError> {
    let mut sorter = RowSorter::new(scratch);
    for_each_place(pool, candidates, run, |row, place| {
        digest(place).map_or(Ok(()), |digest| sorter.push(u128::from_be_bytes(digest), row))
    })?;
    sorter.finish()
}
