//! One file on its way here: in pieces if need be, and checked when it is whole.

use super::{Backend, Body, RemoteFile, StoreError, StoreUri};
use crate::remove_if_there;
use futures_util::StreamExt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest silence in the middle of a body; less, if requests are tried again for less.
const MAX_SILENCE: Duration = Duration::from_secs(60);
/// Wait before a download that broke is taken up again.
const RESUME_WAIT: Duration = Duration::from_millis(500);

/// How files of an address come here.
pub(super) struct Transfer<'a> {
    pub(super) backend: &'a Backend,
    pub(super) uri: &'a StoreUri,
    /// How long a file is asked for again while nothing comes.
    pub(super) retry: Duration,
    /// Most bytes of a file whose size is not known.
    pub(super) max_bytes: u64,
    /// Told of bytes as they come, and of those that an earlier run has left.
    pub(super) arrived: &'a dyn Fn(u64),
}

impl Transfer<'_> {
    /// Makes the partial file whole and checks it against the digest that the store tells. What an earlier run left of
    /// it may be anything: if the file then is not what it should be, it is fetched once more from its first byte.
    pub(super) async fn fetch(&self, file: &RemoteFile, partial: &Path) -> Result<(), StoreError> {
        let mut is_ours = std::fs::metadata(partial).map_or(true, |found| found.len() == 0);
        loop {
            self.fill(file, partial).await?;
            let Some(content) = &file.content else { return Ok(()) };
            if content.is_of(partial).await.map_err(StoreError::io(partial))? {
                return Ok(());
            }
            remove_if_there(partial).map_err(StoreError::io(partial))?;
            if is_ours {
                let problem =
                    format!("its {} is not the listed one; what came was thrown away", content.kind());
                return Err(self.changed(file, &problem));
            }
            is_ours = true;
        }
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
        (self.arrived)(offset);
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
                Ok(()) if last_progress.elapsed() > self.retry => {
                    return Err(StoreError::Unreachable {
                        uri: self.address(file),
                        problem: format!("it breaks off at byte {offset} again and again"),
                    });
                }
                Err(error) if !error.is_transient() || last_progress.elapsed() > self.retry => {
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
        let silence = MAX_SILENCE.min(self.retry.max(Duration::from_millis(100)));
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
            output.write_all(&chunk).map_err(|source| match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    let num_bytes = limit - *offset;
                    StoreError::DiskFull { path: partial.to_path_buf(), num_bytes, source }
                }
                _ => StoreError::Io { path: partial.to_path_buf(), source },
            })?;
            *offset += chunk.len() as u64;
            (self.arrived)(chunk.len() as u64);
        }
    }

    fn changed(&self, file: &RemoteFile, problem: &str) -> StoreError {
        StoreError::Changed { uri: self.address(file), problem: problem.to_owned() }
    }

    fn address(&self, file: &RemoteFile) -> String {
        if file.key.contains("://") { file.key.clone() } else { format!("{} ({})", self.uri, file.key) }
    }
}
