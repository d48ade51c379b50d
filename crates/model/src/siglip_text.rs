//! The text side of a SigLIP pair.

use crate::ModelError;
use crate::checkpoint::{TOKENIZER_FILE, is_of_open_clip};
use oqvl_text_prep::{SiglipTextStyle, SiglipTokenizer, TextError, Tokenizer};
use std::path::Path;

/// The tokenizer of a SigLIP pair.
#[derive(Debug)]
pub enum SiglipText {
    /// That of the language model the pair was trained beside: what `bootstrap` makes.
    Ours(Tokenizer),
    /// That of the published pairs.
    Published(SiglipTokenizer),
}

impl SiglipText {
    /// Reads the `tokenizer.json` of a folder; which of both it is, its special tokens say. Captions are read as the folder's
    /// library does it: open_clip's way if it has an `open_clip_config.json`, Hugging Face's if not.
    ///
    /// # Errors
    /// If the file cannot be read or is neither.
    pub fn load(dir: &Path) -> Result<Self, ModelError> {
        let file = dir.join(TOKENIZER_FILE);
        match Tokenizer::from_file(&file) {
            Ok(tokenizer) => Ok(Self::Ours(tokenizer)),
            Err(TextError::MissingSpecialToken { .. }) => {
                let style = match is_of_open_clip(dir) {
                    true => SiglipTextStyle::OpenClip,
                    false => SiglipTextStyle::HuggingFace,
                };
                Ok(Self::Published(SiglipTokenizer::from_file(&file, style)?))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The id that fills what a text leaves of its positions.
    #[must_use]
    pub fn pad_id(&self) -> i64 {
        match self {
            Self::Ours(tokenizer) => tokenizer.pad_id(),
            Self::Published(tokenizer) => tokenizer.pad_id(),
        }
    }

    /// A text as `len` ids, cut or padded: SigLIP attends its padding.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn ids(&self, text: &str, len: usize) -> Result<Vec<i64>, ModelError> {
        match self {
            Self::Ours(tokenizer) => {
                let mut ids = tokenizer.encode(text)?;
                ids.resize(len, self.pad_id());
                Ok(ids)
            }
            Self::Published(tokenizer) => Ok(tokenizer.input(text, len)?),
        }
    }
}
