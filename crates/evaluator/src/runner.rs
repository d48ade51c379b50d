//! Asks a benchmark's questions in batches and keeps the log.

use std::path::Path;

use oqvl_image_prep::{DecodeLimits, RgbImage, decode};
use oqvl_stage::{RunContext, Tally};
use rayon::prelude::*;

use crate::benchmarks::{Benchmark, BenchmarkConfig, ImageSource, Question};
use crate::config::ImageMode;
use crate::error::EvaluatorError;
use crate::predictions::{Outcome, PredictionLog};
use crate::prompt::PromptStyle;
use crate::results::BenchmarkResult;

/// What is asked in one request: a rendered question about one image.
#[derive(Debug)]
pub struct Request {
    /// The prompt as [`PromptStyle::render`] wrote it, with one image placeholder.
    pub prompt: String,
    /// The image, or `None` for a blank one ([`ImageMode::Blank`]).
    pub image: Option<RgbImage>,
}

/// Something that answers questions about images: a checkpoint
/// ([`CheckpointResponder`](crate::CheckpointResponder)), or a script in a test.
pub trait Responder {
    /// Answers `requests`, one outcome for each, in their order. A request that this model cannot take (its prompt is
    /// too long, say) is [`Outcome::Rejected`] with a kebab-case reason.
    ///
    /// # Errors
    /// If the model fails.
    fn respond(&self, requests: &[Request]) -> Result<Vec<Outcome>, EvaluatorError>;
}

/// How a benchmark is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AskOptions {
    /// How a question becomes a prompt.
    pub prompt_style: PromptStyle,
    /// Questions per request batch, at least 1.
    pub batch_size: usize,
}

/// Asks every question of one benchmark that has no answer yet, logs to `{out_dir}/{name}/predictions.jsonl`, and
/// scores. The tally's keys are `{name}/{question id}`.
///
/// # Errors
/// If the benchmark's files or its log are unusable, no question can be asked, or the responder fails.
pub fn evaluate_benchmark(
    config: &BenchmarkConfig,
    options: AskOptions,
    responder: &dyn Responder,
    run: &RunContext,
) -> Result<(BenchmarkResult, Tally), EvaluatorError> {
    let benchmark = config.load(run)?;
    let dir = run.out_dir.join(config.name());
    std::fs::create_dir_all(&dir).map_err(EvaluatorError::io(&dir))?;
    let image_mode = config.image_mode();
    let asking = Asking { benchmark: benchmark.as_ref(), options, image_mode, responder, run };
    let outcomes = asking.ask_all(&dir.join("predictions.jsonl"))?;
    let tally = tally(config.name(), benchmark.as_ref(), &outcomes);
    let answers: Vec<(usize, &str)> = outcomes
        .iter()
        .enumerate()
        .filter_map(|(question_idx, outcome)| match outcome {
            Outcome::Answered(output) => Some((question_idx, output.as_str())),
            Outcome::Rejected(_) => None,
        })
        .collect();
    if answers.is_empty() {
        let most_frequent = tally.rejected.iter().max_by_key(|(_, count)| **count);
        return Err(EvaluatorError::NothingToAsk {
            benchmark: config.name().to_owned(),
            num_rejected: tally.seen,
            reason: most_frequent.map_or("an empty file", |(reason, _)| reason).to_owned(),
        });
    }
    let num_rejected = tally.num_rejected();
    let result =
        BenchmarkResult::of(benchmark.as_ref(), &answers, num_rejected, image_mode, options.prompt_style);
    Ok((result, tally))
}

fn tally(name: &str, benchmark: &dyn Benchmark, outcomes: &[Outcome]) -> Tally {
    let mut tally = Tally::default();
    for row in benchmark.rejected() {
        tally.reject(format!("{name}/{}", row.key), row.reason.clone());
    }
    for (question, outcome) in benchmark.questions().iter().zip(outcomes) {
        match outcome {
            Outcome::Answered(_) => tally.keep(),
            Outcome::Rejected(reason) => tally.reject(format!("{name}/{}", question.id), reason.clone()),
        }
    }
    tally.assert_balanced();
    tally
}

/// One benchmark being asked.
struct Asking<'a> {
    benchmark: &'a dyn Benchmark,
    options: AskOptions,
    image_mode: ImageMode,
    responder: &'a dyn Responder,
    run: &'a RunContext,
}

impl Asking<'_> {
    fn ask_all(&self, log_path: &Path) -> Result<Vec<Outcome>, EvaluatorError> {
        let questions = self.benchmark.questions();
        let (mut log, mut outcomes) = PredictionLog::open(log_path, questions)?;
        let progress = self.run.progress(questions.len() as u64, "questions");
        // Batches are cut by position, not from what is left: a resumed run makes the same ones, so that even a model
        // whose rounding depends on the batch gives the same bytes.
        let batch_size = self.options.batch_size.max(1);
        for (batch_idx, batch) in outcomes.chunks_mut(batch_size).enumerate() {
            self.run.check_interrupt()?;
            self.ask_batch(batch_idx * batch_size, batch, &mut log)?;
            progress.inc(batch.len() as u64);
        }
        progress.finish();
        Ok(outcomes.into_iter().map(|outcome| outcome.expect("every batch fills its outcomes")).collect())
    }

    /// Fills the outcomes of the questions from `first_idx` on. If all are there nothing is asked; if some are (the log
    /// was cut in the middle of a batch), the batch is asked as a whole and the missing ones are logged.
    fn ask_batch(
        &self,
        first_idx: usize,
        batch: &mut [Option<Outcome>],
        log: &mut PredictionLog,
    ) -> Result<(), EvaluatorError> {
        if batch.iter().all(Option::is_some) {
            return Ok(());
        }
        let questions = &self.benchmark.questions()[first_idx..first_idx + batch.len()];
        let images: Vec<Result<RgbImage, String>> = questions.par_iter().map(load_image).collect();
        let mut requests = Vec::new();
        for (question, image) in questions.iter().zip(&images) {
            if let Ok(image) = image {
                let image = (self.image_mode == ImageMode::Shown).then(|| image.clone());
                requests.push(Request { prompt: self.options.prompt_style.render(&question.text), image });
            }
        }
        let answers = if requests.is_empty() { Vec::new() } else { self.responder.respond(&requests)? };
        if answers.len() != requests.len() {
            return Err(EvaluatorError::AnswerCount { expected: requests.len(), found: answers.len() });
        }
        let mut answered = requests.into_iter().zip(answers);
        let mut fresh = Vec::new();
        for (offset, (slot, image)) in batch.iter_mut().zip(images).enumerate() {
            let (prompt, outcome) = match image {
                Ok(_) => {
                    let (request, outcome) =
                        answered.next().expect("one request was made for every decoded image");
                    (request.prompt, outcome.trimmed())
                }
                Err(reason) => (String::new(), Outcome::Rejected(reason)),
            };
            if slot.is_none() {
                fresh.push((first_idx + offset, prompt, &*slot.insert(outcome)));
            }
        }
        log.append(self.benchmark, &fresh)
    }
}

/// The decoded image of a question, or the reason why there is none. Blank-image runs decode it too, so that they ask
/// the same questions.
fn load_image(question: &Question) -> Result<RgbImage, String> {
    let read;
    let bytes: &[u8] = match &question.image {
        ImageSource::Bytes(bytes) => bytes,
        ImageSource::File(path) => {
            read = std::fs::read(path).map_err(|error| match error.kind() {
                std::io::ErrorKind::NotFound => "image-not-found".to_owned(),
                _ => "image-unreadable".to_owned(),
            })?;
            &read
        }
    };
    decode(bytes, &DecodeLimits::default()).map_err(|error| format!("image-{}", error.reason()))
}
