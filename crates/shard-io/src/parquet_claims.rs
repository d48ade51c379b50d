//! Whether what a parquet file says of itself can be true.
//!
//! The parquet library reserves memory for as many schema children, row groups and other list entries as the footer says
//! there are, before it has seen one: a damaged file of a few hundred bytes asks for gigabytes, which panics or, where
//! memory is short, ends the process. It believes the headers of pages likewise: two thousand million list elements are
//! passed over one by one, at the end of the file and for half a minute, and what a page is said to unpack to gets its
//! memory first.
//! An entry takes at least a byte, so most such claims show by themselves.
//!
//! Sources: `parquet.thrift` (`FileMetaData`, `SchemaElement`, `PageHeader`) and the compact protocol of Apache Thrift.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use parquet::errors::ParquetError;

/// What a file with a plain footer ends with.
pub(crate) const PARQUET_MAGIC: [u8; 4] = *b"PAR1";
/// The length of the footer, and the magic.
pub(crate) const TAIL_BYTES: usize = 8;
/// What is read of a page header at first. They have some dozens of bytes, unless they carry long texts as statistics.
const HEADER_BYTES: u64 = 4 << 10;
/// The longest page header that is accepted.
const MAX_HEADER_BYTES: u64 = 64 << 20;
/// A page up to this size may be packed as well as it likes (writers end a page at 1 MiB, unless one text is longer).
const FREE_PAGE_BYTES: i32 = 32 << 20;
/// A larger page unpacks to at most this many times its bytes; DEFLATE cannot do better at all.
const MAX_PAGE_RATIO: i32 = 1032;
/// Structures within structures that are followed; real footers have seven.
const MAX_DEPTH: usize = 64;

/// Field of `FileMetaData` with the list of schema elements.
const SCHEMA_FIELD: i64 = 2;
/// Field of `SchemaElement` with the number of its children.
const NUM_CHILDREN_FIELD: i64 = 5;
/// Fields of `PageHeader`: bytes of the page unpacked and as it is in the file, and what only dictionaries have.
const UNPACKED_FIELD: i64 = 2;
const PACKED_FIELD: i64 = 3;
const DICTIONARY_FIELD: i64 = 7;
/// Field of `DictionaryPageHeader` with the number of its values.
const NUM_VALUES_FIELD: i64 = 1;

/// Kinds of values in the compact protocol.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
const I16: u8 = 4;
const I32: u8 = 5;
const I64: u8 = 6;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const MAP: u8 = 11;
const STRUCT: u8 = 12;

/// Refuses a file whose footer claims more entries than fit into it. Whatever else is wrong is left to the library.
pub(crate) fn check_footer(file: &File) -> Result<(), ParquetError> {
    let Some(footer) = read_footer(file)? else { return Ok(()) };
    match (Walker { rest: &footer }).file_metadata() {
        Err(Stop::FalseClaim) => {
            Err(ParquetError::General("the footer claims more entries than it has bytes".to_owned()))
        }
        Ok(()) | Err(Stop::Malformed) => Ok(()),
    }
}

/// Bytes from `start` on that hold a whole page header, and perhaps some of what follows it.
///
/// # Errors
/// [`ParquetError::General`] if there is no page header that can be read safely, [`ParquetError::External`] if the file
/// cannot be read.
pub(crate) fn read_page_header(file: &File, start: u64) -> Result<Bytes, ParquetError> {
    let num_left = file.metadata()?.len().saturating_sub(start).min(MAX_HEADER_BYTES);
    let mut window = HEADER_BYTES.min(num_left);
    loop {
        let mut bytes = vec![0; usize::try_from(window)?];
        file.read_exact_at(&mut bytes, start)?;
        match (Walker { rest: &bytes }).page_header() {
            Ok(sizes) => {
                let wrong = |what| ParquetError::General(format!("the page at byte {start} {what}"));
                return sizes.check().map(|()| bytes.into()).map_err(wrong);
            }
            Err(_) if window == num_left => {
                return Err(ParquetError::General(format!("the page header at byte {start} is damaged")));
            }
            // It may only be longer than the window.
            Err(_) => window = window.saturating_mul(16).min(num_left),
        }
    }
}

/// What a page header says of the size of its page, bytes.
#[derive(Default)]
struct PageSizes {
    packed: i32,
    unpacked: i32,
    num_dictionary_values: i32,
}

impl PageSizes {
    fn check(&self) -> Result<(), String> {
        let PageSizes { packed, unpacked, num_dictionary_values: values } = self;
        if *unpacked > FREE_PAGE_BYTES && unpacked / MAX_PAGE_RATIO > *packed {
            return Err(format!("has {packed} bytes and claims to hold {unpacked}"));
        }
        // A value of a dictionary takes at least a byte, and memory is reserved for all.
        if values > unpacked {
            return Err(format!("has {unpacked} bytes and claims to hold {values} values"));
        }
        Ok(())
    }
}

/// The footer's bytes; `None` if this is no parquet file with a plain footer.
fn read_footer(file: &File) -> io::Result<Option<Vec<u8>>> {
    let num_bytes = file.metadata()?.len();
    let Some(tail_start) = num_bytes.checked_sub(TAIL_BYTES as u64) else { return Ok(None) };
    let mut tail = [0; TAIL_BYTES];
    file.read_exact_at(&mut tail, tail_start)?;
    let (length, magic) = tail.split_at(4);
    let length = u32::from_le_bytes(length.try_into().expect("split at four"));
    let Some(start) = tail_start.checked_sub(u64::from(length)).filter(|_| magic == PARQUET_MAGIC) else {
        return Ok(None);
    };
    let mut footer = vec![0; length as usize];
    file.read_exact_at(&mut footer, start)?;
    Ok(Some(footer))
}

/// Why the walk ended early.
enum Stop {
    FalseClaim,
    Malformed,
}

/// Goes through a value of the compact protocol.
struct Walker<'a> {
    rest: &'a [u8],
}

impl Walker<'_> {
    fn page_header(&mut self) -> Result<PageSizes, Stop> {
        let mut sizes = PageSizes::default();
        self.fields(0, &mut |walker, field, kind| {
            let size = match (field, kind) {
                (UNPACKED_FIELD, I32) => &mut sizes.unpacked,
                (PACKED_FIELD, I32) => &mut sizes.packed,
                (DICTIONARY_FIELD, STRUCT) => {
                    sizes.num_dictionary_values = walker.num_values()?;
                    return Ok(());
                }
                _ => return walker.value(kind, 1),
            };
            *size = walker.int32()?;
            Ok(())
        })?;
        Ok(sizes)
    }

    fn num_values(&mut self) -> Result<i32, Stop> {
        let mut number = 0;
        self.fields(1, &mut |walker, field, kind| {
            if (field, kind) != (NUM_VALUES_FIELD, I32) {
                return walker.value(kind, 2);
            }
            number = walker.int32()?;
            Ok(())
        })?;
        Ok(number)
    }

    fn file_metadata(&mut self) -> Result<(), Stop> {
        self.fields(0, &mut |walker, field, kind| {
            if (field, kind) != (SCHEMA_FIELD, LIST) {
                return walker.value(kind, 1);
            }
            let (num_elements, element) = walker.list_header()?;
            for _ in 0..num_elements {
                walker.schema_element(num_elements, element)?;
            }
            Ok(())
        })
    }

    fn schema_element(&mut self, num_elements: u64, kind: u8) -> Result<(), Stop> {
        if kind != STRUCT {
            return self.element(kind, 2);
        }
        self.fields(2, &mut |walker, field, kind| {
            if (field, kind) != (NUM_CHILDREN_FIELD, I32) {
                return walker.value(kind, 3);
            }
            let num_children = walker.int32()?;
            // The library refuses negative numbers.
            if u64::try_from(num_children).is_ok_and(|number| number >= num_elements) {
                return Err(Stop::FalseClaim);
            }
            Ok(())
        })
    }

    /// Hands each field of a structure to `visit`, by number and kind.
    fn fields(
        &mut self,
        depth: usize,
        visit: &mut dyn FnMut(&mut Self, i64, u8) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Malformed);
        }
        let mut field = 0_i64;
        loop {
            let header = self.byte()?;
            if header == 0 {
                return Ok(());
            }
            field = match header >> 4 {
                0 => unzigzag(self.varint()?),
                step => field.wrapping_add(i64::from(step)),
            };
            visit(self, field, header & 0x0f)?;
        }
    }

    /// Passes over the value of a field.
    fn value(&mut self, kind: u8, depth: usize) -> Result<(), Stop> {
        if matches!(kind, TRUE | FALSE) {
            return Ok(()); // in the kind itself
        }
        self.element(kind, depth)
    }

    /// Passes over a value that stands by itself.
    fn element(&mut self, kind: u8, depth: usize) -> Result<(), Stop> {
        match kind {
            // No list of the format holds them where we look, and the library would look for the next value in the wrong
            // place: it takes them to have no bytes here either.
            TRUE | FALSE => Err(Stop::FalseClaim),
            BYTE => self.skip(1),
            I16 | I32 | I64 => self.varint().map(drop),
            DOUBLE => self.skip(8),
            BINARY => {
                let num_bytes = self.varint()?;
                self.skip(num_bytes)
            }
            LIST | SET => {
                let (num_elements, kind) = self.list_header()?;
                self.elements(num_elements, &[kind], depth)
            }
            MAP => {
                let num_entries = self.varint()?;
                if num_entries == 0 {
                    return Ok(());
                }
                let kinds = self.byte()?;
                self.check_claim(num_entries)?;
                self.elements(num_entries, &[kinds >> 4, kinds & 0x0f], depth)
            }
            STRUCT => self.fields(depth, &mut |walker, _, kind| walker.value(kind, depth + 1)),
            _ => Err(Stop::Malformed),
        }
    }

    fn elements(&mut self, number: u64, kinds: &[u8], depth: usize) -> Result<(), Stop> {
        if depth > MAX_DEPTH {
            return Err(Stop::Malformed);
        }
        for _ in 0..number {
            for kind in kinds {
                self.element(*kind, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Number and kind of a list's elements.
    fn list_header(&mut self) -> Result<(u64, u8), Stop> {
        let header = self.byte()?;
        let number = match header >> 4 {
            15 => self.varint()?,
            number => u64::from(number),
        };
        self.check_claim(number)?;
        Ok((number, header & 0x0f))
    }

    fn check_claim(&self, number: u64) -> Result<(), Stop> {
        if number > self.rest.len() as u64 { Err(Stop::FalseClaim) } else { Ok(()) }
    }

    fn byte(&mut self) -> Result<u8, Stop> {
        let (first, rest) = self.rest.split_first().ok_or(Stop::Malformed)?;
        self.rest = rest;
        Ok(*first)
    }

    fn skip(&mut self, num_bytes: u64) -> Result<(), Stop> {
        let num_bytes = usize::try_from(num_bytes).map_err(|_| Stop::Malformed)?;
        self.rest = self.rest.get(num_bytes..).ok_or(Stop::Malformed)?;
        Ok(())
    }

    /// A number of 32 bits, of which the library takes the lowest 32 however long it is.
    fn int32(&mut self) -> Result<i32, Stop> {
        Ok(unzigzag(self.varint()?) as i32)
    }

    fn varint(&mut self) -> Result<u64, Stop> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Stop::Malformed)
    }
}

/// Signed numbers come with their sign in the lowest bit.
fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn check(footer: &[u8]) -> Result<(), String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&PARQUET_MAGIC).unwrap();
        file.write_all(footer).unwrap();
        file.write_all(&(footer.len() as u32).to_le_bytes()).unwrap();
        file.write_all(&PARQUET_MAGIC).unwrap();
        check_footer(&file).map_err(|error| error.to_string())
    }

    /// A footer whose root claims `num_children` (one byte of a varint, zigzag) and has one.
    fn footer(num_children: &[u8]) -> Vec<u8> {
        let root = [&[0x48, 1, b'r', 0x15][..], num_children, &[0x00]].concat();
        let leaf = [0x15, 0x0c, 0x25, 0x00, 0x18, 1, b'k', 0x00];
        [&[0x15, 0x02, 0x19, 0x2c][..], &root, &leaf, &[0x16, 0x00, 0x19, 0x0c, 0x00]].concat()
    }

    #[test]
    fn claims_are_held_against_the_footer() {
        assert_eq!(check(&footer(&[2])), Ok(()), "one child");
        assert_eq!(check(&footer(&[3])), Ok(()), "-2 is left to the library");
        for too_many in [&[4][..], &[0x80, 0x01], &[0xfe, 0xff, 0xff, 0xff, 0x0f]] {
            assert!(check(&footer(too_many)).unwrap_err().contains("claims more entries"), "{too_many:?}");
        }
        // Row groups: a list whose size is a varint.
        let row_groups = [&[0x15, 0x02, 0x19, 0x0c, 0x16, 0x00, 0x19, 0xfc][..], &[0xff, 0xff, 0x03, 0x00]];
        assert!(check(&row_groups.concat()).unwrap_err().contains("claims more entries"));
    }

    fn header(bytes: &[u8]) -> Result<Bytes, String> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&PARQUET_MAGIC).unwrap();
        file.write_all(bytes).unwrap();
        read_page_header(&file, 4).map_err(|error| error.to_string())
    }

    /// A header whose only field is an unknown one with the value `value` of kind `kind`.
    fn header_with(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[0xf0 | kind][..], value, &[0]].concat()
    }

    #[test]
    fn a_page_header_is_read_whole_however_long() {
        for num_bytes in [0, 1, 5_000, 100_000, 3_000_000] {
            let mut length = Vec::new();
            let mut rest = num_bytes;
            while rest >= 0x80 {
                length.push(rest as u8 | 0x80);
                rest >>= 7;
            }
            length.push(rest as u8);
            let text = header_with(BINARY, &[&length[..], &vec![b'x'; num_bytes]].concat());
            let read = header(&[&text[..], &[0; 100]].concat()).unwrap();
            assert!(read.starts_with(&text), "{num_bytes}");
            let cut = header(&text[..text.len() - 1]);
            assert_eq!(
                cut.unwrap_err(),
                "Parquet error: the page header at byte 4 is damaged",
                "{num_bytes}"
            );
        }
    }

    #[test]
    fn page_headers_that_claim_more_than_the_file_has_are_refused() {
        let most = [0xff, 0xff, 0xff, 0xff, 0x07];
        let list_of = |kind: u8| header_with(LIST, &[&[0xf0 | kind][..], &most].concat());
        let map = header_with(MAP, &[&most[..], &[0x77]].concat());
        let text = header_with(BINARY, &most);
        for (what, bytes) in [("doubles", list_of(DOUBLE)), ("map", map), ("text", text), ("empty", vec![])] {
            assert!(header(&bytes).is_err(), "{what}");
            let is_last = bytes.is_empty();
            assert!(is_last || header(&[&bytes[..], &[1; 50_000]].concat()).is_err(), "{what}");
        }
        // The library takes booleans in a list to have no bytes.
        assert!(header(&[&list_of(TRUE)[..], &[0; 100]].concat()).is_err());
        assert!(header(&header_with(LIST, &[0x21, 1, 1])).is_err());
        assert!(header(&header_with(LIST, &[0x23, 1, 1])).is_ok(), "two bytes");
    }

    #[test]
    fn a_page_does_not_hold_a_thousand_times_its_bytes() {
        let page = |unpacked: &[u8], packed: &[u8]| {
            header(&[&[0x15, 0, 0x15][..], unpacked, &[0x15], packed, &[0]].concat())
        };
        // Zigzag: 32 MiB, one byte more, and 2^31 - 1.
        let (free, more, most) =
            ([0x80, 0x80, 0x80, 0x20], [0x82, 0x80, 0x80, 0x20], [0xfe, 0xff, 0xff, 0xff, 0x0f]);
        assert!(page(&free, &[2]).is_ok());
        assert!(page(&more, &[0x80, 0x80, 0x08]).is_ok(), "64 KiB");
        let problem = "Parquet error: the page at byte 4 has 1 bytes and claims to hold";
        assert_eq!(page(&more, &[2]).unwrap_err(), format!("{problem} 33554433"));
        assert_eq!(page(&most, &[2]).unwrap_err(), format!("{problem} 2147483647"));
        // More than 32 bits, negative as a whole.
        let long = [0x81, 0x80, 0x80, 0x80, 0x10];
        assert_eq!(page(&long, &[2]).unwrap_err(), format!("{problem} 2147483647"));
    }

    #[test]
    fn a_dictionary_does_not_hold_more_values_than_bytes() {
        // Ten bytes unpacked and packed; the fields 4 to 6 are left out.
        let dictionary =
            |values: u8| header(&[&[0x15, 4, 0x15, 20, 0x15, 20, 0x4c, 0x15][..], &[values, 0, 0]].concat());
        assert!(dictionary(20).is_ok());
        let problem = "Parquet error: the page at byte 4 has 10 bytes and claims to hold 11 values";
        assert_eq!(dictionary(22).unwrap_err(), problem);
    }

    #[test]
    fn what_is_no_footer_is_left_to_the_library() {
        for bytes in
            [&b""[..], b"\x0d", b"\x15", b"\x15\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", &[0x1c; 300]]
        {
            assert_eq!(check(bytes), Ok(()), "{bytes:?}");
        }
        let mut short = tempfile::tempfile().unwrap();
        short.write_all(b"PAR1").unwrap();
        assert!(check_footer(&short).is_ok());
    }
}
