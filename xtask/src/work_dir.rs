//! The work directory: one run at a time, and starting a stage anew.

use crate::exit::Exit;
use crate::stages::StageName;
use crate::{interrupt, units};
use anyhow::Context;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

const LOCK_FILE: &str = ".reproduce.lock";
/// Name of the runner in the process table.
const RUNNER_COMMAND: &str = "xtask";
/// Prefix of a stage's output that is on its way out.
const REMOVED_PREFIX: &str = ".tmp-removed-";
/// The files that show that a directory is the output of a stage.
const MARKS: [&str; 2] = ["fingerprint.json", "manifest.json"];

/// The right to work in a directory, held until it is dropped.
///
/// Every stage gets the lock file as its standard input. Such a lock belongs to the open file, not to the process,
/// so a stage that outlives a killed runner keeps the directory locked until it has finished too.
#[derive(Debug)]
pub(crate) struct WorkDirLock {
    file: File,
}

impl WorkDirLock {
    /// Takes the lock, creating the directory. Refuses if another runner is at work there; waits if only a stage is
    /// left that a killed runner had started.
    pub(crate) fn acquire(work_dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(work_dir).with_context(|| work_dir.display().to_string())?;
        let path = work_dir.join(LOCK_FILE);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.with_context(|| path.display().to_string())?;
        let started = Instant::now();
        let mut told = false;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::Error(error)) => return Err(error).context(path.display().to_string()),
                Err(TryLockError::WouldBlock) => {}
            }
            if let Some(holder) = live_runner(&mut file) {
                let shown = work_dir.display();
                anyhow::bail!("another run (process {holder}) is at work in {shown}; wait for it or stop it");
            }
            if !told && started.elapsed() > Duration::from_secs(1) {
                println!(
                    "a stage of a run that was killed is still at work in {}; waiting",
                    work_dir.display()
                );
                told = true;
            }
            if interrupt::requested() {
                return Err(Exit::interrupted("waiting for a stage of an earlier run"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        if told {
            println!("it has finished after {}", units::duration(started.elapsed()));
        }
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| write!(file, "{}", std::process::id()))?;
        remove_leftovers(work_dir)?;
        Ok(Self { file })
    }

    /// The standard input of a stage: empty, and as long as the stage lives the lock is held.
    pub(crate) fn stage_stdin(&self) -> anyhow::Result<Stdio> {
        Ok(self.file.try_clone().context("cannot share the lock with a stage")?.into())
    }
}

/// Process id in the lock file, if that process still is a runner.
fn live_runner(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.rewind().ok()?;
    file.read_to_string(&mut text).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    // A killed process whose parent has not looked yet is still listed, as a zombie.
    let is_alive = field("Name:") == Some(RUNNER_COMMAND) && !field("State:")?.starts_with('Z');
    is_alive.then_some(pid)
}

/// Removes the output of one stage, so that it starts anew. Somebody else's directory is refused.
pub(crate) fn remove_output(work_dir: &Path, stage: StageName) -> anyhow::Result<()> {
    let directory = work_dir.join(stage.as_str());
    if !directory.exists() {
        return Ok(());
    }
    if !is_as_good_as_empty(&directory)? && !MARKS.iter().any(|mark| directory.join(mark).is_file()) {
        let sentence = format!(
            "{} is not the output of a stage (no {}): move it away or choose another --work-dir",
            directory.display(),
            MARKS.join(", no ")
        );
        return Err(Exit::wrong_request(sentence));
    }
    // Moved away in one step first: a kill in the middle must not leave half an output that looks whole.
    let removed = work_dir.join(format!("{REMOVED_PREFIX}{}", stage.as_str()));
    fs::rename(&directory, &removed).with_context(|| directory.display().to_string())?;
    remove_tree(&removed)
}

/// Whether nothing is there but the hidden files of a stage that was killed before it wrote its mark.
fn is_as_good_as_empty(directory: &Path) -> anyhow::Result<bool> {
    let mut entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))))
}

fn remove_leftovers(work_dir: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(work_dir).with_context(|| work_dir.display().to_string())? {
        let path: PathBuf = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(REMOVED_PREFIX) {
            remove_tree(&path)?;
        }
    }
    Ok(())
}

/// Removes a directory; of a link to a directory only the link.
fn remove_tree(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_symlink() { fs::remove_file(path) } else { fs::remove_dir_all(path) };
    removed.with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory below the build directory; the runner has no dependency that makes temporary ones.
    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("oqvl-xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[test]
    fn the_lock_is_exclusive_and_ends_with_its_holder() {
        let dir = scratch("lock");
        let lock = WorkDirLock::acquire(&dir).unwrap();
        let other = File::open(dir.join(LOCK_FILE)).unwrap();
        assert!(matches!(other.try_lock(), Err(TryLockError::WouldBlock)));
        drop(lock);
        other.try_lock().unwrap();
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn only_output_of_a_stage_is_removed() {
        let dir = scratch("remove");
        let stage = StageName::find("packer").unwrap();
        let output = dir.join("packer");
        remove_output(&dir, stage).unwrap();
        fs::create_dir(&output).unwrap();
        File::create(output.join("thesis.tex")).unwrap();
        let error = remove_output(&dir, stage).unwrap_err().to_string();
        assert!(error.contains("not the output of a stage"), "{error}");
        assert!(output.join("thesis.tex").exists());
        File::create(output.join("fingerprint.json")).unwrap();
        remove_output(&dir, stage).unwrap();
        assert!(!output.exists());
        fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn leftovers_of_a_killed_removal_go() {
        let dir = scratch("leftovers");
        fs::create_dir_all(dir.join(".tmp-removed-mixer/deep")).unwrap();
        drop(WorkDirLock::acquire(&dir).unwrap());
        assert!(!dir.join(".tmp-removed-mixer").exists());
        fs::remove_dir_all(dir).unwrap();
    }
}
