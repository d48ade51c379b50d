//! The stage: every sample of every shard, one sidecar per shard.

use crate::ClipFilterError;
use crate::config::ClipFilterConfig;
use candle_core::{Device, Tensor};
use oqvl_image_prep::{DecodeLimits, decode, pixel_values};
use oqvl_model::{ModelError, SiglipCheckpoint};
use oqvl_shard_io::Sample;
use oqvl_stage::{RunContext, SampleScores, ScorerInfo, Stage, Tally, score_shards};
use rayon::prelude::*;
use serde::Serialize;

/// Name of the scorer in sidecar file names.
pub const SCORER: &str = "clip";
/// Column with the cosine of image and text embedding, -1 to 1.
pub const METRIC: &str = "clip_score";
/// Pairs that go through the towers together. A constant, so that results depend on nothing else.
const CHUNK: usize = 32;

/// Similarity scores of all samples.
#[derive(Debug)]
pub struct ClipFilter;

/// `report.json` of the stage.
#[derive(Debug, Serialize)]
pub struct ClipFilterReport {
    /// Samples with a score, and those without and why.
    #[serde(flatten)]
    pub tally: Tally,
    /// Digest of the model.
    pub model_digest: String,
}

/// Pixel values and token ids of a sample, or why it cannot be scored.
type Prepared = Result<(Vec<f32>, Vec<i64>), String>;

fn prepare(checkpoint: &SiglipCheckpoint, sample: &Sample) -> Result<Prepared, ClipFilterError> {
    let Some(member) = sample.image() else { return Ok(Err("missing-image".to_owned())) };
    let image = match decode(&member.data, &DecodeLimits::default()) {
        Ok(image) => image,
        Err(error) => return Ok(Err(error.reason().to_owned())),
    };
    let Ok(Some(caption)) = sample.caption() else { return Ok(Err("missing-caption".to_owned())) };
    let image_size = checkpoint.config.vision_config.image_size as u32;
    Ok(Ok((pixel_values(&image, image_size), checkpoint.tokenizer.encode(caption)?)))
}

/// Cosines of matching rows.
fn cosines(checkpoint: &SiglipCheckpoint, pairs: &[&(Vec<f32>, Vec<i64>)]) -> Result<Vec<f64>, ModelError> {
    let siglip = &checkpoint.siglip;
    let edge = checkpoint.config.vision_config.image_size;
    let pixels: Vec<f32> = pairs.iter().flat_map(|pair| pair.0.iter().copied()).collect();
    let texts: Vec<Vec<i64>> = pairs.iter().map(|pair| pair.1.clone()).collect();
    let images =
        siglip.image_embeds(&Tensor::from_vec(pixels, (pairs.len(), 3, edge, edge), &Device::Cpu)?)?;
    let texts = siglip.text_embeds(&siglip.text_batch(&texts, checkpoint.tokenizer.pad_id())?)?;
    let cosines = (images * texts)?.sum(1)?.to_vec1::<f32>()?;
    Ok(cosines.into_iter().map(f64::from).collect())
}

fn score(checkpoint: &SiglipCheckpoint, samples: &[Sample]) -> Result<Vec<SampleScores>, ClipFilterError> {
    let prepared: Result<Vec<Prepared>, _> =
        samples.par_iter().map(|sample| prepare(checkpoint, sample)).collect();
    let prepared = prepared?;
    let usable: Vec<_> = prepared.iter().filter_map(|pair| pair.as_ref().ok()).collect();
    let scores: Result<Vec<Vec<f64>>, _> =
        usable.par_chunks(CHUNK).map(|pairs| cosines(checkpoint, pairs)).collect();
    let mut scores = scores?.into_iter().flatten();
    let mut next = || scores.next().expect("one score for every usable sample");
    Ok(prepared.into_iter().map(|pair| pair.map(|_| (vec![Some(next())], Vec::new()))).collect())
}

impl Stage for ClipFilter {
    const NAME: &'static str = "clip-filter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    type Config = ClipFilterConfig;
    type Report = ClipFilterReport;
    type Error = ClipFilterError;

    fn run(config: &ClipFilterConfig, run: &RunContext) -> Result<ClipFilterReport, ClipFilterError> {
        let checkpoint = SiglipCheckpoint::load(&run.resolve(&config.model), &Device::Cpu)?;
        let info = ScorerInfo {
            scorer: SCORER,
            model_digest: &checkpoint.digest,
            code_version: Self::VERSION,
            metrics: &[METRIC.to_owned()],
            texts: &[],
        };
        let tally =
            score_shards(run, &run.resolve(&config.shards), info, |samples| score(&checkpoint, samples))?;
        Ok(ClipFilterReport { tally, model_digest: checkpoint.digest })
    }
}
