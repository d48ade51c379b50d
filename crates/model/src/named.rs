//! Vision-language models by names: which folders one is made of, and which of their files are read.

use crate::ModelError;
use crate::checkpoint::{Companions, reference, vlm_shape};
use crate::config::ReferenceConfig;
use oqvl_shard_io::WEIGHT_FILES;
use std::fmt;
use std::path::PathBuf;

/// A part of a vision-language model that is a model itself, and may lie in a folder of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backbone {
    /// [`Companions::vision_tower`].
    VisionTower,
    /// [`Companions::language_model`].
    LanguageModel,
}

impl Backbone {
    /// What it is called: `vision tower` or `language model`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::VisionTower => "vision tower",
            Self::LanguageModel => "language model",
        }
    }
}

impl fmt::Display for Backbone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A part that a checkpoint of the reference leaves to another model, and that nobody has named: it is taken from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DefaultBackbone<'a> {
    /// The checkpoint, as [`VlmNames::model`].
    pub model: &'a str,
    /// The part.
    pub backbone: Backbone,
    /// What the reference calls it.
    pub id: &'a str,
    /// The model of the Hugging Face hub that it is.
    pub hub_id: &'static str,
}

impl fmt::Display for DefaultBackbone<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, backbone, id, hub_id } = self;
        let what = match backbone {
            Backbone::VisionTower => "config and weights",
            Backbone::LanguageModel => "config and tokenizer",
        };
        write!(f, "{model} leaves {what} of its {backbone} to {hub_id} ({id})")
    }
}

/// Names of the folders that [`read_vlm`](crate::read_vlm) reads. What a name is, besides a path, is for the caller to say.
#[derive(Debug, Clone, Copy)]
pub struct VlmNames<'a> {
    /// The checkpoint.
    pub model: &'a str,
    /// [`Companions::vision_tower`].
    pub vision_tower: Option<&'a str>,
    /// [`Companions::language_model`].
    pub language_model: Option<&'a str>,
}

/// The folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VlmFolders {
    /// The checkpoint.
    pub model: PathBuf,
    /// [`Companions::vision_tower`].
    pub vision_tower: Option<PathBuf>,
    /// [`Companions::language_model`].
    pub language_model: Option<PathBuf>,
}

impl VlmFolders {
    /// The folders that complete the checkpoint.
    #[must_use]
    pub fn companions(&self) -> Companions<'_> {
        Companions {
            vision_tower: self.vision_tower.as_deref(),
            language_model: self.language_model.as_deref(),
        }
    }
}

impl VlmNames<'_> {
    /// Finds the folders. `find` makes one of a name, with at least those of its files that it is asked for by a predicate on
    /// their names.
    ///
    /// Configs come first and weights last, and only those that are read: a model that cannot be computed, or that wants for
    /// a companion, is an error before gigabytes of it are here. A checkpoint of the reference that is given no companions
    /// takes those of the release by their ids on the Hugging Face hub; `tell` is told of each.
    ///
    /// # Errors
    /// What `find` says; or if a config cannot be read or computed, or a companion is needed that nobody knows.
    pub fn find<E: From<ModelError>>(
        &self,
        mut find: impl FnMut(&str, &dyn Fn(&str) -> bool) -> Result<PathBuf, E>,
        mut tell: impl FnMut(&DefaultBackbone<'_>),
    ) -> Result<VlmFolders, E> {
        // Beside weights lies what is small: configs and tokenizers.
        let is_small = |name: &str| !WEIGHT_FILES.contains(&name);
        let model = find(self.model, &is_small)?;
        let reference = reference(&model)?;
        let mut default = |backbone: Backbone| {
            let reference = reference.as_ref()?;
            let id = match backbone {
                Backbone::VisionTower => &reference.vision_backbone,
                Backbone::LanguageModel => &reference.llm_backbone,
            };
            let hub_id = ReferenceConfig::hub_id(id)?;
            tell(&DefaultBackbone { model: self.model, backbone, id, hub_id });
            Some(hub_id)
        };
        let language_model = self.language_model.or_else(|| default(Backbone::LanguageModel));
        let vision_tower = self.vision_tower.or_else(|| default(Backbone::VisionTower));
        let mut folders = VlmFolders {
            model,
            vision_tower: vision_tower.map(|name| find(name, &is_small)).transpose()?,
            language_model: language_model.map(|name| find(name, &is_small)).transpose()?,
        };
        vlm_shape(&folders.model, &folders.companions())?;
        folders.vision_tower = vision_tower.map(|name| find(name, &|_| true)).transpose()?;
        folders.model = find(self.model, &|_| true)?;
        Ok(folders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_atomic;
    use serde_json::json;
    use std::path::Path;

    /// Folders with nothing but configs: of the release, of its companions, and of a reference that nobody knows.
    fn world(dir: &Path) {
        let write = |name: &str, config: serde_json::Value| {
            let folder = dir.join(name);
            std::fs::create_dir_all(&folder).unwrap();
            write_atomic(&folder.join("config.json"), config.to_string().as_bytes()).unwrap();
        };
        let reference = |llm: &str| {
            json!({"model": {
                "arch_specifier": "full-align+729-avgpool", "vision_backbone_id": "siglip-vit-so400m-384px",
                "llm_backbone_id": llm, "image_resize_strategy": "resize-naive",
            }})
        };
        write("team/released", reference("qwen2.5-1.5b-instruct"));
        write("team/unknown", reference("qwen9"));
        write("Qwen/Qwen2.5-1.5B-Instruct", json!(ReferenceConfig::released_language_model()));
        write("timm/ViT-SO400M-14-SigLIP-384", json!(ReferenceConfig::released_tower()));
    }

    /// What is found, or the error; and what was looked for, with its weights or without.
    fn find(model: &str, language_model: Option<&str>) -> (Result<VlmFolders, String>, Vec<String>, String) {
        let dir = tempfile::tempdir().unwrap();
        world(dir.path());
        let names = VlmNames { model, vision_tower: None, language_model };
        let (mut asked, mut told) = (Vec::new(), String::new());
        let found = names.find::<ModelError>(
            |name, wants| {
                assert!(wants("config.json") && wants("tokenizer.json") && wants("merges.txt"));
                let weights = wants("model.safetensors") && wants("checkpoints/latest-checkpoint.pt");
                asked.push(format!("{name}{}", if weights { " whole" } else { "" }));
                Ok(dir.path().join(name))
            },
            |default| told += &format!("{default}\n"),
        );
        (found.map_err(|error| error.to_string()), asked, told)
    }

    #[test]
    fn the_release_takes_what_it_leaves_to_others_from_the_hub_and_its_weights_last() {
        let (found, asked, told) = find("team/released", None);
        assert!(found.unwrap().model.ends_with("team/released"));
        let (tower, llm) = ("timm/ViT-SO400M-14-SigLIP-384", "Qwen/Qwen2.5-1.5B-Instruct");
        let whole = [format!("{tower} whole"), "team/released whole".to_owned()];
        assert_eq!(asked, [&["team/released", tower, llm].map(str::to_owned)[..], &whole].concat());
        let expected = [
            format!(
                "team/released leaves config and tokenizer of its language model to {llm} (qwen2.5-1.5b-instruct)\n"
            ),
            format!(
                "team/released leaves config and weights of its vision tower to {tower} (siglip-vit-so400m-384px)\n"
            ),
        ];
        assert_eq!(told, expected.concat());
    }

    #[test]
    fn what_nobody_knows_is_asked_for_before_weights_come() {
        let (found, asked, _) = find("team/unknown", None);
        let error = found.unwrap_err();
        assert!(error.contains("the folder of its language model (qwen9)"), "{error}");
        assert_eq!(asked, ["team/unknown", "timm/ViT-SO400M-14-SigLIP-384"]);
        let (found, asked, told) = find("team/unknown", Some("Qwen/Qwen2.5-1.5B-Instruct"));
        assert!(found.is_ok() && !told.contains("Qwen"), "{told}");
        assert!(!asked.contains(&"Qwen/Qwen2.5-1.5B-Instruct whole".to_owned()), "{asked:?}");
    }
}
