//! The loops that are timed.
//!
//! Process time is the sum over threads, so these loops stay on one thread, but for generation: their wall time is what
//! the processor spent on them, as far as nothing else ran.

use anyhow::Context as _;
use candle_core::Device;
use oqvl_image_prep::{DecodeLimits, Filter, decode, pixel_values, resize};
use oqvl_model::{GenerateConfig, Prompt, VlmCheckpoint};
use oqvl_packer::first_fit_decreasing;
use oqvl_shard_io::{ScoreTable, ShardReader};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Reads shards in order, images left encoded.
pub(crate) fn read(shards: &[PathBuf], with_digest: bool) -> anyhow::Result<Value> {
    let mut digest = with_digest.then(Sha256::new);
    let (mut num_samples, mut num_members, mut num_bytes) = (0_u64, 0_u64, 0_u64);
    let started = Instant::now();
    for shard in shards {
        for sample in ShardReader::open(shard)? {
            let sample = sample?;
            num_samples += 1;
            for member in black_box(&sample.members) {
                num_members += 1;
                num_bytes += member.data.len() as u64;
                if let Some(digest) = &mut digest {
                    let (key, extension) = (&sample.key, &member.extension);
                    digest.update(format!("{key}.{extension} {}\n", member.data.len()));
                    digest.update(&member.data);
                }
            }
        }
    }
    let mut figures = json!({
        "num_items": num_samples,
        "num_members": num_members,
        "num_bytes": num_bytes,
        "loop_wall_seconds": started.elapsed().as_secs_f64(),
    });
    if let Some(digest) = digest {
        figures["digest"] = hex(digest).into();
    }
    Ok(figures)
}

/// Answers every prompt about its image with `num_new_tokens` tokens; model and images are read beforehand.
pub(crate) fn generate(
    model: &Path,
    prompts: &Path,
    images: &Path,
    threads: usize,
    num_new_tokens: usize,
) -> anyhow::Result<Value> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let checkpoint = VlmCheckpoint::load(model, &Device::Cpu)?;
    let ids: Vec<Vec<i64>> = serde_json::from_slice(&std::fs::read(prompts)?)?;
    let mut rows = Vec::with_capacity(ids.len());
    for (input_ids, path) in ids.into_iter().zip(files_of(images)?) {
        let image = decode(&std::fs::read(&path)?, &DecodeLimits::default())
            .with_context(|| path.display().to_string())?;
        let pixels = pixel_values(&image, checkpoint.vlm.image_size());
        rows.push(Prompt { input_ids, images: vec![pixels.into()] });
    }
    let config = GenerateConfig { max_new_tokens: num_new_tokens, ..GenerateConfig::default() };
    let started = Instant::now();
    let answers = checkpoint.vlm.generate(&rows, &config)?;
    Ok(json!({
        "num_items": answers.iter().map(Vec::len).sum::<usize>(),
        "loop_wall_seconds": started.elapsed().as_secs_f64(),
        "answers": answers,
    }))
}

/// The scores of all sidecars of a directory, by key.
pub(crate) fn scores(dir: &Path, metric: &str) -> anyhow::Result<Value> {
    let mut scores = serde_json::Map::new();
    for path in files_of(dir)? {
        if path.extension().is_some_and(|ending| ending == "parquet") {
            let table = ScoreTable::read(&path)?;
            let column = table.metric(metric).with_context(|| format!("no column {metric}"))?;
            scores.extend(table.keys.iter().cloned().zip(column.iter().map(|score| json!(score))));
        }
    }
    Ok(json!({ "scores": scores }))
}

/// The files of a folder, in name order.
fn files_of(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| dir.display().to_string())?;
    paths.sort();
    Ok(paths)
}

/// Decodes, resizes and normalises every file of a folder, read beforehand in name order.
pub(crate) fn normalise(dir: &Path, size: u32, repeats: usize, with_digest: bool) -> anyhow::Result<Value> {
    let paths = files_of(dir)?;
    let files: Vec<Vec<u8>> = paths.iter().map(std::fs::read).collect::<Result<_, _>>()?;
    let limits = DecodeLimits::default();
    let (mut pixel_digest, mut value_digest) = (Sha256::new(), Sha256::new());
    let started = Instant::now();
    for _ in 0..repeats {
        for (file, path) in files.iter().zip(&paths) {
            let image = decode(file, &limits).with_context(|| path.display().to_string())?;
            let values = black_box(pixel_values(&image, size));
            if with_digest {
                pixel_digest.update(resize(&image, size, size, Filter::Bicubic).pixels());
                values.iter().for_each(|value| value_digest.update(value.to_le_bytes()));
            }
        }
    }
    let mut figures = json!({
        "num_items": files.len() * repeats,
        "loop_wall_seconds": started.elapsed().as_secs_f64(),
    });
    if with_digest {
        figures["pixel_digest"] = hex(pixel_digest).into();
        figures["value_digest"] = hex(value_digest).into();
    }
    Ok(figures)
}

/// Packs the lengths of a file, one per line, read beforehand.
pub(crate) fn bin_packing(
    file: &Path,
    capacity: u32,
    repeats: usize,
    with_digest: bool,
) -> anyhow::Result<Value> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let lengths: Vec<u32> = text.lines().map(str::parse).collect::<Result<_, _>>()?;
    let mut bins = Vec::new();
    let started = Instant::now();
    for _ in 0..repeats {
        bins = first_fit_decreasing(black_box(&lengths), capacity);
    }
    let mut figures = json!({
        "num_items": lengths.len() * repeats,
        "num_bins": bins.len(),
        "loop_wall_seconds": started.elapsed().as_secs_f64(),
    });
    if with_digest {
        let mut digest = Sha256::new();
        for bin in &bins {
            let items: Vec<String> = bin.iter().map(usize::to_string).collect();
            digest.update(items.join(" ") + "\n");
        }
        figures["digest"] = hex(digest).into();
    }
    Ok(figures)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
