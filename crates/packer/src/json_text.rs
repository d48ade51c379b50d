//! Strings of a JSON text, and where in it they lie.

use std::borrow::Cow;
use std::fmt;

use oqvl_shard_io::ImageEncoding;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, de};

use crate::document::Place;

/// A JSON string, borrowed from the input unless it has escapes.
#[derive(Debug)]
pub(crate) struct JsonText<'a>(pub(crate) Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for JsonText<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextVisitor;
        impl<'de> Visitor<'de> for TextVisitor {
            type Value = JsonText<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<JsonText<'de>, E> {
                Ok(JsonText(Cow::Borrowed(text)))
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<JsonText<'de>, E> {
                Ok(JsonText(Cow::Owned(text.to_owned())))
            }
        }
        deserializer.deserialize_str(TextVisitor)
    }
}

/// How often the JSON may be searched through from end to end for strings with escapes, before the rest count as
/// undecodable: a document made for it could otherwise keep a thread busy for hours.
const MAX_SEARCHES: usize = 32;

/// Finds where strings lie in the JSON they were read from.
pub(crate) struct Places<'a> {
    json: &'a [u8],
    /// Where the last search ended: strings mostly come in order.
    searched_to: usize,
    /// Bytes that may still be searched.
    budget: usize,
    /// How the last string that was searched for had its slashes written.
    slashes: [&'static str; 2],
}

impl<'a> Places<'a> {
    pub(crate) fn new(json: &'a [u8]) -> Self {
        let budget = json.len().saturating_mul(MAX_SEARCHES);
        Self { json, searched_to: 0, budget, slashes: ["\\/", "/"] }
    }

    /// The inside of the string's quotes.
    pub(crate) fn find(&mut self, text: &JsonText<'_>) -> Option<Place> {
        let (start, num_bytes) = match &text.0 {
            // A slice of the input.
            Cow::Borrowed(text) => {
                ((text.as_ptr() as usize).checked_sub(self.json.as_ptr() as usize)?, text.len())
            }
            // Written with escapes: of base64 that is `\/`, or line ends.
            Cow::Owned(text) => self.search(text)?,
        };
        Some(Place { offset: start as u64, num_bytes: num_bytes as u64, encoding: ImageEncoding::JsonBase64 })
    }

    fn search(&mut self, text: &str) -> Option<(usize, usize)> {
        let json = std::str::from_utf8(self.json).ok()?;
        let quoted = serde_json::to_string(text).ok()?;
        for slash in self.slashes {
            let written = quoted.replace('/', slash);
            for from in [self.searched_to, 0] {
                let found = json.get(from..)?.find(&written);
                let num_searched = found.unwrap_or(json.len() - from);
                self.budget = self.budget.checked_sub(num_searched)?;
                if let Some(found) = found {
                    self.searched_to = from + found + written.len();
                    if slash != self.slashes[0] {
                        self.slashes.reverse();
                    }
                    return Some((from + found + 1, written.len() - 2));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn searching_ends() {
        let json = format!("[{}]", vec!["\"AAAA\""; 500].join(","));
        let text = JsonText(Cow::Owned("not there".to_owned()));
        let mut places = Places::new(json.as_bytes());
        assert_eq!((places.find(&text), places.find(&text)), (None, None));
        assert!(places.budget < json.len() * MAX_SEARCHES);
        places.budget = 3;
        assert_eq!(places.find(&text), None);
        // A slice of the text is found without a search.
        assert_eq!(places.find(&JsonText(Cow::Borrowed(&json[7..11]))).map(|place| place.offset), Some(7));
    }
}
