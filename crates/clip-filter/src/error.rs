//! What can stop scoring.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClipFilterError {
    /// The model cannot be read or run.
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
