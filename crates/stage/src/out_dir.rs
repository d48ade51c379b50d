//! The output directory of a stage: what it is being made from, how it stands to a request, and how it is made ready for a
//! run.

use crate::error::StageError;
use crate::fingerprint;
use crate::replaced;
use crate::shard_range::ShardRange;
use crate::voice::Voice;
use crate::{EarlierOutput, Stage, StageConfig as _};
use oqvl_shard_io::{Manifest, TEMPORARY_PREFIX, read_json, remove_if_there, write_json_atomic};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

/// Marks an output directory as ours and says what it is being made from.
pub(crate) const FINGERPRINT_FILE: &str = "fingerprint.json";
const LOCK_FILE: &str = ".lock";
const STAMP_LOCK_FILE: &str = ".stamp.lock";
/// Files that stay when output is removed.
const RUNTIME_FILES: [&str; 3] = [LOCK_FILE, STAMP_LOCK_FILE, FINGERPRINT_FILE];

/// Content of [`FINGERPRINT_FILE`].
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(crate) struct Stamp {
    pub(crate) stage: String,
    pub(crate) fingerprint: String,
}

/// How an output directory stands to a request.
#[derive(Debug)]
pub(crate) enum Status {
    /// It holds what the request asks for, with this manifest.
    UpToDate(Box<Manifest>),
    /// To be run; the words say why.
    Pending(&'static str),
}

/// What is to be done to an output directory.
pub(crate) struct Request<'a, S: Stage> {
    pub(crate) config: &'a S::Config,
    pub(crate) fingerprint: &'a str,
    /// This process's share; `None` if it is to make all of it.
    pub(crate) shards: Option<ShardRange>,
}

impl<S: Stage> Request<'_, S> {
    pub(crate) fn is_whole(&self) -> bool {
        self.shards.is_none()
    }
}

/// `<work_dir>/<stage name>/`.
#[derive(Debug)]
pub(crate) struct OutDir {
    pub(crate) path: PathBuf,
    stage: &'static str,
}

impl OutDir {
    pub(crate) fn new(work_dir: &Path, stage: &'static str) -> Self {
        Self { path: work_dir.join(stage), stage }
    }

    pub(crate) fn status<S: Stage>(&self, request: &Request<'_, S>) -> Result<Status, StageError> {
        let stamp = self.stamp()?;
        let path = self.manifest();
        if !path.exists() {
            return match stamp {
                Some(_) => Ok(Status::Pending("begun, not finished")),
                None if !self.path.exists() || has_only_hidden_files(&self.path)? => {
                    Ok(Status::Pending("never run"))
                }
                None => Err(self.foreign_directory()),
            };
        }
        let Ok(manifest) = Manifest::read(&path) else {
            return Ok(Status::Pending("its manifest cannot be read"));
        };
        if manifest.fingerprint != request.fingerprint {
            return Ok(Status::Pending("its config or its inputs have changed"));
        }
        if fingerprint::changed_outputs(&self.path, &manifest, Path::new("")).next().is_some() {
            return Ok(Status::Pending("some of its output is gone or has another size"));
        }
        if request.config.earlier_output() == EarlierOutput::Discard {
            return Ok(Status::Pending("its output is to be made anew"));
        }
        if request.config.revisits_finished_output() {
            return Ok(Status::Pending("its output is to be gone through again"));
        }
        Ok(Status::UpToDate(Box::new(manifest)))
    }

    /// What the output directory says it is being made from, if this stage made it.
    pub(crate) fn stamp(&self) -> Result<Option<Stamp>, StageError> {
        self.read_stamp(&self.path.join(FINGERPRINT_FILE))
    }

    /// The stamp of what a whole run would find: that of output which a killed run left aside, if there is some.
    pub(crate) fn standing_stamp(&self) -> Result<Option<Stamp>, StageError> {
        match replaced::stamp_aside(&self.path, FINGERPRINT_FILE) {
            Some(path) => self.read_stamp(&path),
            None => self.stamp(),
        }
    }

    fn read_stamp(&self, path: &Path) -> Result<Option<Stamp>, StageError> {
        if !path.exists() {
            return Ok(None);
        }
        let stamp: Stamp = read_json(path)
            .map_err(|source| StageError::UnreadableStamp { path: self.path.clone(), source })?;
        Ok(Some(stamp).filter(|stamp| stamp.stage == self.stage))
    }

    fn write_stamp(&self, fingerprint: &str) -> Result<(), StageError> {
        let stamp = Stamp { stage: self.stage.to_owned(), fingerprint: fingerprint.to_owned() };
        Ok(write_json_atomic(&self.path.join(FINGERPRINT_FILE), &stamp)?)
    }

    fn manifest(&self) -> PathBuf {
        self.path.join(Manifest::FILE_NAME)
    }

    /// Asks the stage before output of another request goes. Shares never remove any, and what the config says is to go
    /// may go, as may the rest of a removal that was stopped.
    pub(crate) fn check_discard<S: Stage>(&self, request: &Request<'_, S>) -> Result<(), StageError> {
        let is_other =
            |stamp: &Stamp| !stamp.fingerprint.is_empty() && stamp.fingerprint != request.fingerprint;
        if request.is_whole()
            && request.config.earlier_output() == EarlierOutput::Complete
            && self.standing_stamp()?.as_ref().is_some_and(is_other)
        {
            request.config.check_discard(&self.path).map_err(|error| error.inside(self.stage))?;
        }
        Ok(())
    }

    /// Creates or cleans the output directory. What an interrupted run of the same fingerprint left stays; what
    /// another one left goes; what somebody else left is not touched. Under the [`lock`](OutDir::lock).
    pub(crate) fn prepare<S: Stage>(&self, request: &Request<'_, S>, voice: Voice) -> Result<(), StageError> {
        let Request { config, fingerprint, shards } = *request;
        let is_whole = request.is_whole();
        // Partial runs share the lock, and may start at the same moment: one at a time looks and stamps.
        let stamp_lock_path = self.path.join(STAMP_LOCK_FILE);
        let stamp_lock = File::create(&stamp_lock_path).map_err(StageError::io(&stamp_lock_path))?;
        stamp_lock.lock().map_err(StageError::io(&stamp_lock_path))?;
        if is_whole {
            self.restore_replaced()?;
        } else if replaced::stamp_aside(&self.path, FINGERPRINT_FILE).is_some() {
            // What is aside comes back with the next whole run, and what a share of another request did would go.
            if let Some(share) = shards
                && self.standing_stamp()?.is_none_or(|stamp| stamp.fingerprint != fingerprint)
            {
                return Err(self.stale_output(share));
            }
            // A manifest that came back later would not know what this share does.
            replaced::restore_seals(&self.path, FINGERPRINT_FILE)?;
        }
        let policy = config.earlier_output();
        match (self.stamp()?, shards) {
            (Some(stamp), _) if stamp.fingerprint == fingerprint && policy != EarlierOutput::Discard => {
                // Temporary files of a killed run; a partial run must leave those of its neighbours alone.
                if is_whole {
                    self.reopen::<S>()?;
                } else if config.revisits_finished_output() {
                    // What this share changes is no longer what the manifest says.
                    remove_file_if_there(&self.manifest())?;
                }
                return Ok(());
            }
            (Some(_), Some(share)) => return Err(self.stale_output(share)),
            (Some(_), None) if policy == EarlierOutput::Extend => self.reopen::<S>()?,
            (Some(stamp), None) => {
                // Once more, now that nobody else adds to it.
                self.check_discard(request)?;
                if let Some(path) = self.foreign_file()? {
                    return Err(StageError::ForeignFile { path, stage: self.stage });
                }
                self.tell_of_removal(policy, &stamp, voice)?;
                // A kill halfway leaves output of no run, whatever the config is by then.
                let empty_stamp = || self.write_stamp("");
                if S::CHECKS_FIRST && !stamp.fingerprint.is_empty() {
                    replaced::set_aside(&self.path, &RUNTIME_FILES, FINGERPRINT_FILE, empty_stamp)?;
                } else {
                    empty_stamp()?;
                    remove_content(&self.path)?;
                }
            }
            (None, _) if has_only_hidden_files(&self.path)? => {}
            (None, _) => return Err(self.foreign_directory()),
        }
        self.write_stamp(fingerprint)
    }

    fn tell_of_removal(&self, policy: EarlierOutput, stamp: &Stamp, voice: Voice) -> Result<(), StageError> {
        if fingerprint::output_files(&self.path)?.is_empty() {
            return Ok(());
        }
        let why = match policy {
            EarlierOutput::Discard => "the config says so",
            _ if stamp.fingerprint.is_empty() => "an earlier run was stopped while it removed this",
            _ => "its config or its inputs have changed",
        };
        voice.info(&format!("{}: {why}; {} is made anew", self.stage, self.path.display()));
        Ok(())
    }

    /// Takes the manifest of finished output back, which is completed or added to: for good, or until the stage has found
    /// the request sound, if it says when it has. What was damaged since goes first: stages skip shards that are there, and
    /// only the manifest knows how large they were. Temporary files of a killed run go too.
    fn reopen<S: Stage>(&self) -> Result<(), StageError> {
        remove_temporary_files(&self.path)?;
        if let Some(path) = self.foreign_file()? {
            return Err(StageError::ForeignFile { path, stage: self.stage });
        }
        if let Ok(manifest) = Manifest::read(&self.manifest()) {
            for file in fingerprint::changed_outputs(&self.path, &manifest, Path::new("")) {
                remove_file_if_there(&self.path.join(file))?;
            }
        }
        if S::CHECKS_FIRST {
            replaced::set_seals_aside(&self.path, FINGERPRINT_FILE)
        } else {
            remove_file_if_there(&self.manifest())
        }
    }

    /// A file among finished output that this stage did not write. One that came while a run was unfinished counts as
    /// the stage's own.
    fn foreign_file(&self) -> Result<Option<PathBuf>, StageError> {
        // Without a manifest nobody knows what a killed run wrote.
        let Ok(manifest) = Manifest::read(&self.manifest()) else { return Ok(None) };
        let files = fingerprint::output_files(&self.path)?;
        Ok(files.into_iter().find(|(name, _)| !manifest.outputs.contains_key(name)).map(|(_, path)| path))
    }

    fn stale_output(&self, share: ShardRange) -> StageError {
        StageError::StaleOutput { asked_by: share.asked_by(), path: self.path.clone() }
    }

    fn foreign_directory(&self) -> StageError {
        StageError::ForeignDirectory { path: self.path.clone(), stage: self.stage }
    }

    /// Puts the output of the request before this one back; returns whether there was some.
    pub(crate) fn restore_replaced(&self) -> Result<bool, StageError> {
        replaced::restore(&self.path, FINGERPRINT_FILE, || {
            if self.stamp()?.is_some_and(|stamp| !stamp.fingerprint.is_empty()) {
                remove_content(&self.path)?;
                self.write_stamp("")?;
            }
            Ok(())
        })
    }

    /// Makes the directory if it is not there. Whole runs exclude each other and partial runs; partial runs share. The
    /// file is the lock.
    pub(crate) fn lock(&self, is_whole: bool) -> Result<File, StageError> {
        std::fs::create_dir_all(&self.path).map_err(StageError::io(&self.path))?;
        let path = self.path.join(LOCK_FILE);
        let file = File::create(&path).map_err(StageError::io(&path))?;
        let locked = if is_whole { file.try_lock() } else { file.try_lock_shared() };
        match locked {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StageError::Locked { path: self.path.clone() }),
            Err(TryLockError::Error(source)) => Err(StageError::Io { path, source }),
        }
    }
}

/// Whether nothing but locks and what a run that was killed at its start left of its stamp is there.
fn has_only_hidden_files(directory: &Path) -> Result<bool, StageError> {
    let mut entries = std::fs::read_dir(directory).map_err(StageError::io(directory))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))))
}

/// Removes everything but the locks and the stamp; the manifest goes first, so that a kill in between leaves no finished look.
fn remove_content(directory: &Path) -> Result<(), StageError> {
    remove_file_if_there(&directory.join(Manifest::FILE_NAME))?;
    for entry in std::fs::read_dir(directory).map_err(StageError::io(directory))? {
        let path = entry.map_err(StageError::io(directory))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if RUNTIME_FILES.contains(&&*name) || replaced::is_own(&name) {
            continue;
        }
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(StageError::io(&path))?;
    }
    Ok(())
}

fn remove_file_if_there(path: &Path) -> Result<(), StageError> {
    remove_if_there(path).map_err(StageError::io(path))
}

fn remove_temporary_files(directory: &Path) -> Result<(), StageError> {
    for file in fingerprint::files_below(directory)? {
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY_PREFIX)) {
            remove_file_if_there(&file)?;
        }
    }
    Ok(())
}
