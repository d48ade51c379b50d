//! What can stop fine-tuning.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SftError {
    /// The loop or the model failed.
    #[error(transparent)]
    Train(#[from] oqvl_trainer::TrainError),
    /// The model cannot be saved.
    #[error(transparent)]
    Model(#[from] oqvl_model::ModelError),
    /// The tokenizer failed.
    #[error(transparent)]
    Text(#[from] oqvl_text_prep::TextError),
    /// The data cannot be read.
    #[error(transparent)]
    Shard(#[from] oqvl_shard_io::ShardError),
    /// No conversation is left to learn from.
    #[error("{path}: no conversation can be used")]
    NoData {
        /// The data file.
        path: PathBuf,
    },
}
