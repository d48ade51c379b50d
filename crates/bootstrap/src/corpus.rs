//! The seeded corpora: text documents and image-text pairs.

use crate::BootstrapError;
use oqvl_image_prep::{DecodeLimits, decode, pixel_values};
use oqvl_shard_io::{Sample, ShardReader};
use rayon::prelude::*;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Image-text pairs, decoded for one model input size.
#[derive(Debug, Default)]
pub(crate) struct PairCorpus {
    /// Pixel values as the vision tower takes them.
    pub(crate) images: Vec<Vec<f32>>,
    /// One caption per image.
    pub(crate) captions: Vec<String>,
    /// Known scores by metric name; empty where the json member has none.
    pub(crate) scores: Vec<BTreeMap<String, u32>>,
    /// Samples left out because image or caption cannot be used.
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
    /// Reads all shards of `dir` in name order.
    pub(crate) fn read(dir: &Path, image_size: usize) -> Result<Self, BootstrapError> {
        let mut corpus = Self::default();
        for shard in shards(dir)? {
            let samples: Vec<Sample> = ShardReader::open(&shard)?.collect::<Result<_, _>>()?;
            let pairs: Vec<Option<Pair>> =
                samples.par_iter().map(|sample| pair(sample, image_size)).collect();
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

fn pair(sample: &Sample, image_size: usize) -> Option<Pair> {
    let image = decode(&sample.image()?.data, &DecodeLimits::default()).ok()?;
    let caption = sample.caption().ok()??.to_owned();
    let scores = sample.metadata::<PairMetadata>().ok()?.unwrap_or_default().scores;
    Some((pixel_values(&image, image_size as u32), caption, scores))
}

fn shards(dir: &Path) -> Result<Vec<PathBuf>, BootstrapError> {
    let entries = std::fs::read_dir(dir).map_err(BootstrapError::io(dir))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut shards: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|ending| ending == "tar")).collect();
    shards.sort();
    Ok(shards)
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
