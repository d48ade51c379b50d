//! How a run ends when it does not end well.

use crate::config_error::ConfigError;
use oqvl_shard_io::StoreError;
use std::path::PathBuf;

/// The run was stopped by Ctrl-C or SIGTERM; what is finished stays, the same command goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; finished shards are kept, the same command continues from here")]
pub struct Interrupted;

/// Why the runtime could not run a stage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StageError {
    /// The request itself is wrong; exit code 2.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// An input is not there or not finished.
    #[error("input `{path}` is not ready: {reason}")]
    InputNotReady {
        /// The input as the config names it.
        path: PathBuf,
        /// What is missing and which stage makes it.
        reason: String,
    },
    /// The output directory holds something this runtime did not put there.
    #[error(
        "{path} is not empty and was not written by stage `{stage}`: move it away or choose another --work-dir"
    )]
    ForeignDirectory {
        /// The directory.
        path: PathBuf,
        /// The stage that wanted it.
        stage: &'static str,
    },
    /// A file that the stage did not write lies among its output, which would have to be made anew.
    #[error("{path} was not written by stage `{stage}`, which must run here again: move it away")]
    ForeignFile {
        /// The file.
        path: PathBuf,
        /// The stage.
        stage: &'static str,
    },
    /// What the output directory is being made from cannot be told.
    #[error("{path} is damaged: remove it to make its content anew")]
    UnreadableStamp {
        /// The output directory.
        path: PathBuf,
        /// What is wrong with its stamp.
        source: oqvl_shard_io::ShardError,
    },
    /// Another process works in the same output directory.
    #[error("{path} is in use by another run: wait for it or choose another --work-dir")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// A partial run found output of another config.
    #[error(
        "{asked_by}: {path} holds output of another config or of other inputs, which a share cannot replace: run the whole \
         stage first, or remove it"
    )]
    StaleOutput {
        /// The flag or the variable that asked for a share.
        asked_by: &'static str,
        /// The directory.
        path: PathBuf,
    },
    /// Reading or writing failed.
    #[error("{path}")]
    Io {
        /// What was read or written.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A remote input cannot be copied here, or output not there.
    #[error("{0}")]
    Store(#[source] StoreError),
    /// A name that can be no model's.
    #[error(
        "there is no path `{model}`, and it is no model of the hub: those are owner/name, owner/name@revision or \
         hf://owner/name@revision/path"
    )]
    NoModel {
        /// The name as it was given.
        model: String,
    },
    /// A model of the hub cannot be had.
    #[error("{}{source}", if *is_address { String::new() } else { format!("there is no path `{model}`, and as a model of the hub: ") })]
    Model {
        /// The name as it was given.
        model: String,
        /// Whether it is an address of the hub (`hf://…`); an id may have been meant as a path.
        is_address: bool,
        /// What the hub or its cache say.
        source: StoreError,
    },
    /// The run was stopped while files were on their way.
    #[error("{0}")]
    Interrupted(#[source] Interrupted),
    /// A manifest or report cannot be read or written.
    #[error("{0}")]
    Format(#[from] oqvl_shard_io::ShardError),
}

impl StageError {
    /// Whether the request itself is wrong: exit code 2.
    #[must_use]
    pub fn is_wrong_request(&self) -> bool {
        match self {
            Self::Config(_)
            | Self::ForeignDirectory { .. }
            | Self::ForeignFile { .. }
            | Self::StaleOutput { .. }
            | Self::NoModel { .. }
            | Self::Store(StoreError::ForeignDestination { .. }) => true,
            // A name that stands for nothing. What cannot be reached may be there.
            Self::Model { source, .. } => matches!(
                source,
                StoreError::Denied { .. }
                    | StoreError::NoSuchContainer { .. }
                    | StoreError::NotFound { .. }
                    | StoreError::NoMatch { .. }
                    | StoreError::NoCheckpoint { .. }
                    | StoreError::Offline { .. }
            ),
            _ => false,
        }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
