//! The table `[mlm-filter]`.

use crate::{Metric, PromptStyle};
use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Tokens that hold 100, digit by digit.
const DEFAULT_MAX_NEW_TOKENS: usize = 3;
/// Tokens the reference takes, which makes 10 of 100. Source: `mlm_filter_scoring_single_image_v2.py`.
pub(crate) const PARITY_MAX_NEW_TOKENS: usize = 2;
/// Samples the reference puts into a batch, unless told otherwise. Source: as above, `--batch-size`.
const DEFAULT_PARITY_BATCH_SIZE: usize = 8;

/// Whether the reference's scoring script is followed in what it gets wrong, too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// 100 is 100, a score does not depend on its batch mates, and a caption that is too long has none.
    #[default]
    Corrected,
    /// Scores as the reference's: two new tokens; prompts of a batch padded on the left by tokens that are attended to;
    /// captions as they are; prompts cut at 2040 ids.
    Parity,
}

/// How an image becomes the square that the vision tower reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageShape {
    /// The whole image is squeezed into the square, as the reference's script does it.
    #[default]
    Squash,
    /// Grey is put above and below or left and right of it, as in the training of the released model.
    Pad,
}

/// What to score and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlmFilterConfig {
    /// Directory of shards.
    pub shards: PathBuf,
    /// Checkpoint directory of the MLM-Filter.
    pub model: PathBuf,
    /// Folder of the vision tower, where `model` names one whose shape is not known here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision_tower: Option<PathBuf>,
    /// Folder of the language model, whose `tokenizer.json` is taken where `model` has none; its weights are not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_model: Option<PathBuf>,
    /// Wording of the questions; must be what the model was trained on.
    pub prompt: PromptStyle,
    /// Questions to ask about every sample.
    pub metrics: Vec<Metric>,
    /// Right, or as the reference.
    #[serde(default)]
    pub mode: Mode,
    /// What becomes of images that are not square.
    #[serde(default)]
    pub image: ImageShape,
    /// Tokens of an answer: 3 where nothing is said, and 2 in parity, where it cannot be anything else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    /// Samples whose prompts are padded to one length: 8 where nothing is said. Only in parity, where it changes scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_size: Option<usize>,
    /// Whether the mean of the score under the model's own distribution is written, too.
    #[serde(default)]
    pub expected: bool,
}

impl MlmFilterConfig {
    pub(crate) fn max_new_tokens(&self) -> usize {
        match self.mode {
            Mode::Corrected => self.max_new_tokens.unwrap_or(DEFAULT_MAX_NEW_TOKENS),
            Mode::Parity => PARITY_MAX_NEW_TOKENS,
        }
    }

    pub(crate) fn batch_size(&self) -> usize {
        self.batch_size.unwrap_or(DEFAULT_PARITY_BATCH_SIZE)
    }
}

impl StageConfig for MlmFilterConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.metrics.is_empty() {
            return Err(ConfigError::new("metrics", "must name at least one metric"));
        }
        if let Some(twice) =
            (1..self.metrics.len()).find(|&at| self.metrics[..at].contains(&self.metrics[at]))
        {
            return Err(ConfigError::new(
                "metrics",
                format!("`{}` is there twice", self.metrics[twice].name()),
            ));
        }
        match (self.mode, self.max_new_tokens) {
            (_, Some(0)) => Err(ConfigError::new("max_new_tokens", "must be at least 1, got 0")),
            (Mode::Parity, Some(tokens)) if tokens != PARITY_MAX_NEW_TOKENS => {
                let message = format!("is {PARITY_MAX_NEW_TOKENS} in parity, got {tokens}; leave it out");
                Err(ConfigError::new("max_new_tokens", message))
            }
            _ => Ok(()),
        }?;
        match (self.mode, self.batch_size) {
            (_, Some(0)) => Err(ConfigError::new("batch_size", "must be at least 1, got 0")),
            (Mode::Corrected, Some(_)) => {
                let message = "is for `mode = \"parity\"`: otherwise no score depends on it";
                Err(ConfigError::new("batch_size", message))
            }
            _ => Ok(()),
        }?;
        match (self.mode, self.image) {
            (Mode::Parity, ImageShape::Pad) => {
                Err(ConfigError::new("image", "is `squash` in parity: the reference's script does not pad"))
            }
            _ => Ok(()),
        }
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let companions = [&self.vision_tower, &self.language_model].into_iter().flatten();
        [&self.shards, &self.model].into_iter().chain(companions).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_stage::{ConfigFile, Stage as _};

    fn read(keys: &str) -> Result<MlmFilterConfig, String> {
        let known = "shards = \"s\"\nmodel = \"m\"\nprompt = \"reference\"";
        let file = ConfigFile::parse(&format!("[mlm-filter]\n{known}\n{keys}"));
        let config = file.and_then(|file| file.stage::<MlmFilterConfig>(crate::MlmFilter::NAME));
        let checked = config.and_then(|config| config.validate().map(|()| config));
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_right_and_parity_is_the_references() {
        let metrics = "metrics = [\"semantic_understanding\"]";
        let config = read(metrics).unwrap();
        assert_eq!(
            (config.mode, config.image, config.expected),
            (Mode::Corrected, ImageShape::Squash, false)
        );
        assert_eq!(config.max_new_tokens(), 3);
        let parity = read(&format!("{metrics}\nmode = \"parity\"")).unwrap();
        assert_eq!((parity.max_new_tokens(), parity.batch_size()), (2, 8));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (keys, expected) in [
            ("metrics = []", "metrics: must name"),
            ("metrics = [\"image_text_matching\", \"image_text_matching\"]", "is there twice"),
            ("metrics = [\"image_text_matching\"]\nmax_new_tokens = 0", "max_new_tokens: must be at least 1"),
            (
                "metrics = [\"image_text_matching\"]\nmode = \"parity\"\nmax_new_tokens = 3",
                "is 2 in parity, got 3",
            ),
            ("metrics = [\"image_text_matching\"]\nbatch_size = 4", "batch_size: is for"),
            ("metrics = [\"image_text_matching\"]\nmode = \"parity\"\nbatch_size = 0", "batch_size: must be"),
            ("metrics = [\"image_text_matching\"]\nmode = \"parity\"\nimage = \"pad\"", "image: is `squash`"),
        ] {
            let error = read(keys).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
