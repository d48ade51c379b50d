//! The kernels of `embedding.cu` on a CPU, in f32 and f64.

use super::{Buckets, check_sources, visual_row};
use crate::device::num_rows;
use crate::element::Element;
use crate::rows;
use candle_core::{Result, bail};

/// Writes to `to` the embeddings `(sources.len(), hidden)` of tokens, rows of `table`, `(vocab, hidden)`, and of visual features, rows of
/// `visual`, `(_, hidden)`.
///
/// # Errors
/// If a source is not there, or a matrix has no rows of `hidden`.
pub fn forward<T: Element>(
    table: &[T],
    visual: &[T],
    hidden: usize,
    sources: &[i32],
    to: &mut [T],
) -> Result<()> {
    let count = |name, matrix: &[T]| num_rows("embedding", name, matrix.len(), hidden);
    check_sources(sources, count("the table", table)?, count("the visual matrix", visual)?)?;
    if Some(to.len()) != sources.len().checked_mul(hidden) {
        bail!("embedding: the output has {} elements, not {hidden} for {} rows", to.len(), sources.len());
    }
    for (to, source) in to.chunks_exact_mut(hidden.max(1)).zip(sources) {
        let (from, row) = match visual_row(*source) {
            Some(row) => (visual, row),
            None => (table, *source as usize),
        };
        to.copy_from_slice(&from[row * hidden..(row + 1) * hidden]);
    }
    Ok(())
}

/// The rows of every token, as [`Buckets`] has them.
#[derive(Debug, Clone, Copy)]
pub struct BucketRows<'a> {
    /// Tokens, in order, each once.
    pub ids: &'a [i32],
    /// Where the rows of each begin, and the end.
    pub starts: &'a [i32],
    /// The rows.
    pub rows: &'a [i32],
}

impl<'a> From<&'a Buckets> for BucketRows<'a> {
    fn from(buckets: &'a Buckets) -> Self {
        Self { ids: buckets.ids(), starts: buckets.starts(), rows: buckets.rows() }
    }
}

/// Adds the rows of `dy`, `(_, hidden)`, to those of `dtable`, `(vocab, hidden)`, that are theirs, one after the other. Rows of
/// no bucket go nowhere.
///
/// # Errors
/// If a token or a row is not there, or a matrix has no rows of `hidden`.
pub fn backward<T: Element>(
    dy: &[T],
    hidden: usize,
    buckets: BucketRows<'_>,
    dtable: &mut [T],
) -> Result<()> {
    const WHAT: &str = "embedding backward";
    let vocab = num_rows(WHAT, "the gradient of the table", dtable.len(), hidden)?;
    let num_rows = num_rows(WHAT, "dy", dy.len(), hidden)?;
    let BucketRows { ids, starts, rows } = buckets;
    check_sources(ids, vocab, 0)?;
    if starts.len() != ids.len() + 1 {
        bail!("{WHAT}: {} buckets have {} starts, not one more", ids.len(), starts.len());
    }
    let mut buckets = Vec::with_capacity(ids.len());
    for (id, range) in ids.iter().zip(starts.windows(2)) {
        let Some(of_token) = rows.get(range[0] as usize..range[1] as usize) else {
            bail!("{WHAT}: a bucket of the rows {range:?} of {}", rows.len())
        };
        if let Some(row) = of_token.iter().find(|row| **row as usize >= num_rows) {
            bail!("{WHAT}: row {row} is not below {num_rows}");
        }
        buckets.push((id, of_token));
    }
    for (id, of_token) in buckets {
        for row in of_token.iter().map(|row| *row as usize) {
            let start = *id as usize * hidden;
            rows::add_to(&mut dtable[start..start + hidden], &dy[row * hidden..(row + 1) * hidden]);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{visual_indices, visual_source};
    use super::*;
    use crate::gather_rows;
    use crate::gradcheck::{assert_same, random};
    use candle_core::{Device, Tensor};

    /// A table and visual features one below the other are one matrix, which candle gathers rows of.
    #[test]
    fn equals_candle() {
        let (table, visual, dy) = (random(&[5, 3], 1), random(&[4, 3], 2), random(&[7, 3], 3));
        let sources = [4, visual_source(2), 0, 4, visual_source(0), 1, 4];
        let indices: Vec<u32> = vec![4, 7, 0, 4, 5, 1, 4];
        let all = Tensor::cat(&[table.as_tensor(), visual.as_tensor()], 0).unwrap();
        let expected = all.index_select(&Tensor::new(indices, &Device::Cpu).unwrap(), 0).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let tensor = |values: Vec<f64>| {
            let rows = values.len() / 3;
            Tensor::from_vec(values, (rows, 3), &Device::Cpu).unwrap()
        };
        let mut found = vec![f64::NAN; 21];
        forward(&values(&table), &values(&visual), 3, &sources, &mut found).unwrap();
        assert_same(&tensor(found), &expected, 0.0);
        let gradients = (expected * dy.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let mut dtable = vec![0.0; 15];
        let buckets = Buckets::new(&sources, None);
        backward(&values(&dy), 3, (&buckets).into(), &mut dtable).unwrap();
        assert_same(&tensor(dtable), gradients.get(&table).unwrap(), 1e-15);
        let indices = visual_indices(&sources, 4).unwrap();
        let mut dvisual = vec![f64::NAN; 12];
        gather_rows::reference(&values(&dy), 3, &indices, &mut dvisual).unwrap();
        assert_same(&tensor(dvisual), gradients.get(&visual).unwrap(), 0.0);
    }

    #[test]
    fn padding_learns_nothing() {
        let mut dtable = [1.0f32, 2.0, 3.0];
        let buckets = Buckets::new(&[0, 2, 0, -1], Some(0));
        backward(&[10.0, 20.0, 30.0, 40.0], 1, (&buckets).into(), &mut dtable).unwrap();
        assert_eq!(dtable, [1.0, 2.0, 23.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = forward(&[0f32; 4], &[], 2, &[-1], &mut [0.0; 2]).unwrap_err().to_string();
        assert!(refusal.contains("visual row 0"), "{refusal}");
        let refusal = forward(&[0f32; 5], &[], 2, &[0], &mut [0.0; 2]).unwrap_err().to_string();
        assert!(refusal.contains("the table has 5 elements"), "{refusal}");
        let refusal = forward(&[0f32; 4], &[], 2, &[0], &mut [0.0; 3]).unwrap_err().to_string();
        assert!(refusal.contains("the output has 3 elements, not 2 for 1 rows"), "{refusal}");
        let refusal = |len: usize, sources: &[i32]| {
            let buckets = Buckets::new(sources, None);
            backward(&vec![0f32; len], 2, (&buckets).into(), &mut [0.0; 4]).unwrap_err().to_string()
        };
        assert!(refusal(3, &[0]).contains("dy has 3 elements"));
        assert!(refusal(2, &[2]).contains("token 2"));
        assert!(refusal(2, &[0, 0]).contains("row 1 is not below 1"));
        let bucket = BucketRows { ids: &[0], starts: &[0, 2], rows: &[0] };
        let refusal = backward(&[0f32; 2], 2, bucket, &mut [0.0; 4]).unwrap_err().to_string();
        assert!(refusal.contains("the rows [0, 2] of 1"), "{refusal}");
    }
}
