//! What can stop a training run.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// The model cannot be built, saved or run.
    #[error(transparent)]
    Model(#[from] oqvl_model::ModelError),
    /// A file of ours cannot be read or written.
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
    /// There is nothing to learn from.
    #[error("{path}: {what}")]
    NoData {
        /// Where the data should be.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Packs were made for another model.
    #[error("{path} was packed with {found}, the model has {expected}: pack again or change the config")]
    PackMismatch {
        /// The packs.
        path: PathBuf,
        /// What the packs say.
        found: String,
        /// What the config says.
        expected: String,
    },
    /// A trainable parameter was not reached by the backward pass.
    #[error("parameter `{name}` received no gradient: an operation between it and the loss is detached")]
    NoGradient {
        /// Its name.
        name: String,
    },
    /// A state to resume from is damaged.
    #[error("the state in {path} cannot be used: remove it to train from the first step")]
    Resume {
        /// The directory of states.
        path: PathBuf,
        /// What is wrong with it.
        source: Box<TrainError>,
    },
    /// A saved optimizer state is not the one of this model.
    #[error("saved optimizer state has no `{name}` of the right size")]
    OptimizerState {
        /// What is missing.
        name: String,
    },
    /// The loss or the gradient is no longer a number.
    #[error("step {step}: the {what} is {value}; lower the learning rate or look at the data of this step")]
    NotFinite {
        /// The step, from 1.
        step: u64,
        /// What is not finite.
        what: &'static str,
        /// Its value.
        value: f64,
    },
    /// Ctrl-C.
    #[error("{0}")]
    Interrupted(#[from] oqvl_stage::Interrupted),
}

impl TrainError {
    /// Puts a path to an I/O error.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
