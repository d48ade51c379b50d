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
    /// Directory of the input shards (`*.tar`, in name order) or of packed JSON, relative to the work directory.
    pub shards: PathBuf,
    /// What the input holds; captions if not given.
    #[serde(default)]
    pub input: PackInput,
    /// The `tokenizer.json` to make ids with, relative to the work directory.
    pub tokenizer: PathBuf,
    /// Most tokens of a pack, images expanded; [`DEFAULT_SEQ_LEN`] if not given.
    #[serde(default = "default_seq_len")]
    pub seq_len: u32,
    /// Side of the grid an image is pooled to before the language model: it takes `pooled_grid` squared tokens.
    pub pooled_grid: u32,
    /// Which packer of the reference to equal, if any; none if not given.
    #[serde(default)]
    pub parity: Parity,
    /// How documents are put into packs.
    pub algorithm: PackAlgorithm,
    /// How many neighbouring input shards are packed together; 1 if not given.
    #[serde(default)]
    pub pack_across_shards: AcrossShards,
    /// What becomes of a document longer than `seq_len`.
    pub overlong: Overlong,
    /// What packs are written as.
    pub output: PackOutput,
}

fn default_seq_len() -> u32 {
    DEFAULT_SEQ_LEN
}

/// What the input holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackInput {
    /// Tars of captioned images: an image and a `txt` member per sample.
    #[default]
    Captions,
    /// Tars of texts and images in turn: a `json` member per sample, laid out as OBELICS or MMC4 documents.
    Interleaved,
    /// The reference's packed JSON: `*packed.json` files in a directory per tar.
    PackedJson,
}

/// Which of the reference's two packers the result equals: the same bins, ids and lengths, oddities included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Parity {
    /// None: the documents and bins of the paper, without the oddities.
    #[default]
    Off,
    /// `sequence_packing_image_to_pil.py`, which the released models were trained on.
    Pil,
    /// `sequence_packing_image_to_json.py`.
    Json,
}

/// How many neighbouring input shards are packed together, as one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "AcrossShardsText", into = "AcrossShardsText")]
pub enum AcrossShards {
    /// This many; the last unit of a run may have fewer. One is the reference's way.
    Count(usize),
    /// All: one unit.
    All,
}

/// How [`AcrossShards`] is spelled: a number or `"all"`.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum AcrossShardsText {
    Count(usize),
    Word(String),
}

impl TryFrom<AcrossShardsText> for AcrossShards {
    type Error = String;

    fn try_from(text: AcrossShardsText) -> Result<Self, String> {
        match text {
            AcrossShardsText::Count(count) if count > 0 => Ok(Self::Count(count)),
            AcrossShardsText::Word(word) if word == "all" => Ok(Self::All),
            AcrossShardsText::Count(count) => Err(format!("expected at least 1 or \"all\", got {count}")),
            AcrossShardsText::Word(word) => Err(format!("expected a number or \"all\", got `{word}`")),
        }
    }
}

impl From<AcrossShards> for AcrossShardsText {
    fn from(across: AcrossShards) -> Self {
        match across {
            AcrossShards::Count(count) => Self::Count(count),
            AcrossShards::All => Self::Word("all".to_owned()),
        }
    }
}

impl Default for AcrossShards {
    fn default() -> Self {
        Self::Count(1)
    }
}

impl AcrossShards {
    /// The number of shards of a unit, at least one.
    pub(crate) fn shards_per_unit(self) -> usize {
        match self {
            Self::Count(count) => count,
            Self::All => usize::MAX,
        }
    }
}

/// How documents are put into packs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PackAlgorithm {
    /// The longest document first, each into the first pack with room for it (the paper).
    FirstFitDecreasing,
    /// A pack for each document: what training without packing would see. The baseline of the packing ablation.
    OnePerSequence,
    /// The packs that a packed JSON input already has.
    AsGiven,
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
    /// The reference's packed JSON: texts and base64 images, tokenized again by its training.
    Json,
}

impl PackerConfig {
    /// Tokens an image takes in a sequence.
    pub fn num_image_tokens(&self) -> usize {
        // Only the pooled grid matters for the count; the packer never sees a patch.
        ImageGeometry { pooled_grid: self.pooled_grid, ..ImageGeometry::pretrain() }.num_image_tokens()
    }
}

impl PackerConfig {
    /// Refuses choices that contradict each other.
    fn check_choices(&self) -> Result<(), ConfigError> {
        let wrong = |key: &str, message: &str| Err(ConfigError::new(key, message));
        if self.input == PackInput::PackedJson && self.output == PackOutput::Json {
            return wrong("output", "packed JSON in and out would change nothing: choose plan or tar");
        }
        if self.algorithm == PackAlgorithm::AsGiven && self.input != PackInput::PackedJson {
            return wrong("algorithm", "as-given needs input = \"packed-json\": other inputs have no packs");
        }
        if self.parity == Parity::Off {
            return Ok(());
        }
        if self.input == PackInput::PackedJson {
            return wrong(
                "parity",
                "packed JSON is read by the rules of the reference's training as it is: choose off",
            );
        }
        if self.parity == Parity::Pil && self.output == PackOutput::Json {
            return wrong(
                "output",
                "the packer that parity = \"pil\" equals writes no JSON: choose plan or tar",
            );
        }
        if self.algorithm != PackAlgorithm::FirstFitDecreasing {
            return wrong("algorithm", "parity needs first-fit-decreasing");
        }
        if self.overlong != Overlong::Keep {
            return wrong("overlong", "parity needs keep");
        }
        if self.pack_across_shards != AcrossShards::Count(1) {
            return wrong("pack_across_shards", "parity needs 1: a tar is the reference's packing unit");
        }
        Ok(())
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
        self.check_choices()
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
            input: PackInput::Captions,
            tokenizer: "tokenizer.json".into(),
            seq_len,
            pooled_grid,
            parity: Parity::Off,
            pack_across_shards: AcrossShards::Count(1),
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
    fn contradictions_are_named() {
        let check = |change: &dyn Fn(&mut PackerConfig), key: &str| {
            let mut config = config(100, 3);
            change(&mut config);
            assert_eq!(config.validate().unwrap_err().key(), key);
        };
        check(&|c| c.algorithm = PackAlgorithm::AsGiven, "algorithm");
        check(&|c| (c.input, c.output) = (PackInput::PackedJson, PackOutput::Json), "output");
        check(&|c| (c.input, c.parity) = (PackInput::PackedJson, Parity::Json), "parity");
        check(&|c| (c.parity, c.output) = (Parity::Pil, PackOutput::Json), "output");
        check(&|c| (c.parity, c.algorithm) = (Parity::Pil, PackAlgorithm::OnePerSequence), "algorithm");
        check(&|c| (c.parity, c.overlong) = (Parity::Json, Overlong::Reject), "overlong");
        check(
            &|c| (c.parity, c.pack_across_shards) = (Parity::Json, AcrossShards::All),
            "pack_across_shards",
        );
        let mut good = config(100, 3);
        (good.parity, good.output) = (Parity::Json, PackOutput::Json);
        good.validate().unwrap();
        (good.parity, good.output, good.algorithm) = (Parity::Off, PackOutput::Tar, PackAlgorithm::AsGiven);
        good.input = PackInput::PackedJson;
        good.validate().unwrap();
    }

    #[test]
    fn shards_are_counted_or_all() {
        let read = |value: serde_json::Value| serde_json::from_value::<AcrossShards>(value);
        assert_eq!(read(3.into()).unwrap(), AcrossShards::Count(3));
        assert_eq!(read("all".into()).unwrap(), AcrossShards::All);
        assert_eq!(serde_json::to_value(AcrossShards::All).unwrap(), "all");
        assert_eq!(serde_json::to_value(AcrossShards::Count(2)).unwrap(), 2);
        assert_eq!(read(0.into()).unwrap_err().to_string(), "expected at least 1 or \"all\", got 0");
        assert!(read("some".into()).is_err());
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
        assert_eq!((read.input, read.parity), (PackInput::Captions, Parity::Off));
        assert_eq!(read.pack_across_shards, AcrossShards::Count(1));
        assert_eq!(serde_json::to_value(PackInput::PackedJson).unwrap(), "packed-json");
        let unknown = serde_json::json!({"shards": "mixer", "max_len": 3});
        assert!(serde_json::from_value::<PackerConfig>(unknown).is_err());
    }
}
