//! Shards in a stream: consecutive members of a tar, grouped into samples.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use crate::error::printable;
use crate::sample::{MAX_EXTENSION_BYTES, key_problem};
use crate::tar_entries::{FileEntry, TarEntries};
use crate::{Member, Sample, SampleKey, ShardError};

/// How much of a shard may be in memory at once; anything larger is an error, not an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadLimits {
    /// Largest member in bytes.
    pub max_member_bytes: u64,
    /// Largest sum of the members of one sample in bytes.
    pub max_sample_bytes: u64,
    /// Largest number of members of one sample.
    pub max_members_per_sample: usize,
}

impl Default for ReadLimits {
    /// 256 MiB per member, 512 MiB and 256 members per sample: far above any image-text pair (the reference
    /// stores images of at most 512 pixels on one side), far below what hurts a machine.
    fn default() -> ReadLimits {
        ReadLimits { max_member_bytes: 256 << 20, max_sample_bytes: 512 << 20, max_members_per_sample: 256 }
    }
}

/// The samples of a shard, one after the other.
///
/// Consecutive members with the same directory and the same file name up to its first dot are one sample; an
/// extension seen twice starts a new sample (the rule of the Python `webdataset` library and of the DataComp
/// resharder, which also lower-case extensions).
///
/// A sample is handed out once the start of the next, or the end of the archive, shows that it is complete.
/// After an error the iterator ends: behind a damaged header nothing can be trusted.
#[derive(Debug)]
pub struct ShardReader<R> {
    entries: TarEntries<R>,
    limits: ReadLimits,
    /// An entry that starts the next sample; its content is still in the stream.
    lookahead: Option<NamedEntry>,
    finished: bool,
}

/// A file entry with its name taken apart.
#[derive(Debug)]
struct NamedEntry {
    entry: FileEntry,
    key: SampleKey,
    /// Length of the directory and key at the start of the entry's name: what groups members.
    group_len: usize,
    extension: String,
}

impl NamedEntry {
    fn group(&self) -> &str {
        &self.entry.name[..self.group_len]
    }
}

impl ShardReader<BufReader<File>> {
    /// Opens the tar at `path` with the default limits.
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<Self, ShardError> {
        ShardReader::open_at(path, 0)
    }

    /// Opens the tar at `path` and goes to a sample in its midst, whose [`Sample::offset`] an earlier reading
    /// told; default limits.
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be opened. An offset where no header starts is noticed at the first
    /// sample.
    pub fn open_at(path: &Path, offset: u64) -> Result<Self, ShardError> {
        let mut file = File::open(path).map_err(ShardError::io(path))?;
        file.seek(SeekFrom::Start(offset)).map_err(ShardError::io(path))?;
        let reader = BufReader::with_capacity(1 << 16, file);
        Ok(ShardReader::starting_at(reader, path.to_path_buf(), ReadLimits::default(), offset))
    }
}

impl<R: Read> ShardReader<R> {
    /// Reads a tar from any stream; `path` is only for messages. Reads in small pieces: hand in a buffered
    /// reader.
    pub fn new(reader: R, path: impl Into<PathBuf>, limits: ReadLimits) -> ShardReader<R> {
        ShardReader::starting_at(reader, path.into(), limits, 0)
    }

    fn starting_at(reader: R, path: PathBuf, limits: ReadLimits, position: u64) -> ShardReader<R> {
        let entries = TarEntries::new(reader, path, position);
        ShardReader { entries, limits, lookahead: None, finished: false }
    }

    fn next_sample(&mut self) -> Result<Option<Sample>, ShardError> {
        let first = match self.lookahead.take() {
            Some(entry) => entry,
            None => match self.next_entry()? {
                Some(entry) => entry,
                None => return Ok(None),
            },
        };
        let group = first.group().to_owned();
        let mut sample = Sample::new(first.key.clone());
        sample.offset = first.entry.start_offset;
        let mut sample_bytes = 0;
        let mut next = Some(first);
        while let Some(named) = next {
            if named.group() != group || sample.member(&named.extension).is_some() {
                self.lookahead = Some(named);
                return Ok(Some(sample));
            }
            sample_bytes += self.check_limits(&named, &sample, sample_bytes)?;
            let data = self.entries.read_data(named.entry.num_bytes)?;
            sample.members.push(Member { extension: named.extension, data, offset: named.entry.data_offset });
            next = self.next_entry()?;
        }
        self.finished = true;
        Ok(Some(sample))
    }

    fn next_entry(&mut self) -> Result<Option<NamedEntry>, ShardError> {
        let Some(entry) = self.entries.next_file()? else { return Ok(None) };
        match split_name(&entry.name) {
            Ok((group_len, key, extension)) => Ok(Some(NamedEntry { key, group_len, extension, entry })),
            Err(problem) => Err(ShardError::MemberName {
                path: self.entries.path().clone(),
                member: printable(&entry.name),
                offset: entry.header_offset,
                problem,
            }),
        }
    }

    /// Refuses a member that would exceed the limits; returns its size.
    fn check_limits(
        &self,
        named: &NamedEntry,
        sample: &Sample,
        sample_bytes: u64,
    ) -> Result<u64, ShardError> {
        let num_bytes = named.entry.num_bytes;
        let num_members = sample.members.len() as u64 + 1;
        let checks = [
            ("member size in bytes", num_bytes, self.limits.max_member_bytes),
            ("sample size in bytes", sample_bytes.saturating_add(num_bytes), self.limits.max_sample_bytes),
            ("number of members", num_members, self.limits.max_members_per_sample as u64),
        ];
        for (what, found, limit) in checks {
            if found > limit {
                return Err(ShardError::Limit {
                    path: self.entries.path().clone(),
                    key: named.key.to_string(),
                    offset: named.entry.header_offset,
                    what,
                    found,
                    limit,
                });
            }
        }
        Ok(num_bytes)
    }
}

impl<R: Read> Iterator for ShardReader<R> {
    type Item = Result<Sample, ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let sample = self.next_sample().transpose();
        if !matches!(sample, Some(Ok(_))) {
            self.finished = true;
        }
        sample
    }
}

impl<R: Read> std::iter::FusedIterator for ShardReader<R> {}

/// Takes a member name apart: length of directory plus key, the key, the lower-cased extension.
fn split_name(name: &str) -> Result<(usize, SampleKey, String), &'static str> {
    if name.starts_with('/') {
        return Err("it is an absolute path");
    }
    if name.split('/').any(|component| component == "..") {
        return Err("it points outside the shard");
    }
    let file_start = name.rfind('/').map_or(0, |slash| slash + 1);
    let file_name = &name[file_start..];
    let Some((key, extension)) = file_name.split_once('.') else {
        return Err("it has no extension");
    };
    if extension.is_empty() {
        return Err("it has no extension");
    }
    if extension.chars().any(char::is_control) {
        return Err("its extension contains a control character");
    }
    let extension = extension.to_lowercase();
    if extension.len() > MAX_EXTENSION_BYTES {
        return Err("its extension is longer than 255 bytes");
    }
    match key_problem(key) {
        // The empty key is a hidden file: `.DS_Store`, `._000000000.jpg`.
        Some("it is empty") => Err("it has no key before the first dot"),
        Some(problem) => Err(problem),
        None => {
            let valid = SampleKey::new(key).expect("the key was checked in this match");
            Ok((file_start + key.len(), valid, extension))
        }
    }
}
