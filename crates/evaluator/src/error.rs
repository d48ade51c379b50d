//! What an evaluation cannot go on after. Rows that cannot be asked are counted instead.

use std::path::PathBuf;

/// Why an evaluation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluatorError {
    /// A benchmark file or the prediction log could not be read or written.
    #[error("{path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        source: std::io::Error,
    },
    /// A benchmark file is not of its format as a whole, so that no single row can be blamed.
    #[error("{path}: not a {format} file: {problem}")]
    Format {
        /// The file.
        path: PathBuf,
        /// The expected format.
        format: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// The prediction log of an earlier run does not belong to the benchmark file.
    #[error("{path}: line {line}: {problem}; remove the file to ask all questions again")]
    PredictionLog {
        /// The log.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong with it.
        problem: String,
    },
    /// Not one question of a benchmark could be asked.
    #[error(
        "benchmark `{benchmark}`: none of its {num_rejected} rows can be asked, most often because of {reason}"
    )]
    NothingToAsk {
        /// Its name in the config.
        benchmark: String,
        /// Rows seen, all of them rejected.
        num_rejected: u64,
        /// The most frequent reason.
        reason: String,
    },
    /// A responder broke its contract.
    #[error("{expected} requests got {found} answers")]
    AnswerCount {
        /// Requests made.
        expected: usize,
        /// Answers returned.
        found: usize,
    },
    /// The model failed, or its checkpoint cannot be loaded.
    #[error("the model failed")]
    Model(#[from] oqvl_model::ModelError),
    /// A prompt cannot be turned into tokens, or tokens into text.
    #[error("the tokenizer failed")]
    Text(#[from] oqvl_text_prep::TextError),
    /// A result file could not be written.
    #[error("{0}")]
    Results(#[from] oqvl_shard_io::ShardError),
    /// The run was stopped; answered questions are kept.
    #[error("{0}")]
    Interrupted(#[from] oqvl_stage::Interrupted),
}

impl EvaluatorError {
    /// Wraps an operating-system error with the path it concerns; for use in `map_err`.
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
