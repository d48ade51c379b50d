//! Answering questions about images, as the MLM-Filter and the evaluator do.

use super::super::race::{Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, PEERS_BINARY};
use super::models::{self, THREADS};
use crate::json_file;
use serde_json::json;

pub(super) const NAME: &str = "generate";
/// Lengths of the prompts, the image counted as one.
const LENGTHS: [i64; 4] = [40, 96, 61, 17];

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "tokens",
        "greedy answers to a batch of prompts of different lengths with an image each; a SigLIP base tower (196 tokens \
         an image) and a Qwen2 of 0.5B, random weights, f32, two threads: transformers, and model",
    )?;
    record.versions = models::versions(context)?;
    let model = models::model(context, "llava", "qwen2.5")?;
    let (count, scale) = context.size(("4", "0.2"), ("300", "1"));
    let images = context.data("images", &["make-images", "{dir}", "--count", count, "--scale", scale])?;
    let num_new_tokens = context.size("4", "32");
    let prompts = context.scratch("prompts.json");
    // Ids of ordinary tokens, the image after the first few.
    let prompt = |length: i64| -> Vec<i64> {
        (0..length)
            .map(|at| if at == 4 { -200 } else { 100 + (at * 7919 + length * 104_729) % 100_000 })
            .collect()
    };
    json_file::write(&prompts, &LENGTHS.map(prompt))?;
    record.input = json!({ "prompt_lengths": LENGTHS, "image_tokens": 196, "new_tokens": num_new_tokens });

    let peer = Side::new("transformers", context.models_venv()?.python())
        .arg(context.script("generate_transformers.py"))
        .arg(&model)
        .arg(&prompts)
        .arg(&images)
        .args([THREADS, num_new_tokens]);
    let ours = Side::new("model", context.binary(PEERS_BINARY)?)
        .arg("generate")
        .arg(&model)
        .arg(&prompts)
        .arg(&images)
        .args([THREADS, num_new_tokens])
        // What the stages set for themselves.
        .env("CANDLE_NUM_THREADS", "1");
    let seen = [peer.figures(context)?, ours.figures(context)?];
    record.checks.push(Check::equal("the same tokens", &seen[0]["answers"], &seen[1]["answers"]));
    let num_items = seen[0]["num_items"].as_u64().unwrap_or(0);
    let race = Race { name: "two threads".to_owned(), num_items, peer, ours: vec![ours] };
    record.races.push(race.run(context)?);
    Ok(record.end())
}
