//! A stream of JSON as Python writes it, without what JSON does not have.

use std::io::{self, BufRead, Read};

/// What Python's `json` module writes for floats that are no numbers.
const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];

/// Passes JSON on, with `null` for each of Python's words outside strings, as `oqvl_shard_io::from_python_json` reads them
/// where all of the text is in memory.
pub(super) struct PythonWords<R> {
    inner: R,
    /// What is to be handed on, from `handed_on`.
    plain: Vec<u8>,
    handed_on: usize,
    /// The start of a word, if what came last is one.
    begun: Vec<u8>,
    in_string: bool,
    is_escaped: bool,
}

impl<R: BufRead> PythonWords<R> {
    pub(super) fn new(inner: R) -> Self {
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

impl<R: BufRead> Read for PythonWords<R> {
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

    use super::*;

    #[test]
    fn words_outside_strings_become_null_wherever_the_stream_is_cut() {
        let text =
            r#"[{"a": NaN, "NaN": "-Infinity \" NaN \\", "b": [-Infinity, Infinity, -1, 3]}, Nope, -Inf"#;
        let expected = r#"[{"a": null, "NaN": "-Infinity \" NaN \\", "b": [null, null, -1, 3]}, Nope, -Inf"#;
        for len in 1..20 {
            let mut plain = String::new();
            let reader = BufReader::with_capacity(len, text.as_bytes());
            PythonWords::new(reader).read_to_string(&mut plain).unwrap();
            assert_eq!(plain, expected, "{len}");
        }
    }
}
