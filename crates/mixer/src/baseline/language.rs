//! Which language a caption is in, by fastText's identification model.

use std::path::Path;

use fasttext::FastText;
use oqvl_stage::RunContext;

use super::asset::{problem, required};
use crate::MixerError;
use crate::baseline_config::BaselineAssets;

/// The label of English.
const ENGLISH: &str = "__label__en";

/// fastText's token for the end of a line.
const END_OF_LINE: &str = "</s>";

/// A language identification model.
pub(super) struct LanguageModel(FastText);

impl LanguageModel {
    pub(super) fn open(assets: &BaselineAssets, run: &RunContext) -> Result<LanguageModel, MixerError> {
        LanguageModel::read(&required(assets.language_model.as_ref(), run))
    }

    fn read(path: &Path) -> Result<LanguageModel, MixerError> {
        let model = FastText::load_model(path).map_err(|error| problem(path, &error.to_string()))?;
        Ok(LanguageModel(model))
    }

    /// Whether the most likely language is English. Line breaks count as blanks, as in the original.
    pub(super) fn is_english(&self, text: &str) -> bool {
        self.label(text).as_deref() == Some(ENGLISH)
    }

    fn label(&self, text: &str) -> Option<String> {
        let line = text.replace('\n', " ");
        let mut predictions = self.0.predict(&line, 1, 0.0);
        if predictions.is_empty() {
            // A line without words still ends, and the original predicts from that.
            let end = self.0.dict().get_id(END_OF_LINE)?;
            predictions = self.0.predict_on_words(&[end], 1, 0.0);
        }
        predictions.into_iter().next().map(|prediction| prediction.label)
    }
}
