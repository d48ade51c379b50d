//! Inputs that lie in stores: they are copied below the work directory, or into the hub's cache, before a stage runs.

use crate::StageConfig;
use crate::error::{Interrupted, StageError};
use crate::hub_model;
use crate::stores::MIRROR_DIR;
use oqvl_shard_io::{Mirror, MirrorOptions, Store, StoreError, StoreSettings, StoreUri};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Local copies, by the address that the config gives.
pub(crate) type Mirrors = BTreeMap<PathBuf, Mirror>;

/// What to do about copies that are not here, or not as the store has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// Make them.
    Fetch,
    /// Say so.
    Report,
}

/// Brings every remote input of the config here.
pub(crate) fn mirror<C: StageConfig>(
    config: &C,
    work_dir: &Path,
    settings: &StoreSettings,
    max_bytes: u64,
    missing: Missing,
    interrupted: &AtomicBool,
) -> Result<Mirrors, StageError> {
    let remote: Vec<_> = config.inputs().into_iter().filter(|input| StoreUri::is_uri(input)).collect();
    let mut mirrors = Mirrors::new();
    if remote.is_empty() {
        return Ok(mirrors);
    }
    let store = Store::new(settings.clone()).map_err(StageError::from_store)?;
    let root = work_dir.join(MIRROR_DIR);
    for input in remote {
        let uri = StoreUri::parse(&input.to_string_lossy()).map_err(StageError::from_store)?;
        let options = MirrorOptions {
            root: &root,
            max_bytes,
            wants: &|name| config.wants_file(&input, name),
            is_stopped: &|| interrupted.load(Ordering::Relaxed),
            progress: &hub_model::shown_progress(),
        };
        let mirror = match missing {
            Missing::Fetch => store.mirror(&uri, &options).map_err(StageError::from_store)?,
            Missing::Report => {
                let found = store.find_mirror(&uri, &options).map_err(StageError::from_store)?;
                found.ok_or_else(|| StageError::InputNotReady {
                    path: input.clone(),
                    reason: "it is copied here when the stage runs".to_owned(),
                })?
            }
        };
        if mirror.num_fetched > 0 {
            tracing::info!("{uri}: fetched {} of {} files", mirror.num_fetched, mirror.files.len());
        }
        mirrors.insert(input, mirror);
    }
    Ok(mirrors)
}

impl StageError {
    /// A store's error as the runtime's: a wrong address is a wrong request.
    pub(crate) fn from_store(error: StoreError) -> Self {
        match error {
            StoreError::Interrupted => Self::Interrupted(Interrupted),
            error @ (StoreError::Uri { .. } | StoreError::Setting { .. }) => {
                Self::Config(crate::ConfigError::new("stores", error.to_string()))
            }
            error => Self::Store(error),
        }
    }
}
