//! The worked example of [`Backend`](oqvl_kernels::backend::Backend): a projector in front of a language model of Qwen2's shape,
//! trained by AdamW, forward and backward written out as a sequence of its calls.
//!
//! - [`Sizes`] says how large everything is, and [`Layout`] where each parameter lies in one flat buffer.
//! - [`Pack`] is what one step learns from: documents one after the other, tokens and image features.
//! - [`Training`] owns all memory, which is taken when it is made: no step takes any. [`Training::step`] is the whole of one.
//! - [`Cost`] is what a step of the paper's sizes costs, counted without doing it.
//! - [`Example`] is a run of ten steps that PyTorch has made too, with its results.
//!
//! Beside it is the forward of the frozen [`VisionTower`], whose features a pack's images are: from pixels to the output of the last
//! block that is run, with heads and MLP of the sizes of the checkpoint or filled up to sizes that suit a GPU, which
//! [`VisionSizes`] says. [`VisionExample`] is a tower that transformers has run too.
//!
//! Both are small but leave nothing out: what the step does for two layers on a CPU, an engine does for 28 on a GPU. Tests hold
//! ten steps of it against PyTorch, in f32 and f64, and every block of the tower against transformers, filled up and not; those of
//! the emulation hold the kernels in bf16 against that.
//!
//! ```
//! use oqvl_kernels::backend::CpuRef;
//! use oqvl_training_step::{Activations, Example, Precision};
//!
//! let example = Example::load(Precision::F32)?;
//! let mut training = example.training(CpuRef::<f32>::default(), Activations::Saved)?;
//! let mut losses = Vec::new();
//! for (pack, lr) in example.steps() {
//!     losses.push(training.step(pack, lr)?.loss);
//! }
//! // Of the same pack, four steps apart.
//! assert!(losses[9] < losses[5] && losses[5] < losses[1]);
//! # Ok::<(), anyhow::Error>(())
//! ```

mod bf16;
mod buffers;
mod cost;
mod example;
mod layout;
mod pack;
mod training;
mod vision;
mod vision_example;

pub use bf16::BeyondBf16;
pub use cost::{Cost, PAPER, PAPER_TOWER};
pub use example::{Example, Precision, Run};
pub use layout::{Layout, Sizes};
pub use pack::Pack;
pub use training::{Activations, Report, Settings, Training};
pub use vision::{NamedWeights, VisionSizes, VisionTower};
pub use vision_example::{VisionExample, VisionInput};
