//! The stage: every sample of every shard, one sidecar per shard.

use crate::MlmFilterError;
use crate::config::MlmFilterConfig;
use crate::score::parse_score;
use candle_core::Device;
use oqvl_image_prep::{DecodeLimits, decode, pixel_values};
use oqvl_model::{GenerateConfig, Prompt, VlmCheckpoint};
use oqvl_shard_io::Sample;
use oqvl_stage::{RunContext, SampleScorer, SampleScores, ScorerInfo, Stage, Tally, score_shards};
use oqvl_text_prep::SpecialTokens;
use serde::Serialize;

/// Name of the scorer in sidecar file names.
pub const SCORER: &str = "mlm";

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
    /// Digest of the model.
    pub model_digest: String,
}

struct Scorer<'a> {
    config: &'a MlmFilterConfig,
    checkpoint: &'a VlmCheckpoint,
}

impl SampleScorer for Scorer<'_> {
    type Prepared = Vec<Prompt>;
    type Error = MlmFilterError;

    fn prepared_bytes(&self) -> usize {
        3 * (self.checkpoint.vlm.image_size() as usize).pow(2) * size_of::<f32>()
    }

    fn prepare(&self, sample: &Sample) -> Result<Result<Vec<Prompt>, String>, MlmFilterError> {
        self.prompts(sample)
    }

    fn score(&self, batch: &[Vec<Prompt>]) -> Result<Vec<SampleScores>, MlmFilterError> {
        let prompts: Vec<Prompt> = batch.iter().flatten().cloned().collect();
        let generation = GenerateConfig {
            max_new_tokens: self.config.max_new_tokens,
            stop_ids: vec![self.checkpoint.tokenizer.eos_id(), self.checkpoint.tokenizer.pad_id()],
        };
        let mut answers = self.checkpoint.vlm.generate(&prompts, &generation)?.into_iter();
        let mut scores = Vec::with_capacity(batch.len());
        for prompts in batch {
            let (mut numbers, mut texts) = (Vec::new(), Vec::new());
            for ids in answers.by_ref().take(prompts.len()) {
                let text = self.checkpoint.tokenizer.decode(&ids, SpecialTokens::Skip)?;
                numbers.push(parse_score(&text).map(f64::from));
                texts.push(Some(text));
            }
            scores.push((numbers, texts));
        }
        Ok(scores)
    }
}

impl Scorer<'_> {
    /// One prompt per metric, or why the sample cannot be asked about.
    fn prompts(&self, sample: &Sample) -> Result<Result<Vec<Prompt>, String>, MlmFilterError> {
        let Some(member) = sample.image() else { return Ok(Err("missing-image".to_owned())) };
        let image = match decode(&member.data, &DecodeLimits::default()) {
            Ok(image) => image,
            Err(error) => return Ok(Err(error.reason().to_owned())),
        };
        let Ok(Some(caption)) = sample.caption() else { return Ok(Err("missing-caption".to_owned())) };
        let pixels = pixel_values(&image, self.checkpoint.vlm.image_size());
        let mut prompts = Vec::with_capacity(self.config.metrics.len());
        for &metric in &self.config.metrics {
            let input_ids = self.config.prompt.input_ids(&self.checkpoint.tokenizer, metric, caption)?;
            let len =
                oqvl_text_prep::expanded_len(input_ids.len(), 1, self.checkpoint.vlm.num_image_tokens());
            let max = self.checkpoint.vlm.config().text_config.max_position_embeddings;
            if len + self.config.max_new_tokens > max {
                // The reference cuts here and loses the assistant header, which gives garbage scores.
                return Ok(Err("caption-too-long".to_owned()));
            }
            prompts.push(Prompt { input_ids, images: vec![pixels.clone()] });
        }
        Ok(Ok(prompts))
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
        let checkpoint = VlmCheckpoint::load(&run.resolve(&config.model), &Device::Cpu)?;
        let scorer = Scorer { config, checkpoint: &checkpoint };
        let columns = |ending: &str| -> Vec<String> {
            config.metrics.iter().map(|metric| format!("{}_{ending}", metric.name())).collect()
        };
        let info = ScorerInfo {
            scorer: SCORER,
            model_digest: &checkpoint.digest,
            code_version: Self::VERSION,
            metrics: &columns("score"),
            texts: &columns("text"),
        };
        let tally = score_shards(run, &run.resolve(&config.shards), info, &scorer)?;
        Ok(MlmFilterReport { tally, model_digest: checkpoint.digest })
    }
}
