//! The stage: every sample of every shard, one sidecar per shard.

use crate::MlmFilterError;
use crate::config::{MlmFilterConfig, Mode};
use crate::expected::{Expectation, MAX_ADDED_TOKENS};
use crate::image::tower_pixels;
use crate::score::parse_score;
use candle_core::{DType, Device};
use oqvl_image_prep::{DecodeLimits, decode};
use oqvl_model::{Companions, GenerateConfig, Prompt, VlmCheckpoint, pad_left_unmasked};
use oqvl_shard_io::{Sample, score_in_answer};
use oqvl_stage::{RunContext, SampleScorer, SampleScores, ScorerInfo, Stage, Tally, score_shards};
use oqvl_text_prep::{IMAGE_TOKEN_ID, SpecialTokens, expanded_len};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Name of the scorer in sidecar file names.
pub const SCORER: &str = "mlm";
/// Samples that are asked about together where it changes no score.
const SAMPLES_AT_ONCE: usize = 16;

/// MLM-Filter scores of all samples.
#[derive(Debug)]
pub struct MlmFilter;

/// `report.json` of the stage.
#[derive(Debug, Serialize)]
pub struct MlmFilterReport {
    /// Samples with an answer, and those without and why. A sample whose answer is not a number is kept: its score is
    /// null, its raw answer is in the sidecar.
    #[serde(flatten)]
    pub tally: Tally,
    /// How many of the kept samples have an answer that is no score, by metric.
    pub unparsable: BTreeMap<String, u64>,
    /// Digest of the model.
    pub model_digest: String,
}

struct Scorer<'a> {
    run: &'a RunContext,
    config: &'a MlmFilterConfig,
    checkpoint: &'a VlmCheckpoint,
    expectation: Option<Expectation>,
}

impl SampleScorer for Scorer<'_> {
    /// A prompt for every metric, all with the same image.
    type Prepared = Vec<Prompt>;
    type Error = MlmFilterError;

    fn prepared_bytes(&self) -> usize {
        3 * (self.checkpoint.vlm.image_size() as usize).pow(2) * size_of::<f32>()
    }

    fn batch_multiple(&self) -> usize {
        match self.config.mode {
            Mode::Corrected => 1,
            Mode::Parity => self.config.batch_size(),
        }
    }

    fn prepare(&self, sample: &Sample) -> Result<Result<Vec<Prompt>, String>, MlmFilterError> {
        let Some(member) = sample.image() else { return Ok(Err("missing-image".to_owned())) };
        let image = match decode(&member.data, &DecodeLimits::default()) {
            Ok(image) => image,
            Err(error) => return Ok(Err(error.reason().to_owned())),
        };
        let Ok(Some(caption)) = sample.caption() else { return Ok(Err("missing-caption".to_owned())) };
        let vlm = &self.checkpoint.vlm;
        let Some(pixels) = tower_pixels(&image, self.config.image, vlm.image_size()) else {
            return Ok(Err("image-too-long-to-pad".to_owned()));
        };
        // Shared, so that the image is encoded once for all metrics.
        let pixels: Arc<[f32]> = pixels.into();
        let max = vlm.config().text_config.max_position_embeddings;
        let mut prompts = Vec::with_capacity(self.config.metrics.len());
        for &metric in &self.config.metrics {
            let (style, tokenizer) = (self.config.prompt, &self.checkpoint.tokenizer);
            let input_ids = match self.config.mode {
                Mode::Corrected => style.input_ids(tokenizer, metric, caption)?,
                Mode::Parity => style.parity_input_ids(tokenizer, metric, caption)?,
            };
            if input_ids.iter().filter(|id| **id == IMAGE_TOKEN_ID).count() != 1 {
                // The reference ends here, with an error about an image that is not there.
                return Ok(Err("placeholder-in-caption".to_owned()));
            }
            if expanded_len(input_ids.len(), 1, vlm.num_image_tokens()) + self.added_tokens() > max {
                return Ok(Err("caption-too-long".to_owned()));
            }
            prompts.push(Prompt { input_ids, images: vec![Arc::clone(&pixels)] });
        }
        Ok(Ok(prompts))
    }

    fn score(&self, batch: &[Vec<Prompt>]) -> Result<Vec<SampleScores>, MlmFilterError> {
        let at_once = match self.config.mode {
            Mode::Corrected => SAMPLES_AT_ONCE,
            Mode::Parity => self.config.batch_size(),
        };
        let groups: Result<Vec<_>, _> =
            batch.par_chunks(at_once).map(|group| self.score_group(group)).collect();
        Ok(groups?.into_iter().flatten().collect())
    }
}

impl Scorer<'_> {
    /// Positions that must be left after a prompt: for its answer, and for the numbers whose probabilities are asked.
    fn added_tokens(&self) -> usize {
        let asked = if self.expectation.is_some() { MAX_ADDED_TOKENS } else { 0 };
        self.config.max_new_tokens().max(asked)
    }

    fn score_group(&self, group: &[Vec<Prompt>]) -> Result<Vec<SampleScores>, MlmFilterError> {
        self.run.check_interrupt()?;
        let VlmCheckpoint { vlm, tokenizer, .. } = self.checkpoint;
        let num_metrics = self.config.metrics.len();
        let mut prompts: Vec<Prompt> = group.iter().flatten().cloned().collect();
        if self.config.mode == Mode::Parity {
            pad_by_metric(&mut prompts, num_metrics, tokenizer.pad_id());
        }
        let generation = GenerateConfig {
            max_new_tokens: self.config.max_new_tokens(),
            stop_ids: vec![tokenizer.eos_id(), tokenizer.pad_id()],
            ..GenerateConfig::default()
        };
        let answers = vlm.generate(&prompts, &generation)?;
        let expected = match &self.expectation {
            Some(expectation) => expectation.scores(vlm, &prompts)?,
            None => Vec::new(),
        };
        let mut rows = Vec::with_capacity(group.len());
        for (sample, answers) in answers.chunks(num_metrics).enumerate() {
            let (mut numbers, mut texts) = (Vec::new(), Vec::new());
            for ids in answers {
                let text = tokenizer.decode(ids, SpecialTokens::Skip)?;
                numbers.push(self.parse(&text));
                texts.push(Some(text));
            }
            numbers.extend(expected.iter().skip(sample * num_metrics).take(num_metrics));
            rows.push((numbers, texts));
        }
        Ok(rows)
    }

    fn parse(&self, answer: &str) -> Option<f64> {
        match self.config.mode {
            Mode::Corrected => parse_score(answer).map(f64::from),
            Mode::Parity => score_in_answer(answer, ..),
        }
    }
}

/// Makes the prompts of each metric as long as the longest of them, as the reference does, which asks about one metric at a
/// time. `prompts` has `num_metrics` prompts for every sample.
fn pad_by_metric(prompts: &mut [Prompt], num_metrics: usize, pad_id: i64) {
    for metric in 0..num_metrics {
        let mut batch: Vec<Prompt> =
            prompts.iter_mut().skip(metric).step_by(num_metrics).map(std::mem::take).collect();
        pad_left_unmasked(&mut batch, pad_id);
        prompts
            .iter_mut()
            .skip(metric)
            .step_by(num_metrics)
            .zip(batch)
            .for_each(|(place, prompt)| *place = prompt);
    }
}

impl Stage for MlmFilter {
    const NAME: &'static str = "mlm-filter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    type Config = MlmFilterConfig;
    type Report = MlmFilterReport;
    type Error = MlmFilterError;

    fn run(config: &MlmFilterConfig, run: &RunContext) -> Result<MlmFilterReport, MlmFilterError> {
        let dir = run.resolve(&config.model);
        let found = |place: &Option<PathBuf>| place.as_ref().map(|place| run.resolve(place));
        let (vision_tower, language_model) = (found(&config.vision_tower), found(&config.language_model));
        let companions =
            Companions { vision_tower: vision_tower.as_deref(), language_model: language_model.as_deref() };
        let checkpoint = VlmCheckpoint::load_with(&dir, &companions, DType::F32, &Device::Cpu)
            .map_err(|source| MlmFilterError::Load { model: dir, source })?;
        let expectation = config.expected.then(|| Expectation::new(&checkpoint.tokenizer)).transpose()?;
        let columns = |ending: &str| -> Vec<String> {
            config.metrics.iter().map(|metric| format!("{}_{ending}", metric.name())).collect()
        };
        let scores = columns("score");
        let mut numbers = scores.clone();
        if config.expected {
            numbers.extend(columns("expected"));
        }
        let info = ScorerInfo {
            scorer: SCORER,
            model_digest: &checkpoint.digest,
            code_version: Self::VERSION,
            metrics: &numbers,
            texts: &columns("text"),
        };
        let scorer = Scorer { run, config, checkpoint: &checkpoint, expectation };
        let scored = score_shards(run, &run.resolve(&config.shards), info, &scorer)?;
        let unparsable = config.metrics.iter().zip(&scores).map(|(metric, column)| {
            (metric.name().to_owned(), scored.num_null.get(column).copied().unwrap_or_default())
        });
        let unparsable = unparsable.collect();
        Ok(MlmFilterReport { tally: scored.tally, unparsable, model_digest: checkpoint.digest })
    }
}
