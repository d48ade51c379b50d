//! The benchmarks: one file each, holding its file format, its config table and its scoring.
//!
//! To add one: a file here that implements [`Benchmark`], a variant of [`BenchmarkConfig`], a test on recorded answers.

mod mmbench;
mod pope;
mod vqa;

use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use oqvl_stage::{ConfigError, RejectedSample, RunContext};
use oqvl_text_prep::IMAGE_PLACEHOLDER;
use serde::{Deserialize, Serialize};

use crate::config::ImageMode;
use crate::error::EvaluatorError;
use crate::prompt::QuestionText;
use crate::results::Extras;

pub use mmbench::{MmbenchBenchmark, MmbenchConfig};
pub use pope::{PopeBenchmark, PopeConfig};
pub use vqa::{VqaBenchmark, VqaConfig};

/// One `[[evaluator.benchmark]]` table; `kind` says which format and metric.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BenchmarkConfig {
    /// Multiple choice in a VLMEvalKit TSV, as MMBench, SEED-Bench and AI2D are distributed.
    Mmbench(MmbenchConfig),
    /// Yes/no questions in JSON lines, as POPE is distributed.
    Pope(PopeConfig),
    /// Open questions with several annotators, as VQAv2 and OK-VQA are distributed.
    Vqa(VqaConfig),
}

impl BenchmarkConfig {
    /// Its name in results and directories.
    pub fn name(&self) -> &str {
        match self {
            Self::Mmbench(config) => &config.name,
            Self::Pope(config) => &config.name,
            Self::Vqa(config) => &config.name,
        }
    }

    /// Whether the model gets to see the images.
    pub fn image_mode(&self) -> ImageMode {
        match self {
            Self::Mmbench(config) => config.image,
            Self::Pope(config) => config.image,
            Self::Vqa(config) => config.image,
        }
    }

    /// Files and directories it reads.
    pub fn inputs(&self) -> Vec<PathBuf> {
        match self {
            Self::Mmbench(config) => vec![config.file.clone()],
            Self::Pope(config) => vec![config.file.clone(), config.images.clone()],
            Self::Vqa(config) => {
                vec![config.questions.clone(), config.annotations.clone(), config.images.clone()]
            }
        }
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        match self {
            Self::Vqa(config) => config.validate(),
            Self::Mmbench(_) | Self::Pope(_) => Ok(()),
        }
    }

    /// Reads its files; relative paths start in the work directory.
    ///
    /// # Errors
    /// If a file cannot be read or is not of its format as a whole.
    pub fn load(&self, run: &RunContext) -> Result<Box<dyn Benchmark>, EvaluatorError> {
        Ok(match self {
            Self::Mmbench(config) => Box::new(MmbenchBenchmark::load(&run.resolve(&config.file))?),
            Self::Pope(config) => {
                Box::new(PopeBenchmark::load(&run.resolve(&config.file), &run.resolve(&config.images))?)
            }
            Self::Vqa(config) => Box::new(VqaBenchmark::load(config, run)?),
        })
    }
}

/// A benchmark file in memory: what to ask, and what an answer is worth.
pub trait Benchmark: Sync {
    /// The questions that can be asked, in file order.
    fn questions(&self) -> &[Question];

    /// Rows of the file that cannot be asked, each with a reason.
    fn rejected(&self) -> &[RejectedSample];

    /// What one answer is worth. `question_idx` indexes [`questions`](Self::questions).
    fn judge(&self, question_idx: usize, output: &str) -> Judgement;

    /// Numbers beyond the mean credit and its break-down. `answers` holds `(question_idx, output)` in file order.
    fn extras(&self, answers: &[(usize, &str)]) -> Extras;
}

/// One question about one image.
#[derive(Debug, Clone)]
pub struct Question {
    /// Unique inside the benchmark.
    pub id: String,
    /// What is asked.
    pub text: QuestionText,
    /// What it is asked about.
    pub image: ImageSource,
    /// Groups the results are broken down by, such as `("category", "counting")`.
    pub facets: Vec<(&'static str, String)>,
}

/// Where the encoded image of a question is.
#[derive(Debug, Clone)]
pub enum ImageSource {
    /// In memory; questions about the same image share it.
    Bytes(Arc<[u8]>),
    /// In a file.
    File(PathBuf),
}

/// What an answer is worth, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// In `0..=1`.
    pub credit: f64,
    /// The answer as the scorer understood it; `None` if it understood nothing.
    pub extracted: Option<String>,
    /// The ground truth, for readers of the predictions.
    pub gold: String,
}

/// Collects the rejected rows of a file, and remembers which ids were seen.
#[derive(Debug, Default)]
struct RowAudit {
    rejected: Vec<RejectedSample>,
    ids: std::collections::HashSet<String>,
}

impl RowAudit {
    fn reject(&mut self, key: impl Into<String>, reason: &str) {
        self.rejected.push(RejectedSample { key: key.into(), reason: reason.to_owned() });
    }

    /// Whether `id` was not seen before.
    fn is_new(&mut self, id: &str) -> bool {
        self.ids.insert(id.to_owned())
    }
}

/// Whether `text` would be taken for a place where an image goes.
fn has_placeholder(text: &str) -> bool {
    text.contains(IMAGE_PLACEHOLDER)
}

/// `images/name`, unless `name` comes from a file that tries to point out of the directory.
fn image_path(images: &Path, name: &str) -> Option<PathBuf> {
    let is_plain =
        Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    (is_plain && !name.is_empty()).then(|| images.join(name))
}

/// An identifier that some files write as a number and some as a string.
fn id_text(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::String(text) if !text.is_empty() => Some(text.clone()),
        serde_json::Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_cannot_be_outside_their_directory() {
        let images = Path::new("images");
        assert_eq!(image_path(images, "a/b.jpg"), Some("images/a/b.jpg".into()));
        for name in ["", "../b.jpg", "/etc/passwd", "a/../../b.jpg"] {
            assert_eq!(image_path(images, name), None, "{name}");
        }
    }
}
