//! Lists in text formats: txt, csv, tsv, jsonl, json; plain, gzipped or Zstandard-compressed.
//!
//! A line that is not what it should be is a row of its own (`bad-row`), so that the rows after it keep their
//! keys; what makes the rest of the file unreadable is an error. A stray quote in a CSV file swallows rows: up to the next
//! one, which shows if what it swallowed looks like a row, or up to the end of the file. No record may take more than
//! [`MAX_RECORD_BYTES`]. In a TSV file no field runs over lines, so a quote that is not closed is a letter.

use super::{OnRecord, Record};
use crate::config::InputFormat;
use crate::error::DataFetchError;
use crate::reject::Reject;
use flate2::read::MultiGzDecoder;
use oqvl_shard_io::{PythonJsonReader, from_python_json};
use serde::de::{Deserializer as _, Error as _, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::rc::Rc;

/// Put behind a CSV list. It is a record of its own, or the end of a field whose quote was never closed.
const END_OF_LIST: &[u8] = b"\n\0end of the list\0\n";

/// Longest record of a text list, in bytes.
pub(super) const MAX_RECORD_BYTES: u64 = 16 << 20;

/// Calls `on_record` with every record of the list and returns the names of its columns: the header, or the
/// keys of the first object.
pub(super) fn read(
    path: &Path,
    format: InputFormat,
    wanted: &[String],
    on_record: &mut OnRecord<'_>,
) -> Result<Vec<String>, DataFetchError> {
    let plain = open_plain(path).map_err(DataFetchError::io(path))?;
    let allowance = Rc::new(Cell::new(MAX_RECORD_BYTES));
    let limited = RecordLimit { inner: plain, allowance: Rc::clone(&allowance) };
    let input = BufReader::with_capacity(1 << 16, limited);
    let list = TextList { input, allowance, wanted, on_record };
    let names = match format {
        InputFormat::Txt => list.lines(),
        InputFormat::Csv => list.comma_separated(),
        InputFormat::Tsv => list.tab_separated(),
        InputFormat::Jsonl => list.json_lines(),
        InputFormat::Json => list.json_list(),
        InputFormat::Parquet => unreachable!("parquet lists have their own reader"),
    };
    let format = format.name();
    names.map_err(|problem| DataFetchError::ListFormat { path: path.to_path_buf(), format, problem })
}

/// The file's text. Its first bytes say whether it is compressed: names of downloaded files are not reliable.
fn open_plain(path: &Path) -> io::Result<Box<dyn Read>> {
    let mut file = File::open(path)?;
    let mut magic = Vec::new();
    (&mut file).take(4).read_to_end(&mut magic)?;
    file.rewind()?;
    Ok(match magic[..] {
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(BufReader::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(file)?),
        _ => Box::new(file),
    })
}

struct TextList<'a, 'b> {
    input: BufReader<RecordLimit>,
    allowance: Rc<Cell<u64>>,
    wanted: &'a [String],
    on_record: &'a mut OnRecord<'b>,
}

impl TextList<'_, '_> {
    fn emit(&mut self, record: Record) -> ControlFlow<()> {
        self.allowance.set(MAX_RECORD_BYTES);
        (self.on_record)(record)
    }

    /// The next line that is not blank, without its end; `None` at the end of the file.
    fn next_line(&mut self, line: &mut Vec<u8>, line_idx: &mut u64) -> Result<Option<()>, String> {
        loop {
            line.clear();
            self.allowance.set(MAX_RECORD_BYTES);
            let num_bytes = self.input.read_until(b'\n', line);
            if num_bytes.map_err(|error| format!("line {}: {error}", *line_idx + 1))? == 0 {
                return Ok(None);
            }
            if *line_idx == 0 && line.starts_with(b"\xef\xbb\xbf") {
                line.drain(..3);
            }
            *line_idx += 1;
            if !line.trim_ascii().is_empty() {
                return Ok(Some(()));
            }
        }
    }

    fn lines(mut self) -> Result<Vec<String>, String> {
        let (mut line, mut line_idx) = (Vec::new(), 0);
        while self.next_line(&mut line, &mut line_idx)?.is_some() {
            let record = match std::str::from_utf8(line.trim_ascii()) {
                Ok(url) => {
                    let mut values = vec![None; self.wanted.len()];
                    values[super::URL_IDX] = Some(Value::from(url));
                    Ok(values)
                }
                Err(_) => Err(Reject::BadRow),
            };
            if self.emit(record).is_break() {
                break;
            }
        }
        Ok(Vec::new())
    }

    fn json_lines(mut self) -> Result<Vec<String>, String> {
        let (mut line, mut line_idx) = (Vec::new(), 0);
        let mut names = None;
        while self.next_line(&mut line, &mut line_idx)?.is_some() {
            let value = from_python_json::<Value>(&line).ok();
            let record = object_record(value, self.wanted, &mut names);
            if self.emit(record).is_break() {
                break;
            }
        }
        Ok(names.unwrap_or_default())
    }

    fn comma_separated(self) -> Result<Vec<String>, String> {
        let Self { mut input, allowance, wanted, on_record } = self;
        let ends_with_cr = ends_with_cr(input.fill_buf().map_err(|error| error.to_string())?);
        // Flexible, so that a row with a comma too many is a bad row and not the end of the list.
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(input.chain(END_OF_LIST));
        let header = reader.byte_headers().map_err(|error| error.to_string())?.clone();
        if is_end(&header) {
            return Ok(Vec::new());
        }
        check_closed(&header, reader.position())?;
        let columns = Columns::new(&header, wanted);
        let mut fields = csv::ByteRecord::new();
        loop {
            allowance.set(MAX_RECORD_BYTES);
            let start = reader.position().line();
            let read = reader.read_byte_record(&mut fields);
            if !read.map_err(|error| format!("the row in or after line {start}: {error}"))? || is_end(&fields)
            {
                return Ok(columns.names);
            }
            check_closed(&fields, reader.position())?;
            if columns.has_swallowed_row(&fields) {
                let num_lines = fields.iter().map(num_line_ends).sum::<u64>() + u64::from(!ends_with_cr);
                let line = reader.position().line().saturating_sub(num_lines);
                return Err(format!(
                    "a quote is opened in the row of line {line} and closed rows later, after what looks like another row"
                ));
            }
            if on_record(columns.record(&fields)).is_break() {
                return Ok(columns.names);
            }
        }
    }

    fn tab_separated(mut self) -> Result<Vec<String>, String> {
        let (mut line, mut line_idx) = (Vec::new(), 0);
        let mut columns = None;
        while self.next_line(&mut line, &mut line_idx)?.is_some() {
            let fields = tab_separated_fields(line.strip_suffix(b"\n").unwrap_or(&line));
            let record = match &columns {
                Some(columns) => Columns::record(columns, &fields),
                None => {
                    columns = Some(Columns::new(&fields, self.wanted));
                    continue;
                }
            };
            if self.emit(record).is_break() {
                break;
            }
        }
        Ok(columns.map(|columns| columns.names).unwrap_or_default())
    }

    /// A list of objects; or, in files that are called `.json` all the same, one object per line.
    fn json_list(mut self) -> Result<Vec<String>, String> {
        const MARK: &[u8] = b"\xef\xbb\xbf";
        let start = self.input.fill_buf().map_err(|error| error.to_string())?;
        if start.starts_with(MARK) {
            self.input.consume(MARK.len());
        }
        let start = self.input.fill_buf().map_err(|error| error.to_string())?;
        if start.trim_ascii_start().first() == Some(&b'{') {
            return self.json_lines();
        }
        let mut names = None;
        let mut stopped = false;
        let wanted = self.wanted;
        let allowance = Rc::clone(&self.allowance);
        let mut json = serde_json::Deserializer::from_reader(PythonJsonReader::new(&mut self.input));
        let rows = ListVisitor {
            on_value: &mut |value| {
                allowance.set(MAX_RECORD_BYTES);
                let flow = (self.on_record)(object_record(Some(value), wanted, &mut names));
                stopped = flow.is_break();
                flow
            },
        };
        let read = json.deserialize_seq(rows).and_then(|()| json.end());
        match read {
            Err(error) if !stopped => Err(error.to_string()),
            _ => Ok(names.unwrap_or_default()),
        }
    }
}

/// The header of a table.
struct Columns {
    names: Vec<String>,
    /// Of each wanted column.
    places: Vec<Option<usize>>,
}

impl Columns {
    fn new(header: &csv::ByteRecord, wanted: &[String]) -> Self {
        let names: Vec<String> =
            header.iter().map(|name| String::from_utf8_lossy(name).trim().to_owned()).collect();
        let places = wanted.iter().map(|column| names.iter().position(|name| name == column)).collect();
        Self { names, places }
    }

    fn record(&self, fields: &csv::ByteRecord) -> Record {
        // Of too many fields nobody knows which comma should have been quoted.
        if fields.len() > self.names.len() {
            return Err(Reject::BadRow);
        }
        let value = |place: &Option<usize>| {
            place.map(|place| match fields.get(place) {
                Some(field) => std::str::from_utf8(field).map(Value::from).map_err(|_| Reject::BadRow),
                None => Ok(Value::Null),
            })
        };
        self.places.iter().map(|place| value(place).transpose()).collect()
    }

    /// Whether a line inside a field is what a row would be: as many fields as the header, a URL where URLs are. (A
    /// caption of several lines may well have as many commas.) The last line of a field goes on in the next ones.
    fn has_swallowed_row(&self, fields: &csv::ByteRecord) -> bool {
        let Some(url_place) = self.places[super::URL_IDX] else { return false };
        fields.iter().enumerate().any(|(field_idx, field)| {
            let num_lines = field.split(|byte| *byte == b'\n').count();
            field.split(|byte| *byte == b'\n').enumerate().skip(1).any(|(line_idx, line)| {
                let after = if line_idx + 1 == num_lines { fields.len() - field_idx - 1 } else { 0 };
                let mut pieces = line.split(|byte| *byte == b',');
                let num_pieces = pieces.clone().count();
                let url = match pieces.nth(url_place) {
                    Some(piece) => Some(piece),
                    None => (after > 0).then(|| fields.get(field_idx + 1 + url_place - num_pieces)).flatten(),
                };
                num_pieces + after == self.names.len() && url.is_some_and(looks_like_url)
            })
        })
    }
}

fn looks_like_url(field: &[u8]) -> bool {
    let field = field.trim_ascii().to_ascii_lowercase();
    [&b"http://"[..], b"https://"].iter().any(|scheme| field.starts_with(scheme))
}

/// The fields of a line. Quotes count where they are closed again.
fn tab_separated_fields(line: &[u8]) -> csv::ByteRecord {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.iter().filter(|byte| **byte == b'"').count() % 2 == 0 && line.contains(&b'"') {
        let builder = |reader: &mut csv::ReaderBuilder| {
            reader
                .delimiter(b'\t')
                .flexible(true)
                .has_headers(false)
                .from_reader(line)
                .into_byte_records()
                .next()
        };
        if let Some(Ok(fields)) = builder(&mut csv::ReaderBuilder::new()) {
            return fields;
        }
    }
    line.split(|byte| *byte == b'\t').collect()
}

/// Takes the wanted values out of an object; `names` gets the keys of the first one.
fn object_record(value: Option<Value>, wanted: &[String], names: &mut Option<Vec<String>>) -> Record {
    let Some(Value::Object(object)) = value else { return Err(Reject::BadRow) };
    names.get_or_insert_with(|| Map::keys(&object).cloned().collect());
    // A column may be wanted twice, so values are copied; the object is dropped right after.
    Ok(wanted.iter().map(|column| object.get(column).cloned()).collect())
}

/// Feeds the elements of a JSON list to a closure as they are parsed.
struct ListVisitor<'a> {
    on_value: &'a mut dyn FnMut(Value) -> ControlFlow<()>,
}

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(value) = list.next_element::<Value>()? {
            if (self.on_value)(value).is_break() {
                return Err(A::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Whether this is what follows the last row.
fn is_end(fields: &csv::ByteRecord) -> bool {
    fields.len() == 1 && fields[0] == *END_OF_LIST.trim_ascii()
}

/// Refuses a record whose last field goes on to the end of the list, which `after` is the position of: its quote is never
/// closed.
fn check_closed(fields: &csv::ByteRecord, after: &csv::Position) -> Result<(), String> {
    let last = fields.iter().next_back().unwrap_or_default();
    if !last.ends_with(END_OF_LIST) {
        return Ok(());
    }
    let line = after.line().saturating_sub(num_line_ends(last));
    Err(format!("a quote is opened in line {line} and never closed"))
}

fn num_line_ends(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Whether lines end with `\r\n`, as far as the first does: of these the reader leaves the `\n` to the next record.
fn ends_with_cr(start: &[u8]) -> bool {
    let end = start.iter().position(|byte| *byte == b'\n');
    end.is_some_and(|end| start[..end].ends_with(b"\r"))
}

/// A reader that gives up when its allowance is used; the consumer renews it with every record.
struct RecordLimit {
    inner: Box<dyn Read>,
    allowance: Rc<Cell<u64>>,
}

impl Read for RecordLimit {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let allowance = self.allowance.get();
        if allowance == 0 {
            return Err(io::Error::other(format!("a record is longer than {MAX_RECORD_BYTES} bytes")));
        }
        let most = usize::try_from(allowance).unwrap_or(usize::MAX).min(buffer.len());
        let num_bytes = self.inner.read(&mut buffer[..most])?;
        self.allowance.set(allowance - num_bytes as u64);
        Ok(num_bytes)
    }
}
