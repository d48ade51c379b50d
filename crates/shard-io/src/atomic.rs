//! Files that appear complete or not at all.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

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
        Ok(AtomicFile { writer: BufWriter::with_capacity(1 << 16, file), path: path.to_path_buf() })
    }

    /// Flushes to disk, renames to the final name (replacing what was there) and makes the rename durable.
    ///
    /// # Errors
    /// If any of these steps fails; the final name is then untouched, unless only the last step failed.
    pub fn commit(self) -> io::Result<()> {
        let file = self.writer.into_inner().map_err(io::IntoInnerError::into_error)?;
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|failed| failed.error)?;
        // The rename is durable only once the directory is.
        File::open(directory_of(&self.path))?.sync_all()
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
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
    fn unfinished_file_is_recognisable_and_vanishes_when_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let mut file = AtomicFile::create(&dir.path().join("a")).unwrap();
        file.write_all(b"half").unwrap();
        assert!(names(dir.path())[0].starts_with(TEMPORARY_PREFIX));
        drop(file);
        assert_eq!(names(dir.path()), [""; 0]);
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
