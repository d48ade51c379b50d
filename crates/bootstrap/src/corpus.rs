//! The seeded corpora: text documents and image-text pairs.

use crate::BootstrapError;
use oqvl_image_prep::{DecodeLimits, decode, pixel_values};
use oqvl_mlm_filter::Metric;
use oqvl_shard_io::{Sample, ShardReader, list_shards};
use rayon::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Image-text pairs, decoded for one model input size.
#[derive(Debug, Default)]
pub(crate) struct PairCorpus {
    /// Pixel values as the vision tower takes them.
    pub(crate) images: Vec<Vec<f32>>,
    /// One caption per image.
    pub(crate) captions: Vec<String>,
    /// Known scores by metric name; empty where the json member has none.
    pub(crate) scores: Vec<BTreeMap<String, u32>>,
    /// Samples left out because image, caption or scores cannot be used.
    pub(crate) num_rejected: u64,
}

/// The json member of a scored pair.
#[derive(Debug, Default, Deserialize)]
struct PairMetadata {
    #[serde(default)]
    scores: BTreeMap<String, u32>,
}

type Pair = (Vec<f32>, String, BTreeMap<String, u32>);

impl PairCorpus {
    /// Reads all shards of `dir` in name order. Pairs that lack the score of one of the `metrics` are left out too.
    pub(crate) fn read(dir: &Path, image_size: usize, metrics: &[Metric]) -> Result<Self, BootstrapError> {
        let mut corpus = Self::default();
        for shard in list_shards(dir)? {
            let samples: Vec<Sample> = ShardReader::open(&shard)?.collect::<Result<_, _>>()?;
            let pairs: Vec<Option<Pair>> =
                samples.par_iter().map(|sample| pair(sample, image_size, metrics)).collect();
            for pair in pairs {
                let Some((image, caption, scores)) = pair else {
                    corpus.num_rejected += 1;
                    continue;
                };
                corpus.images.push(image);
                corpus.captions.push(caption);
                corpus.scores.push(scores);
            }
        }
        match corpus.images.is_empty() {
            true => {
                Err(BootstrapError::NoData { path: dir.to_path_buf(), what: "no usable image-text pair" })
            }
            false => Ok(corpus),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.images.len()
    }
}

fn pair(sample: &Sample, image_size: usize, metrics: &[Metric]) -> Option<Pair> {
    let image = decode(&sample.image()?.data, &DecodeLimits::default()).ok()?;
    let caption = sample.caption().ok()??.to_owned();
    let scores = sample.metadata::<PairMetadata>().ok()?.unwrap_or_default().scores;
    if !metrics.iter().all(|metric| scores.contains_key(metric.name())) {
        return None;
    }
    Some((pixel_values(&image, image_size as u32), caption, scores))
}

/// A line of the text corpus.
#[derive(Debug, Deserialize)]
struct TextLine {
    text: String,
}

/// All documents of a text corpus.
pub(crate) fn read_texts(path: &Path) -> Result<Vec<String>, BootstrapError> {
    let content = std::fs::read_to_string(path).map_err(BootstrapError::io(path))?;
    let mut texts = Vec::new();
    for (index, line) in content.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let parsed: Result<TextLine, _> = serde_json::from_str(line);
        let wrong = |source| BootstrapError::TextLine { path: path.to_path_buf(), line: index + 1, source };
        texts.push(parsed.map_err(wrong)?.text);
    }
    match texts.is_empty() {
        true => Err(BootstrapError::NoData { path: path.to_path_buf(), what: "no document" }),
        false => Ok(texts),
    }
}
