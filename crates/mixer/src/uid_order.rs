//! Rows in the order of their uids or digests, and what meets them there: lists, results of queries, duplicates.

use oqvl_shard_io::Uid;
use oqvl_stage::RunContext;

use crate::MixerError;
use crate::external_sort::{Sorted, Sorter, interruptible};
use crate::row_set::RowSet;
use crate::scratch::Scratch;

/// A value of 128 bits and the row that has it, as bytes that sort by value, then row.
const ROW_BYTES: usize = 24;

/// Sorts rows by a value of 128 bits: a uid, a digest.
#[derive(Debug)]
pub(crate) struct RowSorter(Sorter<ROW_BYTES>);

/// Rows in the order of their values.
#[derive(Debug)]
pub(crate) struct SortedRows(Sorted<ROW_BYTES>);

impl RowSorter {
    pub(crate) fn new(scratch: &Scratch) -> RowSorter {
        RowSorter(Sorter::new(scratch))
    }

    pub(crate) fn push(&mut self, value: u128, row: u64) -> Result<(), MixerError> {
        let mut record = [0; ROW_BYTES];
        record[..16].copy_from_slice(&value.to_be_bytes());
        record[16..].copy_from_slice(&row.to_be_bytes());
        self.0.push(record)
    }

    pub(crate) fn finish(self) -> Result<SortedRows, MixerError> {
        Ok(SortedRows(self.0.finish()?))
    }
}

impl SortedRows {
    /// Every value with its row, by value, then row.
    pub(crate) fn iter<'a>(
        &'a self,
        run: &'a RunContext,
    ) -> Result<impl Iterator<Item = Result<(u128, u64), MixerError>> + 'a, MixerError> {
        let entry = |record: [u8; ROW_BYTES]| {
            let value = u128::from_be_bytes(record[..16].try_into().expect("sixteen bytes"));
            (value, u64::from_be_bytes(record[16..].try_into().expect("eight bytes")))
        };
        Ok(interruptible(self.0.iter()?, run).map(move |record| record.map(entry)))
    }

    /// The rows, of `num_rows`, whose value is that of one of the ascending `wanted`, which may repeat.
    pub(crate) fn join(
        &self,
        wanted: impl Iterator<Item = Result<Uid, MixerError>>,
        num_rows: u64,
        run: &RunContext,
    ) -> Result<FoundRows, MixerError> {
        let mut found = FoundRows { rows: RowSet::none(num_rows), num_absent: 0 };
        let (mut rows, mut last) = (self.iter(run)?.peekable(), None);
        for uid in interruptible(wanted, run) {
            let uid = u128::from(uid?);
            if last.replace(uid) == Some(uid) {
                continue;
            }
            let mut is_absent = true;
            while let Some(next) = rows.next_if(|next| !matches!(next, Ok((other, _)) if *other > uid)) {
                let (other, row) = next?;
                if other == uid {
                    found.rows.insert(row);
                    is_absent = false;
                }
            }
            found.num_absent += u64::from(is_absent);
        }
        Ok(found)
    }
}

/// The rows that a list of uids names.
#[derive(Debug)]
pub(crate) struct FoundRows {
    pub(crate) rows: RowSet,
    /// Distinct uids of the list that no row has.
    pub(crate) num_absent: u64,
}

/// Sorts uids that need not fit into memory.
#[derive(Debug)]
pub(crate) struct UidSorter(Sorter<16>);

/// Uids in order.
#[derive(Debug)]
pub(crate) struct SortedUids(Sorted<16>);

impl UidSorter {
    pub(crate) fn new(scratch: &Scratch) -> UidSorter {
        UidSorter(Sorter::new(scratch))
    }

    pub(crate) fn push(&mut self, uid: Uid) -> Result<(), MixerError> {
        self.0.push(u128::from(uid).to_be_bytes())
    }

    pub(crate) fn finish(self) -> Result<SortedUids, MixerError> {
        Ok(SortedUids(self.0.finish()?))
    }
}

impl SortedUids {
    pub(crate) fn iter(&self) -> Result<impl Iterator<Item = Result<Uid, MixerError>> + '_, MixerError> {
        Ok(self.0.iter()?.map(|bytes| Ok(Uid::from(u128::from_be_bytes(bytes?)))))
    }
}
