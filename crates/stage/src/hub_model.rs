//! Models by their names: a path here, or the id of a model on the Hugging Face hub.

use crate::error::StageError;
use crate::process_env;
use crate::progress::Progress;
use crate::stores::StoresConfig;
use crate::voice::tell;
use oqvl_shard_io::{MirrorOptions, Store, StoreError, StoreSettings, StoreUri};
use std::cell::OnceCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Bytes of the unit in which progress is told.
const MEGABYTE: u64 = 1_000_000;

/// Finds models by their names, for programs that are no stages; a stage's inputs are resolved for it.
///
/// Says on standard error what it asks the hub for before it does, once a name, and shows progress as stages do. Ctrl-C ends
/// the program; what has come of a download is gone on with by the next one.
#[derive(Debug)]
pub struct ModelFinder {
    settings: StoreSettings,
    max_bytes: u64,
    /// Names that the hub has been asked for.
    asked: BTreeSet<String>,
}

impl ModelFinder {
    /// Reads the hub's variables (`HF_ENDPOINT`, `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`) from the
    /// environment.
    #[must_use]
    pub fn from_env() -> Self {
        let config = StoresConfig::default();
        Self {
            settings: config.settings(&process_env::stores()),
            max_bytes: config.max_mirror_bytes(),
            asked: BTreeSet::new(),
        }
    }

    /// The files of a model: the path that `model` is, or where those of the hub's model `owner/name[@revision]`, or
    /// `hf://owner/name[@revision][/path]`, are in the cache of the hub's own tools, after what was missing there has come.
    /// Of the hub's files those come that make a checkpoint and that `wants`, asked by name, says yes to.
    ///
    /// # Errors
    /// [`StageError::NoModel`] if the text can be neither; [`StageError::Model`] if the model is not there, may not be read,
    /// or cannot be had; [`StageError::Config`] if a setting of the hub cannot be.
    pub fn find(&mut self, model: &str, wants: &dyn Fn(&str) -> bool) -> Result<PathBuf, StageError> {
        let is_address = model.contains("://");
        if !is_address && Path::new(model).exists() {
            return Ok(PathBuf::from(model));
        }
        let uri = if is_address { StoreUri::parse(model).ok() } else { hub_id(model) };
        let uri = uri
            .filter(StoreUri::is_hub_model)
            .ok_or_else(|| StageError::NoModel { model: model.to_owned() })?;
        if self.asked.insert(model.to_owned()) {
            tell(&self.question(model, is_address));
        }
        let store = Store::new(self.settings.clone()).map_err(StageError::from_store)?;
        let options = MirrorOptions {
            // Models have a place of their own.
            root: Path::new(""),
            max_bytes: self.max_bytes,
            wants,
            is_stopped: &|| false,
            progress: &shown_progress(),
        };
        let mirror = store.mirror(&uri, &options).map_err(|error| match error {
            StoreError::Interrupted | StoreError::Uri { .. } | StoreError::Setting { .. } => {
                StageError::from_store(error)
            }
            source => StageError::Model { model: model.to_owned(), is_address, source },
        })?;
        Ok(mirror.path)
    }

    /// What is about to be asked: a path that is mistyped may look like the hub's id.
    fn question(&self, model: &str, is_address: bool) -> String {
        let endpoint = &self.settings.hub.endpoint;
        let host = endpoint.split_once("://").map_or(endpoint.as_str(), |(_, host)| host);
        let asking = match self.settings.offline {
            true => format!("looking in the hub's cache for the model {model}"),
            false => format!("asking {} for the model {model}", host.trim_end_matches('/')),
        };
        if is_address { asking } else { format!("no folder {model} here; {asking}") }
    }
}

/// The address of a model of the hub by its id. A path that is not there is not somebody else's model: those have one slash.
pub(crate) fn hub_id(text: &str) -> Option<StoreUri> {
    let num_slashes = text.split('@').next().unwrap_or_default().matches('/').count();
    let uri = (num_slashes == 1).then(|| StoreUri::parse(&format!("hf://{text}")).ok())??;
    uri.is_hub_model().then_some(uri)
}

/// Shows how far a model is, from the first byte on.
pub(crate) fn shown_progress() -> impl Fn(u64, u64) {
    let shown = OnceCell::new();
    move |num_bytes, total| {
        let (progress, last) = shown.get_or_init(|| {
            (Progress::new("model", total.div_ceil(MEGABYTE), "MB"), std::cell::Cell::new(0))
        });
        let now = num_bytes / MEGABYTE;
        progress.inc(now.saturating_sub(last.replace(now)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_names_both_readings() {
        let mut finder =
            ModelFinder { settings: StoreSettings::default(), max_bytes: 1, asked: BTreeSet::new() };
        let expected = "no folder team/typo here; asking huggingface.co for the model team/typo";
        assert_eq!(finder.question("team/typo", false), expected);
        assert_eq!(finder.question("hf://a/b", true), "asking huggingface.co for the model hf://a/b");
        finder.settings.offline = true;
        let expected = "no folder team/typo here; looking in the hub's cache for the model team/typo";
        assert_eq!(finder.question("team/typo", false), expected);
    }

    #[test]
    fn ids_have_an_owner_and_a_name() {
        for id in ["a/b", "a/b@v1", "a/b@refs/pr/1", "openai/clip-vit-base-patch32"] {
            assert!(hub_id(id).is_some(), "{id}");
        }
        for other in ["a", "a/b/c", "./b", "../b", "/a", "a/", "datasets/b", "a b/c", "a/*"] {
            assert!(hub_id(other).is_none(), "{other}");
        }
    }
}
