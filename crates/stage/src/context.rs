//! What a stage gets to run with.

use crate::Stage;
use crate::error::Interrupted;
use crate::progress::Progress;
use crate::publisher::Upload;
use crate::replaced;
use crate::shard_range::ShardRange;
use oqvl_shard_io::ShardError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// Directories, seed, share of the shards, and the way to report progress and to notice Ctrl-C.
#[derive(Debug, Clone)]
pub struct RunContext {
    /// Where the outputs of all stages lie.
    pub work_dir: PathBuf,
    /// `<work_dir>/<stage name>/`: this stage's output; exists.
    pub out_dir: PathBuf,
    /// Seed of the whole run; draw from it through [`stream`](crate::stream) only.
    pub seed: u64,
    /// Number of worker threads; results must not depend on it.
    pub threads: usize,
    /// This process's share of the shards; `None` for all.
    pub shards: Option<ShardRange>,
    /// Digest of everything the output depends on: stage, [`OUTPUT_VERSION`](Stage::OUTPUT_VERSION), seed (if
    /// [`SEEDED`](Stage::SEEDED)), config and inputs.
    pub fingerprint: String,
    stage: &'static str,
    interrupted: Arc<AtomicBool>,
    /// Local paths of remote inputs, by address.
    mirrors: Arc<BTreeMap<PathBuf, PathBuf>>,
    /// Where finished files are handed in that are to be sent to a store.
    uploads: Option<SyncSender<Upload>>,
    /// One past the highest shard that was asked for.
    num_shards_asked: Arc<AtomicUsize>,
    /// Digests of outputs that are known from writing them.
    digests: Arc<Mutex<BTreeMap<PathBuf, String>>>,
}

impl RunContext {
    pub(crate) fn new(
        stage: &'static str,
        work_dir: &Path,
        seed: u64,
        threads: usize,
        shards: Option<ShardRange>,
        fingerprint: &str,
        interrupted: Arc<AtomicBool>,
    ) -> Self {
        let out_dir = work_dir.join(stage);
        Self {
            work_dir: work_dir.to_path_buf(),
            out_dir,
            seed,
            threads,
            shards,
            fingerprint: fingerprint.to_owned(),
            stage,
            interrupted,
            mirrors: Arc::default(),
            uploads: None,
            num_shards_asked: Arc::default(),
            digests: Arc::default(),
        }
    }

    /// The same with remote inputs, by address, and a way for finished files.
    pub(crate) fn with_stores(
        mut self,
        mirrors: BTreeMap<PathBuf, PathBuf>,
        uploads: Option<SyncSender<Upload>>,
    ) -> Self {
        self.mirrors = Arc::new(mirrors);
        self.uploads = uploads;
        self
    }

    /// Shards the stage has asked about so far: the share may reach beyond them.
    pub(crate) fn num_shards_asked(&self) -> usize {
        self.num_shards_asked.load(Ordering::Relaxed)
    }

    /// A context for calling [`Stage::run`] from a library or a test, without flags, manifest or signal handler.
    ///
    /// # Errors
    /// If the output directory cannot be created.
    pub fn for_test<S: Stage>(work_dir: &Path, seed: u64) -> std::io::Result<Self> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let run = Self::new(S::NAME, work_dir, seed, threads, None, "", Arc::default());
        std::fs::create_dir_all(&run.out_dir)?;
        Ok(run)
    }

    /// The flag that Ctrl-C sets.
    #[cfg(test)]
    pub(crate) fn interruption(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.interrupted)
    }

    /// A path of the config: relative paths start in the work directory, an address is where its copy lies.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.mirrors.get(path).cloned().unwrap_or_else(|| self.work_dir.join(path))
    }

    /// Files below [`out_dir`](RunContext::out_dir) are finished: if output goes to a store, they are sent while the
    /// stage goes on, in this order, the last one when all others have arrived. What is not handed in here is sent
    /// when the stage is done. Waits if a great many files are waiting already.
    pub fn publish(&self, files: Vec<PathBuf>) {
        if let Some(uploads) = &self.uploads {
            // Nobody listens any more if sending failed, which the runtime reports.
            let _ = uploads.send(Upload::Files(files));
        }
    }

    /// Whether anybody wants to know of finished files: without, [`publish`](RunContext::publish) does nothing, and to list
    /// them is a waste.
    #[must_use]
    pub fn publishes(&self) -> bool {
        self.uploads.is_some()
    }

    /// To be called by a stage that [checks first](Stage::CHECKS_FIRST) when all that the request names has been found
    /// sound: what a request before this one left in the output directory goes now, and not if the stage fails before.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn begin(&self) -> Result<(), ShardError> {
        if self.shards.is_none() { replaced::discard(&self.out_dir) } else { Ok(()) }
    }

    /// The digest of a finished file below [`out_dir`](RunContext::out_dir), known from writing it
    /// ([`ShardSummary::digest`](oqvl_shard_io::ShardSummary::digest)): the manifest takes it over instead of reading the
    /// file again.
    pub fn note_digest(&self, file: &Path, digest: String) {
        self.digests.lock().unwrap_or_else(PoisonError::into_inner).insert(file.to_path_buf(), digest);
    }

    /// What [`note_digest`](RunContext::note_digest) was told.
    pub(crate) fn take_digests(&self) -> BTreeMap<PathBuf, String> {
        std::mem::take(&mut self.digests.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether this process is to make the shard.
    #[must_use]
    pub fn owns_shard(&self, shard_idx: usize) -> bool {
        self.num_shards_asked.fetch_max(shard_idx + 1, Ordering::Relaxed);
        self.shards.is_none_or(|range| range.owns(shard_idx))
    }

    /// Progress over `total` things called `unit` ("images", "steps").
    #[must_use]
    pub fn progress(&self, total: u64, unit: &'static str) -> Progress {
        Progress::new(self.stage, total, unit)
    }

    /// # Errors
    /// [`Interrupted`] once Ctrl-C was pressed or SIGTERM came. Call it at least once a second.
    pub fn check_interrupt(&self) -> Result<(), Interrupted> {
        if self.interrupted.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}
