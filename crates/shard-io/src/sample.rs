//! One sample of a shard: a key and its members.

use std::fmt;
use std::str::FromStr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::ShardError;
use crate::error::printable;
use crate::python_json::from_python_json;

/// Member extensions that hold an image, in the order [`Sample::image`] looks for them.
///
/// The first four are those of the reference's readers (`jpg;png;jpeg;webp`).
pub const IMAGE_EXTENSIONS: [&str; 8] = ["jpg", "png", "jpeg", "webp", "gif", "bmp", "tiff", "tif"];

/// Longest extension of a member; real ones have a handful.
pub(crate) const MAX_EXTENSION_BYTES: usize = 255;

/// The name of a sample inside its shard: the member's file name up to the first dot.
///
/// Not empty, at most 255 bytes, without `/`, `.` and control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SampleKey(String);

impl SampleKey {
    /// Checks that `key` can name a sample.
    ///
    /// # Errors
    /// [`ShardError::Key`] if it is empty, too long, or holds `/`, `.` or a control character.
    pub fn new(key: impl Into<String>) -> Result<SampleKey, ShardError> {
        let key = key.into();
        match key_problem(&key) {
            None => Ok(SampleKey(key)),
            Some(problem) => Err(ShardError::Key { key: printable(&key), problem }),
        }
    }

    /// The key as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why `key` cannot name a sample, if it cannot.
pub(crate) fn key_problem(key: &str) -> Option<&'static str> {
    if key.is_empty() {
        Some("it is empty")
    } else if key.len() > 255 {
        Some("it is longer than 255 bytes")
    } else if key.contains('/') {
        Some("it contains a slash")
    } else if key.contains('.') {
        Some("it contains a dot")
    } else if key.chars().any(char::is_control) {
        Some("it contains a control character")
    } else {
        None
    }
}

impl fmt::Display for SampleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<str> for SampleKey {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for SampleKey {
    type Err = ShardError;

    fn from_str(key: &str) -> Result<SampleKey, ShardError> {
        SampleKey::new(key)
    }
}

impl TryFrom<String> for SampleKey {
    type Error = ShardError;

    fn try_from(key: String) -> Result<SampleKey, ShardError> {
        SampleKey::new(key)
    }
}

impl From<SampleKey> for String {
    fn from(key: SampleKey) -> String {
        key.0
    }
}

/// One file of a sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Lower-case file extension after the first dot of the name, e.g. `jpg` or `seg.png`.
    pub extension: String,
    /// The content; empty if the reader was told to [pass over](crate::ShardReader::open_without) it.
    pub data: Vec<u8>,
    /// Where the content starts in the tar it was read from, in bytes; 0 for a member that was never in one.
    pub offset: u64,
    /// Bytes of the content, also of one that was passed over.
    pub num_bytes: u64,
}

/// Members of a shard that share a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Their common name.
    pub key: SampleKey,
    /// The members: in tar order when read from a shard, in the order of the pushes otherwise.
    pub members: Vec<Member>,
    /// Where it starts in the tar it was read from, in bytes, for [`ShardReader::open_at`]; 0 for a sample that
    /// was never in one.
    ///
    /// [`ShardReader::open_at`]: crate::ShardReader::open_at
    pub offset: u64,
    /// Bytes from there to the end of its last member, padding included; 0 for a sample that was never in a tar.
    pub num_bytes: u64,
}

impl Sample {
    /// A sample without members.
    #[must_use]
    pub fn new(key: SampleKey) -> Sample {
        Sample { key, members: Vec::new(), offset: 0, num_bytes: 0 }
    }

    /// Appends a member; `extension` is lower-cased, a leading dot is dropped.
    pub fn push(&mut self, extension: &str, data: Vec<u8>) {
        let extension = extension.strip_prefix('.').unwrap_or(extension).to_lowercase();
        let num_bytes = data.len() as u64;
        self.members.push(Member { extension, data, offset: 0, num_bytes });
    }

    /// The member with that extension (lower case, no leading dot).
    #[must_use]
    pub fn member(&self, extension: &str) -> Option<&Member> {
        self.members.iter().find(|member| member.extension == extension)
    }

    /// The image: the first of [`IMAGE_EXTENSIONS`] that is there.
    #[must_use]
    pub fn image(&self) -> Option<&Member> {
        IMAGE_EXTENSIONS.iter().find_map(|extension| self.member(extension))
    }

    /// The caption: the `txt` member, if there is one.
    ///
    /// # Errors
    /// [`ShardError::Utf8`] if it is not UTF-8.
    pub fn caption(&self) -> Result<Option<&str>, ShardError> {
        let Some(member) = self.member("txt") else { return Ok(None) };
        match std::str::from_utf8(&member.data) {
            Ok(text) => Ok(Some(text)),
            Err(_) => Err(ShardError::Utf8 {
                key: self.key.to_string(),
                extension: member.extension.clone(),
                offset: member.offset,
            }),
        }
    }

    /// The metadata: the `json` member, if there is one, as `T`. `NaN` and the infinities, which Python writes although
    /// JSON does not have them, are read as `null`.
    ///
    /// # Errors
    /// [`ShardError::SampleJson`] if it is not JSON of that shape.
    pub fn metadata<T: DeserializeOwned>(&self) -> Result<Option<T>, ShardError> {
        let Some(member) = self.member("json") else { return Ok(None) };
        match from_python_json(&member.data) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(source) => {
                Err(ShardError::SampleJson { key: self.key.to_string(), offset: member.offset, source })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_checked() {
        for good in ["0", "000000012", "0123-0", "ключ", "a b", &"k".repeat(255)] {
            assert_eq!(SampleKey::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "a.b", "a/b", "/", "a\n", "a\0", &"k".repeat(256)] {
            assert!(matches!(SampleKey::new(bad), Err(ShardError::Key { .. })), "{bad:?}");
            assert!(serde_json::from_value::<SampleKey>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn members_are_found_by_role() {
        let mut sample = Sample::new(SampleKey::new("k").unwrap());
        assert_eq!(sample.image(), None);
        assert_eq!(sample.caption().unwrap(), None);
        assert_eq!(sample.metadata::<serde_json::Value>().unwrap(), None);
        sample.push(".PNG", vec![1]);
        sample.push("jpg", vec![2]);
        sample.push("txt", b"caption".to_vec());
        sample.push("json", b"{\"uid\":7}".to_vec());
        assert_eq!(sample.member("png").unwrap().data, [1]);
        assert_eq!(sample.image().unwrap().extension, "jpg");
        assert_eq!(sample.caption().unwrap(), Some("caption"));
        assert_eq!(sample.metadata::<serde_json::Value>().unwrap().unwrap()["uid"], 7);
    }

    #[test]
    fn bad_members_are_errors_with_the_key() {
        let mut sample = Sample::new(SampleKey::new("k7").unwrap());
        sample.push("txt", vec![0xff]);
        sample.push("json", b"{".to_vec());
        assert!(sample.caption().unwrap_err().to_string().contains("k7"));
        assert!(sample.metadata::<serde_json::Value>().unwrap_err().to_string().contains("k7"));
    }
}
