//! Reading weights from wherever people have them: safetensors, alone or in shards, and files of `torch.save`.

mod elements;
mod error;
mod names;
mod pickle;
mod safetensors_file;
mod torch_zip;

pub use error::WeightsError;
pub(crate) use names::timm_vision;
pub use names::{Network, drop_tied_head};

use crate::ModelError;
use crate::checkpoint::{ConfigFile, config_file};
use candle_core::{Device, Tensor};
use error::shown;
use oqvl_shard_io::{WEIGHT_FILES, WeightIndex, WeightIndexError, weight_file_names};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Weights of a checkpoint of ours, and of most others.
pub const WEIGHTS_FILE: &str = WEIGHT_FILES[0];

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
    let index = read_index(&found)?;
    let shards = index.file_names().into_iter().map(|shard| found.with_file_name(shard));
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
    WeightIndex::is_one(&path.to_string_lossy())
}

/// The file that stands for a folder, or the file itself.
fn find(path: &Path) -> Result<PathBuf, ModelError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let is_of_open_clip = matches!(config_file(path), ConfigFile::OpenClip(_));
    let found = weight_file_names(is_of_open_clip).map(|name| path.join(name)).find(|file| file.is_file());
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

/// Names of tensors and of the files they are in.
fn read_index(path: &Path) -> Result<WeightIndex, ModelError> {
    WeightIndex::read(path).map_err(|error| match error {
        WeightIndexError::Io(source) => failed(path, source.into()),
        source => failed(path, WeightsError::BadIndex { source }),
    })
}

fn read_shards(index_path: &Path, device: &Device) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let index = read_index(index_path)?.files;
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
