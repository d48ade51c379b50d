//! Settings of training: the optimizer, the loop, and the pre-training stage.

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// AdamW and its limits. Defaults are the reference's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OptimizerConfig {
    /// Decay of matrices; biases and vectors have none. 0.01 in pre-training, 0.1 in fine-tuning (paper, Table 7).
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Global L2 norm gradients are clipped to.
    pub max_grad_norm: f64,
}

impl Default for OptimizerConfig {
    /// PyTorch's AdamW with the reference's clipping.
    fn default() -> Self {
        Self { weight_decay: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, max_grad_norm: 1.0 }
    }
}

/// One run of the training loop.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingConfig {
    /// Optimizer steps; the data is repeated, in a new order each epoch, until they are done.
    pub num_steps: u64,
    /// Examples per optimizer step.
    pub global_batch_size: usize,
    /// Examples that go through the network together; divides `global_batch_size`. The step's micro-batches run in
    /// parallel, their gradients are added in order.
    pub per_device_batch_size: usize,
    /// Peak learning rate. 5e-5 in pre-training, 2e-5 in fine-tuning (paper, Table 7).
    pub learning_rate: f64,
    /// Share of the steps with a rising learning rate; 0.03 in the paper.
    pub warmup_ratio: f64,
    /// Steps between two states to resume from.
    pub save_every_steps: u64,
    /// Optimizer.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
}

impl TrainingConfig {
    /// # Errors
    /// The first key that cannot be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let at_least_one = [
            ("num_steps", self.num_steps),
            ("global_batch_size", self.global_batch_size as u64),
            ("per_device_batch_size", self.per_device_batch_size as u64),
            ("save_every_steps", self.save_every_steps),
        ];
        if let Some((key, _)) = at_least_one.iter().find(|(_, value)| *value == 0) {
            return Err(ConfigError::new(*key, "must be at least 1, got 0"));
        }
        if !self.global_batch_size.is_multiple_of(self.per_device_batch_size) {
            let (global, device) = (self.global_batch_size, self.per_device_batch_size);
            let message = format!("must be a multiple of per_device_batch_size {device}, got {global}");
            return Err(ConfigError::new("global_batch_size", message));
        }
        let positive = [
            ("learning_rate", self.learning_rate),
            ("optimizer.max_grad_norm", self.optimizer.max_grad_norm),
            ("optimizer.eps", self.optimizer.eps),
        ];
        for (key, value) in positive {
            if !(value.is_finite() && value > 0.0) {
                return Err(ConfigError::new(key, format!("must be a positive number, got {value}")));
            }
        }
        let decay = self.optimizer.weight_decay;
        if !(decay.is_finite() && decay >= 0.0) {
            return Err(ConfigError::new(
                "optimizer.weight_decay",
                format!("must be a number of at least 0, got {decay}"),
            ));
        }
        let shares = [
            ("warmup_ratio", self.warmup_ratio),
            ("optimizer.beta1", self.optimizer.beta1),
            ("optimizer.beta2", self.optimizer.beta2),
        ];
        for (key, value) in shares {
            if !(0.0..1.0).contains(&value) {
                return Err(ConfigError::new(key, format!("must be at least 0 and below 1, got {value}")));
            }
        }
        Ok(())
    }
}

/// The table `[trainer]`: pre-training of projector and language model, vision tower frozen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainerConfig {
    /// Directory of packs (`*.plan.parquet`).
    pub packs: PathBuf,
    /// Folder of a SigLIP tower, or of a pair whose vision half becomes the tower: ours, transformers', timm's or
    /// open_clip's.
    pub vision_tower: PathBuf,
    /// Folder of a Qwen2, ours or transformers'; its tokenizer becomes the model's.
    pub language_model: PathBuf,
    /// Edge of the pooled grid; must be what the packs were made for.
    pub pooled_grid: usize,
    /// The loop.
    pub training: TrainingConfig,
}

impl StageConfig for TrainerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.pooled_grid == 0 {
            return Err(ConfigError::new("pooled_grid", "must be at least 1, got 0"));
        }
        self.training.validate().map_err(|error| error.inside("training"))
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.packs.clone(), self.vision_tower.clone(), self.language_model.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn training() -> TrainingConfig {
        TrainingConfig {
            num_steps: 10,
            global_batch_size: 8,
            per_device_batch_size: 4,
            learning_rate: 1e-3,
            warmup_ratio: 0.03,
            save_every_steps: 5,
            optimizer: OptimizerConfig::default(),
        }
    }

    #[test]
    fn wrong_settings_are_named() {
        assert!(training().validate().is_ok());
        let check = |config: TrainingConfig, key: &str| assert_eq!(config.validate().unwrap_err().key(), key);
        check(TrainingConfig { num_steps: 0, ..training() }, "num_steps");
        check(TrainingConfig { per_device_batch_size: 3, ..training() }, "global_batch_size");
        check(TrainingConfig { learning_rate: f64::NAN, ..training() }, "learning_rate");
        check(TrainingConfig { warmup_ratio: 1.0, ..training() }, "warmup_ratio");
    }
}
