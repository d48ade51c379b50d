//! Writing the files of a world directory.

use crate::error::WorldError;
use crate::records::BodyRef;
use oqvl_shard_io::{Sample, SampleKey, ShardWriter, write_atomic};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The directory of a world and what lies where in it.
#[derive(Debug, Clone)]
pub struct WorldDir {
    root: PathBuf,
}

impl WorldDir {
    /// The world in `root`.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> WorldDir {
        WorldDir { root: root.into() }
    }

    /// A file or directory of the world.
    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// Every URL with its caption.
    #[must_use]
    pub fn urls(&self) -> PathBuf {
        self.path("urls.jsonl")
    }

    /// The truth about every URL.
    #[must_use]
    pub fn truth(&self) -> PathBuf {
        self.path("truth.jsonl")
    }

    /// What the server answers.
    #[must_use]
    pub fn routes(&self) -> PathBuf {
        self.path("routes.jsonl")
    }

    /// The shards that hold what the server serves.
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.path("images")
    }

    /// Makes a directory of the world, and those above it.
    pub(crate) fn create_dir(&self, relative: &str) -> Result<PathBuf, WorldError> {
        let path = self.path(relative);
        std::fs::create_dir_all(&path).map_err(WorldError::io("create", &path))?;
        Ok(path)
    }

    /// Writes a file whose directory exists.
    pub(crate) fn write(&self, relative: &str, bytes: &[u8]) -> Result<(), WorldError> {
        let path = self.path(relative);
        write_atomic(&path, bytes).map_err(WorldError::io("write", &path))
    }
}

/// One JSON text per line.
pub(crate) fn write_jsonl<T: Serialize>(
    path: &Path,
    records: impl IntoIterator<Item = T>,
) -> Result<(), WorldError> {
    let mut bytes = Vec::new();
    for (line, record) in records.into_iter().enumerate() {
        serde_json::to_writer(&mut bytes, &record).map_err(|source| WorldError::Line {
            path: path.to_path_buf(),
            line: line + 1,
            source,
        })?;
        bytes.push(b'\n');
    }
    write_atomic(path, &bytes).map_err(WorldError::io("write", path))
}

/// Reads a file of one JSON text per line; empty lines are skipped.
pub(crate) fn read_jsonl<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Vec<T>, WorldError> {
    let text = std::fs::read_to_string(path).map_err(WorldError::io("read", path))?;
    (text.lines().enumerate())
        .filter(|(_, line)| !line.trim().is_empty())
        .map(|(index, line)| {
            serde_json::from_str(line).map_err(|source| WorldError::Line {
                path: path.to_path_buf(),
                line: index + 1,
                source,
            })
        })
        .collect()
}

/// Writes samples into numbered shards of a fixed number of samples: `00000.tar`, `00001.tar`, …
pub(crate) struct ShardSet {
    dir: PathBuf,
    samples_per_shard: usize,
    current: Option<ShardWriter>,
    num_samples: usize,
}

impl ShardSet {
    /// `dir` must exist.
    pub(crate) fn new(dir: PathBuf, samples_per_shard: usize) -> ShardSet {
        ShardSet { dir, samples_per_shard, current: None, num_samples: 0 }
    }

    fn shard_name(&self) -> String {
        format!("{:05}.tar", self.num_samples / self.samples_per_shard)
    }

    /// The key of the next sample: nine digits, the shard's number and the place in it.
    pub(crate) fn next_key(&self) -> SampleKey {
        let (shard, place) =
            (self.num_samples / self.samples_per_shard, self.num_samples % self.samples_per_shard);
        SampleKey::new(format!("{shard:05}{place:04}")).expect("digits are a key")
    }

    /// Appends a sample; returns where its members lie, in the order of their extensions.
    pub(crate) fn push(&mut self, sample: &Sample) -> Result<Vec<BodyRef>, WorldError> {
        let shard = self.shard_name();
        let writer = match &mut self.current {
            Some(writer) => writer,
            None => self.current.insert(ShardWriter::create(&self.dir.join(&shard))?),
        };
        let locations = writer.push(sample)?;
        self.num_samples += 1;
        if self.num_samples.is_multiple_of(self.samples_per_shard) {
            self.finish()?;
        }
        let refer = |location: oqvl_shard_io::MemberLocation| BodyRef {
            shard: shard.clone(),
            offset: location.offset,
            num_bytes: location.num_bytes,
        };
        Ok(locations.into_iter().map(refer).collect())
    }

    /// Appends a body of which nothing but the bytes matters.
    pub(crate) fn push_body(&mut self, extension: &str, bytes: Vec<u8>) -> Result<BodyRef, WorldError> {
        let mut sample = Sample::new(self.next_key());
        sample.push(extension, bytes);
        Ok(self.push(&sample)?.swap_remove(0))
    }

    /// Finishes the shard under construction, if there is one.
    pub(crate) fn finish(&mut self) -> Result<(), WorldError> {
        if let Some(writer) = self.current.take() {
            writer.finish()?;
        }
        Ok(())
    }
}
