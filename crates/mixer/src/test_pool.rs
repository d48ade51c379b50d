//! Pools for the tests: samples whose uid, image, caption and scores are chosen one by one.

use std::collections::BTreeSet;
use std::path::Path;

use oqvl_shard_io::{Sample, SampleKey, ScoreTable, ShardWriter};
use oqvl_stage::RunContext;
use tempfile::TempDir;

use crate::{Mixer, MixerConfig, Select, SubsetConfig};

/// Who wrote the sidecars of a test pool.
const SCORER: &str = "test";

#[derive(Debug, Clone)]
pub(crate) struct TestSample {
    key: String,
    uid: Option<String>,
    image: Vec<u8>,
    caption: String,
    scores: Vec<(&'static str, f64)>,
    fields: serde_json::Map<String, serde_json::Value>,
}

impl TestSample {
    /// A sample with the uid `number`, an image and a caption of its own, and no scores.
    pub(crate) fn new(key: &str, number: u32) -> TestSample {
        TestSample {
            key: key.to_owned(),
            uid: Some(format!("{number:032x}")),
            image: format!("image {number}").repeat(number as usize % 90).into_bytes(),
            caption: format!("caption {number}"),
            scores: Vec::new(),
            fields: serde_json::Map::new(),
        }
    }

    pub(crate) fn without_uid(mut self) -> TestSample {
        self.uid = None;
        self
    }

    pub(crate) fn with_uid(mut self, uid: &str) -> TestSample {
        self.uid = Some(uid.to_owned());
        self
    }

    pub(crate) fn with_image(mut self, image: &[u8]) -> TestSample {
        self.image = image.to_vec();
        self
    }

    pub(crate) fn with_caption(mut self, caption: &str) -> TestSample {
        self.caption = caption.to_owned();
        self
    }

    /// With another field in its `json`.
    pub(crate) fn with_field(mut self, name: &str, value: impl Into<serde_json::Value>) -> TestSample {
        self.fields.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn scored(mut self, metric: &'static str, score: f64) -> TestSample {
        self.scores.push((metric, score));
        self
    }
}

/// Writes the shards `pool/{:05}.tar` and their sidecars; returns the work directory and a context for it.
pub(crate) fn write_pool(shards: &[&[TestSample]]) -> (TempDir, RunContext) {
    let work_dir = tempfile::tempdir().unwrap();
    let dir = work_dir.path().join("pool");
    std::fs::create_dir(&dir).unwrap();
    for (index, samples) in shards.iter().enumerate() {
        write_shard(&dir, &format!("{index:05}"), samples);
    }
    let run = RunContext::for_test::<Mixer>(work_dir.path(), 7).unwrap();
    (work_dir, run)
}

fn write_shard(dir: &Path, name: &str, samples: &[TestSample]) {
    let mut writer = ShardWriter::create(&dir.join(format!("{name}.tar"))).unwrap();
    for test in samples {
        let mut sample = Sample::new(SampleKey::new(&*test.key).unwrap());
        sample.push("jpg", test.image.clone());
        let mut json = serde_json::json!({"uid": test.uid, "key": test.key});
        json.as_object_mut().unwrap().extend(test.fields.clone());
        sample.push("json", serde_json::to_vec(&json).unwrap());
        sample.push("txt", test.caption.clone().into_bytes());
        writer.push(&sample).unwrap();
    }
    writer.finish().unwrap();
    let metrics: BTreeSet<&str> =
        samples.iter().flat_map(|test| test.scores.iter().map(|(metric, _)| *metric)).collect();
    let column = |metric: &str| {
        let score = |test: &TestSample| test.scores.iter().find(|(name, _)| *name == metric).map(|(_, s)| *s);
        samples.iter().map(score).collect()
    };
    let table = ScoreTable {
        scorer: SCORER.to_owned(),
        keys: samples.iter().map(|test| test.key.clone()).collect(),
        uids: samples.iter().map(|test| test.uid.clone()).collect(),
        metrics: metrics.into_iter().map(|metric| (metric.to_owned(), column(metric))).collect(),
        ..ScoreTable::default()
    };
    table.write(&ScoreTable::sidecar_path(dir, name, SCORER)).unwrap();
}

/// Everything of the pool, no dedup, two samples per output shard.
pub(crate) fn config() -> MixerConfig {
    MixerConfig {
        shards: Some("pool".into()),
        select: Select::All,
        samples_per_shard: 2,
        ..MixerConfig::default()
    }
}

/// The subset of samples with at least `min_score`, named after its metric.
pub(crate) fn min_score(metric: &str, min_score: f64) -> SubsetConfig {
    SubsetConfig {
        name: metric.to_owned(),
        scores: Some("pool".into()),
        scorer: Some(SCORER.to_owned()),
        metric: Some(metric.to_owned()),
        min_score: Some(min_score),
        ..SubsetConfig::default()
    }
}
