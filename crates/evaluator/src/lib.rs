//! Scores a vision-language model on held-out benchmark files.
//!
//! The nouns:
//!
//! * a [`Benchmark`] is a file of questions that can judge answers: [`benchmarks`] has one module per file format;
//! * a [`Question`] becomes a prompt by a [`PromptStyle`];
//! * a [`Responder`] answers; [`CheckpointResponder`] is a checkpoint;
//! * [`evaluate_benchmark`] asks in batches and keeps `predictions.jsonl`, from which a killed run goes on;
//! * [`extraction`] reads an answer, [`metrics`] turn judgements into numbers with a 95 % interval;
//! * a [`BenchmarkResult`] is an entry of `results.json`. Beside the headline, which is strict and the same for every
//!   benchmark kind, it holds what the same answers score under other published rules.
//!
//! Here a script answers instead of a model:
//!
//! ```
//! use oqvl_evaluator::{AskOptions, BenchmarkConfig, Evaluator, EvaluatorError, PromptStyle};
//! use oqvl_evaluator::{Outcome, Request, Responder, evaluate_benchmark};
//! use oqvl_stage::RunContext;
//!
//! struct AlwaysYes;
//! impl Responder for AlwaysYes {
//!     fn respond(&self, requests: &[Request]) -> Result<Vec<Outcome>, EvaluatorError> {
//!         Ok(requests.iter().map(|_| Outcome::Answered("Yes.".to_owned())).collect())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let work_dir = tempfile::tempdir()?;
//! let image = oqvl_image_prep::RgbImage::new(2, 1, vec![200; 6])?;
//! oqvl_shard_io::write_atomic(&work_dir.path().join("gray.png"), &oqvl_image_prep::encode_png(&image))?;
//! let lines = r#"
//! {"question_id": 1, "image": "gray.png", "text": "Is the image gray?", "label": "yes"}
//! {"question_id": 2, "image": "gray.png", "text": "Is there a cat?", "label": "no"}
//! {"question_id": 3, "image": "lost.png", "text": "Is there a dog?", "label": "no"}
//! "#;
//! oqvl_shard_io::write_atomic(&work_dir.path().join("questions.jsonl"), lines.as_bytes())?;
//!
//! let benchmark: BenchmarkConfig = serde_json::from_value(serde_json::json!({
//!     "kind": "pope", "name": "yes_no", "file": "questions.jsonl", "images": "",
//! }))?;
//! let run = RunContext::for_test::<Evaluator>(work_dir.path(), 7)?;
//! let options = AskOptions { prompt_style: PromptStyle::Chat, batch_size: 8 };
//! let (result, tally) = evaluate_benchmark(&benchmark, options, &AlwaysYes, &run)?;
//! assert_eq!((result.overall.accuracy, result.overall.num), (0.5, 2));
//! assert_eq!(result.metrics["yes_ratio"], 1.0);
//! assert_eq!(tally.rejected["image-not-found"], 1);
//! # Ok(())
//! # }
//! ```
//!
//! Left to others: networks and decoding (`oqvl-model`), tokens and chat templates (`oqvl-text-prep`), pixels
//! (`oqvl-image-prep`). No judge model is ever asked, and nothing is guessed at random.

pub mod benchmarks;
mod checkpoint;
mod config;
mod error;
pub mod extraction;
pub mod metrics;
mod predictions;
mod prompt;
mod results;
mod runner;

use std::collections::BTreeMap;

use oqvl_model::VlmCheckpoint;
use oqvl_shard_io::write_json_atomic;
use oqvl_stage::{RunContext, Stage, Tally};
use serde::Serialize;

pub use benchmarks::{Benchmark, BenchmarkConfig, ImageSource, Judgement, Question};
pub use checkpoint::CheckpointResponder;
pub use config::{EvaluatorConfig, ImageMode};
pub use error::EvaluatorError;
pub use predictions::Outcome;
pub use prompt::{PromptStyle, QuestionText};
pub use results::{BenchmarkResult, Extras};
pub use runner::{AskOptions, Request, Responder, evaluate_benchmark};

/// The file all results go into.
const RESULTS_FILE: &str = "results.json";

/// The stage: every benchmark of the config, answered by one checkpoint.
///
/// A "shard" of this stage is a benchmark, by its position in the config. A process that owns only some of them leaves
/// their `predictions.jsonl`; the run over all of them, which finds the answers there, writes `results.json`.
#[derive(Debug)]
pub struct Evaluator;

/// What the stage says of itself. `results` is what `results.json` holds.
#[derive(Debug, Serialize)]
pub struct EvaluatorReport {
    /// Questions seen, answered (kept) and rejected, over all benchmarks.
    #[serde(flatten)]
    pub tally: Tally,
    /// Digest of the checkpoint that answered.
    pub model_digest: String,
    /// Results by benchmark name.
    pub results: BTreeMap<String, BenchmarkResult>,
}

impl Stage for Evaluator {
    const NAME: &'static str = "evaluator";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    type Config = EvaluatorConfig;
    type Report = EvaluatorReport;
    type Error = EvaluatorError;

    fn run(config: &EvaluatorConfig, run: &RunContext) -> Result<EvaluatorReport, EvaluatorError> {
        let checkpoint = VlmCheckpoint::load(&run.resolve(&config.model), &candle_core::Device::Cpu)?;
        let model_digest = checkpoint.digest.clone();
        let responder = CheckpointResponder::new(checkpoint, config.prompt_style, config.max_new_tokens)?;
        run_with(config, &responder, model_digest, run)
    }
}

/// The stage behind its model.
fn run_with(
    config: &EvaluatorConfig,
    responder: &dyn Responder,
    model_digest: String,
    run: &RunContext,
) -> Result<EvaluatorReport, EvaluatorError> {
    let options = AskOptions { prompt_style: config.prompt_style, batch_size: config.batch_size };
    let mut report = EvaluatorReport { tally: Tally::default(), model_digest, results: BTreeMap::new() };
    for (benchmark_idx, benchmark) in config.benchmarks.iter().enumerate() {
        if !run.owns_shard(benchmark_idx) {
            continue;
        }
        let (result, tally) = evaluate_benchmark(benchmark, options, responder, run)?;
        tracing::info!(
            "{}: accuracy {:.4} of {}",
            benchmark.name(),
            result.overall.accuracy,
            result.overall.num
        );
        report.tally.merge(tally);
        report.results.insert(benchmark.name().to_owned(), result);
    }
    if report.results.len() == config.benchmarks.len() {
        write_json_atomic(&run.out_dir.join(RESULTS_FILE), &report.results)?;
    }
    Ok(report)
}

#[cfg(test)]
mod tests;
