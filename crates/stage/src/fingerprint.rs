//! What a stage's output depends on: its config, the seed, its version, and the digests of its inputs.

use crate::error::StageError;
use oqvl_shard_io::{Manifest, digest_bytes, digest_file};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Files larger than this outside the work directory are known by size and time, not by content.
const MAX_HASHED_BYTES: u64 = 256 << 20;

/// Digests of all inputs, by the path the config gives.
pub(crate) fn digest_inputs(
    work_dir: &Path,
    inputs: &[PathBuf],
) -> Result<BTreeMap<String, String>, StageError> {
    inputs.iter().map(|input| Ok((input.display().to_string(), digest_input(work_dir, input)?))).collect()
}

/// Digest of everything an output depends on.
pub(crate) fn fingerprint(
    stage: &str,
    version: &str,
    seed: u64,
    config: &serde_json::Value,
    inputs: &BTreeMap<String, String>,
) -> String {
    let all = serde_json::json!({
        "stage": stage, "version": version, "seed": seed, "config": config, "inputs": inputs,
    });
    digest_bytes(all.to_string().as_bytes())
}

fn digest_input(work_dir: &Path, input: &Path) -> Result<String, StageError> {
    let not_ready = |reason: String| StageError::InputNotReady { path: input.to_path_buf(), reason };
    let path = work_dir.join(input);
    if input.is_relative() && !input.starts_with("..") {
        let mut components = input.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
        let stage = components.next().unwrap_or_default();
        let stage_dir = work_dir.join(&stage);
        let manifest = stage_dir.join(Manifest::FILE_NAME);
        if manifest.exists() {
            let outputs = Manifest::read(&manifest)?.outputs;
            let inside: PathBuf = components.collect();
            let chosen: Vec<_> =
                outputs.iter().filter(|(file, _)| Path::new(file).starts_with(&inside)).collect();
            if chosen.is_empty() {
                return Err(not_ready(format!("stage `{stage}` is finished but wrote no such file")));
            }
            return Ok(digest_bytes(serde_json::json!(chosen).to_string().as_bytes()));
        }
        if !path.exists() || stage_dir.join(crate::runtime::FINGERPRINT_FILE).exists() {
            return Err(not_ready(format!("stage `{stage}` has not finished in {}", work_dir.display())));
        }
    }
    if !path.exists() {
        return Err(not_ready(format!("{} does not exist", path.display())));
    }
    digest_foreign(&path)
}

/// Digest of a file or directory that no stage of ours wrote.
fn digest_foreign(path: &Path) -> Result<String, StageError> {
    let mut lines = Vec::new();
    for file in files_below(path)? {
        let metadata = std::fs::metadata(&file).map_err(StageError::io(&file))?;
        let name = file.strip_prefix(path).unwrap_or(&file).display().to_string();
        let content = if metadata.len() <= MAX_HASHED_BYTES {
            digest_file(&file).map_err(StageError::io(&file))?
        } else {
            format!("{:?}", metadata.modified().map_err(StageError::io(&file))?)
        };
        lines.push(format!("{name} {} {content}", metadata.len()));
    }
    Ok(digest_bytes(lines.join("\n").as_bytes()))
}

/// Digests of what a stage wrote: every file but the runtime's own, temporary files, and `*.local.*` files, which
/// speak of one run on one machine (timings) and not of its result.
pub(crate) fn digest_outputs(out_dir: &Path) -> Result<BTreeMap<String, String>, StageError> {
    let mut outputs = BTreeMap::new();
    for file in files_below(out_dir)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let at_root = file.parent() == Some(out_dir);
        if name.starts_with('.') || name.contains(".local.") || (at_root && is_runtime_file(&name)) {
            continue;
        }
        let relative = file.strip_prefix(out_dir).expect("walked from there").display().to_string();
        outputs.insert(relative, digest_file(&file).map_err(StageError::io(&file))?);
    }
    Ok(outputs)
}

/// Whether the runtime, not the stage, writes this file at the root of an output directory.
fn is_runtime_file(name: &str) -> bool {
    name == crate::runtime::FINGERPRINT_FILE
        || (name.ends_with(".json") && (name.starts_with("manifest.") || name.starts_with("report.")))
}

/// All regular files below a directory (or the file itself), sorted; links to files count as files.
pub(crate) fn files_below(path: &Path) -> Result<Vec<PathBuf>, StageError> {
    if path.is_file() {
        return Ok(vec![path.to_path_buf()]);
    }
    let (mut files, mut pending) = (Vec::new(), vec![path.to_path_buf()]);
    while let Some(directory) = pending.pop() {
        for entry in std::fs::read_dir(&directory).map_err(StageError::io(&directory))? {
            let entry = entry.map_err(StageError::io(&directory))?;
            let kind = entry.file_type().map_err(StageError::io(entry.path()))?;
            if kind.is_dir() {
                pending.push(entry.path());
            } else if entry.path().is_file() {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_atomic;

    #[test]
    fn foreign_inputs_are_known_by_content() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("urls.txt");
        write_atomic(&file, b"a").unwrap();
        let inputs = [file.clone()];
        let first = digest_inputs(Path::new("/nowhere"), &inputs).unwrap();
        assert_eq!(first, digest_inputs(Path::new("/nowhere"), &inputs).unwrap());
        write_atomic(&file, b"b").unwrap();
        assert_ne!(first, digest_inputs(Path::new("/nowhere"), &inputs).unwrap());
    }

    #[test]
    fn a_missing_input_says_which_stage_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = digest_inputs(dir.path(), &["mixer".into()]).unwrap_err().to_string();
        assert!(error.contains("stage `mixer` has not finished"), "{error}");
    }

    #[test]
    fn local_and_hidden_files_are_not_outputs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00000.tar", "timing.local.jsonl", ".lock", "report.json", "fingerprint.json"] {
            write_atomic(&dir.path().join(name), name.as_bytes()).unwrap();
        }
        let outputs = digest_outputs(dir.path()).unwrap();
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["00000.tar"]);
    }
}
