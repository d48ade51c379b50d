//! Reading: the samples of a unit's files, in order, as documents.

use std::io::Read;
use std::path::Path;

use oqvl_shard_io::{Sample, ShardError, ShardReader};
use oqvl_stage::RunContext;
use rayon::prelude::*;

use crate::document::{DocumentMaker, Made, Reject};
use crate::{PackInput, PackerError};

/// Samples made into documents at once, and the bytes they may have together.
const CHUNK_SAMPLES: usize = 512;
const CHUNK_BYTES: usize = 64 << 20;
/// Packed JSON files read at once.
const CHUNK_FILES: usize = 16;

/// Whether the samples of a unit are shared out among the threads. With more units than threads, units are instead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    /// One thread reads the unit.
    One,
    /// All of them do.
    All,
}

/// Reads the files of a unit.
pub(crate) struct Source<'a> {
    pub(crate) dir: &'a Path,
    pub(crate) input: PackInput,
    pub(crate) maker: DocumentMaker<'a>,
    pub(crate) threads: Threads,
    pub(crate) run: &'a RunContext,
}

impl Source<'_> {
    /// Hands what became of the samples of a shard to `take`, in their order, whatever the number of threads. `names` are
    /// its files, relative to the directory: one tar, or the packed JSON files of one; the first is number `first_file`.
    pub(crate) fn read(
        &self,
        names: &[String],
        first_file: usize,
        take: &mut dyn FnMut(Made) -> Result<(), PackerError>,
    ) -> Result<(), PackerError> {
        if self.input != PackInput::PackedJson {
            return names.iter().enumerate().try_for_each(|(index, name)| {
                self.read_tar(&self.dir.join(name), name, number(first_file + index), take)
            });
        }
        let files: Vec<(u32, &String)> =
            names.iter().enumerate().map(|(index, name)| (number(first_file + index), name)).collect();
        for chunk in files.chunks(CHUNK_FILES) {
            self.run.check_interrupt()?;
            let make = |&(file, name): &(u32, &String)| self.maker.packed(&self.dir.join(name), name, file);
            let made: Vec<Vec<Made>> = match self.threads {
                Threads::One => chunk.iter().map(make).collect::<Result<_, _>>()?,
                Threads::All => chunk.par_iter().map(make).collect::<Result<_, _>>()?,
            };
            made.into_iter().flatten().try_for_each(&mut *take)?;
        }
        Ok(())
    }

    fn read_tar(
        &self,
        path: &Path,
        name: &str,
        file: u32,
        take: &mut dyn FnMut(Made) -> Result<(), PackerError>,
    ) -> Result<(), PackerError> {
        let mut reader = ShardReader::open(path)?;
        let make = |sample: &Sample| {
            let made = match self.input {
                PackInput::Interleaved => self.maker.interleaved(sample, file),
                PackInput::Captions | PackInput::PackedJson => self.maker.captioned(sample, file),
            };
            made.map_err(|source| PackerError::Caption {
                path: path.to_path_buf(),
                key: sample.key.to_string(),
                source,
            })
        };
        let mut chunk = Chunk::read(&mut reader);
        loop {
            self.run.check_interrupt()?;
            let is_last = chunk.end.is_some();
            let (made, next): (Vec<Made>, _) = match self.threads {
                Threads::One => (chunk.samples.iter().map(make).collect::<Result<_, _>>()?, None),
                Threads::All => {
                    let (made, next) = rayon::join(
                        || chunk.samples.par_iter().map(make).collect::<Result<_, _>>(),
                        || (!is_last).then(|| Chunk::read(&mut reader)),
                    );
                    (made?, next)
                }
            };
            made.into_iter().try_for_each(&mut *take)?;
            match chunk.end {
                None => chunk = next.unwrap_or_else(|| Chunk::read(&mut reader)),
                Some(Ok(())) => return Ok(()),
                // The disk, not the data, is at fault: trying again may help, going on would lose samples.
                Some(Err(error @ (ShardError::Io { .. } | ShardError::Read { .. }))) => {
                    return Err(error.into());
                }
                Some(Err(error)) => {
                    tracing::warn!(%error, "the rest of the shard, if there is more, is left out");
                    let document = Err(match error {
                        ShardError::Unterminated { .. } => Reject::UnterminatedShard,
                        _ => Reject::DamagedShard,
                    });
                    return take(Made { key: name.to_owned(), document, skipped_images: Vec::new() });
                }
            }
        }
    }
}

/// Neighbouring samples of a tar.
struct Chunk {
    samples: Vec<Sample>,
    /// How the tar ended, if it ended here.
    end: Option<Result<(), ShardError>>,
}

impl Chunk {
    fn read<R: Read>(reader: &mut ShardReader<R>) -> Self {
        let (mut samples, mut num_bytes) = (Vec::new(), 0);
        while samples.len() < CHUNK_SAMPLES && num_bytes < CHUNK_BYTES {
            match reader.next() {
                Some(Ok(sample)) => {
                    num_bytes += sample.members.iter().map(|member| member.data.len()).sum::<usize>();
                    samples.push(sample);
                }
                Some(Err(error)) => return Self { samples, end: Some(Err(error)) },
                None => return Self { samples, end: Some(Ok(())) },
            }
        }
        Self { samples, end: None }
    }
}

fn number(file: usize) -> u32 {
    u32::try_from(file).expect("fewer than 2^32 input files")
}
