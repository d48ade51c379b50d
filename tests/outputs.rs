//! What a run left, byte for byte.

use crate::binaries::STAGES;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// All files that the stages of a work directory wrote, by path, with their bytes.
///
/// Left out is what speaks of one run on one machine: timings and ports (`manifest.json`,
/// `report.json`, `*.local.*`), hidden files, and the report stage, which reports all of that.
///
/// # Panics
/// If a file cannot be read.
#[must_use]
pub fn outputs(work_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for stage in STAGES.iter().filter(|stage| **stage != "report") {
        collect(work_dir, &work_dir.join(stage), &mut files);
    }
    files
}

fn collect(work_dir: &Path, directory: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("a directory can be listed").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            collect(work_dir, &path, files);
        } else if speaks_of_the_result(&name) {
            let relative = path.strip_prefix(work_dir).expect("found below it").display().to_string();
            files.insert(relative, fs::read(&path).expect("an output can be read"));
        }
    }
}

fn speaks_of_the_result(name: &str) -> bool {
    !name.starts_with('.') && !name.contains(".local.") && !matches!(name, "manifest.json" | "report.json")
}

/// The paths that are in only one of two runs, or differ.
#[must_use]
pub fn differences(left: &BTreeMap<String, Vec<u8>>, right: &BTreeMap<String, Vec<u8>>) -> Vec<String> {
    let paths: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
    paths.into_iter().filter(|path| left.get(*path) != right.get(*path)).cloned().collect()
}

/// The losses a training stage wrote, step by step, exactly as they stand in its `metrics.jsonl`.
///
/// # Panics
/// If there is no such file or a line has no loss.
#[must_use]
pub fn losses(work_dir: &Path, stage: &str) -> Vec<String> {
    let path = work_dir.join(stage).join("metrics.jsonl");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let loss = |line: &str| {
        let metrics: serde_json::Value = serde_json::from_str(line).expect("a line of metrics is JSON");
        metrics.get("loss").expect("a line of metrics has a loss").to_string()
    };
    text.lines().map(loss).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_named() {
        let run = |files: &[(&str, &[u8])]| {
            files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec())).collect::<BTreeMap<_, _>>()
        };
        let (left, right) = (run(&[("a", b"1"), ("b", b"2"), ("c", b"3")]), run(&[("a", b"1"), ("b", b"x")]));
        assert_eq!(differences(&left, &right), ["b", "c"]);
        assert!(differences(&left, &left).is_empty());
    }

    #[test]
    fn what_speaks_of_one_machine_is_left_out() {
        for name in [".lock", "manifest.json", "timing.local.jsonl", "hosts.local.json"] {
            assert!(!speaks_of_the_result(name), "{name}");
        }
        assert!(speaks_of_the_result("00000.tar") && speaks_of_the_result("fingerprint.json"));
    }
}
