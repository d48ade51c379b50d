//! The stage's table.

use std::collections::BTreeSet;
use std::path::PathBuf;

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};

use crate::benchmarks::BenchmarkConfig;
use crate::prompt::PromptStyle;

/// `[evaluator]`: which checkpoint answers which benchmark files, and how it is asked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EvaluatorConfig {
    /// Checkpoint directory: `config.json`, `model.safetensors`, `tokenizer.json`.
    pub model: PathBuf,
    /// How a question becomes a prompt.
    pub prompt_style: PromptStyle,
    /// Questions answered at once. Costs memory; batches are always made of the same questions.
    pub batch_size: usize,
    /// Longest answer, in tokens. The reference uses 16.
    pub max_new_tokens: usize,
    /// The benchmarks, in the order they are run.
    #[serde(default, rename = "benchmark")]
    pub benchmarks: Vec<BenchmarkConfig>,
}

/// What the model gets to see.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageMode {
    /// The image of the question.
    #[default]
    Shown,
    /// All-zero pixel values, a uniform gray, for every question: what the language prior alone scores.
    Blank,
}

impl StageConfig for EvaluatorConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("batch_size", self.batch_size), ("max_new_tokens", self.max_new_tokens)] {
            if value == 0 {
                return Err(ConfigError::new(key, "must be at least 1, got 0"));
            }
        }
        if self.benchmarks.is_empty() {
            return Err(ConfigError::new("benchmark", "must list at least one benchmark, got none"));
        }
        let mut names = BTreeSet::new();
        for (idx, benchmark) in self.benchmarks.iter().enumerate() {
            let key = format!("benchmark.{idx}.name");
            let name = benchmark.name();
            let is_safe = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
            if name.is_empty() || !name.chars().all(is_safe) {
                let message = format!(
                    "must be made of letters, digits, `_` and `-` (it names a directory), got `{name}`"
                );
                return Err(ConfigError::new(key, message));
            }
            if !names.insert(name) {
                return Err(ConfigError::new(key, format!("must be unique, got `{name}` a second time")));
            }
            benchmark.validate().map_err(|error| error.inside(&format!("benchmark.{idx}")))?;
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let files: BTreeSet<PathBuf> = self.benchmarks.iter().flat_map(BenchmarkConfig::inputs).collect();
        std::iter::once(self.model.clone()).chain(files).collect()
    }
}

#[cfg(test)]
mod tests {
    use oqvl_stage::ConfigFile;

    use super::*;

    const TABLE: &str = r#"
[evaluator]
model = "sft/checkpoint"
prompt_style = "chat"
batch_size = 32
max_new_tokens = 8
[[evaluator.benchmark]]
name = "multiple_choice"
kind = "mmbench"
file = "eval/a.tsv"
[[evaluator.benchmark]]
name = "multiple_choice_blank"
kind = "mmbench"
file = "eval/a.tsv"
image = "blank"
[[evaluator.benchmark]]
name = "yes_no"
kind = "pope"
file = "eval/b.jsonl"
images = "eval/images"
"#;

    fn load(text: &str, sets: &[&str]) -> Result<EvaluatorConfig, String> {
        let mut file = ConfigFile::parse(text).unwrap();
        for set in sets {
            file.set(set).unwrap();
        }
        file.stage("evaluator").map_err(|error| error.to_string())
    }

    #[test]
    fn reads_tables_and_lists_inputs_once() {
        let config = load(TABLE, &[]).unwrap();
        assert_eq!(config.benchmarks[0].image_mode(), ImageMode::Shown);
        assert_eq!(config.benchmarks[1].image_mode(), ImageMode::Blank);
        let expected = ["sft/checkpoint", "eval/a.tsv", "eval/b.jsonl", "eval/images"].map(PathBuf::from);
        assert_eq!(config.inputs(), expected);
        let again: EvaluatorConfig = toml_round_trip(&config);
        assert_eq!(again, config);
    }

    /// `--show-config` prints the table; what it prints must load.
    fn toml_round_trip(config: &EvaluatorConfig) -> EvaluatorConfig {
        serde_json::from_value(serde_json::to_value(config).unwrap()).unwrap()
    }

    #[test]
    fn errors_name_the_key() {
        for (set, expected) in [
            ("evaluator.batch_size=0", "evaluator.batch_size: must be at least 1"),
            ("evaluator.max_new_tokens=0", "evaluator.max_new_tokens: must be at least 1"),
            ("evaluator.benchmark=[]", "evaluator.benchmark: must list at least one"),
            ("evaluator.benchmark.1.name=multiple_choice", "evaluator.benchmark.1.name: must be unique"),
            ("evaluator.benchmark.0.name=../x", "evaluator.benchmark.0.name: must be made of letters"),
            (
                "evaluator.benchmark.0.imag=blank",
                "evaluator.benchmark.imag: there is no such key; did you mean `image`?",
            ),
            ("evaluator.benchmark.0.kind=mmlu", "got `mmlu`"),
            ("evaluator.benchmark.0.image=gray", "got `gray`"),
            ("evaluator.prompt_style=raw", "got `raw`"),
        ] {
            let error = load(TABLE, &[set]).unwrap_err();
            assert!(error.contains(expected), "{set}: {error}");
        }
    }
}
