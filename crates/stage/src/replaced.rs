//! Output of another request, set aside until the new request has turned out sound.
//!
//! A request is often wrong in a way that only the stage finds: a column the pool does not have, a list that is none. The
//! finished output of the request before must not be lost to that. So it is moved into a hidden directory beside the new
//! output, goes when the stage says that it [begins](crate::RunContext::begin), and comes back if it ends before.
//!
//! A kill at any moment leaves one of these states, told apart by the stamp: empty, entries are on their way there or back
//! and what lies outside is old; not empty, all that lies outside is new.
//!
//! Where the output stays and is only added to, stamp and manifest alone are set aside, into a directory of its own: all
//! that lies outside is then old.

use crate::error::StageError;
use oqvl_shard_io::{Manifest, ShardError, write_atomic};
use std::path::{Path, PathBuf};

/// Holds what was set aside, and the stamp it had.
const ASIDE: &str = ".replaced";
/// Holds the stamp and the manifest of output that stays.
const SEALS_ASIDE: &str = ".seals";
/// What was set aside and is being removed.
const DOOMED: &str = ".discarded";

/// Moves everything in `out_dir` but the files `kept` aside. `empty_stamp` is called when the stamp `stamp_file` may be
/// overwritten with one of no run.
pub(crate) fn set_aside(
    out_dir: &Path,
    kept: &[&str],
    stamp_file: &str,
    empty_stamp: impl FnOnce() -> Result<(), StageError>,
) -> Result<(), StageError> {
    let aside = out_dir.join(ASIDE);
    std::fs::create_dir_all(&aside).map_err(StageError::io(&aside))?;
    let stamp = out_dir.join(stamp_file);
    let content = std::fs::read(&stamp).map_err(StageError::io(&stamp))?;
    write_atomic(&aside.join(stamp_file), &content).map_err(StageError::io(&aside))?;
    empty_stamp()?;
    // First, so that a kill in between leaves no finished look.
    let manifest = out_dir.join(Manifest::FILE_NAME);
    if manifest.exists() {
        let to = aside.join(Manifest::FILE_NAME);
        std::fs::rename(&manifest, to).map_err(StageError::io(&manifest))?;
    }
    move_entries(out_dir, &aside, |name| kept.contains(&name) || name == ASIDE)
}

/// Moves the manifest aside, if there is one, and a copy of the stamp: the output stays.
pub(crate) fn set_seals_aside(out_dir: &Path, stamp_file: &str) -> Result<(), StageError> {
    let aside = out_dir.join(SEALS_ASIDE);
    std::fs::create_dir_all(&aside).map_err(StageError::io(&aside))?;
    let stamp = out_dir.join(stamp_file);
    let content = std::fs::read(&stamp).map_err(StageError::io(&stamp))?;
    write_atomic(&aside.join(stamp_file), &content).map_err(StageError::io(&aside))?;
    rename_if_there(&out_dir.join(Manifest::FILE_NAME), &aside.join(Manifest::FILE_NAME))
}

/// Puts the seals back, if they were set aside; returns whether they were. The stamp comes last: it says that there is
/// something to put back.
pub(crate) fn restore_seals(out_dir: &Path, stamp_file: &str) -> Result<bool, StageError> {
    let aside = out_dir.join(SEALS_ASIDE);
    let stamp = aside.join(stamp_file);
    let is_there = stamp.exists();
    if is_there {
        rename_if_there(&aside.join(Manifest::FILE_NAME), &out_dir.join(Manifest::FILE_NAME))?;
        std::fs::rename(&stamp, out_dir.join(stamp_file)).map_err(StageError::io(&stamp))?;
    }
    remove_directory(&aside)?;
    Ok(is_there)
}

/// The stamp that comes back when the run that replaces or extends this output ends before it begins.
pub(crate) fn stamp_aside(out_dir: &Path, stamp_file: &str) -> Option<PathBuf> {
    [SEALS_ASIDE, ASIDE]
        .map(|aside| out_dir.join(aside).join(stamp_file))
        .into_iter()
        .find(|path| path.exists())
}

/// Puts back what was set aside, if there is something; `clear` removes new output, if all that lies outside is new.
/// Returns whether there was something.
pub(crate) fn restore(
    out_dir: &Path,
    stamp_file: &str,
    clear: impl FnOnce() -> Result<(), StageError>,
) -> Result<bool, StageError> {
    if restore_seals(out_dir, stamp_file)? {
        return Ok(true);
    }
    let aside = out_dir.join(ASIDE);
    let stamp = aside.join(stamp_file);
    if !stamp.exists() {
        // Killed before the first entry was moved, or after the last one came back.
        let _ = std::fs::remove_dir(&aside);
        return Ok(false);
    }
    clear()?;
    move_entries(&aside, out_dir, |name| name == stamp_file)?;
    std::fs::rename(&stamp, out_dir.join(stamp_file)).map_err(StageError::io(&stamp))?;
    std::fs::remove_dir(&aside).map_err(StageError::io(&aside))?;
    Ok(true)
}

/// Removes what was set aside.
pub(crate) fn discard(out_dir: &Path) -> Result<(), ShardError> {
    let doomed = out_dir.join(DOOMED);
    // Of an earlier run that was killed here.
    remove_directory(&doomed)?;
    for aside in [SEALS_ASIDE, ASIDE].map(|name| out_dir.join(name)) {
        match std::fs::rename(&aside, &doomed) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            moved => moved.map_err(failed(&aside))?,
        }
        remove_directory(&doomed)?;
    }
    Ok(())
}

/// Whether a file or directory of this name is of this module.
pub(crate) fn is_own(name: &str) -> bool {
    [ASIDE, SEALS_ASIDE, DOOMED].contains(&name)
}

fn remove_directory(path: &Path) -> Result<(), ShardError> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(path)(error)),
        _ => Ok(()),
    }
}

fn rename_if_there(from: &Path, to: &Path) -> Result<(), StageError> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StageError::io(from)(error)),
        _ => Ok(()),
    }
}

fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> ShardError {
    |source| ShardError::Io { path: path.to_path_buf(), source }
}

fn move_entries(from: &Path, to: &Path, stays: impl Fn(&str) -> bool) -> Result<(), StageError> {
    for entry in std::fs::read_dir(from).map_err(StageError::io(from))? {
        let entry = entry.map_err(StageError::io(from))?;
        if !stays(&entry.file_name().to_string_lossy()) {
            let path = entry.path();
            std::fs::rename(&path, to.join(entry.file_name())).map_err(StageError::io(&path))?;
        }
    }
    Ok(())
}
