//! What can be wrong with a file in a store.

use std::io;
use std::path::PathBuf;

/// A store that cannot be read or written; each says where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// An address that is none.
    #[error("`{uri}`: {problem}")]
    Uri {
        /// The address.
        uri: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A setting that cannot be.
    #[error("{key}: {problem}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// There is nothing to sign requests with.
    #[error("{uri}: no credentials: {remedy}")]
    NoCredentials {
        /// The address.
        uri: String,
        /// What to set.
        remedy: &'static str,
    },
    /// The store does not accept the credentials, or they do not reach this far.
    #[error("{uri}: access denied: {problem}")]
    Denied {
        /// The address.
        uri: String,
        /// The store's reason.
        problem: String,
    },
    /// There is no such bucket, model, data set or revision.
    #[error("{uri}: there is no {what} `{name}`")]
    NoSuchContainer {
        /// The address.
        uri: String,
        /// `bucket`, `model`, `data set`, `revision`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no such file, and nothing below that name.
    #[error("{uri}: there is no such file, and nothing below that name")]
    NotFound {
        /// The address.
        uri: String,
    },
    /// Nothing matches the wildcards.
    #[error("{uri}: nothing matches this pattern")]
    NoMatch {
        /// The address.
        uri: String,
    },
    /// What should be a checkpoint lacks a part, or lists its parts in a way that cannot be read.
    #[error("{uri}: no checkpoint: {problem}")]
    NoCheckpoint {
        /// The address.
        uri: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The store does not answer, or stops in the middle.
    #[error("{uri}: cannot be reached: {problem}")]
    Unreachable {
        /// The address.
        uri: String,
        /// How it failed.
        problem: String,
    },
    /// The store refused the request.
    #[error("{uri}: the store refused: {problem}")]
    Refused {
        /// The address.
        uri: String,
        /// The store's reason.
        problem: String,
    },
    /// The file is not what was listed, or came with another length or digest.
    #[error("{uri}: {problem}; run again to fetch it as it is now")]
    Changed {
        /// The address.
        uri: String,
        /// What differs.
        problem: String,
    },
    /// The network may not be used, and no complete copy is there.
    #[error("{uri}: offline, and there is no complete copy of it here: {problem}")]
    Offline {
        /// The address.
        uri: String,
        /// Where it was looked for.
        problem: String,
    },
    /// More than may be copied here.
    #[error("{uri}: {num_bytes} bytes, more than `stores.max_mirror_bytes` ({limit}) allows to copy here")]
    TooLarge {
        /// The address.
        uri: String,
        /// Bytes of all its files.
        num_bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// A name in the store that is no path below a directory.
    #[error("{uri}: `{name}` cannot be a file here")]
    BadName {
        /// The address.
        uri: String,
        /// The name.
        name: String,
    },
    /// The destination holds somebody else's files.
    #[error("{uri}: {problem}: remove it, or choose another `stores.upload_to`")]
    ForeignDestination {
        /// The address.
        uri: String,
        /// What is there.
        problem: String,
    },
    /// There is no room for a file.
    #[error(
        "{path}: the disk is full, {num_bytes} bytes of this file are to come: make room, the same command goes on here"
    )]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What is missing of it.
        num_bytes: u64,
        /// The operating system's reason.
        source: io::Error,
    },
    /// A local file cannot be read or written.
    #[error("{path}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The operating system's reason.
        source: io::Error,
    },
    /// The event loop cannot be started.
    #[error("cannot start the event loop of the stores")]
    Runtime {
        /// The operating system's reason.
        source: io::Error,
    },
}

impl StoreError {
    /// Wraps an operating-system error with the path it concerns; for use in `map_err`.
    pub(super) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { path, source }
    }

    /// Whether trying again at once may help.
    pub(super) fn is_transient(&self) -> bool {
        matches!(self, StoreError::Unreachable { .. })
    }
}
