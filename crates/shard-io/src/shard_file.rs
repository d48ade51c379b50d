//! Random access to a shard: a tar stores its members verbatim, so a byte range is enough.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::ShardError;

/// An open shard from which byte ranges are read, by any number of threads at once.
#[derive(Debug)]
pub struct ShardFile {
    file: File,
    path: PathBuf,
    file_bytes: u64,
}

impl ShardFile {
    /// Opens the tar at `path`.
    ///
    /// # Errors
    /// [`ShardError::Io`] if it cannot be opened.
    pub fn open(path: &Path) -> Result<ShardFile, ShardError> {
        let file = File::open(path).map_err(ShardError::io(path))?;
        let file_bytes = file.metadata().map_err(ShardError::io(path))?.len();
        Ok(ShardFile { file, path: path.to_path_buf(), file_bytes })
    }

    /// The path it was opened from.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The bytes `offset..offset + num_bytes`, as [`MemberLocation`](crate::MemberLocation) or
    /// [`Member::offset`](crate::Member::offset) gave them.
    ///
    /// # Errors
    /// [`ShardError::OutOfBounds`], before anything is allocated, if the range is not inside the file;
    /// [`ShardError::Io`] if reading fails.
    pub fn read(&self, offset: u64, num_bytes: u64) -> Result<Vec<u8>, ShardError> {
        self.check(offset, num_bytes)?;
        let mut bytes = vec![0; num_bytes as usize];
        self.read_into(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// As [`read`](ShardFile::read), as many bytes as `bytes` has.
    ///
    /// # Errors
    /// As [`read`](ShardFile::read); what is in `bytes` then is of no use.
    pub fn read_into(&self, bytes: &mut [u8], offset: u64) -> Result<(), ShardError> {
        self.check(offset, bytes.len() as u64)?;
        self.file.read_exact_at(bytes, offset).map_err(ShardError::io(&self.path))
    }

    fn check(&self, offset: u64, num_bytes: u64) -> Result<(), ShardError> {
        if offset.checked_add(num_bytes).is_none_or(|end| end > self.file_bytes) {
            return Err(ShardError::OutOfBounds {
                path: self.path.clone(),
                offset,
                num_bytes,
                file_bytes: self.file_bytes,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        crate::write_atomic(&path, b"0123456789").unwrap();
        let index = ShardFile::open(&path).unwrap();
        assert_eq!(index.path(), path);
        assert_eq!(index.read(0, 10).unwrap(), b"0123456789");
        assert_eq!(index.read(3, 2).unwrap(), b"34");
        assert_eq!(index.read(10, 0).unwrap(), b"");
        for (offset, num_bytes) in [(10, 1), (11, 0), (0, 11), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(matches!(index.read(offset, num_bytes), Err(ShardError::OutOfBounds { .. })));
        }
    }

    #[test]
    fn threads_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let bytes: Vec<u8> = (0..100_000_u32).map(|i| (i % 253) as u8).collect();
        crate::write_atomic(&path, &bytes).unwrap();
        let index = ShardFile::open(&path).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4_usize {
                let (index, bytes) = (&index, &bytes);
                scope.spawn(move || {
                    for start in (thread..90_000).step_by(997) {
                        assert_eq!(index.read(start as u64, 1000).unwrap(), bytes[start..start + 1000]);
                    }
                });
            }
        });
    }
}
