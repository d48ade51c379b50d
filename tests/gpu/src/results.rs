//! The file of results: `docs/gpu.json` is one, and `cargo xtask kernels check` reads it.

use crate::check::Check;
use crate::torch::Torch;
use crate::{bench::Figure, date};
use anyhow::Context as _;
use oqvl_kernels::device::Description;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// What was seen on one GPU.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) gpu: String,
    pub(crate) compute_capability: String,
    pub(crate) driver_cuda: String,
    pub(crate) built_with_cuda: String,
    /// None if it was not run beside one.
    pub(crate) pytorch: Option<String>,
    /// Of the program.
    pub(crate) commit: Option<String>,
    pub(crate) date: String,
    #[serde(default)]
    pub(crate) checks: Vec<Check>,
    #[serde(default)]
    pub(crate) figures: Vec<Figure>,
}

/// Changes the file, in one step. What is there of another GPU or another commit goes.
pub(crate) fn update(
    path: &Path,
    gpu: &Description,
    torch: Option<&Torch>,
    change: impl FnOnce(&mut Results),
) -> anyhow::Result<()> {
    let commit = option_env!("OQVL_COMMIT").map(str::to_owned);
    let old = fs::read(path).ok().and_then(|bytes| serde_json::from_slice::<Results>(&bytes).ok());
    let of_same = old.filter(|old| old.gpu == gpu.name && old.commit == commit);
    let mut results = Results {
        gpu: gpu.name.clone(),
        compute_capability: gpu.capability.clone(),
        driver_cuda: gpu.driver_cuda.clone(),
        built_with_cuda: gpu.built_with_cuda.clone(),
        pytorch: torch.map(|torch| torch.version().to_owned()),
        commit,
        date: date::today(),
        ..of_same.unwrap_or_default()
    };
    change(&mut results);
    let mut text = serde_json::to_vec_pretty(&results)?;
    text.push(b'\n');
    let shown = || path.display().to_string();
    let name = path.file_name().with_context(shown)?.to_string_lossy();
    let temporary = path.with_file_name(format!(".tmp-{name}"));
    let mut file = File::create(&temporary).with_context(shown)?;
    file.write_all(&text).and_then(|()| file.sync_all()).with_context(shown)?;
    fs::rename(&temporary, path).with_context(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(name: &str) -> Description {
        Description {
            name: name.to_owned(),
            capability: "9.0".to_owned(),
            multiprocessors: 132,
            memory_bytes: 1,
            driver_cuda: "13.0".to_owned(),
            built_with_cuda: "13.0".to_owned(),
        }
    }

    #[test]
    fn one_command_leaves_what_the_other_wrote_of_the_same_gpu() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gpu.json");
        let read = || serde_json::from_slice::<Results>(&fs::read(&path).unwrap()).unwrap();
        let check = Check::failed("attention", "x".to_owned(), "broken".to_owned());
        update(&path, &gpu("A"), None, |results| results.checks = vec![check]).unwrap();
        update(&path, &gpu("A"), None, |results| results.figures = Vec::new()).unwrap();
        assert_eq!((read().checks.len(), read().gpu.as_str()), (1, "A"));
        update(&path, &gpu("B"), None, |results| results.figures = Vec::new()).unwrap();
        assert_eq!((read().checks.len(), read().gpu.as_str()), (0, "B"));
    }
}
