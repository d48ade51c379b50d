//! Every operation of a training step, over memory that was taken before it.
//!
//! A [`Backend`] is where a training engine runs: a [`Cuda`](crate::device::Cuda) stream, or a [`CpuRef`] in f32 or f64, which
//! is what the kernels are held against; [`Counting`] does nothing but adds up what it would cost. An engine that is generic over it is the same code on both. Each operation reads and
//! writes slices of buffers that its caller owns: none takes memory of the device, waits for it, or depends on the time. What it
//! needs besides, partial sums and workspaces, is given to it.
//!
//! Operations are done in the order they are asked for. On a GPU they may still run when the call returns; what a download
//! returns is complete.

mod counting;
mod cpu;

pub use counting::{Count, CountedBuffer, Counting};
pub use cpu::CpuRef;

use crate::Rows;
use crate::adamw::{AdamW, DecayRanges, launch as adamw};
use crate::attention::{self, FusedBackward, FusedForward, Shape};
use crate::avg_pool::{Pooling, launch as avg_pool};
use crate::bias_gelu::{Gelu, launch as bias_gelu};
use crate::column_sum::launch::{self as column_sum, BiasGradient};
use crate::cross_entropy::{Loss, launch as cross_entropy};
use crate::device::{Device, Memory, Slice, SliceMut};
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

/// The operations. Sizes, aliases and errors are those of the functions they name; where a length does not fit, a call fails
/// before anything is written.
pub trait Backend: Memory {
    /// A product to half precision: see [`Gemm`].
    ///
    /// # Errors
    /// As that function.
    fn gemm(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        bias: Option<Half<'_, Self>>,
        d: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// A product to full precision, as gradients of weights are: see [`Gemm`]. Without a bias.
    ///
    /// # Errors
    /// As that function.
    fn gemm_full(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        d: FullMut<'_, Self>,
    ) -> Result<()>;

    /// Attention on a fused projection: see [`attention::forward_fused`].
    ///
    /// # Errors
    /// As that function.
    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()>;

    /// Its gradients: see [`attention::backward_fused`].
    ///
    /// # Errors
    /// As that function.
    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()>;

    /// RMSNorm or LayerNorm, after the addition of a residual: see [`norm::forward`].
    ///
    /// # Errors
    /// As that function.
    fn norm_forward(&self, norm: Norm, args: norm::Forward<'_, Self>) -> Result<()>;

    /// Its gradients: see [`norm::backward`]. [`column_sum_full`](Self::column_sum_full) makes those of the gains of the partial sums.
    ///
    /// # Errors
    /// As that function.
    fn norm_backward(&self, norm: Norm, args: norm::Backward<'_, Self>) -> Result<()>;

    /// Bias and rotary embedding of a fused projection, in place: see [`rope::forward`].
    ///
    /// # Errors
    /// As that function.
    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        angles: Angles<'_, Self>,
    ) -> Result<()>;

    /// Its gradients, in place: see [`rope::backward`].
    ///
    /// # Errors
    /// As that function.
    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        angles: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, Self::Full>>,
    ) -> Result<()>;

    /// SwiGLU of a fused projection: see [`swiglu::forward`].
    ///
    /// # Errors
    /// As that function.
    fn swiglu_forward(&self, sizes: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()>;

    /// Its gradient: see [`swiglu::backward`].
    ///
    /// # Errors
    /// As that function.
    fn swiglu_backward(
        &self,
        sizes: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// GELU of a sum with a bias: see [`bias_gelu::forward`].
    ///
    /// # Errors
    /// As that function.
    fn bias_gelu_forward(
        &self,
        sizes: Rows,
        kind: Gelu,
        x: Half<'_, Self>,
        bias: Half<'_, Self>,
        y: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// Its gradients: see [`bias_gelu::backward`]. `inputs`: `x`, the bias and the gradient of the result.
    ///
    /// # Errors
    /// As that function.
    fn bias_gelu_backward(
        &self,
        sizes: Rows,
        kind: Gelu,
        inputs: (Half<'_, Self>, Half<'_, Self>, Half<'_, Self>),
        dx: HalfMut<'_, Self>,
        bias: BiasGradient<'_, Self, Self::Full>,
    ) -> Result<()>;

    /// The pooling of the projector: see [`avg_pool::forward`].
    ///
    /// # Errors
    /// As that function.
    fn avg_pool_forward(&self, sizes: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()>;

    /// Its gradient: see [`avg_pool::backward`].
    ///
    /// # Errors
    /// As that function.
    fn avg_pool_backward(&self, sizes: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()>;

    /// Embeddings of tokens and visual features: see [`embedding::forward`].
    ///
    /// # Errors
    /// As that function.
    fn embedding_forward(
        &self,
        hidden: usize,
        from: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// The gradient of the table of tokens, added to what is there: see [`embedding::backward`].
    ///
    /// # Errors
    /// As that function.
    fn embedding_backward(
        &self,
        hidden: usize,
        dy: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        dtable: FullMut<'_, Self>,
    ) -> Result<()>;

    /// Rows by their numbers: see [`gather_rows::gather_rows`].
    ///
    /// # Errors
    /// As that function.
    fn gather_rows(
        &self,
        cols: usize,
        from: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()>;

    /// Images as rows of patches: see [`patchify::patchify`].
    ///
    /// # Errors
    /// As that function.
    fn patchify(&self, sizes: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()>;

    /// Losses of rows of logits, which their gradients overwrite: see [`cross_entropy::cross_entropy`].
    ///
    /// # Errors
    /// As that function.
    fn cross_entropy(&self, sizes: Rows, loss: Loss, args: cross_entropy::Arguments<'_, Self>) -> Result<()>;

    /// Their sums: see [`cross_entropy::totals`].
    ///
    /// # Errors
    /// As that function.
    fn cross_entropy_totals(
        &self,
        stats: Full<'_, Self>,
        totals: cross_entropy::Totals<'_, Self>,
    ) -> Result<()>;

    /// The norm of all gradients, and what follows from it: see [`adamw::gradient_norm`].
    ///
    /// # Errors
    /// As that function.
    fn gradient_norm(
        &self,
        settings: &AdamW,
        grad: Full<'_, Self>,
        scale: Option<Full<'_, Self>>,
        partials: FullMut<'_, Self>,
        control: &mut adamw::Control<'_, Self>,
    ) -> Result<()>;

    /// A step of AdamW: see [`adamw::update`].
    ///
    /// # Errors
    /// As that function.
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
    ///
    /// # Errors
    /// As that function.
    fn column_sum(
        &self,
        sizes: Rows,
        x: Half<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()>;

    /// Sums of columns in full precision, as of partial sums: see [`column_sum::column_sum`].
    ///
    /// # Errors
    /// As that function.
    fn column_sum_full(
        &self,
        sizes: Rows,
        x: Full<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()>;

    /// `to = left + right`: see [`elementwise::add`].
    ///
    /// # Errors
    /// As that function.
    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// `to += right`: see [`elementwise::add_assign`].
    ///
    /// # Errors
    /// As that function.
    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// Full to half precision: see [`elementwise::narrow`].
    ///
    /// # Errors
    /// As that function.
    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()>;

    /// Half to full precision: see [`elementwise::widen`].
    ///
    /// # Errors
    /// As that function.
    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()>;

    /// Every number becomes `value`: see [`elementwise::fill`].
    ///
    /// # Errors
    /// As that function.
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
        self.product(gemm, operands, bias, d)
    }

    fn gemm_full(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        d: FullMut<'_, Self>,
    ) -> Result<()> {
        self.product(gemm, operands, None, d)
    }

    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()> {
        attention::forward_fused(self, shape, args)
    }

    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()> {
        attention::backward_fused(self, shape, args)
    }

    fn norm_forward(&self, norm: Norm, args: norm::Forward<'_, Self>) -> Result<()> {
        norm::forward(self, norm, args)
    }

    fn norm_backward(&self, norm: Norm, args: norm::Backward<'_, Self>) -> Result<()> {
        norm::backward(self, norm, args)
    }

    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        angles: Angles<'_, Self>,
    ) -> Result<()> {
        rope::forward(self, sizes, qkv, bias, angles)
    }

    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        angles: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, Self::Full>>,
    ) -> Result<()> {
        rope::backward(self, sizes, dqkv, angles, bias)
    }

    fn swiglu_forward(&self, sizes: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()> {
        swiglu::forward(self, sizes, gate_up, h)
    }

    fn swiglu_backward(
        &self,
        sizes: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()> {
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
        bias_gelu::backward(self, sizes, kind, inputs, dx, bias)
    }

    fn avg_pool_forward(&self, sizes: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()> {
        avg_pool::forward(self, sizes, x, y)
    }

    fn avg_pool_backward(&self, sizes: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()> {
        avg_pool::backward(self, sizes, dy, dx)
    }

    fn embedding_forward(
        &self,
        hidden: usize,
        from: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        embedding::forward(self, hidden, from, sources, to)
    }

    fn embedding_backward(
        &self,
        hidden: usize,
        dy: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        dtable: FullMut<'_, Self>,
    ) -> Result<()> {
        embedding::backward(self, hidden, dy, buckets, dtable)
    }

    fn gather_rows(
        &self,
        cols: usize,
        from: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        gather_rows::gather_rows(self, cols, from, indices, to)
    }

    fn patchify(&self, sizes: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()> {
        patchify::patchify(self, sizes, pixels, rows)
    }

    fn cross_entropy(&self, sizes: Rows, loss: Loss, args: cross_entropy::Arguments<'_, Self>) -> Result<()> {
        cross_entropy::cross_entropy(self, sizes, loss, args)
    }

    fn cross_entropy_totals(
        &self,
        stats: Full<'_, Self>,
        totals: cross_entropy::Totals<'_, Self>,
    ) -> Result<()> {
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
        column_sum::column_sum(self, sizes, x, partials, to, output)
    }

    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        elementwise::add(self, left, right, to)
    }

    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        elementwise::add_assign(self, right, to)
    }

    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        elementwise::narrow(self, from, to)
    }

    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()> {
        elementwise::widen(self, from, to)
    }

    fn fill(&self, to: FullMut<'_, Self>, value: f32) -> Result<()> {
        elementwise::fill(self, to, value)
    }
}
