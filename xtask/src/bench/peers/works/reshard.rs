//! Keeping half of a pool by uid, in new shards.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, remove_all};
use crate::json_file;
use serde_json::json;
use std::fs;
use std::path::PathBuf;

pub(super) const NAME: &str = "reshard";
/// How many times faster than the peer.
const AT_LEAST: f64 = 10.0;
/// Samples of an output shard.
const SAMPLES_PER_SHARD: usize = 10_000;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "samples",
        "keep half of the samples by a uid list, write new shards: the DataComp resharder's procedure on \
         `webdataset`, and mixer",
    )?;
    let pool = pool(context)?;
    record.input =
        json!({ "shards": pool.shards.len(), "samples": pool.num_samples, "bytes": pool.num_bytes });
    for workers in context.size(vec![2], vec![1, 2]) {
        let name = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
        let (peer_dir, our_dir) = (context.scratch("resharded"), context.scratch("mixed"));
        let race = Race {
            name: name.clone(),
            num_items: pool.num_samples,
            peer: resharder(context, &pool, &peer_dir, workers),
            ours: vec![mixer(context, &pool, &our_dir, workers)?.asked(Metric::PeerLoopToOurWall, AT_LEAST)],
        };
        record.races.push(race.run(context)?);
        let script = context.script("compare_resharded.py");
        let detail = context.venv.run_script(&script, &[&peer_dir, &our_dir.join("mixer")])?;
        let all = detail["num_equal"].as_u64();
        let passed =
            all > Some(0) && all == detail["num_peer"].as_u64() && all == detail["num_ours"].as_u64();
        record.checks.push(Check::new(format!("{name}: the same samples, byte for byte"), passed, detail));
        remove_all(&peer_dir)?;
        remove_all(&our_dir)?;
    }
    Ok(record.end())
}

/// Shards as img2dataset leaves them.
pub(super) struct Pool {
    pub(super) dir: PathBuf,
    pub(super) shards: Vec<PathBuf>,
    pub(super) num_samples: u64,
    pub(super) num_bytes: u64,
}

/// The pool that is resharded and read.
pub(super) fn pool(context: &Context) -> anyhow::Result<Pool> {
    let (num_shards, samples): (u64, u64) = context.size((3, 20), (4, 2730));
    let images = context.size("5", "400");
    let scale = context.size("0.2", "1");
    let counts = [num_shards.to_string(), samples.to_string()];
    let dir = context.data(
        "pool",
        &[
            "make-pool",
            "{dir}",
            "--shards",
            &counts[0],
            "--samples",
            &counts[1],
            "--images",
            images,
            "--scale",
            scale,
        ],
    )?;
    let shards: Vec<PathBuf> = (0..num_shards).map(|shard| dir.join(format!("{shard:08}.tar"))).collect();
    let mut num_bytes = 0;
    for shard in &shards {
        num_bytes += fs::metadata(shard)?.len();
    }
    Ok(Pool { dir, shards, num_samples: num_shards * samples, num_bytes })
}

fn resharder(context: &Context, pool: &Pool, out: &std::path::Path, workers: usize) -> Side {
    Side::new("the resharder's procedure", context.venv.python())
        .arg(context.script("reshard.py"))
        .arg(&pool.dir)
        .arg(out)
        .arg(pool.dir.join("subset.npy"))
        .arg(workers.to_string())
        .arg(SAMPLES_PER_SHARD.to_string())
        .output(out)
}

fn mixer(context: &Context, pool: &Pool, work_dir: &std::path::Path, workers: usize) -> anyhow::Result<Side> {
    let config = context.scratch(&format!("mixer-{workers}.toml"));
    let text = format!(
        "name = \"peers\"\nseed = 7\nthreads = {workers}\n\n[mixer]\nshards = {:?}\nselect = \"union\"\ndedup = []\n\
         samples_per_shard = {SAMPLES_PER_SHARD}\n\n[[mixer.subset]]\nname = \"half\"\nuids = {:?}\n",
        pool.dir,
        pool.dir.join("subset.npy")
    );
    json_file::write_bytes(&config, text.as_bytes())?;
    Ok(Side::new("mixer", context.binary("oqvl-mixer")?)
        .arg("--config")
        .arg(config)
        .arg("--work-dir")
        .arg(work_dir)
        .output(work_dir))
}
