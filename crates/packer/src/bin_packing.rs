//! Which documents share a sequence.

use std::cmp::Reverse;

/// First-fit-decreasing: the indices of `lengths` in bins of `capacity`.
///
/// Items are taken longest first, equal ones in the order given; each goes into the first bin, in order of opening,
/// whose sum stays within `capacity`, or else opens a bin. An item longer than `capacity` has a bin to itself.
/// Takes O(n log n) time.
///
/// Source: `first_fit_decreasing_with_ids` of Open-Qwen2VL, which scans all bins for each item; the result is the same.
pub fn first_fit_decreasing(lengths: &[u32], capacity: u32) -> Vec<Vec<usize>> {
    // With its index an item differs from every other; lengths that lie in the order of use spare the cache.
    let mut order: Vec<(Reverse<u32>, usize)> =
        lengths.iter().enumerate().map(|(item, &length)| (Reverse(length), item)).collect();
    order.sort_unstable();

    let mut bins: Vec<Vec<usize>> = Vec::new();
    let mut rooms = Rooms::new(most_bins(lengths, capacity), i64::from(capacity));
    for (Reverse(length), item) in order {
        let length = i64::from(length);
        // An item that fits nowhere still gets the next bin. Bins not yet opened come last and have all the room.
        let bin = rooms.first_with(length).unwrap_or(bins.len());
        if bin == bins.len() {
            bins.push(Vec::new());
        }
        bins[bin].push(item);
        rooms.take(bin, length);
    }
    bins
}

/// An upper bound for the number of bins that first-fit-decreasing opens.
///
/// Of two bins that hold no overlong item, the sums exceed `capacity` together: the later was opened because its first
/// item did not fit into the earlier. So all but one of them can be paired up to more than `capacity` a pair.
fn most_bins(lengths: &[u32], capacity: u32) -> usize {
    let (mut sum, mut num_overlong) = (0, 0);
    for &length in lengths {
        if length > capacity {
            num_overlong += 1;
        } else {
            sum += u64::from(length);
        }
    }
    let num_others = 2 * (sum / u64::from(capacity.max(1))) + 3;
    lengths.len().min(num_overlong + usize::try_from(num_others).unwrap_or(usize::MAX))
}

/// A bin for each item, in the order given.
pub fn one_per_bin(lengths: &[u32]) -> Vec<Vec<usize>> {
    (0..lengths.len()).map(|item| vec![item]).collect()
}

/// The room left in each bin, as a tree of maxima: finding the first bin with enough of it takes one walk from the
/// root to a leaf.
struct Rooms {
    /// Heap order: node `i` has the children `2i` and `2i + 1`; leaves start at `num_leaves`. Index 0 is not used.
    largest: Vec<i64>,
    num_leaves: usize,
}

impl Rooms {
    /// `num_bins` bins with `capacity` each.
    fn new(num_bins: usize, capacity: i64) -> Self {
        let num_leaves = num_bins.max(1).next_power_of_two();
        Self { largest: vec![capacity; 2 * num_leaves], num_leaves }
    }

    /// The first bin with at least `length` of room.
    fn first_with(&self, length: i64) -> Option<usize> {
        if self.largest[1] < length {
            return None;
        }
        let mut node = 1;
        while node < self.num_leaves {
            node *= 2;
            if self.largest[node] < length {
                node += 1;
            }
        }
        Some(node - self.num_leaves)
    }

    /// Takes `length` from a bin; room below 0 marks a bin that not even an empty item fits into.
    fn take(&mut self, bin: usize, length: i64) {
        let mut node = self.num_leaves + bin;
        self.largest[node] -= length;
        while node > 1 {
            node /= 2;
            let largest = self.largest[2 * node].max(self.largest[2 * node + 1]);
            if self.largest[node] == largest {
                break; // and so is everything above
            }
            self.largest[node] = largest;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The quadratic procedure: scan all bins for each item.
    fn naive(lengths: &[u32], capacity: u32) -> Vec<Vec<usize>> {
        let mut order: Vec<usize> = (0..lengths.len()).collect();
        order.sort_by_key(|&item| Reverse(lengths[item]));
        let mut bins: Vec<Vec<usize>> = Vec::new();
        for item in order {
            let fits = |bin: &&mut Vec<usize>| {
                let sum: u64 = bin.iter().map(|&other| u64::from(lengths[other])).sum();
                sum + u64::from(lengths[item]) <= u64::from(capacity)
            };
            match bins.iter_mut().find(fits) {
                Some(bin) => bin.push(item),
                None => bins.push(vec![item]),
            }
        }
        bins
    }

    fn check(lengths: &[u32], expected: &[&[usize]]) {
        assert_eq!(first_fit_decreasing(lengths, 4096), expected, "{lengths:?}");
    }

    #[test]
    fn the_reference_example() {
        // a b c d e f -> [f] [a b] [d c e]
        check(&[3000, 1096, 1000, 3000, 96, 5000], &[&[5], &[0, 1], &[3, 2, 4]]);
    }

    #[test]
    fn edges() {
        check(&[], &[]);
        check(&[0], &[&[0]]);
        check(&[4096], &[&[0]]);
        check(&[4097, 0], &[&[0], &[1]]); // nothing joins an overlong item, not even nothing
        check(&[4096, 0], &[&[0, 1]]);
        check(&[2048, 2048, 2048], &[&[0, 1], &[2]]); // ties keep their order
        check(&[9000, 5000, 5000], &[&[0], &[1], &[2]]);
        assert_eq!(one_per_bin(&[3, 9, 1]), [[0], [1], [2]]);
        assert!(one_per_bin(&[]).is_empty());
    }

    #[test]
    fn ten_thousand_captions() {
        // A tar of the reference: lengths around 147 plus a caption, in a fixed scramble.
        let lengths: Vec<u32> = (0..10_000u64).map(|i| 150 + (i * i * 2_654_435_761 % 97) as u32).collect();
        let bins = first_fit_decreasing(&lengths, 4096);
        let total: u64 = lengths.iter().map(|&length| u64::from(length)).sum();
        assert!(total as f64 / (bins.len() as f64 * 4096.0) > 0.97);
        assert_eq!(bins, naive(&lengths, 4096));
    }

    /// Inputs of many shapes: few and many items, small and large capacities, zeros, ties, exact fits, overlong items.
    #[test]
    fn a_hundred_thousand_random_inputs_equal_the_quadratic_procedure() {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut draw = |below: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % below
        };
        let (mut num_zero, mut num_overlong, mut num_ties) = (0, 0, 0);
        for round in 0..100_000 {
            let num_items = draw(if round % 50 == 0 { 200 } else { 24 }) as usize;
            let capacity = [0, 1, 2, 7, 10, 64, 100, 4096, u32::MAX][draw(9) as usize];
            let most =
                (u64::from(capacity) * [1, 2, 3, 5][draw(4) as usize] / [1, 2, 4][draw(3) as usize]).max(1);
            let num_values = [1, 2, 5, u64::MAX][draw(4) as usize];
            let lengths: Vec<u32> = (0..num_items)
                .map(|_| {
                    let length = draw(most + 1).min(u64::from(u32::MAX));
                    // A few different values make ties, multiples of a step make exact fits.
                    (if num_values == u64::MAX {
                        length
                    } else {
                        length / (most / num_values).max(1) * (most / num_values).max(1)
                    }) as u32
                })
                .collect();
            num_zero += usize::from(lengths.contains(&0));
            num_overlong += usize::from(lengths.iter().any(|&length| length > capacity));
            num_ties += usize::from(lengths.windows(2).any(|pair| pair[0] == pair[1]));
            let bins = first_fit_decreasing(&lengths, capacity);
            assert_eq!(bins, naive(&lengths, capacity), "capacity {capacity}: {lengths:?}");
        }
        assert!(num_zero > 10_000 && num_overlong > 10_000 && num_ties > 10_000);
    }

    proptest! {
        #[test]
        fn equals_the_quadratic_procedure(
            lengths in prop::collection::vec(prop_oneof![0u32..12, 0u32..120, Just(50)], 0..80), capacity in 1u32..100,
        ) {
            prop_assert_eq!(first_fit_decreasing(&lengths, capacity), naive(&lengths, capacity));
        }

        #[test]
        fn nothing_is_lost_and_nothing_overflows(
            lengths in prop::collection::vec(0u32..3000, 0..200), capacity in 1u32..2500,
        ) {
            let bins = first_fit_decreasing(&lengths, capacity);
            let mut items: Vec<usize> = bins.concat();
            items.sort_unstable();
            prop_assert_eq!(items, (0..lengths.len()).collect::<Vec<_>>());
            for bin in bins {
                prop_assert!(!bin.is_empty());
                let sum: u32 = bin.iter().map(|&item| lengths[item]).sum();
                prop_assert!(sum <= capacity || bin.len() == 1);
                prop_assert!(bin.is_sorted_by_key(|&item| (Reverse(lengths[item]), item)));
            }
        }
    }
}
