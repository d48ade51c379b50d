//! First-fit-decreasing alone: the quadratic procedure in Python, and ours, which grows with n log n.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, PEERS_BINARY};
use serde_json::json;

pub(super) const NAME: &str = "bin-packing";
/// How many times faster than the peer, at 10 000 items.
const AT_LEAST: f64 = 500.0;
/// Tokens of a sequence.
const CAPACITY: &str = "4096";
/// How often ours packs in a race, to be measurable: once takes about a millisecond for 10 000 items. The loop's time
/// is that of one packing; CPU and wall are of all.
const RACE_REPEATS: u64 = 20;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "items",
        "first-fit-decreasing over lengths of captioned images, capacity 4096; one thread",
    )?;
    let against_peer = context.size(vec![300], vec![1_000, 10_000]);
    let alone = context.size(vec![2_000], vec![100_000, 1_000_000]);
    for count in &against_peer {
        let (peer, ours) = sides(context, *count, RACE_REPEATS)?;
        let seen =
            [peer.clone().arg("--digest").figures(context)?, ours.clone().arg("--digest").figures(context)?];
        for what in ["num_bins", "digest"] {
            let text = format!("{count} items: `{what}`");
            record.checks.push(Check::equal(text, &seen[0][what], &seen[1][what]));
        }
        let ours = if *count == 10_000 { ours.asked(Metric::LoopSeconds, AT_LEAST) } else { ours };
        let race = Race { name: format!("{count} items"), num_items: *count, peer, ours: vec![ours] };
        record.races.push(race.run(context)?);
    }
    // Growth: the same loop on more items. Too much for the quadratic procedure, so there is no race.
    let mut growth = Vec::new();
    for count in against_peer.iter().chain(&alone) {
        let repeats = (1_000_000 / *count).clamp(1, 200);
        let figures = sides(context, *count, repeats)?.1.figures(context)?;
        let (seconds, done) = (figures["loop_wall_seconds"].as_f64(), figures["num_items"].as_f64());
        let nanoseconds = seconds.zip(done).map(|(seconds, done)| seconds / done * 1e9);
        growth.push(
            json!({ "items": count, "nanoseconds_per_item": nanoseconds, "bins": figures["num_bins"] }),
        );
    }
    record.input = json!({ "capacity": 4096, "growth": growth });
    Ok(record.end())
}

fn sides(context: &Context, count: u64, repeats: u64) -> anyhow::Result<(Side, Side)> {
    let file = context
        .data(&format!("lengths-{count}.txt"), &["make-lengths", "{dir}", "--count", &count.to_string()])?;
    let peer = Side::new("Python, quadratic", context.venv.python())
        .arg(context.script("bin_packing_reference.py"))
        .arg(CAPACITY)
        .arg(&file);
    let ours = Side::new("oqvl-packer", context.binary(PEERS_BINARY)?)
        .args(["bin-packing", CAPACITY, &repeats.to_string()])
        .arg(&file);
    Ok((peer, ours))
}
