//! Subsets: which samples of the pool pass one rule.

use arrow_array::{Array, Int32Array, Int64Array, cast::AsArray};
use arrow_schema::{DataType, Schema};
use datafusion::arrow::compute::cast;
use oqvl_stage::{ConfigError, RunContext};
use serde::{Deserialize, Serialize};

use crate::columns::{is_number, is_text, list_names, numbers, public_names, rounded_as, texts};
use crate::config::ScoreFiles;
use crate::external_sort::{Sorted, Sorter, number_of, ordered_bytes};
use crate::identity::uid_of_key;
use crate::pool::Pool;
use crate::query::{Database, Query, Selected, result_texts};
use crate::row_set::RowSet;
use crate::sample_table::score_column;
use crate::scratch::Scratch;
use crate::subset_config::{Cut, Rule, ScoreSource};
use crate::uid_order::{FoundRows, RowSorter, UidSorter};
use crate::{MixerConfig, MixerError};

/// A subset of the pool, decided.
#[derive(Debug)]
pub(crate) struct Subset {
    /// Its samples.
    pub(crate) rows: RowSet,
    /// Samples that could be in it but lack the score.
    pub(crate) missing_score: Option<RowSet>,
    /// The counts for the report.
    pub(crate) report: SubsetReport,
}

/// What the report says of a subset.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SubsetReport {
    /// Its name.
    pub name: String,
    /// The lowest score that is in; none for a subset not given by a score, or when no sample has one.
    pub threshold: Option<f64>,
    /// Samples of the pool that have a score; 0 for a subset not given by one.
    pub scored: u64,
    /// Samples of the pool that lack one; 0 for a subset not given by one.
    pub missing_score: u64,
    /// Samples in the subset, before duplicates are dropped.
    pub samples: u64,
    /// Distinct uids (or keys) of its list or query that no sample of the pool has.
    #[serde(default)]
    pub not_in_pool: u64,
}

/// What a rule needs besides the pool.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Surroundings<'a> {
    pub(crate) config: &'a MixerConfig,
    pub(crate) database: Option<&'a Database<'a>>,
    pub(crate) scratch: &'a Scratch,
    pub(crate) run: &'a RunContext,
}

impl Subset {
    /// Applies the rule of the subset at `index` to every sample with a usable uid.
    pub(crate) fn decide(
        index: usize,
        rule: &Rule,
        pool: &Pool,
        around: Surroundings<'_>,
    ) -> Result<Subset, MixerError> {
        let name = around.config.subset[index].name.clone();
        let mut subset = match rule {
            Rule::Score { source, cut } => by_score(index, source, *cut, pool, around)?,
            Rule::Uids(path) => {
                let path = around.run.resolve(path);
                Subset::of(pool.rows_in_list(&path, around.scratch, around.run)?)
            }
            Rule::Where(condition) => {
                let database = around.database.expect("a pool with conditions has a database");
                Subset::of(by_query(&database.plan_where(index, condition)?, database, pool, around)?)
            }
            Rule::Sql(sql) => {
                let database = around.database.expect("a pool with queries has a database");
                Subset::of(by_query(&database.plan_sql(index, sql)?, database, pool, around)?)
            }
            Rule::Baseline(rule) => crate::baseline::decide(index, rule, pool, around)?,
        };
        subset.rows.intersect(&pool.usable);
        subset.report.samples = subset.rows.len();
        if subset.report.not_in_pool > 0 {
            let num_absent = subset.report.not_in_pool;
            tracing::warn!("{num_absent} uids or keys of subset `{name}` are those of no sample of the pool");
        }
        subset.report.name = name;
        Ok(subset)
    }

    /// A subset without scores.
    pub(crate) fn of(found: FoundRows) -> Subset {
        let report = SubsetReport { not_in_pool: found.num_absent, ..SubsetReport::default() };
        Subset { rows: found.rows, missing_score: None, report }
    }
}

fn by_query(
    query: &Query,
    database: &Database<'_>,
    pool: &Pool,
    around: Surroundings<'_>,
) -> Result<FoundRows, MixerError> {
    match query.selected {
        Selected::Place => {
            let mut rows = RowSet::none(pool.num_rows);
            let _spilled_bytes = database.run(query, |batch| {
                let shards = cast(batch.column(0), &DataType::Int32).expect("an integer column");
                let positions = cast(batch.column(1), &DataType::Int64).expect("an integer column");
                let shards: &Int32Array = shards.as_primitive();
                let positions: &Int64Array = positions.as_primitive();
                for (shard, position) in shards.values().iter().zip(positions.values()) {
                    rows.insert(pool.parts[*shard as usize].first_row + *position as u64);
                }
                Ok(())
            })?;
            Ok(FoundRows { rows, num_absent: 0 })
        }
        Selected::Uid => {
            let (mut uids, mut num_unreadable) = (UidSorter::new(around.scratch), 0);
            let _spilled_bytes = database.run(query, |batch| {
                result_texts(&batch).iter().flatten().try_for_each(|uid| match uid.parse() {
                    Ok(uid) => uids.push(uid),
                    Err(_) => {
                        num_unreadable += 1;
                        Ok(())
                    }
                })
            })?;
            let mut found = pool.rows_with(uids.finish()?.iter()?, around.run)?;
            found.num_absent += num_unreadable;
            Ok(found)
        }
        Selected::Key => {
            let mut wanted = UidSorter::new(around.scratch);
            let _spilled_bytes = database.run(query, |batch| {
                result_texts(&batch).iter().flatten().try_for_each(|key| wanted.push(uid_of_key(key)))
            })?;
            rows_with_keys(pool, wanted.finish()?.iter()?, around)
        }
    }
}

/// The rows whose key's digest is among the ascending `wanted`.
fn rows_with_keys(
    pool: &Pool,
    wanted: impl Iterator<Item = Result<oqvl_shard_io::Uid, MixerError>>,
    around: Surroundings<'_>,
) -> Result<FoundRows, MixerError> {
    let (mut sorter, mut next_row) = (RowSorter::new(around.scratch), 0_u64);
    pool.files.scan(
        &["key"],
        around.run,
        |rows| {
            let keys = texts(rows.batch.column(0)).ok_or_else(|| MixerError::Table {
                path: pool.files.files[rows.file].path.clone(),
                problem: "the column `key` is not text".into(),
            })?;
            Ok(keys.iter().map(|key| key.map(|key| u128::from(uid_of_key(key)))).collect::<Vec<_>>())
        },
        |digests| {
            for digest in digests {
                if let Some(digest) = digest {
                    sorter.push(digest, next_row)?;
                }
                next_row += 1;
            }
            Ok(())
        },
    )?;
    sorter.finish()?.join(wanted, pool.num_rows, around.run)
}

fn by_score(
    index: usize,
    source: &ScoreSource,
    cut: Cut,
    pool: &Pool,
    around: Surroundings<'_>,
) -> Result<Subset, MixerError> {
    let sidecars = around.config.sidecars();
    let column = match source {
        ScoreSource::Sidecar { files, metric } => {
            let sidecar = sidecars.iter().position(|it| it == files).expect("it is one of the config's");
            score_column(sidecar, metric)
        }
        ScoreSource::Column(name) => metric_column(index, name, pool.files.schema(), &sidecars)?,
    };
    if let (ScoreSource::Column(name), Some(kind)) = (source, pool.files.columns.kind(&column)) {
        check_is_number(index, name, kind)?;
    }
    let scores = ScoreColumn { pool, column: &column, around };
    let mut report = SubsetReport::default();
    let mut missing = RowSet::none(pool.num_rows);
    scores.for_each(|row, score| {
        if score.is_some() {
            report.scored += 1;
        } else {
            missing.insert(row);
        }
        Ok(())
    })?;
    report.missing_score = missing.len();
    report.threshold = match cut {
        Cut::MinScore(min_score) => Some(min_score),
        Cut::Fraction(fraction) => fraction_threshold(&scores.sorted()?, fraction)?,
        Cut::Quantile(quantile) => quantile_threshold(&scores.sorted()?, quantile)?,
    };
    let mut rows = RowSet::none(pool.num_rows);
    let threshold = report.threshold.unwrap_or(f64::INFINITY);
    let field = pool.files.schema().field_with_name(&column);
    let threshold = field.map_or(threshold, |field| rounded_as(field.data_type(), threshold));
    scores.for_each(|row, score| {
        if score.is_some_and(|score| score >= threshold) {
            rows.insert(row);
        }
        Ok(())
    })?;
    Ok(Subset { rows, missing_score: Some(missing), report })
}

/// The column of the pool that SQL and the config call `name`, for the subset at `index`.
pub(crate) fn metric_column(
    index: usize,
    name: &str,
    schema: &Schema,
    sidecars: &[ScoreFiles],
) -> Result<String, ConfigError> {
    let names = public_names(schema, sidecars);
    let Some(place) = names.iter().position(|known| known == name) else {
        let known = list_names(names.iter().map(String::as_str));
        let message = format!("no column `{name}`; the pool has {known}");
        return Err(ConfigError::new(format!("subset.{index}.metric"), message));
    };
    Ok(schema.field(place).name().clone())
}

/// Refuses a column of another type than numbers for the subset at `index`.
pub(crate) fn check_is_number(index: usize, name: &str, kind: &DataType) -> Result<(), ConfigError> {
    if is_number(kind) {
        return Ok(());
    }
    let kind = if is_text(kind) { format!("text ({kind})") } else { kind.to_string() };
    let message = format!("the column `{name}` holds {kind}, and must hold numbers");
    Err(ConfigError::new(format!("subset.{index}.metric"), message))
}

/// A column of scores.
struct ScoreColumn<'a> {
    pool: &'a Pool,
    column: &'a str,
    around: Surroundings<'a>,
}

impl ScoreColumn<'_> {
    /// Every usable row with its score; none where it is null or no number.
    fn for_each(
        &self,
        mut take: impl FnMut(u64, Option<f64>) -> Result<(), MixerError>,
    ) -> Result<(), MixerError> {
        let files = &self.pool.files;
        files.scan(
            &[self.column],
            self.around.run,
            |rows| {
                let column = rows.batch.column(0);
                let scores = numbers(column).ok_or_else(|| MixerError::Table {
                    path: files.files[rows.file].path.clone(),
                    problem: format!(
                        "the column `{}` holds no numbers but {}",
                        self.column,
                        column.data_type()
                    ),
                })?;
                Ok((rows.first_row, scores))
            },
            |(first_row, scores)| {
                for (row, score) in (first_row..).zip(scores.iter()) {
                    if self.pool.usable.contains(row) {
                        take(row, score.filter(|score| !score.is_nan()))?;
                    }
                }
                Ok(())
            },
        )
    }

    /// The scores there are, ascending.
    fn sorted(&self) -> Result<Sorted<8>, MixerError> {
        let mut sorter = Sorter::new(self.around.scratch);
        self.for_each(|_, score| score.map_or(Ok(()), |score| sorter.push(ordered_bytes(score))))?;
        sorter.finish()
    }
}

/// The DataComp rule: with the scores in descending order, the one at index `int(N * fraction)`. Keeping what is
/// not below it keeps ties and one sample more than the fraction (oddity D14, matched). A fraction of 1, out of range
/// there, keeps all.
///
/// Source: `baselines.py` of DataComp, `clip_score` with `--fraction`.
pub(crate) fn fraction_threshold(ascending: &Sorted<8>, fraction: f64) -> Result<Option<f64>, MixerError> {
    let index = (ascending.len() as f64 * fraction) as u64;
    let from_the_end = ascending.len().saturating_sub(1).saturating_sub(index);
    nth(ascending, from_the_end)
}

/// The quantile as `numpy.quantile` has it by default: between the two scores nearest to index `(N - 1) * quantile`,
/// linearly.
fn quantile_threshold(ascending: &Sorted<8>, quantile: f64) -> Result<Option<f64>, MixerError> {
    let index = ascending.len().saturating_sub(1) as f64 * quantile;
    let (low, part) = (index.floor(), index - index.floor());
    let (Some(low), Some(high)) = (nth(ascending, low as u64)?, nth(ascending, index.ceil() as u64)?) else {
        return Ok(None);
    };
    // As NumPy interpolates, to the last bit.
    let step = high - low;
    Ok(Some(if part < 0.5 { low + step * part } else { high - step * (1.0 - part) }))
}

fn nth(ascending: &Sorted<8>, index: u64) -> Result<Option<f64>, MixerError> {
    let record = ascending.iter()?.nth(index as usize).transpose()?;
    Ok(record.map(number_of))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sorted(scores: &[f64]) -> Sorted<8> {
        let dir = tempfile::tempdir().unwrap();
        let scratch = Scratch::create(dir.path(), Some(64)).unwrap();
        let mut sorter = Sorter::new(&scratch);
        scores.iter().for_each(|score| sorter.push(ordered_bytes(*score)).unwrap());
        sorter.finish().unwrap()
    }

    fn fraction(scores: &[f64], fraction: f64) -> Option<f64> {
        fraction_threshold(&sorted(scores), fraction).unwrap()
    }

    #[test]
    fn threshold_is_the_score_at_the_rounded_down_index() {
        assert_eq!(fraction(&[], 0.5), None);
        assert_eq!(fraction(&[3.0], 0.01), Some(3.0));
        assert_eq!(fraction(&[3.0], 1.0), Some(3.0));
        assert_eq!(fraction(&[1.0, 4.0, 2.0, 3.0], 0.5), Some(2.0)); // index 2: keeps three of four
        assert_eq!(fraction(&[1.0, 4.0, 2.0, 3.0], 0.49), Some(3.0)); // index 1
        assert_eq!(fraction(&[1.0, 4.0, 2.0, 3.0], 1.0), Some(1.0));
        assert_eq!(fraction(&[2.0, 2.0, 2.0, 9.0, 1.0], 0.3), Some(2.0)); // ties: keeps four of five
        assert_eq!(fraction(&[0.0, -1.0, 1.0], 0.7), Some(-1.0));
    }

    #[test]
    fn quantiles_are_those_of_numpy() {
        // numpy.quantile([0.1, 0.4, 0.5, 0.9], q), NumPy 2.2.
        let scores = sorted(&[0.5, 0.1, 0.9, 0.4]);
        for (quantile, expected) in
            [(0.0, 0.1), (0.1, 0.19), (0.5, 0.45), (0.6, 0.48), (2.0 / 3.0, 0.5), (0.95, 0.84), (1.0, 0.9)]
        {
            let found = quantile_threshold(&scores, quantile).unwrap().unwrap();
            assert!((found - expected).abs() < 1e-15, "{quantile}: {found}");
        }
        assert_eq!(quantile_threshold(&sorted(&[]), 0.5).unwrap(), None);
    }

    proptest! {
        /// The rule keeps at least the fraction, and without ties at most one sample more.
        #[test]
        fn at_least_the_fraction_is_kept(
            scores in prop::collection::hash_set(-1000..1000_i32, 1..60),
            share in 0.001..=1.0_f64,
        ) {
            let scores: Vec<f64> = scores.into_iter().map(f64::from).collect();
            let threshold = fraction(&scores, share).unwrap();
            let num_kept = scores.iter().filter(|score| **score >= threshold).count();
            let exact = scores.len() as f64 * share;
            prop_assert!(num_kept as f64 >= exact.floor());
            prop_assert!(num_kept as f64 <= exact + 1.0);
        }
    }
}
