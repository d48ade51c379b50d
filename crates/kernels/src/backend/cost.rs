//! What operations cost: what a device is told before their kernels start.

use crate::adamw;
use crate::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape};
use crate::column_sum::launch::BiasGradient;
use crate::cross_entropy::launch::Arguments;
use crate::device::{Cost, Device, Slice, SliceMut};
use crate::embedding::launch::DeviceBuckets;
use crate::gemm::Gemm;
use crate::matmul::Output;
use crate::norm;
use crate::rope::launch::{Angles, Qkv};
use half::bf16;

/// Bytes of elements that are read.
pub(super) fn read<D, T>(slice: &Slice<'_, D, T>) -> usize {
    slice.len() * size_of::<T>()
}

/// Bytes of elements that are written.
pub(super) fn written<D, T>(slice: &SliceMut<'_, D, T>) -> usize {
    slice.len() * size_of::<T>()
}

/// Bytes of a gradient that is overwritten or added to.
fn gradient<D, T>(slice: &SliceMut<'_, D, T>, output: Output) -> usize {
    let passes = if output == Output::Accumulate { 2 } else { 1 };
    passes * written(slice)
}

/// Operations of one product of queries and keys, of the pairs that see each other.
fn attention_product(shape: &Shape) -> f64 {
    let pairs = match &shape.sequences {
        Sequences::Batch { batch, q_len, kv_len } => *batch as f64 * *q_len as f64 * *kv_len as f64,
        Sequences::Packed(packed) => {
            let lens = packed.boundaries().windows(2).map(|pair| f64::from(pair[1] - pair[0]));
            lens.map(|len| len * len).sum()
        }
    };
    // Half of them, as is common; the diagonal is not counted apart.
    let seen = if shape.mask == Mask::Causal { 0.5 } else { 1.0 };
    2.0 * seen * pairs * (shape.num_heads * shape.head_dim) as f64
}

/// Of an operation that only passes over memory.
pub(super) fn bytes(bytes: usize) -> Cost {
    Cost { operations: 0.0, bytes: bytes as f64 }
}

/// Of a product whose results have so many bytes each.
pub(super) fn gemm(gemm: &Gemm, element: usize) -> Cost {
    let Gemm { m, n, k, .. } = *gemm;
    let passes = if gemm.output == Output::Accumulate { 2.0 } else { 1.0 };
    let [m, n, k] = [m, n, k].map(|size| size as f64);
    let bytes = (m * k + k * n) * size_of::<bf16>() as f64 + passes * m * n * element as f64;
    Cost { operations: 2.0 * m * n * k, bytes }
}

pub(super) fn attention_forward<D: Device>(shape: &Shape, args: &FusedForward<'_, D>) -> Cost {
    let bytes = read(&args.qkv) + written(&args.out) + written(&args.lse);
    Cost { operations: 2.0 * attention_product(shape), bytes: bytes as f64 }
}

/// Seven products, where five are needed: scores and their gradient are made for keys and values and again for queries, so
/// that no sum depends on the order of blocks (docs/decisions/013).
pub(super) fn attention_backward<D: Device>(shape: &Shape, args: &FusedBackward<'_, D>) -> Cost {
    let inputs = read(&args.qkv) + read(&args.out) + read(&args.lse) + read(&args.dout);
    let bytes = inputs + written(&args.dqkv) + 2 * written(&args.workspace);
    Cost { operations: 7.0 * attention_product(shape), bytes: bytes as f64 }
}

pub(super) fn norm_forward<D: Device>(args: &norm::Forward<'_, D>) -> Cost {
    let residual = args.residual.as_ref().map_or(0, |added| read(&added.residual) + written(&added.sum));
    let centre = args.centre.as_ref().map_or(0, |centre| written(&centre.mean));
    bytes(read(&args.x) + residual + centre + written(&args.y) + written(&args.inverse))
}

pub(super) fn norm_backward<D: Device>(args: &norm::Backward<'_, D>) -> Cost {
    let centre = args.centre.as_ref();
    let centre = centre.map_or(0, |centre| read(&centre.mean) + written(&centre.dbias_partials));
    let past = args.dresidual.as_ref().map_or(0, read);
    let inputs = read(&args.s) + read(&args.dy) + read(&args.inverse) + past;
    bytes(inputs + written(&args.ds) + written(&args.dweight_partials) + centre)
}

/// In place, of queries and keys alone where there is no bias; angles are read for every row.
pub(super) fn rope<D: Device>(
    sizes: Qkv,
    qkv: &SliceMut<'_, D, bf16>,
    has_bias: bool,
    angles: &Angles<'_, D>,
) -> Cost {
    let rotated = sizes.rows * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim * size_of::<bf16>();
    let of_angles = sizes.rows * sizes.head_dim * size_of::<f32>() + read(&angles.positions);
    bytes(2 * if has_bias { written(qkv) } else { rotated } + of_angles)
}

pub(super) fn embedding_backward<D: Device>(hidden: usize, buckets: &DeviceBuckets<'_, D>) -> Cost {
    let rows = buckets.rows.len() * hidden * size_of::<bf16>();
    bytes(rows + 2 * buckets.ids.len() * hidden * size_of::<f32>())
}

/// No row of `from` is read twice.
pub(super) fn gather_rows<D: Device>(
    from: &Slice<'_, D, bf16>,
    indices: &Slice<'_, D, i32>,
    to: &SliceMut<'_, D, bf16>,
) -> Cost {
    bytes(read(indices) + read(from).min(written(to)) + written(to))
}

/// The kernel reads logits twice, and writes their gradient.
pub(super) fn cross_entropy<D: Device>(args: &Arguments<'_, D>) -> Cost {
    bytes(3 * written(&args.logits) + read(&args.labels) + written(&args.stats))
}

pub(super) fn adamw_update<D: Device>(buffers: &adamw::launch::Buffers<'_, D>) -> Cost {
    let adamw::launch::Buffers { w, grad, m, v, copy, ema } = buffers;
    let both = [w, grad, m, v].map(|buffer| 2 * written(buffer)).iter().sum::<usize>();
    let copy = copy.as_ref().map_or(0, written);
    let ema = ema.as_ref().map_or(0, |(ema, _)| 2 * written(ema));
    bytes(both + copy + ema)
}

/// Partial sums, written and read, and what they are added to.
pub(super) fn sums<D: Device, T>(
    partials: &SliceMut<'_, D, f32>,
    to: &SliceMut<'_, D, T>,
    output: Output,
) -> usize {
    2 * written(partials) + gradient(to, output)
}

pub(super) fn bias_gradient<D: Device>(bias: &BiasGradient<'_, D, f32>) -> usize {
    sums(&bias.partials, &bias.dbias, bias.output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CuSeqlens;

    #[test]
    fn attention_counts_what_is_seen() {
        let packed = Sequences::Packed(CuSeqlens::new(vec![0, 10, 10, 30]).unwrap());
        let shape = Shape::new((4, 2), 8, Mask::Causal, packed).unwrap();
        assert_eq!(attention_product(&shape), 500.0 * 32.0);
        let batch = Sequences::Batch { batch: 3, q_len: 10, kv_len: 20 };
        let shape = Shape::new((4, 2), 8, Mask::Full, batch).unwrap();
        assert_eq!(attention_product(&shape), 2.0 * 600.0 * 32.0);
    }
}
