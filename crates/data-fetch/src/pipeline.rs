//! The shards in flight: which rows are fetched when, where the work is done, how a run stops.
//!
//! - A reader thread hands out the rows of the shards to make, one shard ahead.
//! - A shard is opened when the rows of those that are open are all under way or waiting for hosts that are busy, up to
//!   [`MAX_OPEN_SHARDS`]: the slow tail of one overlaps with the next. Rows wait in the
//!   [dispatcher](crate::dispatch) and become tasks when their hosts have room; requests go through the
//!   [gate](crate::host_gate).
//! - Requests run on tokio; decoding, resizing and encoding on rayon's pool; each open shard has one writer
//!   thread.
//! - A row keeps its slot at the gate until the writer has written its image or put it into its buffer, and there are
//!   fewer slots while images pile up before the decoders. Memory is thus bounded: `in_flight` bodies or images at the
//!   most (of which the [client](crate::client) bounds those of long bodies together), one decoded image per thread and
//!   `reorder_buffer_bytes` per open shard.

use crate::client::Body;
use crate::config::DataFetchConfig;
use crate::dispatch::{Dispatcher, Ready};
use crate::error::DataFetchError;
use crate::fetch::Fetcher;
use crate::host_gate::{Backlog, Slot};
use crate::reject::Reject;
use crate::reorder::RowOutcome;
use crate::resolver::{AddressPolicy, GuardedResolver, HostsFile};
use crate::revisit::{rows_to_retry, settle};
use crate::shard::{ShardJob, ShardPaths, ShardStats, Written};
use crate::transform::{Expectations, StoredImage, num_pixels, transform};
use crate::url_list::{ShardRows, UrlList, UrlRow};
use oqvl_shard_io::read_json;
use oqvl_stage::{ConfigError, Interrupted, Progress, RunContext};
use reqwest::{Certificate, Url};
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

/// Shards being made at the same time: many, so that a few slow hosts do not stop everything else.
const MAX_OPEN_SHARDS: usize = 6;
/// Rows that are tasks at the same time, per request that may be under way: the others wait for a pause or a rate to
/// pass, or to try again.
const TASKS_PER_REQUEST: usize = 8;
/// What is decoded at the same time is counted in pieces of this many pixels, …
const PIXELS_PER_PERMIT: u64 = 1 << 20;
/// … of which there are so many; a larger image is decoded alone.
const MAX_DECODING_PERMITS: u64 = 32;
/// Threads for network I/O: one serves thousands of requests per second, two hide each other's hiccups.
const MAX_IO_THREADS: usize = 2;
/// Outcomes on their way to a shard's writer.
const WRITER_QUEUE: usize = 32;
/// How often the interrupt flag is looked at and progress is shown.
const TICK: Duration = Duration::from_millis(100);
/// How long threads may take to notice that the run is over.
const SHUTDOWN_GRACE: Duration = Duration::from_millis(500);

/// Whom to ask and whom to trust besides what the system says: read before anything is changed, because a config that names
/// files that are not there is a wrong request.
pub(crate) struct NetworkFiles {
    hosts: HostsFile,
    authorities: Vec<Certificate>,
}

impl NetworkFiles {
    pub(crate) fn read(config: &DataFetchConfig, run: &RunContext) -> Result<Self, ConfigError> {
        let hosts = config.hosts_file.as_ref().map(|path| HostsFile::read(&run.resolve(path)));
        let authorities = config.ca_file.as_ref().map(|path| read_authorities(&run.resolve(path)));
        Ok(Self {
            hosts: hosts.transpose()?.unwrap_or_default(),
            authorities: authorities.transpose()?.unwrap_or_default(),
        })
    }
}

/// Makes every shard of the list that is this process's and is not there yet.
pub(crate) fn fetch_shards(
    config: &DataFetchConfig,
    run: &RunContext,
    list: UrlList,
    files: NetworkFiles,
) -> Result<(), DataFetchError> {
    settle(&run.out_dir, config, &|shard_idx| run.owns_shard(shard_idx))?;
    let first_shard = list.shards().start;
    let mut num_rows = 0;
    let mut wanted = Vec::with_capacity(list.shards().len());
    for shard_idx in list.shards() {
        run.check_interrupt()?;
        let rows_wanted =
            if run.owns_shard(shard_idx) { rows_wanted(config, run, &list, shard_idx)? } else { 0 };
        // A whole run sends what lies here at its end; a share sends its own.
        if rows_wanted == 0 && run.shards.is_some() && run.owns_shard(shard_idx) {
            publish(config, run, shard_idx, None);
        }
        num_rows += rows_wanted;
        wanted.push(rows_wanted > 0);
    }
    if num_rows == 0 {
        return Ok(());
    }
    let policy = if config.allow_private_addresses { AddressPolicy::Any } else { AddressPolicy::PublicOnly };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(run.threads.clamp(1, MAX_IO_THREADS))
        .enable_all()
        .build()
        .map_err(|source| DataFetchError::Client { source: source.into() })?;
    // The client registers with the runtime it is made in.
    let fetcher = {
        let _entered = runtime.enter();
        let resolver = GuardedResolver::new(files.hosts, policy);
        Fetcher::new(config, resolver, &files.authorities, run.threads, run.seed)?
    };
    let pipeline = Pipeline {
        shared: Arc::new(Shared::new(config, list.box_idx(), fetcher, run.threads)),
        list: Arc::new(list),
        wanted: wanted.into(),
        first_shard,
        out_dir: run.out_dir.clone(),
        cancelled: Arc::default(),
    };
    let progress = run.progress(num_rows, "urls");
    let outcome = runtime.block_on(pipeline.run(run, &progress));
    pipeline.cancelled.store(true, Ordering::Relaxed);
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    progress.finish();
    outcome
}

/// Hands a finished shard in, to be sent if output goes to a store: its stats when the rest has arrived.
fn publish(config: &DataFetchConfig, run: &RunContext, shard_idx: usize, tar_digest: Option<String>) {
    let ShardPaths { tar, table, network: _, stats } = ShardPaths::new(&run.out_dir, config, shard_idx);
    if let Some(digest) = tar_digest {
        run.note_digest(&tar, digest);
    }
    run.publish(vec![tar, table, stats]);
}

/// Rows of a shard that are to be fetched: all of one that is not finished, and those to be tried once more of one
/// that is.
fn rows_wanted(
    config: &DataFetchConfig,
    run: &RunContext,
    list: &UrlList,
    shard_idx: usize,
) -> Result<u64, DataFetchError> {
    let paths = ShardPaths::new(&run.out_dir, config, shard_idx);
    if !paths.is_there() {
        return Ok(list.rows_in_shard(shard_idx));
    }
    if let Some(damage) = paths.damage() {
        tracing::warn!("{damage}; the shard is fetched again");
        return Ok(list.rows_in_shard(shard_idx));
    }
    if !config.retry_failed.is_on() {
        return Ok(0);
    }
    Ok(read_json::<ShardStats>(&paths.stats)?.num_to_retry(&config.retry_failed))
}

fn read_authorities(path: &Path) -> Result<Vec<Certificate>, ConfigError> {
    let wrong = |problem: String| ConfigError::new("ca_file", format!("{}: {problem}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let authorities = Certificate::from_pem_bundle(&pem).map_err(|error| wrong(error.to_string()))?;
    if authorities.is_empty() { Err(wrong("holds no certificate".to_owned())) } else { Ok(authorities) }
}

struct Pipeline {
    shared: Arc<Shared>,
    list: Arc<UrlList>,
    /// For each shard of the list, from its first on.
    wanted: Arc<[bool]>,
    first_shard: usize,
    out_dir: PathBuf,
    cancelled: Arc<AtomicBool>,
}

/// What all rows share.
struct Shared {
    config: Arc<DataFetchConfig>,
    /// Position of the boxes to blur among the carried columns.
    box_idx: Option<usize>,
    /// Images that have arrived and are not done.
    backlog: AtomicUsize,
    num_workers: usize,
    /// Pixels that may be decoded at the same time, in units of [`PIXELS_PER_PERMIT`].
    decoding: Arc<Semaphore>,
    fetcher: Fetcher,
    counters: Counters,
}

/// For the progress line only.
#[derive(Default)]
struct Counters {
    done: AtomicU64,
    kept: AtomicU64,
    bytes: AtomicU64,
}

/// A shard and what is to be done about it.
struct ShardTask {
    rows: ShardRows,
    work: ShardWork,
}

enum ShardWork {
    /// It is not finished: all of its rows are fetched.
    Make,
    /// It is finished: these rows are fetched again.
    Retry(Vec<usize>),
}

/// A row of an open shard.
struct Row {
    shard: Arc<ShardRows>,
    row_idx: usize,
    writer: mpsc::Sender<Arrival>,
}

/// What became of a row, on its way to the writer, and what it occupies until the writer has put it somewhere.
pub(crate) struct Arrival {
    pub(crate) outcome: RowOutcome,
    /// Leave to be in memory; dropped, it lets the next row in.
    pub(crate) room: Option<Room>,
}

/// A slot at the gate and a long body's share of the memory.
pub(crate) struct Room {
    slot: Option<Slot>,
    shared: Arc<Shared>,
    _memory: Option<OwnedSemaphorePermit>,
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.give_back(self.shared.backlog());
        }
    }
}

impl Pipeline {
    async fn run(&self, run: &RunContext, progress: &Progress) -> Result<(), DataFetchError> {
        let config = &self.shared.config;
        let max_tasks = config.in_flight.saturating_mul(TASKS_PER_REQUEST);
        let (sender, mut shards) = mpsc::channel(1);
        let reader = self.spawn_reader(sender);
        let mut dispatcher = Dispatcher::new(config.per_host_in_flight);
        let mut rows = JoinSet::new();
        let mut writers = JoinSet::new();
        let mut tick = tokio::time::interval(TICK);
        let mut shown = Shown { since: Instant::now(), done: 0 };
        let mut is_reading = true;
        while is_reading || !writers.is_empty() {
            while rows.len() < max_tasks
                && let Some(Ready { row, host }) = dispatcher.pop()
            {
                rows.spawn(row_task(Arc::clone(&self.shared), row, host));
            }
            let has_room = !dispatcher.is_ready() && writers.len() < MAX_OPEN_SHARDS;
            tokio::select! {
                _ = tick.tick() => {
                    run.check_interrupt()?;
                    shown.update(&self.shared.counters, progress);
                    if self.shared.backlog() == Backlog::Low {
                        self.shared.fetcher.widen();
                    }
                }
                Some(done) = rows.join_next() => {
                    let host = done.unwrap_or_else(|error| resume_unwind(error.into_panic()));
                    if let Some(host) = host {
                        dispatcher.leave(host);
                    }
                }
                // A full disk ends the run at once, not after the downloads of whole shards.
                Some(written) = writers.join_next() => match unwrap_written(written)? {
                    Written::Finished { shard_idx, tar_digest } => publish(config, run, shard_idx, tar_digest),
                    // Every row was sent, so the writer can only have been told to stop.
                    Written::Abandoned => return Err(Interrupted.into()),
                },
                shard = shards.recv(), if is_reading && has_room => match shard {
                    Some(shard) => self.open_shard(shard, &mut dispatcher, &mut writers),
                    None => is_reading = false,
                },
            }
        }
        shown.update(&self.shared.counters, progress);
        reader.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))
    }

    fn spawn_reader(
        &self,
        sender: mpsc::Sender<ShardTask>,
    ) -> tokio::task::JoinHandle<Result<(), DataFetchError>> {
        let (list, wanted, first_shard) =
            (Arc::clone(&self.list), Arc::clone(&self.wanted), self.first_shard);
        let (config, out_dir) = (Arc::clone(&self.shared.config), self.out_dir.clone());
        let flow = |goes_on: bool| if goes_on { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        tokio::task::spawn_blocking(move || {
            let wants = |shard_idx: usize| wanted[shard_idx - first_shard];
            let mut failure = Ok(());
            list.for_each_shard(&wants, &|| flow(!sender.is_closed()), &mut |rows| {
                let paths = ShardPaths::new(&out_dir, &config, rows.shard_idx);
                let work = if paths.is_finished() {
                    rows_to_retry(&paths, &config).map(ShardWork::Retry)
                } else {
                    Ok(ShardWork::Make)
                };
                match work {
                    Ok(work) => flow(sender.blocking_send(ShardTask { rows, work }).is_ok()),
                    Err(error) => {
                        failure = Err(error);
                        ControlFlow::Break(())
                    }
                }
            })?;
            failure
        })
    }

    /// Starts the writer of a shard and queues its rows. The writer ends when it has all of them, or when nobody is left
    /// to send one.
    fn open_shard(
        &self,
        task: ShardTask,
        dispatcher: &mut Dispatcher<Row>,
        writers: &mut JoinSet<Result<Written, DataFetchError>>,
    ) {
        let shard = Arc::new(task.rows);
        let job = ShardJob {
            config: Arc::clone(&self.shared.config),
            columns: self.list.columns().into(),
            shard: Arc::clone(&shard),
            out_dir: self.out_dir.clone(),
            cancelled: Arc::clone(&self.cancelled),
        };
        let (writer, mut outcomes) = mpsc::channel(WRITER_QUEUE);
        let mut queue = |row_idx: usize| {
            let url = shard.rows[row_idx].url.as_ref().ok().and_then(|url| Url::parse(url).ok());
            let row = Row { shard: Arc::clone(&shard), row_idx, writer: writer.clone() };
            dispatcher.push(url.as_ref().and_then(Url::host_str), row);
        };
        match task.work {
            ShardWork::Make => {
                (0..shard.rows.len()).for_each(&mut queue);
                writers.spawn_blocking(move || job.write(&mut outcomes));
            }
            ShardWork::Retry(rows) => {
                rows.iter().copied().for_each(&mut queue);
                writers.spawn_blocking(move || job.rewrite(&rows, &mut outcomes));
            }
        }
    }
}

/// What the writer returned; its panic goes on here.
fn unwrap_written(
    result: Result<Result<Written, DataFetchError>, JoinError>,
) -> Result<Written, DataFetchError> {
    result.unwrap_or_else(|error| resume_unwind(error.into_panic()))
}

/// Fetches one row and sends what became of it to the writer of its shard. Returns `host`.
async fn row_task(shared: Arc<Shared>, row: Row, host: Option<Arc<str>>) -> Option<Arc<str>> {
    let Row { shard, row_idx, writer } = row;
    let arrival = match &shard.rows[row_idx].url {
        Ok(url) => {
            let rows_per_shard = u64::from(shared.config.number_sample_per_shard);
            let url_idx = shard.shard_idx as u64 * rows_per_shard + row_idx as u64;
            shared.fetch_row(&shard.rows[row_idx], url, url_idx, row_idx).await
        }
        Err(reject) => Arrival { outcome: RowOutcome::rejected(row_idx, *reject), room: None },
    };
    shared.counters.count(&arrival.outcome);
    // The writer is gone only if it failed, which ends the run.
    let _ = writer.send(arrival).await;
    host
}

impl Shared {
    fn new(config: &DataFetchConfig, box_idx: Option<usize>, fetcher: Fetcher, num_workers: usize) -> Self {
        Self {
            backlog: AtomicUsize::new(0),
            num_workers,
            config: Arc::new(config.clone()),
            box_idx,
            decoding: Arc::new(Semaphore::new(MAX_DECODING_PERMITS as usize)),
            fetcher,
            counters: Counters::default(),
        }
    }

    async fn fetch_row(self: &Arc<Self>, row: &UrlRow, url: &str, url_idx: u64, row_idx: usize) -> Arrival {
        let fetched = self.fetcher.fetch(url, url_idx).await;
        let num_retries = fetched.num_retries;
        match fetched.outcome {
            Ok((mut body, slot)) => {
                let num_bytes = body.bytes.len() as u64;
                let memory = body.memory.take();
                let room = Room { slot: Some(slot), shared: Arc::clone(self), _memory: memory };
                self.backlog.fetch_add(1, Ordering::Relaxed);
                let result = self.transform_on_pool(body, self.expectations(row), url).await;
                self.backlog.fetch_sub(1, Ordering::Relaxed);
                // What is not kept takes no room.
                let room = Some(room).filter(|_| result.is_ok());
                Arrival { outcome: RowOutcome { row_idx, result, num_retries, num_bytes }, room }
            }
            Err(reject) => {
                let outcome = RowOutcome { row_idx, result: Err(reject), num_retries, num_bytes: 0 };
                Arrival { outcome, room: None }
            }
        }
    }

    /// One image in hand and one or two waiting keep a worker busy.
    fn backlog(&self) -> Backlog {
        match self.backlog.load(Ordering::Relaxed) / self.num_workers.max(1) {
            0 | 1 => Backlog::Low,
            2 | 3 => Backlog::Enough,
            _ => Backlog::High,
        }
    }

    fn expectations(&self, row: &UrlRow) -> Expectations {
        let boxes = self.box_idx.map(|idx| row.extra[idx].clone()).unwrap_or_default();
        Expectations { hash: row.expected_hash.clone(), boxes }
    }

    /// Runs [`transform`] on rayon's pool. A decoder that panics costs one image.
    async fn transform_on_pool(
        &self,
        body: Body,
        expectations: Expectations,
        url: &str,
    ) -> Result<StoredImage, Reject> {
        // One thread can hold a large image, but all of them at once are too much.
        let permits = num_pixels(&body.bytes).div_ceil(PIXELS_PER_PERMIT).clamp(1, MAX_DECODING_PERMITS);
        let permits = Arc::clone(&self.decoding).acquire_many_owned(permits as u32).await;
        let permits = permits.expect("the semaphore is never closed");
        let config = Arc::clone(&self.config);
        let (sender, result) = oneshot::channel();
        rayon::spawn(move || {
            let result = catch_unwind(AssertUnwindSafe(|| transform(&body, &expectations, &config)));
            drop((body, permits));
            // Nobody waits for it any more when the run was interrupted.
            let _ = sender.send(result);
        });
        let result = result.await.expect("the closure sends exactly once");
        result.unwrap_or_else(|_panic| {
            tracing::warn!(url, "the work on an image panicked; it is rejected");
            Err(Reject::DecoderPanicked)
        })
    }
}

impl Counters {
    fn count(&self, outcome: &RowOutcome) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.kept.fetch_add(u64::from(outcome.result.is_ok()), Ordering::Relaxed);
        self.bytes.fetch_add(outcome.num_bytes, Ordering::Relaxed);
    }
}

/// What the progress line says already.
struct Shown {
    since: Instant,
    done: u64,
}

impl Shown {
    fn update(&mut self, counters: &Counters, progress: &Progress) {
        let done = counters.done.load(Ordering::Relaxed);
        let kept = counters.kept.load(Ordering::Relaxed);
        let mebibytes = counters.bytes.load(Ordering::Relaxed) as f64 / f64::from(1 << 20);
        let seconds = self.since.elapsed().as_secs_f64().max(1e-3);
        let percent = 100.0 * kept as f64 / done.max(1) as f64;
        progress.set_message(format!("kept {percent:.1} %, {:.1} MiB/s", mebibytes / seconds));
        progress.inc(done - self.done);
        self.done = done;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// There are [`TASKS_PER_REQUEST`] of them for every request.
    #[tokio::test]
    async fn a_waiting_row_is_small() {
        let config = DataFetchConfig::default();
        let resolver = GuardedResolver::new(HostsFile::default(), AddressPolicy::PublicOnly);
        let fetcher = Fetcher::new(&config, resolver, &[], 2, 7).unwrap();
        let shared = Arc::new(Shared::new(&config, None, fetcher, 2));
        let row = UrlRow {
            url: Ok("http://a.test/x".to_owned()),
            caption: None,
            expected_hash: None,
            extra: Vec::new(),
        };
        let shard = Arc::new(ShardRows { shard_idx: 0, rows: vec![row] });
        let (writer, _outcomes) = mpsc::channel(1);
        let row = Row { shard, row_idx: 0, writer };
        assert!(size_of_val(&row) <= 24, "{} bytes in the queue", size_of_val(&row));
        let task = row_task(shared, row, Some("a.test".into()));
        assert!(size_of_val(&task) <= 2048, "{} bytes as a task", size_of_val(&task));
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        for content in [None, Some(""), Some("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n")] {
            if let Some(content) = content {
                oqvl_shard_io::write_atomic(&path, content.as_bytes()).unwrap();
            }
            let error = read_authorities(&path).unwrap_err().to_string();
            assert!(error.starts_with("ca_file: ") && error.contains("ca.pem"), "{error}");
        }
    }
}
