//! Which files of a model's folder make a checkpoint.
//!
//! Repositories of models hold the same weights several times over, for one framework and another, and pictures and
//! logs besides. What is wanted of a folder is one set of weights, in the order in which they are looked for, and the
//! small files beside it that say how to use them.

use super::{RemoteFile, StoreError};
use crate::{WeightIndex, WeightIndexError};
use std::collections::BTreeMap;
use std::path::Path;

/// What weights are called in a folder, in the order they are looked for: transformers' files in its order,
/// open_clip's, the reference's.
pub const WEIGHT_FILES: [&str; 7] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
    "checkpoints/latest-checkpoint.pt",
];
/// open_clip's of them.
const OPEN_CLIP_WEIGHT_FILES: std::ops::Range<usize> = 4..6;
/// open_clip's config, and Hugging Face's word on images, without which there is no CLIP of Hugging Face's.
const OPEN_CLIP_CONFIG_FILE: &str = "open_clip_config.json";
const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// [`WEIGHT_FILES`] in the order in which they are looked for in a folder: open_clip's come first in one of open_clip's, where
/// the others are of a part of the network in timm's terms.
pub fn weight_file_names(is_of_open_clip: bool) -> impl Iterator<Item = &'static str> {
    let first = if is_of_open_clip { OPEN_CLIP_WEIGHT_FILES } else { 0..0 };
    let rest = (0..WEIGHT_FILES.len()).filter({
        let first = first.clone();
        move |at| !first.contains(at)
    });
    first.chain(rest).map(|at| WEIGHT_FILES[at])
}

/// How the names of the small files end: configs, tokenizers and chat templates.
const SMALL_ENDINGS: [&str; 4] = [".json", ".txt", ".jinja", ".yaml"];

/// The files of a folder that make a checkpoint.
#[derive(Debug, Default)]
pub(super) struct CheckpointFiles {
    /// What comes first: the small files, and the index of the shards if there is one.
    pub(super) first: Vec<RemoteFile>,
    /// The index of the shards, which is among the first.
    pub(super) index: Option<RemoteFile>,
    /// The weights: one file, or the shards that the index lists, once it is read.
    pub(super) weights: Vec<RemoteFile>,
    /// What the shards are among.
    others: BTreeMap<String, RemoteFile>,
}

impl CheckpointFiles {
    /// Chooses among the files of a folder.
    pub(super) fn choose(files: Vec<RemoteFile>) -> CheckpointFiles {
        let mut others: BTreeMap<String, RemoteFile> =
            files.into_iter().map(|file| (file.name.clone(), file)).collect();
        let is_of_open_clip =
            others.contains_key(OPEN_CLIP_CONFIG_FILE) && !others.contains_key(PREPROCESSOR_FILE);
        let is_small = |name: &str| {
            !name.contains('/')
                && !WeightIndex::is_one(name)
                && SMALL_ENDINGS.iter().any(|ending| name.ends_with(ending))
        };
        let small: Vec<String> = others.keys().filter(|name| is_small(name)).cloned().collect();
        let mut chosen = CheckpointFiles {
            first: small.iter().filter_map(|name| others.remove(name)).collect(),
            ..CheckpointFiles::default()
        };
        if let Some(found) = weight_file_names(is_of_open_clip).find_map(|name| others.remove(name)) {
            if WeightIndex::is_one(&found.name) {
                chosen.first.push(found.clone());
                chosen.index = Some(found);
            } else {
                chosen.weights.push(found);
            }
        }
        chosen.others = others;
        chosen
    }

    /// Files that were asked for by their names.
    pub(super) fn named(files: Vec<RemoteFile>) -> CheckpointFiles {
        CheckpointFiles { weights: files, ..CheckpointFiles::default() }
    }

    /// All that are chosen so far.
    pub(super) fn all(&self) -> impl Iterator<Item = &RemoteFile> {
        self.first.iter().chain(&self.weights)
    }

    /// Whether there are weights at all.
    pub(super) fn has_weights(&self) -> bool {
        self.index.is_some() || !self.weights.is_empty()
    }

    /// Reads the index, now that it is here, and chooses the shards that it lists.
    ///
    /// # Errors
    /// If the index cannot be read, or as `absent` says of a shard that the folder does not have.
    pub(super) fn choose_shards(
        &mut self,
        index: &Path,
        uri: &str,
        absent: impl Fn(&str) -> StoreError,
    ) -> Result<(), StoreError> {
        let read = WeightIndex::read(index).map_err(|error| match error {
            WeightIndexError::Io(source) => StoreError::io(index)(source),
            error => StoreError::NoCheckpoint { uri: uri.to_owned(), problem: format!("its index: {error}") },
        })?;
        for shard in read.file_names() {
            let file = self.others.remove(shard);
            self.weights.push(file.ok_or_else(|| absent(&crate::error::printable(shard)))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(names: &[&str]) -> CheckpointFiles {
        let file = |name: &&str| RemoteFile {
            name: (*name).to_owned(),
            key: (*name).to_owned(),
            num_bytes: Some(1),
            tag: None,
            content: None,
        };
        CheckpointFiles::choose(names.iter().map(file).collect())
    }

    fn names(files: &[RemoteFile]) -> Vec<&str> {
        files.iter().map(|file| file.name.as_str()).collect()
    }

    /// What lies in `openai/clip-vit-base-patch32`, in `laion/CLIP-ViT-B-32-laion2B-s34B-b79K` and in
    /// `weizhiwang/Open-Qwen2VL`.
    #[test]
    fn one_set_of_weights_and_what_says_how_to_use_them() {
        let openai = choose(&[
            ".gitattributes",
            "README.md",
            "config.json",
            "flax_model.msgpack",
            "merges.txt",
            "model.safetensors",
            "pytorch_model.bin",
            "tf_model.h5",
            "tokenizer.json",
            "vocab.json",
        ]);
        assert_eq!(names(&openai.first), ["config.json", "merges.txt", "tokenizer.json", "vocab.json"]);
        assert_eq!(names(&openai.weights), ["model.safetensors"]);
        // `timm/vit_base_patch32_clip_224.openai`: the tower alone for timm, and the pair for open_clip.
        let both =
            ["config.json", "open_clip_config.json", "open_clip_model.safetensors", "pytorch_model.bin"];
        assert_eq!(names(&choose(&both).weights), ["open_clip_model.safetensors"]);
        let open_clip = choose(&[
            "open_clip_config.json",
            "open_clip_pytorch_model.bin",
            "open_clip_model.safetensors",
            "img/a.json",
        ]);
        assert_eq!(names(&open_clip.first), ["open_clip_config.json"]);
        assert_eq!(names(&open_clip.weights), ["open_clip_model.safetensors"]);
        let released = choose(&["config.json", "config.yaml", "checkpoints/latest-checkpoint.pt"]);
        assert_eq!(names(&released.first), ["config.json", "config.yaml"]);
        assert_eq!(names(&released.weights), ["checkpoints/latest-checkpoint.pt"]);
        assert!(!choose(&["config.json", "other.safetensors"]).has_weights());
    }

    #[test]
    fn shards_are_those_of_the_index() {
        let dir = tempfile::tempdir().unwrap();
        let index = dir.path().join("model.safetensors.index.json");
        let listed = [
            "config.json",
            "model.safetensors.index.json",
            "a.safetensors",
            "b.safetensors",
            "c.safetensors",
        ];
        let write = |text: &str| crate::write_atomic(&index, text.as_bytes()).unwrap();
        write(
            r#"{"metadata": {}, "weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "b.safetensors"}}"#,
        );
        let mut chosen = choose(&listed);
        assert!(chosen.has_weights() && chosen.weights.is_empty());
        assert_eq!(names(&chosen.first), ["config.json", "model.safetensors.index.json"]);
        let absent = |shard: &str| StoreError::NotFound { uri: shard.to_owned() };
        chosen.choose_shards(&index, "hf://o/n", absent).unwrap();
        assert_eq!(names(&chosen.weights), ["a.safetensors", "b.safetensors"]);
        for (text, problem) in [
            (r#"{"weight_map": {"x": "d.safetensors"}}"#, "d.safetensors: there is no such file"),
            (
                r#"{"weight_map": {"x": "../d.safetensors"}}"#,
                "hf://o/n: no checkpoint: its index: `../d.safetensors` is not the name of a file",
            ),
            ("{}", "hf://o/n: no checkpoint: its index: cannot be read: missing field"),
        ] {
            write(text);
            let error = choose(&listed).choose_shards(&index, "hf://o/n", absent).unwrap_err().to_string();
            assert!(error.contains(problem), "{error}");
        }
    }
}
