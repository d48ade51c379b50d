//! Packs: several documents concatenated into one training sequence.

use serde::{Deserialize, Serialize};

/// Where the bytes of one image lie: a member of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageRef {
    /// File name of the tar, relative to [`PackInfo::images_dir`].
    pub shard: String,
    /// Key of the sample in that shard.
    pub key: String,
    /// First byte of the encoded image in the tar.
    pub offset: u64,
    /// Bytes of encoded image.
    pub num_bytes: u64,
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
        }
    }

    /// A pack of `num_images` one-image documents with distinct values everywhere.
    pub(crate) fn pack(num_images: usize) -> Pack {
        let image = |index: usize| ImageRef {
            shard: format!("{:08}.tar", index / 2),
            key: format!("{index:032x}-0"),
            offset: u64::MAX - index as u64,
            num_bytes: index as u64,
        };
        Pack {
            input_ids: (0..2 * num_images as i64).map(|id| if id % 2 == 0 { -200 } else { id }).collect(),
            lengths: (0..num_images as u32).collect(),
            keys: (0..num_images).map(|index| format!("{index:09}")).collect(),
            images: (0..num_images).map(image).collect(),
        }
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
