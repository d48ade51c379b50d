//! Small JSON files of the runner, replaced in one step so that a reader never sees half of one.
//!
//! `shard-io` has the same for the stages; the runner does not link it because it would have to build parquet first.

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

/// Writes through a temporary file in the same directory, then renames.
pub(crate) fn write<T: Serialize>(path: &Path, value: &T) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(value)?;
    bytes.push(b'\n');
    write_bytes(path, &bytes)
}

/// The same for text that is not JSON.
pub(crate) fn write_bytes(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().context("a file path has a file name")?.to_string_lossy();
    let temporary = path.with_file_name(format!(".tmp-{name}"));
    let mut file = File::create(&temporary).with_context(|| temporary.display().to_string())?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(|| temporary.display().to_string())?;
    fs::rename(&temporary, path).with_context(|| path.display().to_string())
}

/// Reads a file that must be there.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<T> {
    let bytes = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not the JSON it should be", path.display()))
}
