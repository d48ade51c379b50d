//! The `[mixer]` table.

use std::path::{Path, PathBuf};

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};

use crate::scratch::MIN_LIMIT_MIB;
use crate::subset_config::{Rule, SubsetConfig, is_plain_name};

/// Samples in an output shard where the config does not say: as many as the DataComp resharder writes.
pub const DEFAULT_SAMPLES_PER_SHARD: usize = 10_000;

/// Files of a metadata folder that are the pool where the config does not say: all of them.
pub const DEFAULT_METADATA_FILES: &str = "*.parquet";

/// Largest Hamming distance at which two perceptual hashes of 64 bits may count as equal: beyond, pictures that have
/// nothing in common begin to meet, and the search is no longer fast.
pub const MAX_HASH_DISTANCE: u32 = 10;

/// The `[mixer]` table of a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixerConfig {
    /// Directory of the input shards (`*.tar`, in name order), relative to the work directory. This or
    /// `metadata_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<PathBuf>,
    /// Directory of parquet files with a column `uid`, as DataComp publishes its pools: only uid lists are written
    /// then, and no sample is looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_dir: Option<PathBuf>,
    /// The files of `metadata_dir` that are the pool, by a pattern with `*`, `?` and `[…]`;
    /// [`DEFAULT_METADATA_FILES`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metadata_files: Option<String>,
    /// How the subsets combine.
    pub select: Select,
    /// What makes two selected samples duplicates; the earlier one stays. Empty: nothing does.
    pub dedup: Vec<DedupKey>,
    /// Samples in every output shard but the last.
    #[serde(default = "default_samples_per_shard")]
    pub samples_per_shard: usize,
    /// Memory in MiB beyond which selections spill to the disk; half of the machine's by default. Beyond it there are
    /// at most two bits a sample for each subset and seven for the rest, 8 bytes for each group of duplicates, and what
    /// single shards hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_mib: Option<u64>,
    /// Score sidecars whose columns SQL sees beside those of the subsets.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sidecar: Vec<ScoreFiles>,
    /// Tables SQL can join.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub table: Vec<TableConfig>,
    /// The subsets of the pool.
    #[serde(default)]
    pub subset: Vec<SubsetConfig>,
    /// Drops selected samples whose image looks like that of an earlier one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub near_duplicates: Option<NearDuplicateConfig>,
    /// Drops samples whose image looks like one of a benchmark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decontaminate: Option<DecontaminateConfig>,
}

impl Default for MixerConfig {
    /// The whole of no pool.
    fn default() -> MixerConfig {
        MixerConfig {
            shards: None,
            metadata_dir: None,
            metadata_files: None,
            select: Select::All,
            dedup: Vec::new(),
            samples_per_shard: DEFAULT_SAMPLES_PER_SHARD,
            memory_limit_mib: None,
            sidecar: Vec::new(),
            table: Vec::new(),
            subset: Vec::new(),
            near_duplicates: None,
            decontaminate: None,
        }
    }
}

fn default_samples_per_shard() -> usize {
    DEFAULT_SAMPLES_PER_SHARD
}

/// How the subsets combine to the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Select {
    /// The whole pool; subsets are only counted and listed.
    All,
    /// What at least one subset holds (the paper: MLM-Filter or DFN).
    Union,
    /// What every subset holds.
    Intersection,
}

/// What makes a sample a duplicate of an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DedupKey {
    /// The same uid.
    Uid,
    /// The same image, byte for byte, whatever the caption. Samples without an image are never duplicates here.
    Content,
    /// The same caption, byte for byte. Samples without a caption are never duplicates here.
    Caption,
}

/// Score sidecars: `{scores}/{shard}.{scorer}.parquet`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScoreFiles {
    /// Their directory, relative to the work directory.
    pub scores: PathBuf,
    /// Who scored: the middle part of their names.
    pub scorer: String,
}

/// A table beside the pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableConfig {
    /// Its name in SQL.
    pub name: String,
    /// A parquet file, or a directory of `*.parquet`, relative to the work directory.
    pub path: PathBuf,
    /// The column by which `where` conditions join it to the pool; it must have one of that name.
    pub on: JoinKey,
}

/// What names a sample in an external table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JoinKey {
    /// Its uid: 32 lower-case hexadecimal digits.
    Uid,
    /// Its key in the shard.
    Key,
}

impl JoinKey {
    /// The name of the column.
    pub(crate) fn column(self) -> &'static str {
        match self {
            JoinKey::Uid => "uid",
            JoinKey::Key => "key",
        }
    }
}

/// The `[mixer.near_duplicates]` table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NearDuplicateConfig {
    /// Bits of 64 in which the perceptual hashes of two images may differ, at most [`MAX_HASH_DISTANCE`].
    pub max_distance: u32,
}

/// The `[mixer.decontaminate]` table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecontaminateConfig {
    /// Where the benchmark images are: image files, tars of samples, VLMEvalKit TSVs with images in base64,
    /// parquet files with images in a column `image`, or directories of any of these.
    pub images: Vec<PathBuf>,
    /// Bits of 64 in which the perceptual hashes of two images may differ, at most [`MAX_HASH_DISTANCE`].
    pub max_distance: u32,
}

/// Where the pool comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum PoolSource<'a> {
    /// Tars.
    Shards(&'a Path),
    /// Parquet files in a directory, by a pattern.
    Metadata(&'a Path, &'a str),
}

impl MixerConfig {
    /// Whether samples that agree in `key` are duplicates.
    pub(crate) fn dedups_by(&self, key: DedupKey) -> bool {
        self.dedup.contains(&key)
    }

    /// Whether images are to be hashed.
    pub(crate) fn hashes_images(&self) -> bool {
        self.near_duplicates.is_some() || self.decontaminate.is_some()
    }

    /// Where the pool comes from; the config has been validated.
    pub(crate) fn source(&self) -> Result<PoolSource<'_>, ConfigError> {
        match (&self.shards, &self.metadata_dir) {
            (Some(dir), None) => Ok(PoolSource::Shards(dir)),
            (None, Some(dir)) => {
                let files = self.metadata_files.as_deref().unwrap_or(DEFAULT_METADATA_FILES);
                Ok(PoolSource::Metadata(dir, files))
            }
            _ => {
                let message = "exactly one of `shards` and `metadata_dir` must be given";
                Err(ConfigError::new("shards", message))
            }
        }
    }

    /// All score sidecars: those of `sidecar`, then those of the subsets, each once.
    pub(crate) fn sidecars(&self) -> Vec<ScoreFiles> {
        let mut sidecars = self.sidecar.clone();
        for subset in &self.subset {
            let (Some(scores), Some(scorer)) = (&subset.scores, &subset.scorer) else { continue };
            let files = ScoreFiles { scores: scores.clone(), scorer: scorer.clone() };
            if !sidecars.contains(&files) {
                sidecars.push(files);
            }
        }
        sidecars
    }

    fn validate_source(&self) -> Result<(), ConfigError> {
        let error = |key: &str, message: &str| Err(ConfigError::new(key, message));
        match self.source()? {
            PoolSource::Shards(dir) if dir.as_os_str().is_empty() => {
                error("shards", "must name the directory of the input shards")
            }
            PoolSource::Shards(_) if self.metadata_files.is_some() => {
                error("metadata_files", "has no meaning without `metadata_dir`")
            }
            PoolSource::Shards(_) => Ok(()),
            PoolSource::Metadata(dir, _) if dir.as_os_str().is_empty() => {
                error("metadata_dir", "must name the directory of the parquet files")
            }
            PoolSource::Metadata(_, files) => {
                if let Err(problem) = glob::Pattern::new(files) {
                    return error("metadata_files", &problem.to_string());
                }
                if self.dedup.iter().any(|key| *key != DedupKey::Uid) {
                    return error("dedup", "a metadata folder has no samples: only `uid` can be compared");
                }
                if !self.sidecars().is_empty() {
                    return error(
                        "sidecar",
                        "a metadata folder has no shards: give scores as `table` or column",
                    );
                }
                if self.near_duplicates.is_some() {
                    return error("near_duplicates", "a metadata folder has no images");
                }
                if self.decontaminate.is_some() {
                    return error("decontaminate", "a metadata folder has no images");
                }
                Ok(())
            }
        }
    }

    fn validate_tables(&self) -> Result<(), ConfigError> {
        for (index, table) in self.table.iter().enumerate() {
            let key = |key: &str| format!("table.{index}.{key}");
            let lower = table.name.to_lowercase();
            if !is_plain_name(&table.name) || table.name != lower || table.name.contains('-') {
                let message = format!("must be lower-case letters, digits and `_`, got `{}`", table.name);
                return Err(ConfigError::new(key("name"), message));
            }
            let is_taken = self.table[..index].iter().any(|other| other.name == table.name);
            if is_taken || table.name == crate::query::POOL {
                return Err(ConfigError::new(key("name"), format!("`{}` is taken", table.name)));
            }
            if table.path.as_os_str().is_empty() {
                return Err(ConfigError::new(key("path"), "must name a parquet file or a directory of them"));
            }
        }
        Ok(())
    }

    fn validate_hashing(&self) -> Result<(), ConfigError> {
        let near = self.near_duplicates.map(|it| ("near_duplicates.max_distance", it.max_distance));
        let decontaminate =
            self.decontaminate.as_ref().map(|it| ("decontaminate.max_distance", it.max_distance));
        for (key, distance) in near.into_iter().chain(decontaminate) {
            if distance > MAX_HASH_DISTANCE {
                let message = format!("must be at most {MAX_HASH_DISTANCE}, got {distance}");
                return Err(ConfigError::new(key, message));
            }
        }
        if self.decontaminate.as_ref().is_some_and(|it| it.images.is_empty()) {
            return Err(ConfigError::new("decontaminate.images", "names no images"));
        }
        Ok(())
    }
}

impl StageConfig for MixerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        self.validate_source()?;
        if self.samples_per_shard == 0 {
            return Err(ConfigError::new("samples_per_shard", "must be at least 1, got 0"));
        }
        if let Some(limit) = self.memory_limit_mib.filter(|limit| *limit < MIN_LIMIT_MIB) {
            let message = format!("must be at least {MIN_LIMIT_MIB}, got {limit}");
            return Err(ConfigError::new("memory_limit_mib", message));
        }
        if (1..self.dedup.len()).any(|index| self.dedup[..index].contains(&self.dedup[index])) {
            return Err(ConfigError::new("dedup", "names a key twice"));
        }
        if self.subset.is_empty() && self.select != Select::All {
            return Err(ConfigError::new("select", "needs at least one `[[mixer.subset]]`, or be \"all\""));
        }
        self.validate_tables()?;
        self.validate_hashing()?;
        for (index, subset) in self.subset.iter().enumerate() {
            subset.validate_name(index, &self.subset[..index])?;
            if let (Rule::Baseline(rule), Some(_)) = (subset.rule(index)?, &self.shards)
                && rule.baseline.needs_features()
            {
                let message = "this baseline needs the `.npz` files of a `metadata_dir`";
                return Err(ConfigError::new(format!("subset.{index}.baseline"), message));
            }
        }
        Ok(())
    }

    fn keys_without_effect(&self) -> &'static [&'static str] {
        &["memory_limit_mib"]
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let pool = self.shards.iter().chain(&self.metadata_dir);
        let sidecars = self.sidecar.iter().map(|sidecar| &sidecar.scores);
        let tables = self.table.iter().map(|table| &table.path);
        let images = self.decontaminate.iter().flat_map(|it| &it.images);
        let all = pool.chain(sidecars).chain(tables).chain(images).cloned();
        let mut inputs: Vec<PathBuf> = all.chain(self.subset.iter().flat_map(SubsetConfig::inputs)).collect();
        inputs.sort();
        inputs.dedup();
        inputs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        shards = "data-fetch"
        select = "union"
        dedup = ["uid", "content"]
        samples_per_shard = 1000
        memory_limit_mib = 512
        [[sidecar]]
        scores = "aesthetic"
        scorer = "laion"
        [[table]]
        name = "faces"
        path = "faces.parquet"
        on = "uid"
        [[subset]]
        name = "clip"
        scores = "clip-filter"
        scorer = "clip"
        metric = "clip_score"
        fraction = 0.5
        [[subset]]
        name = "dfn"
        uids = "lists/dfn.npy"
        [[subset]]
        name = "wide"
        where = "width > 2 * height"
        [[subset]]
        name = "plain"
        baseline = "clip_score"
        arch = "l14"
        min_score = 0.3
        [near_duplicates]
        max_distance = 3
        [decontaminate]
        images = ["benchmarks"]
        max_distance = 4
    "#;

    fn check(text: &str) -> Result<MixerConfig, String> {
        let config: MixerConfig = toml::from_str(text).map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[track_caller]
    fn check_refused(from: &str, to: &str, expected: &str) {
        assert!(GOOD.contains(from), "{from}");
        let message = check(&GOOD.replacen(from, to, 1)).expect_err("must be refused");
        assert!(message.contains(expected), "{message}");
    }

    #[test]
    fn the_good_one_is_read_and_survives_a_round_trip() {
        let config = check(GOOD).unwrap();
        assert_eq!(config.subset[1].rule(1).unwrap(), Rule::Uids("lists/dfn.npy".into()));
        let inputs =
            ["aesthetic", "benchmarks", "clip-filter", "data-fetch", "faces.parquet", "lists/dfn.npy"];
        assert_eq!(config.inputs(), inputs.map(PathBuf::from));
        assert_eq!(check(&toml::to_string(&config).unwrap()).unwrap(), config);
        assert_eq!(config.sidecars().len(), 2);
    }

    #[test]
    fn contradictions_name_their_key() {
        check_refused("samples_per_shard = 1000", "samples_per_shard = 0", "samples_per_shard: must be");
        check_refused("memory_limit_mib = 512", "memory_limit_mib = 1", "memory_limit_mib: must be at least");
        check_refused("\"data-fetch\"", "\"\"", "shards: ");
        check_refused("shards = \"data-fetch\"", "", "shards: exactly one");
        check_refused("shards = ", "metadata_dir = \"m\"\nshards = ", "shards: exactly one");
        check_refused("shards = \"data-fetch\"", "metadata_dir = \"m\"", "dedup: a metadata folder");
        check_refused("shards = ", "metadata_files = \"*\"\nshards = ", "metadata_files: has no meaning");
        check_refused("\"content\"", "\"uid\"", "dedup: names a key twice");
        check_refused("\"content\"", "\"pixels\"", "unknown variant `pixels`");
        check_refused("\"union\"", "\"both\"", "unknown variant `both`");
        check_refused("\"faces\"", "\"pool\"", "table.0.name: `pool` is taken");
        check_refused("\"faces\"", "\"my faces\"", "table.0.name: must be lower-case");
        check_refused("on = \"uid\"", "on = \"url\"", "unknown variant `url`");
        check_refused(
            "max_distance = 3",
            "max_distance = 11",
            "near_duplicates.max_distance: must be at most",
        );
        check_refused("max_distance = 4", "max_distance = 65", "decontaminate.max_distance: must be at most");
        let image_based = "baseline = \"image_based\"\n[subset.assets]\nlanguage_model = \"l\"\n\
             centroids = \"c\"\ntargets = [\"t\"]";
        let clip_score = "baseline = \"clip_score\"\n        arch = \"l14\"\n        min_score = 0.3";
        check_refused(clip_score, image_based, "subset.3.baseline: this baseline needs the `.npz` files");
        check_refused("[\"benchmarks\"]", "[]", "decontaminate.images: names no images");
    }

    #[test]
    fn combining_nothing_is_refused() {
        let without_subsets = GOOD.split("[[subset]]").next().unwrap();
        assert!(check(without_subsets).unwrap_err().contains("select: needs at least one"));
        assert!(check(&without_subsets.replace("union", "all")).is_ok());
    }

    #[test]
    fn a_metadata_folder_needs_no_shard_size() {
        let text = "metadata_dir = \"m\"\nselect = \"all\"\ndedup = [\"uid\"]";
        let config = check(text).unwrap();
        assert_eq!(config.source(), Ok(PoolSource::Metadata(Path::new("m"), "*.parquet")));
        assert_eq!(config.samples_per_shard, DEFAULT_SAMPLES_PER_SHARD);
        assert!(check(&format!("{text}\nmetadata_files = \"[\"")).unwrap_err().contains("metadata_files: "));
    }
}
