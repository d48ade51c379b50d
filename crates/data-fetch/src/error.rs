//! What ends a run of the stage. Bad data never does: see [`Reject`](crate::Reject).

use oqvl_shard_io::ShardError;
use oqvl_stage::{ConfigError, Interrupted};
use std::path::PathBuf;

/// Why fetching cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataFetchError {
    /// Ctrl-C or SIGTERM.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
    /// What the config says does not fit what is there: a column that the list does not have, a list of no known format, a
    /// file that is missing.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Reading or writing failed.
    #[error("cannot read or write {path}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// The list is not in the format its name or `input_format` says.
    #[error("{path}: not a readable {format} list: {problem}")]
    ListFormat {
        /// The list.
        path: PathBuf,
        /// The format that was expected.
        format: &'static str,
        /// Where and what.
        problem: String,
    },
    /// A column has become one of a type that cannot be carried along, since the run began.
    #[error("{path}: column `{column}` has type {found}, which cannot be stored")]
    ColumnType {
        /// The list.
        path: PathBuf,
        /// The column.
        column: String,
        /// Its type.
        found: String,
    },
    /// The list has another number of rows than when the run began.
    #[error("{path}: had {expected} rows at the start of the run and has {found} now")]
    ListChanged {
        /// The list.
        path: PathBuf,
        /// Rows counted at the start.
        expected: u64,
        /// Rows found later.
        found: u64,
    },
    /// The HTTP client or its threads cannot be set up.
    #[error("cannot set up the HTTP client")]
    Client {
        /// The library's reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A shard cannot be written or read back.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// A shard's parquet cannot be written or read back.
    #[error("{path}: cannot write or read the table of the shard's rows")]
    Table {
        /// The file.
        path: PathBuf,
        /// The library's reason.
        source: parquet::errors::ParquetError,
    },
    /// A finished shard does not fit together.
    #[error("{path}: {problem}; remove the shard to fetch it again")]
    BrokenShard {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
    /// More rows were rejected than the config allows.
    #[error(
        "{rejected} of {seen} rows were rejected{most}, more than `data-fetch.max_failed_fraction` = {allowed} \
         allows; the shards are kept: run again with `data-fetch.retry_failed=true`, or allow more"
    )]
    TooManyFailed {
        /// Rows rejected.
        rejected: u64,
        /// Rows in all.
        seen: u64,
        /// The most frequent reason.
        most: String,
        /// The config's limit.
        allowed: f64,
    },
    /// A finished shard does not belong to this list.
    #[error(
        "{path}: counts {found} rows, but this shard of the list has {expected}; remove the shard to fetch it again"
    )]
    ForeignShard {
        /// The shard's stats file.
        path: PathBuf,
        /// Rows of the list in this shard.
        expected: u64,
        /// Rows the stats count.
        found: u64,
    },
}

impl DataFetchError {
    /// Adds the path to an I/O error; for `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    /// Adds the path to a parquet error; for `map_err`.
    pub(crate) fn table(path: impl Into<PathBuf>) -> impl FnOnce(parquet::errors::ParquetError) -> Self {
        let path = path.into();
        move |source| Self::Table { path, source }
    }
}
