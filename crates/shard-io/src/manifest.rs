//! The manifest: what a stage did, written last beside its outputs.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{ShardError, read_json, write_json_atomic};

/// The record of one finished stage run. Its presence says that the run finished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The stage's name, which is also its configuration table and its output directory.
    pub stage: String,
    /// Version of the stage's crate.
    pub version: String,
    /// Version-control commit the binary was built from; `unknown` where it was not known.
    pub commit: String,
    /// Digest of everything the output depends on: configuration, seed, version and inputs.
    pub fingerprint: String,
    /// Seed of every random stream.
    pub seed: u64,
    /// The resolved configuration of the stage.
    pub config: Value,
    /// Input path, as configured, to its digest.
    pub inputs: BTreeMap<String, String>,
    /// Output path, relative to the stage's directory, to its digest.
    pub outputs: BTreeMap<String, String>,
    /// Output path to its size in bytes: what a later run checks at no cost.
    #[serde(default)]
    pub output_bytes: BTreeMap<String, u64>,
    /// Wall-clock duration of the run in seconds.
    pub seconds: f64,
    /// Largest resident memory of the process in bytes; 0 where the platform does not tell.
    pub peak_rss_bytes: u64,
    /// The stage's report: counts, rejections, metrics.
    pub report: Value,
}

impl Manifest {
    /// What a manifest is called in the output directory of its stage.
    pub const FILE_NAME: &'static str = "manifest.json";

    /// Reads the manifest file at `path`.
    ///
    /// # Errors
    /// [`ShardError::Io`] if there is none, [`ShardError::Json`] if it is not a manifest.
    pub fn read(path: &Path) -> Result<Manifest, ShardError> {
        read_json(path)
    }

    /// Writes the manifest to the file `path`, atomically.
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<(), ShardError> {
        write_json_atomic(path, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_refuses_a_stranger() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(Manifest::FILE_NAME);
        let manifest = Manifest {
            stage: "mixer".into(),
            version: "0.1.0".into(),
            commit: String::new(),
            fingerprint: "f".into(),
            seed: u64::MAX,
            config: serde_json::json!({"z": 1, "a": [1.5, null]}),
            inputs: BTreeMap::from([("data-fetch".into(), "d".into())]),
            outputs: BTreeMap::new(),
            output_bytes: BTreeMap::from([("00000.tar".into(), 512)]),
            seconds: 0.1,
            peak_rss_bytes: 0,
            report: Value::Null,
        };
        manifest.write(&path).unwrap();
        assert_eq!(Manifest::read(&path).unwrap(), manifest);
        crate::write_atomic(&path, b"{\"stage\":\"mixer\"}").unwrap();
        assert!(matches!(Manifest::read(&path), Err(ShardError::Json { .. })));
    }
}
