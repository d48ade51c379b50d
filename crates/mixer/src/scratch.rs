//! Where what does not fit into memory goes, and how much memory there is.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::MixerError;

/// Taken when the machine does not tell its memory.
const FALLBACK_BYTES: u64 = 4 << 30;

/// Smallest useful limit: below, a sort has no room for its merge.
pub(crate) const MIN_LIMIT_MIB: u64 = 64;

/// Shares of the limit. While a query runs, which has all but two of them, two buffers of our own sorts may be full: the
/// uids of the pool, and what takes the rows of the query. The search for near-duplicates, after all queries, fills five.
const SORT_SHARE: u64 = 8;

/// What the names of spill directories begin with.
const SPILL_PREFIX: &str = "spill-";

/// In a spill directory, locked by the process it belongs to.
const LOCK_FILE: &str = "lock";

/// Beside them, locked while one is made or removed.
const GUARD_FILE: &str = "spill.lock";

/// A directory for unfinished things and the memory that may be used before something goes there.
///
/// Files of our own in it have no name (`O_TMPFILE` or unlinked at once): nothing is left of them after a kill. Those of
/// queries have, in a [`SpillDir`]; what a kill left of one is removed when the next process starts.
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
        let scratch = Scratch { dir: dir.to_path_buf(), limit_bytes };
        scratch.remove_abandoned().map_err(scratch.failed())?;
        Ok(scratch)
    }

    /// A new directory for what a query spills.
    pub(crate) fn spill_dir(&self) -> Result<SpillDir, MixerError> {
        SpillDir::create(&self.dir).map_err(self.failed())
    }

    /// Removes the spill directories of processes that are no more; several may share the scratch space.
    fn remove_abandoned(&self) -> io::Result<()> {
        let _guard = SpillDir::guard(&self.dir)?;
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let is_spill_dir = path.is_dir()
                && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(SPILL_PREFIX));
            if is_spill_dir && SpillDir::is_abandoned(&path) {
                tracing::info!(path = %path.display(), "removing what a killed process spilled");
                std::fs::remove_dir_all(&path)?;
            }
        }
        Ok(())
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

/// A directory of one process for named files, gone when this is dropped. Its lock tells others that the process lives.
#[derive(Debug)]
pub(crate) struct SpillDir {
    dir: tempfile::TempDir,
    _lock: File,
}

impl SpillDir {
    fn create(parent: &Path) -> io::Result<SpillDir> {
        let _guard = SpillDir::guard(parent)?;
        let dir = tempfile::Builder::new().prefix(SPILL_PREFIX).tempdir_in(parent)?;
        let lock = File::create(dir.path().join(LOCK_FILE))?;
        self::lock(&lock);
        Ok(SpillDir { dir, _lock: lock })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Keeps others from looking for abandoned directories while one comes into being.
    fn guard(parent: &Path) -> io::Result<File> {
        let guard = File::create(parent.join(GUARD_FILE))?;
        lock(&guard);
        Ok(guard)
    }

    /// Whether nobody holds its lock; where the file system has no locks, nobody can say so.
    fn is_abandoned(path: &Path) -> bool {
        File::open(path.join(LOCK_FILE)).map_or(true, |lock| lock.try_lock().is_ok())
    }
}

/// Waits for the lock of `file`. Some file systems have none: there nothing is taken for abandoned, and what a kill
/// leaves stays until a run ends.
fn lock(file: &File) {
    if let Err(error) = file.lock() {
        tracing::debug!(%error, "no lock");
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
        let names = std::fs::read_dir(scratch.dir()).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), [GUARD_FILE], "its files have no name");
    }

    #[test]
    fn what_killed_processes_spilled_is_removed_and_what_others_spill_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path(), Some(64)).unwrap();
        let living = scratch.spill_dir().unwrap();
        oqvl_shard_io::write_atomic(&living.path().join("x"), b"x").unwrap();
        for (name, has_lock) in [("spill-dead", true), ("spill-unborn", false)] {
            let path = dir.path().join(name);
            std::fs::create_dir(&path).unwrap();
            oqvl_shard_io::write_atomic(&path.join("x"), b"x").unwrap();
            if has_lock {
                oqvl_shard_io::write_atomic(&path.join(LOCK_FILE), b"").unwrap();
            }
        }
        let _other = Scratch::create(dir.path(), Some(64)).unwrap();
        assert!(living.path().join("x").exists());
        assert!(!dir.path().join("spill-dead").exists() && !dir.path().join("spill-unborn").exists());
        let path = living.path().to_path_buf();
        drop(living);
        assert!(!path.exists());
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
