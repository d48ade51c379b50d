//! Sets of samples of the pool: one bit a sample.

/// A set of rows. At 128 million samples it takes 16 MB.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowSet {
    words: Vec<u64>,
    num_rows: u64,
}

impl RowSet {
    /// No row out of `num_rows`.
    pub(crate) fn none(num_rows: u64) -> RowSet {
        RowSet { words: vec![0; num_rows.div_ceil(64) as usize], num_rows }
    }

    /// Puts `row` in.
    pub(crate) fn insert(&mut self, row: u64) {
        assert!(row < self.num_rows, "row {row} of {}", self.num_rows);
        self.words[(row / 64) as usize] |= 1 << (row % 64);
    }

    /// Whether `row` is in.
    pub(crate) fn contains(&self, row: u64) -> bool {
        self.words[(row / 64) as usize] >> (row % 64) & 1 == 1
    }

    /// Number of rows in the set.
    pub(crate) fn len(&self) -> u64 {
        self.words.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Rows that are in both.
    pub(crate) fn overlap(&self, other: &RowSet) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    /// Keeps what is in `other` too.
    pub(crate) fn intersect(&mut self, other: &RowSet) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= other);
    }

    /// Drops what is in `other`.
    pub(crate) fn subtract(&mut self, other: &RowSet) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word &= !other);
    }

    /// Adds what is in `other`.
    pub(crate) fn unite(&mut self, other: &RowSet) {
        self.words.iter_mut().zip(&other.words).for_each(|(word, other)| *word |= other);
    }

    /// The rows of `range` that are in the set, ascending.
    pub(crate) fn iter_range(&self, range: std::ops::Range<u64>) -> impl Iterator<Item = u64> + '_ {
        range.filter(|row| self.contains(*row))
    }

    /// Number of rows of `range` that are in the set.
    pub(crate) fn count_range(&self, range: std::ops::Range<u64>) -> u64 {
        self.iter_range(range).count() as u64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn set(rows: &BTreeSet<u64>) -> RowSet {
        let mut set = RowSet::none(200);
        rows.iter().for_each(|row| set.insert(*row));
        set
    }

    proptest! {
        #[test]
        fn agrees_with_a_tree(
            a in prop::collection::btree_set(0..200_u64, 0..80),
            b in prop::collection::btree_set(0..200_u64, 0..80),
            start in 0..200_u64,
        ) {
            let (set_a, set_b) = (set(&a), set(&b));
            prop_assert_eq!(set_a.len(), a.len() as u64);
            prop_assert_eq!(set_a.overlap(&set_b), a.intersection(&b).count() as u64);
            let (mut both, mut either) = (set_a.clone(), set_a.clone());
            both.intersect(&set_b);
            either.unite(&set_b);
            let mut rest = set_a.clone();
            rest.subtract(&set_b);
            prop_assert_eq!(rest, set(&(&a - &b)));
            prop_assert_eq!(both, set(&(&a & &b)));
            prop_assert_eq!(either, set(&(&a | &b)));
            prop_assert!(set_a.iter_range(start..200).eq(a.range(start..).copied()));
            prop_assert_eq!(set_a.count_range(0..start), a.range(..start).count() as u64);
        }
    }
}
