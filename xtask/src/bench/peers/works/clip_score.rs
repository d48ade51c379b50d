//! Scoring image-text pairs with CLIP.

use super::super::race::{Race, Side};
use super::super::record::WorkRecord;
use super::super::{Context, PEERS_BINARY};
use super::models::{self, THREADS};
use crate::json_file;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

pub(super) const NAME: &str = "clip-score";
/// Both sides compute in f32, in another order.
const BOUND: f64 = 1e-4;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "pairs",
        "cosine of image and caption by CLIP ViT-B/32 (random weights, f32, two threads), images decoded and resized: \
         transformers, and clip-filter",
    )?;
    record.versions = models::versions(context)?;
    let model = models::model(context, "clip", "clip")?;
    let (samples, scale) = context.size(("6", "0.2"), ("128", "1"));
    let made =
        ["make-pool", "{dir}", "--shards", "1", "--samples", samples, "--images", samples, "--scale", scale];
    let pool = context.data("clip-pool", &made)?;
    record.input = json!({ "pairs": samples, "model": "CLIP ViT-B/32" });

    let scores = context.scratch("scores.json");
    let peer = Side::new("transformers", context.models_venv()?.python())
        .arg(context.script("clip_transformers.py"))
        .arg(&model)
        .arg(&pool)
        .args([THREADS, "32"])
        .arg(&scores);
    let work_dir = context.scratch("clip-filter");
    let config = context.scratch("clip-filter.toml");
    let text = format!(
        "name = \"peers\"\nseed = 7\nthreads = {THREADS}\n\n[clip-filter]\nshards = {pool:?}\nmodel = {model:?}\n\
         text_style = \"hugging-face\"\n"
    );
    json_file::write_bytes(&config, text.as_bytes())?;
    let ours = Side::new("clip-filter", context.binary("oqvl-clip-filter")?)
        .arg("--config")
        .arg(&config)
        .arg("--work-dir")
        .arg(&work_dir)
        .output(&work_dir);
    let num_items = samples.parse()?;
    let race = Race { name: "two threads".to_owned(), num_items, peer, ours: vec![ours] };
    record.races.push(race.run(context)?);

    let theirs: BTreeMap<String, f64> = json_file::read(&scores)?;
    let ours = our_scores(context, &work_dir.join("clip-filter"))?;
    let same_keys = theirs.keys().eq(ours.keys());
    let values = |scores: &BTreeMap<String, f64>| scores.values().copied().collect::<Vec<f64>>();
    let mut check = models::near("the same cosines", &values(&theirs), &values(&ours), BOUND);
    check.passed &= same_keys;
    record.checks.push(check);
    Ok(record.end())
}

/// The scores of all sidecars, by key.
fn our_scores(context: &Context, dir: &Path) -> anyhow::Result<BTreeMap<String, f64>> {
    let read = Side::new("sidecars", context.binary(PEERS_BINARY)?).args(["scores", "clip_score"]).arg(dir);
    let figures = read.figures(context)?;
    let scores = figures.get("scores").cloned().unwrap_or(Value::Null);
    Ok(serde_json::from_value(scores)?)
}
