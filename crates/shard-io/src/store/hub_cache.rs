//! Models of the hub in the cache of the hub's own tools, where those find what we fetched, and we what they did.
//!
//! ```text
//! {cache}/models--{owner}--{name}/
//!   blobs/{digest}               contents, called after their SHA-256 or git's SHA-1
//!   blobs/{digest}.incomplete    downloads that are not complete; a later run goes on where they end
//!   snapshots/{commit}/{path}    links to the contents, under their names in the repository
//!   refs/{revision}              the commit of a branch or tag when it was last asked for
//! {cache}/.locks/models--{owner}--{name}/{digest}.lock
//! ```
//!
//! The layout, and the locks, are those of the Python package `huggingface_hub` (`file_download.py`). A content gets its
//! name when its digest has been checked, and a snapshot its links when all contents are there.

use super::checkpoint_files::{CheckpointFiles, WEIGHT_FILES};
use super::hub::Hub;
use super::mirror::{PARALLEL, check_names, check_size};
use super::transfer::Transfer;
use super::{
    Backend, INTERRUPT_TICK, Listing, Mirror, MirrorOptions, MirroredFile, RemoteFile, Shape, Store,
    StoreError, StoreUri,
};
use crate::{digest_file, write_atomic};
use futures_util::{StreamExt, TryStreamExt};
use std::cell::Cell;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

impl Store {
    /// Copies what is missing of a model into the hub's cache.
    pub(super) fn fetch_model(
        &self,
        uri: &StoreUri,
        options: &MirrorOptions<'_>,
    ) -> Result<Mirror, StoreError> {
        let backend = Backend::new(uri, &self.settings)?;
        let work = async {
            let snapshot = Snapshot::new(&backend, uri, options, self).await?;
            let num_fetched = Cell::new(0);
            let mut files = snapshot.choose()?;
            snapshot.fetch(&files.first, &num_fetched, &|_, _| ()).await?;
            if let Some(index) = &files.index {
                let path = snapshot.here(index).ok_or_else(|| snapshot.incomplete(index))?;
                files.choose_shards(&path, uri.as_str(), |shard| snapshot.no_shard(shard))?;
                check_size(uri, files.all(), options.max_bytes)?;
            }
            snapshot.fetch(&files.weights, &num_fetched, options.progress).await?;
            snapshot.link(files.all())?;
            snapshot.mirror(files, num_fetched.get())
        };
        self.run(options.is_stopped, work)
    }

    /// A model in the hub's cache, if it is complete and what the address names now; nothing is copied.
    pub(super) fn find_model(
        &self,
        uri: &StoreUri,
        options: &MirrorOptions<'_>,
    ) -> Result<Option<Mirror>, StoreError> {
        let backend = Backend::new(uri, &self.settings)?;
        let work = async {
            let snapshot = Snapshot::new(&backend, uri, options, self).await?;
            let mut files = snapshot.choose()?;
            if let Some(index) = &files.index {
                let Some(path) = snapshot.here(index) else { return Ok(None) };
                files.choose_shards(&path, uri.as_str(), |shard| snapshot.no_shard(shard))?;
            }
            check_size(uri, files.all(), options.max_bytes)?;
            let is_complete = files.all().all(|file| snapshot.is_linked(file));
            if is_complete { snapshot.mirror(files, 0).map(Some) } else { Ok(None) }
        };
        self.run(options.is_stopped, work)
    }
}

/// One commit of one model: what it is to hold, and where that lies.
struct Snapshot<'a> {
    backend: &'a Backend,
    hub: &'a Hub,
    uri: &'a StoreUri,
    options: &'a MirrorOptions<'a>,
    store: &'a Store,
    listing: Listing,
    /// Directory of the model.
    model_dir: PathBuf,
    lock_dir: PathBuf,
    /// Directory of the commit.
    dir: PathBuf,
    reference: PathBuf,
}

impl<'a> Snapshot<'a> {
    /// Asks the hub, or without a network the cache, what there is.
    async fn new(
        backend: &'a Backend,
        uri: &'a StoreUri,
        options: &'a MirrorOptions<'a>,
        store: &'a Store,
    ) -> Result<Snapshot<'a>, StoreError> {
        let Backend::Hub(hub) = backend else { unreachable!("a model is on the hub") };
        let Some((cache, repo)) = hub.cache() else {
            let problem = "no directory to keep models in is known: set it, or HF_HOME".to_owned();
            return Err(StoreError::Setting { key: "HF_HUB_CACHE", problem });
        };
        let listing = match backend.list(uri).await {
            Err(StoreError::Unreachable { uri, problem }) if hub.list_cache("").is_ok() => {
                let remedy = "with HF_HUB_OFFLINE=1, what is in the hub's cache is taken";
                return Err(StoreError::Unreachable { uri, problem: format!("{problem} ({remedy})") });
            }
            listed => listed?,
        };
        check_names(uri, &listing.files)?;
        let folder = repo.folder_name();
        Ok(Snapshot {
            backend,
            hub,
            uri,
            options,
            store,
            listing,
            model_dir: cache.path().join(&folder),
            lock_dir: cache.path().join(".locks").join(&folder),
            dir: cache.repo(repo.clone()).pointer_path(hub.commit()),
            reference: cache.path().join(folder).join("refs").join(repo.revision()),
        })
    }

    /// What is wanted of the listing: all of what is asked for by name, of a folder a checkpoint.
    fn choose(&self) -> Result<CheckpointFiles, StoreError> {
        let mut files = self.listing.files.clone();
        if self.listing.shape != Shape::Directory {
            check_size(self.uri, files.iter(), self.options.max_bytes)?;
            return Ok(CheckpointFiles::named(files));
        }
        files.retain(|file| (self.options.wants)(&file.name));
        let chosen = CheckpointFiles::choose(files);
        if chosen.all().next().is_none() {
            return Err(StoreError::NotFound { uri: self.uri.to_string() });
        }
        let wants_weights = WEIGHT_FILES.iter().any(|name| (self.options.wants)(name));
        if self.store.settings.offline && wants_weights && !chosen.has_weights() {
            return Err(self.offline("no weights"));
        }
        check_size(self.uri, chosen.all(), self.options.max_bytes)?;
        Ok(chosen)
    }

    /// Brings the contents of these files here, several at a time.
    async fn fetch(
        &self,
        files: &[RemoteFile],
        num_fetched: &Cell<usize>,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(), StoreError> {
        let missing: Vec<&RemoteFile> = files.iter().filter(|file| self.here(file).is_none()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let total: u64 = missing.iter().filter_map(|file| file.num_bytes).sum();
        let num_here = Cell::new(0);
        let arrived = |num_bytes| {
            num_here.set(total.min(num_here.get() + num_bytes));
            progress(num_here.get(), total);
        };
        let transfer = Transfer {
            backend: self.backend,
            uri: self.uri,
            retry: self.store.settings.retry,
            max_bytes: self.options.max_bytes,
            arrived: &arrived,
        };
        let transfer = &transfer;
        let downloads = futures_util::stream::iter(missing).map(|file| async move {
            if self.fetch_one(file, transfer).await? {
                num_fetched.set(num_fetched.get() + 1);
            }
            Ok(())
        });
        downloads.buffer_unordered(PARALLEL).try_collect::<()>().await
    }

    /// Brings the content of a file here; whether this process did.
    async fn fetch_one(&self, file: &RemoteFile, transfer: &Transfer<'_>) -> Result<bool, StoreError> {
        let Some(blob) = self.blob(file) else { return Err(self.incomplete(file)) };
        let digest = blob.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let dir = self.model_dir.join("blobs");
        std::fs::create_dir_all(&dir).map_err(StoreError::io(&dir))?;
        let _lock = self.lock(&digest, transfer.arrived).await?;
        if self.here(file).is_some() {
            (transfer.arrived)(file.num_bytes.unwrap_or_default());
            return Ok(false);
        }
        let partial = dir.join(format!("{digest}.incomplete"));
        transfer.fetch(file, &partial).await?;
        std::fs::rename(&partial, &blob).map_err(StoreError::io(&blob))?;
        Ok(true)
    }

    /// Waits until no other process fetches the same content. A file system without locks is worked on without.
    async fn lock(&self, digest: &str, arrived: &dyn Fn(u64)) -> Result<File, StoreError> {
        std::fs::create_dir_all(&self.lock_dir).map_err(StoreError::io(&self.lock_dir))?;
        let path = self.lock_dir.join(format!("{digest}.lock"));
        let file = File::create(&path).map_err(StoreError::io(&path))?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(file),
                Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                    return Ok(file);
                }
                Err(TryLockError::Error(source)) => return Err(StoreError::Io { path, source }),
                Err(TryLockError::WouldBlock) => {
                    arrived(0);
                    tokio::time::sleep(INTERRUPT_TICK).await;
                }
            }
        }
    }

    /// Where the content of a file belongs, if the hub says what to call it.
    fn blob(&self, file: &RemoteFile) -> Option<PathBuf> {
        Some(self.model_dir.join("blobs").join(file.content.as_ref()?.hex()))
    }

    /// Where a file is read from in the end.
    fn pointer(&self, file: &RemoteFile) -> PathBuf {
        self.dir.join(&file.key)
    }

    fn is_linked(&self, file: &RemoteFile) -> bool {
        has_bytes(&self.pointer(file), file.num_bytes)
    }

    /// The content of a file, if it is here, linked or not. Contents get their names when they are whole.
    fn here(&self, file: &RemoteFile) -> Option<PathBuf> {
        let places = [Some(self.pointer(file)), self.blob(file)];
        places.into_iter().flatten().find(|path| has_bytes(path, file.num_bytes))
    }

    /// Gives the files their names in the snapshot, and the revision its commit.
    fn link<'f>(&self, files: impl Iterator<Item = &'f RemoteFile>) -> Result<(), StoreError> {
        for file in files.filter(|file| !self.is_linked(file)) {
            let (pointer, blob) = (self.pointer(file), self.blob(file));
            let blob = blob.ok_or_else(|| self.incomplete(file))?;
            let dir = pointer.parent().unwrap_or(&self.dir);
            std::fs::create_dir_all(dir).map_err(StoreError::io(dir))?;
            crate::remove_if_there(&pointer).map_err(StoreError::io(&pointer))?;
            match link(&blob, &pointer, file.key.split('/').count()) {
                // Another process was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                linked => linked.map_err(StoreError::io(&pointer))?,
            }
        }
        let commit = self.hub.commit();
        let is_commit = self.reference.ends_with(commit);
        let is_known = std::fs::read_to_string(&self.reference).is_ok_and(|known| known.trim() == commit);
        // Without a network the commit is that of the reference, or was asked for by its name.
        if is_commit || is_known || self.store.settings.offline {
            return Ok(());
        }
        let dir = self.reference.parent().unwrap_or(&self.model_dir);
        std::fs::create_dir_all(dir).map_err(StoreError::io(dir))?;
        write_atomic(&self.reference, commit.as_bytes()).map_err(StoreError::io(&self.reference))
    }

    fn mirror(&self, files: CheckpointFiles, num_fetched: usize) -> Result<Mirror, StoreError> {
        let mirrored = |file: &RemoteFile| {
            let path = self.pointer(file);
            let digest = match &file.tag {
                Some(tag) => tag.clone(),
                None => digest_file(&path).map_err(StoreError::io(&path))?,
            };
            let num_bytes = file.num_bytes.unwrap_or_default();
            Ok(MirroredFile { name: file.name.clone(), num_bytes, tag: file.tag.clone(), digest })
        };
        let mut files = files.all().map(mirrored).collect::<Result<Vec<_>, StoreError>>()?;
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let path = match self.uri.key() {
            "" => self.dir.clone(),
            key => self.dir.join(key),
        };
        Ok(Mirror { path, files, num_fetched })
    }

    /// The hub tells no digest of a file, or the cache lost it meanwhile.
    fn incomplete(&self, file: &RemoteFile) -> StoreError {
        if self.store.settings.offline {
            return self.offline(&format!("no `{}`", file.key));
        }
        let problem = format!("not the hub's answer: `{}` has no digest", crate::error::printable(&file.key));
        StoreError::Refused { uri: self.uri.to_string(), problem }
    }

    /// The list of shards names one that is not there.
    fn no_shard(&self, name: &str) -> StoreError {
        if self.store.settings.offline {
            return self.offline(&format!("no `{name}`"));
        }
        let problem = format!("its list of shards names `{name}`, which is not there");
        StoreError::NoCheckpoint { uri: self.uri.to_string(), problem }
    }

    fn offline(&self, what: &str) -> StoreError {
        let problem = format!("{what} in {}", self.dir.display());
        StoreError::Offline { uri: self.uri.to_string(), problem }
    }
}

fn has_bytes(path: &Path, num_bytes: Option<u64>) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && Some(found.len()) == num_bytes)
}

/// Links a name `num_levels` below the snapshot to the content, so that the cache can be moved as a whole.
#[cfg(unix)]
fn link(blob: &Path, pointer: &Path, num_levels: usize) -> io::Result<()> {
    // blobs/{digest} from snapshots/{commit}/{name}
    let up: PathBuf = std::iter::repeat_n("..", num_levels + 1).collect();
    let name = blob.file_name().unwrap_or_default();
    std::os::unix::fs::symlink(up.join("blobs").join(name), pointer)
}

/// Where links are for administrators only, the content itself goes to its name, as the hub's own tools do it.
#[cfg(not(unix))]
fn link(blob: &Path, pointer: &Path, _num_levels: usize) -> io::Result<()> {
    std::fs::rename(blob, pointer)
}
