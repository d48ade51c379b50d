//! Models by their names: a path here, or the id of a model on the Hugging Face hub.

use crate::config_error::ConfigError;
use crate::error::StageError;
use crate::process_env;
use crate::progress::Progress;
use crate::stores::StoresConfig;
use oqvl_shard_io::{MirrorOptions, Store, StoreError, StoreUri};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

/// Bytes of the unit in which progress is told.
const MEGABYTE: u64 = 1_000_000;

/// The files of a model: the path that `model` is, or where those of the hub's model `owner/name[@revision]`, or
/// `hf://owner/name[@revision][/path]`, are in the cache of the hub's own tools, after what was missing there has come.
///
/// For programs that are no stages; a stage's inputs are resolved for it. Reads the hub's variables (`HF_ENDPOINT`,
/// `HF_TOKEN`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`) from the environment, and shows progress as stages do. Once
/// `is_stopped`, asked ten times a second, says yes, it ends; what has come is gone on with by the next call.
///
/// # Errors
/// [`StageError::Config`] if the text can be neither; [`StageError::Model`] or [`StageError::Store`] if the model is not
/// there, may not be read, or cannot be had; [`StageError::Interrupted`].
pub fn resolve_model(model: &str, is_stopped: &dyn Fn() -> bool) -> Result<PathBuf, StageError> {
    let is_address = model.contains("://");
    if !is_address && Path::new(model).exists() {
        return Ok(PathBuf::from(model));
    }
    let wrong = |message: String| StageError::Config(ConfigError::new("model", message));
    let address = if is_address { model.to_owned() } else { format!("hf://{model}") };
    // A path that is not there is not somebody else's model: those have one slash.
    let is_id = model.split('@').next().unwrap_or_default().matches('/').count() == 1;
    let uri = StoreUri::parse(&address).ok().filter(|uri| uri.is_hub_model() && (is_address || is_id));
    let uri = uri.ok_or_else(|| {
        wrong(format!(
            "there is no path `{model}`, and it is no model of the hub: those are owner/name, owner/name@revision or \
             hf://owner/name@revision/path"
        ))
    })?;
    let config = StoresConfig::default();
    let store = Store::new(config.settings(&process_env::stores())).map_err(StageError::from_store)?;
    let options = MirrorOptions {
        // Models have a place of their own.
        root: Path::new(""),
        max_bytes: config.max_mirror_bytes(),
        wants: &|_| true,
        is_stopped,
        progress: &shown_progress(),
    };
    let mirror = store.mirror(&uri, &options).map_err(|error| match error {
        StoreError::Interrupted | StoreError::Uri { .. } | StoreError::Setting { .. } => {
            StageError::from_store(error)
        }
        source if is_address => StageError::Store(source),
        source => StageError::Model { model: model.to_owned(), source },
    })?;
    Ok(mirror.path)
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
