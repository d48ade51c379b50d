//! Files that appear complete or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tempfile::NamedTempFile;

use crate::ShardError;

/// How the names of unfinished files start; the stage runtime removes leftovers by it.
pub const TEMPORARY_PREFIX: &str = ".tmp-";

/// A file under construction: buffered, under a temporary name (`.tmp-…`) in the directory of the final one.
///
/// [`commit`](AtomicFile::commit) makes it durable and gives it its name; dropped without, it leaves nothing.
#[derive(Debug)]
pub struct AtomicFile {
    writer: BufWriter<NamedTempFile>,
    path: PathBuf,
    /// Bytes since the disk was last asked to take what there is.
    num_waiting: usize,
    write_behind: Option<WriteBehind>,
}

impl AtomicFile {
    /// Starts a file that will be called `path`. The directory must exist.
    ///
    /// # Errors
    /// If the temporary file cannot be created.
    pub fn create(path: &Path) -> io::Result<AtomicFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(TEMPORARY_PREFIX);
        #[cfg(unix)]
        {
            // Temporary files are private by default; an output is as readable as the umask says.
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(Permissions::from_mode(0o666));
        }
        let file = builder.tempfile_in(directory_of(path))?;
        Ok(AtomicFile {
            writer: BufWriter::with_capacity(1 << 16, file),
            path: path.to_path_buf(),
            num_waiting: 0,
            write_behind: None,
        })
    }

    /// Flushes to disk, renames to the final name (replacing what was there) and makes the rename durable.
    ///
    /// # Errors
    /// If any of these steps fails; the final name is then untouched, unless only the last step failed.
    pub fn commit(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        if let Some(write_behind) = self.write_behind {
            write_behind.finish()?;
        }
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|failed| failed.error)?;
        // The rename is durable only once the directory is.
        File::open(directory_of(&self.path))?.sync_all()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let num_bytes = self.writer.write(bytes)?;
        self.num_waiting += num_bytes;
        if self.num_waiting >= WriteBehind::BYTES {
            self.num_waiting = 0;
            if self.write_behind.is_none() {
                // Where there is no thread or no file handle to be had, the end of the file waits longer, that is all.
                self.write_behind =
                    self.writer.get_ref().as_file().try_clone().and_then(WriteBehind::start).ok();
            }
            if let Some(write_behind) = &self.write_behind {
                write_behind.ask();
            }
        }
        Ok(num_bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

/// A thread that has the disk take a growing file, so that little is left to wait for at its end, and little of the
/// memory is full of what the disk does not have.
#[derive(Debug)]
struct WriteBehind {
    requests: SyncSender<()>,
    thread: JoinHandle<io::Result<()>>,
}

impl WriteBehind {
    /// Bytes after which the disk is asked. Large enough that it is worth a thread, and the time a disk takes to start.
    const BYTES: usize = 32 << 20;

    fn start(file: File) -> io::Result<WriteBehind> {
        let (requests, asked) = sync_channel(1);
        let work = move || asked.iter().try_for_each(|()| file.sync_data());
        let thread = std::thread::Builder::new().name("write-behind".to_owned()).spawn(work)?;
        Ok(WriteBehind { requests, thread })
    }

    /// Does not wait. What is asked for while the disk is at work is part of what is asked for next.
    fn ask(&self) {
        let _is_busy_or_has_failed = self.requests.try_send(());
    }

    /// Waits; fails if the disk has failed, which it tells only once.
    fn finish(self) -> io::Result<()> {
        drop(self.requests);
        self.thread.join().unwrap_or_else(|payload| std::panic::resume_unwind(payload))
    }
}

/// The directory that holds `path`: its parent, or the current one for a bare name.
fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes `bytes` to `path` so that a reader, or a run after a crash, sees the old content or all of the new.
///
/// # Errors
/// If the file cannot be created, written, synced or renamed.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = AtomicFile::create(path)?;
    file.write_all(bytes)?;
    file.commit()
}

/// Removes a file, unless there is none.
///
/// # Errors
/// If it is there and cannot be removed.
pub fn remove_if_there(path: &Path) -> io::Result<()> {
    absent_is_gone(std::fs::remove_file(path))
}

/// What is not there need not be removed.
pub(crate) fn absent_is_gone(removed: io::Result<()>) -> io::Result<()> {
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Writes `value` as indented JSON with a final newline, as [`write_atomic`] does.
///
/// # Errors
/// [`ShardError::Io`] if writing fails, [`ShardError::Json`] if `value` cannot be written as JSON.
pub fn write_json_atomic<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), ShardError> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .map_err(|source| ShardError::Json { path: path.to_path_buf(), source })?;
    bytes.push(b'\n');
    write_atomic(path, &bytes).map_err(ShardError::io(path))
}

/// Reads a JSON file into `T`.
///
/// # Errors
/// [`ShardError::Io`] if it cannot be read, [`ShardError::Json`] if it is not JSON of that shape.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, ShardError> {
    let bytes = std::fs::read(path).map_err(ShardError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|source| ShardError::Json { path: path.to_path_buf(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"");
        write_atomic(&path, b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn only_what_is_there_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(&path, b"x").unwrap();
        for _ in 0..2 {
            remove_if_there(&path).unwrap();
            assert_eq!(names(dir.path()), [""; 0]);
        }
        assert!(remove_if_there(dir.path()).is_err(), "a directory is no file");
    }

    #[test]
    fn unfinished_file_is_recognisable_and_vanishes_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("a")).unwrap();
        file.write_all(b"half").unwrap();
        assert!(names(dir.path())[0].starts_with(TEMPORARY_PREFIX));
        drop(file);
        assert_eq!(names(dir.path()), [""; 0]);
    }

    #[test]
    fn large_files_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let piece: Vec<u8> = (0..(1 << 20) + 1).map(|i| (i % 251) as u8).collect();
        let num_pieces = 2 * WriteBehind::BYTES / piece.len() + 1;
        for is_finished in [false, true] {
            let mut file = AtomicFile::create(&path).unwrap();
            (0..num_pieces).for_each(|_| file.write_all(&piece).unwrap());
            assert!(file.write_behind.is_some());
            if is_finished {
                file.commit().unwrap();
            }
        }
        assert!(
            std::fs::read(&path).unwrap().chunks(piece.len()).eq(std::iter::repeat_n(&piece[..], num_pieces))
        );
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[cfg(unix)]
    #[test]
    fn output_is_not_private() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        // `File::create` asks for 0666 under the umask, whatever that is here.
        let reference = dir.path().join("reference");
        File::create(&reference).unwrap();
        write_atomic(&path, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&path), mode(&reference));
    }

    #[test]
    fn json_round_trips_and_errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_json_atomic(&path, &[1, 2, 3]).unwrap();
        assert_eq!(read_json::<Vec<u32>>(&path).unwrap(), [1, 2, 3]);
        let wrong = read_json::<String>(&path).unwrap_err();
        assert!(matches!(&wrong, ShardError::Json { .. }) && wrong.to_string().contains("a.json"));
        let absent = read_json::<String>(&dir.path().join("b.json")).unwrap_err();
        assert!(matches!(&absent, ShardError::Io { .. }) && absent.to_string().contains("b.json"));
    }
}
