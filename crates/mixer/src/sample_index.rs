//! The first pass: reads every shard once and leaves in the index directory what the decisions need.
//!
//! For the shard with number 7 that is `00000007.places` ([`Places`]) and its table in pieces of
//! [`ROWS_PER_FILE`] rows, `00000007.0000.parquet` and so on ([`SampleRows`]). The places are written last: a shard
//! that has them is not read again, whoever was killed meanwhile. When the selection is written, the directory goes.

use std::path::{Path, PathBuf};

use oqvl_shard_io::{
    IMAGE_EXTENSIONS, Member, Sample, ScoreTable, ShardError, ShardReader, TableWriter, Uid, list_shards,
};
use oqvl_stage::{ConfigError, RunContext};
use rayon::prelude::*;
use serde_json::{Map, Value};

use crate::columns::MergedColumns;
use crate::config::ScoreFiles;
use crate::identity::{NamedBy, identify};
use crate::image_hash::hash_of_file;
use crate::parquet_scan::{Batches, open_table};
use crate::places::{Digest, Place, Places, ShardEnd};
use crate::sample_table::{OwnTable, SampleRows, ScoreRows};
use crate::subset_config::{Rule, ScoreSource};
use crate::{DedupKey, MixerConfig, MixerError};

/// Rows of one file of the index: bounds what is in memory of a shard of any size.
pub(crate) const ROWS_PER_FILE: usize = 16_384;

/// Shards of whose first samples the columns are learnt before the first pass.
const MAX_PREVIEWED_SHARDS: usize = 64;

/// How many of their samples are looked at for that: not every sample has every field.
const MAX_PREVIEWED_SAMPLES: usize = 256;

/// An input shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct InputShard {
    pub(crate) path: PathBuf,
    /// File name without `.tar`.
    pub(crate) name: String,
}

/// What can be said of the columns of the pool before the first pass.
#[derive(Debug)]
pub(crate) struct Preview {
    pub(crate) columns: MergedColumns,
    /// Whether there are no others: all samples were looked at, or they have tables beside them, which give every
    /// sample the same columns.
    pub(crate) is_certain: bool,
}

/// A metric that must be there.
#[derive(Debug, Clone)]
struct RequiredMetric {
    /// Index of the subset that goes by it.
    subset: usize,
    /// Index of the sidecar.
    sidecar: usize,
    name: String,
}

/// What the first pass is to note.
#[derive(Debug, Clone)]
pub(crate) struct IndexPlan {
    sidecars: Vec<ScoreFiles>,
    required_metrics: Vec<RequiredMetric>,
    compares_content: bool,
    compares_captions: bool,
    hashes_images: bool,
}

impl IndexPlan {
    /// A name for what is noted of which shards: an index that notes something else is another one.
    fn name(&self, shards_dir: &Path) -> String {
        blake3::hash(format!("{shards_dir:?} {self:?}").as_bytes()).to_hex()[..16].to_owned()
    }

    pub(crate) fn new(config: &MixerConfig, rules: &[Rule]) -> IndexPlan {
        let sidecars = config.sidecars();
        let required = |(subset, rule): (usize, &Rule)| match rule {
            Rule::Score { source: ScoreSource::Sidecar { files, metric }, .. } => {
                let sidecar = sidecars.iter().position(|it| it == files)?;
                Some(RequiredMetric { subset, sidecar, name: metric.clone() })
            }
            _ => None,
        };
        IndexPlan {
            required_metrics: rules.iter().enumerate().filter_map(required).collect(),
            sidecars,
            compares_content: config.dedups_by(DedupKey::Content),
            compares_captions: config.dedups_by(DedupKey::Caption),
            hashes_images: config.hashes_images(),
        }
    }

    /// Opens a shard to note this; images that nothing depends on are not read.
    fn open(&self, path: &Path) -> Result<Box<dyn Iterator<Item = Result<Sample, ShardError>>>, ShardError> {
        Ok(if self.compares_content || self.hashes_images {
            Box::new(ShardReader::open(path)?)
        } else {
            let is_image = |extension: &str| IMAGE_EXTENSIONS.contains(&extension);
            Box::new(ShardReader::open_without(path, is_image)?)
        })
    }
}

/// The directory of the index and the shards it speaks of.
#[derive(Debug)]
pub(crate) struct SampleIndex {
    dir: PathBuf,
    pub(crate) shards: Vec<InputShard>,
}

impl SampleIndex {
    /// The index that notes `plan`, below `dir`, for the shards of `shards_dir`, in name order.
    pub(crate) fn create(dir: &Path, plan: &IndexPlan, shards_dir: &Path) -> Result<SampleIndex, MixerError> {
        let dir = dir.join(plan.name(shards_dir));
        std::fs::create_dir_all(&dir).map_err(|source| MixerError::Scratch { path: dir.clone(), source })?;
        let name = |path: &Path| path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let shards = list_shards(shards_dir)?.into_iter();
        let shards = shards.map(|path| InputShard { name: name(&path), path }).collect();
        Ok(SampleIndex { dir, shards })
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn places_path(&self, shard: usize) -> PathBuf {
        self.dir.join(format!("{shard:08}.places"))
    }

    /// The table of the rows from `ROWS_PER_FILE * piece` on.
    pub(crate) fn table_path(&self, shard: usize, piece: usize) -> PathBuf {
        self.dir.join(format!("{shard:08}.{piece:04}.parquet"))
    }

    /// Reads all shards that are not in the index yet, in parallel, the share of this process first.
    pub(crate) fn fill(&self, plan: &IndexPlan, run: &RunContext) -> Result<(), MixerError> {
        let progress = run.progress(self.shards.len() as u64, "shards read");
        let (mut order, rest): (Vec<usize>, Vec<usize>) =
            (0..self.shards.len()).partition(|shard| run.shards.is_none_or(|share| share.owns(*shard)));
        order.extend(rest);
        order.into_par_iter().try_for_each(|shard| {
            if Places::read_summary(&self.places_path(shard)).is_none() {
                self.index_shard(shard, plan, run)?;
            }
            progress.inc(1);
            Ok::<(), MixerError>(())
        })?;
        progress.finish();
        Ok(())
    }

    /// The table beside a shard.
    fn own_table(&self, shard: usize) -> Result<Option<OwnTable>, MixerError> {
        OwnTable::read(&self.shards[shard].path.with_extension("parquet"))
    }

    fn index_shard(&self, shard: usize, plan: &IndexPlan, run: &RunContext) -> Result<(), MixerError> {
        let own_table = self.own_table(shard).unwrap_or_else(|error| {
            tracing::warn!(%error, "the table beside the shard is left out");
            None
        });
        let mut writer = ShardIndexer::new(self, shard, plan, run, own_table);
        for sample in plan.open(&self.shards[shard].path)? {
            run.check_interrupt()?;
            match sample {
                Ok(sample) => writer.push(&sample)?,
                // The disk, not the data, is at fault: trying again may help, going on would lose samples.
                Err(error @ (ShardError::Io { .. } | ShardError::Read { .. })) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "the rest of the shard, if there is more, is left out");
                    writer.places.end = ShardEnd::of(&error);
                    break;
                }
            }
        }
        writer.finish()
    }

    /// The columns the pool will have, as far as the first samples of some of the shards tell.
    pub(crate) fn preview(&self, plan: &IndexPlan, run: &RunContext) -> Result<Preview, MixerError> {
        let plan = IndexPlan {
            compares_content: false,
            compares_captions: false,
            hashes_images: false,
            ..plan.clone()
        };
        let mut preview = Preview { columns: MergedColumns::of_shards(), is_certain: true };
        let step = self.shards.len().div_ceil(MAX_PREVIEWED_SHARDS).max(1);
        let mut has_seen_all = step == 1;
        let mut all_have_tables = true;
        for shard in (0..self.shards.len()).step_by(step) {
            run.check_interrupt()?;
            // The first pass will say what is wrong with the table, or with the shard.
            let own_table = self.own_table(shard).unwrap_or_default();
            let mut indexer = ShardIndexer::new(self, shard, &plan, run, own_table);
            let mut samples = plan.open(&self.shards[shard].path)?;
            for sample in samples.by_ref().take(MAX_PREVIEWED_SAMPLES) {
                let Ok(sample) = sample else { break };
                indexer.note(&sample);
            }
            has_seen_all &= indexer.rows.len() < MAX_PREVIEWED_SAMPLES || samples.next().is_none();
            all_have_tables &= indexer.own_table.as_ref().is_some_and(|it| it.knows(&indexer.rows.keys));
            if indexer.rows.len() > 0 {
                let batch = indexer.take_batch()?;
                preview.columns.add(&batch.schema(), batch.num_rows() as u64);
            }
        }
        preview.is_certain = has_seen_all || all_have_tables;
        Ok(preview)
    }
}

/// The work on one shard.
#[derive(Debug)]
struct ShardIndexer<'a> {
    index: &'a SampleIndex,
    shard: usize,
    plan: &'a IndexPlan,
    run: &'a RunContext,
    places: Places,
    rows: SampleRows,
    own_table: Option<OwnTable>,
    /// Read when the first rows need them: a filter that met no sample may not know its columns.
    scores: Option<Vec<ScoreRows>>,
}

impl<'a> ShardIndexer<'a> {
    fn new(
        index: &'a SampleIndex,
        shard: usize,
        plan: &'a IndexPlan,
        run: &'a RunContext,
        own_table: Option<OwnTable>,
    ) -> Self {
        let (places, rows) = (Places::default(), SampleRows::default());
        ShardIndexer { index, shard, plan, run, places, rows, own_table, scores: None }
    }

    fn push(&mut self, sample: &Sample) -> Result<(), MixerError> {
        self.note(sample);
        if self.rows.len() == ROWS_PER_FILE { self.flush() } else { Ok(()) }
    }

    fn note(&mut self, sample: &Sample) {
        let metadata: Result<Option<Map<String, Value>>, ShardError> = sample.metadata();
        let identity = identify(&sample.key, metadata.as_ref().map(Option::as_ref).map_err(|_| ()));
        let digest = |is_wanted: bool, member: Option<&Member>| {
            member.filter(|_| is_wanted).map(|member| digest(&member.data))
        };
        let hash = |image: &Member| hash_of_file(&image.data);
        let image = sample.image();
        self.places.samples.push(Place {
            offset: sample.offset,
            num_bytes: sample.num_bytes,
            key_check: key_check(sample.key.as_str()),
            uid: identity.as_ref().map(|identity| identity.uid).map_err(|reject| *reject),
            named_by_uid: identity.as_ref().is_ok_and(|identity| identity.named_by == NamedBy::Uid),
            content: digest(self.plan.compares_content, image),
            caption: digest(self.plan.compares_captions, sample.member("txt")),
            image_hash: image.filter(|_| self.plan.hashes_images).and_then(hash),
        });
        let caption = sample.member("txt").map(|text| String::from_utf8_lossy(&text.data).into_owned());
        let uid = identity.ok().map(|identity| Uid::to_string(&identity.uid));
        self.rows.push(sample.key.to_string(), uid, caption, metadata.ok().flatten());
    }

    fn flush(&mut self) -> Result<(), MixerError> {
        if self.rows.len() == 0 {
            return Ok(());
        }
        let piece = (self.places.samples.len() - 1) / ROWS_PER_FILE;
        let path = self.index.table_path(self.shard, piece);
        let batch = self.take_batch()?;
        let mut writer = TableWriter::create(&path, batch.schema(), &[]).map_err(scratch_error(&path))?;
        writer.write(&batch).map_err(scratch_error(&path))?;
        writer.finish().map_err(scratch_error(&path))
    }

    fn take_batch(&mut self) -> Result<arrow_array::RecordBatch, MixerError> {
        if self.scores.is_none() {
            self.scores = Some(self.read_scores()?);
        }
        let rows = std::mem::take(&mut self.rows);
        if rows.num_dropped > 0 {
            let (shard, num_values) = (&self.index.shards[self.shard].name, rows.num_dropped);
            tracing::warn!(
                shard,
                num_values,
                "values that are too long, or in too many fields, are left out"
            );
        }
        let scores = self.scores.iter_mut().flatten().enumerate();
        let scores = scores.flat_map(|(index, scores)| scores.columns_for(index, &rows.keys)).collect();
        let first_position = self.places.samples.len() - rows.len();
        let name = &self.index.shards[self.shard].name;
        Ok(rows.into_batch(name, self.shard, first_position, self.own_table.as_mut(), scores))
    }

    fn read_scores(&self) -> Result<Vec<ScoreRows>, MixerError> {
        let name = &self.index.shards[self.shard].name;
        let read = |(index, files): (usize, &ScoreFiles)| {
            let path = ScoreTable::sidecar_path(&self.run.resolve(&files.scores), name, &files.scorer);
            let scores = ScoreRows::read(&path)?;
            let known = scores.metrics();
            let required = self.plan.required_metrics.iter().filter(|metric| metric.sidecar == index);
            for RequiredMetric { subset, name, .. } in required {
                if !known.contains(&name.as_str()) {
                    let known = crate::columns::list_names(known);
                    let message = format!("{}: no metric `{name}`; it has {known}", path.display());
                    return Err(ConfigError::new(format!("subset.{subset}.metric"), message).into());
                }
            }
            Ok(scores)
        };
        self.plan.sidecars.iter().enumerate().map(read).collect()
    }

    fn finish(mut self) -> Result<(), MixerError> {
        self.flush()?;
        self.places.write(&self.index.places_path(self.shard))
    }
}

/// What cannot be written to the index is told as what cannot be written to scratch space.
fn scratch_error(path: &Path) -> impl FnOnce(ShardError) -> MixerError + '_ {
    |error| match error {
        ShardError::Io { source, .. } => MixerError::Scratch { path: path.to_path_buf(), source },
        other => other.into(),
    }
}

fn digest(bytes: &[u8]) -> Digest {
    blake3::hash(bytes).as_bytes()[..16].try_into().expect("a digest has 32 bytes")
}

/// By what the second pass knows a sample again.
pub(crate) fn key_check(key: &str) -> u64 {
    u64::from_le_bytes(digest(key.as_bytes())[..8].try_into().expect("a digest has more"))
}

/// The rows of a file of the index, all at once: at most [`ROWS_PER_FILE`].
pub(crate) fn read_table(path: &Path) -> Result<arrow_array::RecordBatch, MixerError> {
    let builder = open_table(path)?;
    let schema = builder.schema().clone();
    let batches = Batches::start(path, builder.with_batch_size(ROWS_PER_FILE))?;
    let batches = batches.collect::<Result<Vec<_>, MixerError>>()?;
    let table = datafusion::arrow::compute::concat_batches(&schema, &batches);
    table.map_err(|error| MixerError::Table { path: path.to_path_buf(), problem: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_pool::{TestSample, config, write_pool};

    #[test]
    fn shards_come_in_name_order_and_unfinished_ones_do_not() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00010.tar", "00002.tar", ".tmp-x.tar", "00002.parquet", "00002_stats.json", "tar"] {
            oqvl_shard_io::write_atomic(&dir.path().join(name), b"").unwrap();
        }
        let plan = IndexPlan::new(&config(), &[]);
        let index = SampleIndex::create(&dir.path().join("index"), &plan, dir.path()).unwrap();
        assert_eq!(index.shards.iter().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["00002", "00010"]);
        let empty = tempfile::tempdir().unwrap();
        let index = |dir: &Path| {
            SampleIndex::create(&tempfile::tempdir().unwrap().path().join("index"), &plan, dir).unwrap_err()
        };
        assert!(matches!(index(empty.path()), MixerError::Shard(ShardError::NoShards { .. })));
        assert!(matches!(index(&empty.path().join("x")), MixerError::Shard(ShardError::Io { .. })));
    }

    #[test]
    fn the_first_pass_notes_what_is_asked_for_and_does_not_repeat_itself() {
        let pool = [TestSample::new("a", 1), TestSample::new("b", 2).without_uid()];
        let (dir, run) = write_pool(&[&pool]);
        let places = |dedup: &[DedupKey]| {
            let config = MixerConfig { dedup: dedup.to_vec(), ..config() };
            let index_dir = tempfile::tempdir().unwrap();
            let plan = IndexPlan::new(&config, &[]);
            let index = SampleIndex::create(index_dir.path(), &plan, &dir.path().join("pool")).unwrap();
            index.fill(&plan, &run).unwrap();
            let path = index.places_path(0);
            let places = Places::read(&path).unwrap().unwrap();
            assert_eq!(read_table(&index.table_path(0, 0)).unwrap().num_rows(), 2);
            std::fs::remove_file(index.table_path(0, 0)).unwrap();
            index.fill(&plan, &run).unwrap();
            assert!(!index.table_path(0, 0).exists(), "a shard with places is not read again");
            places
        };
        let plain = places(&[DedupKey::Uid]);
        assert!(plain.samples.iter().all(|place| place.content.is_none() && place.caption.is_none()));
        assert!(
            plain.end == ShardEnd::Whole && plain.samples[0].named_by_uid && !plain.samples[1].named_by_uid
        );
        let compared = places(&[DedupKey::Content, DedupKey::Caption]);
        assert_ne!(compared.samples[0].content, compared.samples[1].content);
        assert!(compared.samples.iter().all(|place| place.content.is_some() && place.caption.is_some()));
    }
}
