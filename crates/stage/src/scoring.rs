//! The loop of every filter that scores shards: one sidecar per shard, finished ones are skipped.

use crate::{Interrupted, RunContext, Tally};
use oqvl_shard_io::{Sample, ScoreTable, ShardError, ShardReader, list_shards};
use std::path::Path;

/// Most samples that are in memory at a time.
const SAMPLES_AT_ONCE: usize = 256;
/// Bytes of samples after which no more are read at a time; a shard of huge images must not fill the memory.
const BYTES_AT_ONCE: usize = 64 << 20;
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

/// What is known about one sample: values in the order of the columns, or a kebab-case reason why there are none.
pub type SampleScores = Result<(Vec<Option<f64>>, Vec<Option<String>>), String>;

/// Scores all shards of `shards_dir` that are this process's share and have no sidecar in the output directory yet.
/// `score` gets up to 256 samples and gives one answer for each. A damaged shard is scored up to the damage, which
/// counts as one rejected sample.
///
/// # Errors
/// If a directory or sidecar cannot be read or written, `score` fails, or the run is interrupted.
pub fn score_shards<E>(
    run: &RunContext,
    shards_dir: &Path,
    info: ScorerInfo<'_>,
    score: impl Fn(&[Sample]) -> Result<Vec<SampleScores>, E>,
) -> Result<Tally, E>
where
    E: From<ShardError> + From<Interrupted>,
{
    let shards: Vec<_> = list_shards(shards_dir)?;
    let progress = run.progress(shards.len() as u64, "shards");
    let mut tally = Tally::default();
    for (shard_idx, shard) in shards.iter().enumerate() {
        progress.inc(1);
        if !run.owns_shard(shard_idx) {
            continue;
        }
        let name = shard.file_stem().unwrap_or_default().to_string_lossy();
        let sidecar = ScoreTable::sidecar_path(&run.out_dir, &name, info.scorer);
        if !sidecar.exists() {
            score_shard(run, shard, &info, &score)?.write(&sidecar)?;
        }
        // Always from the file: the report of a resumed run is that of an undisturbed one.
        tally.merge(count(&ScoreTable::read(&sidecar)?));
    }
    progress.finish();
    tally.assert_balanced();
    Ok(tally)
}

fn score_shard<E>(
    run: &RunContext,
    shard: &Path,
    info: &ScorerInfo<'_>,
    score: &impl Fn(&[Sample]) -> Result<Vec<SampleScores>, E>,
) -> Result<ScoreTable, E>
where
    E: From<ShardError> + From<Interrupted>,
{
    let mut table = empty_table(info);
    let mut samples = ShardReader::open(shard)?;
    loop {
        run.check_interrupt()?;
        let (mut batch, mut num_bytes, mut damage, mut ended) = (Vec::new(), 0, None, false);
        while !ended && batch.len() < SAMPLES_AT_ONCE && num_bytes < BYTES_AT_ONCE {
            match samples.next() {
                Some(Ok(sample)) => {
                    num_bytes += sample.members.iter().map(|member| member.data.len()).sum::<usize>();
                    batch.push(sample);
                }
                Some(Err(error)) => (damage, ended) = (Some(error), true),
                None => ended = true,
            }
        }
        if let Some(error) = &damage {
            tracing::warn!("{error}: scored up to there");
        }
        let answers = score(&batch)?;
        assert_eq!(answers.len(), batch.len(), "a scorer answers once for every sample");
        for (sample, answer) in batch.iter().zip(answers) {
            push(&mut table, sample.key.as_str(), uid(sample), answer);
        }
        if let Some(error) = &damage {
            push(&mut table, &shard.display().to_string(), None, Err(error.shard_reason().to_owned()));
        }
        if ended {
            return Ok(table);
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

fn push(table: &mut ScoreTable, key: &str, uid: Option<String>, answer: SampleScores) {
    let (num_metrics, num_texts) = (table.metrics.len(), table.texts.len() - 1);
    let (metrics, mut texts, reject) = match answer {
        Ok((metrics, texts)) => (metrics, texts, None),
        Err(reason) => (vec![None; num_metrics], vec![None; num_texts], Some(reason)),
    };
    texts.push(reject);
    assert!(metrics.len() == num_metrics && texts.len() == num_texts + 1, "a scorer fills every column");
    table.keys.push(key.to_owned());
    table.uids.push(uid);
    table.metrics.iter_mut().zip(metrics).for_each(|((_, column), value)| column.push(value));
    table.texts.iter_mut().zip(texts).for_each(|((_, column), value)| column.push(value));
}

fn count(table: &ScoreTable) -> Tally {
    let mut tally = Tally::default();
    let rejects =
        table.texts.iter().find(|(name, _)| name == REJECT_COLUMN).map(|(_, column)| column.as_slice());
    for (row, key) in table.keys.iter().enumerate() {
        match rejects.and_then(|column| column[row].as_ref()) {
            Some(reason) => tally.reject(key, reason),
            None => tally.keep(),
        }
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigError, Stage, StageConfig};
    use oqvl_shard_io::{SampleKey, ShardWriter};
    use std::cell::Cell;

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

    #[test]
    fn finished_sidecars_are_not_made_again_and_count_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let shards = dir.path().join("shards");
        std::fs::create_dir(&shards).unwrap();
        let many: Vec<String> = (0..SAMPLES_AT_ONCE + 3).map(|length| "x".repeat(length)).collect();
        write_shard(&shards, "00000.tar", &many.iter().map(String::as_str).collect::<Vec<_>>());
        write_shard(&shards, "00001.tar", &["ab", ""]);
        let run = RunContext::for_test::<Lengths>(dir.path(), 7).unwrap();
        let metrics = ["length".to_owned()];
        let info =
            ScorerInfo { scorer: "len", model_digest: "d", code_version: "1", metrics: &metrics, texts: &[] };
        let calls = Cell::new(0);
        let score_all = || {
            score_shards(&run, &shards, info, |samples: &[Sample]| -> Result<_, Box<dyn std::error::Error>> {
                calls.set(calls.get() + samples.len());
                let length = |sample: &Sample| sample.caption().unwrap().unwrap_or_default().len();
                Ok(samples
                    .iter()
                    .map(|sample| match length(sample) {
                        0 => Err("empty".to_owned()),
                        length => Ok((vec![Some(length as f64)], Vec::new())),
                    })
                    .collect())
            })
            .unwrap()
        };
        let tally = score_all();
        assert_eq!((tally.seen, tally.rejected["empty"]), (SAMPLES_AT_ONCE as u64 + 5, 2));
        assert_eq!(calls.get(), SAMPLES_AT_ONCE + 5);
        std::fs::remove_file(ScoreTable::sidecar_path(&run.out_dir, "00001", "len")).unwrap();
        assert_eq!(score_all(), tally);
        assert_eq!(calls.get(), SAMPLES_AT_ONCE + 7, "only the missing sidecar is made");
        let table = ScoreTable::read(&ScoreTable::sidecar_path(&run.out_dir, "00001", "len")).unwrap();
        assert_eq!(table.metric("length").unwrap(), [Some(2.0), None]);
        assert_eq!(table.uids[0].as_deref(), Some("u0"));
    }
}
