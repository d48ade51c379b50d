//! What can be wrong with a file of weights.

/// Why a file of weights was refused. Nothing of a refused file is used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The file cannot be read to its end.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// A folder without any file this crate knows.
    #[error("no weights in this folder; looked for {}", looked_for.join(", "))]
    NoFile {
        /// File names, in the order in which they are preferred.
        looked_for: Vec<String>,
    },
    /// A file whose ending is not known.
    #[error("weights are files that end in .safetensors, or in .bin, .pt, .pth or .ckpt for those of torch")]
    UnknownKind,
    /// An index that is malformed or too long, or names files outside of its folder.
    #[error("this index of shards cannot be used")]
    BadIndex {
        /// Why.
        source: oqvl_shard_io::WeightIndexError,
    },
    /// An index and its shards disagree; every disagreement is listed.
    #[error("the index and its files disagree: {}", problems.join("; "))]
    Index {
        /// One line per disagreement.
        problems: Vec<String>,
    },
    /// The header of a safetensors file.
    #[error("safetensors header: {problem}")]
    Header {
        /// What is wrong.
        problem: String,
    },
    /// Neither a zip archive nor the older format.
    #[error("not a file of torch.save: it does not start as a zip archive")]
    NotTorch,
    /// The format of torch before version 1.6, one pickle after the other.
    #[error(
        "written in torch's format from before version 1.6, which is not read; load it with torch and save it again"
    )]
    LegacyTorch,
    /// A program rather than weights.
    #[error("a TorchScript archive, which holds a program; save its state_dict() instead")]
    TorchScript,
    /// The zip archive around a torch file.
    #[error("torch archive: {problem}")]
    Archive {
        /// What is wrong.
        problem: String,
    },
    /// The pickle inside a torch file.
    #[error("data.pkl, byte {at}: {problem}")]
    Pickle {
        /// Place in the pickle.
        at: usize,
        /// What is wrong.
        problem: String,
    },
    /// A pickle asks for something that weights do not need. It is not looked up, let alone called.
    #[error("data.pkl, byte {at}: names `{name}`, which weights do not need; nothing of it was run")]
    Global {
        /// Place in the pickle.
        at: usize,
        /// Module and name, as the pickle has them.
        name: String,
    },
    /// One tensor.
    #[error("tensor `{name}`: {problem}")]
    Tensor {
        /// Its name.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// A text of a hostile file, as an error may show it.
pub(super) fn shown(text: &str) -> String {
    const MAX_CHARS: usize = 100;
    let mut short: String = text.chars().take(MAX_CHARS).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short.escape_debug().to_string()
}
