//! What the first pass notes of each sample, in one small file a shard.
//!
//! The file lies in the index directory until the whole selection is written: a killed run finds there which
//! shards it had read already.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use oqvl_shard_io::{ShardError, Uid, write_atomic};

use crate::MixerError;
use crate::reject::Reject;

/// Half of a BLAKE3 digest: at a billion samples a collision has odds of about 1 in 10^20.
pub(crate) type Digest = [u8; 16];

const MAGIC: &[u8; 8] = b"oqvlplc1";
const HEADER_BYTES: usize = MAGIC.len() + 1;
const RECORD_BYTES: usize = 3 * 8 + 1 + 16 + 2 * 16 + 8;

const HAS_UID: u8 = 1;
const NAMED_BY_UID: u8 = 2;
const BAD_UID: u8 = 4;
const HAS_CONTENT: u8 = 8;
const HAS_CAPTION: u8 = 16;
const HAS_IMAGE_HASH: u8 = 32;

/// What the first pass notes of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Where it starts in its shard.
    pub(crate) offset: u64,
    /// Bytes from there to the end of its last member, padding included.
    pub(crate) num_bytes: u64,
    /// First 64 bits of its key's digest: the second pass sees by it whether it finds the same sample.
    pub(crate) key_check: u64,
    /// Its uid (for a sample without one, derived from its key), or why it has no usable one.
    pub(crate) uid: Result<Uid, Reject>,
    /// Whether the uid is its own.
    pub(crate) named_by_uid: bool,
    /// Digest of the image bytes, if samples are compared by them and there is an image.
    pub(crate) content: Option<Digest>,
    /// Digest of the caption, if samples are compared by it and there is one.
    pub(crate) caption: Option<Digest>,
    /// Perceptual hash of the image, if one was asked for and the image can be decoded.
    pub(crate) image_hash: Option<u64>,
}

/// How a tar ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum ShardEnd {
    /// As it should.
    #[default]
    Whole,
    /// With something that cannot be read: what follows is not known.
    Damaged,
    /// After a whole sample, without its end blocks: more may have been meant to follow.
    Unterminated,
}

impl ShardEnd {
    /// The end that `error` is; the disk is not at fault.
    pub(crate) fn of(error: &ShardError) -> ShardEnd {
        match error {
            ShardError::Unterminated { .. } => ShardEnd::Unterminated,
            _ => ShardEnd::Damaged,
        }
    }

    /// What is counted for the samples that may be missing.
    pub(crate) fn reject(self) -> Option<Reject> {
        match self {
            ShardEnd::Whole => None,
            ShardEnd::Damaged => Some(Reject::DamagedShard),
            ShardEnd::Unterminated => Some(Reject::UnterminatedShard),
        }
    }

    fn byte(self) -> u8 {
        match self {
            ShardEnd::Whole => 0,
            ShardEnd::Damaged => 1,
            ShardEnd::Unterminated => 2,
        }
    }

    fn from_byte(byte: u8) -> Option<ShardEnd> {
        [ShardEnd::Whole, ShardEnd::Damaged, ShardEnd::Unterminated]
            .into_iter()
            .find(|end| end.byte() == byte)
    }
}

/// The samples of one shard.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Places {
    /// In shard order.
    pub(crate) samples: Vec<Place>,
    /// How the tar ends behind the last of them.
    pub(crate) end: ShardEnd,
}

impl Places {
    /// Writes the file.
    pub(crate) fn write(&self, path: &Path) -> Result<(), MixerError> {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.samples.len() * RECORD_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.push(self.end.byte());
        self.samples.iter().for_each(|place| place.encode(&mut bytes));
        write_atomic(path, &bytes).map_err(|source| MixerError::Scratch { path: path.to_path_buf(), source })
    }

    /// Reads the file; `None` if it is not one of these.
    pub(crate) fn read(path: &Path) -> Result<Option<Places>, MixerError> {
        let bytes = std::fs::read(path)
            .map_err(|source| MixerError::Shard(ShardError::Io { path: path.to_path_buf(), source }))?;
        let Some(rest) = bytes.strip_prefix(MAGIC) else { return Ok(None) };
        let Some((end, records)) = rest.split_first() else { return Ok(None) };
        let Some(end) = ShardEnd::from_byte(*end) else { return Ok(None) };
        if records.len() % RECORD_BYTES != 0 {
            return Ok(None);
        }
        let samples = records.chunks_exact(RECORD_BYTES).map(Place::decode).collect();
        Ok(Some(Places { samples, end }))
    }

    /// Reads one sample; `None` if the file is not one of these, or has no such sample.
    pub(crate) fn read_one(path: &Path, position: u64) -> Result<Option<Place>, MixerError> {
        let failed = |source| MixerError::Shard(ShardError::Io { path: path.to_path_buf(), source });
        let file = std::fs::File::open(path).map_err(failed)?;
        let mut header = [0; MAGIC.len()];
        let mut record = [0; RECORD_BYTES];
        let start = HEADER_BYTES as u64 + position * RECORD_BYTES as u64;
        let read = file.read_exact_at(&mut header, 0).and_then(|()| file.read_exact_at(&mut record, start));
        match read {
            Ok(()) => Ok((header == *MAGIC).then(|| Place::decode(&record))),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    /// The number of samples in the file and how the tar ends, without reading all of it.
    pub(crate) fn read_summary(path: &Path) -> Option<(u64, ShardEnd)> {
        use std::io::Read as _;
        let mut file = std::fs::File::open(path).ok()?;
        let record_bytes = file.metadata().ok()?.len().checked_sub(HEADER_BYTES as u64)?;
        let mut header = [0; HEADER_BYTES];
        file.read_exact(&mut header).ok()?;
        let is_whole = header.starts_with(MAGIC) && record_bytes % RECORD_BYTES as u64 == 0;
        let end = ShardEnd::from_byte(header[MAGIC.len()])?;
        is_whole.then_some((record_bytes / RECORD_BYTES as u64, end))
    }
}

impl Place {
    fn encode(&self, bytes: &mut Vec<u8>) {
        for number in [self.offset, self.num_bytes, self.key_check] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.uid.is_ok(), HAS_UID)
            | flag(self.named_by_uid, NAMED_BY_UID)
            | flag(self.uid == Err(Reject::BadUid), BAD_UID)
            | flag(self.content.is_some(), HAS_CONTENT)
            | flag(self.caption.is_some(), HAS_CAPTION)
            | flag(self.image_hash.is_some(), HAS_IMAGE_HASH);
        bytes.push(flags);
        let (high, low) = self.uid.map_or((0, 0), Uid::halves);
        bytes.extend_from_slice(&high.to_le_bytes());
        bytes.extend_from_slice(&low.to_le_bytes());
        bytes.extend_from_slice(&self.content.unwrap_or_default());
        bytes.extend_from_slice(&self.caption.unwrap_or_default());
        bytes.extend_from_slice(&self.image_hash.unwrap_or_default().to_le_bytes());
    }

    fn decode(record: &[u8]) -> Place {
        let number = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().expect("eight bytes"));
        let digest = |at: usize| record[at..at + 16].try_into().expect("sixteen bytes");
        let flags = record[24];
        let has = |flag: u8| flags & flag != 0;
        let uid = match () {
            () if has(HAS_UID) => Ok(Uid::from_halves(number(25), number(33))),
            () if has(BAD_UID) => Err(Reject::BadUid),
            () => Err(Reject::BadMetadata),
        };
        Place {
            offset: number(0),
            num_bytes: number(8),
            key_check: number(16),
            uid,
            named_by_uid: has(NAMED_BY_UID),
            content: has(HAS_CONTENT).then(|| digest(41)),
            caption: has(HAS_CAPTION).then(|| digest(57)),
            image_hash: has(HAS_IMAGE_HASH).then(|| number(73)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn write_then_read_is_identity() {
        let full = Place {
            offset: 512,
            num_bytes: 3072,
            key_check: 7,
            uid: Ok(Uid::from_halves(1, u64::MAX)),
            named_by_uid: true,
            content: Some([9; 16]),
            caption: Some([8; 16]),
            image_hash: Some(0),
        };
        let bad = |reject| Place {
            uid: Err(reject),
            named_by_uid: false,
            content: None,
            caption: None,
            image_hash: None,
            ..full
        };
        let samples = vec![full, bad(Reject::BadUid), bad(Reject::BadMetadata)];
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for end in [ShardEnd::Whole, ShardEnd::Damaged, ShardEnd::Unterminated] {
            let places = Places { samples: samples.clone(), end };
            places.write(&path).unwrap();
            let one_by_one = (0..4).map(|position| Places::read_one(&path, position).unwrap());
            assert!(one_by_one.eq(places.samples.iter().copied().map(Some).chain([None])));
            assert_eq!(Places::read(&path).unwrap(), Some(places));
            assert_eq!(Places::read_summary(&path), Some((3, end)));
        }
        write_atomic(&path, b"something else").unwrap();
        assert_eq!(Places::read(&path).unwrap(), None);
        assert_eq!((Places::read_summary(&path), Places::read_one(&path, 0).unwrap()), (None, None));
        write_atomic(&path, &[7; 1000]).unwrap();
        assert_eq!(Places::read_one(&path, 0).unwrap(), None);
        assert!(matches!(Places::read_one(&dir.path().join("y"), 0), Err(MixerError::Shard(_))));
    }
}
