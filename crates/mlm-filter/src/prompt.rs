//! The questions put to the model.

use oqvl_text_prep::{ESCAPED_PLACEHOLDER, IMAGE_PLACEHOLDER, TextError, Tokenizer, tokenize_with_images};
use serde::{Deserialize, Serialize};

/// What is scored. The names are those of the reference's parquet columns, without `_score`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// Does the caption tell the main features of the image?
    ImageTextMatching,
    /// Does it describe the objects in detail?
    ObjectDetailFulfillment,
    /// Is it well written?
    CaptionTextQuality,
    /// Does it add meaning that the image alone does not show? The one the paper selects by.
    SemanticUnderstanding,
}

impl Metric {
    /// All metrics.
    pub const ALL: [Self; 4] = [
        Self::ImageTextMatching,
        Self::ObjectDetailFulfillment,
        Self::CaptionTextQuality,
        Self::SemanticUnderstanding,
    ];

    /// The name in files: `image_text_matching`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ImageTextMatching => "image_text_matching",
            Self::ObjectDetailFulfillment => "object_detail_fulfillment",
            Self::CaptionTextQuality => "caption_text_quality",
            Self::SemanticUnderstanding => "semantic_understanding",
        }
    }

    /// The name in sentences: `image text matching`.
    fn aspect(self) -> String {
        self.name().replace('_', " ")
    }

    /// The criteria, literally as the model was trained on them.
    ///
    /// Source: MLM-Filter, v2 script.
    fn criteria(self) -> &'static str {
        match self {
            Self::ImageTextMatching => include_str!("prompts/image_text_matching.txt"),
            Self::ObjectDetailFulfillment => include_str!("prompts/object_detail_fulfillment.txt"),
            Self::CaptionTextQuality => include_str!("prompts/caption_text_quality.txt"),
            Self::SemanticUnderstanding => include_str!("prompts/semantic_understanding.txt"),
        }
        .trim_end_matches('\n')
    }
}

/// How the question is worded; must be what the model was trained on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// The released model's: criteria, instructions, and a blank after the assistant header.
    Reference,
    /// Caption and metric name only: what the micro model is trained on, a tenth of the tokens.
    Brief,
}

/// Ids after which the reference cuts a prompt, the blank at its end not counted. What it cuts first is the header of
/// the answer. Source: `--max-len` of the v2 script.
const PARITY_MAX_IDS: usize = 2040;

impl PromptStyle {
    /// The text put to the model, with `<image>` in it.
    #[must_use]
    pub fn text(self, metric: Metric, caption: &str) -> String {
        // A literal placeholder in a caption would ask for an image that is not there.
        self.text_as_is(metric, &caption.replace(IMAGE_PLACEHOLDER, ESCAPED_PLACEHOLDER))
    }

    fn text_as_is(self, metric: Metric, caption: &str) -> String {
        match self {
            Self::Reference => {
                let instructions = include_str!("prompts/instructions.txt").trim_end_matches('\n');
                let instructions = instructions.replace("{aspect}", &metric.aspect());
                let question = format!("Text Caption: {caption}\n\n{} {instructions}", metric.criteria());
                let system = "<|im_start|>system\nYou are a helpful assistant<|im_end|>";
                format!("{system}<|im_start|>user\n<image>\n{question}<|im_end|><|im_start|>assistant\n ")
            }
            Self::Brief => {
                let question = format!("<image>\n{caption}\n{}", metric.aspect());
                format!("<|im_start|>user\n{question}<|im_end|><|im_start|>assistant\n")
            }
        }
    }

    /// The prompt as ids, -200 at the image.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn input_ids(
        self,
        tokenizer: &Tokenizer,
        metric: Metric,
        caption: &str,
    ) -> Result<Vec<i64>, TextError> {
        tokenize_with_images(tokenizer, &self.text(metric, caption))
    }

    /// The prompt as the reference's script has it: the caption as it is, even with a `<image>` in it, and no more than
    /// 2040 ids before the blank that ends it, so that a long caption loses the header of the answer.
    ///
    /// # Errors
    /// If the tokenizer fails.
    ///
    /// Source: `mlm_filter_scoring_single_image_v2.py`, the collator.
    pub fn parity_input_ids(
        self,
        tokenizer: &Tokenizer,
        metric: Metric,
        caption: &str,
    ) -> Result<Vec<i64>, TextError> {
        let text = self.text_as_is(metric, caption);
        let (text, blank) = match text.strip_suffix(' ') {
            // The reference appends the last id of a tokenized blank.
            Some(text) => (text, tokenizer.encode(" ")?.pop()),
            None => (text.as_str(), None),
        };
        let mut ids = tokenize_with_images(tokenizer, text)?;
        ids.truncate(PARITY_MAX_IDS);
        ids.extend(blank);
        Ok(ids)
    }
}
