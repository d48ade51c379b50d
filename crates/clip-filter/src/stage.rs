//! The stage: every sample of every shard, one sidecar per shard.

use crate::ClipFilterError;
use crate::config::ClipFilterConfig;
use crate::towers::Towers;
use candle_core::{Device, Tensor};
use oqvl_image_prep::{DecodeLimits, Preprocessing, decode};
use oqvl_shard_io::{Sample, digest_bytes};
use oqvl_stage::{RunContext, SampleScorer, SampleScores, ScorerInfo, Stage, Tally, score_shards};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;

/// Name of the scorer in sidecar file names.
pub const SCORER: &str = "clip";
/// Column with the cosine of image and text embedding, -1 to 1, where there is one model.
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
    /// Digest of the model, or of all of them.
    pub model_digest: String,
    /// Digest of the model behind each column.
    pub models: BTreeMap<String, String>,
}

struct Scorer<'a> {
    run: &'a RunContext,
    towers: Vec<Towers>,
    /// What the networks read of an image, each way once.
    inputs: Vec<Preprocessing>,
    /// The place in `inputs` for each of `towers`.
    input_of: Vec<usize>,
}

/// What the networks read of a sample.
struct Pair {
    /// Pixel values, one list for each of [`Scorer::inputs`].
    images: Vec<Vec<f32>>,
    /// Token ids, one list for each of [`Scorer::towers`].
    texts: Vec<Vec<i64>>,
}

impl<'a> Scorer<'a> {
    fn new(run: &'a RunContext, towers: Vec<Towers>) -> Self {
        let mut inputs: Vec<Preprocessing> = Vec::new();
        let mut input_of = Vec::new();
        for input in towers.iter().map(Towers::preprocessing) {
            let known = inputs.iter().position(|other| *other == input);
            input_of.push(known.unwrap_or(inputs.len()));
            if known.is_none() {
                inputs.push(input);
            }
        }
        Self { run, towers, inputs, input_of }
    }

    /// Scores of a few pairs, one row for each.
    fn chunk(&self, pairs: &[Pair]) -> Result<Vec<SampleScores>, ClipFilterError> {
        self.run.check_interrupt()?;
        let mut images = Vec::new();
        for (at, input) in self.inputs.iter().enumerate() {
            let pixels: Vec<f32> = pairs.iter().flat_map(|pair| pair.images[at].iter().copied()).collect();
            let edge = input.image_size as usize;
            let shape = (pairs.len(), 3, edge, edge);
            let images_of_input = Tensor::from_vec(pixels, shape, &Device::Cpu);
            images.push(images_of_input.map_err(oqvl_model::ModelError::from)?);
        }
        let mut rows = vec![(Vec::new(), Vec::new()); pairs.len()];
        for (at, towers) in self.towers.iter().enumerate() {
            let texts: Vec<Vec<i64>> = pairs.iter().map(|pair| pair.texts[at].clone()).collect();
            let cosines = towers.cosines(&images[self.input_of[at]], &texts)?;
            rows.iter_mut().zip(cosines).for_each(|(row, cosine)| row.0.push(Some(cosine)));
        }
        Ok(rows)
    }
}

impl SampleScorer for Scorer<'_> {
    type Prepared = Pair;
    type Error = ClipFilterError;

    fn prepared_bytes(&self) -> usize {
        self.inputs.iter().map(|input| 3 * (input.image_size as usize).pow(2) * size_of::<f32>()).sum()
    }

    fn prepare(&self, sample: &Sample) -> Result<Result<Pair, String>, ClipFilterError> {
        let Some(member) = sample.image() else { return Ok(Err("missing-image".to_owned())) };
        let image = match decode(&member.data, &DecodeLimits::default()) {
            Ok(image) => image,
            Err(error) => return Ok(Err(error.reason().to_owned())),
        };
        let Ok(Some(caption)) = sample.caption() else { return Ok(Err("missing-caption".to_owned())) };
        let images = self.inputs.iter().map(|input| input.pixel_values(&image)).collect();
        let texts: Result<_, _> = self.towers.iter().map(|towers| towers.text_ids(caption)).collect();
        Ok(Ok(Pair { images, texts: texts? }))
    }

    fn score(&self, batch: &[Pair]) -> Result<Vec<SampleScores>, ClipFilterError> {
        let chunks: Result<Vec<_>, _> = batch.par_chunks(CHUNK).map(|pairs| self.chunk(pairs)).collect();
        Ok(chunks?.into_iter().flatten().collect())
    }
}

impl Stage for ClipFilter {
    const NAME: &'static str = "clip-filter";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    type Config = ClipFilterConfig;
    type Report = ClipFilterReport;
    type Error = ClipFilterError;

    fn run(config: &ClipFilterConfig, run: &RunContext) -> Result<ClipFilterReport, ClipFilterError> {
        let requests = config.requests();
        let mut towers = Vec::new();
        for request in &requests {
            towers.push(Towers::load(&run.resolve(request.model), request.text_style)?);
        }
        let columns: Vec<String> = requests.iter().map(|request| request.column.clone()).collect();
        let digests: Vec<String> = towers.iter().map(|towers| towers.digest().to_owned()).collect();
        let model_digest = match digests.as_slice() {
            [digest] => digest.clone(),
            all => digest_bytes(all.concat().as_bytes()),
        };
        let info = ScorerInfo {
            scorer: SCORER,
            model_digest: &model_digest,
            code_version: Self::VERSION,
            metrics: &columns,
            texts: &[],
        };
        let scored = score_shards(run, &run.resolve(&config.shards), info, &Scorer::new(run, towers))?;
        let models = columns.into_iter().zip(digests).collect();
        Ok(ClipFilterReport { tally: scored.tally, model_digest, models })
    }
}
