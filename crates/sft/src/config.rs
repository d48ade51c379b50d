//! The table `[sft]`.

use oqvl_stage::{ConfigError, StageConfig};
use oqvl_trainer::TrainingConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Fine-tuning of projector and language model on conversations; the vision tower is frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {
    /// Checkpoint directory to start from.
    pub model: PathBuf,
    /// Conversations: a JSON list in the layout of `llava_v1_5_mix665k.json`.
    pub data: PathBuf,
    /// Directory the `image` paths of the data start in.
    pub images: PathBuf,
    /// Edge of the pooled grid; the full patch grid in the paper (27 x 27 = 729 tokens).
    pub pooled_grid: usize,
    /// Longest sequence, image tokens included; longer ones are cut on the right.
    pub max_tokens: usize,
    /// The loop.
    pub training: TrainingConfig,
}

impl StageConfig for SftConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("pooled_grid", self.pooled_grid), ("max_tokens", self.max_tokens)] {
            if value == 0 {
                return Err(ConfigError::new(key, "must be at least 1, got 0"));
            }
        }
        self.training.validate().map_err(|error| error.inside("training"))
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.model.clone(), self.data.clone(), self.images.clone()]
    }
}
