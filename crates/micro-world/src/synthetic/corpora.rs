//! The training pairs of the SigLIP and MLM-Filter stand-ins, as shards.

use super::{CHUNK, region};
use crate::caption::CaptionStyle;
use crate::config::{SyntheticConfig, share_of};
use crate::encode::PictureFormat;
use crate::error::WorldError;
use crate::pair::{Pair, PairClass, SceneSource};
use crate::report::{WorldReport, count};
use crate::scene::{Canvas, Split, draw};
use crate::world_dir::{ShardSet, WorldDir};
use oqvl_shard_io::Sample;
use oqvl_stage::{Progress, RunContext, stream};
use rand::Rng as _;
use rand::seq::SliceRandom;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use serde_json::json;

/// Samples per shard.
const SAMPLES_PER_SHARD: usize = 1000;

/// Shares of the classes among the MLM-Filter's pairs; the rest is clean.
const NOISE_SHARES: [(PairClass, f64); 4] = [
    (PairClass::Mismatched, 0.30),
    (PairClass::Subtle, 0.05),
    (PairClass::Vague, 0.08),
    (PairClass::Boilerplate, 0.12),
];

/// Writes `corpora/siglip` and `corpora/mlm-filter`.
pub(super) fn write(
    config: &SyntheticConfig,
    run: &RunContext,
    world: &WorldDir,
    progress: &Progress,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    write_pairs(run, world, "corpora/siglip", config.num_siglip_pairs, progress, |k| {
        siglip_pair(run.seed, k)
    })?;
    report.siglip_pairs = config.num_siglip_pairs as u64;

    let classes = mlm_filter_classes(config.num_mlm_filter_pairs, run.seed);
    classes.iter().for_each(|class| count(&mut report.mlm_filter_pairs, class.name()));
    write_pairs(run, world, "corpora/mlm-filter", classes.len(), progress, |k| {
        mlm_filter_pair(run.seed, k, classes[k])
    })
}

/// A pair with its picture encoded.
struct EncodedPair {
    pair: Pair,
    source: SceneSource,
    format: PictureFormat,
    image: Vec<u8>,
}

fn write_pairs(
    run: &RunContext,
    world: &WorldDir,
    dir: &str,
    num_pairs: usize,
    progress: &Progress,
    make: impl Fn(usize) -> EncodedPair + Sync,
) -> Result<(), WorldError> {
    let mut shards = ShardSet::new(world.create_dir(dir)?, SAMPLES_PER_SHARD);
    for start in (0..num_pairs).step_by(CHUNK) {
        run.check_interrupt()?;
        let chunk: Vec<EncodedPair> =
            (start..num_pairs.min(start + CHUNK)).into_par_iter().map(&make).collect();
        progress.inc(chunk.len() as u64);
        for encoded in chunk {
            shards.push(&sample(&shards, encoded))?;
        }
    }
    shards.finish()
}

fn sample(shards: &ShardSet, encoded: EncodedPair) -> Sample {
    let EncodedPair { pair, source, format, image } = encoded;
    let key = shards.next_key();
    let metadata = json!({
        "caption": pair.caption,
        "key": key.as_str(),
        "scene": source.index,
        "pair": pair.class,
        "style": pair.style,
        "width": Canvas::default().width,
        "height": Canvas::default().height,
        "scores": pair.scores,
    });
    let mut sample = Sample::new(key);
    sample.push(format.extension(), image);
    sample.push("json", metadata.to_string().into_bytes());
    sample.push("txt", pair.caption.into_bytes());
    sample
}

fn siglip_pair(seed: u64, k: usize) -> EncodedPair {
    let source = SceneSource { seed, split: Split::Bootstrap, index: region(0) + k as u64 };
    let mut rng = stream(seed, "micro-world/siglip", 0, 0, k as u64);
    let scene = source.scene();
    let style = CaptionStyle::weighted(&CaptionStyle::CONTRASTIVE_WEIGHTS, &mut rng);
    let pair = Pair::clean(&scene, style, &mut rng);
    let format = PictureFormat::Jpeg;
    EncodedPair { pair, source, format, image: format.encode(&draw(&scene, Canvas::default())) }
}

fn mlm_filter_classes(num_pairs: usize, seed: u64) -> Vec<PairClass> {
    let mut classes = Vec::with_capacity(num_pairs);
    for (class, share) in NOISE_SHARES {
        classes.extend(std::iter::repeat_n(class, share_of(num_pairs, share)));
    }
    classes.resize(num_pairs, PairClass::Clean);
    classes.shuffle(&mut stream(seed, "micro-world/mlm-filter-classes", 0, 0, 0));
    classes
}

fn mlm_filter_pair(seed: u64, k: usize, class: PairClass) -> EncodedPair {
    let source = SceneSource { seed, split: Split::Mlm, index: region(0) + k as u64 };
    let mut rng = stream(seed, "micro-world/mlm-filter", 0, 0, k as u64);
    let scene = source.scene();
    let pair = Pair::compose(class, source, &scene, &mut rng);
    let format = if rng.random_bool(0.5) { PictureFormat::Jpeg } else { PictureFormat::Png };
    EncodedPair { pair, source, format, image: format.encode(&draw(&scene, Canvas::default())) }
}
