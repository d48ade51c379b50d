//! Why packs could not be made.

use std::path::PathBuf;

use oqvl_shard_io::ShardError;
use oqvl_stage::{ConfigError, Interrupted};
use oqvl_text_prep::TextError;

/// A run of the packer that cannot go on. Bad samples are not among these: they are counted in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackerError {
    /// The configuration cannot be right.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The run was asked to stop.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// An input tar cannot be read, or an output cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The tokenizer cannot be loaded.
    #[error(transparent)]
    Tokenizer(#[from] TextError),
    /// The tokenizer refused a caption.
    #[error("{path}: cannot tokenize the caption of sample `{key}`")]
    Caption {
        /// The tar.
        path: PathBuf,
        /// The sample.
        key: String,
        /// What the tokenizer said.
        source: TextError,
    },
}
