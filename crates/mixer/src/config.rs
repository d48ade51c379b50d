//! The `[mixer]` table.

use std::path::{Path, PathBuf};

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};

/// Names the stage itself gives to `.npy` files.
const RESERVED_SUBSET_NAME: &str = "selected";

/// The `[mixer]` table of a configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixerConfig {
    /// Directory of the input shards (`*.tar`, in name order), relative to the work directory.
    pub shards: PathBuf,
    /// How the subsets combine.
    pub select: Select,
    /// What makes two selected samples duplicates; the earlier one stays. Empty: nothing does.
    pub dedup: Vec<DedupKey>,
    /// Samples in every output shard but the last.
    pub samples_per_shard: usize,
    /// The subsets of the pool.
    #[serde(default)]
    pub subset: Vec<SubsetConfig>,
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

/// One subset: exactly one of `min_score`, `fraction` and `uids` says what is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsetConfig {
    /// Name in the report and of its uid list, `{name}.npy`.
    pub name: String,
    /// Directory of the score sidecars, relative to the work directory; with `min_score` and `fraction`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<PathBuf>,
    /// Who scored: the middle part of the sidecars' names, `{shard}.{scorer}.parquet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<String>,
    /// The column of the sidecars to go by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Keeps samples whose score is at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// Keeps this share of the scored pool, in (0, 1], by the DataComp rule: with the scores in descending order
    /// the one at index `int(N * fraction)` is the threshold, so that ties and one more sample stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Keeps samples whose uid is in this `.npy` list, relative to the work directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uids: Option<PathBuf>,
}

/// What is in a subset, once the table has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    /// Samples by their score.
    Score { source: ScoreSource, cut: Cut },
    /// Samples by their uid.
    Uids(PathBuf),
}

/// Where scores are found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ScoreSource {
    pub(crate) dir: PathBuf,
    pub(crate) scorer: String,
    pub(crate) metric: String,
}

/// Which scores are good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    MinScore(f64),
    Fraction(f64),
}

impl SubsetConfig {
    /// The rule of the subset at `index` of the list.
    pub(crate) fn rule(&self, index: usize) -> Result<Rule, ConfigError> {
        let error =
            |key: &str, message: String| Err(ConfigError::new(format!("subset.{index}.{key}"), message));
        let cut = match (self.min_score, self.fraction, &self.uids) {
            (Some(score), None, None) if score.is_nan() => {
                return error("min_score", "must be a number, got nan".into());
            }
            (Some(score), None, None) => Cut::MinScore(score),
            (None, Some(fraction), None) if fraction > 0.0 && fraction <= 1.0 => Cut::Fraction(fraction),
            (None, Some(fraction), None) => {
                return error("fraction", format!("must be above 0 and at most 1, got {fraction}"));
            }
            (None, None, Some(uids)) => {
                let score_keys = [
                    ("scores", self.scores.is_some()),
                    ("scorer", self.scorer.is_some()),
                    ("metric", self.metric.is_some()),
                ];
                if let Some((key, _)) = score_keys.into_iter().find(|(_, is_set)| *is_set) {
                    return error(key, "has no meaning for a subset given by `uids`".into());
                }
                return Ok(Rule::Uids(uids.clone()));
            }
            _ => {
                let message = "exactly one of `min_score`, `fraction` and `uids` must be given";
                return error("min_score", message.into());
            }
        };
        match (&self.scores, &self.scorer, &self.metric) {
            (Some(dir), Some(scorer), Some(metric)) => {
                let source = ScoreSource { dir: dir.clone(), scorer: scorer.clone(), metric: metric.clone() };
                Ok(Rule::Score { source, cut })
            }
            (None, _, _) => error("scores", "missing: where the score sidecars are".into()),
            (_, None, _) => error("scorer", "missing: who wrote the score sidecars".into()),
            (_, _, None) => error("metric", "missing: which score to go by".into()),
        }
    }

    fn validate_name(&self, index: usize, earlier: &[SubsetConfig]) -> Result<(), ConfigError> {
        let key = format!("subset.{index}.name");
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            let message = format!("must be letters, digits, `-` and `_`, got `{}`", self.name);
            return Err(ConfigError::new(key, message));
        }
        if self.name == RESERVED_SUBSET_NAME || earlier.iter().any(|other| other.name == self.name) {
            return Err(ConfigError::new(key, format!("`{}` is taken", self.name)));
        }
        Ok(())
    }
}

impl MixerConfig {
    /// The rule of every subset.
    pub(crate) fn rules(&self) -> Result<Vec<Rule>, ConfigError> {
        self.subset.iter().enumerate().map(|(index, subset)| subset.rule(index)).collect()
    }

    /// Whether samples that agree in `key` are duplicates.
    pub(crate) fn dedups_by(&self, key: DedupKey) -> bool {
        self.dedup.contains(&key)
    }
}

impl StageConfig for MixerConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.shards.as_os_str().is_empty() {
            return Err(ConfigError::new("shards", "must name the directory of the input shards"));
        }
        if self.samples_per_shard == 0 {
            return Err(ConfigError::new("samples_per_shard", "must be at least 1, got 0"));
        }
        if (1..self.dedup.len()).any(|index| self.dedup[..index].contains(&self.dedup[index])) {
            return Err(ConfigError::new("dedup", "names a key twice"));
        }
        if self.subset.is_empty() && self.select != Select::All {
            return Err(ConfigError::new("select", "needs at least one `[[mixer.subset]]`, or be \"all\""));
        }
        for (index, subset) in self.subset.iter().enumerate() {
            subset.validate_name(index, &self.subset[..index])?;
        }
        self.rules().map(|_| ())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let subsets = self.subset.iter().flat_map(|subset| [&subset.scores, &subset.uids]).flatten();
        let mut inputs: Vec<PathBuf> =
            std::iter::once(&self.shards).chain(subsets).map(|path| Path::new(path).to_path_buf()).collect();
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
        [[subset]]
        name = "clip"
        scores = "clip-filter"
        scorer = "clip"
        metric = "clip_score"
        fraction = 0.5
        [[subset]]
        name = "dfn"
        uids = "lists/dfn.npy"
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
        assert_eq!(config.rules().unwrap()[1], Rule::Uids("lists/dfn.npy".into()));
        let inputs = ["clip-filter", "data-fetch", "lists/dfn.npy"].map(PathBuf::from);
        assert_eq!(config.inputs(), inputs);
        assert_eq!(check(&toml::to_string(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn contradictions_name_their_key() {
        check_refused("samples_per_shard = 1000", "samples_per_shard = 0", "samples_per_shard: must be");
        check_refused("\"data-fetch\"", "\"\"", "shards: ");
        check_refused("\"content\"", "\"uid\"", "dedup: names a key twice");
        check_refused("\"content\"", "\"pixels\"", "unknown variant `pixels`");
        check_refused("\"union\"", "\"both\"", "unknown variant `both`");
        check_refused("fraction = 0.5", "fraction = 0.0", "subset.0.fraction: must be above 0");
        check_refused("fraction = 0.5", "fraction = 1.5", "subset.0.fraction: must be above 0");
        check_refused("fraction = 0.5", "fraction = nan", "subset.0.fraction: must be above 0");
        check_refused("fraction = 0.5", "min_score = nan", "subset.0.min_score: must be a number");
        check_refused("fraction = 0.5", "", "subset.0.min_score: exactly one");
        check_refused("fraction = 0.5", "fraction = 0.5\nmin_score = 1.0", "subset.0.min_score: exactly one");
        check_refused("metric = \"clip_score\"", "", "subset.0.metric: missing");
        check_refused("scorer = \"clip\"", "", "subset.0.scorer: missing");
        check_refused("scores = \"clip-filter\"", "", "subset.0.scores: missing");
        check_refused("name = \"dfn\"", "name = \"dfn\"\nscorer = \"x\"", "subset.1.scorer: has no meaning");
        check_refused("\"dfn\"", "\"clip\"", "subset.1.name: `clip` is taken");
        check_refused("\"dfn\"", "\"selected\"", "subset.1.name: `selected` is taken");
        check_refused("\"dfn\"", "\"../dfn\"", "subset.1.name: must be letters");
        check_refused("\"dfn\"", "\"dfn\"\nthreshold = 1", "unknown field `threshold`");
    }

    #[test]
    fn combining_nothing_is_refused() {
        let without_subsets = GOOD.split("[[subset]]").next().unwrap();
        assert!(check(without_subsets).unwrap_err().contains("select: needs at least one"));
        assert!(check(&without_subsets.replace("union", "all")).is_ok());
    }
}
