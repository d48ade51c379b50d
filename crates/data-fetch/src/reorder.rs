//! Results arrive in the order servers answer and are wanted in list order: a buffer of bounded memory in
//! between.
//!
//! Up to a budget of bytes, images that are early wait in memory; beyond it they are spilled to an unnamed
//! temporary file beside the shard, which vanishes with the process. So one slow URL delays neither the
//! others nor the memory.

use crate::reject::Reject;
use crate::transform::StoredImage;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// What became of one row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowOutcome {
    /// Position of the row in its shard.
    pub(crate) row_idx: usize,
    /// The image, or why there is none.
    pub(crate) result: Result<StoredImage, Reject>,
    /// Attempts after the first.
    pub(crate) num_retries: u64,
    /// Length of the body, if it came complete.
    pub(crate) num_bytes: u64,
}

/// Puts outcomes into the order of their rows.
#[derive(Debug)]
pub(crate) struct ReorderBuffer {
    /// The rows to come, the next one first.
    rows: VecDeque<usize>,
    held: BTreeMap<usize, Held>,
    held_bytes: u64,
    budget_bytes: u64,
    spill: Option<Spill>,
    dir: PathBuf,
}

#[derive(Debug)]
struct Held {
    /// Without its image bytes and EXIF if they are spilled.
    outcome: RowOutcome,
    place: Place,
}

/// What an image takes while it is held.
fn held_bytes(image: &StoredImage) -> u64 {
    (image.bytes.len() + image.exif.as_ref().map_or(0, String::len)) as u64
}

/// Where the bytes of a held image are.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// With the outcome, on their way out: not counted.
    Passing,
    /// With the outcome, counted.
    Memory,
    /// In the spill file.
    Spill { bytes: Extent, exif: Option<Extent> },
}

/// A stretch of the spill file.
#[derive(Debug, Clone, Copy)]
struct Extent {
    offset: u64,
    num_bytes: usize,
}

#[derive(Debug)]
struct Spill {
    file: File,
    end: u64,
}

impl ReorderBuffer {
    /// For the outcomes of `rows`, wanted in that order. The spill file, should one be needed, is created in `dir`.
    pub(crate) fn new(dir: &Path, budget_bytes: u64, rows: impl IntoIterator<Item = usize>) -> Self {
        let dir = dir.to_path_buf();
        Self {
            rows: rows.into_iter().collect(),
            held: BTreeMap::new(),
            held_bytes: 0,
            budget_bytes,
            spill: None,
            dir,
        }
    }

    /// Takes an outcome. Each row may come once.
    ///
    /// # Errors
    /// If the spill file cannot be created or written.
    pub(crate) fn insert(&mut self, mut outcome: RowOutcome) -> io::Result<()> {
        let mut place = Place::Passing;
        if let Ok(image) = &mut outcome.result
            && Some(&outcome.row_idx) != self.rows.front()
        {
            let num_bytes = held_bytes(image);
            if self.held_bytes + num_bytes > self.budget_bytes {
                let bytes = self.spill(&std::mem::take(&mut image.bytes))?;
                let exif = image.exif.take().map(|exif| self.spill(exif.as_bytes())).transpose()?;
                place = Place::Spill { bytes, exif };
            } else {
                self.held_bytes += num_bytes;
                place = Place::Memory;
            }
        }
        let row_idx = outcome.row_idx;
        let before = self.held.insert(row_idx, Held { outcome, place });
        assert!(before.is_none() && self.held.len() <= self.rows.len(), "row {row_idx} came twice");
        Ok(())
    }

    /// The outcome of the next row, if it is there.
    ///
    /// # Errors
    /// If the spill file cannot be read.
    pub(crate) fn pop(&mut self) -> io::Result<Option<RowOutcome>> {
        let next = self.rows.front().and_then(|row_idx| self.held.remove(row_idx));
        let Some(Held { mut outcome, place }) = next else { return Ok(None) };
        self.rows.pop_front();
        if let Ok(image) = &mut outcome.result {
            match (place, &mut self.spill) {
                (Place::Spill { bytes, exif }, Some(spill)) => {
                    image.bytes = spill.read(bytes)?;
                    let exif = exif.map(|exif| spill.read(exif)).transpose()?;
                    image.exif = exif.map(String::from_utf8).transpose().map_err(io::Error::other)?;
                }
                (Place::Memory, _) => self.held_bytes -= held_bytes(image),
                _ => {}
            }
        }
        Ok(Some(outcome))
    }

    /// Whether all outcomes are there or have been taken.
    pub(crate) fn is_complete(&self) -> bool {
        self.held.len() == self.rows.len()
    }

    /// Whether all outcomes have been taken.
    pub(crate) fn is_drained(&self) -> bool {
        self.rows.is_empty()
    }

    fn spill(&mut self, bytes: &[u8]) -> io::Result<Extent> {
        if self.spill.is_none() {
            self.spill = Some(Spill { file: tempfile::tempfile_in(&self.dir)?, end: 0 });
        }
        let spill = self.spill.as_mut().expect("it was put there just now");
        spill.append(bytes)
    }
}

impl Spill {
    fn append(&mut self, bytes: &[u8]) -> io::Result<Extent> {
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(bytes)?;
        let extent = Extent { offset: self.end, num_bytes: bytes.len() };
        self.end += bytes.len() as u64;
        Ok(extent)
    }

    fn read(&mut self, extent: Extent) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; extent.num_bytes];
        self.file.seek(SeekFrom::Start(extent.offset))?;
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::ContentLabel;
    use proptest::prelude::*;

    fn outcome(row_idx: usize) -> RowOutcome {
        let image = StoredImage {
            bytes: vec![row_idx as u8; row_idx % 7],
            sizes: None,
            exif: (!row_idx.is_multiple_of(3)).then(|| "e".repeat(row_idx % 3 * 5)),
            digest: Some(row_idx.to_string()),
            label: ContentLabel::Honest,
        };
        let result = if row_idx % 5 == 4 { Err(Reject::NotFound) } else { Ok(image) };
        RowOutcome { row_idx, result, num_retries: 0, num_bytes: row_idx as u64 }
    }

    proptest! {
        /// Whatever the order of arrival and the budget: every outcome comes out once, whole and in order.
        #[test]
        fn order_is_restored(
            order in Just((0..40_usize).collect::<Vec<_>>()).prop_shuffle(),
            budget_bytes in prop_oneof![Just(0_u64), 1..60_u64, Just(u64::MAX / 2)],
        ) {
            let dir = tempfile::tempdir().unwrap();
            let mut buffer = ReorderBuffer::new(dir.path(), budget_bytes, 0..40);
            let mut popped = Vec::new();
            for row_idx in order {
                buffer.insert(outcome(row_idx)).unwrap();
                while let Some(next) = buffer.pop().unwrap() {
                    popped.push(next);
                }
                prop_assert!(buffer.held_bytes <= budget_bytes);
            }
            prop_assert_eq!(popped, (0..40).map(outcome).collect::<Vec<_>>());
            prop_assert_eq!(buffer.held_bytes, 0);
            prop_assert!(buffer.is_complete() && buffer.is_drained());
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the spill file has no name");
        }
    }

    #[test]
    fn some_rows_may_be_all() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer = ReorderBuffer::new(dir.path(), 0, [3, 8, 21]);
        for row_idx in [21, 8] {
            buffer.insert(outcome(row_idx)).unwrap();
            assert_eq!((buffer.pop().unwrap(), buffer.is_complete()), (None, false));
        }
        buffer.insert(outcome(3)).unwrap();
        assert!(buffer.is_complete());
        for row_idx in [3, 8, 21] {
            assert_eq!(buffer.pop().unwrap(), Some(outcome(row_idx)));
        }
        assert!(buffer.is_drained());
    }

    #[test]
    #[should_panic(expected = "row 0 came twice")]
    fn a_row_that_comes_twice_is_a_bug() {
        let dir = tempfile::tempdir().unwrap();
        let mut buffer = ReorderBuffer::new(dir.path(), 0, [0]);
        buffer.insert(outcome(0)).unwrap();
        buffer.pop().unwrap();
        buffer.insert(outcome(0)).unwrap();
    }
}
