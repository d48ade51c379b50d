//! Packs: several documents concatenated into one training sequence.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::{Deserialize, Serialize};

/// Where the bytes of one image lie: a member of a shard, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// The tar, or another file that holds images, relative to [`PackInfo::images_dir`].
    pub shard: String,
    /// Key of the sample in that shard.
    pub key: String,
    /// First byte of the encoded image in the file.
    pub offset: u64,
    /// Bytes of encoded image, as they lie in the file.
    pub num_bytes: u64,
    /// How the image's own bytes come out of these.
    #[serde(default, skip_serializing_if = "ImageEncoding::is_raw")]
    pub encoding: ImageEncoding,
}

/// How the bytes of an image file are written where they lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageEncoding {
    /// As they are: a tar stores its members verbatim.
    #[default]
    Raw,
    /// Base64 inside a JSON string, quotes not included: the images of interleaved documents and of the reference's
    /// packed JSON.
    JsonBase64,
}

impl ImageEncoding {
    /// The name in files.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::JsonBase64 => "json-base64",
        }
    }

    /// The encoding called `name` in files.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Raw, Self::JsonBase64].into_iter().find(|encoding| encoding.as_str() == name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
    fn is_raw(&self) -> bool {
        *self == Self::Raw
    }

    /// The image's own bytes. Of base64, what is not in its alphabet is passed over, as Python's `b64decode` does;
    /// `None` if the rest is no base64.
    #[must_use]
    pub fn decode(self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        match self {
            Self::Raw => Some(bytes),
            Self::JsonBase64 => LENIENT.decode(base64_digits(&bytes)).ok(),
        }
    }
}

/// Standard alphabet; the padding may be missing.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The base64 digits of a JSON string up to its padding. Of its escapes only `\/` stands for a digit.
fn base64_digits(string: &[u8]) -> Cow<'_, [u8]> {
    let is_digit = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/';
    let plain = string.iter().rposition(|&byte| byte != b'=').map_or(0, |last| last + 1);
    if string[..plain].iter().all(|&byte| is_digit(byte)) {
        return Cow::Borrowed(&string[..plain]);
    }
    let mut digits = Vec::with_capacity(plain);
    let mut bytes = string.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b'=' => break,
            b'\\' => digits.extend(bytes.next().filter(|&escaped| escaped == b'/')),
            _ if is_digit(byte) => digits.push(byte),
            _ => {}
        }
    }
    Cow::Owned(digits)
}

/// One packed sequence: the documents of a bin, in bin order.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Token ids of all documents, concatenated; one placeholder id where an image goes. Not padded.
    pub input_ids: Vec<i64>,
    /// Length of each document in tokens once its images are expanded.
    pub lengths: Vec<u32>,
    /// Sample key of each document; as many as `lengths`.
    pub keys: Vec<String>,
    /// The images, in the order of their placeholders.
    pub images: Vec<ImageRef>,
}

/// What all packs of a file have in common.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackInfo {
    /// Longest sequence in tokens, images expanded.
    pub seq_len: u32,
    /// Tokens one image placeholder expands to.
    pub num_image_tokens: u32,
    /// Digest of the tokenizer the ids come from.
    pub tokenizer_digest: String,
    /// Directory of the shards the images lie in, relative to the work directory, e.g. `mixer`.
    pub images_dir: String,
    /// What is to be done to an image's pixels before training prepares them.
    #[serde(default, skip_serializing_if = "ImageShrink::is_none")]
    pub image_shrink: ImageShrink,
}

/// What becomes of an image's pixels between its file and the preparation that every image gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageShrink {
    /// Nothing.
    #[default]
    None,
    /// What the reference's packer does: images whose shorter edge is over 384 pixels are squashed to 384 by 384 (or
    /// 383, by rounding) with a Lanczos filter.
    Reference,
}

impl ImageShrink {
    /// The name in files.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Reference => "reference",
        }
    }

    /// The rule called `name` in files.
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::Reference].into_iter().find(|shrink| shrink.as_str() == name)
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
    fn is_none(&self) -> bool {
        *self == Self::None
    }
}

impl Pack {
    /// What makes the pack unusable whatever its tokens mean, if anything.
    pub(crate) fn problem(&self) -> Option<String> {
        if self.keys.len() != self.lengths.len() {
            return Some(format!("{} keys for {} lengths", self.keys.len(), self.lengths.len()));
        }
        if self.images.len() > self.input_ids.len() {
            return Some(format!("{} images for {} ids", self.images.len(), self.input_ids.len()));
        }
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn info() -> PackInfo {
        PackInfo {
            seq_len: 4096,
            num_image_tokens: 144,
            tokenizer_digest: "t".into(),
            images_dir: "mixer".into(),
            image_shrink: ImageShrink::None,
        }
    }

    /// A pack of `num_images` one-image documents with distinct values everywhere.
    pub(crate) fn pack(num_images: usize) -> Pack {
        let image = |index: usize| ImageRef {
            shard: format!("{:08}.tar", index / 2),
            key: format!("{index:032x}-0"),
            offset: u64::MAX - index as u64,
            num_bytes: index as u64,
            encoding: [ImageEncoding::Raw, ImageEncoding::JsonBase64][index % 2],
        };
        Pack {
            input_ids: (0..2 * num_images as i64).map(|id| if id % 2 == 0 { -200 } else { id }).collect(),
            lengths: (0..num_images as u32).collect(),
            keys: (0..num_images).map(|index| format!("{index:09}")).collect(),
            images: (0..num_images).map(image).collect(),
        }
    }

    #[test]
    fn base64_is_read_as_python_reads_it() {
        let check = |text: &str, expected: Option<&[u8]>| {
            let decoded = ImageEncoding::JsonBase64.decode(text.as_bytes().to_vec());
            assert_eq!(decoded.as_deref(), expected, "{text:?}");
        };
        check("", Some(b""));
        check("/9j/", Some(b"\xff\xd8\xff"));
        check(r"\/9j\/", Some(b"\xff\xd8\xff"));
        check("YQ==", Some(b"a"));
        check("YQ", Some(b"a"));
        check("Y Q=\n=", Some(b"a"));
        check(r"YW\nJj", Some(b"abc"));
        check("YWJjZ", None); // five digits are no bytes
        assert_eq!(ImageEncoding::Raw.decode(b"YQ==".to_vec()).unwrap(), b"YQ==");
        for encoding in [ImageEncoding::Raw, ImageEncoding::JsonBase64] {
            assert_eq!(ImageEncoding::from_name(encoding.as_str()), Some(encoding));
            assert_eq!(serde_json::to_value(encoding).unwrap(), encoding.as_str());
        }
        for shrink in [ImageShrink::None, ImageShrink::Reference] {
            assert_eq!(ImageShrink::from_name(shrink.as_str()), Some(shrink));
            assert_eq!(serde_json::to_value(shrink).unwrap(), shrink.as_str());
        }
    }

    #[test]
    fn records_of_older_packs_are_read() {
        let image = r#"{"shard":"0.tar","key":"k","offset":1,"num_bytes":2}"#;
        let image: ImageRef = serde_json::from_str(image).unwrap();
        assert_eq!(image.encoding, ImageEncoding::Raw);
        assert!(!serde_json::to_string(&image).unwrap().contains("encoding"));
    }

    #[test]
    fn problems_are_found() {
        assert_eq!(pack(3).problem(), None);
        assert_eq!(Pack::default().problem(), None);
        let keyless = Pack { keys: vec![], ..pack(2) };
        assert_eq!(keyless.problem().unwrap(), "0 keys for 2 lengths");
        let idless = Pack { input_ids: vec![1], ..pack(2) };
        assert_eq!(idless.problem().unwrap(), "2 images for 1 ids");
    }
}
