//! The `[[mixer.subset]]` tables.

use std::path::PathBuf;

use oqvl_stage::ConfigError;
use serde::{Deserialize, Serialize};

use crate::baseline_config::{Baseline, BaselineAssets, BasicVariant, ClipArch};
use crate::config::ScoreFiles;
use crate::sql_mistake::{check_condition, check_query};

/// Names the stage itself gives to `.npy` files.
const RESERVED_SUBSET_NAME: &str = "selected";

/// One subset: exactly one of `min_score`, `fraction`, `quantile`, `uids`, `where`, `sql` and `baseline` says what
/// is in it (a baseline may take a `min_score` or a `fraction` besides).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubsetConfig {
    /// Name in the report and of its uid list, `{name}.npy`.
    pub name: String,
    /// Directory of the score sidecars, relative to the work directory; with a score rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scores: Option<PathBuf>,
    /// Who scored: the middle part of the sidecars' names, `{shard}.{scorer}.parquet`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scorer: Option<String>,
    /// The column to go by: of the sidecars, or without `scores` of the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<String>,
    /// Keeps samples whose score is at least this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_score: Option<f64>,
    /// Keeps this share of the scored pool, in (0, 1], by the DataComp rule: with the scores in descending order
    /// the one at index `int(N * fraction)` is the threshold, so that ties and one more sample stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Keeps samples whose score is at least this quantile of the scored pool, in [0, 1], interpolated linearly
    /// between the two nearest scores as `numpy.quantile` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<f64>,
    /// Keeps samples whose uid is in this `.npy` list, relative to the work directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uids: Option<PathBuf>,
    /// Keeps samples for which this SQL condition over the columns of the pool and of the tables is true.
    #[serde(default, rename = "where", skip_serializing_if = "Option::is_none")]
    pub condition: Option<String>,
    /// Keeps samples whose `uid` (or `key`) this SQL query returns, from `pool` and the tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sql: Option<String>,
    /// Keeps what a filtering baseline of DataComp keeps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
    /// Which CLIP scored; with the baselines that go by CLIP scores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arch: Option<ClipArch>,
    /// Whose rule; with `basic_filter`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<BasicVariant>,
    /// Models and lists a baseline needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub assets: Option<BaselineAssets>,
}

/// What is in a subset, once the table has been checked.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Rule {
    /// Samples by their score.
    Score { source: ScoreSource, cut: Cut },
    /// Samples by their uid.
    Uids(PathBuf),
    /// Samples by a condition on their columns.
    Where(String),
    /// Samples by the uids or keys a query returns.
    Sql(String),
    /// Samples by a rule of DataComp.
    Baseline(Box<BaselineRule>),
}

/// Where scores are found.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ScoreSource {
    /// In a column of sidecars.
    Sidecar { files: ScoreFiles, metric: String },
    /// In a column of the pool.
    Column(String),
}

/// Which scores are good enough.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Cut {
    MinScore(f64),
    Fraction(f64),
    Quantile(f64),
}

/// A baseline with all it needs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct BaselineRule {
    pub(crate) baseline: Baseline,
    pub(crate) cut: Option<Cut>,
    pub(crate) arch: Option<ClipArch>,
    pub(crate) variant: Option<BasicVariant>,
    pub(crate) assets: BaselineAssets,
}

/// Whether `name` can be part of a file name and of a query.
pub(crate) fn is_plain_name(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

impl SubsetConfig {
    /// The rule of the subset at `index` of the list.
    pub(crate) fn rule(&self, index: usize) -> Result<Rule, ConfigError> {
        let error = |key: &str, message: String| ConfigError::new(format!("subset.{index}.{key}"), message);
        let cut = self.cut(index)?;
        let refuse = |keys: &[(&str, bool)], rule: &str| match keys.iter().find(|(_, is_set)| *is_set) {
            Some((key, _)) => Err(error(key, format!("has no meaning for a subset given by `{rule}`"))),
            None => Ok(()),
        };
        let score_keys = [
            ("scores", self.scores.is_some()),
            ("scorer", self.scorer.is_some()),
            ("metric", self.metric.is_some()),
        ];
        let baseline_keys = [
            ("arch", self.arch.is_some()),
            ("variant", self.variant.is_some()),
            ("assets", self.assets.is_some()),
        ];
        match (cut, &self.uids, &self.condition, &self.sql, self.baseline) {
            (Some(cut), None, None, None, None) => {
                refuse(&baseline_keys, "min_score`, `fraction` or `quantile")?;
                Ok(Rule::Score { source: self.score_source(index)?, cut })
            }
            (None, Some(uids), None, None, None) => {
                refuse(&score_keys, "uids")?;
                refuse(&baseline_keys, "uids")?;
                Ok(Rule::Uids(uids.clone()))
            }
            (None, None, Some(condition), None, None) => {
                refuse(&score_keys, "where")?;
                refuse(&baseline_keys, "where")?;
                check_condition(condition).map_err(|problem| error("where", problem))?;
                Ok(Rule::Where(condition.clone()))
            }
            (None, None, None, Some(sql), None) => {
                refuse(&score_keys, "sql")?;
                refuse(&baseline_keys, "sql")?;
                check_query(sql).map_err(|problem| error("sql", problem))?;
                Ok(Rule::Sql(sql.clone()))
            }
            (cut, None, None, None, Some(baseline)) => {
                refuse(&score_keys, "baseline")?;
                let rule = BaselineRule {
                    baseline,
                    cut,
                    arch: self.arch,
                    variant: self.variant,
                    assets: self.assets.clone().unwrap_or_default(),
                };
                rule.validate().map_err(|error| error.inside(&format!("subset.{index}")))?;
                Ok(Rule::Baseline(Box::new(rule)))
            }
            _ => {
                let message = "exactly one of `min_score`, `fraction`, `quantile`, `uids`, `where`, `sql` and \
                     `baseline` must be given";
                Err(error("min_score", message.into()))
            }
        }
    }

    fn cut(&self, index: usize) -> Result<Option<Cut>, ConfigError> {
        let error =
            |key: &str, message: String| Err(ConfigError::new(format!("subset.{index}.{key}"), message));
        match (self.min_score, self.fraction, self.quantile) {
            (None, None, None) => Ok(None),
            (Some(score), None, None) if score.is_nan() => {
                error("min_score", "must be a number, got nan".into())
            }
            (Some(score), None, None) => Ok(Some(Cut::MinScore(score))),
            (None, Some(fraction), None) if fraction > 0.0 && fraction <= 1.0 => {
                Ok(Some(Cut::Fraction(fraction)))
            }
            (None, Some(fraction), None) => {
                error("fraction", format!("must be above 0 and at most 1, got {fraction}"))
            }
            (None, None, Some(quantile)) if (0.0..=1.0).contains(&quantile) => {
                Ok(Some(Cut::Quantile(quantile)))
            }
            (None, None, Some(quantile)) => {
                error("quantile", format!("must be at least 0 and at most 1, got {quantile}"))
            }
            _ => error(
                "min_score",
                "exactly one of `min_score`, `fraction` and `quantile` may be given".into(),
            ),
        }
    }

    fn score_source(&self, index: usize) -> Result<ScoreSource, ConfigError> {
        let missing = |key: &str, what: &str| {
            Err(ConfigError::new(format!("subset.{index}.{key}"), format!("missing: {what}")))
        };
        match (&self.scores, &self.scorer, &self.metric) {
            (Some(scores), Some(scorer), Some(metric)) => {
                let files = ScoreFiles { scores: scores.clone(), scorer: scorer.clone() };
                Ok(ScoreSource::Sidecar { files, metric: metric.clone() })
            }
            (None, None, Some(metric)) => Ok(ScoreSource::Column(metric.clone())),
            (_, _, None) => missing("metric", "which score to go by"),
            (None, _, _) => missing("scores", "where the score sidecars are"),
            (_, None, _) => missing("scorer", "who wrote the score sidecars"),
        }
    }

    pub(crate) fn validate_name(&self, index: usize, earlier: &[SubsetConfig]) -> Result<(), ConfigError> {
        let key = format!("subset.{index}.name");
        if !is_plain_name(&self.name) {
            let message = format!("must be letters, digits, `-` and `_`, got `{}`", self.name);
            return Err(ConfigError::new(key, message));
        }
        if self.name == RESERVED_SUBSET_NAME || earlier.iter().any(|other| other.name == self.name) {
            return Err(ConfigError::new(key, format!("`{}` is taken", self.name)));
        }
        Ok(())
    }

    /// The files it reads.
    pub(crate) fn inputs(&self) -> Vec<PathBuf> {
        let assets = self.assets.iter().flat_map(BaselineAssets::files);
        self.scores.iter().chain(&self.uids).cloned().chain(assets).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_refused(table: &str, expected: &str) {
        let subset: Result<SubsetConfig, _> = toml::from_str(&format!("name = \"s\"\n{table}"));
        let message = match subset {
            Err(error) => error.to_string(),
            Ok(subset) => subset.rule(0).expect_err("must be refused").to_string(),
        };
        assert!(message.contains(expected), "{message}");
    }

    const SCORES: &str = "scores = \"clip-filter\"\nscorer = \"clip\"\nmetric = \"clip_score\"";

    #[test]
    fn contradictions_name_their_key() {
        let with = |more: &str| format!("{SCORES}\n{more}");
        check_refused(&with("fraction = 0.0"), "subset.0.fraction: must be above 0");
        check_refused(&with("fraction = 1.5"), "subset.0.fraction: must be above 0");
        check_refused(&with("fraction = nan"), "subset.0.fraction: must be above 0");
        check_refused(&with("quantile = 1.5"), "subset.0.quantile: must be at least 0");
        check_refused(&with("min_score = nan"), "subset.0.min_score: must be a number");
        check_refused(&with(""), "subset.0.min_score: exactly one");
        check_refused(&with("fraction = 0.5\nmin_score = 1.0"), "subset.0.min_score: exactly one");
        check_refused("fraction = 0.5\nscores = \"x\"\nscorer = \"y\"", "subset.0.metric: missing");
        check_refused("fraction = 0.5\nscores = \"x\"\nmetric = \"y\"", "subset.0.scorer: missing");
        check_refused("fraction = 0.5\nscorer = \"x\"\nmetric = \"y\"", "subset.0.scores: missing");
        check_refused(&with("fraction = 0.5\narch = \"l14\""), "subset.0.arch: has no meaning");
        check_refused("uids = \"x\"\nscorer = \"x\"", "subset.0.scorer: has no meaning");
        check_refused("where = \"x\"\nmetric = \"x\"", "subset.0.metric: has no meaning");
        check_refused("where = \"x\"\nsql = \"x\"", "subset.0.min_score: exactly one");
        check_refused("sql = \"x\"\nfraction = 0.5", "subset.0.min_score: exactly one");
        check_refused("uids = \"x\"\nthreshold = 1", "unknown field `threshold`");
        check_refused("baseline = \"best\"", "unknown variant `best`");
    }

    #[test]
    fn names_are_plain_and_distinct() {
        let named = |name: &str| SubsetConfig { name: name.into(), ..SubsetConfig::default() };
        assert!(named("a").validate_name(1, &[named("b")]).is_ok());
        for (name, expected) in
            [("b", "subset.1.name: `b` is taken"), ("selected", "is taken"), ("../dfn", "must be letters")]
        {
            let message = named(name).validate_name(1, &[named("b")]).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
