//! What can stop scoring.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MlmFilterError {
    /// The model cannot be used.
    #[error("{model} cannot be used")]
    Load {
        /// The checkpoint directory.
        model: PathBuf,
        /// Why.
        source: oqvl_model::ModelError,
    },
    /// The model cannot be run.
    #[error(transparent)]
    Model(#[from] oqvl_model::ModelError),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] oqvl_text_prep::TextError),
    /// A shard or sidecar cannot be read or written.
    #[error(transparent)]
    Shard(#[from] oqvl_shard_io::ShardError),
    /// Ctrl-C.
    #[error("{0}")]
    Interrupted(#[from] oqvl_stage::Interrupted),
}
