//! The values of keys that offer a choice.

use crate::reject::Reject;
use md5::{Digest as _, Md5};
use serde::de::{Error, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Sha256, Sha512};
use std::fmt;

/// Format of a URL list; with `.gz` or `.zst` appended to the file name, any but parquet may be
/// compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// One URL per line, no captions.
    Txt,
    /// Comma-separated, with a header line.
    Csv,
    /// Tab-separated, with a header line, quoted as CSV is.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// One JSON list of objects.
    Json,
    /// Parquet.
    Parquet,
}

impl InputFormat {
    /// Whether it is a table of cells without types.
    pub(crate) fn is_delimited(self) -> bool {
        matches!(self, Self::Csv | Self::Tsv)
    }

    /// The name in the config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Parquet => "parquet",
        }
    }
}

/// How an image is brought to `image_size`; names and meaning of img2dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Not at all.
    No,
    /// Longer side to `image_size`, then white borders to a square.
    Border,
    /// Shorter side to `image_size`.
    KeepRatio,
    /// Longer side to `image_size`.
    KeepRatioLargest,
    /// Shorter side to `image_size`, then the middle square.
    CenterCrop,
}

/// Format of the stored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodeFormat {
    /// JPEG.
    Jpg,
    /// PNG.
    Png,
    /// WebP, lossy or lossless.
    Webp,
}

impl EncodeFormat {
    /// Extension of the tar member.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }
}

/// What becomes of shards that are there already; names of img2dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IncrementalMode {
    /// Finished shards of this list stay; the others are made.
    Incremental,
    /// All go; the list is fetched from its beginning.
    Overwrite,
    /// All stay; a list that was not fetched here before gets the shard numbers after theirs.
    Extend,
}

/// Which rows of finished shards are fetched again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, false, or a list of reasons such as [\"timeout\"]")]
pub enum RetryFailed {
    /// None; or those whose reason may have passed.
    Switch(bool),
    /// Those with one of these reasons.
    Reasons(Vec<String>),
}

impl RetryFailed {
    /// Whether any row is fetched again.
    pub(crate) fn is_on(&self) -> bool {
        match self {
            Self::Switch(is_on) => *is_on,
            Self::Reasons(reasons) => !reasons.is_empty(),
        }
    }

    /// Whether rows that were rejected for `reason` are.
    pub(crate) fn includes(&self, reason: &str) -> bool {
        match self {
            Self::Switch(is_on) => *is_on && Reject::from_reason(reason).is_some_and(Reject::may_pass_later),
            Self::Reasons(reasons) => reasons.iter().any(|chosen| chosen == reason),
        }
    }
}

/// Digest of the downloaded bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ComputeHash {
    /// None is computed.
    None,
    /// MD5: for lists that come with such digests only.
    Md5,
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

/// The value of `verify_hash`: a column and a kind.
pub(super) fn column_and_hash<'de, D: Deserializer<'de>>(
    value: D,
) -> Result<Option<(String, ComputeHash)>, D::Error> {
    struct Pair;

    impl<'de> Visitor<'de> for Pair {
        type Value = Option<(String, ComputeHash)>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of a column and a kind of digest such as [\"digest\", \"sha256\"]")
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut pair: A) -> Result<Self::Value, A::Error> {
            let column = pair.next_element()?.ok_or_else(|| A::Error::invalid_length(0, &self))?;
            let kind = pair.next_element()?.ok_or_else(|| A::Error::invalid_length(1, &self))?;
            let mut num_values = 2;
            while pair.next_element::<IgnoredAny>()?.is_some() {
                num_values += 1;
            }
            match num_values {
                2 => Ok(Some((column, kind))),
                _ => Err(A::Error::invalid_length(num_values, &self)),
            }
        }
    }

    value.deserialize_any(Pair)
}

impl ComputeHash {
    /// The name in the config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The field of the samples' metadata and of the parquet, if there is one.
    pub(crate) fn column(self) -> Option<&'static str> {
        (self != Self::None).then(|| self.name())
    }

    /// The digest of `bytes` in lower-case hexadecimal.
    pub(crate) fn digest(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::None => None,
            Self::Md5 => Some(hexadecimal(&Md5::digest(bytes))),
            Self::Sha256 => Some(hexadecimal(&Sha256::digest(bytes))),
            Self::Sha512 => Some(hexadecimal(&Sha512::digest(bytes))),
        }
    }
}

fn hexadecimal(digest: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(2 * digest.len());
    for byte in digest {
        write!(text, "{byte:02x}").expect("writing to a string cannot fail");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_the_known_ones() {
        // RFC 1321, FIPS 180-2.
        for (kind, expected) in [
            (ComputeHash::None, None),
            (ComputeHash::Md5, Some("900150983cd24fb0d6963f7d28e17f72")),
            (ComputeHash::Sha256, Some("ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")),
            (
                ComputeHash::Sha512,
                Some(
                    "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
                     2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
                ),
            ),
        ] {
            assert_eq!(kind.digest(b"abc").as_deref(), expected);
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.name());
        }
    }
}
