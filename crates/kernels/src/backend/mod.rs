//! Every operation of a training step, over memory that was taken before it.
//!
//! A [`Backend`] is where a training engine runs, whose code is the same on each:
//!
//! - a stream of a GPU, [`Cuda`](crate::device::Cuda), and any other [`Device`]
//! - [`CpuRef`], in f32 or f64: what the kernels are held against
//! - [`Counting`], a device that computes nothing and adds up what it would cost
//!
//! Each operation reads and writes slices of buffers that its caller owns: none takes memory of the device, waits for it, or
//! depends on the time. What it needs besides, partial sums and workspaces, is given to it.
//!
//! Operations are done in the order they are asked for. On a GPU they may still run when the call returns; what a download
//! returns is complete.

mod cost;
mod counting;
mod cpu;

use cost::{read, written};
pub use counting::{Count, CountedBuffer, Counting};
pub use cpu::CpuRef;

use crate::Rows;
use crate::adamw::{AdamW, DecayRanges, launch as adamw};
use crate::attention::{self, FusedBackward, FusedForward, Shape};
use crate::avg_pool::{Pooling, launch as avg_pool};
use crate::bias_gelu::{Gelu, launch as bias_gelu};
use crate::column_sum::launch::{self as column_sum, BiasGradient};
use crate::cross_entropy::{Loss, launch as cross_entropy};
use crate::device::{Cost, Device, Memory, Slice, SliceMut};
use crate::elementwise;
use crate::embedding::launch::{self as embedding, DeviceBuckets, Embeddings};
use crate::gather_rows::launch as gather_rows;
use crate::gemm::{Gemm, GemmOutput};
use crate::matmul::Output;
use crate::norm::{self, Norm};
use crate::patchify::{self, Patches};
use crate::rope::launch::{self as rope, Angles, Qkv};
use crate::swiglu::launch as swiglu;
use candle_core::Result;
use half::bf16;

/// Elements to read that are half precision where there is such.
pub type Half<'a, B> = Slice<'a, B, <B as Memory>::Half>;
/// The same to write.
pub type HalfMut<'a, B> = SliceMut<'a, B, <B as Memory>::Half>;
/// Elements to read in full precision.
pub type Full<'a, B> = Slice<'a, B, <B as Memory>::Full>;
/// The same to write.
pub type FullMut<'a, B> = SliceMut<'a, B, <B as Memory>::Full>;

/// Products of matrices on a device, by the library that it has for them.
pub trait Products: Device {
    /// As [`gemm()`](crate::gemm::gemm()).
    ///
    /// # Errors
    /// If the slices do not fit the sizes, or the device fails.
    fn product<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        operands: (Slice<'_, Self, bf16>, Slice<'_, Self, bf16>),
        bias: Option<Slice<'_, Self, O>>,
        d: SliceMut<'_, Self, O>,
    ) -> Result<()>;
}

impl Products for crate::device::Cuda {
    fn product<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        (a, b): (Slice<'_, Self, bf16>, Slice<'_, Self, bf16>),
        bias: Option<Slice<'_, Self, O>>,
        d: SliceMut<'_, Self, O>,
    ) -> Result<()> {
        crate::gemm::gemm(self, gemm, a, b, bias, d)
    }
}

/// The operations. Sizes and layouts are those of the functions they name.
///
/// # Errors
/// Every call fails as the function it names, where a length does not fit before anything is written. [`CpuRef`] refuses beyond that
/// what it sees on a CPU alone, as a token that is not in the table; it has none of the limits of kernels (channels that are
/// multiples of 8, addresses of 16 bytes).
pub trait Backend: Memory {
    /// A product to half precision: see [`Gemm`].
    fn gemm(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        bias: Option<Half<'_, Self>>,
        d: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// A product to full precision, as gradients of weights are: see [`Gemm`]. Without a bias.
    fn gemm_full(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        d: FullMut<'_, Self>,
    ) -> Result<()>;

    /// Attention on a fused projection: see [`attention::forward_fused`].
    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()>;

    /// Its gradients: see [`attention::backward_fused`].
    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()>;

    /// RMSNorm or LayerNorm, after the addition of a residual: see [`norm::forward`].
    fn norm_forward(&self, norm: Norm, args: norm::Forward<'_, Self>) -> Result<()>;

    /// Its gradients: see [`norm::backward`]. [`column_sum_full`](Self::column_sum_full) makes those of the gains of the partial sums.
    fn norm_backward(&self, norm: Norm, args: norm::Backward<'_, Self>) -> Result<()>;

    /// Bias and rotary embedding of a fused projection, in place: see [`rope::forward`].
    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        angles: Angles<'_, Self>,
    ) -> Result<()>;

    /// Its gradients, in place: see [`rope::backward`].
    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        angles: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, Self::Full>>,
    ) -> Result<()>;

    /// SwiGLU of a fused projection: see [`swiglu::forward`].
    fn swiglu_forward(&self, sizes: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()>;

    /// Its gradient: see [`swiglu::backward`].
    fn swiglu_backward(
        &self,
        sizes: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// GELU of a sum with a bias: see [`bias_gelu::forward`].
    fn bias_gelu_forward(
        &self,
        sizes: Rows,
        kind: Gelu,
        x: Half<'_, Self>,
        bias: Half<'_, Self>,
        y: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// Its gradients: see [`bias_gelu::backward`]. `inputs`: `x`, the bias and the gradient of the result.
    fn bias_gelu_backward(
        &self,
        sizes: Rows,
        kind: Gelu,
        inputs: (Half<'_, Self>, Half<'_, Self>, Half<'_, Self>),
        dx: HalfMut<'_, Self>,
        bias: BiasGradient<'_, Self, Self::Full>,
    ) -> Result<()>;

    /// The pooling of the projector: see [`avg_pool::forward`].
    fn avg_pool_forward(&self, sizes: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()>;

    /// Its gradient: see [`avg_pool::backward`].
    fn avg_pool_backward(&self, sizes: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()>;

    /// Embeddings of tokens and visual features: see [`embedding::forward`].
    fn embedding_forward(
        &self,
        hidden: usize,
        from: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// The gradient of the table of tokens, added to what is there: see [`embedding::backward`].
    fn embedding_backward(
        &self,
        hidden: usize,
        dy: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        dtable: FullMut<'_, Self>,
    ) -> Result<()>;

    /// Rows by their numbers: see [`gather_rows::gather_rows`].
    fn gather_rows(
        &self,
        cols: usize,
        from: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// Images as rows of patches: see [`patchify::patchify`].
    fn patchify(&self, sizes: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()>;

    /// Losses of rows of logits, which their gradients overwrite: see [`cross_entropy::cross_entropy`].
    fn cross_entropy(&self, sizes: Rows, loss: Loss, args: cross_entropy::Arguments<'_, Self>) -> Result<()>;

    /// Their sums: see [`cross_entropy::totals`].
    fn cross_entropy_totals(
        &self,
        stats: Full<'_, Self>,
        totals: cross_entropy::Totals<'_, Self>,
    ) -> Result<()>;

    /// The norm of all gradients, and what follows from it: see [`adamw::gradient_norm`].
    fn gradient_norm(
        &self,
        settings: &AdamW,
        grad: Full<'_, Self>,
        scale: Option<Full<'_, Self>>,
        partials: FullMut<'_, Self>,
        control: &mut adamw::Control<'_, Self>,
    ) -> Result<()>;

    /// A step of AdamW: see [`adamw::update`].
    fn adamw_update(
        &self,
        settings: &AdamW,
        lr: f64,
        buffers: adamw::Buffers<'_, Self>,
        ranges: &DecayRanges,
        decay: adamw::Decay<'_, Self>,
        control: &adamw::Control<'_, Self>,
    ) -> Result<()>;

    /// Sums of columns, as the gradient of a bias: see [`column_sum::column_sum`].
    fn column_sum(
        &self,
        sizes: Rows,
        x: Half<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()>;

    /// Sums of columns in full precision, as of partial sums: see [`column_sum::column_sum`].
    fn column_sum_full(
        &self,
        sizes: Rows,
        x: Full<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()>;

    /// `to = left + right`: see [`elementwise::add`].
    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// `to += right`: see [`elementwise::add_assign`].
    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// Full to half precision: see [`elementwise::narrow`].
    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// Half to full precision: see [`elementwise::widen`].
    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()>;

    /// Every number becomes `value`: see [`elementwise::fill`].
    fn fill(&self, to: FullMut<'_, Self>, value: f32) -> Result<()>;
}

impl<D: Products> Backend for D {
    fn gemm(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        bias: Option<Half<'_, Self>>,
        d: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.record("gemm", || cost::gemm(gemm, size_of::<bf16>()));
        self.product(gemm, operands, bias, d)
    }

    fn gemm_full(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        d: FullMut<'_, Self>,
    ) -> Result<()> {
        self.record("gemm", || cost::gemm(gemm, size_of::<f32>()));
        self.product(gemm, operands, None, d)
    }

    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()> {
        self.record("attention_forward", || cost::attention_forward(shape, &args));
        attention::forward_fused(self, shape, args)
    }

    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()> {
        self.record("attention_backward", || cost::attention_backward(shape, &args));
        attention::backward_fused(self, shape, args)
    }

    fn norm_forward(&self, norm: Norm, args: norm::Forward<'_, Self>) -> Result<()> {
        self.record("norm_forward", || cost::norm_forward(&args));
        norm::forward(self, norm, args)
    }

    fn norm_backward(&self, norm: Norm, args: norm::Backward<'_, Self>) -> Result<()> {
        self.record("norm_backward", || cost::norm_backward(&args));
        norm::backward(self, norm, args)
    }

    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        angles: Angles<'_, Self>,
    ) -> Result<()> {
        self.record("rope_forward", || cost::rope(sizes, &qkv, bias.is_some(), &angles));
        rope::forward(self, sizes, qkv, bias, angles)
    }

    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        angles: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, Self::Full>>,
    ) -> Result<()> {
        self.record("rope_backward", || {
            let sums = bias.as_ref().map_or(0, cost::bias_gradient);
            let Cost { operations, bytes } = cost::rope(sizes, &dqkv, bias.is_some(), &angles);
            Cost { operations, bytes: bytes + sums as f64 }
        });
        rope::backward(self, sizes, dqkv, angles, bias)
    }

    fn swiglu_forward(&self, sizes: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()> {
        self.record("swiglu_forward", || cost::bytes(read(&gate_up) + written(&h)));
        swiglu::forward(self, sizes, gate_up, h)
    }

    fn swiglu_backward(
        &self,
        sizes: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.record("swiglu_backward", || cost::bytes(read(&gate_up) + read(&dh) + written(&dgate_up)));
        swiglu::backward(self, sizes, gate_up, dh, dgate_up)
    }

    fn bias_gelu_forward(
        &self,
        sizes: Rows,
        kind: Gelu,
        x: Half<'_, Self>,
        bias: Half<'_, Self>,
        y: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.record("bias_gelu_forward", || cost::bytes(read(&x) + written(&y)));
        bias_gelu::forward(self, sizes, kind, x, bias, y)
    }

    fn bias_gelu_backward(
        &self,
        sizes: Rows,
        kind: Gelu,
        inputs: (Half<'_, Self>, Half<'_, Self>, Half<'_, Self>),
        dx: HalfMut<'_, Self>,
        bias: BiasGradient<'_, Self, Self::Full>,
    ) -> Result<()> {
        self.record("bias_gelu_backward", || {
            let (x, _, dy) = &inputs;
            cost::bytes(read(x) + read(dy) + written(&dx) + cost::bias_gradient(&bias))
        });
        bias_gelu::backward(self, sizes, kind, inputs, dx, bias)
    }

    fn avg_pool_forward(&self, sizes: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()> {
        self.record("avg_pool_forward", || cost::bytes(read(&x) + written(&y)));
        avg_pool::forward(self, sizes, x, y)
    }

    fn avg_pool_backward(&self, sizes: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()> {
        self.record("avg_pool_backward", || cost::bytes(read(&dy) + written(&dx)));
        avg_pool::backward(self, sizes, dy, dx)
    }

    fn embedding_forward(
        &self,
        hidden: usize,
        from: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.record("embedding_forward", || cost::bytes(read(&sources) + 2 * written(&to)));
        embedding::forward(self, hidden, from, sources, to)
    }

    fn embedding_backward(
        &self,
        hidden: usize,
        dy: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        dtable: FullMut<'_, Self>,
    ) -> Result<()> {
        self.record("embedding_backward", || cost::embedding_backward(hidden, &buckets));
        embedding::backward(self, hidden, dy, buckets, dtable)
    }

    fn gather_rows(
        &self,
        cols: usize,
        from: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        self.record("gather_rows", || cost::gather_rows(&from, &indices, &to));
        gather_rows::gather_rows(self, cols, from, indices, to)
    }

    fn patchify(&self, sizes: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()> {
        self.record("patchify", || cost::bytes(read(&pixels) + written(&rows)));
        patchify::patchify(self, sizes, pixels, rows)
    }

    fn cross_entropy(&self, sizes: Rows, loss: Loss, args: cross_entropy::Arguments<'_, Self>) -> Result<()> {
        self.record("cross_entropy", || cost::cross_entropy(&args));
        cross_entropy::cross_entropy(self, sizes, loss, args)
    }

    fn cross_entropy_totals(
        &self,
        stats: Full<'_, Self>,
        totals: cross_entropy::Totals<'_, Self>,
    ) -> Result<()> {
        self.record("cross_entropy_totals", || cost::bytes(read(&stats)));
        cross_entropy::totals(self, stats, totals)
    }

    fn gradient_norm(
        &self,
        settings: &AdamW,
        grad: Full<'_, Self>,
        scale: Option<Full<'_, Self>>,
        partials: FullMut<'_, Self>,
        control: &mut adamw::Control<'_, Self>,
    ) -> Result<()> {
        self.record("gradient_norm", || cost::bytes(read(&grad) + 2 * written(&partials)));
        adamw::gradient_norm(self, settings, grad, scale, partials, control)
    }

    fn adamw_update(
        &self,
        settings: &AdamW,
        lr: f64,
        buffers: adamw::Buffers<'_, Self>,
        ranges: &DecayRanges,
        decay: adamw::Decay<'_, Self>,
        control: &adamw::Control<'_, Self>,
    ) -> Result<()> {
        self.record("adamw_update", || cost::adamw_update(&buffers));
        adamw::update(self, settings, lr, buffers, ranges, decay, control)
    }

    fn column_sum(
        &self,
        sizes: Rows,
        x: Half<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        self.record("column_sum", || cost::bytes(read(&x) + cost::sums(&partials, &to, output)));
        column_sum::column_sum(self, sizes, x, partials, to, output)
    }

    fn column_sum_full(
        &self,
        sizes: Rows,
        x: Full<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        self.record("column_sum", || cost::bytes(read(&x) + cost::sums(&partials, &to, output)));
        column_sum::column_sum(self, sizes, x, partials, to, output)
    }

    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.record("add", || cost::bytes(read(&left) + read(&right) + written(&to)));
        elementwise::add(self, left, right, to)
    }

    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.record("add", || cost::bytes(read(&right) + 2 * written(&to)));
        elementwise::add_assign(self, right, to)
    }

    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.record("cast", || cost::bytes(read(&from) + written(&to)));
        elementwise::narrow(self, from, to)
    }

    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()> {
        self.record("cast", || cost::bytes(read(&from) + written(&to)));
        elementwise::widen(self, from, to)
    }

    fn fill(&self, to: FullMut<'_, Self>, value: f32) -> Result<()> {
        self.record("fill", || cost::bytes(written(&to)));
        elementwise::fill(self, to, value)
    }
}
