//! What can be wrong with a model, its files or what it is given.

use crate::named::Backbone;
use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A tensor operation failed.
    #[error("tensor operation failed")]
    Tensor(#[from] candle_core::Error),
    /// A file of a checkpoint cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file of a checkpoint cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A checkpoint that leaves parts of its network to other folders.
    #[error(
        "{path} does not hold the whole network; to complete it, give {}, or export it with them to a checkpoint first",
        folders(missing)
    )]
    Incomplete {
        /// The folder.
        path: PathBuf,
        /// What is needed beside it, and what the reference calls that.
        missing: Vec<(Backbone, String)>,
    },
    /// A checkpoint that wants its images made in another way.
    #[error("{path} asks for other images than are made here: {what}")]
    Images {
        /// The file that says so.
        path: PathBuf,
        /// The key, and how images are made.
        what: String,
    },
    /// Weights and config disagree; every disagreement is listed.
    #[error("the weights do not fit the config: {}", problems.join("; "))]
    Weights {
        /// One line per missing, extra or wrongly shaped tensor.
        problems: Vec<String>,
    },
    /// A folder to write that is there already.
    #[error("{path} is there already; give the name of a new folder")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
    /// A layout that cannot express a model.
    #[error("{0}")]
    Layout(String),
    /// A type of numbers that no model is run in.
    #[error("a model can be run in f32 and in bf16, not in {0}")]
    Dtype(&'static str),
    /// A part that the reference would build in another shape than it has.
    #[error(
        "the {backbone} has not the shape of {released}, which the reference would build: say what the reference calls this \
         one"
    )]
    NoBackboneId {
        /// The part.
        backbone: Backbone,
        /// What the reference calls that of the release.
        released: &'static str,
    },
    /// A config that describes no network.
    #[error("config: {0}")]
    Config(String),
    /// The tokenizer of a checkpoint cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] oqvl_text_prep::TextError),
    /// Images and placeholders of a sequence do not match.
    #[error("sequence {row} has {placeholders} image placeholders but {images} images")]
    ImageCount {
        /// Index of the sequence in its batch.
        row: usize,
        /// Number of placeholder ids.
        placeholders: usize,
        /// Number of images.
        images: usize,
    },
    /// A token id that has no embedding.
    #[error("sequence {row}: token id {id} is outside the vocabulary of {vocab_size}")]
    TokenId {
        /// Index of the sequence in its batch.
        row: usize,
        /// The id.
        id: i64,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// A sequence is longer than the network's positions.
    #[error("sequence {row} is {len} tokens long, the model takes {max}")]
    TooLong {
        /// Index of the sequence in its batch.
        row: usize,
        /// Its multimodal length.
        len: usize,
        /// Number of positions.
        max: usize,
    },
    /// A text that CLIP's text tower cannot tell the end of.
    #[error("text {row} has no token that ends it")]
    NoEndOfText {
        /// Index of the text in its batch.
        row: usize,
    },
    /// A wish for generation that makes no sense.
    #[error("generation: {0}")]
    Generation(String),
    /// The network computes infinities or what is no number.
    #[error("sequence {row}: the model gives no finite scores; its weights are damaged")]
    NotFinite {
        /// Index of the sequence in its batch.
        row: usize,
    },
}

impl ModelError {
    /// Whether something else must be asked for, and not a file mended: what is asked for lacks a companion, would overwrite
    /// something, or cannot be expressed.
    #[must_use]
    pub fn is_wrong_request(&self) -> bool {
        matches!(
            self,
            Self::Incomplete { .. } | Self::Exists { .. } | Self::Layout(_) | Self::NoBackboneId { .. }
        )
    }
}

fn folders(missing: &[(Backbone, String)]) -> String {
    let folders = missing.iter().map(|(backbone, id)| format!("the folder of its {backbone} ({id})"));
    folders.collect::<Vec<_>>().join(" and ")
}
