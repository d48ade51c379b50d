//! The kernels of `rope.cu` on a CPU, in f32 and f64.

use super::check_positions;
use super::launch::{self, Qkv};
use crate::element::Element;
use candle_core::{Result, bail};

/// Where the rows are in their sequences, and what angles that means.
#[derive(Debug, Clone, Copy)]
pub struct Angles<'a, T> {
    /// `(rows)`: what [`positions`](super::positions) makes.
    pub positions: &'a [i32],
    /// `(num_positions, head_dim / 2)`, of [`RopeTables::cos_sin`](super::RopeTables::cos_sin).
    pub cos: &'a [T],
    /// As `cos`.
    pub sin: &'a [T],
}

/// Adds `bias` to every row of `qkv`, `(rows, (num_heads + 2 * num_kv_heads) * head_dim)`, and rotates queries and keys.
///
/// # Errors
/// If a length is not that of the sizes, or a position is beyond the tables.
pub fn forward<T: Element>(
    sizes: Qkv,
    qkv: &mut [T],
    bias: Option<&[T]>,
    angles: Angles<'_, T>,
) -> Result<()> {
    let cols = check(sizes, qkv.len(), angles)?;
    if let Some(bias) = bias {
        if bias.len() != cols {
            bail!("rope: the bias has {} elements: not those of a row of {sizes:?}", bias.len());
        }
        for row in qkv.chunks_exact_mut(cols.max(1)) {
            row.iter_mut().zip(bias).for_each(|(x, bias)| *x += *bias);
        }
    }
    rotate(sizes, qkv, angles, T::one());
    Ok(())
}

/// Overwrites `dqkv`, the gradient of the result of [`forward`], by that of its input, whose column sums are that of the bias.
///
/// # Errors
/// As [`forward`].
pub fn backward<T: Element>(sizes: Qkv, dqkv: &mut [T], angles: Angles<'_, T>) -> Result<()> {
    check(sizes, dqkv.len(), angles)?;
    rotate(sizes, dqkv, angles, -T::one());
    Ok(())
}

fn check<T>(sizes: Qkv, len: usize, angles: Angles<'_, T>) -> Result<usize> {
    let Angles { positions, cos, sin } = angles;
    let tables = [cos.len(), sin.len()];
    let (matrix, num_positions) = launch::check("rope", sizes, len, positions.len(), tables)?;
    if len > 0 {
        check_positions(positions, num_positions)?;
    }
    Ok(matrix.cols)
}

fn rotate<T: Element>(sizes: Qkv, qkv: &mut [T], angles: Angles<'_, T>, direction: T) {
    let Angles { positions, cos, sin } = angles;
    let half = sizes.head_dim / 2;
    let cols = qkv.len() / sizes.rows.max(1);
    for (row, position) in qkv.chunks_exact_mut(cols.max(1)).zip(positions) {
        let start = *position as usize * half;
        let rotated = (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim;
        for head in row[..rotated].chunks_exact_mut((2 * half).max(1)) {
            let (left, right) = head.split_at_mut(half);
            for pair in 0..half {
                let (cos, sin) = (cos[start + pair], direction * sin[start + pair]);
                let (x, y) = (left[pair], right[pair]);
                left[pair] = x * cos - y * sin;
                right[pair] = y * cos + x * sin;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, random};
    use crate::{CuSeqlens, RopeTables, column_sum, rope};
    use candle_core::{Device, Tensor, Var};

    const SIZES: Qkv = Qkv { rows: 7, num_heads: 3, num_kv_heads: 1, head_dim: 6 };
    const COLS: usize = 5 * 6;

    /// Three packed sequences, by the operation of candle programs, each from position 0.
    fn by_op(qkv: &Tensor, tables: &RopeTables, lengths: &[usize]) -> Tensor {
        let mut start = 0;
        let mut sequences = Vec::new();
        for len in lengths {
            let rows = qkv.narrow(0, start, *len).unwrap();
            let heads = rows.reshape((1, *len, 5, 6)).unwrap().transpose(1, 2).unwrap();
            let rotated = rope(&heads.narrow(1, 0, 4).unwrap(), tables, 0).unwrap();
            let all = Tensor::cat(&[rotated, heads.narrow(1, 4, 1).unwrap()], 1).unwrap();
            sequences.push(all.transpose(1, 2).unwrap().reshape((*len, COLS)).unwrap());
            start += len;
        }
        Tensor::cat(&sequences, 0).unwrap()
    }

    #[test]
    fn equals_the_operation_on_separate_sequences() {
        let tables = RopeTables::new(6, 4, 10_000.0);
        let positions = super::super::positions(&CuSeqlens::new(vec![0, 4, 4, 6, 7]).unwrap());
        assert_eq!(positions, [0, 1, 2, 3, 0, 1, 0]);
        let (qkv, bias, dy) = (random(&[7, COLS], 1), random(&[COLS], 2), random(&[7, COLS], 3));
        let values = |tensor: &Var| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let tensor = |values: Vec<f64>, dims: &[usize]| Tensor::from_vec(values, dims, &Device::Cpu).unwrap();
        let mut found = values(&qkv);
        let (cos, sin) = tables.cos_sin();
        let angles = Angles { positions: &positions, cos: &cos, sin: &sin };
        forward(SIZES, &mut found, Some(&values(&bias)), angles).unwrap();
        let expected = by_op(&qkv.broadcast_add(&bias).unwrap(), &tables, &[4, 2, 1]);
        assert_same(&tensor(found, &[7, COLS]), &expected, 1e-12);
        let gradients = (expected * dy.as_tensor()).unwrap().sum_all().unwrap().backward().unwrap();
        let mut dqkv = values(&dy);
        backward(SIZES, &mut dqkv, angles).unwrap();
        let dbias = column_sum::reference(&dqkv, COLS);
        assert_same(&tensor(dqkv, &[7, COLS]), gradients.get(&qkv).unwrap(), 1e-12);
        assert_same(&tensor(dbias, &[COLS]), gradients.get(&bias).unwrap(), 1e-12);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let tables = RopeTables::new(6, 4, 10_000.0);
        let refusal = |len: usize, positions: &[i32], bias: usize| {
            let mut qkv = vec![0f32; len];
            let bias = vec![0.0; bias];
            let (cos, sin) = tables.cos_sin();
            let angles = Angles { positions, cos: &cos, sin: &sin };
            forward(SIZES, &mut qkv, Some(&bias), angles).unwrap_err().to_string()
        };
        assert!(refusal(7 * COLS - 1, &[0; 7], COLS).contains("the matrix has 209 elements"));
        assert!(refusal(7 * COLS, &[0; 6], COLS).contains("there are 6 positions"));
        assert!(refusal(7 * COLS, &[0; 7], COLS + 1).contains("the bias has 31 elements"));
        assert!(
            refusal(7 * COLS, &[0, 0, 0, 4, 0, 0, 0], COLS).contains("position 4 of row 3 is not below 4")
        );
        assert!(refusal(7 * COLS, &[0, -1, 0, 0, 0, 0, 0], COLS).contains("position -1 of row 1"));
    }
}
