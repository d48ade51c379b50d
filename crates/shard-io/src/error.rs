//! What can be wrong with a file of the pipeline.

use std::io;
use std::path::{Path, PathBuf};

/// A shard, sidecar, subset, pack or manifest that cannot be read or written.
///
/// Every variant says where to look: the file and, inside a tar, the sample or member and the byte offset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ShardError {
    /// The operating system refused to read or write.
    #[error("{path}: cannot read or write the file")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A directory of shards holds none.
    #[error("{path}: no shard (`*.tar`) in this directory")]
    NoShards {
        /// The directory.
        path: PathBuf,
    },
    /// Reading the tar stream failed part-way.
    #[error("{path}: reading failed at byte {offset}, in or after `{member}`")]
    Read {
        /// The tar.
        path: PathBuf,
        /// The last member whose name was read; `(start)` before the first.
        member: String,
        /// Bytes of the stream consumed before the failure.
        offset: u64,
        /// What the reader said.
        source: io::Error,
    },
    /// The tar ends in the middle of a header, of a member or of its padding.
    #[error("{path}: truncated at byte {offset}, in or after `{member}`")]
    Truncated {
        /// The tar.
        path: PathBuf,
        /// The last member whose name was read; `(start)` before the first.
        member: String,
        /// Where the missing header, member or padding starts.
        offset: u64,
    },
    /// The tar ends where a member could begin, but without the zero block that closes a tar: whoever wrote it was
    /// stopped, and samples may be missing. What is there is whole, and has been handed out.
    #[error(
        "{path}: ends at byte {offset}, after `{member}`, without the closing block of a tar: samples may be missing"
    )]
    Unterminated {
        /// The tar.
        path: PathBuf,
        /// The last member; `(start)` in an empty file.
        member: String,
        /// Where the closing block should be.
        offset: u64,
    },
    /// A tar header that is not one: wrong checksum, a size that is no number, a malformed pax record.
    #[error("{path}: damaged tar header at byte {offset}, after `{member}`: {problem}")]
    Header {
        /// The tar.
        path: PathBuf,
        /// The last member whose name was read; `(start)` before the first.
        member: String,
        /// Where the header starts.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A member name from which no sample key and extension can be taken, or which points outside the shard.
    #[error("{path}: member `{member}` at byte {offset} has a bad name: {problem}")]
    MemberName {
        /// The tar.
        path: PathBuf,
        /// The name, lossily decoded and cut to a printable length.
        member: String,
        /// Where the member's header starts.
        offset: u64,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A tar entry that is neither a file nor a directory: a link, a device, a sparse file.
    #[error("{path}: entry `{member}` at byte {offset} is not a plain file (tar type `{kind}`)")]
    EntryKind {
        /// The tar.
        path: PathBuf,
        /// The entry's name.
        member: String,
        /// Where the entry's header starts.
        offset: u64,
        /// The type byte of its header, printable.
        kind: String,
    },
    /// A member or sample larger than the [`ReadLimits`](crate::ReadLimits) allow.
    #[error("{path}: sample `{key}` at byte {offset}: {what} is {found}, above the limit of {limit}")]
    Limit {
        /// The tar.
        path: PathBuf,
        /// The sample.
        key: String,
        /// Where the offending member's header starts.
        offset: u64,
        /// The limited quantity, with its unit.
        what: &'static str,
        /// Its value.
        found: u64,
        /// The largest allowed value.
        limit: u64,
    },
    /// A string that cannot be a sample key.
    #[error("`{key}` cannot be a sample key: {problem}")]
    Key {
        /// The string, cut to a printable length.
        key: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A sample that cannot be written: no member, a member twice, or an impossible extension.
    #[error("{path}: sample `{key}` cannot be written: member `{extension}` {problem}")]
    Unwritable {
        /// The tar being written.
        path: PathBuf,
        /// The sample.
        key: String,
        /// The offending extension; empty when the sample has no member at all.
        extension: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A byte range that lies outside the shard.
    #[error("{path}: bytes {offset}..{offset}+{num_bytes} lie outside the file of {file_bytes} bytes")]
    OutOfBounds {
        /// The tar.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        num_bytes: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// A text member that is not UTF-8.
    #[error("sample `{key}`: member `{extension}` at byte {offset} is not utf-8")]
    Utf8 {
        /// The sample.
        key: String,
        /// The member.
        extension: String,
        /// Where the member's data starts in the shard.
        offset: u64,
    },
    /// A `json` member that is not the expected JSON.
    #[error("sample `{key}`: member `json` at byte {offset} holds unexpected JSON")]
    SampleJson {
        /// The sample.
        key: String,
        /// Where the member's data starts in the shard.
        offset: u64,
        /// Where and how parsing failed.
        source: serde_json::Error,
    },
    /// A JSON file that is not the expected JSON.
    #[error("{path}: unexpected JSON")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and how parsing failed.
        source: serde_json::Error,
    },
    /// A parquet file the parquet library rejects.
    #[error("{path}: not a readable parquet file")]
    Parquet {
        /// The file.
        path: PathBuf,
        /// What the library said.
        source: parquet::errors::ParquetError,
    },
    /// A parquet table whose columns or metadata are not those of its format, or values that break its rules.
    #[error("{path}: `{column}`: {problem}")]
    Table {
        /// The file.
        path: PathBuf,
        /// The column or metadata key.
        column: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A `.npy` file that is not a uid subset.
    #[error("{path}: not a uid subset: {problem}")]
    Npy {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A string that is not a 128-bit uid.
    #[error("`{uid}` is not a uid: expected 32 hexadecimal digits")]
    Uid {
        /// The string, cut to a printable length.
        uid: String,
    },
}

impl ShardError {
    /// The reason under which a stage counts a shard that it reads up to this error: `unterminated-shard` if
    /// everything that is there could be read, `damaged-shard` if not.
    #[must_use]
    pub fn shard_reason(&self) -> &'static str {
        match self {
            ShardError::Unterminated { .. } => "unterminated-shard",
            _ => "damaged-shard",
        }
    }

    /// Wraps an operating-system error with the path it concerns; for use in `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> ShardError + '_ {
        move |source| ShardError::Io { path: path.to_path_buf(), source }
    }

    /// Wraps a parquet error with the path it concerns; for use in `map_err`.
    pub(crate) fn parquet(path: &Path) -> impl FnOnce(parquet::errors::ParquetError) -> ShardError + '_ {
        move |source| ShardError::Parquet { path: path.to_path_buf(), source }
    }
}

/// Cuts `text` to something a terminal survives: at most 120 characters, control characters escaped.
pub(crate) fn printable(text: &str) -> String {
    const MAX_CHARS: usize = 120;
    let mut shown: String = text.chars().take(MAX_CHARS).flat_map(char::escape_debug).collect();
    if text.chars().nth(MAX_CHARS).is_some() {
        shown.push('…');
    }
    shown
}
