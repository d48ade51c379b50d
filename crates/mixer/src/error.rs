//! Why a mix could not be made.

use std::path::PathBuf;

use oqvl_shard_io::ShardError;
use oqvl_stage::{ConfigError, Interrupted};

/// A run of the mixer that cannot go on. Bad samples are not among these: they are counted in the report.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MixerError {
    /// The configuration contradicts itself.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// The run was asked to stop.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// A shard, sidecar or uid list cannot be read, or an output cannot be written.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A score sidecar lacks the metric a subset asks for.
    #[error("{path}: no metric `{metric}`; it has {known}")]
    NoSuchMetric {
        /// The sidecar.
        path: PathBuf,
        /// The metric asked for.
        metric: String,
        /// The metrics it has.
        known: String,
    },
    /// A sample seen in the first pass is not there in the second.
    #[error("{path}: the input changed while it was read")]
    InputChanged {
        /// The input shard.
        path: PathBuf,
    },
}
