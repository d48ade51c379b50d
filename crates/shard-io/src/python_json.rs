//! JSON as Python's `json` module writes it: with `NaN`, `Infinity` and `-Infinity`, which JSON does not have.
//!
//! img2dataset writes them for the empty cells of float columns.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

/// Reads JSON; Python's numbers that are none become `null`.
///
/// # Errors
/// If it is neither JSON nor what Python takes for it, or not of that shape.
pub fn from_python_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    // Nearly all files are plain JSON, which is tried first.
    serde_json::from_slice(bytes).or_else(|error| match with_nulls(bytes) {
        Cow::Owned(plain) => serde_json::from_slice(&plain),
        Cow::Borrowed(_) => Err(error),
    })
}

/// The bytes with `null` for each of Python's words outside strings.
fn with_nulls(bytes: &[u8]) -> Cow<'_, [u8]> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];

    let mut plain = Vec::new();
    let (mut copied, mut at, mut in_string) = (0, 0, false);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => in_string = !in_string,
            // The byte behind a backslash never ends a string.
            b'\\' if in_string => at += 1,
            _ if in_string => {}
            _ => {
                if let Some(word) = WORDS.iter().find(|word| bytes[at..].starts_with(word)) {
                    plain.extend_from_slice(&bytes[copied..at]);
                    plain.extend_from_slice(b"null");
                    at += word.len();
                    copied = at;
                    continue;
                }
            }
        }
        at += 1;
    }
    if copied == 0 {
        return Cow::Borrowed(bytes);
    }
    plain.extend_from_slice(&bytes[copied..]);
    Cow::Owned(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn words_of_python_become_null() {
        let read = |text: &str| from_python_json::<Value>(text.as_bytes()).map_err(|error| error.to_string());
        assert_eq!(
            read(r#"{"a": NaN, "NaN": [-Infinity, Infinity, -1], "b\"": "NaN \\", "c": NaN}"#),
            Ok(json!({"a": null, "NaN": [null, null, -1], "b\"": "NaN \\", "c": null}))
        );
        assert_eq!(read("NaN"), Ok(Value::Null));
        for broken in ["{\"a\": nan}", "{\"a\": NaN", "\"NaN", "\"\\", "", "NaNNaN", "--Infinity"] {
            assert!(read(broken).is_err(), "{broken}");
        }
    }
}
