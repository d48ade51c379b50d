//! Embeddings of a sequence that tokens and visual features share.
//!
//! Where a row comes from is one number, its *source*: a token's id, or, negative, the row of the visual features that
//! [`visual_source`] stands for. The host makes them, checks them ([`check_sources`]) and sorts them for the backward
//! ([`Buckets`], [`visual_indices`]); the kernels of [`launch`] follow them.

pub mod launch;
pub mod reference;
mod sys;

use candle_core::{Result, bail};

/// The source that stands for a row of the visual features: `-1 - row`.
///
/// # Panics
/// If there is no such number.
#[must_use]
pub fn visual_source(row: usize) -> i32 {
    let row = i32::try_from(row).expect("visual features have fewer than 2^31 rows");
    -1 - row
}

/// The row of the visual features that a source stands for. `None` for a token.
fn visual_row(source: i32) -> Option<usize> {
    (source < 0).then(|| (-1 - source) as usize)
}

/// Refuses sources that are neither a token below `vocab` nor one of `visual_rows` visual features.
///
/// # Errors
/// Names the first of them.
pub fn check_sources(sources: &[i32], vocab: usize, visual_rows: usize) -> Result<()> {
    for (at, source) in sources.iter().enumerate() {
        match visual_row(*source) {
            Some(row) if row >= visual_rows => {
                bail!("embedding: visual row {row} at {at} is not below {visual_rows}")
            }
            None if *source as usize >= vocab => {
                bail!("embedding: token {source} at {at} is not below the vocabulary size {vocab}")
            }
            _ => {}
        }
    }
    Ok(())
}

/// For each of `visual_rows` visual features, the row of the sequence that took it, or -1: with these,
/// [`gather_rows`](crate::gather_rows::launch::gather_rows) makes their gradient of that of the sequence.
///
/// # Errors
/// If there is no such feature, or a sequence takes one twice, whose gradient would be a sum.
pub fn visual_indices(sources: &[i32], visual_rows: usize) -> Result<Vec<i32>> {
    let mut indices = vec![-1; visual_rows];
    for (at, source) in sources.iter().enumerate() {
        let Some(row) = visual_row(*source) else { continue };
        match indices.get_mut(row) {
            Some(index) if *index < 0 => *index = at as i32,
            Some(index) => bail!("embedding: visual row {row} is taken at {index} and at {at}"),
            None => bail!("embedding: visual row {row} at {at} is not below {visual_rows}"),
        }
    }
    Ok(indices)
}

/// The rows of every token of a sequence, in order of tokens and of rows: what the gradient of the table is made of, by sums that
/// have one order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    ids: Vec<i32>,
    starts: Vec<i32>,
    rows: Vec<i32>,
}

impl Buckets {
    /// Sorts the rows by their tokens. Those of visual features and of `padding` are left out.
    ///
    /// # Panics
    /// If there are 2^31 rows or more.
    #[must_use]
    pub fn new(sources: &[i32], padding: Option<i32>) -> Self {
        let mut rows: Vec<i32> = (0..i32::try_from(sources.len()).expect("fewer than 2^31 rows")).collect();
        rows.retain(|row| {
            let source = sources[*row as usize];
            source >= 0 && Some(source) != padding
        });
        // Stable: rows of one token stay in order.
        rows.sort_by_key(|row| sources[*row as usize]);
        let (mut ids, mut starts) = (Vec::new(), Vec::new());
        for (at, row) in rows.iter().enumerate() {
            let id = sources[*row as usize];
            if ids.last() != Some(&id) {
                ids.push(id);
                starts.push(at as i32);
            }
        }
        starts.push(rows.len() as i32);
        Self { ids, starts, rows }
    }

    /// The tokens that there are, in order, each once.
    #[must_use]
    pub fn ids(&self) -> &[i32] {
        &self.ids
    }

    /// Where the rows of each token begin in [`rows`](Self::rows), and their end.
    #[must_use]
    pub fn starts(&self) -> &[i32] {
        &self.starts
    }

    /// Rows of the sequence, token after token.
    #[must_use]
    pub fn rows(&self) -> &[i32] {
        &self.rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_hold_the_rows_of_every_token() {
        let sources = [7, 2, visual_source(0), 7, 0, visual_source(1), 2, 7];
        let buckets = Buckets::new(&sources, Some(0));
        assert_eq!(
            (buckets.ids(), buckets.starts(), buckets.rows()),
            (&[2, 7][..], &[0, 2, 5][..], &[1, 6, 0, 3, 7][..])
        );
        let nothing = Buckets::new(&[visual_source(3)], None);
        assert_eq!((nothing.ids(), nothing.starts(), nothing.rows()), (&[][..], &[0][..], &[][..]));
    }

    #[test]
    fn visual_features_are_found_again() {
        let sources = [5, visual_source(2), visual_source(0), 5];
        assert_eq!(visual_indices(&sources, 4).unwrap(), [2, -1, 1, -1]);
        let refusal = |sources: &[i32]| visual_indices(sources, 1).unwrap_err().to_string();
        assert!(refusal(&[-1, 4, -1]).contains("visual row 0 is taken at 0 and at 2"));
        assert!(refusal(&[3, -2]).contains("visual row 1 at 1 is not below 1"));
        assert!(refusal(&[i32::MIN]).contains("visual row 2147483647"));
    }

    #[test]
    fn sources_that_are_not_there_are_refused() {
        check_sources(&[0, 4, -1, -3], 5, 3).unwrap();
        let refusal = |source: i32| check_sources(&[0, source], 5, 3).unwrap_err().to_string();
        assert!(refusal(5).contains("token 5 at 1 is not below the vocabulary size 5"));
        assert!(refusal(-4).contains("visual row 3 at 1 is not below 3"));
        assert!(refusal(i32::MIN).contains("visual row 2147483647 at 1"));
    }

    proptest! {
        #[test]
        fn buckets_lose_nothing(sources in proptest::collection::vec(-3i32..6, 0..60), padding in -1i32..6) {
            let buckets = Buckets::new(&sources, Some(padding));
            let mut found = vec![None; sources.len()];
            for (id, range) in buckets.ids().iter().zip(buckets.starts().windows(2)) {
                let rows = &buckets.rows()[range[0] as usize..range[1] as usize];
                prop_assert!(!rows.is_empty() && rows.is_sorted());
                rows.iter().for_each(|row| found[*row as usize] = Some(*id));
            }
            prop_assert!(buckets.ids().windows(2).all(|pair| pair[0] < pair[1]));
            for (source, found) in sources.iter().zip(found) {
                let is_token = *source >= 0 && *source != padding;
                prop_assert_eq!(found, is_token.then_some(*source));
            }
        }
    }
}
