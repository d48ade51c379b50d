//! Why packs could not be made.

use std::io;
use std::path::PathBuf;

use oqvl_shard_io::ShardError;
use oqvl_stage::{ConfigError, Interrupted};
use oqvl_text_prep::TextError;

/// A run of the packer that cannot go on. Bad samples are not among these: they are counted in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PackerError {
    /// The configuration cannot be right, or not for this input.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The run was asked to stop.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// An input tar cannot be read, or an output cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A directory or a file of packed JSON cannot be read or made.
    #[error("{path}: cannot read or write")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Documents that did not fit into memory cannot be put aside on disk, or read again.
    #[error("{path}: cannot put documents aside in this directory")]
    Spool {
        /// Where the nameless file lies.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
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
