//! The loops that are timed.
//!
//! Process time is the sum over threads, so these loops stay on one thread: their wall time is what the processor spent
//! on them, as far as nothing else ran.

use anyhow::Context as _;
use oqvl_image_prep::{DecodeLimits, Filter, decode, pixel_values, resize};
use oqvl_packer::first_fit_decreasing;
use oqvl_shard_io::ShardReader;
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

/// Decodes, resizes and normalises every file of a folder, read beforehand in name order.
pub(crate) fn normalise(dir: &Path, size: u32, repeats: usize, with_digest: bool) -> anyhow::Result<Value> {
    let mut paths: Vec<PathBuf> = std::fs::read_dir(dir)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| dir.display().to_string())?;
    paths.sort();
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
