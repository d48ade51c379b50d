//! What can stop the bootstrap.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootstrapError {
    /// A model cannot be trained.
    #[error(transparent)]
    Train(#[from] oqvl_trainer::TrainError),
    /// A model cannot be built or saved.
    #[error(transparent)]
    Model(#[from] oqvl_model::ModelError),
    /// The tokenizer cannot be trained or read.
    #[error(transparent)]
    Text(#[from] oqvl_text_prep::TextError),
    /// A shard cannot be read.
    #[error(transparent)]
    Shard(#[from] oqvl_shard_io::ShardError),
    /// Reading or writing failed.
    #[error("{path}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A line of the text corpus is not `{"text"}`.
    #[error("{path}: line {line} is not an object with a `text`")]
    TextLine {
        /// The corpus.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// Why.
        source: serde_json::Error,
    },
    /// A corpus has nothing to learn from.
    #[error("{path}: {what}")]
    NoData {
        /// The corpus.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
}

impl BootstrapError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
