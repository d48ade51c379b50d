//! A finished stage: its manifest and where its files lie.

use crate::error::ReportError;
use oqvl_shard_io::Manifest;
use oqvl_stage::RunContext;
use serde_json::Value;
use std::path::PathBuf;

/// A stage that has finished in the work directory.
#[derive(Debug)]
pub(crate) struct FinishedStage {
    /// What it said of itself.
    pub(crate) manifest: Manifest,
    /// Its output directory.
    pub(crate) out_dir: PathBuf,
}

impl FinishedStage {
    pub(crate) fn read(run: &RunContext, name: &str) -> Result<Self, ReportError> {
        let out_dir = run.resolve(name.as_ref());
        let manifest = Manifest::read(&out_dir.join(Manifest::FILE_NAME))?;
        Ok(Self { manifest, out_dir })
    }

    pub(crate) fn name(&self) -> &str {
        &self.manifest.stage
    }

    /// A number of the stage's report, or the error that names it.
    pub(crate) fn number(&self, key: &str) -> Result<f64, ReportError> {
        let value = self.manifest.report.get(key).and_then(Value::as_f64);
        value.ok_or_else(|| ReportError::Number {
            path: self.out_dir.join("report.json"),
            key: key.to_owned(),
        })
    }

    /// All numbers of the stage's report that stand at its top level, in its order.
    pub(crate) fn numbers(&self) -> serde_json::Map<String, Value> {
        let fields = self.manifest.report.as_object().into_iter().flatten();
        fields
            .filter(|(_, value)| value.is_number())
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect()
    }

    /// The output files at the top of the directory whose names end so, in order of name.
    pub(crate) fn files_ending(&self, ending: &str) -> Vec<PathBuf> {
        let names = self.manifest.outputs.keys().filter(|name| name.ends_with(ending) && !name.contains('/'));
        names.map(|name| self.out_dir.join(name)).collect()
    }
}
