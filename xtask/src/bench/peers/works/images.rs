//! What a training loader does with an image: decode, resize to a square, normalise.

use super::super::race::{Metric, Race, Side};
use super::super::record::{Check, WorkRecord};
use super::super::{Context, PEERS_BINARY};
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) const NAME: &str = "images";
/// How many times faster than the peer.
const AT_LEAST: f64 = 1.5;
/// Side of what SigLIP SO400M reads.
const SIZE: &str = "384";

pub(super) fn run(context: &Context) -> anyhow::Result<WorkRecord> {
    let mut record = WorkRecord::begin(
        context,
        NAME,
        "images",
        "decode JPEG, resize to 384 x 384 (bicubic), normalise to f32: Pillow and numpy, and image-prep; one thread",
    )?;
    let count = context.size(4, 300);
    let scale = context.size("0.2", "1");
    let made = ["make-images", "{dir}", "--count", &count.to_string(), "--scale", scale];
    let mut folders = vec![("web photographs", context.data("images", &made)?, count)];
    if let Some((dir, count)) = photographs(context)? {
        folders.push(("real photographs", dir, count));
    }
    let repeats = context.size("1", "2");
    let mut inputs = Vec::new();
    for (name, dir, count) in folders {
        let peer = Side::new("Pillow 12.2.0 and numpy", context.venv.python())
            .arg(context.script("images_pillow.py"))
            .args([SIZE, repeats])
            .arg(&dir);
        let ours = Side::new("image-prep", context.binary(PEERS_BINARY)?)
            .args(["normalise", SIZE, repeats])
            .arg(&dir)
            .asked(Metric::LoopSeconds, AT_LEAST);
        let seen =
            [peer.clone().arg("--digest").figures(context)?, ours.clone().arg("--digest").figures(context)?];
        for what in ["num_items", "pixel_digest", "value_digest"] {
            let text = format!("{name}: `{what}`");
            record.checks.push(Check::equal(text, &seen[0][what], &seen[1][what]));
        }
        inputs.push(json!({ "name": name, "images": count, "bytes": folder_bytes(&dir)? }));
        let num_items = seen[0]["num_items"].as_u64().unwrap_or(0);
        let race = Race { name: name.to_owned(), num_items, peer, ours: vec![ours] };
        record.races.push(race.run(context)?);
    }
    record.input = json!(inputs);
    Ok(record.end())
}

/// The JPEG photographs beside the checkout, if there are any, linked into one folder.
fn photographs(context: &Context) -> anyhow::Result<Option<(PathBuf, usize)>> {
    let Some(shared) = context.shared_data() else { return Ok(None) };
    let dir = context.scratch("photographs");
    super::super::remove_all(&dir)?;
    std::fs::create_dir_all(&dir)?;
    let mut count = 0;
    let mut pending = vec![shared.join("images")];
    while let Some(folder) = pending.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path().canonicalize()?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                pending.push(path);
            } else if name.ends_with(".jpg") || name.ends_with(".jpeg") {
                // Names repeat between folders.
                std::os::unix::fs::symlink(&path, dir.join(format!("{count:05}-{name}")))?;
                count += 1;
                if context.quick && count == 3 {
                    return Ok(Some((dir, count)));
                }
            }
        }
    }
    Ok((count > 0).then_some((dir, count)))
}

fn folder_bytes(dir: &Path) -> anyhow::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(dir)? {
        total += std::fs::metadata(entry?.path())?.len();
    }
    Ok(total)
}
