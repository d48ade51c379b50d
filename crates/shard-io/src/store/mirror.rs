//! Copies of remote files in a local directory.
//!
//! ```text
//! {root}/{digest of the address}/
//!   files/...        the files, under their names below the address
//!   partial/...      downloads that are not complete; a later run goes on where they end
//!   journal.jsonl    files that came since the index was written, one line each
//!   index.json       written last: the copy is complete, and this is what it holds
//! ```

use super::settings::StoreSettings;
use super::{Backend, Body, Listing, RemoteFile, Shape, Store, StoreError, StoreUri};
use crate::atomic::absent_is_gone;
use crate::{digest_bytes, digest_file, remove_if_there, write_json_atomic};
use futures_util::{StreamExt, TryStreamExt};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Downloads at the same time.
const PARALLEL: usize = 8;
/// Longest silence in the middle of a body; less, if requests are tried again for less.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// Wait before a download that broke is taken up again.
const RESUME_WAIT: Duration = Duration::from_millis(500);
/// Where the files lie.
const FILES_DIR: &str = "files";
const PARTIAL_DIR: &str = "partial";
const INDEX_FILE: &str = "index.json";
const JOURNAL_FILE: &str = "journal.jsonl";
const LOCK_FILE: &str = ".lock";

/// What a mirror is to be.
pub struct MirrorOptions<'a> {
    /// Directory of all mirrors.
    pub root: &'a Path,
    /// Most bytes that one address may take here.
    pub max_bytes: u64,
    /// Which files of a directory are wanted, by their name below it.
    pub wants: &'a dyn Fn(&str) -> bool,
    /// Asked ten times a second; once it says yes, the work ends with [`StoreError::Interrupted`].
    pub is_stopped: &'a dyn Fn() -> bool,
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
    /// BLAKE3 digest of the content.
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
    /// # Errors
    /// If the address names nothing, cannot be reached or read, is larger than allowed, or changes meanwhile; if
    /// the copy cannot be written; [`StoreError::Offline`] if no network may be used and the copy is not complete.
    pub fn mirror(&self, uri: &StoreUri, options: &MirrorOptions<'_>) -> Result<Mirror, StoreError> {
        let dir = MirrorDir::new(options.root, uri);
        let _lock = dir.lock(options.is_stopped)?;
        if self.settings.offline
            && let Some(index) = dir.index()
        {
            return Ok(dir.mirror(index.local, index.files, 0));
        }
        let listing = self.list(uri, options)?;
        let mut known = dir.known_files();
        let local = local_path(&listing);
        let names: Vec<String> = listing.files.iter().map(|file| file.name.clone()).collect();
        let is_here = |file: &RemoteFile| known.get(&file.name).is_some_and(|it| it.is(file));
        let missing: Vec<_> = listing.files.into_iter().filter(|file| !is_here(file)).collect();
        let num_fetched = missing.len();
        if num_fetched > 0 {
            let download = Download::new(self, uri, &dir, options.max_bytes)?;
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
        let dir = MirrorDir::new(options.root, uri);
        let Some(index) = dir.index() else { return Ok(None) };
        if !self.settings.offline {
            let listing = self.list(uri, options)?;
            let known = dir.known_files();
            let is_here = |file: &RemoteFile| known.get(&file.name).is_some_and(|it| it.is(file));
            if listing.files.len() != index.files.len() || !listing.files.iter().all(is_here) {
                return Ok(None);
            }
        }
        Ok(Some(dir.mirror(index.local, index.files, 0)))
    }

    /// What the address names, checked: local names, total size.
    fn list(&self, uri: &StoreUri, options: &MirrorOptions<'_>) -> Result<Listing, StoreError> {
        if self.settings.offline && !uri.as_str().starts_with("hf://") {
            let problem = format!("looked in {}", options.root.display());
            return Err(StoreError::Offline { uri: uri.to_string(), problem });
        }
        let backend = Backend::new(uri, &self.settings)?;
        let mut listing = self.run(options.is_stopped, backend.list(uri))?;
        if listing.shape == Shape::Directory {
            listing.files.retain(|file| (options.wants)(&file.name));
            if listing.files.is_empty() {
                return Err(StoreError::NotFound { uri: uri.to_string() });
            }
        }
        if let Some(file) = listing.files.iter().find(|file| !is_below(&file.name)) {
            let name = crate::error::printable(&file.name);
            return Err(StoreError::BadName { uri: uri.to_string(), name });
        }
        let num_bytes = listing.files.iter().filter_map(|file| file.num_bytes).sum();
        if num_bytes > options.max_bytes {
            return Err(StoreError::TooLarge { uri: uri.to_string(), num_bytes, limit: options.max_bytes });
        }
        Ok(listing)
    }
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
    backend: Backend,
    uri: &'a StoreUri,
    dir: &'a MirrorDir,
    journal: Mutex<File>,
    settings: &'a StoreSettings,
    max_bytes: u64,
}

impl<'a> Download<'a> {
    fn new(
        store: &'a Store,
        uri: &'a StoreUri,
        dir: &'a MirrorDir,
        max_bytes: u64,
    ) -> Result<Self, StoreError> {
        let path = dir.path.join(JOURNAL_FILE);
        let journal =
            OpenOptions::new().append(true).create(true).open(&path).map_err(StoreError::io(&path))?;
        // A line that a kill has cut ends here.
        (&journal).write_all(b"\n").map_err(StoreError::io(&path))?;
        let backend = Backend::new(uri, &store.settings)?;
        Ok(Self { backend, uri, dir, journal: Mutex::new(journal), settings: &store.settings, max_bytes })
    }

    async fn all(&self, files: Vec<RemoteFile>) -> Result<(), StoreError> {
        // A hub pins its revision when it lists.
        if matches!(self.backend, Backend::Hub(_)) {
            self.backend.list(self.uri).await?;
        }
        let downloads = futures_util::stream::iter(files).map(|file| async move { self.one(&file).await });
        downloads.buffer_unordered(PARALLEL).try_collect::<()>().await
    }

    async fn one(&self, file: &RemoteFile) -> Result<(), StoreError> {
        let id = digest_bytes(format!("{}\0{:?}", file.key, file.tag).as_bytes());
        let partial = self.dir.path.join(PARTIAL_DIR).join(&id[..32]);
        self.fill(file, &partial).await?;
        let digest = digest_file(&partial).map_err(StoreError::io(&partial))?;
        if let Some(expected) = &file.sha256
            && sha256_of(&partial).map_err(StoreError::io(&partial))? != *expected
        {
            remove_if_there(&partial).map_err(StoreError::io(&partial))?;
            return Err(self.changed(file, "its SHA-256 is not the listed one"));
        }
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

    /// Appends to the partial file until it is whole. A body that breaks off is taken up where it ended, as long as
    /// something comes at all.
    async fn fill(&self, file: &RemoteFile, partial: &Path) -> Result<(), StoreError> {
        let mut output =
            OpenOptions::new().append(true).create(true).open(partial).map_err(StoreError::io(partial))?;
        let mut offset = output.metadata().map_err(StoreError::io(partial))?.len();
        if file.tag.is_none() || file.num_bytes.is_none_or(|num_bytes| offset > num_bytes) {
            // Nobody knows whether the rest belongs to it.
            output.set_len(0).map_err(StoreError::io(partial))?;
            offset = 0;
        }
        let mut last_progress = Instant::now();
        loop {
            if file.num_bytes == Some(offset) {
                return output.sync_all().map_err(StoreError::io(partial));
            }
            let before = offset;
            let copied = match self.backend.read(file, offset).await {
                Ok(body) => self.copy(file, body, &mut output, partial, &mut offset).await,
                Err(error) => Err(error),
            };
            if offset > before {
                last_progress = Instant::now();
            }
            match copied {
                Ok(()) if file.num_bytes.is_none_or(|num_bytes| num_bytes == offset) => {
                    return output.sync_all().map_err(StoreError::io(partial));
                }
                Ok(()) if last_progress.elapsed() > self.settings.retry => {
                    return Err(StoreError::Unreachable {
                        uri: self.address(file),
                        problem: format!("it breaks off at byte {offset} again and again"),
                    });
                }
                Err(error) if !error.is_transient() || last_progress.elapsed() > self.settings.retry => {
                    return Err(error);
                }
                Ok(()) | Err(_) => {}
            }
            if file.tag.is_none() {
                output.set_len(0).map_err(StoreError::io(partial))?;
                offset = 0;
            }
            tokio::time::sleep(RESUME_WAIT).await;
        }
    }

    async fn copy(
        &self,
        file: &RemoteFile,
        mut body: Body,
        output: &mut File,
        partial: &Path,
        offset: &mut u64,
    ) -> Result<(), StoreError> {
        let silence = MAX_SILENCE.min(self.settings.retry.max(Duration::from_millis(100)));
        let limit = file.num_bytes.unwrap_or(self.max_bytes);
        loop {
            let next = tokio::time::timeout(silence, body.next()).await;
            let next = next.map_err(|_| StoreError::Unreachable {
                uri: self.address(file),
                problem: format!("nothing came for {} s", silence.as_secs_f64()),
            })?;
            let Some(chunk) = next.transpose()? else { return Ok(()) };
            if *offset + chunk.len() as u64 > limit {
                return Err(self.changed(file, "it is longer than it said"));
            }
            output.write_all(&chunk).map_err(StoreError::io(partial))?;
            *offset += chunk.len() as u64;
        }
    }

    fn changed(&self, file: &RemoteFile, problem: &str) -> StoreError {
        StoreError::Changed { uri: self.address(file), problem: problem.to_owned() }
    }

    fn address(&self, file: &RemoteFile) -> String {
        if file.key.contains("://") { file.key.clone() } else { format!("{} ({})", self.uri, file.key) }
    }
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    loop {
        let bytes = file.fill_buf()?;
        if bytes.is_empty() {
            break;
        }
        hasher.update(bytes);
        let num_bytes = bytes.len();
        file.consume(num_bytes);
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
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
