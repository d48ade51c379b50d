//! The table `[bootstrap]`.

use oqvl_mlm_filter::{Metric, PromptStyle};
use oqvl_model::HiddenAct;
use oqvl_stage::{ConfigError, StageConfig};
use oqvl_trainer::TrainingConfig;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to train the stand-ins on, and how large they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootstrapConfig {
    /// Text-only documents, one `{"text"}` per line: tokenizer and language model.
    pub text: PathBuf,
    /// Directory of shards with matching image-text pairs: the SigLIP pair, and captioning for the MLM-Filter.
    pub pairs: PathBuf,
    /// Directory of shards whose json member holds `scores`: the MLM-Filter.
    pub scored_pairs: PathBuf,
    /// Where the tokenizer comes from.
    pub tokenizer: TokenizerSource,
    /// The SigLIP pair.
    pub siglip: SiglipTable,
    /// The language model.
    pub language_model: LanguageModelTable,
    /// The MLM-Filter.
    pub mlm_filter: MlmFilterTable,
}

/// Where the tokenizer comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenizerSource {
    /// A byte-level BPE learnt from the text documents.
    Train {
        /// Entries, special tokens included.
        vocab_size: usize,
    },
    /// A `tokenizer.json` there is.
    File {
        /// Its path; relative paths start in the current directory.
        path: PathBuf,
    },
}

/// Sizes and training of the SigLIP pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiglipTable {
    /// Edge of the square input, pixels.
    pub image_size: usize,
    /// Edge of a patch, pixels.
    pub patch_size: usize,
    /// Width of both towers.
    pub hidden_size: usize,
    /// Width of the MLPs.
    pub intermediate_size: usize,
    /// Heads of both towers.
    pub num_attention_heads: usize,
    /// Blocks of the vision tower.
    pub num_vision_layers: usize,
    /// Blocks of the text tower.
    pub num_text_layers: usize,
    /// Texts are cut or padded to this many tokens.
    pub max_text_tokens: usize,
    /// Activation.
    pub hidden_act: HiddenAct,
    /// The loop; every micro-batch is a set of negatives of its own.
    pub training: TrainingConfig,
}

/// Sizes and training of the language model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LanguageModelTable {
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Number of positions.
    pub max_position_embeddings: usize,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Tokens per training sequence.
    pub seq_len: usize,
    /// The loop.
    pub training: TrainingConfig,
}

/// Training of the MLM-Filter: the tower and the language model of this bootstrap, fine-tuned to score.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlmFilterTable {
    /// Edge of the pooled grid.
    pub pooled_grid: usize,
    /// Wording of the question.
    pub prompt: PromptStyle,
    /// What it learns to score.
    pub metrics: Vec<Metric>,
    /// Share of the steps, at the start, that only learn to caption; captioning is mixed in half and half afterwards.
    pub captioning_ratio: f64,
    /// The loop.
    pub training: TrainingConfig,
}

impl StageConfig for BootstrapConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let trainings = [
            ("siglip.training", &self.siglip.training),
            ("language_model.training", &self.language_model.training),
            ("mlm_filter.training", &self.mlm_filter.training),
        ];
        for (name, training) in trainings {
            training.validate().map_err(|error| error.inside(name))?;
        }
        if self.language_model.seq_len < 2
            || self.language_model.seq_len > self.language_model.max_position_embeddings
        {
            let (len, max) = (self.language_model.seq_len, self.language_model.max_position_embeddings);
            let message = format!("must be from 2 to max_position_embeddings {max}, got {len}");
            return Err(ConfigError::new("language_model.seq_len", message));
        }
        if self.mlm_filter.metrics.is_empty() {
            return Err(ConfigError::new("mlm_filter.metrics", "must name at least one metric"));
        }
        if !(0.0..=1.0).contains(&self.mlm_filter.captioning_ratio) {
            let message = format!("must be from 0 to 1, got {}", self.mlm_filter.captioning_ratio);
            return Err(ConfigError::new("mlm_filter.captioning_ratio", message));
        }
        if self.siglip.max_text_tokens == 0 {
            return Err(ConfigError::new("siglip.max_text_tokens", "must be at least 1, got 0"));
        }
        if let TokenizerSource::File { path } = &self.tokenizer
            && !path.is_file()
        {
            return Err(ConfigError::new("tokenizer.path", format!("{} is not a file", path.display())));
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let mut inputs = vec![self.text.clone(), self.pairs.clone(), self.scored_pairs.clone()];
        if let TokenizerSource::File { path } = &self.tokenizer {
            // Relative to where the program runs, as it is read: the tokenizer is no stage's output.
            inputs.push(std::path::absolute(path).unwrap_or_else(|_| path.clone()));
        }
        inputs
    }
}
