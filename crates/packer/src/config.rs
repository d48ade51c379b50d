//! The `[packer]` table.

use std::path::PathBuf;

use oqvl_image_prep::ImageGeometry;
use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};

/// Tokens of a training sequence in the reference, which has the number hard-coded (its `--max-len` is ignored).
pub const DEFAULT_SEQ_LEN: u32 = 4096;

/// Longest `seq_len` accepted: far above any model's context, far below where sums of lengths could overflow.
const MAX_SEQ_LEN: u32 = 1 << 24;

/// The `[packer]` table of a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PackerConfig {
    /// Directory of the input shards (`*.tar`, in name order), relative to the work directory.
    pub shards: PathBuf,
    /// The `tokenizer.json` to make ids with, relative to the work directory.
    pub tokenizer: PathBuf,
    /// Most tokens of a pack, images expanded; [`DEFAULT_SEQ_LEN`] if not given.
    #[serde(default = "default_seq_len")]
    pub seq_len: u32,
    /// Side of the grid an image is pooled to before the language model: it takes `pooled_grid` squared tokens.
    pub pooled_grid: u32,
    /// How documents are put into packs.
    pub algorithm: PackAlgorithm,
    /// What becomes of a document longer than `seq_len`.
    pub overlong: Overlong,
    /// What packs are written as.
    pub output: PackOutput,
}

fn default_seq_len() -> u32 {
    DEFAULT_SEQ_LEN
}

/// How documents are put into packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackAlgorithm {
    /// The longest document first, each into the first pack with room for it (the paper).
    FirstFitDecreasing,
    /// A pack for each document: what training without packing would see. The baseline of the packing ablation.
    OnePerSequence,
}

/// What becomes of a document longer than `seq_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Overlong {
    /// It gets a pack of its own, which training cuts at `seq_len` (the reference).
    Keep,
    /// It is rejected as `overlong`.
    Reject,
}

/// What packs are written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackOutput {
    /// A table of ids and of places in the input shards; images are not copied.
    Plan,
    /// A tar with the encoded images beside the ids, for stores that only stream.
    Tar,
}

impl PackerConfig {
    /// Tokens an image takes in a sequence.
    pub fn num_image_tokens(&self) -> usize {
        // Only the pooled grid matters for the count; the packer never sees a patch.
        ImageGeometry { pooled_grid: self.pooled_grid, ..ImageGeometry::pretrain() }.num_image_tokens()
    }
}

impl StageConfig for PackerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=MAX_SEQ_LEN).contains(&self.seq_len) {
            let message = format!("must be from 1 to {MAX_SEQ_LEN}, got {}", self.seq_len);
            return Err(ConfigError::new("seq_len", message));
        }
        if self.pooled_grid == 0 {
            return Err(ConfigError::new("pooled_grid", "must be at least 1, got 0"));
        }
        if self.num_image_tokens() > self.seq_len as usize {
            let message = format!(
                "an image takes pooled_grid squared = {} tokens, more than seq_len = {}",
                self.num_image_tokens(),
                self.seq_len
            );
            return Err(ConfigError::new("pooled_grid", message));
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.shards.clone(), self.tokenizer.clone()]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A config over `mixer/` and `tokenizer.json`, in plan output.
    pub(crate) fn config(seq_len: u32, pooled_grid: u32) -> PackerConfig {
        PackerConfig {
            shards: "mixer".into(),
            tokenizer: "tokenizer.json".into(),
            seq_len,
            pooled_grid,
            algorithm: PackAlgorithm::FirstFitDecreasing,
            overlong: Overlong::Keep,
            output: PackOutput::Plan,
        }
    }

    #[test]
    fn the_papers_numbers_validate() {
        let paper = config(DEFAULT_SEQ_LEN, 12);
        paper.validate().unwrap();
        assert_eq!(paper.num_image_tokens(), 144);
    }

    #[test]
    fn impossible_numbers_are_named() {
        let check = |seq_len, pooled_grid, expected: &str| {
            assert_eq!(config(seq_len, pooled_grid).validate().unwrap_err().to_string(), expected);
        };
        check(0, 1, "seq_len: must be from 1 to 16777216, got 0");
        check(100, 0, "pooled_grid: must be at least 1, got 0");
        check(
            143,
            12,
            "pooled_grid: an image takes pooled_grid squared = 144 tokens, more than seq_len = 143",
        );
        assert!(config(u32::MAX, 1).validate().is_err());
        assert!(config(100, u32::MAX).validate().is_err());
    }

    #[test]
    fn choices_are_spelled_as_documented() {
        let table = serde_json::json!({
            "shards": "mixer", "tokenizer": "t.json", "pooled_grid": 3,
            "algorithm": "one-per-sequence", "overlong": "reject", "output": "tar",
        });
        let read: PackerConfig = serde_json::from_value(table).unwrap();
        assert_eq!((read.seq_len, read.algorithm), (DEFAULT_SEQ_LEN, PackAlgorithm::OnePerSequence));
        assert_eq!((read.overlong, read.output), (Overlong::Reject, PackOutput::Tar));
        let unknown = serde_json::json!({"shards": "mixer", "max_len": 3});
        assert!(serde_json::from_value::<PackerConfig>(unknown).is_err());
    }
}
