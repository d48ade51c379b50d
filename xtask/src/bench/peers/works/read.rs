//! Reading shards in order: keys, members and their bytes, images left encoded.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, PEERS_BINARY};
use super::reshard;
use serde_json::json;

pub(super) const NAME: &str = "read";
/// How many times faster than the peer.
const AT_LEAST: f64 = 10.0;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "samples",
        "read shards in order with `webdataset` and with shard-io: keys, json, txt, images left encoded; one thread",
    )?;
    let pool = reshard::pool(context)?;
    let peer = Side::new("webdataset 0.2.31", context.venv.python())
        .arg(context.script("read_webdataset.py"))
        .args(&pool.shards);
    let ours = Side::new("shard-io", context.binary(PEERS_BINARY)?)
        .arg("read")
        .args(&pool.shards)
        .asked(Metric::LoopSeconds, AT_LEAST);
    let seen =
        [peer.clone().arg("--digest").figures(context)?, ours.clone().arg("--digest").figures(context)?];
    record.input =
        json!({ "shards": pool.shards.len(), "samples": pool.num_samples, "bytes": pool.num_bytes });
    for what in ["num_items", "num_members", "num_bytes", "digest"] {
        let text = format!("`{what}` of what was read");
        record.checks.push(Check::equal(text, &seen[0][what], &seen[1][what]));
    }
    let race = Race { name: "1 thread".to_owned(), num_items: pool.num_samples, peer, ours: vec![ours] };
    record.races.push(race.run(context)?);
    Ok(record.end())
}
