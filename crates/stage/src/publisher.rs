//! Finished output on its way to a store, while the stage goes on.

use crate::error::StageError;
use oqvl_shard_io::{Claim, Destination, Sent, StoreSettings, StoreUri};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

/// Groups of files that may wait to be sent; a stage that is faster waits here.
const QUEUE: usize = 256;

/// Sends files from a thread of its own, one after the other, so that the last file of a group is the last to
/// arrive.
#[derive(Debug)]
pub(crate) struct Publisher {
    queue: SyncSender<Upload>,
    worker: JoinHandle<Result<Counts, StageError>>,
}

/// What the thread is told.
#[derive(Debug)]
pub(crate) enum Upload {
    /// Send these, in this order.
    Files(Vec<PathBuf>),
    /// Nothing will follow. Said in words, because a thread that the stage left behind may still hold the queue.
    End,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) now: u64,
    pub(crate) before: u64,
}

impl Publisher {
    /// Claims the destination with the stage's stamp and starts the thread.
    pub(crate) fn start(
        settings: StoreSettings,
        uri: &StoreUri,
        out_dir: &Path,
        claim: Claim<'_>,
        interrupted: &Arc<AtomicBool>,
    ) -> Result<Self, StageError> {
        let flag = Arc::clone(interrupted);
        let is_stopped = move || flag.load(Ordering::Relaxed);
        let destination =
            Destination::claim(settings, uri.clone(), claim, &is_stopped).map_err(StageError::from_store)?;
        let (queue, groups) = sync_channel(QUEUE);
        let (out_dir, uri) = (out_dir.to_path_buf(), uri.clone());
        let work = move || send_all(&destination, &uri, &out_dir, &groups, &is_stopped);
        let worker = std::thread::Builder::new().name("upload".to_owned()).spawn(work);
        let worker = worker.map_err(StageError::io("(the thread that uploads)"))?;
        Ok(Self { queue, worker })
    }

    /// Where groups of files are handed in.
    pub(crate) fn queue(&self) -> SyncSender<Upload> {
        self.queue.clone()
    }

    /// Sends the last files and waits until all have arrived.
    pub(crate) fn finish(self, files: Vec<PathBuf>) -> Result<Counts, StageError> {
        // The worker is gone only if it failed, which it says below.
        let _ = self.queue.send(Upload::Files(files)).and_then(|()| self.queue.send(Upload::End));
        self.worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// After a failure the rest is not tried: it would wait as long for every file. The output is whole here, and the
/// next run sends what is missing.
fn send_all(
    destination: &Destination,
    uri: &StoreUri,
    out_dir: &Path,
    groups: &Receiver<Upload>,
    is_stopped: &dyn Fn() -> bool,
) -> Result<Counts, StageError> {
    let mut counts = Counts::default();
    let mut failed = None;
    let mut done = HashSet::new();
    let groups = groups.iter().map_while(|upload| match upload {
        Upload::Files(files) => Some(files),
        Upload::End => None,
    });
    for file in groups.flatten() {
        // What a stage handed in comes again with all of its output.
        if failed.is_some() || !done.insert(file.clone()) {
            continue;
        }
        let name = file.strip_prefix(out_dir).unwrap_or(&file).to_string_lossy().into_owned();
        match destination.send(&file, &name, is_stopped) {
            Ok(Sent::Now) => counts.now += 1,
            Ok(Sent::Before) => counts.before += 1,
            Err(error) => {
                tracing::error!(
                    "cannot upload to {uri}: {error}; the output stays here, the next run sends the rest"
                );
                failed = Some(StageError::from_store(error));
            }
        }
    }
    failed.map_or(Ok(counts), Err)
}
