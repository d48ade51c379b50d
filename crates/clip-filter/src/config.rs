//! The table `[clip-filter]`.

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to score and with what.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipFilterConfig {
    /// Directory of shards.
    pub shards: PathBuf,
    /// Checkpoint directory of the SigLIP pair.
    pub model: PathBuf,
}

impl StageConfig for ClipFilterConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.shards.clone(), self.model.clone()]
    }
}
