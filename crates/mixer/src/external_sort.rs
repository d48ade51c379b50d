//! Sorting more records than memory holds: sorted runs in scratch files, merged as a stream.
//!
//! Records are byte strings of one length and are ordered as such, so numbers inside are big-endian. What comes out
//! depends on what went in alone, not on its order, on the memory or on the threads.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use oqvl_stage::RunContext;
use rayon::prelude::*;

use crate::MixerError;
use crate::scratch::Scratch;

/// Most runs that are merged at once; more are merged into one first.
const MAX_FAN_IN: usize = 64;

/// Bytes read of a run at once: at `MAX_FAN_IN` runs 16 MiB in all.
const READ_BYTES: usize = 256 << 10;

/// How many records are handed on between two looks at whether the run is to stop.
const RECORDS_PER_CHECK: usize = 1 << 20;

/// Takes records in any order.
#[derive(Debug)]
pub(crate) struct Sorter<const N: usize> {
    scratch: Scratch,
    capacity: usize,
    buffer: Vec<[u8; N]>,
    runs: Vec<Run>,
    len: u64,
}

/// A sorted sequence of records in a file.
#[derive(Debug)]
struct Run {
    file: File,
    num_records: u64,
}

/// Sorted records, to be read any number of times.
#[derive(Debug)]
pub(crate) struct Sorted<const N: usize> {
    scratch: Scratch,
    memory: Vec<[u8; N]>,
    runs: Vec<Run>,
    len: u64,
}

impl<const N: usize> Sorter<N> {
    /// A sorter that keeps at most the sort share of `scratch`'s memory.
    pub(crate) fn new(scratch: &Scratch) -> Sorter<N> {
        let capacity = (scratch.sort_bytes() / N).max(1);
        Sorter { scratch: scratch.clone(), capacity, buffer: Vec::new(), runs: Vec::new(), len: 0 }
    }

    /// Takes one record.
    pub(crate) fn push(&mut self, record: [u8; N]) -> Result<(), MixerError> {
        if self.buffer.len() == self.capacity {
            self.spill()?;
        }
        self.buffer.push(record);
        self.len += 1;
        Ok(())
    }

    /// All records in order.
    pub(crate) fn finish(mut self) -> Result<Sorted<N>, MixerError> {
        if self.runs.is_empty() {
            self.buffer.par_sort_unstable();
        } else if !self.buffer.is_empty() {
            self.spill()?;
            self.buffer = Vec::new();
        }
        Ok(Sorted { scratch: self.scratch, memory: self.buffer, runs: self.runs, len: self.len })
    }

    fn spill(&mut self) -> Result<(), MixerError> {
        self.buffer.par_sort_unstable();
        let run = write_run(&self.scratch, self.buffer.iter().map(|record| Ok(*record)))?;
        self.runs.push(run);
        self.buffer.clear();
        if self.runs.len() == MAX_FAN_IN {
            let runs = std::mem::take(&mut self.runs);
            let merged = write_run(&self.scratch, Merge::<N>::new(&self.scratch, &[], &runs)?)?;
            self.runs.push(merged);
        }
        Ok(())
    }
}

impl<const N: usize> Sorted<N> {
    /// Number of records.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether they are in files, because memory was not enough.
    #[cfg(test)]
    pub(crate) fn is_spilled(&self) -> bool {
        !self.runs.is_empty()
    }

    /// The records from the first on.
    pub(crate) fn iter(&self) -> Result<Merge<'_, N>, MixerError> {
        Merge::new(&self.scratch, &self.memory, &self.runs)
    }
}

/// `records`, with an error among them if the run is to stop.
pub(crate) fn interruptible<T>(
    records: impl Iterator<Item = Result<T, MixerError>>,
    run: &RunContext,
) -> impl Iterator<Item = Result<T, MixerError>> {
    records.enumerate().map(|(count, record)| {
        if count % RECORDS_PER_CHECK == 0 {
            run.check_interrupt()?;
        }
        record
    })
}

fn write_run<const N: usize>(
    scratch: &Scratch,
    records: impl Iterator<Item = Result<[u8; N], MixerError>>,
) -> Result<Run, MixerError> {
    let mut file = BufWriter::with_capacity(1 << 20, scratch.file()?);
    let mut num_records = 0;
    for record in records {
        file.write_all(&record?).map_err(scratch.failed())?;
        num_records += 1;
    }
    let file = file.into_inner().map_err(|error| scratch.failed()(error.into_error()))?;
    Ok(Run { file, num_records })
}

/// The records of several runs, in order.
#[derive(Debug)]
pub(crate) struct Merge<'a, const N: usize> {
    scratch: &'a Scratch,
    memory: std::slice::Iter<'a, [u8; N]>,
    runs: Vec<RunReader<'a, N>>,
    /// The next record of every run, the least on top.
    next: BinaryHeap<Reverse<([u8; N], usize)>>,
}

#[derive(Debug)]
struct RunReader<'a, const N: usize> {
    run: &'a Run,
    num_read: u64,
    chunk: Vec<u8>,
    at: usize,
}

impl<const N: usize> RunReader<'_, N> {
    fn next(&mut self, scratch: &Scratch) -> Result<Option<[u8; N]>, MixerError> {
        if self.at == self.chunk.len() {
            let left = self.run.num_records - self.num_read;
            let take = left.min((READ_BYTES / N).max(1) as u64);
            if take == 0 {
                return Ok(None);
            }
            self.chunk.resize(take as usize * N, 0);
            let offset = self.num_read * N as u64;
            self.run.file.read_exact_at(&mut self.chunk, offset).map_err(scratch.failed())?;
            self.num_read += take;
            self.at = 0;
        }
        let record = self.chunk[self.at..self.at + N].try_into().expect("the slice has N bytes");
        self.at += N;
        Ok(Some(record))
    }
}

impl<'a, const N: usize> Merge<'a, N> {
    fn new(scratch: &'a Scratch, memory: &'a [[u8; N]], runs: &'a [Run]) -> Result<Self, MixerError> {
        let runs = runs.iter().map(|run| RunReader { run, num_read: 0, chunk: Vec::new(), at: 0 }).collect();
        let mut merge = Merge { scratch, memory: memory.iter(), runs, next: BinaryHeap::new() };
        for index in 0..merge.runs.len() {
            merge.refill(index)?;
        }
        Ok(merge)
    }

    fn refill(&mut self, index: usize) -> Result<(), MixerError> {
        if let Some(record) = self.runs[index].next(self.scratch)? {
            self.next.push(Reverse((record, index)));
        }
        Ok(())
    }
}

impl<const N: usize> Iterator for Merge<'_, N> {
    type Item = Result<[u8; N], MixerError>;

    fn next(&mut self) -> Option<Self::Item> {
        // Records are in memory or in runs, never in both.
        if let Some(record) = self.memory.next() {
            return Some(Ok(*record));
        }
        let Reverse((record, index)) = self.next.pop()?;
        Some(self.refill(index).map(|()| record))
    }
}

/// An order-preserving encoding of a number that is not NaN: bytes compare as the numbers do.
pub(crate) fn ordered_bytes(value: f64) -> [u8; 8] {
    // -0 and 0 are equal numbers.
    let bits = (value + 0.0).to_bits();
    let flipped = if bits >> 63 == 1 { !bits } else { bits | 1 << 63 };
    flipped.to_be_bytes()
}

/// The number [`ordered_bytes`] encoded.
pub(crate) fn number_of(bytes: [u8; 8]) -> f64 {
    let flipped = u64::from_be_bytes(bytes);
    f64::from_bits(if flipped >> 63 == 1 { flipped & !(1 << 63) } else { !flipped })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scratch() -> (tempfile::TempDir, Scratch) {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path(), Some(64)).unwrap();
        (dir, scratch)
    }

    fn sorted(records: &[[u8; 3]], capacity: usize) -> Sorted<3> {
        let (_dir, scratch) = scratch();
        let mut sorter = Sorter { capacity, ..Sorter::new(&scratch) };
        records.iter().for_each(|record| sorter.push(*record).unwrap());
        sorter.finish().unwrap()
    }

    proptest! {
        /// Whatever the memory: the records come out sorted, each as often as it went in, time and again.
        #[test]
        fn sorting_is_sorting(
            records in prop::collection::vec(prop::array::uniform3(0..6_u8), 0..300),
            capacity in 1..40_usize,
        ) {
            let sorted = sorted(&records, capacity);
            let mut expected = records.clone();
            expected.sort_unstable();
            for _ in 0..2 {
                let read: Vec<[u8; 3]> = sorted.iter().unwrap().map(Result::unwrap).collect();
                prop_assert_eq!(&read, &expected);
            }
            prop_assert_eq!(sorted.len(), records.len() as u64);
            prop_assert_eq!(sorted.is_spilled(), records.len() > capacity);
        }

        #[test]
        fn encoded_numbers_compare_as_numbers(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(ordered_bytes(a).cmp(&ordered_bytes(b)), a.partial_cmp(&b).unwrap());
            prop_assert_eq!(number_of(ordered_bytes(a)), a);
        }
    }

    #[test]
    fn more_runs_than_are_merged_at_once() {
        let records: Vec<[u8; 3]> = (0..1000_u32).rev().map(|n| [0, (n >> 8) as u8, n as u8]).collect();
        let sorted = sorted(&records, 3);
        assert!(sorted.runs.len() < MAX_FAN_IN);
        let read: Vec<[u8; 3]> = sorted.iter().unwrap().map(Result::unwrap).collect();
        assert!(read.is_sorted() && read.len() == 1000);
    }
}
