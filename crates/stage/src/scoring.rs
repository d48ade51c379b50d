//! The loop of every filter that scores shards: one sidecar per shard, finished ones are skipped.

use crate::{Interrupted, Progress, RunContext, Tally};
use oqvl_shard_io::{Sample, ScoreTable, ShardError, ShardReader, list_shards};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Instant;

/// Most samples of a batch.
const SAMPLES_AT_ONCE: usize = 256;
/// Bytes of samples after which no more are read into a batch; a shard of huge images must not fill the memory.
const BYTES_AT_ONCE: usize = 64 << 20;
/// Bytes of prepared samples in a batch.
const PREPARED_BYTES_AT_ONCE: usize = 128 << 20;
/// Rows after which a batch ends though few of them could be prepared.
const MAX_ROWS: usize = 4 * SAMPLES_AT_ONCE;
/// Batches that wait, beside the one that is scored and the one that is prepared.
const BATCHES_AHEAD: usize = 1;
/// Text column that says why a sample has no score.
const REJECT_COLUMN: &str = "reject";

/// What a scorer is, for the sidecar's metadata.
#[derive(Debug, Clone, Copy)]
pub struct ScorerInfo<'a> {
    /// Name in the file name: `{shard}.{scorer}.parquet`.
    pub scorer: &'a str,
    /// Digest of the model's files.
    pub model_digest: &'a str,
    /// Version of the scorer's crate.
    pub code_version: &'a str,
    /// Columns of numbers.
    pub metrics: &'a [String],
    /// Columns of raw text.
    pub texts: &'a [String],
}

/// What is known about one sample: values in the order of the columns.
pub type SampleScores = (Vec<Option<f64>>, Vec<Option<String>>);

/// Scores samples in two steps, so that one batch can be prepared while the network is busy with the one before it.
pub trait SampleScorer: Sync {
    /// What the network needs of a sample, such as pixel values and token ids.
    type Prepared: Send;
    /// What can stop the run.
    type Error: From<ShardError> + From<Interrupted> + Send;

    /// Bytes of one prepared sample, about; batches are made smaller where it is many.
    fn prepared_bytes(&self) -> usize;

    /// A batch ends at a multiple of this many prepared samples, or with its shard, for scorers whose results depend on it.
    fn batch_multiple(&self) -> usize {
        1
    }

    /// Decodes a sample: what the network needs, or a kebab-case reason why it cannot be scored. Called on many threads.
    ///
    /// # Errors
    /// What has nothing to do with the sample.
    fn prepare(&self, sample: &Sample) -> Result<Result<Self::Prepared, String>, Self::Error>;

    /// One answer for each of a batch. Which samples share a batch depends on the shard alone, never on threads or on
    /// where a run was interrupted.
    ///
    /// # Errors
    /// If the network fails, or the run is interrupted.
    fn score(&self, batch: &[Self::Prepared]) -> Result<Vec<SampleScores>, Self::Error>;
}

/// What the sidecars say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scored {
    /// Samples that could be scored, and those that could not and why.
    pub tally: Tally,
    /// How many of the kept samples have nothing in a column of numbers, by column.
    pub num_null: BTreeMap<String, u64>,
}

/// Scores all shards of `shards_dir` that are this process's share and have no sidecar in the output directory yet. A
/// damaged shard is scored up to the damage, which counts as one rejected sample.
///
/// Reading and [preparing](SampleScorer::prepare) run ahead of [scoring](SampleScorer::score) by two batches at most, also
/// from one shard into the next; a batch has up to 256 samples, and less where they are large.
///
/// # Errors
/// If a directory or sidecar cannot be read or written, the scorer fails, or the run is interrupted.
pub fn score_shards<S: SampleScorer>(
    run: &RunContext,
    shards_dir: &Path,
    info: ScorerInfo<'_>,
    scorer: &S,
) -> Result<Scored, S::Error> {
    let mut shards = Vec::new();
    for (shard_idx, shard) in list_shards(shards_dir)?.into_iter().enumerate() {
        if run.owns_shard(shard_idx) {
            let name = shard.file_stem().unwrap_or_default().to_string_lossy();
            let sidecar = ScoreTable::sidecar_path(&run.out_dir, &name, info.scorer);
            let is_done = sidecar.exists();
            shards.push(Shard { path: shard, sidecar, is_done });
        }
    }
    let mut pace = Pace::new(run, &shards);
    let mut scored = Scored::default();
    std::thread::scope(|scope| {
        // When this closure ends, for whatever reason, nobody takes batches any more, and so the other thread ends too.
        let (sender, batches) = sync_channel(BATCHES_AHEAD);
        let todo = shards.iter().filter(|shard| !shard.is_done).map(|shard| shard.path.as_path());
        scope.spawn(move || read_ahead(todo, scorer, &sender));
        for shard in &shards {
            if !shard.is_done {
                score_shard(run, &info, scorer, &batches, &mut pace)?.write(&shard.sidecar)?;
            }
            // Always from the file: the report of a resumed run is that of an undisturbed one.
            scored.add(&ScoreTable::read(&shard.sidecar)?);
        }
        Ok::<(), S::Error>(())
    })?;
    pace.finish();
    scored.tally.assert_balanced();
    Ok(scored)
}

/// A tar of this process's share.
struct Shard {
    path: PathBuf,
    sidecar: PathBuf,
    is_done: bool,
}

/// A part of a shard, ready for the network.
struct Batch<P> {
    /// Key, uid, and why there is nothing in `prepared`, if so.
    rows: Vec<(String, Option<String>, Option<String>)>,
    /// What could be prepared, in the order of the rows.
    prepared: Vec<P>,
    /// Bytes of the tar that it came from.
    num_bytes: u64,
    /// Whether it is the last of its shard.
    ends_shard: bool,
}

/// Prepares the shards batch by batch for as long as somebody takes them.
fn read_ahead<'a, S: SampleScorer>(
    shards: impl Iterator<Item = &'a Path>,
    scorer: &S,
    sender: &SyncSender<Result<Batch<S::Prepared>, S::Error>>,
) {
    for shard in shards {
        let mut reader = match ShardReader::open(shard) {
            Ok(reader) => reader,
            Err(error) => return drop(sender.send(Err(error.into()))),
        };
        loop {
            let batch = next_batch(shard, &mut reader, scorer);
            // Nothing follows an error; batches may.
            let ends_shard = batch.as_ref().is_ok_and(|batch| batch.ends_shard);
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
            if ends_shard {
                break;
            }
        }
    }
}

fn next_batch<S: SampleScorer>(
    shard: &Path,
    reader: &mut impl Iterator<Item = Result<Sample, ShardError>>,
    scorer: &S,
) -> Result<Batch<S::Prepared>, S::Error> {
    let multiple = scorer.batch_multiple().max(1);
    let most = samples_at_once(scorer.prepared_bytes()).next_multiple_of(multiple);
    let mut batch = Batch { rows: Vec::new(), prepared: Vec::new(), num_bytes: 0, ends_shard: false };
    let mut damage = None;
    // Samples that are rejected leave room for others, so that batches are the same whatever is between the good ones.
    while !batch.ends_shard && batch.prepared.len() < most {
        let is_full = batch.num_bytes >= BYTES_AT_ONCE as u64 || batch.rows.len() >= MAX_ROWS;
        if is_full && batch.prepared.len().is_multiple_of(multiple) {
            break;
        }
        let room = if is_full { multiple } else { most };
        let wanted = room - batch.prepared.len() % room;
        let mut samples = Vec::new();
        let mut num_bytes = 0;
        while samples.len() < wanted && (samples.is_empty() || num_bytes < BYTES_AT_ONCE as u64) {
            match reader.next() {
                Some(Ok(sample)) => {
                    num_bytes += bytes_in_tar(&sample);
                    samples.push(sample);
                }
                Some(Err(error)) => {
                    (damage, batch.ends_shard) = (Some(error), true);
                    break;
                }
                None => {
                    batch.ends_shard = true;
                    break;
                }
            }
        }
        batch.num_bytes += num_bytes;
        prepare(&samples, scorer, &mut batch)?;
    }
    if let Some(error) = damage {
        tracing::warn!("{error}: scored up to there");
        batch.rows.push((shard.display().to_string(), None, Some(error.shard_reason().to_owned())));
    }
    Ok(batch)
}

/// Prepares samples on all threads.
fn prepare<S: SampleScorer>(
    samples: &[Sample],
    scorer: &S,
    batch: &mut Batch<S::Prepared>,
) -> Result<(), S::Error> {
    let answers: Vec<_> = samples.par_iter().map(|sample| scorer.prepare(sample)).collect();
    for (sample, answer) in samples.iter().zip(answers) {
        let reject = match answer? {
            Ok(prepared) => {
                batch.prepared.push(prepared);
                None
            }
            Err(reason) => Some(reason),
        };
        batch.rows.push((sample.key.as_str().to_owned(), uid(sample), reject));
    }
    Ok(())
}

/// How many samples a batch has whose prepared samples are so large: a power of two.
fn samples_at_once(prepared_bytes: usize) -> usize {
    let fitting = (PREPARED_BYTES_AT_ONCE / prepared_bytes.max(1)).clamp(1, SAMPLES_AT_ONCE);
    1 << fitting.ilog2()
}

/// Room a sample takes in a tar: a header and whole blocks for every member.
fn bytes_in_tar(sample: &Sample) -> u64 {
    const BLOCK: usize = 512;
    sample.members.iter().map(|member| (BLOCK + member.data.len().next_multiple_of(BLOCK)) as u64).sum()
}

/// The table of the next shard that the batches are of.
fn score_shard<S: SampleScorer>(
    run: &RunContext,
    info: &ScorerInfo<'_>,
    scorer: &S,
    batches: &Receiver<Result<Batch<S::Prepared>, S::Error>>,
    pace: &mut Pace,
) -> Result<ScoreTable, S::Error> {
    let mut table = empty_table(info);
    loop {
        run.check_interrupt()?;
        let batch = batches.recv().expect("the reader sends the end of every shard, or an error")?;
        let answers = scorer.score(&batch.prepared)?;
        assert_eq!(answers.len(), batch.prepared.len(), "a scorer answers once for every sample");
        let mut answers = answers.into_iter();
        let num_rows = batch.rows.len();
        for (key, uid, reject) in batch.rows {
            let answer = match reject {
                Some(reason) => Err(reason),
                None => Ok(answers.next().expect("one answer for every row that is not rejected")),
            };
            push(&mut table, key, uid, answer);
        }
        pace.advance(num_rows, batch.num_bytes);
        if batch.ends_shard {
            return Ok(table);
        }
    }
}

/// Samples done, and how many there will be: that is known from the sizes of the tars as soon as some are read.
struct Pace {
    progress: Progress,
    started: Instant,
    num_samples: u64,
    num_bytes: u64,
    total_bytes: u64,
}

impl Pace {
    fn new(run: &RunContext, shards: &[Shard]) -> Self {
        let todo = shards.iter().filter(|shard| !shard.is_done);
        let total_bytes = todo.filter_map(|shard| Some(shard.path.metadata().ok()?.len())).sum();
        let progress = run.progress(0, "samples");
        Self { progress, started: Instant::now(), num_samples: 0, num_bytes: 0, total_bytes }
    }

    fn advance(&mut self, num_samples: usize, num_bytes: u64) {
        self.num_samples += num_samples as u64;
        self.num_bytes += num_bytes;
        let left = self.total_bytes.saturating_sub(self.num_bytes) as f64 / self.num_bytes.max(1) as f64;
        let total = self.num_samples + (left * self.num_samples as f64).round() as u64;
        self.progress.set_total(total);
        self.progress.inc(num_samples as u64);
    }

    /// The bar goes away, and a line says what was done, unless there was nothing to do.
    fn finish(self) {
        self.progress.finish();
        if self.num_samples > 0 {
            let seconds = self.started.elapsed().as_secs_f64();
            let rate = self.num_samples as f64 / seconds;
            tracing::info!("{} samples in {seconds:.1} s, {rate:.1} per second", self.num_samples);
        }
    }
}

fn empty_table(info: &ScorerInfo<'_>) -> ScoreTable {
    let mut texts: Vec<_> = info.texts.iter().map(|name| (name.clone(), Vec::new())).collect();
    texts.push((REJECT_COLUMN.to_owned(), Vec::new()));
    ScoreTable {
        scorer: info.scorer.to_owned(),
        model_digest: info.model_digest.to_owned(),
        code_version: info.code_version.to_owned(),
        keys: Vec::new(),
        uids: Vec::new(),
        metrics: info.metrics.iter().map(|name| (name.clone(), Vec::new())).collect(),
        texts,
    }
}

fn uid(sample: &Sample) -> Option<String> {
    let metadata = sample.metadata::<serde_json::Value>().ok()??;
    Some(metadata.get("uid")?.as_str()?.to_owned())
}

fn push(table: &mut ScoreTable, key: String, uid: Option<String>, answer: Result<SampleScores, String>) {
    let (num_metrics, num_texts) = (table.metrics.len(), table.texts.len() - 1);
    let (metrics, mut texts, reject) = match answer {
        Ok((metrics, texts)) => (metrics, texts, None),
        Err(reason) => (vec![None; num_metrics], vec![None; num_texts], Some(reason)),
    };
    texts.push(reject);
    assert!(metrics.len() == num_metrics && texts.len() == num_texts + 1, "a scorer fills every column");
    table.keys.push(key);
    table.uids.push(uid);
    table.metrics.iter_mut().zip(metrics).for_each(|((_, column), value)| column.push(value));
    table.texts.iter_mut().zip(texts).for_each(|((_, column), value)| column.push(value));
}

impl Scored {
    fn add(&mut self, table: &ScoreTable) {
        let mut tally = Tally::default();
        let rejects = table.texts.iter().find(|(name, _)| name == REJECT_COLUMN).map(|(_, column)| column);
        let reason = |row: usize| rejects.and_then(|column| column[row].as_ref());
        for (row, key) in table.keys.iter().enumerate() {
            match reason(row) {
                Some(reason) => tally.reject(key, reason),
                None => tally.keep(),
            }
        }
        self.tally.merge(tally);
        for (name, column) in &table.metrics {
            let empty =
                column.iter().enumerate().filter(|(row, value)| value.is_none() && reason(*row).is_none());
            *self.num_null.entry(name.clone()).or_default() += empty.count() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigError, Stage, StageConfig};
    use oqvl_shard_io::{SampleKey, ShardWriter, write_atomic};
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    #[derive(serde::Serialize, serde::Deserialize)]
    struct NoConfig {}
    impl StageConfig for NoConfig {
        fn validate(&self) -> Result<(), ConfigError> {
            Ok(())
        }
        fn inputs(&self) -> Vec<std::path::PathBuf> {
            Vec::new()
        }
    }
    struct Lengths;
    impl Stage for Lengths {
        const NAME: &'static str = "lengths";
        const VERSION: &'static str = "1";
        type Config = NoConfig;
        type Report = Tally;
        type Error = Interrupted;
        fn run(_: &NoConfig, _: &RunContext) -> Result<Tally, Interrupted> {
            Ok(Tally::default())
        }
    }

    fn write_shard(dir: &Path, name: &str, captions: &[&str]) {
        let mut writer = ShardWriter::create(&dir.join(name)).unwrap();
        for (index, caption) in captions.iter().enumerate() {
            let mut sample = Sample::new(SampleKey::new(format!("{index:04}")).unwrap());
            sample.push("txt", caption.as_bytes().to_vec());
            sample.push("json", format!("{{\"uid\":\"u{index}\"}}").into_bytes());
            writer.push(&sample).unwrap();
        }
        writer.finish().unwrap();
    }

    type Failure = Box<dyn std::error::Error + Send + Sync>;

    /// Scores a caption by its length, and counts what it was asked for.
    #[derive(Default)]
    struct Length {
        prepared: AtomicUsize,
        scored: AtomicUsize,
        prepared_bytes: usize,
        multiple: usize,
        /// Sizes of batches.
        batches: Mutex<Vec<usize>>,
        /// Fails at the batch that has it.
        fails_at: Option<usize>,
        interrupts: Option<Arc<AtomicBool>>,
    }

    impl SampleScorer for Length {
        type Prepared = usize;
        type Error = Failure;

        fn prepared_bytes(&self) -> usize {
            self.prepared_bytes
        }

        fn batch_multiple(&self) -> usize {
            self.multiple
        }

        fn prepare(&self, sample: &Sample) -> Result<Result<usize, String>, Failure> {
            self.prepared.fetch_add(1, Ordering::Relaxed);
            Ok(match sample.caption().unwrap().unwrap_or_default().len() {
                0 => Err("empty".to_owned()),
                length => Ok(length),
            })
        }

        fn score(&self, batch: &[usize]) -> Result<Vec<SampleScores>, Failure> {
            self.scored.fetch_add(batch.len(), Ordering::Relaxed);
            self.batches.lock().unwrap().push(batch.len());
            if self.fails_at.is_some_and(|length| batch.contains(&length)) {
                return Err("the network fails".into());
            }
            if let Some(interrupted) = &self.interrupts {
                interrupted.store(true, Ordering::Relaxed);
            }
            Ok(batch.iter().map(|length| (vec![Some(*length as f64)], Vec::new())).collect())
        }
    }

    struct World {
        _dir: tempfile::TempDir,
        run: RunContext,
        shards: PathBuf,
    }

    fn world() -> World {
        let dir = tempfile::tempdir().unwrap();
        let shards = dir.path().join("shards");
        std::fs::create_dir(&shards).unwrap();
        let many: Vec<String> = (0..SAMPLES_AT_ONCE + 3).map(|length| "x".repeat(length)).collect();
        write_shard(&shards, "00000.tar", &many.iter().map(String::as_str).collect::<Vec<_>>());
        write_shard(&shards, "00001.tar", &["ab", ""]);
        let run = RunContext::for_test::<Lengths>(dir.path(), 7).unwrap();
        World { _dir: dir, run, shards }
    }

    impl World {
        fn score(&self, scorer: &Length) -> Result<Scored, Failure> {
            let metrics = ["length".to_owned()];
            let info = ScorerInfo {
                scorer: "len",
                model_digest: "d",
                code_version: "1",
                metrics: &metrics,
                texts: &[],
            };
            score_shards(&self.run, &self.shards, info, scorer)
        }

        fn sidecar(&self, shard: &str) -> PathBuf {
            ScoreTable::sidecar_path(&self.run.out_dir, shard, "len")
        }
    }

    #[test]
    fn finished_sidecars_are_not_made_again_and_count_the_same() {
        let (world, scorer) = (world(), Length::default());
        let scored = world.score(&scorer).unwrap();
        assert_eq!((scored.tally.seen, scored.tally.rejected["empty"]), (SAMPLES_AT_ONCE as u64 + 5, 2));
        // The rejected sample is no part of a batch.
        assert_eq!(*scorer.batches.lock().unwrap(), [SAMPLES_AT_ONCE, 2, 1]);
        std::fs::remove_file(world.sidecar("00001")).unwrap();
        let again = Length::default();
        assert_eq!(world.score(&again).unwrap(), scored);
        assert_eq!(again.prepared.into_inner(), 2, "only the missing sidecar is made");
        let table = ScoreTable::read(&world.sidecar("00001")).unwrap();
        assert_eq!(table.metric("length").unwrap(), [Some(2.0), None]);
        assert_eq!(table.uids[0].as_deref(), Some("u0"));
    }

    #[test]
    fn batches_change_nothing_but_their_size() {
        let (one, other) = (world(), world());
        let small = Length { prepared_bytes: PREPARED_BYTES_AT_ONCE / 9, multiple: 3, ..Length::default() };
        assert_eq!(one.score(&Length::default()).unwrap(), other.score(&small).unwrap());
        assert_eq!(small.batches.lock().unwrap()[..3], [9, 9, 9]);
        for shard in ["00000", "00001"] {
            let bytes = |world: &World| std::fs::read(world.sidecar(shard)).unwrap();
            assert_eq!(bytes(&one), bytes(&other));
        }
        assert_eq!(samples_at_once(usize::MAX), 1);
    }

    /// The reader waits for a place in the queue when the scorer stops; it must not wait for ever.
    #[test]
    fn a_failure_ends_the_run_and_leaves_no_half_shard() {
        let world = world();
        let scorer =
            Length { prepared_bytes: PREPARED_BYTES_AT_ONCE / 9, fails_at: Some(9), ..Length::default() };
        assert_eq!(world.score(&scorer).unwrap_err().to_string(), "the network fails");
        assert_eq!(scorer.batches.lock().unwrap().len(), 2);
        // What is prepared when the second batch fails: itself, one that waits, one that is ready to, and perhaps a last.
        assert!(scorer.prepared.into_inner() <= 5 * 8);
        assert!(!world.sidecar("00000").exists() && !world.sidecar("00001").exists());
    }

    #[test]
    fn an_interrupted_run_is_completed_by_the_next() {
        let (cut, whole) = (world(), world());
        let interrupted = cut.run.interruption();
        let scorer = Length { interrupts: Some(interrupted.clone()), ..Length::default() };
        let error = cut.score(&scorer).unwrap_err();
        assert_eq!(error.to_string(), Interrupted.to_string());
        assert_eq!(scorer.batches.lock().unwrap().len(), 1);
        interrupted.store(false, Ordering::Relaxed);
        assert_eq!(cut.score(&Length::default()).unwrap(), whole.score(&Length::default()).unwrap());
        for shard in ["00000", "00001"] {
            let bytes = |world: &World| std::fs::read(world.sidecar(shard)).unwrap();
            assert_eq!(bytes(&cut), bytes(&whole));
        }
    }

    #[test]
    fn a_shard_is_scored_up_to_its_damage() {
        let world = world();
        let tar = world.shards.join("00000.tar");
        let bytes = std::fs::read(&tar).unwrap();
        write_atomic(&tar, &bytes[..bytes.len() / 2]).unwrap();
        let tally = world.score(&Length::default()).unwrap().tally;
        let table = ScoreTable::read(&world.sidecar("00000")).unwrap();
        let reasons = &table.texts.last().unwrap().1;
        assert!(table.keys.len() > 100 && table.keys.len() < 200, "{}", table.keys.len());
        assert_eq!(reasons.last().unwrap().as_deref(), Some("damaged-shard"));
        assert_eq!(tally.seen, table.keys.len() as u64 + 2);
    }
}
