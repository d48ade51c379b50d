//! Shards in a stream: consecutive members of a tar, grouped into samples.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
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
/// Consecutive members with the same directory and the same file name up to its first dot are one sample: in
/// `a.b/c.seg.PNG` the directory is `a.b`, the key `c`, the extension `seg.png`. An extension seen twice starts a new
/// sample (the rule of the Python `webdataset` library and of the DataComp resharder, which also lower-case
/// extensions). Files without a key or without an extension (`README`, `.DS_Store`, `._c.jpg`) are passed over, as
/// `webdataset` does, and [counted](ShardReader::num_passed_over).
///
/// A sample is handed out once the start of the next, or the end of the archive, shows that it is complete.
/// After an error the iterator ends: behind a damaged header nothing can be trusted. The error of a tar that was cut
/// between two members, [`ShardError::Unterminated`], comes after all its samples.
#[derive(Debug)]
pub struct ShardReader<R> {
    entries: TarEntries<R>,
    limits: ReadLimits,
    /// An entry that starts the next sample; its content is still in the stream.
    lookahead: Option<NamedEntry>,
    /// What ended the archive, once a sample that was complete has been handed out before it.
    pending: Option<ShardError>,
    finished: bool,
    num_passed_over: u64,
    /// Extensions of members that are handed out without their content.
    hollow: fn(&str) -> bool,
}

/// A file entry with its name taken apart.
#[derive(Debug)]
struct NamedEntry {
    entry: FileEntry,
    /// Length of the directory at the start of the entry's name, its slash included.
    directory_len: usize,
    /// Length of the directory and key at the start of the entry's name: what groups members.
    group_len: usize,
    extension: String,
}

impl NamedEntry {
    fn group(&self) -> &str {
        &self.entry.name[..self.group_len]
    }

    fn key(&self) -> &str {
        &self.entry.name[self.directory_len..self.group_len]
    }
}

/// How much of a shard is read from the disk at once.
const BUFFER_BYTES: usize = 1 << 18;

/// The same where most of it is passed over: enough for the small members between two images.
const SMALL_BUFFER_BYTES: usize = 1 << 12;

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
        let reader = BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(ShardReader::starting_at(reader, path.to_path_buf(), ReadLimits::default(), offset))
    }

    /// Opens the tar at `path` for a look at what is in it: members whose extension is `hollow` have no data, and theirs
    /// is not read from the disk; default limits. All else, errors included, is as with [`open`](ShardReader::open).
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be opened.
    pub fn open_without(
        path: &Path,
        hollow: fn(&str) -> bool,
    ) -> Result<impl Iterator<Item = Result<Sample, ShardError>> + use<>, ShardError> {
        let file = SparseFile::open(path).map_err(ShardError::io(path))?;
        let mut reader = ShardReader::new(file, path, ReadLimits::default());
        reader.hollow = hollow;
        reader.entries.pass_over_by(SparseFile::pass_over);
        Ok(reader)
    }
}

impl<'a> ShardReader<&'a [u8]> {
    /// Takes a tar, or a piece of one that starts at a header, apart where it lies in memory: no member has data, all
    /// have their places. `path` is only for messages; default limits.
    pub fn in_memory(tar: &'a [u8], path: impl Into<PathBuf>) -> Self {
        let mut reader = ShardReader::new(tar, path, ReadLimits::default());
        reader.hollow = |_| true;
        reader.entries.pass_over_by(|rest, num_bytes| {
            let passed = num_bytes.min(rest.len() as u64);
            *rest = &rest[passed as usize..];
            Ok(passed)
        });
        reader
    }
}

/// A file of which small pieces are read, far apart.
#[derive(Debug)]
struct SparseFile {
    file: File,
    num_bytes: u64,
    position: u64,
    /// What was read last, from `buffer_start` on.
    buffer: Vec<u8>,
    buffer_start: u64,
}

impl SparseFile {
    fn open(path: &Path) -> io::Result<SparseFile> {
        let file = File::open(path)?;
        let num_bytes = file.metadata()?.len();
        Ok(SparseFile { file, num_bytes, position: 0, buffer: Vec::new(), buffer_start: 0 })
    }

    /// Goes on by `num_bytes` or to the end of the file; returns how many there were.
    fn pass_over(&mut self, num_bytes: u64) -> io::Result<u64> {
        let passed = num_bytes.min(self.num_bytes.saturating_sub(self.position));
        self.position += passed;
        Ok(passed)
    }
}

impl Read for SparseFile {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let mut behind = self.position - self.buffer_start;
        if behind >= self.buffer.len() as u64 {
            self.buffer.resize(SMALL_BUFFER_BYTES, 0);
            // Cut also after an error, so that nothing is taken for the file's that is not.
            let read = self.file.read_at(&mut self.buffer, self.position);
            self.buffer.truncate(*read.as_ref().unwrap_or(&0));
            read?;
            (self.buffer_start, behind) = (self.position, 0);
        }
        let rest = &self.buffer[behind as usize..];
        let num_bytes = rest.len().min(out.len());
        out[..num_bytes].copy_from_slice(&rest[..num_bytes]);
        self.position += num_bytes as u64;
        Ok(num_bytes)
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
        let hollow = |_: &str| false;
        ShardReader {
            entries,
            limits,
            lookahead: None,
            pending: None,
            finished: false,
            num_passed_over: 0,
            hollow,
        }
    }

    /// Files passed over so far because their names have no key or no extension.
    #[must_use]
    pub fn num_passed_over(&self) -> u64 {
        self.num_passed_over
    }

    fn next_sample(&mut self) -> Result<Option<Sample>, ShardError> {
        if let Some(error) = self.pending.take() {
            return Err(error);
        }
        let first = match self.lookahead.take() {
            Some(entry) => entry,
            None => match self.next_entry()? {
                Some(entry) => entry,
                None => return Ok(None),
            },
        };
        let mut sample =
            Sample::new(SampleKey::new(first.key()).expect("names are checked when they are split"));
        sample.offset = first.entry.start_offset;
        let mut sample_bytes = self.check_limits(&first, &sample, 0)?;
        self.take_member(&mut sample, first.entry.data_offset, first.entry.num_bytes, first.extension)?;
        let group = &first.entry.name[..first.group_len];
        loop {
            let named = match self.next_entry() {
                Ok(Some(named)) => named,
                Ok(None) => {
                    self.finished = true;
                    return Ok(Some(sample));
                }
                // Everything that is there has been read: the sample is as whole as any.
                Err(error @ ShardError::Unterminated { .. }) => {
                    self.pending = Some(error);
                    return Ok(Some(sample));
                }
                Err(error) => return Err(error),
            };
            if named.group() != group || sample.member(&named.extension).is_some() {
                self.lookahead = Some(named);
                return Ok(Some(sample));
            }
            sample_bytes += self.check_limits(&named, &sample, sample_bytes)?;
            self.take_member(&mut sample, named.entry.data_offset, named.entry.num_bytes, named.extension)?;
        }
    }

    /// Reads the content of the entry just met into the sample.
    fn take_member(
        &mut self,
        sample: &mut Sample,
        offset: u64,
        num_bytes: u64,
        extension: String,
    ) -> Result<(), ShardError> {
        let data = if (self.hollow)(&extension) {
            self.entries.skip_data(num_bytes)?;
            Vec::new()
        } else {
            self.entries.read_data(num_bytes)?
        };
        sample.num_bytes = self.entries.position() - sample.offset;
        sample.members.push(Member { extension, data, offset, num_bytes });
        Ok(())
    }

    /// The next file that belongs to a sample.
    fn next_entry(&mut self) -> Result<Option<NamedEntry>, ShardError> {
        loop {
            let Some(entry) = self.entries.next_file()? else { return Ok(None) };
            let problem = match split_name(&entry.name) {
                Ok(Some(parts)) => return Ok(Some(parts.of(entry))),
                Ok(None) => {
                    self.num_passed_over += 1;
                    self.entries.skip_data(entry.num_bytes)?;
                    continue;
                }
                Err(problem) => problem,
            };
            return Err(ShardError::MemberName {
                path: self.entries.path().clone(),
                member: printable(&entry.name),
                offset: entry.header_offset,
                problem,
            });
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
                    key: named.key().to_owned(),
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

/// Where the parts of a member name are.
struct NameParts {
    directory_len: usize,
    group_len: usize,
    extension: String,
}

impl NameParts {
    fn of(self, entry: FileEntry) -> NamedEntry {
        let NameParts { directory_len, group_len, extension } = self;
        NamedEntry { entry, directory_len, group_len, extension }
    }
}

/// Takes a member name apart; `None` if it has no key or no extension, and so belongs to no sample.
fn split_name(name: &str) -> Result<Option<NameParts>, &'static str> {
    if name.starts_with('/') {
        return Err("it is an absolute path");
    }
    if name.split('/').any(|component| component == "..") {
        return Err("it points outside the shard");
    }
    let directory_len = name.rfind('/').map_or(0, |slash| slash + 1);
    let Some((key, extension)) = name[directory_len..].split_once('.') else { return Ok(None) };
    if key.is_empty() || extension.is_empty() {
        return Ok(None);
    }
    if extension.chars().any(char::is_control) {
        return Err("its extension contains a control character");
    }
    let extension = extension.to_lowercase();
    if extension.len() > MAX_EXTENSION_BYTES {
        return Err("its extension is longer than 255 bytes");
    }
    match key_problem(key) {
        Some(problem) => Err(problem),
        None => Ok(Some(NameParts { directory_len, group_len: directory_len + key.len(), extension })),
    }
}
