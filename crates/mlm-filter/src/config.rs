//! The table `[mlm-filter]`.

use crate::{Metric, PromptStyle};
use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to score and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlmFilterConfig {
    /// Directory of shards.
    pub shards: PathBuf,
    /// Checkpoint directory of the MLM-Filter.
    pub model: PathBuf,
    /// Wording of the questions; must be what the model was trained on.
    pub prompt: PromptStyle,
    /// Questions to ask about every sample.
    pub metrics: Vec<Metric>,
    /// Tokens of an answer. The reference takes 2, which turns a score of 100 into 10; 3 digits are 3 tokens.
    pub max_new_tokens: usize,
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
        if self.max_new_tokens == 0 {
            return Err(ConfigError::new("max_new_tokens", "must be at least 1, got 0"));
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.shards.clone(), self.model.clone()]
    }
}
