//! The stage: plan, read, decide, list, reshard.

use oqvl_shard_io::UidReader;
use oqvl_stage::{RunContext, Stage, StageConfig};

use crate::baseline::KnownColumns;
use crate::benchmark_images::BenchmarkImages;
use crate::config::PoolSource;
use crate::earlier_output::unmark_if_unsound;
use crate::parquet_scan::{ParquetFiles, metadata_files};
use crate::pool::{Pool, index_dir};
use crate::query::{Database, PoolTable, warn_of_absence};
use crate::report::{MixerReport, ShareReport, decontamination, near_duplicates, overlaps};
use crate::reshard::Resharder;
use crate::sample_index::{IndexPlan, SampleIndex};
use crate::scratch::Scratch;
use crate::selection::decide;
use crate::subset::{Subset, Surroundings, check_is_number, metric_column};
use crate::subset_config::{Rule, ScoreSource};
use crate::{MixerConfig, MixerError};

/// The mixer stage.
#[derive(Debug, Clone, Copy)]
pub struct Mixer;

impl Stage for Mixer {
    const NAME: &'static str = "mixer";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    const CHECKS_FIRST: bool = true;
    type Config = MixerConfig;
    type Report = MixerReport;
    type Error = MixerError;

    fn run(config: &MixerConfig, run: &RunContext) -> Result<MixerReport, MixerError> {
        config.validate()?;
        let rules = config.subset.iter().enumerate().map(|(index, subset)| subset.rule(index));
        let rules = rules.collect::<Result<Vec<Rule>, _>>()?;
        let source = config.source()?;
        let scratch = Scratch::create(&index_dir(run), config.memory_limit_mib)?;
        let plan = IndexPlan::new(config, &rules);
        // Mistakes are to be found before hours of reading.
        check_rules(config, &rules, source, &plan, &scratch, run)?;
        let decontaminate = config.decontaminate.as_ref();
        let benchmark_images = decontaminate.map(|it| BenchmarkImages::read(it, run)).transpose()?;
        run.begin()?;
        let pool = Pool::open(source, &plan, &scratch, run)?;
        let contamination = benchmark_images.map(|images| images.find_in(&pool, run)).transpose()?;
        let asks_queries = rules.iter().any(|rule| matches!(rule, Rule::Where(_) | Rule::Sql(_)));
        let table = PoolTable::Files(&pool.files);
        let database = match asks_queries {
            true => Some(Database::open(config, table, pool.index.is_some(), &scratch, run)?),
            false => None,
        };
        if let Some(database) = &database {
            rules.iter().enumerate().try_for_each(|(index, rule)| database.check(index, rule))?;
        }
        let around = Surroundings { config, database: database.as_ref(), scratch: &scratch, run };
        let mut subsets = Vec::with_capacity(rules.len());
        for (index, rule) in rules.iter().enumerate() {
            let subset = Subset::decide(index, rule, &pool, around)?;
            let path = run.out_dir.join(format!("{}.npy", subset.report.name));
            let _len = pool.write_list(&subset.rows, &path, run)?;
            subsets.push(subset);
        }
        let decision = decide(config, &pool, &subsets, contamination.as_ref(), &scratch, run)?;
        let selected_uids = pool.write_list(&decision.kept, &run.out_dir.join("selected.npy"), run)?;
        let (mut output_shards, mut share) = (0, ShareReport { output_shards: 0, samples: 0 });
        if let Some(index) = &pool.index {
            share = share_of(decision.kept.len(), config.samples_per_shard as u64, run)?;
            let sidecars = config.sidecars();
            let resharder =
                Resharder::new(&pool, index, &decision.kept, config.samples_per_shard, &sidecars, run);
            output_shards = resharder.write()?;
        }
        if run.shards.is_some() {
            let ShareReport { output_shards: own, samples } = &share;
            let kept = decision.kept.len();
            tracing::info!(
                "this share has {own} of {output_shards} output shards, with {samples} of {kept} samples"
            );
        }
        let near = config.near_duplicates.map(|_| near_duplicates(&pool, &decision.near_duplicates, run));
        let decontamination = contamination.map(|it| decontamination(&pool, it, run));
        let report = MixerReport {
            tally: decision.tally,
            overlaps: overlaps(&subsets),
            subsets: subsets.into_iter().map(|subset| subset.report).collect(),
            selected_uids,
            output_shards,
            share: run.shards.map(|_| share),
            near_duplicates: near.transpose()?,
            decontamination: decontamination.transpose()?,
        };
        // Neighbours that write other shards still need the index; the whole run that ends the job takes it away.
        if run.shards.is_none() {
            let dir = index_dir(run);
            std::fs::remove_dir_all(&dir).map_err(|source| MixerError::Scratch { path: dir, source })?;
        }
        Ok(report)
    }

    fn check(config: &MixerConfig, run: &RunContext) -> Result<(), MixerError> {
        let rules = config.subset.iter().enumerate().map(|(index, subset)| subset.rule(index));
        let rules = rules.collect::<Result<Vec<Rule>, _>>()?;
        let dir = tempfile::tempdir();
        let dir = dir.map_err(|source| MixerError::Scratch { path: std::env::temp_dir(), source })?;
        let scratch = Scratch::create(dir.path(), config.memory_limit_mib)?;
        check_rules(config, &rules, config.source()?, &IndexPlan::new(config, &rules), &scratch, run)
    }
}

/// What this process has to write of `total` samples in output shards of `samples_per_shard`. Of what an earlier run left of
/// that, only what is whole is left marked as finished.
fn share_of(total: u64, samples_per_shard: u64, run: &RunContext) -> Result<ShareReport, MixerError> {
    let mut share = ShareReport { output_shards: 0, samples: 0 };
    for shard in 0..total.div_ceil(samples_per_shard) {
        if run.owns_shard(shard as usize) {
            let num_samples = samples_per_shard.min(total - shard * samples_per_shard);
            share.output_shards += 1;
            share.samples += num_samples;
            unmark_if_unsound(run, shard as usize, num_samples)?;
        }
    }
    Ok(share)
}

/// Opens the lists and the assets of baselines, and looks for the columns rules go by: in the first samples of some shards,
/// or in the files of the folder. Writes nothing but in the scratch space.
fn check_rules(
    config: &MixerConfig,
    rules: &[Rule],
    source: PoolSource<'_>,
    plan: &IndexPlan,
    scratch: &Scratch,
    run: &RunContext,
) -> Result<(), MixerError> {
    let mut goes_by_columns = false;
    for rule in rules {
        match rule {
            Rule::Uids(path) => drop(UidReader::open(&run.resolve(path))?),
            Rule::Where(_) | Rule::Sql(_) | Rule::Score { .. } | Rule::Baseline(_) => goes_by_columns = true,
        }
    }
    crate::baseline::check_assets(rules, run)?;
    if !goes_by_columns {
        return Ok(());
    }
    let (columns, is_certain, files) = match source {
        PoolSource::Shards(dir) => {
            // The preview reads what the first pass will read and writes nothing.
            let index = SampleIndex::create(scratch.dir(), plan, &run.resolve(dir))?;
            let preview = index.preview(plan, run)?;
            (preview.columns, preview.is_certain, None)
        }
        PoolSource::Metadata(dir, pattern) => {
            let paths = metadata_files(&run.resolve(dir), pattern, "metadata_files")?;
            let files = ParquetFiles::open(paths, run)?;
            files.require_text("uid", "metadata_dir")?;
            (files.columns, true, Some(files.files))
        }
    };
    let schema = columns.schema();
    let pool = PoolTable::Preview { schema, is_certain };
    let database = Database::open(config, pool, files.is_none(), scratch, run)?;
    let known = KnownColumns { columns: &columns, is_certain, files: files.as_deref() };
    for (index, rule) in rules.iter().enumerate() {
        database.check(index, rule)?;
        if let Rule::Baseline(rule) = rule {
            crate::baseline::check_columns(index, rule, known, config, run)?;
        }
        if let Rule::Score { source: ScoreSource::Column(name), .. } = rule {
            match metric_column(index, name, schema, &config.sidecars()) {
                Err(error) if !is_certain => warn_of_absence(&error),
                found => {
                    // What is text in some samples is text in all.
                    let kind = columns.kind(&found?).expect("it was found among them");
                    check_is_number(index, name, kind)?;
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use oqvl_shard_io::{Sample, ShardReader, UidSubset, read_json};
    use oqvl_stage::ShardRange;
    use proptest::prelude::*;

    use super::*;
    use crate::test_pool::{TestSample, config, min_score, write_pool};
    use crate::{DedupKey, OverlapReport, Select, SubsetConfig};

    fn sample(key: &str, number: u32) -> TestSample {
        TestSample::new(key, number)
    }

    fn samples_of(dir: &Path, shard: usize) -> Vec<Sample> {
        let reader = ShardReader::open(&dir.join(format!("{shard:08}.tar"))).unwrap();
        reader.map(Result::unwrap).collect()
    }

    /// The old keys of everything written, in order.
    fn written_keys(run: &RunContext, report: &MixerReport) -> Vec<String> {
        let samples = (0..report.output_shards as usize).flat_map(|shard| samples_of(&run.out_dir, shard));
        let old_key = |sample: Sample| {
            let metadata: serde_json::Value = sample.metadata().unwrap().unwrap();
            metadata["key"].as_str().unwrap().to_owned()
        };
        samples.map(old_key).collect()
    }

    /// Every file of a directory with its content, but for what processes that share it leave to each other.
    fn content(dir: &Path) -> BTreeMap<String, Vec<u8>> {
        let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let named = paths.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
        let visible = named.filter(|(name, _)| !name.starts_with('.'));
        visible.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
    }

    /// Runs the stage over one pool; checks what goes on and the count of every reject reason.
    #[track_caller]
    fn check(
        shards: &[&[TestSample]],
        config: MixerConfig,
        expected_keys: &[&str],
        expected_rejects: &[(&str, u64)],
    ) -> MixerReport {
        let (_dir, run) = write_pool(shards);
        let report = Mixer::run(&config, &run).unwrap();
        assert_eq!(written_keys(&run, &report), expected_keys);
        let rejected: Vec<_> =
            report.tally.rejected.iter().map(|(reason, n)| (reason.as_str(), *n)).collect();
        assert_eq!(rejected, expected_rejects);
        report
    }

    #[test]
    fn subsets_unite_and_intersect() {
        let pool: &[&[TestSample]] = &[
            &[
                sample("both", 1).scored("clip", 0.9).scored("itm", 90.0),
                sample("clip", 2).scored("clip", 0.5).scored("itm", 84.0),
                sample("none", 3).scored("clip", 0.1).scored("itm", 10.0),
            ],
            &[
                sample("itm", 4).scored("clip", 0.2).scored("itm", 85.0),
                sample("unscored", 5).scored("clip", 0.4),
            ],
        ];
        let subset = vec![min_score("clip", 0.5), min_score("itm", 85.0)];
        let with = |select| MixerConfig { select, subset: subset.clone(), ..config() };
        let all = ["both", "clip", "none", "itm", "unscored"];
        let report = check(pool, with(Select::All), &all, &[]);
        assert_eq!(report.subsets.iter().map(|subset| subset.samples).collect::<Vec<_>>(), [2, 2]);
        assert_eq!((report.subsets[1].scored, report.subsets[1].missing_score), (4, 1));
        let between = ["clip".to_owned(), "itm".to_owned()];
        assert_eq!(report.overlaps, [OverlapReport { between, samples: 1 }]);
        let rejects = [("missing-score", 1), ("not-selected", 1)];
        check(pool, with(Select::Union), &["both", "clip", "itm"], &rejects);
        check(pool, with(Select::Intersection), &["both"], &[("missing-score", 1), ("not-selected", 3)]);
    }

    #[test]
    fn fraction_keeps_ties_over_the_whole_pool() {
        let pool: &[&[TestSample]] = &[
            &[sample("a", 1).scored("clip", 0.7), sample("b", 2).scored("clip", 0.9)],
            &[sample("c", 3).scored("clip", 0.7), sample("d", 4).scored("clip", 0.1), sample("e", 5)],
        ];
        let fraction = |fraction| {
            let subset = SubsetConfig { min_score: None, fraction: Some(fraction), ..min_score("clip", 0.0) };
            MixerConfig { select: Select::Union, subset: vec![subset], ..config() }
        };
        // Four scored samples, index int(4 * 0.3) = 1: the threshold is 0.7, which two samples share.
        let rejects = [("missing-score", 1), ("not-selected", 1)];
        let report = check(pool, fraction(0.3), &["a", "b", "c"], &rejects);
        assert_eq!(report.subsets[0].threshold, Some(0.7));
        check(pool, fraction(0.2), &["b"], &[("missing-score", 1), ("not-selected", 3)]);
        check(pool, fraction(1.0), &["a", "b", "c", "d"], &[("missing-score", 1)]);
        let unscored: &[&[TestSample]] = &[&[sample("a", 1).scored("clip", f64::NAN)]];
        let report = check(unscored, fraction(0.5), &[], &[("missing-score", 1)]);
        assert_eq!((report.subsets[0].threshold, report.output_shards), (None, 0));
    }

    #[test]
    fn the_earlier_duplicate_stays() {
        let pool: &[&[TestSample]] = &[
            &[sample("first", 1), sample("same-uid", 2).with_uid(&format!("{:032x}", 1))],
            &[sample("same-image", 3).with_image(b"x"), sample("later-image", 4).with_image(b"x")],
            &[sample("same-text", 5).with_caption("caption 1"), sample("last", 6)],
        ];
        let with = |dedup: &[DedupKey]| MixerConfig { dedup: dedup.to_vec(), ..config() };
        let all = ["first", "same-uid", "same-image", "later-image", "same-text", "last"];
        check(pool, with(&[]), &all, &[]);
        let without = |gone: &str| all.into_iter().filter(|key| *key != gone).collect::<Vec<_>>();
        check(pool, with(&[DedupKey::Uid]), &without("same-uid"), &[("duplicate-uid", 1)]);
        check(pool, with(&[DedupKey::Content]), &without("later-image"), &[("duplicate-content", 1)]);
        check(pool, with(&[DedupKey::Caption]), &without("same-text"), &[("duplicate-caption", 1)]);
    }

    #[test]
    fn only_what_goes_on_shadows_later_samples() {
        let by_score = |dedup: &[DedupKey]| MixerConfig {
            select: Select::Union,
            dedup: dedup.to_vec(),
            subset: vec![min_score("clip", 0.5)],
            ..config()
        };
        // The earlier twin is not selected, so the later one stays.
        let pool: &[&[TestSample]] =
            &[&[sample("early", 1).scored("clip", 0.1), sample("late", 1).scored("clip", 0.9)]];
        check(pool, by_score(&[DedupKey::Uid, DedupKey::Content]), &["late"], &[("not-selected", 1)]);
        // `b` goes because of its uid; `c` equals only `b` and stays.
        let chain: &[&[TestSample]] = &[&[
            sample("a", 1),
            sample("b", 1).with_image(b"b and c"),
            sample("c", 2).with_image(b"b and c"),
        ]];
        let config = MixerConfig { dedup: vec![DedupKey::Content, DedupKey::Uid], ..config() };
        check(chain, config, &["a", "c"], &[("duplicate-uid", 1)]);
    }

    #[test]
    fn a_uid_list_selects() {
        let (dir, run) = write_pool(&[&[sample("a", 1), sample("b", 2), sample("c", 3).without_uid()]]);
        let list: UidSubset =
            [2_u64, 9].map(|low| oqvl_shard_io::Uid::from_halves(0, low)).into_iter().collect();
        list.write(&dir.path().join("dfn.npy")).unwrap();
        let subset =
            SubsetConfig { name: "dfn".into(), uids: Some("dfn.npy".into()), ..SubsetConfig::default() };
        let config = MixerConfig { select: Select::Union, subset: vec![subset], ..config() };
        let report = Mixer::run(&config, &run).unwrap();
        assert_eq!(written_keys(&run, &report), ["b"]);
        assert_eq!(report.tally.rejected, BTreeMap::from([("not-selected".to_owned(), 2)]));
        let expected: UidSubset = list.iter().take(1).collect();
        assert_eq!(UidSubset::read(&run.out_dir.join("dfn.npy")).unwrap(), expected);
        assert_eq!(UidSubset::read(&run.out_dir.join("selected.npy")).unwrap(), expected);
    }

    #[test]
    fn output_is_full_shards_of_verbatim_members() {
        let (dir, run) = write_pool(&[
            &[sample("000000000", 1), sample("000000002", 2)],
            &[],
            &[sample("000010001", 3).without_uid(), sample("000010000", 4), sample("000010007", 5)],
        ]);
        let report = Mixer::run(&config(), &run).unwrap();
        assert_eq!((report.tally.seen, report.tally.kept, report.output_shards), (5, 5, 3));
        let sizes: BTreeMap<String, u64> = read_json(&run.out_dir.join("sizes.json")).unwrap();
        assert_eq!(sizes.into_values().collect::<Vec<_>>(), [2, 2, 1]);
        let stats: serde_json::Value = read_json(&run.out_dir.join("00000002_stats.json")).unwrap();
        assert_eq!(stats, serde_json::json!({"successes": 1}));
        let written: Vec<Sample> = (0..3).flat_map(|shard| samples_of(&run.out_dir, shard)).collect();
        let uid_key = |number: u32| format!("{number:032x}-0");
        let expected = [uid_key(1), uid_key(2), "000010001".into(), uid_key(4), uid_key(5)];
        assert_eq!(written.iter().map(|sample| sample.key.to_string()).collect::<Vec<_>>(), expected);
        let pool = ["00000", "00002"].map(|name| dir.path().join("pool").join(format!("{name}.tar")));
        let read = pool.iter().flat_map(|path| ShardReader::open(path).unwrap()).map(Result::unwrap);
        for (before, after) in read.zip(&written) {
            let members = |sample: &Sample| {
                sample.members.iter().map(|m| (m.extension.clone(), m.data.clone())).collect::<Vec<_>>()
            };
            assert_eq!(members(&before), members(after));
        }
    }

    #[test]
    fn bad_samples_and_damaged_shards_are_counted() {
        let good = [sample("a", 1), sample("b", 2), sample("c", 3)];
        let odd = [sample("bad", 4).with_uid("no uid"), sample("d", 5).scored("clip", 1.0)];
        let (dir, run) = write_pool(&[&good, &odd]);
        let cut = dir.path().join("pool/00000.tar");
        let bytes = std::fs::read(&cut).unwrap();
        // In the middle of the third sample: nine members of a header and a data block each, or two headers.
        oqvl_shard_io::write_atomic(&cut, &bytes[..bytes.len() - 1024 - 1500]).unwrap();
        let report = Mixer::run(&config(), &run).unwrap();
        assert_eq!(written_keys(&run, &report), ["a", "b", "d"]);
        let rejects: Vec<_> =
            report.tally.rejects.iter().map(|it| (it.key.as_str(), it.reason.as_str())).collect();
        assert_eq!(rejects, [("00000", "damaged-shard"), ("00001/bad", "bad-uid")]);
        assert_eq!((report.tally.seen, report.selected_uids), (5, 3));
    }

    #[test]
    fn a_tar_without_its_end_loses_nothing_and_says_so() {
        let (dir, run) = write_pool(&[&[sample("a", 1), sample("b", 2)], &[sample("c", 3)]]);
        let cut = dir.path().join("pool/00000.tar");
        let bytes = std::fs::read(&cut).unwrap();
        let end = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        oqvl_shard_io::write_atomic(&cut, &bytes[..end.next_multiple_of(512)]).unwrap();
        let report = Mixer::run(&config(), &run).unwrap();
        assert_eq!(written_keys(&run, &report), ["a", "b", "c"]);
        assert_eq!(report.tally.rejected, BTreeMap::from([("unterminated-shard".to_owned(), 1)]));
        // The reasons are called as in the other stages.
        let errors = ShardReader::open(&cut).unwrap().filter_map(Result::err);
        let reasons: Vec<&str> = errors.map(|error| error.shard_reason()).collect();
        assert_eq!(reasons, ["unterminated-shard"]);
    }

    /// A pool with something of everything, and a configuration that uses it.
    fn rich_pool() -> (Vec<Vec<TestSample>>, MixerConfig) {
        let shard = |shard: u32| {
            let sample = |index: u32| {
                let number = shard * 10 + index;
                let sample = sample(&format!("{shard:05}{index:04}"), number)
                    .scored("clip", f64::from(number * 37 % 50));
                if number % 11 == 3 { sample.with_image(b"same") } else { sample }
            };
            (0..10).map(sample).collect()
        };
        let subset = SubsetConfig { min_score: None, fraction: Some(0.7), ..min_score("clip", 0.0) };
        let dedup = vec![DedupKey::Uid, DedupKey::Content];
        let config = MixerConfig {
            select: Select::Union,
            dedup,
            samples_per_shard: 7,
            subset: vec![subset],
            ..config()
        };
        ((0..5).map(shard).collect(), config)
    }

    fn run_rich(
        before: impl FnOnce(&MixerConfig, &mut RunContext),
    ) -> (BTreeMap<String, Vec<u8>>, MixerReport) {
        let (shards, config) = rich_pool();
        let shards: Vec<&[TestSample]> = shards.iter().map(Vec::as_slice).collect();
        let (_dir, mut run) = write_pool(&shards);
        before(&config, &mut run);
        let report = Mixer::run(&config, &run).unwrap();
        (content(&run.out_dir), report)
    }

    #[test]
    fn bytes_do_not_depend_on_the_number_of_threads() {
        let with_threads = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run_rich(|_, _| {}))
        };
        let (files, report) = with_threads(1);
        assert!(report.output_shards >= 3 && report.tally.rejected.len() == 2, "{report:?}");
        assert_eq!(with_threads(5), (files, report));
    }

    #[test]
    fn a_resumed_run_equals_an_undisturbed_one_and_keeps_what_is_finished() {
        let undisturbed = run_rich(|_, _| {});
        for lost in [
            &["00000001.tar"][..],
            &["00000001_stats.json"],
            &["00000001.tar", "00000001_stats.json", "sizes.json"],
        ] {
            let resumed = run_rich(|config, run| {
                Mixer::run(config, run).unwrap();
                lost.iter().for_each(|name| std::fs::remove_file(run.out_dir.join(name)).unwrap());
            });
            assert_eq!(resumed, undisturbed, "{lost:?}");
        }
        // A finished shard is not written again: a mark left in it is still there.
        let mark = [0; 2048];
        let (files, _) = run_rich(|config, run| {
            Mixer::run(config, run).unwrap();
            oqvl_shard_io::write_atomic(&run.out_dir.join("00000000.tar"), &mark).unwrap();
        });
        assert_eq!(files["00000000.tar"], mark);
    }

    #[test]
    fn what_an_earlier_run_left_cut_short_is_written_again() {
        let undisturbed = run_rich(|_, _| {});
        type Keep = fn(usize) -> usize;
        let damages: [(&str, Keep); 4] = [
            ("00000001.tar", |len| len / 3),
            // At a block, in front of the two that close it.
            ("00000001.tar", |len| len - 1024),
            ("00000000.parquet", |len| len / 2),
            ("00000000_stats.json", |len| len / 2),
        ];
        for (case, (name, keep)) in damages.into_iter().enumerate() {
            let resumed = run_rich(|config, run| {
                Mixer::run(config, run).unwrap();
                let path = run.out_dir.join(name);
                let bytes = std::fs::read(&path).unwrap();
                oqvl_shard_io::write_atomic(&path, &bytes[..keep(bytes.len())]).unwrap();
            });
            assert!(resumed == undisturbed, "{case}: {name}");
        }
    }

    #[test]
    fn shares_add_up_to_the_whole() {
        let whole = run_rich(|_, _| {});
        let shared = run_rich(|config, run| {
            run.shards = Some(ShardRange::Stride { task: 0, count: 2 });
            let report = Mixer::run(config, run).unwrap();
            // The selection is the whole one; its own part stands beside it.
            let share = report.share.clone().unwrap();
            assert_eq!(MixerReport { share: None, ..report }, whole.1);
            assert_eq!((share.output_shards, share.samples), expected_share(&whole.1));
            assert!(!run.out_dir.join("00000001.tar").exists() && run.out_dir.join("00000002.tar").exists());
            run.shards = Some(ShardRange::Stride { task: 1, count: 2 });
        });
        let share = shared.1.share.clone().unwrap();
        let (num_shards, num_samples) = expected_share(&whole.1);
        let rest = (whole.1.output_shards - num_shards, whole.1.tally.kept - num_samples);
        assert_eq!((share.output_shards, share.samples), rest);
        assert_eq!((shared.0, MixerReport { share: None, ..shared.1 }), whole);
    }

    /// Shards and samples of the even ones of shards of seven.
    fn expected_share(whole: &MixerReport) -> (u64, u64) {
        let even: Vec<u64> = (0..whole.output_shards).step_by(2).collect();
        (even.len() as u64, even.iter().map(|shard| 7.min(whole.tally.kept - shard * 7)).sum())
    }

    #[test]
    fn a_dry_run_finds_wrong_queries_and_writes_nothing() {
        let (dir, run) = write_pool(&[&[sample("a", 1), sample("b", 2).with_field("width", 3)]]);
        std::fs::remove_dir(&run.out_dir).unwrap();
        let check = |condition: &str| {
            let subset = SubsetConfig {
                name: "it".into(),
                condition: Some(condition.into()),
                ..SubsetConfig::default()
            };
            Mixer::check(&MixerConfig { subset: vec![subset], ..config() }, &run)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check("width > 3"), Ok(()));
        assert!(check("widht > 3").unwrap_err().starts_with("subset.0.where: no column `widht`"));
        let subset = SubsetConfig { scores: Some("pool".into()), ..min_score("aesthetic", 1.0) };
        let error = Mixer::check(&MixerConfig { subset: vec![subset], ..config() }, &run).unwrap_err();
        assert!(error.to_string().starts_with("subset.0.metric: "), "{error}");
        assert!(!run.out_dir.exists() && dir.path().join("pool").exists());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// Whatever the pool: every sample is counted once, and the output holds the kept ones, each uid once.
        #[test]
        fn nothing_is_lost_or_doubled(
            numbers in prop::collection::vec(prop::collection::vec((0..30_u32, 0..10_u8), 0..9), 1..4),
            samples_per_shard in 1..6_usize,
        ) {
            let shards: Vec<Vec<TestSample>> = numbers
                .iter()
                .map(|shard| {
                    let one = |(index, (number, score)): (usize, &(u32, u8))| {
                        sample(&format!("{index:09}"), *number).scored("clip", f64::from(*score))
                    };
                    shard.iter().enumerate().map(one).collect()
                })
                .collect();
            let shards: Vec<&[TestSample]> = shards.iter().map(Vec::as_slice).collect();
            let (_dir, run) = write_pool(&shards);
            let config = MixerConfig {
                select: Select::Union,
                dedup: vec![DedupKey::Uid],
                samples_per_shard,
                subset: vec![min_score("clip", 4.0)],
                ..config()
            };
            let report = Mixer::run(&config, &run).unwrap();
            prop_assert_eq!(report.tally.seen as usize, numbers.iter().map(Vec::len).sum::<usize>());
            prop_assert_eq!(report.tally.kept, report.selected_uids);
            let shard_sizes: Vec<usize> =
                (0..report.output_shards as usize).map(|shard| samples_of(&run.out_dir, shard).len()).collect();
            prop_assert_eq!(shard_sizes.iter().sum::<usize>() as u64, report.tally.kept);
            if let Some((last, full)) = shard_sizes.split_last() {
                prop_assert!(full.iter().all(|size| *size == samples_per_shard) && (1..=samples_per_shard).contains(last));
            }
        }
    }
}
