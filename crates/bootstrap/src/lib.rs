//! Trains the micro stand-ins of the public checkpoints: the SigLIP pair, the language model, the MLM-Filter.
//!
//! The paper starts from checkpoints others have trained. A run without network has none, so this stage trains small
//! ones of the same kinds from seeded data, honestly and from scratch: no weights are shipped. Everything after it is
//! the same code that real checkpoints go through.
//!
//! [`Bootstrap`] is the stage, [`BootstrapConfig`] its table. It writes `tokenizer/`, `siglip/`, `language-model/` and
//! `mlm-filter/`, each a checkpoint directory of `oqvl-model`.
//!
//! ```
//! use oqvl_bootstrap::{Bootstrap, BootstrapConfig, TokenizerSource};
//! use oqvl_stage::{ConfigFile, Stage};
//!
//! let file = ConfigFile::parse(include_str!("example.toml"))?;
//! let config: BootstrapConfig = file.stage(Bootstrap::NAME)?;
//! assert_eq!(config.tokenizer, TokenizerSource::Train { vocab_size: 512 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod config;
mod corpus;
mod error;
mod language_model;
mod mlm_filter;
mod siglip;
mod stage;

pub use config::{BootstrapConfig, LanguageModelTable, MlmFilterTable, SiglipTable, TokenizerSource};
pub use error::BootstrapError;
pub use stage::{Bootstrap, BootstrapReport};
