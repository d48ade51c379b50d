//! The metadata of a sample, and JSON as Python writes it.
//!
//! The `json` member is byte for byte what `json.dumps(meta, indent=4)` gives: four blanks of indentation,
//! everything outside printable ASCII escaped. (Two kinds of carried values are the exception: floats with an
//! exponent, which Python writes as `1e+16`, and NaN.)

use crate::config::DataFetchConfig;
use crate::reject::RowStatus;
use crate::transform::{ImageSizes, StoredImage};
use crate::url_list::CarriedColumn;
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};
use serde_json::{Map, Serializer, Value};
use std::io;

/// Metadata of a kept sample, keys in img2dataset's order: carried columns, `caption`, `url`, `key`,
/// `status`, `error_message`, `width`, `height`, `original_width`, `original_height`, `exif`, and the digest under
/// the name of its kind.
pub(crate) fn metadata(
    columns: &[CarriedColumn],
    extra: &[Value],
    caption: Option<&str>,
    url: &str,
    key: &str,
    image: &StoredImage,
    config: &DataFetchConfig,
) -> Map<String, Value> {
    let mut map = Map::new();
    for (column, value) in columns.iter().zip(extra) {
        map.insert(column.name.clone(), value.clone());
    }
    let side = |of: fn(ImageSizes) -> u32| Value::from(image.sizes.map(of));
    for (name, value) in [
        ("caption", caption.into()),
        ("url", url.into()),
        ("key", key.into()),
        ("status", RowStatus::Success.as_str().into()),
        ("error_message", Value::Null),
        ("width", side(|sizes| sizes.stored.width)),
        ("height", side(|sizes| sizes.stored.height)),
        ("original_width", side(|sizes| sizes.original.width)),
        ("original_height", side(|sizes| sizes.original.height)),
    ] {
        map.insert(name.to_owned(), value);
    }
    if config.extract_exif {
        map.insert("exif".to_owned(), image.exif.as_deref().into());
    }
    if let Some(column) = config.compute_hash.column() {
        map.insert(column.to_owned(), image.digest.as_deref().into());
    }
    map
}

/// `json.dumps(value, indent=4)`.
pub(crate) fn to_python_json<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut serializer =
        Serializer::with_formatter(&mut bytes, PythonFormatter(PrettyFormatter::with_indent(b"    ")));
    value.serialize(&mut serializer).expect("maps with text keys can be written to memory");
    bytes
}

/// `json.dumps(value)`.
pub(crate) fn to_python_json_line<T: Serialize + ?Sized>(value: &T) -> String {
    let mut bytes = Vec::new();
    let mut serializer = Serializer::with_formatter(&mut bytes, PythonLineFormatter);
    value.serialize(&mut serializer).expect("maps with text keys can be written to memory");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

/// One line with a blank after every comma and colon.
struct PythonLineFormatter;

impl Formatter for PythonLineFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_ascii(writer, fragment)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// A piece of text with everything outside printable ASCII escaped. Quotes, backslashes and control characters below DEL
/// never get here: they are escaped one by one.
fn write_ascii<W: ?Sized + io::Write>(writer: &mut W, fragment: &str) -> io::Result<()> {
    let mut units = [0; 2];
    let mut rest = fragment;
    while let Some(start) = rest.find(|c: char| !(' '..='~').contains(&c)) {
        writer.write_all(&rest.as_bytes()[..start])?;
        let mut characters = rest[start..].chars();
        if let Some(character) = characters.next() {
            for unit in character.encode_utf16(&mut units) {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        rest = characters.as_str();
    }
    writer.write_all(rest.as_bytes())
}

/// Pretty printing with every non-ASCII character escaped.
struct PythonFormatter(PrettyFormatter<'static>);

impl Formatter for PythonFormatter {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        write_ascii(writer, fragment)
    }

    fn begin_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_array(writer)
    }

    fn end_array<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array(writer)
    }

    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(writer, first)
    }

    fn end_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_array_value(writer)
    }

    fn begin_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object(writer)
    }

    fn end_object<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object(writer)
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(writer, first)
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.begin_object_value(writer)
    }

    fn end_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        self.0.end_object_value(writer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    /// The right-hand sides are what Python 3.11 prints for `json.dumps(value, indent=4)`.
    #[test]
    fn json_is_that_of_python() {
        for (value, expected) in [
            (json!("a\"b\\c/\n\t\u{8}\u{c}\r"), r#""a\"b\\c/\n\t\b\f\r""#),
            (json!("é😀\u{7f}\u{1f}"), r#""\u00e9\ud83d\ude00\u007f\u001f""#),
            (json!([]), "[]"),
            (json!({}), "{}"),
            (json!([1, null, true, 0.5]), "[\n    1,\n    null,\n    true,\n    0.5\n]"),
            (json!({"ü": {"a": []}}), "{\n    \"\\u00fc\": {\n        \"a\": []\n    }\n}"),
        ] {
            assert_eq!(String::from_utf8(to_python_json(&value)).unwrap(), expected);
        }
    }

    /// As above, for `json.dumps(value)`.
    #[test]
    fn a_line_of_json_is_that_of_python() {
        for (value, expected) in [
            (json!({}), "{}"),
            (json!({"a": "é\"", "b": "\u{7f}"}), r#"{"a": "\u00e9\"", "b": "\u007f"}"#),
            (json!([1, [], {"k": [null, true]}]), r#"[1, [], {"k": [null, true]}]"#),
        ] {
            assert_eq!(to_python_json_line(&value), expected);
        }
    }

    proptest! {
        #[test]
        fn any_text_is_ascii_and_survives(text in ".*") {
            let bytes = to_python_json(&text);
            prop_assert!(bytes.is_ascii());
            prop_assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), text);
        }
    }
}
