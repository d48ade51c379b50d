//! Softmax attention with grouped queries.
//!
//! [`fn@attention`] and [`attention_varlen`] are what candle programs call, on the
//! CPU in f32, f64 or bf16 and on a GPU in bf16. Engines with memory of their own call [`forward`] and [`backward`] on a
//! [`Device`](crate::device::Device), whose kernels are held against [`mod@reference`].

#[cfg(feature = "cuda")]
mod cuda;
pub(crate) mod fused;
mod launch;
mod op;
pub mod reference;
mod shape;
mod sys;

pub use fused::{FusedBackward, FusedForward, backward_fused, forward_fused};
pub(crate) use launch::check_cu_seqlens;
pub use launch::{Backward, Forward, Operand, OperandMut, backward, backward_workspace_len, forward};
pub use op::{attention, attention_varlen};
pub use shape::{CuSeqlens, Mask, Sequences, Shape};
pub use sys::Strides;
