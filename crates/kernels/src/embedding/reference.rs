//! The kernels of `embedding.cu` on a CPU, in f32 and f64.

use super::{check_sources, visual_row};
use crate::element::Element;
use crate::gather_rows::launch::num_rows;
use crate::rows;
use candle_core::{Result, bail};

/// The embeddings `(sources.len(), hidden)` of tokens, rows of `table`, `(vocab, hidden)`, and of visual features, rows of
/// `visual`, `(_, hidden)`.
///
/// # Errors
/// If a source is not there, or a matrix has no rows of `hidden`.
pub fn forward<T: Element>(table: &[T], visual: &[T], hidden: usize, sources: &[i32]) -> Result<Vec<T>> {
    let count = |name, matrix: &[T]| num_rows("embedding", name, matrix.len(), hidden);
    check_sources(sources, count("the table", table)?, count("the visual matrix", visual)?)?;
    let mut to = Vec::with_capacity(sources.len() * hidden);
    for source in sources {
        let (from, row) = match visual_row(*source) {
            Some(row) => (visual, row),
            None => (table, *source as usize),
        };
        to.extend_from_slice(&from[row * hidden..(row + 1) * hidden]);
    }
    Ok(to)
}

/// Adds the rows of `dy`, `(sources.len(), hidden)`, to the rows of `dtable`, `(vocab, hidden)`, of their tokens, one after the
/// other. Those of visual features and of `padding` go nowhere.
///
/// # Errors
/// If a token is not there, or a matrix does not have its rows of `hidden`.
pub fn backward<T: Element>(
    dy: &[T],
    hidden: usize,
    sources: &[i32],
    padding: Option<i32>,
    dtable: &mut [T],
) -> Result<()> {
    let vocab = num_rows("embedding backward", "the gradient of the table", dtable.len(), hidden)?;
    check_sources(sources, vocab, usize::MAX)?;
    if Some(dy.len()) != sources.len().checked_mul(hidden) {
        bail!("embedding backward: dy has {} elements, not {hidden} for {} rows", dy.len(), sources.len());
    }
    for (dy, source) in dy.chunks_exact(hidden.max(1)).zip(sources) {
        if visual_row(*source).is_none() && Some(*source) != padding {
            let start = *source as usize * hidden;
            rows::add_to(&mut dtable[start..start + hidden], dy);
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
        let found = forward(&values(&table), &values(&visual), 3, &sources).unwrap();
        assert_same(&tensor(found), &expected, 0.0);
        let gradients = (expected * dy.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let mut dtable = vec![0.0; 15];
        backward(&values(&dy), 3, &sources, None, &mut dtable).unwrap();
        assert_same(&tensor(dtable), gradients.get(&table).unwrap(), 1e-15);
        let indices = visual_indices(&sources, 4).unwrap();
        let dvisual = gather_rows::reference(&values(&dy), 3, &indices).unwrap();
        assert_same(&tensor(dvisual), gradients.get(&visual).unwrap(), 0.0);
    }

    #[test]
    fn padding_learns_nothing() {
        let mut dtable = [1.0f32, 2.0, 3.0];
        backward(&[10.0, 20.0, 30.0, 40.0], 1, &[0, 2, 0, -1], Some(0), &mut dtable).unwrap();
        assert_eq!(dtable, [1.0, 2.0, 23.0]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = forward(&[0f32; 4], &[], 2, &[-1]).unwrap_err().to_string();
        assert!(refusal.contains("visual row 0"), "{refusal}");
        let refusal = forward(&[0f32; 5], &[], 2, &[0]).unwrap_err().to_string();
        assert!(refusal.contains("the table has 5 elements"), "{refusal}");
        let refusal = backward(&[0f32; 3], 2, &[0], None, &mut [0.0; 4]).unwrap_err().to_string();
        assert!(refusal.contains("dy has 3 elements"), "{refusal}");
        let refusal = backward(&[0f32; 2], 2, &[2], None, &mut [0.0; 4]).unwrap_err().to_string();
        assert!(refusal.contains("token 2"), "{refusal}");
    }
}
