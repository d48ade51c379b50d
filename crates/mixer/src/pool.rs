//! The first pass: everything the decisions need to know of each sample, and nothing else.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};

use oqvl_shard_io::{Member, ScoreTable, ShardError, ShardReader, Uid, list_shards};
use oqvl_stage::RunContext;
use rayon::prelude::*;

use crate::config::{Rule, ScoreSource};
use crate::identity::{Identity, NamedBy, identify};
use crate::reject::Reject;
use crate::{DedupKey, MixerConfig, MixerError};

/// Half of a BLAKE3 digest: at a billion samples a collision has odds of about 1 in 10^20.
pub(crate) type Digest = [u8; 16];

/// An input shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputShard {
    pub(crate) path: PathBuf,
    /// File name without `.tar`.
    pub(crate) name: String,
}

/// What the first pass notes of a sample.
#[derive(Debug, Clone)]
pub(crate) struct SampleRecord {
    /// Where it starts in its shard.
    pub(crate) offset: u64,
    /// Its uid, or why it has no usable one.
    pub(crate) uid: Result<Uid, Reject>,
    /// Digest of the image bytes, if samples are compared by them and there is an image.
    pub(crate) content: Option<Digest>,
    /// Digest of the caption, if samples are compared by it and there is one.
    pub(crate) caption: Option<Digest>,
}

/// What the first pass notes of a shard.
#[derive(Debug)]
pub(crate) struct ShardScan {
    pub(crate) shard: InputShard,
    /// In shard order.
    pub(crate) samples: Vec<SampleRecord>,
    /// For each subset the score of each sample, NaN where there is none; empty for a subset given by uids.
    pub(crate) scores: Vec<Vec<f64>>,
    /// Keys of the samples that are not named by a uid, by position.
    pub(crate) unnamed: BTreeMap<usize, String>,
    /// Whether the tar is damaged behind the last of `samples`.
    pub(crate) end: ShardEnd,
}

/// How a shard ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShardEnd {
    Whole,
    Damaged,
}

impl ShardScan {
    /// What the report calls the sample at `position`: its uid, or `{shard}/{key}`.
    pub(crate) fn display_name(&self, position: usize) -> String {
        match (self.unnamed.get(&position), &self.samples[position].uid) {
            (None, Ok(uid)) => uid.to_string(),
            (key, _) => format!("{}/{}", self.shard.name, key.map_or("", String::as_str)),
        }
    }
}

/// The shards of `dir` in name order.
pub(crate) fn input_shards(dir: &Path) -> Result<Vec<InputShard>, MixerError> {
    let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(list_shards(dir)?.into_iter().map(|path| InputShard { name: name(&path), path }).collect())
}

/// Scans all input shards, in parallel; the result is in shard order.
pub(crate) fn scan_pool(
    config: &MixerConfig,
    rules: &[Rule],
    run: &RunContext,
) -> Result<Vec<ShardScan>, MixerError> {
    let shards = input_shards(&run.resolve(&config.shards))?;
    let progress = run.progress(shards.len() as u64, "shards read");
    let scans = shards
        .into_par_iter()
        .map(|shard| {
            let scan = scan_shard(shard, config, rules, run)?;
            progress.inc(1);
            Ok(scan)
        })
        .collect::<Result<Vec<ShardScan>, MixerError>>();
    progress.finish();
    scans
}

fn scan_shard(
    shard: InputShard,
    config: &MixerConfig,
    rules: &[Rule],
    run: &RunContext,
) -> Result<ShardScan, MixerError> {
    let (mut samples, mut keys) = (Vec::new(), Vec::new());
    let mut unnamed = BTreeMap::new();
    let mut end = ShardEnd::Whole;
    for sample in ShardReader::open(&shard.path)? {
        run.check_interrupt()?;
        let sample = match sample {
            Ok(sample) => sample,
            // The disk, not the data, is at fault: trying again may help, going on would lose samples.
            Err(error @ (ShardError::Io { .. } | ShardError::Read { .. })) => return Err(error.into()),
            Err(error) => {
                tracing::warn!(%error, "the rest of the shard is left out");
                end = ShardEnd::Damaged;
                break;
            }
        };
        let identity = identify(&sample);
        if !matches!(identity, Ok(Identity { named_by: NamedBy::Uid, .. })) {
            unnamed.insert(samples.len(), sample.key.to_string());
        }
        samples.push(SampleRecord {
            offset: sample.offset,
            uid: identity.map(|identity| identity.uid),
            content: digest(config, DedupKey::Content, sample.image()),
            caption: digest(config, DedupKey::Caption, sample.member("txt")),
        });
        keys.push(String::from(sample.key));
    }
    let scores = rules
        .iter()
        .map(|rule| match rule {
            Rule::Score { source, .. } => read_scores(source, &shard, &keys, run),
            Rule::Uids(_) => Ok(Vec::new()),
        })
        .collect::<Result<_, _>>()?;
    Ok(ShardScan { shard, samples, scores, unnamed, end })
}

/// The digest of `member`, where samples are compared by `key`.
fn digest(config: &MixerConfig, key: DedupKey, member: Option<&Member>) -> Option<Digest> {
    let member = member.filter(|_| config.dedups_by(key))?;
    let digest = blake3::hash(&member.data);
    Some(digest.as_bytes()[..16].try_into().expect("a digest has 32 bytes"))
}

/// The score of every sample of `shard`, NaN where the sidecar has none.
fn read_scores(
    source: &ScoreSource,
    shard: &InputShard,
    keys: &[String],
    run: &RunContext,
) -> Result<Vec<f64>, MixerError> {
    if keys.is_empty() {
        // A filter that met no sample may not know its columns.
        return Ok(Vec::new());
    }
    let path = ScoreTable::sidecar_path(&run.resolve(&source.dir), &shard.name, &source.scorer);
    let table = ScoreTable::read(&path)?;
    let Some(metric) = table.metric(&source.metric) else {
        let names: Vec<&str> = table.metrics.iter().map(|(name, _)| name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { format!("`{}`", names.join("`, `")) };
        return Err(MixerError::NoSuchMetric { path, metric: source.metric.clone(), known });
    };
    Ok(join_scores(keys, &table.keys, metric))
}

/// Looks up the score of each of `keys`. A key that occurs several times takes its rows in their order.
fn join_scores(keys: &[String], table_keys: &[String], metric: &[Option<f64>]) -> Vec<f64> {
    let mut rows: HashMap<&str, VecDeque<f64>> = HashMap::with_capacity(table_keys.len());
    for (key, score) in table_keys.iter().zip(metric) {
        rows.entry(key).or_default().push_back(score.unwrap_or(f64::NAN));
    }
    let take = |key: &String| rows.get_mut(key.as_str()).and_then(VecDeque::pop_front).unwrap_or(f64::NAN);
    keys.iter().map(take).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pool::{TestSample, config, write_pool};
    use crate::{Mixer, SubsetConfig};

    #[test]
    fn scores_are_joined_by_key() {
        let owned = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect::<Vec<_>>();
        let check = |keys: &[&str], rows: &[(&str, Option<f64>)], expected: &[Option<f64>]| {
            let table_keys: Vec<String> = rows.iter().map(|(key, _)| (*key).to_owned()).collect();
            let metric: Vec<Option<f64>> = rows.iter().map(|(_, score)| *score).collect();
            let joined = join_scores(&owned(keys), &table_keys, &metric);
            let joined: Vec<_> = joined.into_iter().map(|s| Some(s).filter(|s| !s.is_nan())).collect();
            assert_eq!(joined, expected);
        };
        check(&[], &[("a", Some(1.0))], &[]);
        check(&["a", "b"], &[], &[None, None]);
        check(&["a", "b"], &[("b", Some(2.0)), ("a", Some(1.0))], &[Some(1.0), Some(2.0)]);
        check(&["a", "b"], &[("b", Some(f64::NAN)), ("a", None)], &[None, None]);
        let rows = [("a", Some(1.0)), ("b", Some(2.0)), ("a", Some(3.0))];
        check(&["a", "a", "a", "b"], &rows, &[Some(1.0), Some(3.0), None, Some(2.0)]);
    }

    #[test]
    fn shards_come_in_name_order_and_unfinished_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00010.tar", "00002.tar", ".tmp-x.tar", "00002.parquet", "00002_stats.json", "tar"] {
            oqvl_shard_io::write_atomic(&dir.path().join(name), b"").unwrap();
        }
        let names: Vec<String> =
            input_shards(dir.path()).unwrap().into_iter().map(|shard| shard.name).collect();
        assert_eq!(names, ["00002", "00010"]);
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(input_shards(empty.path()), Err(MixerError::Shard(ShardError::NoShards { .. }))));
        assert!(matches!(
            input_shards(&empty.path().join("x")),
            Err(MixerError::Shard(ShardError::Io { .. }))
        ));
    }

    #[test]
    fn the_first_pass_notes_what_is_asked_for() {
        let (dir, run) = write_pool(&[&[TestSample::new("a", 1), TestSample::new("b", 2).without_uid()]]);
        let with_dedup = |dedup: &[DedupKey]| MixerConfig { dedup: dedup.to_vec(), ..config() };
        let scan = |config: &MixerConfig| scan_pool(config, &[], &run).unwrap().remove(0);
        let plain = scan(&with_dedup(&[DedupKey::Uid]));
        assert!(plain.samples.iter().all(|sample| sample.content.is_none() && sample.caption.is_none()));
        assert_eq!(plain.end, ShardEnd::Whole);
        let uid = plain.samples[0].uid.unwrap().to_string();
        assert_eq!([plain.display_name(0), plain.display_name(1)], [uid, "00000/b".to_owned()]);
        let compared = scan(&with_dedup(&[DedupKey::Content, DedupKey::Caption]));
        assert_ne!(compared.samples[0].content, compared.samples[1].content);
        assert!(compared.samples.iter().all(|sample| sample.content.is_some() && sample.caption.is_some()));
        drop(dir);
    }

    #[test]
    fn absent_sidecars_and_metrics_are_named() {
        let (dir, run) = write_pool(&[&[TestSample::new("a", 1).scored("clip", 0.5)]]);
        let check = |metric: &str, scorer: &str, expected: &str| {
            let subset =
                SubsetConfig { scorer: Some(scorer.into()), ..crate::test_pool::min_score(metric, 0.0) };
            let config = MixerConfig { select: crate::Select::Union, subset: vec![subset], ..config() };
            let message = <Mixer as oqvl_stage::Stage>::run(&config, &run).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("itm", "test", "00000.test.parquet: no metric `itm`; it has `clip`");
        check("clip", "nobody", "00000.nobody.parquet");
        drop(dir);
    }
}
