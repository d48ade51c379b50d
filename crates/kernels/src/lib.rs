//! Fused operations that candle users miss, each with a backward, so that a plain candle program trains with them.
//!
//! candle's own fused operations (`rms_norm`, `layer_norm`, `softmax_last_dim`, `rope`, `sdpa`) silently detach
//! their result from the graph. The ones here never do: each is a candle custom operation whose `bwd` is written by
//! hand and tested against central differences and against candle's autograd on the unfused formula.
//!
//! For candle programs, on the CPU in f32, f64 or bf16, and with the feature `cuda` on a GPU in bf16:
//!
//! - [`attention()`], [`attention_varlen`]: softmax attention with grouped queries, causal or full
//! - [`linear`]: `x w^T + b`, with the weight gradient in the layout of the weight
//! - [`rms_norm`], [`layer_norm`]
//! - [`rope()`]: rotary position embedding, half-split layout
//! - [`swiglu()`], and [`bias_gelu()`], [`bias_gelu_tanh`]: GELU of `x + b`, exact and in its tanh form
//! - [`cross_entropy()`]: mean over rows, from logits
//! - [`adaptive_avg_pool`]: the pooling of the projector (on a GPU in f32 too), and [`avg_pool_projector`]: the whole of it
//!
//! On a CPU each is one thread a call, so that results do not depend on the number of threads, and bf16 is widened to f32 and
//! the result rounded once, so that an operation is at least as close as the several of PyTorch that it stands for, each of which
//! rounds. That is for results, not for speed: weights are widened anew in every call.
//!
//! For engines with memory of their own, the modules of the same names and [`adamw`], [`column_sum`], [`elementwise`],
//! [`embedding`], [`gather_rows`], [`gemm`], [`label_head`], [`norm`] and [`patchify`] have functions that start kernels on a
//! [`Device`](device::Device), a stream of a GPU or the emulation that runs them on a CPU in the tests, and references in f32
//! and f64. [`backend`] puts all of them behind one trait, which is what an engine stands on.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use oqvl_kernels::rms_norm;
//!
//! let device = Device::Cpu;
//! let x = Var::new(&[[3f32, 4.0]], &device)?;
//! let gain = Var::new(&[1f32, 1.0], &device)?;
//! let y = rms_norm(&x, &gain, 0.0)?;
//! // The root mean square of (3, 4) is 3.5355.
//! assert!((y.to_vec2::<f32>()?[0][0] - 0.8485).abs() < 1e-4);
//! let grads = y.sum_all()?.backward()?;
//! assert!(grads.get(&x).is_some() && grads.get(&gain).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! Networks are built from these in `oqvl-model`.

// Matrix products hand checked slices to the `gemm` crate, whose interface is raw pointers; kernels are given addresses.
#![allow(unsafe_code)]

pub mod adamw;
pub mod attention;
pub mod avg_pool;
mod avg_pool_projector;
pub mod backend;
pub mod bias_gelu;
pub mod column_sum;
pub mod cross_entropy;
pub mod device;
mod element;
pub mod elementwise;
pub mod embedding;
pub mod gather_rows;
pub mod gemm;
pub mod label_head;
mod linear;
mod matmul;
pub mod norm;
pub mod patchify;
pub mod rope;
mod rows;
mod sizes;
pub mod swiglu;

pub use attention::{CuSeqlens, Mask, attention, attention_varlen};
pub use avg_pool::adaptive_avg_pool;
pub use avg_pool_projector::avg_pool_projector;
pub use bias_gelu::{bias_gelu, bias_gelu_tanh};
pub use cross_entropy::cross_entropy;
pub use element::Element;
pub use linear::linear;
pub use matmul::Output;
pub use norm::{layer_norm, rms_norm};
pub use rope::{RopeTables, rope};
pub use sizes::Rows;
pub use swiglu::swiglu;

#[cfg(test)]
mod bf16;
#[cfg(test)]
mod gradcheck;
