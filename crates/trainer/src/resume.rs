//! States to resume from: `resume/step-NNNNNN/` with parameters, moments and the step; `resume/latest` names the
//! newest whole one.

use crate::TrainError;
use crate::adamw::AdamW;
use candle_core::{Device, Tensor};
use oqvl_model::{ParamStore, read_safetensors};
use oqvl_shard_io::{remove_if_there, write_atomic};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const LATEST: &str = "latest";
const PARAMS: &str = "params.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";

/// The directory of states below an output directory. It speaks of one unfinished run, so it is removed at the end.
#[derive(Debug, Clone)]
pub(crate) struct ResumeDir {
    path: PathBuf,
}

impl ResumeDir {
    pub(crate) fn new(out_dir: &Path) -> Self {
        Self { path: out_dir.join("resume") }
    }

    /// Writes the state after `step` steps and forgets the one before.
    pub(crate) fn save(&self, step: u64, store: &ParamStore, optimizer: &AdamW) -> Result<(), TrainError> {
        let before = self.latest()?;
        let name = format!("step-{step:06}");
        let dir = self.path.join(&name);
        std::fs::create_dir_all(&dir).map_err(TrainError::io(&dir))?;
        let params =
            store.vars().iter().map(|(name, var)| (name.clone(), var.as_detached_tensor())).collect();
        for (file, tensors) in [(PARAMS, params), (OPTIMIZER, optimizer.state()?)] {
            let path = dir.join(file);
            write_atomic(&path, &serialize(&tensors)?).map_err(TrainError::io(path))?;
        }
        let latest = self.path.join(LATEST);
        write_atomic(&latest, name.as_bytes()).map_err(TrainError::io(latest))?;
        if let Some((old, old_dir)) = before.filter(|(old, old_dir)| *old != step && old_dir.exists()) {
            tracing::debug!("state of step {old} is superseded");
            std::fs::remove_dir_all(&old_dir).map_err(TrainError::io(old_dir))?;
        }
        Ok(())
    }

    /// Restores the newest state, if there is one; returns its step.
    pub(crate) fn restore(&self, store: &ParamStore, optimizer: &mut AdamW) -> Result<u64, TrainError> {
        let Some((step, dir)) = self.latest()? else { return Ok(0) };
        if ![PARAMS, OPTIMIZER].iter().all(|file| dir.join(file).is_file()) {
            tracing::warn!("{} is not whole; training starts from the first step", dir.display());
            return Ok(0);
        }
        let restored = restore_from(&dir, step, store, optimizer);
        restored
            .map_err(|source| TrainError::Resume { path: self.path.clone(), source: Box::new(source) })?;
        Ok(step)
    }

    /// Removes all states.
    pub(crate) fn clear(&self) -> Result<(), TrainError> {
        if self.path.exists() {
            // The name goes first: a kill in between must not leave it without its state.
            let latest = self.path.join(LATEST);
            remove_if_there(&latest).map_err(TrainError::io(latest))?;
            std::fs::remove_dir_all(&self.path).map_err(TrainError::io(&self.path))?;
        }
        Ok(())
    }

    fn latest(&self) -> Result<Option<(u64, PathBuf)>, TrainError> {
        let path = self.path.join(LATEST);
        if !path.exists() {
            return Ok(None);
        }
        let name = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        let step = name.trim().strip_prefix("step-").and_then(|step| step.parse().ok());
        Ok(step.map(|step| (step, self.path.join(name.trim()))))
    }
}

fn restore_from(dir: &Path, step: u64, store: &ParamStore, optimizer: &mut AdamW) -> Result<(), TrainError> {
    let params = read_safetensors(&dir.join(PARAMS), &Device::Cpu)?;
    for (name, var) in store.vars() {
        let value = params.get(name).ok_or_else(|| TrainError::OptimizerState { name: name.clone() })?;
        var.set(value)?;
    }
    optimizer.restore(&read_safetensors(&dir.join(OPTIMIZER), &Device::Cpu)?, step)
}

fn serialize(tensors: &BTreeMap<String, Tensor>) -> Result<Vec<u8>, TrainError> {
    safetensors::serialize(tensors, None).map_err(|error| candle_core::Error::wrap(error).into())
}
