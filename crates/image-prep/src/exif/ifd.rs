//! Directories of tags (IFDs), read the way `exifread` reads them.

use std::collections::{HashMap, HashSet};

use super::python_text::{bytes_repr, char_repr, float, fraction, lowest_terms};
use super::tags;

/// What a tag's values mean, and so how they are printed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Meaning {
    /// Themselves.
    Plain,
    /// Characters of a text.
    Latin1,
    /// The names of these numbers.
    Names(&'static [(i64, &'static str)]),
    /// The first is the offset of a directory, with this name and these tags.
    SubIfd(&'static str, &'static [(u16, &'static str, Meaning)]),
}

/// The most values that are read from one file. Directories may overlap, so that a small file could name millions.
const MAX_VALUES: usize = 1 << 18;
/// Bytes of text that count as one value: a file has 1 MiB of it at the most.
const TEXT_BYTES_PER_VALUE: usize = 4;
/// A tag of more values than this is printed as if it had none; as in the original.
const MAX_VALUES_OF_TAG: u32 = 1000;
/// A tag of more values than this is printed with its first [`NUM_PRINTED_VALUES`] only.
const MAX_PRINTED_VALUES: u32 = 50;
const NUM_PRINTED_VALUES: usize = 20;

/// All tags of an EXIF block, in the original's order. `None` where the original raises an exception.
pub(super) fn read(block: &[u8]) -> Option<Vec<(String, String)>> {
    // 1 and `d` stand for segments of Adobe's; read as big-endian.
    let is_little_endian = match block.first()? {
        b'I' => true,
        b'M' | 1 | b'd' => false,
        _ => return None,
    };
    let mut reader = Reader { block, is_little_endian, tags: Tags::default(), num_values: 0 };
    for (idx, offset) in reader.directories()?.into_iter().enumerate() {
        let name = match idx {
            0 => "Image".to_owned(),
            1 => "Thumbnail".to_owned(),
            idx => format!("IFD {idx}"),
        };
        reader.read_directory(offset, &name, tags::EXIF)?;
    }
    if let Some(exif_offset) = reader.tags.exif_offset.take() {
        reader.read_linked_directory(exif_offset.first()?, "EXIF", tags::EXIF)?;
    }
    Some(reader.tags.list)
}

/// Printed tags by name; a name that comes again replaces the value and keeps its place.
#[derive(Default)]
struct Tags {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
    /// The values of `Image ExifOffset`.
    exif_offset: Option<Values>,
}

impl Tags {
    fn insert(&mut self, name: String, value: &str) {
        // Trimmed as img2dataset does.
        let value = value.trim().to_owned();
        match self.places.get(&name) {
            Some(&place) => self.list[place].1 = value,
            None => {
                self.places.insert(name.clone(), self.list.len());
                self.list.push((name, value));
            }
        }
    }
}

/// One value of a tag.
#[derive(Debug, Clone, Copy)]
enum Value {
    Integer(i64),
    Ratio(i64, i64),
    Float(f64),
}

impl Value {
    fn print(self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Ratio(numerator, denominator) => fraction(numerator, denominator),
            // Python's `struct` answers with a tuple of one.
            Self::Float(value) => format!("({},)", float(value)),
        }
    }

    /// The integer it equals.
    fn as_integer(self) -> Option<i64> {
        match self {
            Self::Integer(value) => Some(value),
            Self::Ratio(numerator, denominator) => match lowest_terms(numerator, denominator) {
                (numerator, 1) => Some(numerator),
                _ => None,
            },
            Self::Float(_) => None,
        }
    }
}

/// All values of a tag.
#[derive(Debug)]
enum Values {
    Text(String),
    /// A text that is not UTF-8.
    Bytes(Vec<u8>),
    List(Vec<Value>),
}

impl Values {
    fn print(&self, count: u32) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::List(values) if count == 1 => {
                values.first().map_or_else(String::new, |value| value.print())
            }
            Self::Bytes(bytes) if count > MAX_PRINTED_VALUES && bytes.len() > NUM_PRINTED_VALUES => {
                let mut text = bytes_repr(&bytes[..NUM_PRINTED_VALUES]);
                text.pop();
                text + ", ... ]"
            }
            Self::Bytes(bytes) => bytes_repr(bytes),
            Self::List(values) => {
                let print = |values: &[Value]| {
                    values.iter().map(|value| value.print()).collect::<Vec<_>>().join(", ")
                };
                if count > MAX_PRINTED_VALUES && values.len() > NUM_PRINTED_VALUES {
                    format!("[{}, ... ]", print(&values[..NUM_PRINTED_VALUES]))
                } else {
                    format!("[{}]", print(values))
                }
            }
        }
    }

    /// Source: `make_string` in exifread's `utils.py`.
    fn print_latin1(&self) -> String {
        let visible = |code: i64| u8::try_from(code).ok().filter(|&byte| byte >= 32).map(char::from);
        let mut text: String = match self {
            Self::Text(_) => String::new(),
            Self::Bytes(bytes) => bytes.iter().filter_map(|&byte| visible(byte.into())).collect(),
            Self::List(values) => values
                .iter()
                .filter_map(|value| match value {
                    Value::Integer(code) => visible(*code),
                    Value::Ratio(..) | Value::Float(_) => None,
                })
                .collect(),
        };
        if text.is_empty() {
            text = match self {
                Self::Text(text) => text.clone(),
                Self::Bytes(bytes) => bytes_repr(bytes),
                Self::List(values) => values.iter().map(|value| value.print()).collect(),
            };
            if matches!(self, Self::List(_)) && text.bytes().all(|byte| byte == b'0') {
                return String::new();
            }
        }
        text.trim_matches([' ', '\0']).to_owned()
    }

    fn print_names(&self, names: &[(i64, &str)]) -> String {
        let name_of = |number: i64| names.iter().find(|&&(known, _)| known == number).map(|&(_, name)| name);
        match self {
            Self::Text(text) => text.chars().map(char_repr).collect(),
            Self::Bytes(bytes) => bytes
                .iter()
                .map(|&byte| name_of(byte.into()).map_or_else(|| byte.to_string(), str::to_owned))
                .collect(),
            Self::List(values) => values
                .iter()
                .map(|value| {
                    value.as_integer().and_then(name_of).map_or_else(|| value.print(), str::to_owned)
                })
                .collect(),
        }
    }

    /// The first value, as something that may be an offset.
    fn first(&self) -> Option<Link> {
        match self {
            Self::Text(text) => text.chars().next().map(|_| Link::NotAnOffset),
            Self::Bytes(bytes) => bytes.first().map(|&byte| Link::Offset(byte.into())),
            Self::List(values) => values.first().map(|value| match value {
                Value::Integer(offset) => Link::Offset(*offset),
                Value::Ratio(..) | Value::Float(_) => Link::NotAnOffset,
            }),
        }
    }
}

/// Where a tag says that a directory is.
#[derive(Debug, Clone, Copy)]
enum Link {
    Offset(i64),
    NotAnOffset,
}

struct Reader<'a> {
    /// The file from the block's first byte on; offsets count from there.
    block: &'a [u8],
    is_little_endian: bool,
    tags: Tags,
    num_values: usize,
}

impl Reader<'_> {
    /// The unsigned number of `N` bytes at `offset`: 0 behind the end, `None` across it.
    fn number<const N: usize>(&self, offset: usize) -> Option<u64> {
        let mut bytes = match self.block.get(offset..) {
            None | Some([]) => return Some(0),
            Some(rest) => *rest.first_chunk::<N>()?,
        };
        if self.is_little_endian {
            bytes.reverse();
        }
        Some(bytes.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
    }

    fn short(&self, offset: usize) -> Option<u16> {
        self.number::<2>(offset).map(|number| number as u16)
    }

    fn long(&self, offset: usize) -> Option<u32> {
        self.number::<4>(offset).map(|number| number as u32)
    }

    /// The offsets of the directories that are linked into a chain.
    fn directories(&self) -> Option<Vec<usize>> {
        let mut offsets = Vec::new();
        let mut seen = HashSet::new();
        let mut offset = self.long(4)? as usize;
        while offset != 0 && seen.insert(offset) {
            if offsets.len() == MAX_VALUES {
                return None;
            }
            offsets.push(offset);
            let num_entries = usize::from(self.short(offset)?);
            offset = self.long(offset + 2 + 12 * num_entries)? as usize;
        }
        Some(offsets)
    }

    /// Reads a directory that a tag links to; what is no offset is passed over.
    fn read_linked_directory(
        &mut self,
        link: Link,
        name: &str,
        table: &[(u16, &'static str, Meaning)],
    ) -> Option<()> {
        match link {
            Link::NotAnOffset => Some(()),
            Link::Offset(offset) => self.read_directory(usize::try_from(offset).ok()?, name, table),
        }
    }

    fn read_directory(
        &mut self,
        offset: usize,
        name: &str,
        table: &[(u16, &'static str, Meaning)],
    ) -> Option<()> {
        /// Left out when details are not asked for: application notes, maker note, user comment.
        const DETAILS: [u16; 3] = [0x02bc, 0x927c, 0x9286];
        for idx in 0..usize::from(self.short(offset)?) {
            let entry = offset + 2 + 12 * idx;
            let tag = self.short(entry)?;
            self.spend(1)?;
            if DETAILS.contains(&tag) {
                continue;
            }
            self.read_entry(entry, tag, name, table)?;
        }
        Some(())
    }

    fn read_entry(
        &mut self,
        entry: usize,
        tag: u16,
        directory: &str,
        table: &[(u16, &'static str, Meaning)],
    ) -> Option<()> {
        let kind = self.short(entry + 2)?;
        let Some(value_len) = value_len(kind) else {
            return Some(());
        };
        let count = self.long(entry + 4)?;
        let mut offset = entry + 8;
        if u64::from(count) * value_len as u64 > 4 {
            offset = self.long(offset)? as usize;
        }
        let values = self.values(kind, value_len, count, offset)?;
        let mut printed = values.print(count);
        let (name, meaning) = match tags::find(table, tag) {
            Some(&(_, name, meaning)) => (name.to_owned(), meaning),
            None => (format!("Tag 0x{tag:04X}"), Meaning::Plain),
        };
        match meaning {
            Meaning::Plain => {}
            Meaning::Latin1 => printed = values.print_latin1(),
            Meaning::Names(names) => printed = values.print_names(names),
            Meaning::SubIfd(name, table) => {
                if let Some(link) = values.first() {
                    self.read_linked_directory(link, name, table)?;
                }
            }
        }
        let name = format!("{directory} {name}");
        self.tags.insert(name.clone(), &printed);
        if name == "Image ExifOffset" {
            self.tags.exif_offset = Some(values);
        }
        Some(())
    }

    fn values(&mut self, kind: u16, value_len: usize, count: u32, offset: usize) -> Option<Values> {
        if kind == ASCII {
            let rest = self.block.get(offset..).unwrap_or_default();
            let field = &rest[..rest.len().min(count as usize)];
            let text = field.split(|&byte| byte == 0).next().unwrap_or_default();
            self.spend(text.len().div_ceil(TEXT_BYTES_PER_VALUE))?;
            return Some(match std::str::from_utf8(text) {
                Ok(text) => Values::Text(text.to_owned()),
                Err(_) => Values::Bytes(text.to_owned()),
            });
        }
        if count >= MAX_VALUES_OF_TAG {
            return Some(Values::List(Vec::new()));
        }
        self.spend(count as usize)?;
        let values: Option<Vec<Value>> =
            (0..count as usize).map(|idx| self.value(kind, offset + idx * value_len)).collect();
        values.map(Values::List)
    }

    fn value(&self, kind: u16, offset: usize) -> Option<Value> {
        let integer = |value: u64| Some(Value::Integer(value as i64));
        match kind {
            1 | 7 => integer(self.number::<1>(offset)?),
            3 => integer(self.number::<2>(offset)?),
            4 | 13 => integer(self.number::<4>(offset)?),
            6 => Some(Value::Integer((self.number::<1>(offset)? as i8).into())),
            8 => Some(Value::Integer((self.number::<2>(offset)? as i16).into())),
            9 => Some(Value::Integer((self.number::<4>(offset)? as i32).into())),
            5 => Some(Value::Ratio(self.long(offset)?.into(), self.long(offset + 4)?.into())),
            10 => {
                let signed = |offset| self.long(offset).map(|number| i64::from(number as i32));
                Some(Value::Ratio(signed(offset)?, signed(offset + 4)?))
            }
            // Floating point is read by another way, which answers −1 at and across the end.
            _ => Some(match (kind, self.block.get(offset..)) {
                (11, Some(&[_, _, _, _, ..])) => {
                    Value::Float(f32::from_bits(self.number::<4>(offset)? as u32).into())
                }
                (12, Some(&[_, _, _, _, _, _, _, _, ..])) => {
                    Value::Float(f64::from_bits(self.number::<8>(offset)?))
                }
                _ => Value::Integer(-1),
            }),
        }
    }

    /// Counts values against the limit.
    fn spend(&mut self, num_values: usize) -> Option<()> {
        self.num_values += num_values;
        (self.num_values <= MAX_VALUES).then_some(())
    }
}

const ASCII: u16 = 2;

/// Bytes of one value of a type; `None` for types that do not exist.
fn value_len(kind: u16) -> Option<usize> {
    match kind {
        1 | ASCII | 6 | 7 => Some(1),
        3 | 8 => Some(2),
        4 | 9 | 11 | 13 => Some(4),
        5 | 10 | 12 => Some(8),
        _ => None,
    }
}
