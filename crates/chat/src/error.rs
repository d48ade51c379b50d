//! What can go wrong in a chat.

use oqvl_model::ModelError;
use oqvl_stage::{ConfigError, ModelFlags, ProgramError};
use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// The flags contradict each other, or a value is out of its range.
    #[error("{0}")]
    Request(String),
    /// There is no such model, or it cannot be fetched.
    #[error("no model")]
    Place(#[from] oqvl_stage::StageError),
    /// The model cannot be read, or cannot answer.
    #[error("the model cannot be used")]
    Model(#[source] ModelError),
    /// The model leaves a part to another that nobody knows.
    #[error(transparent)]
    Incomplete(ConfigError),
    /// The tokenizer refuses a text.
    #[error("the question cannot be tokenized")]
    Text(#[from] oqvl_text_prep::TextError),
    /// An image file cannot be read.
    #[error("image {path} cannot be read")]
    ReadImage {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A file that is no image that can be used.
    #[error("image {path}")]
    Image {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: oqvl_image_prep::DecodeError,
    },
    /// The question has another number of placeholders than there are images.
    #[error(
        "the question says <image> {placeholders} times, and there are {images} images for it; without any <image> they are \
         put before it"
    )]
    Placeholders {
        /// Number in the question.
        placeholders: usize,
        /// Images given.
        images: usize,
    },
    /// The prompt leaves no room for an answer.
    #[error("the prompt is {len} tokens long, images included, and the model takes {max} with its answer")]
    PromptTooLong {
        /// Length of the prompt.
        len: usize,
        /// Positions of the model.
        max: usize,
    },
    /// Standard input cannot be read, or an answer cannot be written.
    #[error("{what}")]
    Io {
        /// What was done.
        what: &'static str,
        /// The operating system's reason.
        source: std::io::Error,
    },
}

impl From<ModelError> for ChatError {
    fn from(error: ModelError) -> Self {
        match &error {
            ModelError::Incomplete { missing, .. } => {
                let parts = missing.iter().map(|(backbone, _)| backbone.name());
                Self::Incomplete(ModelFlags::missing(parts, &error.to_string()))
            }
            _ => Self::Model(error),
        }
    }
}

impl ProgramError for ChatError {
    fn is_wrong_request(&self) -> bool {
        match self {
            Self::Request(_) | Self::Incomplete(_) => true,
            Self::Place(error) => error.is_wrong_request(),
            Self::Model(error) => error.is_wrong_request(),
            _ => false,
        }
    }
}
