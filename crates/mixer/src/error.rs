//! Why a mix could not be made.

use std::io;
use std::path::PathBuf;

use oqvl_shard_io::ShardError;
use oqvl_stage::{ConfigError, Interrupted};

/// A run of the mixer that cannot go on. Bad samples are not among these: they are counted in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MixerError {
    /// The configuration contradicts itself or the data: a query names a column that is not there.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The run was asked to stop.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// A shard, sidecar or uid list cannot be read, or an output cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A parquet file cannot be read.
    #[error("{path}: {problem}")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A model or list a baseline needs cannot be used.
    #[error("{path}: {problem}")]
    Asset {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A query that was in order failed.
    #[error("{key}: the query failed: {problem}")]
    Query {
        /// The key of the query in the config, from the root.
        key: String,
        /// What failed.
        problem: String,
    },
    /// Scratch files cannot be written, most often because the disk is full.
    #[error("{path}: cannot write scratch files here: {source}")]
    Scratch {
        /// The directory or file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The system gives no threads for queries.
    #[error("cannot start the threads that run queries")]
    Threads(#[source] io::Error),
    /// A sample seen in the first pass is not there in the second.
    #[error("{path}: the input changed while it was read")]
    InputChanged {
        /// The input shard.
        path: PathBuf,
    },
}
