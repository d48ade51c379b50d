//! Pairs of 64-bit hashes that differ in few bits, without comparing every hash with every other.
//!
//! The bits are cut into `blocks` pieces. Two hashes that differ in at most `d` bits agree in at least `blocks - d`
//! whole pieces, so for every choice of that many pieces the hashes are sorted by them, and only those that agree there
//! are compared (Manku, Jain, Das Sarma: Detecting Near-Duplicates for Web Crawling, 2007). More pieces make the parts
//! that must agree longer, so that fewer agree by chance, and the choices more.

use oqvl_stage::RunContext;

use crate::MixerError;
use crate::external_sort::{Sorted, Sorter, interruptible};
use crate::scratch::Scratch;

/// How the bits are cut for a number of hashes and a distance.
#[derive(Debug, Clone)]
struct Cut {
    /// The bits of each choice of pieces that must agree.
    choices: Vec<u64>,
}

impl Cut {
    fn new(num_hashes: u64, max_distance: u32) -> Cut {
        let wanted_bits = 64 - num_hashes.max(2).leading_zeros();
        // The fewest pieces with which about one hash agrees by chance; beyond 4 the choices are too many.
        let agree = (1..4).find(|agree| 64 * agree / (max_distance + agree) >= wanted_bits).unwrap_or(4);
        let blocks = max_distance + agree;
        let edge = |block: u32| 64 * block / blocks;
        let mask = |block: u32| {
            let (start, end) = (edge(block), edge(block + 1));
            (u64::MAX >> (64 - (end - start))) << start
        };
        let masks: Vec<u64> = (0..blocks).map(mask).collect();
        Cut { choices: choices_of(&masks, agree as usize) }
    }
}

/// The unions of every `count` of `masks`.
fn choices_of(masks: &[u64], count: usize) -> Vec<u64> {
    if count == 0 {
        return vec![0];
    }
    let mut choices = Vec::new();
    for (index, mask) in masks.iter().enumerate() {
        choices.extend(choices_of(&masks[index + 1..], count - 1).into_iter().map(|rest| rest | mask));
    }
    choices
}

/// All pairs `(a, b)` and `(b, a)` of distinct `hashes` that differ in at most `max_distance` bits, as two big-endian
/// numbers each, in order. `hashes` must be distinct; it is read once for every choice of pieces.
pub(crate) fn close_pairs<I: Iterator<Item = Result<u64, MixerError>>>(
    hashes: impl Fn() -> Result<I, MixerError>,
    num_hashes: u64,
    max_distance: u32,
    scratch: &Scratch,
    run: &RunContext,
) -> Result<Sorted<16>, MixerError> {
    let mut pairs = Sorter::<16>::new(scratch);
    if max_distance == 0 {
        return pairs.finish();
    }
    let cut = Cut::new(num_hashes, max_distance);
    let progress = run.progress(cut.choices.len() as u64, "passes over hashes of images");
    for (index, choice) in cut.choices.iter().enumerate() {
        let mut by_choice = Sorter::<16>::new(scratch);
        for hash in interruptible(hashes()?, run) {
            let hash = hash?;
            by_choice.push(two(hash & choice, hash))?;
        }
        let mut group: Vec<u64> = Vec::new();
        let mut group_key = None;
        for record in interruptible(by_choice.finish()?.iter()?, run) {
            let (key, hash) = parts(record?);
            if group_key.replace(key) != Some(key) {
                group.clear();
            }
            for other in &group {
                let difference = hash ^ other;
                let agrees_earlier = || cut.choices[..index].iter().any(|choice| difference & choice == 0);
                if difference.count_ones() <= max_distance && !agrees_earlier() {
                    pairs.push(two(hash, *other))?;
                    pairs.push(two(*other, hash))?;
                }
            }
            group.push(hash);
        }
        progress.inc(1);
    }
    progress.finish();
    pairs.finish()
}

fn two(first: u64, second: u64) -> [u8; 16] {
    (u128::from(first) << 64 | u128::from(second)).to_be_bytes()
}

/// The two numbers of a record.
pub(crate) fn parts(record: [u8; 16]) -> (u64, u64) {
    let both = u128::from_be_bytes(record);
    ((both >> 64) as u64, both as u64)
}

/// A set of hashes in memory that finds the closest one to another: for benchmark images, which are few.
#[derive(Debug)]
pub(crate) struct HashIndex {
    max_distance: u32,
    hashes: Vec<u64>,
    /// For every piece: which hashes have which bits there.
    pieces: Vec<(u64, std::collections::HashMap<u64, Vec<u32>>)>,
}

impl HashIndex {
    /// An index of `hashes` for distances up to `max_distance`.
    pub(crate) fn new(hashes: Vec<u64>, max_distance: u32) -> HashIndex {
        // One piece of `max_distance + 1` must agree.
        let blocks = max_distance + 1;
        let piece = |block: u32| {
            let (start, end) = (64 * block / blocks, 64 * (block + 1) / blocks);
            let mask = (u64::MAX >> (64 - (end - start))) << start;
            let mut places: std::collections::HashMap<u64, Vec<u32>> = std::collections::HashMap::new();
            for (index, hash) in hashes.iter().enumerate() {
                places.entry(hash & mask).or_default().push(index as u32);
            }
            (mask, places)
        };
        HashIndex { max_distance, pieces: (0..blocks).map(piece).collect(), hashes }
    }

    /// The first of the closest hashes within the distance, and how far it is.
    pub(crate) fn closest(&self, hash: u64) -> Option<(usize, u32)> {
        let candidates = self.pieces.iter().filter_map(|(mask, places)| places.get(&(hash & mask))).flatten();
        let distance = |index: &u32| (hash ^ self.hashes[*index as usize]).count_ones();
        let best = candidates.map(|index| (distance(index), *index)).min()?;
        (best.0 <= self.max_distance).then_some((best.1 as usize, best.0))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Hashes around a few centres, so that close pairs occur.
    fn any_hashes() -> impl Strategy<Value = BTreeSet<u64>> {
        let flips = prop::collection::vec(0..64_u32, 0..9);
        let hash = (0..4_u64, flips).prop_map(|(centre, flips)| {
            flips.iter().fold(centre.wrapping_mul(0x9e37_79b9_7f4a_7c15), |hash, bit| hash ^ 1 << bit)
        });
        prop::collection::btree_set(hash, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// The pairs are those that comparing everything with everything finds, whatever the number of pieces.
        #[test]
        fn no_pair_is_missed_or_doubled(
            hashes in any_hashes(),
            max_distance in 0..=8_u32,
            pretended in prop_oneof![Just(2_u64), Just(1 << 20), Just(1 << 40)],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let scratch = Scratch::create(dir.path(), Some(64)).unwrap();
            let pretended = if max_distance > 5 { 2 } else { pretended };
            let read = || Ok(hashes.iter().copied().map(Ok));
            let run = RunContext::for_test::<crate::Mixer>(dir.path(), 7).unwrap();
            let pairs = close_pairs(read, pretended, max_distance, &scratch, &run).unwrap();
            let found: Vec<(u64, u64)> = pairs.iter().unwrap().map(|record| parts(record.unwrap())).collect();
            let all = hashes.iter().flat_map(|a| hashes.iter().map(move |b| (*a, *b)));
            let expected: Vec<(u64, u64)> =
                all.filter(|(a, b)| a != b && (a ^ b).count_ones() <= max_distance).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn the_closest_is_found(
            hashes in any_hashes(),
            wanted in any_hashes(),
            max_distance in 0..=10_u32,
        ) {
            let hashes: Vec<u64> = hashes.into_iter().collect();
            let index = HashIndex::new(hashes.clone(), max_distance);
            for hash in wanted {
                let closest = hashes.iter().enumerate().map(|(place, it)| ((hash ^ it).count_ones(), place)).min();
                let expected = closest.filter(|(far, _)| *far <= max_distance).map(|(far, place)| (place, far));
                prop_assert_eq!(index.closest(hash), expected);
            }
        }
    }

    #[test]
    fn more_hashes_make_longer_keys() {
        let bits = |num_hashes, max_distance| {
            let cut = Cut::new(num_hashes, max_distance);
            (cut.choices.len(), cut.choices[0].count_ones())
        };
        assert_eq!(bits(1000, 3), (4, 16));
        assert_eq!(bits(1 << 20, 3), (10, 25));
        assert_eq!(bits(1 << 27, 3), (20, 32));
    }
}
