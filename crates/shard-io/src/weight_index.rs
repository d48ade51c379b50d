//! Indices of shards: in which file of a checkpoint a tensor is.

use crate::UniqueMap;
use crate::error::printable;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Component, Path};

/// How the name of an index ends.
const ENDING: &str = ".index.json";
/// Longest index that is read.
const MAX_BYTES: u64 = 64 << 20;

/// The `….index.json` beside weights that are in several files.
///
/// Source: `save_torch_state_dict` of `huggingface_hub`; of its keys only `weight_map` says where a tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightIndex {
    /// The name of the file, in the folder of the index, by the name of the tensor.
    pub files: BTreeMap<String, String>,
}

/// Why an index was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightIndexError {
    /// The file cannot be read to its end.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// No model has so many tensors.
    #[error("has {num_bytes} bytes, more than {}", MAX_BYTES)]
    TooLong {
        /// Its length.
        num_bytes: u64,
    },
    /// It is no index, or has a tensor twice.
    #[error("cannot be read: {problem}")]
    Malformed {
        /// What is wrong with it, as a terminal survives it.
        problem: String,
    },
    /// It leads out of its folder.
    #[error("{}", listed(names))]
    Outside {
        /// What it has instead of names of files, as a terminal survives it.
        names: Vec<String>,
    },
}

fn listed(names: &[String]) -> String {
    let each = names.iter().map(|name| format!("`{name}` is not the name of a file in the folder"));
    each.collect::<Vec<_>>().join("; ")
}

#[derive(Deserialize)]
struct Keys {
    weight_map: UniqueMap<String>,
}

impl WeightIndex {
    /// Whether a file with this name is an index.
    #[must_use]
    pub fn is_one(name: &str) -> bool {
        name.ends_with(ENDING)
    }

    /// Reads an index, which may be damaged or hostile.
    ///
    /// # Errors
    /// If it cannot be read, is too long, lists a tensor twice, or a file that is not in its folder.
    pub fn read(path: &Path) -> Result<Self, WeightIndexError> {
        let num_bytes = std::fs::metadata(path)?.len();
        if num_bytes > MAX_BYTES {
            return Err(WeightIndexError::TooLong { num_bytes });
        }
        let Keys { weight_map } = serde_json::from_slice(&std::fs::read(path)?)
            .map_err(|error| WeightIndexError::Malformed { problem: printable(&error.to_string()) })?;
        let index = Self { files: weight_map.0 };
        let outside = index.file_names().into_iter().filter(|name| !is_plain_name(name));
        let names: Vec<String> = outside.map(printable).collect();
        if names.is_empty() { Ok(index) } else { Err(WeightIndexError::Outside { names }) }
    }

    /// The files, each once.
    #[must_use]
    pub fn file_names(&self) -> BTreeSet<&str> {
        self.files.values().map(String::as_str).collect()
    }
}

fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first_is_all = matches!(components.next(), Some(Component::Normal(first)) if first == name);
    // The backslash separates folders on Windows; folders of weights travel.
    first_is_all && !name.contains('\\')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_that_mean_harm_are_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors.index.json");
        let read = |text: &str| {
            crate::write_atomic(&path, text.as_bytes()).unwrap();
            WeightIndex::read(&path)
        };
        assert!(matches!(WeightIndex::read(&path), Err(WeightIndexError::Io(_))));
        let index = read(r#"{"metadata": {}, "weight_map": {"x": "b", "y": "a", "z": "b"}}"#).unwrap();
        assert_eq!((index.files.len(), index.file_names()), (3, BTreeSet::from(["a", "b"])));
        for (text, problem) in [
            (r#"{"weight_map": {"x": "a", "x": "b"}}"#, "cannot be read: `x` is listed twice"),
            ("{}", "cannot be read: missing field `weight_map`"),
            (r#"{"weight_map": {"x": "../d"}}"#, "`../d` is not the name of a file in the folder"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.starts_with(problem), "{error}");
        }
        std::fs::File::create(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        let error = WeightIndex::read(&path).unwrap_err().to_string();
        assert_eq!(error, "has 67108865 bytes, more than 67108864");
    }
}
