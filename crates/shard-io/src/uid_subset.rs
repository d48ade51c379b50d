//! uid subsets: sorted lists of 128-bit uids in NumPy's `.npy` format.
//!
//! The layout is that of the DataComp tools and of the Data Filtering Networks lists
//! (`datacomp_medium_dfn_20m_inds.npy`): dtype `"u8,u8"`, one-dimensional, sorted; a file without the NumPy
//! header, only records, is accepted too.

use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::printable;
use crate::{AtomicFile, ShardError};

/// First bytes of a NumPy file.
const MAGIC: &[u8; 6] = b"\x93NUMPY";

/// Bytes of one record: two little-endian 64-bit halves.
const RECORD_BYTES: u64 = 16;

/// Longest NumPy header that is believed; ours has 128 bytes.
const MAX_HEADER_BYTES: u64 = 1 << 16;

/// A DataComp uid: 128 bits, written as 32 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Uid(u64, u64);

impl Uid {
    /// From the halves: the first and the last 16 digits.
    #[must_use]
    pub fn from_halves(high: u64, low: u64) -> Uid {
        Uid(high, low)
    }

    /// The first and the last 16 digits.
    #[must_use]
    pub fn halves(self) -> (u64, u64) {
        (self.0, self.1)
    }
}

impl FromStr for Uid {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Uid, ShardError> {
        let is_uid = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let half = |range| is_uid.then(|| u64::from_str_radix(&text[range], 16).ok()).flatten();
        match (half(0..16), half(16..32)) {
            (Some(high), Some(low)) => Ok(Uid(high, low)),
            _ => Err(ShardError::Uid { uid: printable(text) }),
        }
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}{:016x}", self.0, self.1)
    }
}

impl From<u128> for Uid {
    fn from(number: u128) -> Uid {
        Uid((number >> 64) as u64, number as u64)
    }
}

impl From<Uid> for u128 {
    fn from(uid: Uid) -> u128 {
        u128::from(uid.0) << 64 | u128::from(uid.1)
    }
}

impl TryFrom<String> for Uid {
    type Error = ShardError;

    fn try_from(text: String) -> Result<Uid, ShardError> {
        text.parse()
    }
}

impl From<Uid> for String {
    fn from(uid: Uid) -> String {
        uid.to_string()
    }
}

/// A set of uids: sorted, each once.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UidSubset {
    uids: Vec<Uid>,
}

impl FromIterator<Uid> for UidSubset {
    fn from_iter<I: IntoIterator<Item = Uid>>(uids: I) -> UidSubset {
        UidSubset::from_unsorted(uids.into_iter().collect())
    }
}

impl UidSubset {
    fn from_unsorted(mut uids: Vec<Uid>) -> UidSubset {
        if !uids.is_sorted_by(|a, b| a < b) {
            uids.sort_unstable();
            uids.dedup();
        }
        UidSubset { uids }
    }

    /// Number of uids.
    #[must_use]
    pub fn len(&self) -> usize {
        self.uids.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uids.is_empty()
    }

    /// Whether `uid` is in the set; a binary search.
    #[must_use]
    pub fn contains(&self, uid: &Uid) -> bool {
        self.uids.binary_search(uid).is_ok()
    }

    /// The uids in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Uid> + '_ {
        self.uids.iter().copied()
    }

    /// The uids of either set.
    #[must_use]
    pub fn union(&self, other: &UidSubset) -> UidSubset {
        self.iter().chain(other.iter()).collect()
    }

    /// The uids of both sets.
    #[must_use]
    pub fn intersection(&self, other: &UidSubset) -> UidSubset {
        UidSubset { uids: self.iter().filter(|uid| other.contains(uid)).collect() }
    }

    /// Writes the set as `.npy`, byte for byte as `numpy.save` does.
    ///
    /// # Errors
    /// [`ShardError::Io`] if writing fails.
    pub fn write(&self, path: &Path) -> Result<(), ShardError> {
        let mut writer = UidWriter::create(path, self.uids.len() as u64)?;
        self.uids.iter().try_for_each(|uid| writer.push(*uid))?;
        writer.finish()
    }

    /// Reads a `.npy` file, or a file of bare records. Uids out of order are sorted, repeated ones dropped.
    ///
    /// # Errors
    /// As [`UidReader::open`], and [`ShardError::Io`] if reading fails.
    pub fn read(path: &Path) -> Result<UidSubset, ShardError> {
        let reader = UidReader::open(path)?;
        let mut uids = Vec::with_capacity(reader.len() as usize);
        for uid in reader {
            uids.push(uid?);
        }
        Ok(UidSubset::from_unsorted(uids))
    }
}

/// The uids of a `.npy` file, or of a file of bare records, one after the other as they stand there: for lists that
/// need not fit into memory.
#[derive(Debug)]
pub struct UidReader {
    data: std::io::Chain<std::io::Cursor<Vec<u8>>, BufReader<File>>,
    path: PathBuf,
    num_left: u64,
}

impl UidReader {
    /// Opens the list at `path`.
    ///
    /// # Errors
    /// [`ShardError::Npy`] if header and size do not describe a one-dimensional array of `"u8,u8"` records,
    /// [`ShardError::Io`] if reading fails.
    pub fn open(path: &Path) -> Result<UidReader, ShardError> {
        let io = || ShardError::io(path);
        let file = File::open(path).map_err(io())?;
        let file_bytes = file.metadata().map_err(io())?.len();
        let mut reader = BufReader::with_capacity(1 << 16, file);
        let mut start = Vec::new();
        (&mut reader).take(MAGIC.len() as u64).read_to_end(&mut start).map_err(io())?;
        let problem = |problem: String| ShardError::Npy { path: path.to_path_buf(), problem };
        let (claimed, header_bytes) = if start == MAGIC {
            let (header, header_bytes) = read_numpy_header(&mut reader)
                .map_err(io())?
                .ok_or_else(|| problem("the header is cut or too long".into()))?;
            start.clear();
            (Some(parse_numpy_header(&header).map_err(problem)?), header_bytes)
        } else {
            // Without a header the bytes already taken are the first of the first record.
            (None, 0)
        };
        let data_bytes = file_bytes.saturating_sub(header_bytes);
        if claimed.is_some_and(|records| records.checked_mul(RECORD_BYTES) != Some(data_bytes))
            || data_bytes % RECORD_BYTES != 0
        {
            let claim = claimed.map_or(String::new(), |records| format!(" for {records} records"));
            return Err(problem(format!(
                "{data_bytes} bytes of data{claim}, each record has {RECORD_BYTES}"
            )));
        }
        let data = std::io::Cursor::new(start).chain(reader);
        Ok(UidReader { data, path: path.to_path_buf(), num_left: data_bytes / RECORD_BYTES })
    }

    /// Number of records still to come.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.num_left
    }

    /// Whether none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.num_left == 0
    }
}

impl Iterator for UidReader {
    type Item = Result<Uid, ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.num_left = self.num_left.checked_sub(1)?;
        let mut record = [0; RECORD_BYTES as usize];
        if let Err(error) = self.data.read_exact(&mut record) {
            self.num_left = 0;
            return Some(Err(ShardError::io(&self.path)(error)));
        }
        let (high, low) = record.split_at(8);
        let half = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("a record splits at 8"));
        Some(Ok(Uid(half(high), half(low))))
    }
}

/// Writes a `.npy` list uid by uid; it appears when [`finish`](UidWriter::finish) succeeds.
#[derive(Debug)]
pub struct UidWriter {
    file: AtomicFile,
    path: PathBuf,
    num_left: u64,
    last: Option<Uid>,
}

impl UidWriter {
    /// Starts the list of `len` uids that will be called `path`.
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be created.
    pub fn create(path: &Path, len: u64) -> Result<UidWriter, ShardError> {
        let mut file = AtomicFile::create(path).map_err(ShardError::io(path))?;
        file.write_all(&numpy_header(len)).map_err(ShardError::io(path))?;
        Ok(UidWriter { file, path: path.to_path_buf(), num_left: len, last: None })
    }

    /// Appends the next uid.
    ///
    /// # Errors
    /// [`ShardError::Io`] if writing fails.
    ///
    /// # Panics
    /// If uids do not ascend, or are more than was said: every reader of these lists relies on it.
    pub fn push(&mut self, uid: Uid) -> Result<(), ShardError> {
        assert!(self.last.replace(uid).is_none_or(|last| last < uid), "uids must ascend, at {uid}");
        self.num_left = self.num_left.checked_sub(1).expect("a list must not get more uids than it says");
        let mut record = [0; RECORD_BYTES as usize];
        record[..8].copy_from_slice(&uid.0.to_le_bytes());
        record[8..].copy_from_slice(&uid.1.to_le_bytes());
        self.file.write_all(&record).map_err(ShardError::io(&self.path))
    }

    /// Makes the list durable and gives it its name.
    ///
    /// # Errors
    /// [`ShardError::Io`] if that fails.
    ///
    /// # Panics
    /// If uids are fewer than was said.
    pub fn finish(self) -> Result<(), ShardError> {
        assert_eq!(self.num_left, 0, "a list must get as many uids as it says");
        self.file.commit().map_err(ShardError::io(&self.path))
    }
}

/// The header `numpy.save` writes: version 1.0, blanks up to a multiple of 64 bytes.
fn numpy_header(num_records: u64) -> Vec<u8> {
    let dict = format!(
        "{{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': ({num_records},), }}"
    );
    const PREFIX_BYTES: usize = MAGIC.len() + 4;
    let total = (PREFIX_BYTES + dict.len() + 1).next_multiple_of(64);
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&[1, 0]);
    header.extend_from_slice(&((total - PREFIX_BYTES) as u16).to_le_bytes());
    header.extend_from_slice(dict.as_bytes());
    header.resize(total - 1, b' ');
    header.push(b'\n');
    header
}

/// The header's text and the bytes from the start of the file to its end; `None` if it is cut or too long.
fn read_numpy_header(reader: &mut impl Read) -> std::io::Result<Option<(String, u64)>> {
    let mut version = Vec::new();
    reader.take(2).read_to_end(&mut version)?;
    // Version 1 has a 16-bit length, versions 2 and 3 a 32-bit one.
    let length_bytes = if version.first() == Some(&1) { 2 } else { 4 };
    let mut length = Vec::new();
    reader.take(length_bytes).read_to_end(&mut length)?;
    if version.len() as u64 + length.len() as u64 != 2 + length_bytes {
        return Ok(None);
    }
    let text_bytes = length.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte));
    if text_bytes > MAX_HEADER_BYTES {
        return Ok(None);
    }
    let mut text = Vec::new();
    reader.take(text_bytes).read_to_end(&mut text)?;
    let complete = text.len() as u64 == text_bytes;
    let header_bytes = MAGIC.len() as u64 + 2 + length_bytes + text_bytes;
    Ok(String::from_utf8(text).ok().filter(|_| complete).map(|text| (text, header_bytes)))
}

/// The number of records a header declares.
fn parse_numpy_header(header: &str) -> Result<u64, String> {
    let dense: String = header.chars().filter(|c| !c.is_whitespace()).collect();
    // The records' field names carry no meaning; NumPy calls unnamed ones f0 and f1.
    if !dense.contains("'descr':[('f0','<u8'),('f1','<u8')]") {
        return Err("the dtype is not [('f0', '<u8'), ('f1', '<u8')]".into());
    }
    if !dense.contains("'fortran_order':False") {
        return Err("the array is in Fortran order".into());
    }
    dense
        .split_once("'shape':(")
        .and_then(|(_, rest)| rest.split_once(",)"))
        .and_then(|(count, _)| count.parse().ok())
        .ok_or_else(|| "the shape is not one-dimensional".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_uids() -> impl Strategy<Value = Vec<Uid>> {
        // Few distinct halves, so that repetitions and equal high halves occur.
        let half = prop_oneof![0..4_u64, any::<u64>()];
        prop::collection::vec((half.clone(), half).prop_map(|(high, low)| Uid(high, low)), 0..40)
    }

    proptest! {
        #[test]
        fn write_then_read_is_identity(uids in any_uids()) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.npy");
            let subset: UidSubset = uids.iter().copied().collect();
            subset.write(&path).unwrap();
            prop_assert_eq!(std::fs::metadata(&path).unwrap().len(), 128 + 16 * subset.len() as u64);
            prop_assert_eq!(&UidSubset::read(&path).unwrap(), &subset);
            // Bare records, unsorted and repeated, are accepted and put in order.
            let bare: Vec<u8> =
                uids.iter().flat_map(|uid| [uid.0.to_le_bytes(), uid.1.to_le_bytes()].concat()).collect();
            crate::write_atomic(&path, &bare).unwrap();
            prop_assert_eq!(&UidSubset::read(&path).unwrap(), &subset);
        }

        #[test]
        fn set_operations_agree_with_a_tree(a in any_uids(), b in any_uids()) {
            use std::collections::BTreeSet;
            let tree = |uids: &[Uid]| uids.iter().copied().collect::<BTreeSet<Uid>>();
            let (set_a, set_b): (UidSubset, UidSubset) = (a.iter().copied().collect(), b.iter().copied().collect());
            let (tree_a, tree_b) = (tree(&a), tree(&b));
            prop_assert!(set_a.union(&set_b).iter().eq(tree_a.union(&tree_b).copied()));
            prop_assert!(set_a.intersection(&set_b).iter().eq(tree_a.intersection(&tree_b).copied()));
            for uid in a.iter().chain(&b) {
                prop_assert_eq!(set_a.contains(uid), tree_a.contains(uid));
            }
        }

        #[test]
        fn damaged_files_are_survived(at in 0..160_usize, byte in any::<u8>(), end in 0..160_usize) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.npy");
            let subset: UidSubset = [Uid(1, 2), Uid(3, 4)].into_iter().collect();
            subset.write(&path).unwrap();
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] = byte;
            bytes.truncate(end);
            crate::write_atomic(&path, &bytes).unwrap();
            match UidSubset::read(&path) {
                Ok(subset) => prop_assert!(subset.len() * 16 <= end),
                Err(error) => prop_assert!(matches!(error, ShardError::Npy { .. }), "{}", error),
            }
        }
    }

    #[test]
    fn uids_are_32_hexadecimal_digits() {
        let text = "0123456789abcdeffedcba9876543210";
        let uid: Uid = text.parse().unwrap();
        assert_eq!(uid.halves(), (0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210));
        assert_eq!(uid.to_string(), text);
        assert_eq!(text.to_uppercase().parse::<Uid>().unwrap(), uid);
        assert_eq!(Uid::from_halves(0, 1).to_string(), format!("{:032x}", 1));
        for bad in
            ["", "0", "+123456789abcdeffedcba9876543210", &text[1..], &format!("{text}0"), &"é".repeat(16)]
        {
            assert!(bad.parse::<Uid>().is_err(), "{bad}");
        }
    }

    #[test]
    fn header_is_what_numpy_writes() {
        // numpy 2.4.6: np.save of np.zeros(3, dtype="u8,u8").
        let header = numpy_header(3);
        assert_eq!(header.len(), 128);
        assert_eq!(header[..10], *b"\x93NUMPY\x01\x00\x76\x00");
        let dict = b"{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (3,), }";
        assert!(header[10..].starts_with(dict));
        assert!(header[10 + dict.len()..127].iter().all(|&byte| byte == b' ') && header[127] == b'\n');
    }

    #[test]
    fn strangers_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let check = |header: &str, num_bytes: usize, expected: &str| {
            let mut bytes = b"\x93NUMPY\x02\x00".to_vec();
            bytes.extend_from_slice(&(header.len() as u32).to_le_bytes());
            bytes.extend_from_slice(header.as_bytes());
            bytes.resize(bytes.len() + num_bytes, 7);
            crate::write_atomic(&path, &bytes).unwrap();
            match UidSubset::read(&path) {
                Ok(subset) => assert_eq!(subset.len().to_string(), expected),
                Err(error) => assert!(error.to_string().contains(expected), "{error}"),
            }
        };
        let good = "{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (2,), }";
        check(good, 32, "1"); // two equal records
        check(good, 48, "48 bytes of data for 2 records");
        check(good, 31, "31 bytes");
        check(&good.replace("<u8", "<i8"), 32, "dtype");
        check(&good.replace("False", "True"), 32, "Fortran");
        check(&good.replace("(2,)", "(1, 2)"), 32, "one-dimensional");
        check(&good.replace("(2,)", "(99999999999999999999,)"), 32, "one-dimensional");
        check(&good.replace("(2,)", "(1152921504606846978,)"), 32, "32 bytes of data");
        check(&good.replace("'shape': (2,)", ""), 32, "one-dimensional");
    }
}
