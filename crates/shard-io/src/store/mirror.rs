//! Copies of remote files in a local directory.
//!
//! ```text
//! {root}/{digest of the address}/
//!   files/...        the files, under their names below the address
//!   partial/...      downloads that are not complete; a later run goes on where they end
//!   journal.jsonl    files that came since the index was written, one line each
//!   index.json       written last: the copy is complete, and this is what it holds
//! ```

use super::transfer::Transfer;
use super::{Backend, Listing, RemoteFile, Shape, Store, StoreError, StoreUri};
use crate::atomic::absent_is_gone;
use crate::{digest_bytes, digest_file, remove_if_there, write_json_atomic};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

/// Downloads at the same time.
pub(super) const PARALLEL: usize = 8;
/// Where the files lie.
const FILES_DIR: &str = "files";
const PARTIAL_DIR: &str = "partial";
const INDEX_FILE: &str = "index.json";
const JOURNAL_FILE: &str = "journal.jsonl";
const LOCK_FILE: &str = ".lock";

/// What a mirror is to be.
pub struct MirrorOptions<'a> {
    /// Directory of all mirrors; models of the hub are in the hub's own cache.
    pub root: &'a Path,
    /// Most bytes that one address may take here.
    pub max_bytes: u64,
    /// Which files of a directory are wanted, by their name below it.
    pub wants: &'a dyn Fn(&str) -> bool,
    /// Asked ten times a second; once it says yes, the work ends with [`StoreError::Interrupted`].
    pub is_stopped: &'a dyn Fn() -> bool,
    /// Told how many bytes of how many are here while the weights of a model come, also by an earlier run.
    pub progress: &'a dyn Fn(u64, u64),
}

/// The local copy of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror {
    /// What to read in its place: the file, the directory, or the pattern below the directory.
    pub path: PathBuf,
    /// Its files, sorted by name.
    pub files: Vec<MirroredFile>,
    /// How many of them were downloaded just now.
    pub num_fetched: usize,
}

/// One file of a mirror.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirroredFile {
    /// Path below the address, with `/` between names.
    pub name: String,
    /// Size in bytes.
    pub num_bytes: u64,
    /// What changes when the remote file does.
    pub tag: Option<String>,
    /// Digest of the content: BLAKE3, or for models of the hub what the hub calls it.
    pub digest: String,
}

/// Content of [`INDEX_FILE`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Index {
    uri: String,
    /// What to read, below [`FILES_DIR`]; empty for the directory itself.
    local: String,
    files: Vec<MirroredFile>,
}

impl Store {
    /// Copies what the address names into a directory below `options.root`, but for the files that are there
    /// already. Processes that want the same at the same time wait for one another.
    ///
    /// Of a model of the hub, what makes a checkpoint is copied into the hub's own cache, and so shared with other
    /// programs that use it.
    ///
    /// # Errors
    /// If the address names nothing, cannot be reached or read, is larger than allowed, or changes meanwhile; if
    /// the copy cannot be written; [`StoreError::Offline`] if no network may be used and the copy is not complete.
    pub fn mirror(&self, uri: &StoreUri, options: &MirrorOptions<'_>) -> Result<Mirror, StoreError> {
        if uri.is_hub_model() {
            return self.fetch_model(uri, options);
        }
        let dir = MirrorDir::new(options.root, uri);
        let _lock = dir.lock(options.is_stopped)?;
        if self.settings.offline
            && let Some(index) = dir.index()
        {
            return Ok(dir.mirror(index.local, index.files, 0));
        }
        let backend = Backend::new(uri, &self.settings)?;
        let listing = self.list(&backend, uri, options)?;
        let mut known = dir.known_files();
        let local = local_path(&listing);
        let names: Vec<String> = listing.files.iter().map(|file| file.name.clone()).collect();
        let is_here = |file: &RemoteFile| known.get(&file.name).is_some_and(|it| it.is(file));
        let missing: Vec<_> = listing.files.into_iter().filter(|file| !is_here(file)).collect();
        let num_fetched = missing.len();
        if num_fetched > 0 {
            let transfer = Transfer {
                backend: &backend,
                uri,
                retry: self.settings.retry,
                max_bytes: options.max_bytes,
                arrived: &|_| {},
            };
            let download = Download::new(transfer, &dir)?;
            self.run(options.is_stopped, download.all(missing))?;
            // What came is in the journal now.
            known = dir.known_files();
        }
        let files: Vec<MirroredFile> = names.iter().filter_map(|name| known.remove(name)).collect();
        let index = Index { uri: uri.to_string(), local: local.clone(), files: files.clone() };
        dir.finish(&index)?;
        Ok(dir.mirror(local, files, num_fetched))
    }

    /// The local copy of an address if it is complete and what the address names now; nothing is copied.
    ///
    /// # Errors
    /// As [`mirror`](Store::mirror).
    pub fn find_mirror(
        &self,
        uri: &StoreUri,
        options: &MirrorOptions<'_>,
    ) -> Result<Option<Mirror>, StoreError> {
        if uri.is_hub_model() {
            return self.find_model(uri, options);
        }
        let dir = MirrorDir::new(options.root, uri);
        let Some(index) = dir.index() else { return Ok(None) };
        if !self.settings.offline {
            let listing = self.list(&Backend::new(uri, &self.settings)?, uri, options)?;
            let known = dir.known_files();
            let is_here = |file: &RemoteFile| known.get(&file.name).is_some_and(|it| it.is(file));
            if listing.files.len() != index.files.len() || !listing.files.iter().all(is_here) {
                return Ok(None);
            }
        }
        Ok(Some(dir.mirror(index.local, index.files, 0)))
    }

    /// What the address names, checked: local names, total size.
    fn list(
        &self,
        backend: &Backend,
        uri: &StoreUri,
        options: &MirrorOptions<'_>,
    ) -> Result<Listing, StoreError> {
        if self.settings.offline && !uri.as_str().starts_with("hf://") {
            let problem = format!("looked in {}", options.root.display());
            return Err(StoreError::Offline { uri: uri.to_string(), problem });
        }
        let mut listing = self.run(options.is_stopped, backend.list(uri))?;
        if listing.shape == Shape::Directory {
            listing.files.retain(|file| (options.wants)(&file.name));
            if listing.files.is_empty() {
                return Err(StoreError::NotFound { uri: uri.to_string() });
            }
        }
        check_names(uri, &listing.files)?;
        check_size(uri, listing.files.iter(), options.max_bytes)?;
        Ok(listing)
    }
}

/// No name of a listing leads out of the directory of the copies.
pub(super) fn check_names(uri: &StoreUri, files: &[RemoteFile]) -> Result<(), StoreError> {
    match files.iter().find(|file| !is_below(&file.name)) {
        None => Ok(()),
        Some(file) => {
            let name = crate::error::printable(&file.name);
            Err(StoreError::BadName { uri: uri.to_string(), name })
        }
    }
}

/// What is listed may be copied here.
pub(super) fn check_size<'a>(
    uri: &StoreUri,
    files: impl Iterator<Item = &'a RemoteFile>,
    limit: u64,
) -> Result<(), StoreError> {
    let num_bytes = files.filter_map(|file| file.num_bytes).fold(0, u64::saturating_add);
    if num_bytes > limit {
        return Err(StoreError::TooLarge { uri: uri.to_string(), num_bytes, limit });
    }
    Ok(())
}

/// What to read of a mirror, below its files.
fn local_path(listing: &Listing) -> String {
    match &listing.shape {
        Shape::File => listing.files[0].name.clone(),
        Shape::Directory => String::new(),
        Shape::Pattern(pattern) => pattern.clone(),
    }
}

/// Whether a name is a path below a directory and nothing else.
fn is_below(name: &str) -> bool {
    let is_plain = |component| matches!(component, Component::Normal(_));
    !name.is_empty()
        && !name.contains(['\0', '\\'])
        && name.split('/').all(|part| !part.is_empty())
        && Path::new(name).components().all(is_plain)
}

impl MirroredFile {
    /// Whether it is what is listed. Where nothing but the size is known of a file, the size decides; where not
    /// even that is, it is downloaded every time.
    fn is(&self, file: &RemoteFile) -> bool {
        file.num_bytes.map_or(file.tag.is_some(), |num_bytes| num_bytes == self.num_bytes)
            && file.tag == self.tag
    }
}

/// The directory of one mirror.
struct MirrorDir {
    path: PathBuf,
}

impl MirrorDir {
    fn new(root: &Path, uri: &StoreUri) -> Self {
        Self { path: root.join(&digest_bytes(uri.as_str().as_bytes())[..16]) }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(FILES_DIR).join(name)
    }

    /// Two runs that want the same copy make it one after the other.
    fn lock(&self, is_stopped: &dyn Fn() -> bool) -> Result<File, StoreError> {
        for dir in [FILES_DIR, PARTIAL_DIR].map(|dir| self.path.join(dir)) {
            std::fs::create_dir_all(&dir).map_err(StoreError::io(&dir))?;
        }
        let path = self.path.join(LOCK_FILE);
        let file = File::create(&path).map_err(StoreError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
                Err(TryLockError::WouldBlock) if is_stopped() => return Err(StoreError::Interrupted),
                Err(TryLockError::WouldBlock) => std::thread::sleep(super::INTERRUPT_TICK),
            }
        }
    }

    /// The index, if the copy was complete once and nothing has been taken away since.
    fn index(&self) -> Option<Index> {
        let index: Index = crate::read_json(&self.path.join(INDEX_FILE)).ok()?;
        index.files.iter().all(|file| self.has(file)).then_some(index)
    }

    fn has(&self, file: &MirroredFile) -> bool {
        std::fs::metadata(self.file(&file.name)).is_ok_and(|found| found.len() == file.num_bytes)
    }

    /// All files that are here whole, by name.
    fn known_files(&self) -> BTreeMap<String, MirroredFile> {
        let index: Index = crate::read_json(&self.path.join(INDEX_FILE)).unwrap_or_default();
        let mut files: BTreeMap<_, _> =
            index.files.into_iter().map(|file| (file.name.clone(), file)).collect();
        if let Ok(journal) = File::open(self.path.join(JOURNAL_FILE)) {
            // A kill may have cut the last line.
            let lines = BufReader::new(journal).lines().map_while(Result::ok);
            files.extend(
                lines
                    .filter_map(|line| serde_json::from_str::<MirroredFile>(&line).ok())
                    .map(|file| (file.name.clone(), file)),
            );
        }
        files.retain(|_, file| self.has(file));
        files
    }

    /// Writes the index and removes what does not belong to it.
    fn finish(&self, index: &Index) -> Result<(), StoreError> {
        let path = self.path.join(INDEX_FILE);
        let failed =
            |error: crate::ShardError| StoreError::Io { path: path.clone(), source: io::Error::other(error) };
        write_json_atomic(&path, index).map_err(failed)?;
        remove_if_there(&self.path.join(JOURNAL_FILE)).map_err(StoreError::io(&self.path))?;
        let partial = self.path.join(PARTIAL_DIR);
        absent_is_gone(std::fs::remove_dir_all(&partial)).map_err(StoreError::io(&partial))?;
        let root = self.path.join(FILES_DIR);
        let mut pending = vec![root.clone()];
        while let Some(dir) = pending.pop() {
            for entry in std::fs::read_dir(&dir).map_err(StoreError::io(&dir))? {
                let path = entry.map_err(StoreError::io(&dir))?.path();
                if path.is_dir() {
                    pending.push(path);
                    continue;
                }
                let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
                if index.files.binary_search_by(|file| file.name.as_str().cmp(&name)).is_err() {
                    remove_if_there(&path).map_err(StoreError::io(&path))?;
                }
            }
        }
        Ok(())
    }

    fn mirror(&self, local: String, files: Vec<MirroredFile>, num_fetched: usize) -> Mirror {
        let root = self.path.join(FILES_DIR);
        let path = if local.is_empty() { root } else { root.join(local) };
        Mirror { path, files, num_fetched }
    }
}

/// Downloads of one mirror.
struct Download<'a> {
    transfer: Transfer<'a>,
    dir: &'a MirrorDir,
    journal: Mutex<File>,
}

impl<'a> Download<'a> {
    fn new(transfer: Transfer<'a>, dir: &'a MirrorDir) -> Result<Self, StoreError> {
        let path = dir.path.join(JOURNAL_FILE);
        let journal =
            OpenOptions::new().append(true).create(true).open(&path).map_err(StoreError::io(&path))?;
        // A line that a kill has cut ends here.
        (&journal).write_all(b"\n").map_err(StoreError::io(&path))?;
        Ok(Self { transfer, dir, journal: Mutex::new(journal) })
    }

    async fn all(&self, files: Vec<RemoteFile>) -> Result<(), StoreError> {
        let downloads = futures_util::stream::iter(files).map(|file| async move { self.one(&file).await });
        downloads.buffer_unordered(PARALLEL).try_collect::<()>().await
    }

    async fn one(&self, file: &RemoteFile) -> Result<(), StoreError> {
        let id = digest_bytes(format!("{}\0{:?}", file.key, file.tag).as_bytes());
        let partial = self.dir.path.join(PARTIAL_DIR).join(&id[..32]);
        self.transfer.fetch(file, &partial).await?;
        let digest = digest_file(&partial).map_err(StoreError::io(&partial))?;
        let path = self.dir.file(&file.name);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(StoreError::io(dir))?;
        }
        let num_bytes = std::fs::metadata(&partial).map_err(StoreError::io(&partial))?.len();
        std::fs::rename(&partial, &path).map_err(StoreError::io(&path))?;
        let line = MirroredFile { name: file.name.clone(), num_bytes, tag: file.tag.clone(), digest };
        let mut line = serde_json::to_vec(&line).expect("a struct of texts and numbers is JSON");
        line.push(b'\n');
        let mut journal = self.journal.lock().expect("no thread panics while it holds the journal");
        journal.write_all(&line).map_err(StoreError::io(&self.dir.path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_directory() {
        for name in ["a", "a/b.tar", ".hidden", "a b", "é"] {
            assert!(is_below(name), "{name}");
        }
        for name in ["", "/a", "a/../b", "..", "a//b", "a/", "./a", "a\0b", "a\\b"] {
            assert!(!is_below(name), "{name}");
        }
    }
}
