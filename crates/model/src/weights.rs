//! Reading weights from wherever people have them: safetensors, alone or in shards, and files of `torch.save`.

mod elements;
mod error;
mod names;
mod pickle;
mod safetensors_file;
mod torch_zip;
mod unique_map;

pub use error::WeightsError;
pub(crate) use names::timm_vision;
pub use names::{Network, drop_tied_head};

use crate::ModelError;
use candle_core::{Device, Tensor};
use error::shown;
use oqvl_shard_io::WEIGHT_FILES;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};
use unique_map::UniqueMap;

/// Weights of a checkpoint of ours, and of most others.
pub const WEIGHTS_FILE: &str = WEIGHT_FILES[0];
/// How the name of a list of shards ends.
const INDEX_ENDING: &str = ".index.json";
/// Longest list of shards that is read.
const MAX_INDEX_BYTES: u64 = 1 << 26;

/// Reads all tensors of a folder or file: floats as f32, whatever width they have in the file, integers and bools as
/// i64.
///
/// A folder holds one file, or shards and their `….index.json`. Files end in `.safetensors`, or, if they are of
/// `torch.save`, in `.bin`, `.pt`, `.pth` or `.ckpt`; in those the keys of nested dicts are joined by dots. No pickle
/// is ever run: what is not a tensor, a container or a plain value is an error.
///
/// Files may be damaged or hostile: memory is a small multiple of what the files hold, whatever they claim.
///
/// # Errors
/// If nothing known is there, a file is damaged or holds what weights do not need, or an index and its shards
/// disagree; every disagreement is listed.
pub fn read_weights(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let found = find(path)?;
    if is_index(&found) { read_shards(&found, device) } else { read_file(&found, device) }
}

/// The files that [`read_weights`] reads: the index first if there is one.
///
/// # Errors
/// If nothing known is there, or the index cannot be read.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let found = find(path)?;
    if !is_index(&found) {
        return Ok(vec![found]);
    }
    let shards: BTreeSet<String> = read_index(&found)?.into_values().collect();
    let shards = shards.into_iter().map(|shard| found.with_file_name(shard));
    Ok(std::iter::once(found.clone()).chain(shards).collect())
}

/// Reads all tensors of a safetensors file, as [`read_weights`] does.
///
/// # Errors
/// If the file cannot be read or is not safetensors.
pub fn read_safetensors(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    safetensors_file::read(path, device)
        .map_err(|source| ModelError::Read { path: path.to_path_buf(), source })
}

fn failed(path: &Path, error: WeightsError) -> ModelError {
    ModelError::Read { path: path.to_path_buf(), source: Box::new(error) }
}

fn is_index(path: &Path) -> bool {
    path.to_string_lossy().ends_with(INDEX_ENDING)
}

/// The file that stands for a folder, or the file itself.
fn find(path: &Path) -> Result<PathBuf, ModelError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let found = WEIGHT_FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
    found.ok_or_else(|| {
        failed(path, WeightsError::NoFile { looked_for: WEIGHT_FILES.map(str::to_owned).to_vec() })
    })
}

fn read_file(path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    match path.extension().and_then(|ending| ending.to_str()) {
        Some("safetensors") => read_safetensors(path, device),
        Some("bin" | "pt" | "pth" | "ckpt") => {
            let file = File::open(path).map_err(|error| failed(path, error.into()))?;
            torch_zip::read(file, device)
                .map_err(|source| ModelError::Read { path: path.to_path_buf(), source })
        }
        _ => Err(failed(path, WeightsError::UnknownKind)),
    }
}

/// The part of an index that matters.
#[derive(Deserialize)]
struct Index {
    weight_map: UniqueMap<String>,
}

/// Names of tensors and of the files they are in.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ModelError> {
    let mut text = Vec::new();
    let file = File::open(path).map_err(|error| failed(path, error.into()))?;
    file.take(MAX_INDEX_BYTES).read_to_end(&mut text).map_err(|error| failed(path, error.into()))?;
    let wrong = |problems| failed(path, WeightsError::Index { problems });
    let index: Index =
        serde_json::from_slice(&text).map_err(|error| wrong(vec![shown(&error.to_string())]))?;
    let files: BTreeSet<&String> = index.weight_map.0.values().collect();
    // A list must not lead to files outside of its folder.
    let outside = files.into_iter().filter(|file| !is_plain_name(file));
    let problems: Vec<String> =
        outside.map(|file| format!("`{}` is not the name of a file in the folder", shown(file))).collect();
    if problems.is_empty() { Ok(index.weight_map.0) } else { Err(wrong(problems)) }
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first_is_all = matches!(components.next(), Some(Component::Normal(first)) if first == name);
    // The backslash separates folders on Windows; folders of weights travel.
    first_is_all && !name.contains('\\')
}

fn read_shards(index_path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let index = read_index(index_path)?;
    let mut listed: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (name, shard) in &index {
        listed.entry(shard).or_default().insert(name);
    }
    let mut problems = Vec::new();
    for (shard, names) in &listed {
        if !index_path.with_file_name(shard).is_file() {
            problems.push(format!("`{}` is missing ({} tensors)", shown(shard), names.len()));
        }
    }
    let mut tensors = BTreeMap::new();
    // What is missing is known before gigabytes are read.
    if problems.is_empty() {
        for (shard, names) in &listed {
            let mut read = read_file(&index_path.with_file_name(shard), device)?;
            for name in names {
                match read.remove(*name) {
                    Some(tensor) => drop(tensors.insert((*name).to_owned(), tensor)),
                    None => problems.push(format!("`{}` is not in `{}`", shown(name), shown(shard))),
                }
            }
            for name in read.keys() {
                let elsewhere = match index.get(name) {
                    Some(other) => format!("listed for `{}`", shown(other)),
                    None => "not listed".to_owned(),
                };
                problems.push(format!("`{}` is in `{}`, {elsewhere}", shown(name), shown(shard)));
            }
        }
    }
    if problems.is_empty() { Ok(tensors) } else { Err(failed(index_path, WeightsError::Index { problems })) }
}
