//! What can go wrong between text and ids.

use std::path::PathBuf;

/// An error of the tokenizer, its training, or a template.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The tokenizer file cannot be read.
    #[error("{path}: cannot read the tokenizer")]
    Read {
        /// The `tokenizer.json` asked for.
        path: PathBuf,
        /// Why the file system refused.
        source: std::io::Error,
    },
    /// The bytes are not a Hugging Face `tokenizer.json`.
    #[error("{origin}: not a tokenizer.json")]
    Parse {
        /// The file, or `in memory`.
        origin: String,
        /// What the parser said.
        source: tokenizers::Error,
    },
    /// The tokenizer lacks a token that Open-Qwen2VL relies on.
    #[error("{origin}: the tokenizer has no special token `{token}`")]
    MissingSpecialToken {
        /// The file, or `in memory`.
        origin: String,
        /// The token looked for.
        token: &'static str,
    },
    /// A tokenizer file that is not CLIP's.
    #[error("{origin}: not a CLIP tokenizer: {reason}")]
    NotClip {
        /// The file, or `in memory`.
        origin: String,
        /// What it lacks.
        reason: String,
    },
    /// The tokenizer refused a text.
    #[error("cannot tokenize a text of {num_bytes} bytes")]
    Encode {
        /// Length of the text.
        num_bytes: usize,
        /// What the tokenizer said.
        source: tokenizers::Error,
    },
    /// The tokenizer refused a list of ids.
    #[error("cannot decode {num_ids} ids")]
    Decode {
        /// Length of the list.
        num_ids: usize,
        /// What the tokenizer said.
        source: tokenizers::Error,
    },
    /// An id that stands for no text, such as the image placeholder −200.
    #[error("id {id} at position {position} stands for no text")]
    NotATextId {
        /// The id.
        id: i64,
        /// Its index in the list.
        position: usize,
    },
    /// A chat example needs at least one turn.
    #[error("a conversation without turns has no chat example")]
    EmptyConversation,
    /// The vocabulary asked for cannot hold what every tokenizer must hold.
    #[error(
        "vocab_size is {vocab_size}, but bytes, special tokens and required words need at least {minimum}"
    )]
    VocabTooSmall {
        /// The size asked for.
        vocab_size: usize,
        /// The smallest size that works.
        minimum: usize,
    },
    /// A required word cannot become one token, because the pre-tokenizer cuts it.
    #[error(
        "required word `{word}` cannot be one token: the pre-tokenizer splits it into {num_pieces} pieces"
    )]
    NotOneWord {
        /// The word.
        word: String,
        /// Pieces it falls into.
        num_pieces: usize,
    },
}
