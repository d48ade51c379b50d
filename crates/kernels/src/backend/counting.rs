//! What a sequence of operations costs, before any of it is done.

use super::{Backend, Full, FullMut, Half, HalfMut};
use crate::Rows;
use crate::adamw::{self, AdamW, DecayRanges};
use crate::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape};
use crate::avg_pool::Pooling;
use crate::bias_gelu::Gelu;
use crate::column_sum::launch::BiasGradient;
use crate::cross_entropy::Loss;
use crate::cross_entropy::launch::{Arguments, Totals};
use crate::device::{Memory, Number, Slice, SliceMut};
use crate::embedding::launch::{DeviceBuckets, Embeddings};
use crate::gemm::Gemm;
use crate::matmul::Output;
use crate::norm::{self, Norm};
use crate::patchify::Patches;
use crate::rope::launch::{Angles, Qkv};
use candle_core::{Result, bail};
use half::bf16;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// A backend that computes nothing: it adds up the memory that is taken of it, and what each operation would have to compute,
/// read and write on a GPU. So a run's memory and the least time of its step are known before it begins.
#[derive(Debug, Default)]
pub struct Counting {
    memory: Cell<usize>,
    counts: RefCell<BTreeMap<&'static str, Count>>,
}

/// What all calls of one operation cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Count {
    /// How often it was called.
    pub calls: usize,
    /// Products and sums on tensor cores, two for each multiply-add.
    pub operations: f64,
    /// Bytes that have to be read and written, each once unless the kernel does so more often. What products and attention read
    /// again from caches is not in it.
    pub bytes: f64,
}

/// So many elements that are not there.
#[derive(Debug)]
pub struct CountedBuffer<T> {
    len: usize,
    element: PhantomData<T>,
}

impl Counting {
    /// Bytes of all memory that was taken.
    pub fn memory_bytes(&self) -> usize {
        self.memory.get()
    }

    /// What was asked for since the last call of this, by operation.
    pub fn take_counts(&self) -> BTreeMap<&'static str, Count> {
        self.counts.take()
    }

    fn count(&self, operation: &'static str, operations: f64, bytes: usize) -> Result<()> {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(operation).or_default();
        count.calls += 1;
        count.operations += operations;
        count.bytes += bytes as f64;
        Ok(())
    }

    fn product(&self, gemm: &Gemm, output: usize) -> Result<()> {
        let Gemm { m, n, k, .. } = *gemm;
        let passes = if gemm.output == Output::Accumulate { 2 } else { 1 };
        let bytes = (m * k + k * n) * size_of::<bf16>() + passes * m * n * output;
        self.count("gemm", 2.0 * m as f64 * n as f64 * k as f64, bytes)
    }
}

impl Memory for Counting {
    type Half = bf16;
    type Full = f32;
    type Buffer<T: Number> = CountedBuffer<T>;

    fn poisoned<T: Number>(&self, len: usize) -> Result<CountedBuffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(self.memory.get()));
        let Some(bytes) = bytes else { bail!("{len} elements are more than can be counted") };
        self.memory.set(bytes);
        Ok(CountedBuffer { len, element: PhantomData })
    }

    fn copy_from_host<T: Number>(&self, from: &[T], to: SliceMut<'_, Self, T>) -> Result<()> {
        if from.len() != to.len() {
            bail!("{} elements cannot be copied to {}", from.len(), to.len());
        }
        self.count("copy_from_host", 0.0, size_of_val(from))
    }

    /// # Errors
    /// Always: nothing is there.
    fn download<T: Number>(&self, _: &CountedBuffer<T>) -> Result<Vec<T>> {
        bail!("nothing was computed, only counted")
    }

    fn slice<'a, T: Number>(&self, buffer: &'a CountedBuffer<T>) -> Slice<'a, Self, T> {
        // SAFETY: no operation of this backend, and nothing else, goes to an element of it.
        unsafe { Slice::from_raw(0, buffer.len) }
    }

    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut CountedBuffer<T>) -> SliceMut<'a, Self, T> {
        // SAFETY: as for `slice`.
        unsafe { SliceMut::from_raw(0, buffer.len) }
    }
}

/// Bytes of elements that are read.
fn read<T>(slice: &Slice<'_, Counting, T>) -> usize {
    slice.len() * size_of::<T>()
}

/// Bytes of elements that are written.
fn written<T>(slice: &SliceMut<'_, Counting, T>) -> usize {
    slice.len() * size_of::<T>()
}

/// Bytes of a gradient that is overwritten or added to.
fn gradient<T>(slice: &SliceMut<'_, Counting, T>, output: Output) -> usize {
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

impl Backend for Counting {
    fn gemm(
        &self,
        gemm: &Gemm,
        _: (Half<'_, Self>, Half<'_, Self>),
        _: Option<Half<'_, Self>>,
        _: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.product(gemm, size_of::<bf16>())
    }

    fn gemm_full(
        &self,
        gemm: &Gemm,
        _: (Half<'_, Self>, Half<'_, Self>),
        _: FullMut<'_, Self>,
    ) -> Result<()> {
        self.product(gemm, size_of::<f32>())
    }

    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()> {
        let bytes = read(&args.qkv) + written(&args.out) + written(&args.lse);
        self.count("attention_forward", 2.0 * attention_product(shape), bytes)
    }

    /// Seven products, where five are needed: scores and their gradient are made for keys and values and again for queries, so
    /// that no sum depends on the order of blocks (docs/decisions/013).
    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()> {
        let inputs = read(&args.qkv) + read(&args.out) + read(&args.lse) + read(&args.dout);
        let bytes = inputs + written(&args.dqkv) + 2 * written(&args.workspace);
        self.count("attention_backward", 7.0 * attention_product(shape), bytes)
    }

    fn norm_forward(&self, _: Norm, args: norm::Forward<'_, Self>) -> Result<()> {
        let residual = args.residual.map_or(0, |added| read(&added.residual) + written(&added.sum));
        let centre = args.centre.map_or(0, |centre| written(&centre.mean));
        let bytes = read(&args.x) + residual + centre + written(&args.y) + written(&args.inverse);
        self.count("norm_forward", 0.0, bytes)
    }

    fn norm_backward(&self, _: Norm, args: norm::Backward<'_, Self>) -> Result<()> {
        let centre = args.centre.map_or(0, |centre| read(&centre.mean) + written(&centre.dbias_partials));
        let past = args.dresidual.map_or(0, |past| read(&past));
        let inputs = read(&args.s) + read(&args.dy) + read(&args.inverse) + past;
        let bytes = inputs + written(&args.ds) + written(&args.dweight_partials) + centre;
        self.count("norm_backward", 0.0, bytes)
    }

    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        _: Angles<'_, Self>,
    ) -> Result<()> {
        self.count("rope_forward", 0.0, rotated(sizes, &qkv, bias.is_some()))
    }

    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        _: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, f32>>,
    ) -> Result<()> {
        let of_bias = bias.as_ref().map_or(0, bias_gradient);
        self.count("rope_backward", 0.0, rotated(sizes, &dqkv, bias.is_some()) + of_bias)
    }

    fn swiglu_forward(&self, _: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()> {
        self.count("swiglu_forward", 0.0, read(&gate_up) + written(&h))
    }

    fn swiglu_backward(
        &self,
        _: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.count("swiglu_backward", 0.0, read(&gate_up) + read(&dh) + written(&dgate_up))
    }

    fn bias_gelu_forward(
        &self,
        _: Rows,
        _: Gelu,
        x: Half<'_, Self>,
        _: Half<'_, Self>,
        y: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.count("bias_gelu_forward", 0.0, read(&x) + written(&y))
    }

    fn bias_gelu_backward(
        &self,
        _: Rows,
        _: Gelu,
        (x, _, dy): (Half<'_, Self>, Half<'_, Self>, Half<'_, Self>),
        dx: HalfMut<'_, Self>,
        bias: BiasGradient<'_, Self, f32>,
    ) -> Result<()> {
        self.count("bias_gelu_backward", 0.0, read(&x) + read(&dy) + written(&dx) + bias_gradient(&bias))
    }

    fn avg_pool_forward(&self, _: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()> {
        self.count("avg_pool_forward", 0.0, read(&x) + written(&y))
    }

    fn avg_pool_backward(&self, _: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()> {
        self.count("avg_pool_backward", 0.0, read(&dy) + written(&dx))
    }

    fn embedding_forward(
        &self,
        _: usize,
        _: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.count("embedding_forward", 0.0, read(&sources) + 2 * written(&to))
    }

    fn embedding_backward(
        &self,
        hidden: usize,
        _: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        _: FullMut<'_, Self>,
    ) -> Result<()> {
        let rows = buckets.rows.len() * hidden * size_of::<bf16>();
        let table = 2 * buckets.ids.len() * hidden * size_of::<f32>();
        self.count("embedding_backward", 0.0, rows + table)
    }

    fn gather_rows(
        &self,
        _: usize,
        _: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.count("gather_rows", 0.0, read(&indices) + 2 * written(&to))
    }

    fn patchify(&self, _: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()> {
        self.count("patchify", 0.0, read(&pixels) + written(&rows))
    }

    /// The kernel reads logits twice, and writes their gradient.
    fn cross_entropy(&self, _: Rows, _: Loss, args: Arguments<'_, Self>) -> Result<()> {
        let bytes = 3 * written(&args.logits) + read(&args.labels) + written(&args.stats);
        self.count("cross_entropy", 0.0, bytes)
    }

    fn cross_entropy_totals(&self, stats: Full<'_, Self>, _: Totals<'_, Self>) -> Result<()> {
        self.count("cross_entropy_totals", 0.0, read(&stats))
    }

    fn gradient_norm(
        &self,
        _: &AdamW,
        grad: Full<'_, Self>,
        _: Option<Full<'_, Self>>,
        partials: FullMut<'_, Self>,
        _: &mut adamw::launch::Control<'_, Self>,
    ) -> Result<()> {
        self.count("gradient_norm", 0.0, read(&grad) + 2 * written(&partials))
    }

    fn adamw_update(
        &self,
        _: &AdamW,
        _: f64,
        buffers: adamw::launch::Buffers<'_, Self>,
        _: &DecayRanges,
        _: adamw::launch::Decay<'_, Self>,
        _: &adamw::launch::Control<'_, Self>,
    ) -> Result<()> {
        let adamw::launch::Buffers { w, grad, m, v, copy, ema } = buffers;
        let both = [&w, &grad, &m, &v].map(|buffer| 2 * written(buffer)).iter().sum::<usize>();
        let copy = copy.map_or(0, |copy| written(&copy));
        let ema = ema.map_or(0, |(ema, _)| 2 * written(&ema));
        self.count("adamw_update", 0.0, both + copy + ema)
    }

    fn column_sum(
        &self,
        _: Rows,
        x: Half<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        self.count("column_sum", 0.0, read(&x) + 2 * written(&partials) + gradient(&to, output))
    }

    fn column_sum_full(
        &self,
        _: Rows,
        x: Full<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        self.count("column_sum", 0.0, read(&x) + 2 * written(&partials) + gradient(&to, output))
    }

    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.count("add", 0.0, read(&left) + read(&right) + written(&to))
    }

    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.count("add", 0.0, read(&right) + 2 * written(&to))
    }

    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.count("cast", 0.0, read(&from) + written(&to))
    }

    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()> {
        self.count("cast", 0.0, read(&from) + written(&to))
    }

    fn fill(&self, to: FullMut<'_, Self>, _: f32) -> Result<()> {
        self.count("fill", 0.0, written(&to))
    }
}

/// Bytes of a rotation in place, of queries and keys alone where there is no bias.
fn rotated(sizes: Qkv, qkv: &HalfMut<'_, Counting>, has_bias: bool) -> usize {
    let rotated = sizes.rows * (sizes.num_heads + sizes.num_kv_heads) * sizes.head_dim * size_of::<bf16>();
    2 * if has_bias { written(qkv) } else { rotated }
}

/// Bytes of partial sums and of what they are added to.
fn bias_gradient(bias: &BiasGradient<'_, Counting, f32>) -> usize {
    2 * written(&bias.partials) + gradient(&bias.dbias, bias.output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CuSeqlens;

    #[test]
    fn products_and_memory_are_counted() {
        let counting = Counting::default();
        let [x, w] = [12, 20].map(|len| counting.poisoned::<bf16>(len).unwrap());
        let mut y = counting.poisoned::<f32>(15).unwrap();
        assert_eq!(counting.memory_bytes(), 2 * 32 + 4 * 15);
        let operands = (counting.slice(&x), counting.slice(&w));
        let gemm = Gemm::new(3, 5, 4).accumulating();
        counting.gemm_full(&gemm, operands, counting.slice_mut(&mut y)).unwrap();
        let counts = counting.take_counts();
        assert_eq!(
            counts["gemm"],
            Count { calls: 1, operations: 120.0, bytes: f64::from(2 * 32 + 2 * 4 * 15) }
        );
        assert!(counting.take_counts().is_empty());
        let error = counting.download(&y).unwrap_err().to_string();
        assert!(error.contains("only counted"), "{error}");
    }

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
