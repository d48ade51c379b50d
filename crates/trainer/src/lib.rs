//! The training loop, and the pre-training stage built on it.
//!
//! - [`train`]: minimises a [`Task`] over the variables of a `ParamStore`: micro-batches in parallel, gradients added
//!   in a fixed order, [`AdamW`], [`WarmupCosine`], `metrics.jsonl`, states to resume from. Same seed, same bits,
//!   whatever the number of threads and however often it was killed.
//! - [`Trainer`]: the stage. Packs from `oqvl-packer` in, base checkpoint out; the vision tower stays frozen.
//! - [`randperm`], [`ShuffledSampler`]: the order of examples, as PyTorch draws it.
//!
//! ```
//! use candle_core::Device;
//! use oqvl_model::{Init, LossOutput, ParamStore};
//! use oqvl_stage::{RunContext, Stage};
//! use oqvl_trainer::{OptimizerConfig, ShuffledSampler, Task, TrainError, Trainer, TrainingConfig, train};
//!
//! /// Pulls one number towards 3.
//! struct Pull(candle_core::Tensor);
//! impl Task for Pull {
//!     fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
//!         let loss = (&self.0 - 3.0)?.sqr()?.sum_all()?;
//!         Ok(LossOutput { loss, num_labels: indices.len(), num_tokens: indices.len() })
//!     }
//! }
//!
//! let mut store = ParamStore::seeded(7, &Device::Cpu);
//! let task = Pull(store.root().get("x", &[1], Init::Constant(0.0))?);
//! let config = TrainingConfig {
//!     num_steps: 200, global_batch_size: 2, per_device_batch_size: 1, learning_rate: 0.1, warmup_ratio: 0.1,
//!     save_every_steps: 50, optimizer: OptimizerConfig { weight_decay: 0.0, ..Default::default() },
//! };
//! let sampler = ShuffledSampler { num_examples: 4, global_batch_size: 2, seed: 7 };
//! let dir = tempfile::tempdir()?;
//! let run = RunContext::for_test::<Trainer>(dir.path(), 7)?;
//! let report = train(&config, &store, &task, &sampler, &run, &run.out_dir)?;
//! assert!(report.last_loss < 0.01 * report.first_loss);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Gradients come from candle's autograd; fine-tuning on conversations is `oqvl-sft`.

mod adamw;
mod config;
mod error;
mod image_loader;
mod metrics;
mod pack_data;
mod pretraining;
mod randperm;
mod resume;
mod sampler;
mod schedule;
mod training_loop;

pub use adamw::{AdamW, Gradients};
pub use config::{OptimizerConfig, TrainerConfig, TrainingConfig};
pub use error::TrainError;
pub use image_loader::ImageLoader;
pub use metrics::{METRICS_FILE, StepMetrics};
pub use pack_data::PackData;
pub use pretraining::{CHECKPOINT_DIR, Trainer, TrainerReport, assemble, reopen};
pub use randperm::{TorchGenerator, randperm};
pub use sampler::{Sampler, ShuffledSampler};
pub use schedule::WarmupCosine;
pub use training_loop::{TRAINING_FILE, Task, TrainingReport, train, train_once};
