//! Packing a tar of captioned images into sequences, tokenizing included.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, remove_all};
use crate::json_file;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const NAME: &str = "pack";
/// How many times faster than the peer.
const AT_LEAST: f64 = 10.0;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "samples",
        "tokenize the captions of a tar, pack them into sequences of 4096, write the packs: the reference's procedure \
         in plain Python with `tokenizers`, and packer (plan output); one thread each, then two of ours",
    )?;
    let tokenizer = tokenizer(context)?;
    let (dir, num_samples) = tar(context)?;
    let shard = dir.join("00000000.tar");
    let bytes = fs::metadata(&shard)?.len();
    record.input =
        json!({ "samples": num_samples, "bytes": bytes, "real_tokenizer": context.shared_data().is_some() });
    let peer_dir = context.scratch("packed-by-peer");
    let peer = Side::new("plain Python, tokenizers 0.23.3", context.venv.python())
        .arg(context.script("packing_reference.py"))
        .args(["pack", "--variant", "pil", "--tokenizer"])
        .arg(&tokenizer)
        .arg("--out")
        .arg(&peer_dir)
        .arg(&shard)
        .output(&peer_dir);
    let mut ours = Vec::new();
    for threads in context.size(vec![1], vec![1, 2]) {
        ours.push(packer(context, &dir, &tokenizer, threads, "off")?.asked(Metric::CpuSeconds, AT_LEAST));
    }
    let race = Race { name: "one tar".to_owned(), num_items: num_samples, peer, ours };
    record.races.push(race.run(context)?);
    let peer_lengths: Value = json_file::read(&peer_dir.join("0_stats.json"))?;
    // The default mends what the reference gets wrong; its rules to the letter are for the comparison.
    let parity = packer(context, &dir, &tokenizer, 1, "pil")?;
    parity.figures(context)?;
    let our_lengths: Value =
        json_file::read(&work_dir(context, 1, "pil").join("packer/00000000_stats.json"))?;
    record.checks.push(check_lengths(&peer_lengths["len"], &our_lengths["len"]));
    remove_all(&peer_dir)?;
    Ok(record.end())
}

/// The tokens of every sequence, in order. The sequences are the same if these are, for lengths say which documents
/// fit: the packer's own tests compare ids and keys.
fn check_lengths(peer: &Value, ours: &Value) -> Check {
    let passed = peer == ours && peer.as_array().is_some_and(|lengths| !lengths.is_empty());
    let count = |lengths: &Value| lengths.as_array().map(Vec::len);
    let detail = json!({ "peer_sequences": count(peer), "our_sequences": count(ours) });
    Check::new("the length of every sequence", passed, detail)
}

/// The real tokenizer if it lies beside the checkout, else a small one of the same shape.
fn tokenizer(context: &Context) -> anyhow::Result<PathBuf> {
    if let Some(shared) = context.shared_data() {
        return Ok(shared.join("tokenizers/qwen2.5/tokenizer.json").canonicalize()?);
    }
    let path = context.scratch("tokenizer.json");
    context.venv.run_script(&context.script("make_tokenizer.py"), &[&path])?;
    Ok(path)
}

/// A folder with one tar of captioned images.
fn tar(context: &Context) -> anyhow::Result<(PathBuf, u64)> {
    let num_samples: u64 = context.size(40, 10_000);
    let count = num_samples.to_string();
    let images = context.size("5", "400");
    let scale = context.size("0.2", "1");
    let mut recipe = vec![
        "make-pool",
        "{dir}",
        "--shards",
        "1",
        "--samples",
        &count,
        "--images",
        images,
        "--scale",
        scale,
    ];
    let captions =
        context.shared_data().map(|shared| shared.join("captions.tsv").to_string_lossy().into_owned());
    if let Some(captions) = &captions {
        recipe.extend(["--captions", captions]);
    }
    Ok((context.data("pack", &recipe)?, num_samples))
}

fn work_dir(context: &Context, threads: usize, parity: &str) -> PathBuf {
    context.scratch(&format!("packed-{threads}-{parity}"))
}

fn packer(
    context: &Context,
    shards: &Path,
    tokenizer: &Path,
    threads: usize,
    parity: &str,
) -> anyhow::Result<Side> {
    let config = context.scratch(&format!("packer-{threads}-{parity}.toml"));
    let text = format!(
        "name = \"peers\"\nseed = 7\nthreads = {threads}\n\n[packer]\nshards = {shards:?}\ntokenizer = {tokenizer:?}\n\
         seq_len = 4096\npooled_grid = 12\nalgorithm = \"first-fit-decreasing\"\noverlong = \"keep\"\n\
         output = \"plan\"\nparity = \"{parity}\"\n"
    );
    json_file::write_bytes(&config, text.as_bytes())?;
    let out = work_dir(context, threads, parity);
    let plural = if threads == 1 { "" } else { "s" };
    Ok(Side::new(format!("packer, {threads} thread{plural}"), context.binary("oqvl-packer")?)
        .arg("--config")
        .arg(config)
        .arg("--work-dir")
        .arg(&out)
        .output(&out))
}
