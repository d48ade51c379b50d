//! Why a report could not be written.

use std::path::PathBuf;

/// What ends the report stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReportError {
    /// A manifest, sidecar or subset cannot be read, or the report cannot be written.
    #[error("{0}")]
    Format(#[from] oqvl_shard_io::ShardError),
    /// Reading or writing failed.
    #[error("{path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A line of a JSON-lines file is not what it should be.
    #[error("{path}, line {line}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Line number from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A parquet file cannot be read.
    #[error("{path} is not a readable parquet file")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the parquet reader says.
        source: parquet::errors::ParquetError,
    },
    /// A table lacks a column, or has it with another type.
    #[error("{path} has no column `{column}` of strings")]
    Column {
        /// The file.
        path: PathBuf,
        /// The column.
        column: &'static str,
    },
    /// A report or result lacks a number that the page is about.
    #[error("{path} has no number at `{key}`")]
    Number {
        /// The file.
        path: PathBuf,
        /// Path of the key, dots between its parts.
        key: String,
    },
    /// A sidecar lacks the metric it is named for.
    #[error("{path} has no metric `{metric}`")]
    Metric {
        /// The sidecar.
        path: PathBuf,
        /// The metric.
        metric: String,
    },
    /// The run was stopped.
    #[error("{0}")]
    Interrupted(#[from] oqvl_stage::Interrupted),
}

impl ReportError {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
