//! JSON as Python's `json` module writes it: with `NaN`, `Infinity` and `-Infinity`, which JSON does not have.
//!
//! img2dataset writes them for the empty cells of float columns.

use std::io::{self, BufRead, Read};

use serde::de::DeserializeOwned;

/// What Python's `json` module writes for floats that are no numbers.
const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];

/// Reads JSON; Python's numbers that are none become `null`.
///
/// # Errors
/// If it is neither JSON nor what Python takes for it, or not of that shape.
pub fn from_python_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    // Nearly all files are plain JSON, which is tried first.
    serde_json::from_slice(bytes).or_else(|_| {
        let mut plain = Vec::with_capacity(bytes.len());
        PythonJsonReader::new(bytes).read_to_end(&mut plain).map_err(serde_json::Error::io)?;
        serde_json::from_slice(&plain)
    })
}

/// Passes JSON on as it comes, with `null` for each of Python's words outside strings: what [`from_python_json`] reads,
/// where the text is too long for memory.
///
/// ```
/// use std::io::Read;
/// let mut plain = String::new();
/// oqvl_shard_io::PythonJsonReader::new(&b"[NaN, \"NaN\"]"[..]).read_to_string(&mut plain)?;
/// assert_eq!(plain, "[null, \"NaN\"]");
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct PythonJsonReader<R> {
    inner: R,
    /// What is to be handed on, from `handed_on`.
    plain: Vec<u8>,
    handed_on: usize,
    /// The start of a word, if what came last is one.
    begun: Vec<u8>,
    in_string: bool,
    is_escaped: bool,
}

impl<R: BufRead> PythonJsonReader<R> {
    /// A reader of the plain JSON that the text of `inner` becomes.
    pub fn new(inner: R) -> Self {
        let (plain, begun) = (Vec::new(), Vec::new());
        Self { inner, plain, handed_on: 0, begun, in_string: false, is_escaped: false }
    }

    fn take(&mut self, byte: u8) {
        if self.in_string {
            self.in_string = self.is_escaped || byte != b'"';
            self.is_escaped = !self.is_escaped && byte == b'\\';
            self.plain.push(byte);
            return;
        }
        self.begun.push(byte);
        let is_start = |begun: &[u8]| WORDS.iter().any(|word| word.starts_with(begun));
        if WORDS.contains(&&self.begun[..]) {
            self.plain.extend_from_slice(b"null");
            self.begun.clear();
        } else if !is_start(&self.begun) {
            self.begun.pop();
            self.plain.append(&mut self.begun);
            if is_start(&[byte]) {
                self.begun.push(byte);
            } else {
                self.in_string = byte == b'"';
                self.plain.push(byte);
            }
        }
    }

    /// Makes more of what is to be handed on, if there is more.
    fn refill(&mut self) -> io::Result<()> {
        self.plain.clear();
        self.handed_on = 0;
        while self.plain.is_empty() {
            let bytes = self.inner.fill_buf()?.to_vec();
            if bytes.is_empty() {
                self.plain.append(&mut self.begun);
                return Ok(());
            }
            self.inner.consume(bytes.len());
            bytes.into_iter().for_each(|byte| self.take(byte));
        }
        Ok(())
    }
}

impl<R: BufRead> Read for PythonJsonReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.handed_on == self.plain.len() {
            self.refill()?;
        }
        let num_bytes = (&self.plain[self.handed_on..]).read(buffer)?;
        self.handed_on += num_bytes;
        Ok(num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufReader;

    use serde_json::Value;

    use super::*;

    /// A text, what it becomes as plain JSON, and whether that is JSON.
    const CASES: [(&str, &str, bool); 13] = [
        (
            r#"{"a": NaN, "NaN": [-Infinity, Infinity, -1], "b\"": "NaN \\", "c": NaN}"#,
            r#"{"a": null, "NaN": [null, null, -1], "b\"": "NaN \\", "c": null}"#,
            true,
        ),
        (
            r#"[{"a": NaN, "NaN": "-Infinity \" NaN \\", "b": [-Infinity, -1, 3]}, "\u004eaN"]"#,
            r#"[{"a": null, "NaN": "-Infinity \" NaN \\", "b": [null, -1, 3]}, "\u004eaN"]"#,
            true,
        ),
        ("NaN", "null", true),
        ("[1, \"é\"]", "[1, \"é\"]", true),
        ("[Nope, -Inf", "[Nope, -Inf", false),
        ("{\"a\": nan}", "{\"a\": nan}", false),
        ("{\"a\": NaN", "{\"a\": null", false),
        ("\"NaN", "\"NaN", false),
        ("\"\\", "\"\\", false),
        ("", "", false),
        ("NaNNaN", "nullnull", false),
        ("NaNaN", "nullaN", false),
        ("--Infinity", "-null", false),
    ];

    #[test]
    fn words_outside_strings_become_null_in_memory_and_wherever_a_stream_is_cut() {
        for (text, expected, is_json) in CASES {
            for len in 1..20 {
                let mut plain = String::new();
                let reader = BufReader::with_capacity(len, text.as_bytes());
                PythonJsonReader::new(reader).read_to_string(&mut plain).unwrap();
                assert_eq!(plain, expected, "{len}");
            }
            let read = from_python_json::<Value>(text.as_bytes()).ok();
            assert_eq!(read, serde_json::from_str(expected).ok(), "{text}");
            assert_eq!(read.is_some(), is_json, "{text}");
        }
    }
}
