//! DataComp's filtering baselines, rule by rule.
//!
//! In a metadata folder a baseline reads the files its original reads (`\d{8}_semantic_understanding.parquet` and so
//! on) and keeps uids; over shards it reads the columns of the pool. Text is taken from the column `text`, or where
//! there is none from `caption`.
//!
//! Source: `baselines.py` and `baselines/apply_filter.py` of DataComp and of the fork in Open-Qwen2VL. Deviations are
//! written where they are made.

mod asset;
mod caption;
mod embeddings;
mod language;
mod needed_columns;
mod numpy_array;
mod wordnet;

use arrow_array::{Array, Float64Array, StringArray};
use oqvl_shard_io::{Uid, score_in_answer};
use oqvl_stage::RunContext;

use crate::baseline_config::{Baseline, BasicVariant};
use crate::columns::{MergedColumns, numbers, rounded_as, texts};
use crate::config::{DEFAULT_METADATA_FILES, PoolSource};
use crate::external_sort::{Sorter, number_of, ordered_bytes};
use crate::parquet_scan::{ParquetFile, ParquetFiles, Rows, metadata_files};
use crate::pool::{Pool, scan_uids};
use crate::query::warn_of_absence;
use crate::row_set::RowSet;
use crate::subset::{Subset, Surroundings, fraction_threshold};
use crate::subset_config::{BaselineRule, Cut, Rule};
use crate::uid_order::{FoundRows, UidSorter};
use crate::{MixerConfig, MixerError, SubsetReport};

use caption::CaptionLists;
use language::LanguageModel;
use needed_columns::{NeededColumns, score_column};
use wordnet::WordNet;

/// LAION-2B's bar for the score of CLIP ViT-B/32.
const LAION_MIN_SCORE: f64 = 0.28;

/// Eight digits, as shards are numbered.
const EIGHT_DIGITS: &str = "[0-9][0-9][0-9][0-9][0-9][0-9][0-9][0-9]";

/// Opens the files the baselines need, so that what is wrong with them is known before the pool is read.
pub(crate) fn check_assets(rules: &[Rule], run: &RunContext) -> Result<(), MixerError> {
    for rule in rules {
        let Rule::Baseline(rule) = rule else { continue };
        let assets = &rule.assets;
        asset::check(assets, run)?;
        if assets.language_model.is_some() {
            let _model = LanguageModel::open(assets, run)?;
        }
        if assets.wordnet.is_some() {
            let _wordnet = WordNet::open(assets, run)?;
        }
        if assets.caption_lists.is_some() {
            let _lists = CaptionLists::open(assets, run)?;
        }
        if assets.centroids.is_some() {
            embeddings::check(assets, run)?;
        }
    }
    Ok(())
}

/// What is known of the columns of the pool before it is read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KnownColumns<'a> {
    pub(crate) columns: &'a MergedColumns,
    /// Whether there are no others.
    pub(crate) is_certain: bool,
    /// The files they were met in; none for shards, whose index users do not know.
    pub(crate) files: Option<&'a [ParquetFile]>,
}

/// Looks for the columns that the baseline of the subset at `index` goes by: in the pool, or in files of its own. What only
/// the first samples lack is warned of.
pub(crate) fn check_columns(
    index: usize,
    rule: &BaselineRule,
    pool: KnownColumns<'_>,
    config: &MixerConfig,
    run: &RunContext,
) -> Result<(), MixerError> {
    let own_files = own_files(index, rule, config, run)?;
    let (columns, files) = match &own_files {
        Some(own) => (&own.columns, Some(&*own.files)),
        None => (pool.columns, pool.files),
    };
    match NeededColumns::find(index, rule, columns, &config.sidecars(), files) {
        Ok(_columns) => Ok(()),
        Err(lack) if pool.is_certain || lack.is_final => Err(lack.error.into()),
        Err(lack) => {
            warn_of_absence(&lack.error);
            Ok(())
        }
    }
}

/// The files of a metadata folder that a baseline reads instead of those of the pool.
fn own_files(
    index: usize,
    rule: &BaselineRule,
    config: &MixerConfig,
    run: &RunContext,
) -> Result<Option<ParquetFiles>, MixerError> {
    let pattern = file_pattern(rule);
    let dir = match config.source()? {
        PoolSource::Metadata(dir, pool_pattern) if pattern != pool_pattern => dir,
        _ => return Ok(None),
    };
    let key = format!("subset.{index}.baseline");
    let files = ParquetFiles::open(metadata_files(&run.resolve(dir), &pattern, &key)?, run)?;
    files.require_text("uid", &key)?;
    Ok(Some(files))
}

/// The subset of the config's entry at `index`.
pub(crate) fn decide(
    index: usize,
    rule: &BaselineRule,
    pool: &Pool,
    around: Surroundings<'_>,
) -> Result<Subset, MixerError> {
    let own_files = own_files(index, rule, around.config, around.run)?;
    let files = own_files.as_ref().unwrap_or(&pool.files);
    let known_files = pool.index.is_none().then_some(&*files.files);
    let columns = NeededColumns::find(index, rule, &files.columns, &around.config.sidecars(), known_files)
        .map_err(|lack| lack.error)?;
    let evaluation = Evaluation { rule, files, columns, around };
    let (rows, threshold) = evaluation.rows()?;
    let found = match &own_files {
        Some(files) => evaluation.in_pool(files, &rows, pool)?,
        None => FoundRows { rows, num_absent: 0 },
    };
    let report = SubsetReport { threshold, not_in_pool: found.num_absent, ..SubsetReport::default() };
    Ok(Subset { rows: found.rows, missing_score: None, report })
}

/// Which files of a metadata folder a baseline reads.
fn file_pattern(rule: &BaselineRule) -> String {
    use Baseline::*;
    let of_metric = |metric: &str| format!("{EIGHT_DIGITS}_{metric}.parquet");
    match rule.baseline {
        BasicFilter if rule.variant == Some(BasicVariant::OpenQwen2vl) => format!("{EIGHT_DIGITS}.parquet"),
        LlavaImageTextMatchingScore => of_metric("image_text_matching"),
        LlavaObjectDetailFulfillmentScore => of_metric("object_detail_fulfillment"),
        LlavaCaptionTextQualityScore => of_metric("caption_text_quality"),
        LlavaSemanticUnderstandingScore => of_metric("semantic_understanding"),
        RewardQualityScore => "*reward_quality_score.parquet*".to_owned(),
        DfnClipScore => "*dfn_clipscore.parquet*".to_owned(),
        _ => DEFAULT_METADATA_FILES.to_owned(),
    }
}

/// A baseline over the rows of some files.
struct Evaluation<'a> {
    rule: &'a BaselineRule,
    files: &'a ParquetFiles,
    columns: NeededColumns,
    around: Surroundings<'a>,
}

impl Evaluation<'_> {
    /// The rows it keeps, and the score they had to reach.
    fn rows(&self) -> Result<(RowSet, Option<f64>), MixerError> {
        use Baseline::*;
        match self.rule.baseline {
            NoFilter => {
                let all = self.keep(&[], |rows| Ok(vec![true; rows.batch.num_rows()]))?;
                Ok((all, None))
            }
            BasicFilter => Ok((self.basic_filter()?, None)),
            ClipScore => {
                let (rows, threshold) = self.clip_score()?;
                Ok((rows, Some(threshold)))
            }
            Laion2b => {
                // The original asks gcld3; here fastText answers, as in DataComp's other baselines.
                let language = LanguageModel::open(&self.rule.assets, self.around.run)?;
                let mut rows = self.reaching(LAION_MIN_SCORE)?;
                rows.intersect(&self.keep_captions(|caption| language.is_english(caption))?);
                Ok((rows, Some(LAION_MIN_SCORE)))
            }
            TextBased => {
                let language = LanguageModel::open(&self.rule.assets, self.around.run)?;
                let wordnet = WordNet::open(&self.rule.assets, self.around.run)?;
                let names_object = |caption: &str| {
                    language.is_english(caption)
                        && caption.split_whitespace().any(|word| wordnet.is_object(word))
                };
                Ok((self.keep_captions(names_object)?, None))
            }
            ImageBased => Ok((self.image_based(None)?, None)),
            ImageBasedIntersectClipScore => {
                let (rows, threshold) = self.clip_score()?;
                Ok((self.image_based(Some(rows))?, Some(threshold)))
            }
            LlavaImageTextMatchingScore
            | LlavaObjectDetailFulfillmentScore
            | LlavaCaptionTextQualityScore
            | LlavaSemanticUnderstandingScore => self.mlm_score(),
            RewardQualityScore | DfnClipScore => self.score_and_captions(),
        }
    }

    /// The rows of the pool that have the uids of `rows`.
    fn in_pool(&self, files: &ParquetFiles, rows: &RowSet, pool: &Pool) -> Result<FoundRows, MixerError> {
        let mut uids = UidSorter::new(self.around.scratch);
        let mut row = 0;
        scan_uids(files, self.around.run, |uid| {
            row += 1;
            match uid {
                Ok(uid) if rows.contains(row - 1) => uids.push(uid),
                _ => Ok(()),
            }
        })?;
        pool.rows_with(uids.finish()?.iter()?, self.around.run)
    }

    /// The rows for which `mask`, given the columns `names`, says yes.
    fn keep(
        &self,
        names: &[&str],
        mask: impl Fn(&Rows) -> Result<Vec<bool>, MixerError> + Sync,
    ) -> Result<RowSet, MixerError> {
        let names: Vec<&str> = names.iter().map(|name| self.columns.own_name(name)).collect();
        let mut kept = RowSet::none(self.files.num_rows);
        self.files.scan(
            &names,
            self.around.run,
            |rows| Ok((rows.first_row, mask(&rows)?)),
            |(first_row, mask)| {
                let rows = (first_row..).zip(mask).filter(|(_, is_kept)| *is_kept);
                rows.for_each(|(row, _)| kept.insert(row));
                Ok(())
            },
        )?;
        Ok(kept)
    }

    /// The rows whose caption passes.
    fn keep_captions(&self, passes: impl Fn(&str) -> bool + Sync) -> Result<RowSet, MixerError> {
        self.keep(&[self.columns.text_column()], |rows| {
            let captions = self.text(rows, 0)?;
            Ok(captions.iter().map(|caption| caption.is_some_and(&passes)).collect())
        })
    }

    fn text(&self, rows: &Rows, column: usize) -> Result<StringArray, MixerError> {
        texts(rows.batch.column(column)).ok_or_else(|| self.changed(rows))
    }

    fn number(&self, rows: &Rows, column: usize) -> Result<Float64Array, MixerError> {
        numbers(rows.batch.column(column)).ok_or_else(|| self.changed(rows))
    }

    /// The scores of MLM-Filter: read off its answers, any integer as in the original, or numbers, as our own filter has
    /// them.
    fn answers(&self, rows: &Rows, column: usize) -> Result<Vec<Option<f64>>, MixerError> {
        if let Some(numbers) = numbers(rows.batch.column(column)) {
            return Ok(numbers.iter().map(|score| score.filter(|it| !it.is_nan())).collect());
        }
        let answers = self.text(rows, column)?;
        Ok(answers.iter().map(|answer| score_in_answer(answer?, ..)).collect())
    }

    /// Types were looked at when the files were opened.
    fn changed(&self, rows: &Rows) -> MixerError {
        MixerError::InputChanged { path: self.files.files[rows.file].path.clone() }
    }

    /// `basic_filter`. The fork's variant also computes masks of the caption and uses none (oddity D10); so does this one,
    /// in not computing them.
    fn basic_filter(&self) -> Result<RowSet, MixerError> {
        let sides = ["original_width", "original_height"];
        if self.rule.variant == Some(BasicVariant::OpenQwen2vl) {
            return self.keep(&[sides[0], sides[1], "status"], |rows| {
                let status = self.text(rows, 2)?;
                let fetched = status.iter().map(|status| status == Some("success"));
                Ok(fetched.zip(self.sizes_pass(rows, 10.0, 4.0)?).map(|(a, b)| a && b).collect())
            });
        }
        let language = LanguageModel::open(&self.rule.assets, self.around.run)?;
        self.keep(&[sides[0], sides[1], self.columns.text_column()], |rows| {
            let captions = self.text(rows, 2)?;
            let good = |caption: &str| {
                caption.split_whitespace().nth(2).is_some()
                    && caption.chars().nth(5).is_some()
                    && language.is_english(caption)
            };
            let sizes = self.sizes_pass(rows, 200.0, 3.0)?;
            let both = captions.iter().zip(sizes);
            Ok(both.map(|(caption, size_passes)| size_passes && caption.is_some_and(good)).collect())
        })
    }

    /// Whether the sides, the first two columns, are long enough and not too different.
    fn sizes_pass(&self, rows: &Rows, min_side: f64, max_aspect: f64) -> Result<Vec<bool>, MixerError> {
        let (widths, heights) = (self.number(rows, 0)?, self.number(rows, 1)?);
        let passes = |(width, height): (Option<f64>, Option<f64>)| {
            let (Some(width), Some(height)) = (width, height) else { return false };
            let (short, long) = (width.min(height), width.max(height));
            short >= min_side && long / short <= max_aspect
        };
        Ok(widths.iter().zip(heights.iter()).map(passes).collect())
    }

    fn clip_score(&self) -> Result<(RowSet, f64), MixerError> {
        let threshold = self.threshold()?;
        Ok((self.reaching(threshold)?, threshold))
    }

    /// What the config calls the column with the scores.
    fn score_column(&self) -> &'static str {
        score_column(self.rule).expect("only baselines that have scores ask for their column")
    }

    /// The score to reach. For a fraction, as in the original, every row counts: one without a score
    /// comes last. Where the original ends at such a row, at nan, it keeps nothing; here every row with a score stays.
    fn threshold(&self) -> Result<f64, MixerError> {
        let fraction = match self.rule.cut.expect("checked with the config") {
            Cut::MinScore(min_score) => return Ok(min_score),
            Cut::Fraction(fraction) => fraction,
            Cut::Quantile(_) => unreachable!("refused with the config"),
        };
        let mut sorter = Sorter::<8>::new(self.around.scratch);
        self.files.scan(
            &[self.columns.own_name(self.score_column())],
            self.around.run,
            |rows| self.number(&rows, 0),
            |scores| {
                let known = |score: Option<f64>| score.filter(|it| !it.is_nan()).unwrap_or(f64::NEG_INFINITY);
                scores.iter().try_for_each(|score| sorter.push(ordered_bytes(known(score))))
            },
        )?;
        Ok(fraction_threshold(&sorter.finish()?, fraction)?.unwrap_or(f64::INFINITY))
    }

    /// The rows with a score of at least `threshold`.
    fn reaching(&self, threshold: f64) -> Result<RowSet, MixerError> {
        self.keep(&[self.score_column()], |rows| {
            let threshold = rounded_as(rows.batch.column(0).data_type(), threshold);
            let passes = |score: Option<f64>| score.is_some_and(|score| score >= threshold);
            Ok(self.number(rows, 0)?.iter().map(passes).collect())
        })
    }

    /// `image_based`, of the rows in `among` if given.
    fn image_based(&self, among: Option<RowSet>) -> Result<RowSet, MixerError> {
        let language = LanguageModel::open(&self.rule.assets, self.around.run)?;
        let mut candidates =
            self.keep_captions(|caption| caption::is_described(caption) && language.is_english(caption))?;
        if let Some(among) = among {
            candidates.intersect(&among);
        }
        embeddings::near_targets(&self.rule.assets, self.files, &candidates, self.around.run)
    }

    fn mlm_score(&self) -> Result<(RowSet, Option<f64>), MixerError> {
        let (threshold, tie_share) = match self.rule.cut.expect("checked with the config") {
            Cut::MinScore(min_score) => (min_score, 1.0),
            Cut::Fraction(fraction) => self.mlm_threshold(fraction)?,
            Cut::Quantile(_) => unreachable!("refused with the config"),
        };
        let rows = self.keep(&[self.score_column(), "status", "uid"], |rows| {
            let (scores, status) = (self.answers(rows, 0)?, self.text(rows, 1)?);
            let uids = self.text(rows, 2)?;
            let passes = |row: usize| {
                let score = scores[row];
                let fetched = status.is_valid(row) && status.value(row) == "success";
                let keeps_tie = || {
                    uids.is_valid(row) && uids.value(row).parse().is_ok_and(|uid| wins_tie(uid, tie_share))
                };
                fetched
                    && score.is_some_and(|score| {
                        score > threshold || (score == threshold && (tie_share >= 1.0 || keeps_tie()))
                    })
            };
            Ok((0..rows.batch.num_rows()).map(passes).collect())
        })?;
        Ok((rows, Some(threshold)))
    }

    /// The score at index `int(N * fraction)` of the readable ones in descending order, and which share of those that
    /// equal it is to be kept, so that the fraction is met on average.
    fn mlm_threshold(&self, fraction: f64) -> Result<(f64, f64), MixerError> {
        let mut sorter = Sorter::<8>::new(self.around.scratch);
        self.files.scan(
            &[self.columns.own_name(self.score_column())],
            self.around.run,
            |rows| self.answers(&rows, 0),
            |scores| scores.into_iter().flatten().try_for_each(|score| sorter.push(ordered_bytes(score))),
        )?;
        let sorted = sorter.finish()?;
        let Some(threshold) = fraction_threshold(&sorted, fraction)? else { return Ok((f64::INFINITY, 0.0)) };
        let (mut above, mut equal) = (0_u64, 0_u64);
        for record in sorted.iter()? {
            let score = number_of(record?);
            above += u64::from(score > threshold);
            equal += u64::from(score == threshold);
        }
        let wanted = (sorted.len() as f64 * fraction) as u64;
        Ok((threshold, wanted.saturating_sub(above) as f64 / equal as f64))
    }

    fn score_and_captions(&self) -> Result<(RowSet, Option<f64>), MixerError> {
        let lists = CaptionLists::open(&self.rule.assets, self.around.run)?;
        let threshold = self.threshold()?;
        let mut rows = self.reaching(threshold)?;
        rows.intersect(&self.keep_captions(|caption| lists.accept(caption))?);
        Ok((rows, Some(threshold)))
    }
}

/// Whether a uid is among the `share` that wins a tie. The original draws from a generator that every worker process
/// seeds anew, so that the outcome depends on which worker gets which file (oddity D15); here the uid decides.
fn wins_tie(uid: Uid, share: f64) -> bool {
    let (high, low) = uid.halves();
    let mut bytes = high.to_le_bytes().to_vec();
    bytes.extend_from_slice(&low.to_le_bytes());
    let digest = blake3::hash(&bytes);
    let number = u64::from_le_bytes(digest.as_bytes()[..8].try_into().expect("a digest has more"));
    (number as f64) < share * u64::MAX as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tie_is_won_at_the_rate_of_the_share() {
        let uids: Vec<Uid> = (0..10_000).map(|low| Uid::from_halves(0, low)).collect();
        let winners = |share: f64| uids.iter().filter(|uid| wins_tie(**uid, share)).count();
        assert_eq!(winners(0.0), 0);
        for share in [0.01_f64, 0.1, 0.5, 0.9, 0.99] {
            // Five standard deviations of as many throws.
            let expected = 10_000.0 * share;
            let bound = 5.0 * (expected * (1.0 - share)).sqrt();
            let num_won = winners(share) as f64;
            assert!((num_won - expected).abs() < bound, "{share}: {num_won}");
        }
        // Who wins at a share wins at a larger one.
        let (few, more) = (|uid: &Uid| wins_tie(*uid, 0.3), |uid: &Uid| wins_tie(*uid, 0.6));
        assert!(uids.iter().filter(|uid| few(uid)).all(more));
    }
}
