//! Where what does not fit into memory goes, and how much memory there is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::MixerError;

/// Taken when the machine does not tell its memory.
const FALLBACK_BYTES: u64 = 4 << 30;

/// Smallest useful limit: below, a sort has no room for its merge.
pub(crate) const MIN_LIMIT_MIB: u64 = 64;

/// Shares of the limit: sorts of our own hold at most two buffers at once (a query may fill one of them meanwhile).
const SORT_SHARE: u64 = 8;

/// A directory for unfinished things and the memory that may be used before something goes there.
///
/// Files in it have no name (`O_TMPFILE` or unlinked at once): nothing is left of them after a kill.
#[derive(Debug, Clone)]
pub(crate) struct Scratch {
    dir: PathBuf,
    limit_bytes: u64,
}

impl Scratch {
    /// Scratch space in `dir`, which is created; `limit_mib` from the config, half of the machine's memory without.
    pub(crate) fn create(dir: &Path, limit_mib: Option<u64>) -> Result<Scratch, MixerError> {
        std::fs::create_dir_all(dir)
            .map_err(|source| MixerError::Scratch { path: dir.to_path_buf(), source })?;
        let limit_bytes = limit_mib.map_or_else(|| machine_bytes() / 2, |mib| mib << 20);
        Ok(Scratch { dir: dir.to_path_buf(), limit_bytes })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// What queries may hold in memory.
    pub(crate) fn query_bytes(&self) -> usize {
        usize::try_from(self.limit_bytes - 2 * (self.limit_bytes / SORT_SHARE)).unwrap_or(usize::MAX)
    }

    /// What one of our own sorts may hold in memory.
    pub(crate) fn sort_bytes(&self) -> usize {
        usize::try_from(self.limit_bytes / SORT_SHARE).unwrap_or(usize::MAX)
    }

    /// A new file without a name.
    pub(crate) fn file(&self) -> Result<File, MixerError> {
        tempfile::tempfile_in(&self.dir).map_err(self.failed())
    }

    /// Says which directory could not take more.
    pub(crate) fn failed(&self) -> impl FnOnce(io::Error) -> MixerError + '_ {
        |source| MixerError::Scratch { path: self.dir.clone(), source }
    }
}

/// Memory of the machine, or of the control group this process is confined to.
fn machine_bytes() -> u64 {
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
    });
    let confined = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .into_iter()
        .filter_map(|path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok());
    total.into_iter().chain(confined).min().unwrap_or(FALLBACK_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_shared_out() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(&dir.path().join("deep/er"), Some(64)).unwrap();
        assert_eq!((scratch.sort_bytes(), scratch.query_bytes()), (8 << 20, 48 << 20));
        assert!(Scratch::create(dir.path(), None).unwrap().sort_bytes() > 1 << 20);
        let _file = scratch.file().unwrap();
        assert_eq!(std::fs::read_dir(scratch.dir()).unwrap().count(), 0, "its files have no name");
    }

    #[test]
    fn a_place_that_cannot_be_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        oqvl_shard_io::write_atomic(&file, b"").unwrap();
        let error = Scratch::create(&file.join("below"), None).unwrap_err();
        assert!(error.to_string().contains("file/below"), "{error}");
    }
}
