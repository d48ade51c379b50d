//! The images that packs refer to, wherever they lie.

use std::collections::VecDeque;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::parquet_table::table_error;
use crate::{ImageRef, ShardError, ShardFile};

/// Files held open at once: a run may refer to more shards than a process may open.
const MAX_OPEN_FILES: usize = 64;

/// The files of a directory from which images are read, by any number of threads at once.
#[derive(Debug)]
pub struct ImageFiles {
    dir: PathBuf,
    /// The most recently used last.
    open: Mutex<VecDeque<(String, Arc<ShardFile>)>>,
}

impl ImageFiles {
    /// The files under `dir`; none is opened yet.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> ImageFiles {
        ImageFiles { dir: dir.into(), open: Mutex::default() }
    }

    /// Where the file of an image lies.
    #[must_use]
    pub fn path(&self, image: &ImageRef) -> PathBuf {
        self.dir.join(&image.shard)
    }

    /// The image's own bytes; `None` if they lie there in an encoding that they are not in.
    ///
    /// # Errors
    /// As [`read`](ImageFiles::read).
    pub fn image(&self, image: &ImageRef) -> Result<Option<Vec<u8>>, ShardError> {
        Ok(image.encoding.decode(self.read(&image.shard, image.offset, image.num_bytes)?))
    }

    /// Bytes `offset..offset + num_bytes` of the file called `name`.
    ///
    /// # Errors
    /// [`ShardError::Io`] if the file cannot be read, [`ShardError::OutOfBounds`] if the range is not inside it,
    /// [`ShardError::Table`] if the name leads out of the directory.
    pub fn read(&self, name: &str, offset: u64, num_bytes: u64) -> Result<Vec<u8>, ShardError> {
        self.file(name)?.read(offset, num_bytes)
    }

    /// Opens the file called `name`, or finds it open.
    fn file(&self, name: &str) -> Result<Arc<ShardFile>, ShardError> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.iter().rposition(|(other, _)| other == name) {
            let found = open.remove(place).expect("it was found there");
            open.push_back(found);
        } else {
            if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
                return Err(table_error(&self.dir, "images", format!("`{name}` leads out of the directory")));
            }
            let file = Arc::new(ShardFile::open(&self.dir.join(name))?);
            if open.len() == MAX_OPEN_FILES {
                open.pop_front();
            }
            open.push_back((name.to_owned(), file));
        }
        Ok(open.back().expect("one was just put there").1.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageEncoding, write_atomic};

    #[test]
    fn more_files_than_may_be_open() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        let name = |index: usize| format!("deep/{index}.json");
        for index in 0..MAX_OPEN_FILES + 9 {
            write_atomic(&dir.path().join(name(index)), format!("\"{index:04}\"").as_bytes()).unwrap();
        }
        let files = ImageFiles::new(dir.path());
        for index in (0..MAX_OPEN_FILES + 9).chain((0..9).rev()) {
            assert_eq!(files.read(&name(index), 1, 4).unwrap(), format!("{index:04}").as_bytes());
            assert!(files.open.lock().unwrap().len() <= MAX_OPEN_FILES);
        }
        let mut image = ImageRef {
            shard: name(3),
            key: "k".into(),
            offset: 1,
            num_bytes: 4,
            encoding: ImageEncoding::JsonBase64,
        };
        assert_eq!(files.image(&image).unwrap().unwrap(), [0xd3, 0x4d, 0x37]);
        image.num_bytes = 1;
        assert_eq!(files.image(&image).unwrap(), None);
        image.offset = 9;
        assert!(matches!(files.image(&image), Err(ShardError::OutOfBounds { .. })));
    }

    #[test]
    fn names_stay_inside_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let files = ImageFiles::new(dir.path().join("in"));
        for name in ["../x", "/etc/passwd", "a/../../x", "."] {
            let error = files.read(name, 0, 1).unwrap_err().to_string();
            assert!(error.contains("leads out of the directory"), "{error}");
        }
        assert!(matches!(files.read("absent", 0, 1), Err(ShardError::Io { .. })));
    }
}
