//! The table `[clip-filter]`.

use crate::METRIC;
use oqvl_stage::{ConfigError, StageConfig};
use oqvl_text_prep::ClipTextStyle;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What to score and with what: either `model` or `models`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClipFilterConfig {
    /// Directory of shards.
    pub shards: PathBuf,
    /// Checkpoint directory of the one pair of towers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<PathBuf>,
    /// How the captions become tokens for `model`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_style: Option<ClipTextStyle>,
    /// Several pairs of towers, which score every image in one pass.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<NamedModel>,
}

/// One of several pairs of towers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedModel {
    /// What it is called in its column, `clip_{name}_score`.
    pub name: String,
    /// Checkpoint directory.
    pub model: PathBuf,
    /// How captions become tokens. Where it is not said, as the network was trained: open_clip's way if the directory has
    /// an `open_clip_config.json`, openai/CLIP's if not. Only for CLIP: SigLIP has one way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text_style: Option<ClipTextStyle>,
}

/// A model that is asked for, and the column of its scores.
#[derive(Debug)]
pub(crate) struct Request<'a> {
    pub(crate) column: String,
    pub(crate) model: &'a PathBuf,
    pub(crate) text_style: Option<ClipTextStyle>,
}

impl ClipFilterConfig {
    /// One model.
    #[must_use]
    pub fn one(shards: impl Into<PathBuf>, model: impl Into<PathBuf>) -> Self {
        Self { shards: shards.into(), model: Some(model.into()), text_style: None, models: Vec::new() }
    }

    /// All models, in the order of their columns.
    pub(crate) fn requests(&self) -> Vec<Request<'_>> {
        let one = self.model.iter().map(|model| Request {
            column: METRIC.to_owned(),
            model,
            text_style: self.text_style,
        });
        let several = self.models.iter().map(|it| Request {
            column: format!("clip_{}_score", it.name),
            model: &it.model,
            text_style: it.text_style,
        });
        one.chain(several).collect()
    }
}

impl StageConfig for ClipFilterConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        match (&self.model, self.models.as_slice()) {
            (None, []) => {
                return Err(ConfigError::new("model", "is missing; or give several as `[[models]]`"));
            }
            (Some(_), [_, ..]) => {
                return Err(ConfigError::new(
                    "models",
                    "must not be there beside `model`, which is for a single one",
                ));
            }
            (None, [_, ..]) if self.text_style.is_some() => {
                return Err(ConfigError::new("text_style", "belongs into the tables of `models`"));
            }
            _ => {}
        }
        for (at, NamedModel { name, .. }) in self.models.iter().enumerate() {
            let key = format!("models.{at}.name");
            let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if name.is_empty() || !name.chars().all(is_plain) {
                let message = format!("must be small letters, digits and `_`, got `{name}`");
                return Err(ConfigError::new(key, message));
            }
            if self.models[..at].iter().any(|other| other.name == *name) {
                return Err(ConfigError::new(key, format!("`{name}` is there twice")));
            }
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let models = self.requests().into_iter().map(|request| request.model.clone());
        std::iter::once(self.shards.clone()).chain(models).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_stage::{ConfigFile, Stage as _};

    fn read(keys: &str) -> Result<ClipFilterConfig, String> {
        let file = ConfigFile::parse(&format!("[clip-filter]\nshards = \"s\"\n{keys}"));
        let config = file.and_then(|file| file.stage::<ClipFilterConfig>(crate::ClipFilter::NAME));
        let checked = config.and_then(|config| config.validate().map(|()| config));
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn one_model_keeps_the_column_and_several_have_their_own() {
        let columns = |keys: &str| -> Vec<String> {
            read(keys).unwrap().requests().into_iter().map(|request| request.column).collect()
        };
        assert_eq!(columns("model = \"m\"\ntext_style = \"hugging-face\""), [METRIC]);
        let two = "[[clip-filter.models]]\nname = \"b32\"\nmodel = \"m\"\n[[clip-filter.models]]\nname = \"l14\"\nmodel = \"n\"";
        assert_eq!(columns(two), ["clip_b32_score", "clip_l14_score"]);
        assert_eq!(read(two).unwrap().inputs().len(), 3);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let named = |name: &str| format!("[[clip-filter.models]]\nname = \"{name}\"\nmodel = \"m\"\n");
        for (keys, expected) in [
            (String::new(), "model: is missing"),
            (format!("model = \"m\"\n{}", named("a")), "models: must not be there beside `model`"),
            (format!("text_style = \"open-clip\"\n{}", named("a")), "text_style: belongs into"),
            (named("B 32"), "models.0.name: must be small letters, digits and `_`, got `B 32`"),
            (named("a") + &named("a"), "models.1.name: `a` is there twice"),
            ("model = \"m\"\ntext_style = \"openclip\"".to_owned(), "text_style: must be one of"),
        ] {
            let error = read(&keys).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
