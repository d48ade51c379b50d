//! What a stage's output depends on: its config, the seed, its version, and the digests of its inputs.

use crate::error::StageError;
use crate::remote_inputs::Mirrors;
use oqvl_shard_io::{FilePattern, Manifest, Mirror, digest_bytes, digest_file};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// Files larger than this that no stage of ours wrote are known by size and time, not by content.
const MAX_HASHED_BYTES: u64 = 256 << 20;

/// The same of tars: to read terabytes of shards before the work starts would take as long as some stages do.
const MAX_HASHED_TAR_BYTES: u64 = 1 << 20;

/// Digests of all inputs, by the path the config gives.
pub(crate) fn digest_inputs(
    work_dir: &Path,
    inputs: &[PathBuf],
    mirrors: &Mirrors,
) -> Result<BTreeMap<String, String>, StageError> {
    let digest = |input: &PathBuf| match mirrors.get(input) {
        Some(mirror) => digest_mirror(input, mirror),
        None => digest_input(work_dir, input),
    };
    inputs.iter().map(|input| Ok((input.display().to_string(), digest(input)?))).collect()
}

/// Digest of what was copied from a store, by content: the same files from elsewhere are the same input.
fn digest_mirror(input: &Path, mirror: &Mirror) -> Result<String, StageError> {
    let has = |name: &str| mirror.files.iter().any(|file| file.name == name);
    let is_output_of_stage = has(crate::out_dir::FINGERPRINT_FILE);
    if is_output_of_stage && !has(Manifest::FILE_NAME) {
        let reason = "the stage whose output this is has not finished sending it".to_owned();
        return Err(StageError::InputNotReady { path: input.to_path_buf(), reason });
    }
    // A manifest speaks of times.
    let files = mirror.files.iter().filter(|file| !(is_output_of_stage && is_runtime_file(&file.name)));
    let lines: Vec<_> = files.map(|file| format!("{} {}", file.name, file.digest)).collect();
    Ok(digest_bytes(lines.join("\n").as_bytes()))
}

/// Digest of everything an output depends on; the seed is `None` for a stage that draws nothing from it.
pub(crate) fn fingerprint(
    stage: &str,
    version: &str,
    seed: Option<u64>,
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
    let pattern = FilePattern::of_path(&path);
    if let Some((stage, inside)) = below(work_dir, &path)? {
        let stage_dir = work_dir.join(&stage);
        let manifest = stage_dir.join(Manifest::FILE_NAME);
        if manifest.exists() {
            let Ok(manifest) = Manifest::read(&manifest) else {
                return Err(not_ready(format!(
                    "the manifest of stage `{stage}` cannot be read: run it again"
                )));
            };
            let chosen_by_pattern = |file: &str| {
                let pattern = FilePattern::of_key(&inside.to_string_lossy())?;
                let below = Path::new(file).strip_prefix(pattern.base()).ok()?;
                Some(pattern.matches(&below.to_string_lossy()))
            };
            let whole = if pattern.is_some() { Path::new("") } else { &inside };
            if let Some(file) = changed_outputs(&stage_dir, &manifest, whole).next() {
                let what = format!("`{file}` is gone or has another size than stage `{stage}` left it with");
                return Err(not_ready(format!("{what}: run that stage again")));
            }
            let outputs = manifest.outputs.iter();
            let is_chosen = |file: &str| match &pattern {
                Some(_) => chosen_by_pattern(file) == Some(true),
                None => Path::new(file).starts_with(&inside),
            };
            let chosen: Vec<_> = outputs.filter(|(file, _)| is_chosen(file)).collect();
            if chosen.is_empty() {
                return Err(not_ready(format!("stage `{stage}` is finished but wrote no such file")));
            }
            return Ok(digest_bytes(serde_json::json!(chosen).to_string().as_bytes()));
        }
        if stage_dir.join(crate::out_dir::FINGERPRINT_FILE).exists() {
            return Err(not_ready(format!("stage `{stage}` has not finished in {}", work_dir.display())));
        }
        if !path.exists() && pattern.is_none() {
            let shown = path.display();
            return Err(not_ready(format!(
                "there is no {shown}, and no stage `{stage}` has finished that wrote it"
            )));
        }
    }
    if let Some(pattern) = &pattern {
        let files = pattern.files().map_err(StageError::io(&path))?;
        if files.is_empty() {
            return Err(not_ready(format!("no file matches {}", path.display())));
        }
        return digest_files(&files, pattern.base());
    }
    if !path.exists() {
        return Err(not_ready(format!("{} does not exist", path.display())));
    }
    digest_files(&files_below(&path)?, &path)
}

/// A path in the work directory, relative or absolute, as the directory it starts in (a stage's name, if a stage wrote it)
/// and the rest. One that goes up by `..` or through a link counts as foreign.
fn below(work_dir: &Path, path: &Path) -> Result<Option<(String, PathBuf)>, StageError> {
    let absolute = |path: &Path| std::path::absolute(path).map_err(StageError::io(path));
    let (root, path) = (absolute(work_dir)?, absolute(path)?);
    let Ok(relative) = path.strip_prefix(&root) else { return Ok(None) };
    if relative.components().any(|part| part == Component::ParentDir) {
        return Ok(None);
    }
    let mut parts = relative.components();
    let stage = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
    Ok(stage.map(|stage| (stage, parts.collect())))
}

/// Outputs below `inside` that are no longer as the manifest has them, by presence and size. Contents are not read: that
/// would take as long as some stages do.
pub(crate) fn changed_outputs<'a>(
    stage_dir: &'a Path,
    manifest: &'a Manifest,
    inside: &'a Path,
) -> impl Iterator<Item = &'a str> {
    let is_as_written = |file: &str| {
        let metadata = std::fs::metadata(stage_dir.join(file)).ok();
        let expected = manifest.output_bytes.get(file);
        metadata.is_some_and(|metadata| expected.is_none_or(|bytes| *bytes == metadata.len()))
    };
    let outputs = manifest.outputs.keys().map(String::as_str);
    outputs.filter(move |file| Path::new(file).starts_with(inside) && !is_as_written(file))
}

/// Digest of files below `base` that no stage of ours wrote.
fn digest_files(files: &[PathBuf], base: &Path) -> Result<String, StageError> {
    let line = |file: &PathBuf| -> Result<String, StageError> {
        let metadata = std::fs::metadata(file).map_err(StageError::io(file))?;
        let name = file.strip_prefix(base).unwrap_or(file).display().to_string();
        let is_tar = file.extension().is_some_and(|extension| extension == "tar");
        let max_hashed_bytes = if is_tar { MAX_HASHED_TAR_BYTES } else { MAX_HASHED_BYTES };
        let content = if metadata.len() <= max_hashed_bytes {
            digest_file(file).map_err(StageError::io(file))?
        } else {
            format!("{:?}", metadata.modified().map_err(StageError::io(file))?)
        };
        Ok(format!("{name} {} {content}", metadata.len()))
    };
    let lines = files.par_iter().map(line).collect::<Result<Vec<_>, _>>()?;
    Ok(digest_bytes(lines.join("\n").as_bytes()))
}

/// Digests of what a stage wrote; files whose digests are `known` are not read.
pub(crate) fn digest_outputs(
    out_dir: &Path,
    known: &BTreeMap<PathBuf, String>,
) -> Result<BTreeMap<String, String>, StageError> {
    let files: Vec<(String, PathBuf)> = output_files(out_dir)?.into_iter().collect();
    let digest = |path: &Path| match known.get(path) {
        Some(digest) => Ok(digest.clone()),
        None => digest_file(path).map_err(StageError::io(path)),
    };
    files.into_par_iter().map(|(name, path)| Ok((name, digest(&path)?))).collect()
}

/// Sizes of outputs.
pub(crate) fn output_bytes<'a>(
    out_dir: &Path,
    names: impl Iterator<Item = &'a String>,
) -> Result<BTreeMap<String, u64>, StageError> {
    let size = |name: &String| {
        let path = out_dir.join(name);
        Ok((name.clone(), std::fs::metadata(&path).map_err(StageError::io(&path))?.len()))
    };
    names.map(size).collect()
}

/// What a stage wrote, by name: every file but the runtime's own, temporary files, and `*.local.*` files, which speak of
/// one run on one machine (timings) and not of its result.
pub(crate) fn output_files(out_dir: &Path) -> Result<BTreeMap<String, PathBuf>, StageError> {
    let mut outputs = BTreeMap::new();
    for file in files_below(out_dir)? {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let at_root = file.parent() == Some(out_dir);
        let relative = file.strip_prefix(out_dir).expect("walked from there");
        let is_hidden = relative.components().any(|part| part.as_os_str().to_string_lossy().starts_with('.'));
        if is_hidden || name.contains(".local.") || (at_root && is_runtime_file(&name)) {
            continue;
        }
        outputs.insert(relative.display().to_string(), file);
    }
    Ok(outputs)
}

/// Whether the runtime, not the stage, writes this file at the root of an output directory.
fn is_runtime_file(name: &str) -> bool {
    name == crate::out_dir::FINGERPRINT_FILE
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
        let first = digest_inputs(Path::new("/nowhere"), &inputs, &Mirrors::new()).unwrap();
        assert_eq!(first, digest_inputs(Path::new("/nowhere"), &inputs, &Mirrors::new()).unwrap());
        write_atomic(&file, b"b").unwrap();
        assert_ne!(first, digest_inputs(Path::new("/nowhere"), &inputs, &Mirrors::new()).unwrap());
    }

    #[test]
    fn a_missing_input_says_which_stage_makes_it() {
        let dir = tempfile::tempdir().unwrap();
        let error = digest_inputs(dir.path(), &["mixer".into()], &Mirrors::new()).unwrap_err().to_string();
        assert!(error.contains("no stage `mixer` has finished"), "{error}");
        write_atomic(&dir.path().join("typo.csv"), b"").unwrap();
        assert!(digest_inputs(dir.path(), &["typo.csv".into()], &Mirrors::new()).is_ok());
    }

    /// A stage `mixer` that has finished with one shard.
    fn finished(dir: &Path) {
        let out_dir = dir.join("mixer");
        std::fs::create_dir(&out_dir).unwrap();
        write_atomic(&out_dir.join("00000.tar"), b"shard").unwrap();
        let outputs = digest_outputs(&out_dir, &BTreeMap::new()).unwrap();
        let manifest = Manifest {
            stage: "mixer".to_owned(),
            version: String::new(),
            commit: String::new(),
            fingerprint: String::new(),
            seed: 7,
            config: serde_json::Value::Null,
            inputs: BTreeMap::new(),
            output_bytes: output_bytes(&out_dir, outputs.keys()).unwrap(),
            outputs,
            seconds: 0.0,
            peak_rss_bytes: 0,
            report: serde_json::Value::Null,
        };
        manifest.write(&out_dir.join(Manifest::FILE_NAME)).unwrap();
    }

    #[test]
    fn a_stage_is_found_however_its_path_is_written() {
        let dir = tempfile::tempdir().unwrap();
        finished(dir.path());
        let digest = |input: PathBuf| digest_input(dir.path(), &input);
        let plain = digest("mixer".into()).unwrap();
        assert_eq!(digest("./mixer".into()).unwrap(), plain);
        assert_eq!(digest(dir.path().join("mixer")).unwrap(), plain);
        assert_eq!(digest("mixer/00000.tar".into()).unwrap(), plain);
        std::fs::remove_file(dir.path().join("mixer/manifest.json")).unwrap();
        write_atomic(&dir.path().join("mixer/fingerprint.json"), b"{}").unwrap();
        for input in [PathBuf::from("mixer"), "./mixer".into(), dir.path().join("mixer")] {
            let error = digest(input).unwrap_err().to_string();
            assert!(error.contains("stage `mixer` has not finished"), "{error}");
        }
    }

    #[test]
    fn outputs_that_shrank_or_vanished_are_no_inputs() {
        for damage in [Some(&b"sha"[..]), None] {
            let dir = tempfile::tempdir().unwrap();
            finished(dir.path());
            let shard = dir.path().join("mixer/00000.tar");
            match damage {
                Some(bytes) => write_atomic(&shard, bytes).unwrap(),
                None => std::fs::remove_file(&shard).unwrap(),
            }
            let error = digest_input(dir.path(), Path::new("mixer")).unwrap_err().to_string();
            assert!(error.contains("`00000.tar` is gone or has another size"), "{error}");
        }
    }

    #[test]
    fn local_and_hidden_files_are_not_outputs() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00000.tar", "timing.local.jsonl", ".lock", "report.json", "fingerprint.json"] {
            write_atomic(&dir.path().join(name), name.as_bytes()).unwrap();
        }
        let outputs = digest_outputs(dir.path(), &BTreeMap::new()).unwrap();
        assert_eq!(outputs.keys().collect::<Vec<_>>(), ["00000.tar"]);
        let known = BTreeMap::from([(dir.path().join("00000.tar"), "known".to_owned())]);
        assert_eq!(digest_outputs(dir.path(), &known).unwrap()["00000.tar"], "known");
    }
}
