//! What can go wrong while a world is made or served.

use oqvl_shard_io::ShardError;
use oqvl_stage::Interrupted;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// A failure of the world generator or of its server.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorldError {
    /// A file or directory cannot be read or written.
    #[error("{path}: cannot {action}")]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A shard of the world cannot be read or written.
    #[error("a shard of the world failed")]
    Shard(#[from] ShardError),
    /// A line of a file is not what it must be.
    #[error("{path}, line {line}: not a record of this file")]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// A table with tabs or commas cannot be read or written.
    #[error("{path}: not a table that can be read or written")]
    Table {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: csv::Error,
    },
    /// The photos directory lacks what it must hold.
    #[error("photos_dir: {path} does not exist; it must hold captions.jsonl, qa.jsonl and awkward.tsv")]
    NoPhotos {
        /// The directory or file that is missing.
        path: PathBuf,
    },
    /// The routes of a world contradict each other.
    #[error("{path}: {problem}")]
    Routes {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The server cannot listen.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why it cannot.
        source: io::Error,
    },
    /// The system has no threads left.
    #[error("cannot start the worker threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
    /// Ctrl-C.
    #[error("{0}")]
    Interrupted(#[from] Interrupted),
}

impl WorldError {
    /// For `map_err`: an I/O error with what was being done, and to what.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> WorldError + 'a {
        move |source| WorldError::Io { action, path: path.to_path_buf(), source }
    }
}
