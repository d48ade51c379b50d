//! Fetching a URL list from a local server with faults, resizing, encoding, writing shards.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, remove_all};
use crate::json_file;
use crate::world_server::WorldServer;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub(super) const NAME: &str = "fetch";
/// Images per processor second with pixel-equal output, and with the fast resize.
const AT_LEAST_AREA: f64 = 2.0;
const AT_LEAST_FAST: f64 = 3.0;
/// Requests at a time for every worker, on both sides.
const THREADS: usize = 32;
/// Seconds a server may take, on both sides.
const TIMEOUT: u32 = 3;

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "urls",
        "download from a local server with faults, resize to 512 on the shorter side if that is longer, encode as \
         JPEG at quality 95, write shards; retries off, 3 s timeout, 32 requests at a time for every worker",
    )?;
    let num_urls: u64 = context.size(60, 3000);
    // Large enough that some images are made smaller.
    let scale = context.size("0.6", "1");
    let world = context.data(
        "fetch/micro-world",
        &["make-world", "{dir}", "--urls", &num_urls.to_string(), "--scale", scale],
    )?;
    let served = world.parent().context("the world lies in a directory")?;
    let server = WorldServer::start(served)?;
    let list = write_list(context, &world)?;
    for workers in context.size(vec![2], vec![1, 2]) {
        let name = if workers == 1 { "1 worker".to_owned() } else { format!("{workers} workers") };
        let peer_dir = context.scratch("img2dataset");
        let (area_dir, fast_dir) = (context.scratch("ours-area"), context.scratch("ours-fast"));
        let race = Race {
            name: name.clone(),
            num_items: num_urls,
            peer: img2dataset(context, &list, &peer_dir, workers),
            ours: vec![
                data_fetch(context, Resize::Area, &list, &area_dir, workers)?
                    .asked(Metric::CpuSeconds, AT_LEAST_AREA),
                data_fetch(context, Resize::Fast, &list, &fast_dir, workers)?
                    .asked(Metric::CpuSeconds, AT_LEAST_FAST),
            ],
        };
        record.races.push(race.run(context)?);
        for (resize, dir) in [("area", &area_dir), ("fast", &fast_dir)] {
            let detail = context
                .venv
                .run_script(&context.script("compare_fetched.py"), &[&peer_dir, &dir.join("data-fetch")])?;
            record.checks.extend(agreement(&name, resize, &detail));
        }
        for dir in [peer_dir, area_dir, fast_dir] {
            remove_all(&dir)?;
        }
    }
    server.stop();
    let bodies = fs::metadata(world.join("images/bodies.tar"))?.len();
    record.input = json!({ "urls": num_urls, "body_bytes": bodies });
    Ok(record.end())
}

/// What must agree: the same samples and statuses; with `area` also every pixel.
fn agreement(race: &str, resize: &str, detail: &Value) -> Vec<Check> {
    let num = |name: &str| detail[name].as_u64();
    let same_samples = num("num_peer") == num("num_common") && num("num_ours") == num("num_common");
    let same_statuses = detail["peer_statuses"] == detail["our_statuses"];
    let mut checks = vec![
        Check::new(format!("{race}, {resize}: the same samples"), same_samples, detail.clone()),
        Check::new(
            format!("{race}, {resize}: the same statuses"),
            same_statuses,
            json!({ "peer": detail["peer_statuses"], "ours": detail["our_statuses"] }),
        ),
        Check::new(
            format!("{race}, {resize}: the same sizes"),
            num("num_differing_shapes") == Some(0),
            detail["num_differing_shapes"].clone(),
        ),
    ];
    if resize == "area" {
        let equal = num("num_equal_pixels") == num("num_common") && num("num_common") > Some(0);
        checks.push(Check::new(format!("{race}, {resize}: every pixel equal"), equal, detail.clone()));
    }
    checks
}

fn img2dataset(context: &Context, list: &Path, out: &Path, workers: usize) -> Side {
    let option = |name: &str, value: &dyn std::fmt::Display| format!("--{name}={value}");
    Side::new("img2dataset 1.47.0", context.venv.program("img2dataset"))
        .args([
            option("url_list", &list.display()),
            option("input_format", &"jsonl"),
            option("url_col", &"url"),
            option("caption_col", &"caption"),
            option("output_format", &"webdataset"),
            option("output_folder", &out.display()),
            option("processes_count", &workers),
            option("thread_count", &THREADS),
            option("number_sample_per_shard", &SAMPLES_PER_SHARD),
            option("image_size", &512),
            option("resize_mode", &"keep_ratio"),
            option("resize_only_if_bigger", &"True"),
            option("timeout", &TIMEOUT),
            option("retries", &0),
            option("enable_wandb", &"False"),
        ])
        // It would ask the package index whether it is up to date, in every process.
        .env("NO_ALBUMENTATIONS_UPDATE", "1")
        .output(out)
}

/// URLs in a shard.
const SAMPLES_PER_SHARD: usize = 1000;

/// Our two ways to make images smaller.
#[derive(Debug, Clone, Copy)]
enum Resize {
    /// OpenCV's, to the pixel.
    Area,
    Fast,
}

fn data_fetch(
    context: &Context,
    resize: Resize,
    list: &Path,
    work_dir: &Path,
    workers: usize,
) -> anyhow::Result<Side> {
    let resize = match resize {
        Resize::Area => "area",
        Resize::Fast => "fast",
    };
    let config = context.scratch(&format!("data-fetch-{resize}-{workers}.toml"));
    let in_flight = THREADS * workers;
    let text = format!(
        "name = \"peers\"\nseed = 7\nthreads = {workers}\n\n[data-fetch]\nurl_list = {list:?}\n\
         number_sample_per_shard = {SAMPLES_PER_SHARD}\nimage_size = 512\nresize_mode = \"keep_ratio\"\n\
         resize_only_if_bigger = true\ndownscale_interpolation = \"{resize}\"\nskip_reencode = false\n\
         encode_format = \"jpg\"\nencode_quality = 95\nin_flight = {in_flight}\nper_host_in_flight = {in_flight}\n\
         max_host_failures = 0\nconnect_timeout_seconds = {TIMEOUT}.0\ntimeout = {TIMEOUT}.0\n\
         deadline_seconds = 30.0\nretries = 0\nallow_private_addresses = true\n"
    );
    json_file::write_bytes(&config, text.as_bytes())?;
    Ok(Side::new(format!("data-fetch, {resize}"), context.binary("oqvl-data-fetch")?)
        .arg("--config")
        .arg(config)
        .arg("--work-dir")
        .arg(work_dir)
        .output(work_dir))
}

/// The list both sides read: JSON lines with `url` and `caption`.
fn write_list(context: &Context, world: &Path) -> anyhow::Result<PathBuf> {
    let hosts: BTreeMap<String, String> = json_file::read(&world.join("hosts.local.json"))?;
    let address = hosts.get("127.0.0.1").context("the world has no host 127.0.0.1")?;
    let targets = fs::read_to_string(world.join("targets.txt"))?;
    let mut text = String::new();
    for target in targets.lines() {
        let line =
            json!({ "url": format!("http://{address}{target}"), "caption": format!("the image {target}") });
        text += &format!("{line}\n");
    }
    let list = context.scratch("urls.jsonl");
    json_file::write_bytes(&list, text.as_bytes())?;
    Ok(list)
}
