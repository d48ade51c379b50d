//! Selection by SQL, from the config to what is written.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float64Array, StringArray};
use oqvl_shard_io::{TableWriter, UidSubset};
use oqvl_stage::{RunContext, Stage};
use tempfile::TempDir;

use crate::config::{JoinKey, ScoreFiles, TableConfig};
use crate::parquet_scan::ParquetFiles;
use crate::query::{Database, PoolTable};
use crate::sample_table::batch_of;
use crate::scratch::Scratch;
use crate::test_pool::{TestSample, config, write_pool};
use crate::{Mixer, MixerConfig, MixerError, MixerReport, Select, SubsetConfig};

fn sample(number: u32) -> TestSample {
    TestSample::new(&format!("{number:09}"), number)
}

fn uid(number: u32) -> String {
    format!("{number:032x}")
}

/// Two shards of samples 1 to 6 with sizes, captions and scores.
fn pool() -> (TempDir, RunContext) {
    let wide = |number: u32, width: u32| sample(number).with_field("width", width).with_field("height", 100);
    let first = [
        wide(1, 50).scored("clip", 0.1).with_caption("A Red fox"),
        wide(2, 150).scored("clip", 0.4),
        wide(3, 300).scored("clip", 0.9),
    ];
    let second = [
        wide(4, 400).scored("clip", 0.2).with_field("nsfw", false),
        sample(5).scored("clip", 0.5).with_caption("two red foxes and a dog"),
        wide(6, 600).with_field("nsfw", true),
    ];
    write_pool(&[&first, &second])
}

fn write_table(path: &Path, columns: Vec<(&str, ArrayRef)>) {
    let batch = batch_of(columns.into_iter().map(|(name, column)| (name.to_owned(), column)).collect());
    let mut writer = TableWriter::create(path, batch.schema(), &[]).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
}

fn texts(values: &[&str]) -> ArrayRef {
    Arc::new(StringArray::from(values.to_vec()))
}

/// The config with scores, and two tables: `faces` by uid, `labels` by key.
fn with_tables(work_dir: &Path) -> MixerConfig {
    let uids: Vec<String> = [1, 2, 2, 6, 99].map(uid).to_vec();
    let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
    let faces: ArrayRef = Arc::new(Float64Array::from(vec![2.0, 0.0, 3.0, 1.0, 9.0]));
    write_table(&work_dir.join("faces.parquet"), vec![("uid", texts(&uids)), ("num_faces", faces)]);
    std::fs::create_dir(work_dir.join("labels")).unwrap();
    let part = |name: &str, keys: &[&str], labels: &[&str]| {
        let path = work_dir.join("labels").join(name);
        write_table(&path, vec![("key", texts(keys)), ("label", texts(labels))]);
    };
    part("0.parquet", &["000000001", "000000003"], &["good", "bad"]);
    part("1.parquet", &["000000005"], &["good"]);
    let table = |name: &str, path: &str, on| TableConfig { name: name.into(), path: path.into(), on };
    MixerConfig {
        select: Select::Union,
        sidecar: vec![ScoreFiles { scores: "pool".into(), scorer: "test".into() }],
        table: vec![table("faces", "faces.parquet", JoinKey::Uid), table("labels", "labels", JoinKey::Key)],
        ..config()
    }
}

fn run_with(subset: SubsetConfig) -> Result<(Vec<u32>, MixerReport), MixerError> {
    let (dir, run) = pool();
    let config = MixerConfig { subset: vec![subset], ..with_tables(dir.path()) };
    let report = Mixer::run(&config, &run)?;
    let selected = UidSubset::read(&run.out_dir.join("selected.npy")).unwrap();
    Ok((selected.iter().map(|uid| uid.halves().1 as u32).collect(), report))
}

fn by_where(condition: &str) -> SubsetConfig {
    SubsetConfig { name: "it".into(), condition: Some(condition.into()), ..SubsetConfig::default() }
}

fn by_sql(sql: &str) -> SubsetConfig {
    SubsetConfig { name: "it".into(), sql: Some(sql.into()), ..SubsetConfig::default() }
}

#[track_caller]
fn check_where(condition: &str, expected: &[u32]) {
    let (selected, report) = run_with(by_where(condition)).unwrap();
    assert_eq!(selected, expected, "{condition}");
    assert_eq!(report.tally.kept, expected.len() as u64);
}

#[test]
fn conditions_see_metadata_scores_and_tables() {
    check_where("width > height", &[2, 3, 4, 6]);
    check_where("clip > 0.3", &[2, 3, 5]);
    check_where("clip IS NULL", &[6]);
    check_where("position = 0 AND shard = '00001'", &[4]);
    check_where("caption ILIKE '%red%' AND num_words(caption) > 3", &[5]);
    check_where("lower(caption) ~ '^a red' OR length(original_key) <> 9", &[1]);
    check_where("nsfw -- a comment at the end", &[6]);
    // With this flag the bracket stands in a comment.
    check_where("regexp_like(caption, 'red #(', 'x') AND width > 350", &[]);
    check_where("num_faces > 1", &[1, 2]);
    check_where("faces.num_faces IS NULL AND label = 'good'", &[5]);
    check_where("label = 'bad' OR num_faces = 1", &[3, 6]);
    check_where("faces_uid IS NULL AND width > 350", &[4]);
    check_where("uid IN (SELECT uid FROM faces WHERE num_faces > 2)", &[2]);
    check_where("false", &[]);
}

#[test]
fn queries_return_uids_or_keys() {
    let check = |sql: &str, expected: &[u32], not_in_pool: u64| {
        let (selected, report) = run_with(by_sql(sql)).unwrap();
        assert_eq!(selected, expected, "{sql}");
        assert_eq!(report.subsets[0].not_in_pool, not_in_pool, "{sql}");
    };
    check("SELECT uid FROM faces WHERE num_faces > 0", &[1, 2, 6], 1);
    check("SELECT key FROM labels WHERE label = 'good'", &[1, 5], 0);
    check("SELECT uid FROM pool JOIN faces USING (uid) WHERE clip < 0.2", &[1], 0);
    check("SELECT uid FROM pool WHERE width >= (SELECT avg(width) FROM pool)", &[3, 4, 6], 0);
    check("SELECT uid FROM pool ORDER BY clip DESC NULLS LAST, uid LIMIT 2", &[3, 5], 0);
    check("SELECT 'no uid' AS uid FROM faces", &[], 5);
}

#[test]
fn mistakes_are_found_before_the_work_and_say_what_there_is() {
    let check = |subset: SubsetConfig, expected: &[&str]| {
        let error = run_with(subset).unwrap_err();
        assert!(matches!(error, MixerError::Config(_)), "{error:?}");
        let message = error.to_string();
        expected.iter().for_each(|part| assert!(message.contains(part), "{part} is not in: {message}"));
    };
    let columns = ["`pool` has `shard`", "`width`", "`clip`", "`faces` has `uid`, `num_faces`"];
    let at_where = |problem: &str| format!("subset.0.where: {problem}");
    check(by_where("widht > 3"), &[&[&*at_where("no column `widht`")], &columns[..]].concat());
    check(by_where("width > "), &[&at_where("is no SQL: expected an expression, found the end")]);
    check(by_where("width > 3) OR (1 = 1"), &[&at_where("is no SQL condition")]);
    check(by_where("width > 'wide' + 1"), &[&at_where("")]);
    for (condition, function) in
        [("random() < 0.5", "random"), ("now() > timestamp '2020-01-01 00:00:00'", "now")]
    {
        check(by_where(condition), &[&at_where(&format!("{function}() gives another value in another run"))]);
    }
    check(by_where("uid IN (SELECT uid FROM pool SAMPLE 0.1)"), &[&at_where("must do without SAMPLE")]);
    check(by_where("caption = \"red\""), &[&at_where("no column `red`; text goes in single quotes: 'red'")]);
    check(by_where("nowhere.x > 3"), &[&at_where("no table `nowhere`; there are `pool`, `faces`, `labels`")]);
    for regex in ["caption ~ '(a'", "regexp_like(caption, '(a')", "caption SIMILAR TO '(a'"] {
        check(by_where(regex), &[&at_where("`"), "(a", "is no regular expression: unclosed group"]);
    }
    let at_sql = |problem: &str| format!("subset.0.sql: {problem}");
    check(
        by_sql("SELECT uid FROM nowhere"),
        &[&at_sql("no table `nowhere`; there are `pool`, `faces`, `labels`")],
    );
    check(by_sql("SELECT p.widht AS uid FROM pool p"), &[&at_sql("no column `p.widht`")]);
    check(by_sql("SELECT uid, key FROM pool"), &[&at_sql("must return one"), "`uid`, `key`"]);
    check(by_sql("SELECT position AS uid FROM pool"), &[&at_sql("must return one text column")]);
    check(by_sql("SELECT uid FROM pool LIMIT 3"), &[&at_sql("a LIMIT needs an ORDER BY")]);
    check(by_sql("DROP TABLE pool"), &[&at_sql("must be a query")]);
    check(by_sql("SELECT uid FROM pool; SELECT uid FROM faces"), &[&at_sql("must be one query, and has 2")]);
    let by_column = |metric: &str| {
        let subset = SubsetConfig { metric: Some(metric.into()), min_score: Some(0.0), ..by_where("") };
        SubsetConfig { condition: None, ..subset }
    };
    check(by_column("clop"), &["subset.0.metric: no column `clop`; the pool has `shard`"]);
    let text = "subset.0.metric: the column `caption` holds text (Utf8), and must hold numbers";
    check(by_column("caption"), &[text]);
    let sidecar = |metric: &str| SubsetConfig {
        scores: Some("pool".into()),
        scorer: Some("test".into()),
        ..by_column(metric)
    };
    check(sidecar("clop"), &["subset.0.metric: ", "no metric `clop`; it has `clip`"]);
}

#[test]
fn a_table_without_its_column_is_refused() {
    let (dir, run) = pool();
    let mut config = MixerConfig { subset: vec![by_where("true")], ..with_tables(dir.path()) };
    config.table[0].on = JoinKey::Key;
    let message = Mixer::run(&config, &run).unwrap_err().to_string();
    assert!(message.contains("table.0.on: `faces` has no text column `key`"), "{message}");
    assert!(message.contains("it has `uid`, `num_faces`"), "{message}");
}

#[test]
fn scores_are_columns_and_have_quantiles() {
    let by_column =
        |cut: SubsetConfig| SubsetConfig { name: "it".into(), metric: Some("clip".into()), ..cut };
    let check = |cut: SubsetConfig, expected: &[u32], threshold: f64| {
        let (selected, report) = run_with(by_column(cut)).unwrap();
        assert_eq!(selected, expected);
        assert_eq!(report.subsets[0].threshold, Some(threshold));
        assert_eq!((report.subsets[0].scored, report.subsets[0].missing_score), (5, 1));
    };
    check(SubsetConfig { min_score: Some(0.4), ..SubsetConfig::default() }, &[2, 3, 5], 0.4);
    check(SubsetConfig { fraction: Some(0.3), ..SubsetConfig::default() }, &[3, 5], 0.5);
    check(SubsetConfig { quantile: Some(0.5), ..SubsetConfig::default() }, &[2, 3, 5], 0.4);
}

#[test]
fn a_mix_can_be_selected_from_again() {
    let (dir, run) = pool();
    let config = with_tables(dir.path());
    let first = MixerConfig { subset: vec![by_where("clip > 0.15")], ..config.clone() };
    let report = Mixer::run(&first, &run).unwrap();
    assert_eq!((report.tally.kept, report.output_shards), (4, 2));
    std::fs::rename(&run.out_dir, dir.path().join("mixed")).unwrap();
    std::fs::create_dir(&run.out_dir).unwrap();
    // The scores came along in the tables beside the shards: no sidecars are needed.
    let second = MixerConfig {
        shards: Some("mixed".into()),
        sidecar: Vec::new(),
        subset: vec![by_where("clip > 0.3 AND original_key > '000000002'")],
        ..config
    };
    let report = Mixer::run(&second, &run).unwrap();
    let selected = UidSubset::read(&run.out_dir.join("selected.npy")).unwrap();
    assert_eq!(selected.iter().map(|uid| uid.halves().1).collect::<Vec<_>>(), [3, 5]);
    assert_eq!(report.tally.seen, 4);
}

/// A metadata folder of `num_rows` uids in `num_files`, and a table `other` with every second of them, shuffled.
fn large_folder(num_rows: u32, num_files: u32) -> (TempDir, RunContext) {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("metadata")).unwrap();
    let digest = |number: u32| blake3::hash(&number.to_le_bytes()).to_hex().as_str()[..32].to_owned();
    let uids: Vec<String> = (0..num_rows).map(digest).collect();
    for (index, uids) in uids.chunks((num_rows / num_files) as usize).enumerate() {
        let scores: ArrayRef =
            Arc::new(Float64Array::from_iter_values((0..uids.len()).map(|row| row as f64)));
        let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
        let path = dir.path().join(format!("metadata/{index:04}.parquet"));
        write_table(&path, vec![("uid", texts(&uids)), ("score", scores)]);
    }
    let mut others: Vec<&str> = uids.iter().step_by(2).map(String::as_str).collect();
    others.sort_by_key(|uid| blake3::hash(uid.as_bytes()).to_hex().to_string());
    let odd: ArrayRef = Arc::new(StringArray::from_iter_values(others.iter().map(|uid| format!("of {uid}"))));
    write_table(&dir.path().join("other.parquet"), vec![("uid", texts(&others)), ("odd", odd)]);
    let run = RunContext::for_test::<Mixer>(dir.path(), 7).unwrap();
    (dir, run)
}

fn folder_config(limit_mib: u64) -> MixerConfig {
    let table = TableConfig { name: "other".into(), path: "other.parquet".into(), on: JoinKey::Uid };
    MixerConfig {
        metadata_dir: Some("metadata".into()),
        select: Select::Union,
        memory_limit_mib: Some(limit_mib),
        table: vec![table],
        subset: vec![by_where("odd <> 'x'")],
        ..MixerConfig::default()
    }
}

#[test]
fn what_memory_does_not_hold_is_spilled_and_the_same() {
    let num_rows = 700_000;
    let (dir, run) = large_folder(num_rows, 7);
    let config = folder_config(64);
    // The groups of a query alone: they do not fit, and it says so by spilling.
    let scratch = Scratch::create(&dir.path().join("scratch"), Some(48)).unwrap();
    let paths =
        crate::parquet_scan::metadata_files(&dir.path().join("metadata"), "*.parquet", "metadata_files")
            .unwrap();
    let files = ParquetFiles::open(paths, &run).unwrap();
    let database = Database::open(&config, PoolTable::Files(&files), false, &scratch, &run).unwrap();
    let query = database.plan_sql(0, "SELECT max(uid) AS uid FROM pool GROUP BY uid").unwrap();
    let mut num_selected = 0;
    let spilled = database
        .run(&query, |batch| {
            num_selected += batch.num_rows();
            Ok(())
        })
        .unwrap();
    assert!(spilled > 1 << 20, "{spilled} bytes were spilled");
    assert!(num_selected >= num_rows as usize);
    // The whole stage, with little and with much memory.
    let tight = Mixer::run(&config, &run).unwrap();
    let tight_list = std::fs::read(run.out_dir.join("selected.npy")).unwrap();
    let roomy = Mixer::run(&folder_config(8192), &run).unwrap();
    assert_eq!(tight, roomy);
    assert_eq!(tight.selected_uids, u64::from(num_rows) / 2);
    assert_eq!(std::fs::read(run.out_dir.join("selected.npy")).unwrap(), tight_list);
    assert!(!run.out_dir.join(".index").exists(), "nothing is left of the scratch space");
}

#[test]
fn a_metadata_folder_gives_lists_and_nothing_else() {
    let (dir, run) = large_folder(1000, 3);
    let by_column = SubsetConfig {
        name: "best".into(),
        metric: Some("score".into()),
        fraction: Some(0.1),
        ..SubsetConfig::default()
    };
    let config = MixerConfig {
        select: Select::Intersection,
        subset: vec![by_where("odd LIKE 'of %'"), by_column],
        dedup: vec![crate::DedupKey::Uid],
        ..folder_config(64)
    };
    let report = Mixer::run(&config, &run).unwrap();
    let mut files: Vec<String> = std::fs::read_dir(&run.out_dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["best.npy", "it.npy", "selected.npy"]);
    let list = |name: &str| UidSubset::read(&run.out_dir.join(name)).unwrap();
    assert_eq!(list("selected.npy"), list("best.npy").intersection(&list("it.npy")));
    assert_eq!((report.tally.seen, report.output_shards), (1000, 0));
    assert_eq!(report.tally.kept, report.selected_uids);
    drop(dir);
}

#[test]
fn a_directory_may_have_brackets_in_its_name() {
    let parent = tempfile::tempdir().unwrap();
    let work_dir = parent.path().join("run[1] *?%5B");
    std::fs::create_dir(&work_dir).unwrap();
    let (dir, _run) = large_folder(30, 3);
    for name in ["metadata", "other.parquet"] {
        std::fs::rename(dir.path().join(name), work_dir.join(name)).unwrap();
    }
    let run = RunContext::for_test::<Mixer>(&work_dir, 7).unwrap();
    assert_eq!(Mixer::run(&folder_config(64), &run).unwrap().selected_uids, 15);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (dir, mut run) = large_folder(7000, 7);
    // The first file cancels out the last; what is left of the sum of the others by rounding depends on where they
    // are added.
    let number = |row: u64| match row / 1000 {
        0 => 1e17,
        6 => -1e17,
        _ => f64::from(blake3::hash(&row.to_le_bytes()).as_bytes()[0]),
    };
    let work_dir = dir.path();
    for file in 0..7_u64 {
        let rows = (0..1000).map(|row| (file * 1000 + row) as f64);
        let uids: Vec<String> = (0..1000).map(|row| format!("{:032x}", file * 1000 + row)).collect();
        let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
        let numbers: ArrayRef =
            Arc::new(Float64Array::from_iter_values((0..1000).map(|row| number(file * 1000 + row))));
        let rows: ArrayRef = Arc::new(Float64Array::from_iter_values(rows));
        let ties: ArrayRef = Arc::new(Float64Array::from(vec![1.0; 1000]));
        let columns = vec![("uid", texts(&uids)), ("number", numbers), ("row", rows), ("tie", ties)];
        write_table(&work_dir.join(format!("metadata/{file:04}.parquet")), columns);
    }
    let mut select = |sql: &str, threads: usize| {
        run.threads = threads;
        let config = MixerConfig { table: Vec::new(), subset: vec![by_sql(sql)], ..folder_config(64) };
        let report = Mixer::run(&config, &run).unwrap();
        (report, std::fs::read(run.out_dir.join("selected.npy")).unwrap())
    };
    for sql in [
        "SELECT uid FROM pool WHERE row * 200 < (SELECT sum(number) FROM pool)",
        "SELECT uid FROM pool WHERE row * 200 / 7000 < (SELECT avg(number) FROM pool)",
        "SELECT uid FROM pool ORDER BY tie LIMIT 100",
        "SELECT uid FROM (SELECT uid, row_number() OVER (ORDER BY tie) AS n FROM pool) WHERE n < 100",
        "SELECT first_value(uid ORDER BY tie) AS uid FROM pool",
        "SELECT uid FROM (SELECT uid, count(*) OVER (PARTITION BY tie) AS n FROM pool) WHERE n > 100",
    ] {
        let (one, eight) = (select(sql, 1), select(sql, 8));
        assert_eq!(one.0.tally.kept, eight.0.tally.kept, "{sql}");
        assert!(one == eight, "{sql}");
    }
}

#[test]
fn what_goes_by_chance_is_refused() {
    let check = |sql: &str, expected: &str| {
        let message = run_with(by_sql(sql)).expect_err("must be refused").to_string();
        assert!(message.contains(expected), "{message}");
    };
    for function in ["first_value", "last_value", "any_value"] {
        let needs = format!("subset.0.sql: {function} needs an ORDER BY");
        check(&format!("SELECT {function}(uid) AS uid FROM pool GROUP BY caption"), &needs);
    }
    check("SELECT nth_value(uid, 2) AS uid FROM pool GROUP BY caption", "nth_value needs an ORDER BY");
    check("SELECT string_agg(uid, '') AS uid FROM pool", "string_agg needs an ORDER BY");
    check("SELECT uid FROM pool GROUP BY uid HAVING array_agg(width)[1] > 3", "subset.0.sql: ");
    let window = |of: &str| format!("SELECT uid FROM (SELECT uid, {of} AS n FROM pool) WHERE n = 1");
    check(&window("row_number() OVER (PARTITION BY caption)"), "row_number needs an ORDER BY in its window");
    check(&window("first_value(width) OVER ()"), "first_value needs an ORDER BY");
    let sliding = "count(*) OVER (ROWS BETWEEN 1 PRECEDING AND CURRENT ROW)";
    check(&window(sliding), "count needs an ORDER BY in its window");
    check("SELECT DISTINCT ON (caption) uid FROM pool", "DISTINCT ON needs an ORDER BY");
    let in_subquery = "SELECT uid FROM pool WHERE uid IN (SELECT first_value(uid) FROM faces)";
    check(in_subquery, "first_value needs an ORDER BY");
}

/// The names of what the first pass has noted.
fn places(run: &RunContext) -> Vec<std::path::PathBuf> {
    let (mut found, mut dirs) = (Vec::new(), vec![run.out_dir.clone()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|ending| ending == "places") {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn mistakes_are_found_before_the_first_pass() {
    let by_column = |metric: &str| SubsetConfig {
        name: "it".into(),
        metric: Some(metric.into()),
        min_score: Some(0.0),
        ..SubsetConfig::default()
    };
    let by_list =
        SubsetConfig { name: "it".into(), uids: Some("absent.npy".into()), ..SubsetConfig::default() };
    let by_baseline =
        |table: &str| toml::from_str::<SubsetConfig>(&format!("name = \"it\"\n{table}")).unwrap();
    let assets = "[assets]\nlanguage_model = \"l\"\ncentroids = \"c\"\ntargets = [\"t\"]";
    let lists = "min_score = 0.5\n[assets]\ncaption_lists = \"lists.json\"";
    for (subset, expected) in [
        (by_column("clop"), "subset.0.metric: no column `clop`"),
        (by_where("clop > 1"), "subset.0.where: no column `clop`"),
        (by_list, "absent.npy"),
        (by_baseline(&format!("baseline = \"image_based\"\n{assets}")), "subset.0.baseline: "),
        (by_baseline(&format!("baseline = \"reward_quality_score\"\n{lists}")), "lists.json: "),
    ] {
        let (dir, run) = pool();
        oqvl_shard_io::write_atomic(&dir.path().join("lists.json"), b"{}").unwrap();
        let config = MixerConfig { subset: vec![subset], ..with_tables(dir.path()) };
        let message = Mixer::run(&config, &run).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert_eq!(places(&run), [] as [&Path; 0], "{expected}");
    }
    let (_dir, run) = pool();
    let images = crate::DecontaminateConfig { images: vec!["absent".into()], max_distance: 4 };
    let config = MixerConfig { decontaminate: Some(images), ..config() };
    let message = Mixer::run(&config, &run).unwrap_err().to_string();
    assert!(message.contains("absent") && places(&run).is_empty(), "{message}");
}

#[test]
fn a_field_that_few_samples_have_is_found_all_the_same() {
    let samples: Vec<TestSample> = (0..600)
        .map(|number| match number {
            100 => sample(number).with_field("early", 1),
            500 => sample(number).with_field("late", 1),
            _ => sample(number),
        })
        .collect();
    let select = |condition: &str| {
        let (_dir, run) = write_pool(&[&samples]);
        let subset = vec![by_where(condition)];
        let config = MixerConfig { select: Select::Union, samples_per_shard: 1000, subset, ..config() };
        let report = Mixer::run(&config, &run);
        (report.map(|it| it.tally.kept), places(&run).len())
    };
    assert_eq!(select("early = 1").0.unwrap(), 1);
    assert_eq!(select("late = 1").0.unwrap(), 1);
    // Only when all have been read is it certain that there is none.
    let (error, num_places) = select("never = 1");
    assert!(error.unwrap_err().to_string().contains("no column `never`"));
    assert_eq!(num_places, 1);
}

#[test]
fn baselines_see_the_scores_of_sidecars() {
    let with = |number: u32, score: f64| {
        sample(number).scored("image_text_matching_score", score).with_field("status", "success")
    };
    let samples = [with(1, 85.0), with(2, 84.0), with(3, f64::NAN), with(4, 99.5)];
    let select = |subset: &str| {
        let (_dir, run) = write_pool(&[&samples]);
        let subset: SubsetConfig = toml::from_str(&format!("name = \"it\"\n{subset}")).unwrap();
        let sidecar = vec![ScoreFiles { scores: "pool".into(), scorer: "test".into() }];
        let config = MixerConfig { select: Select::Union, sidecar, subset: vec![subset], ..config() };
        let _report = Mixer::run(&config, &run).unwrap();
        let selected = UidSubset::read(&run.out_dir.join("selected.npy")).unwrap();
        selected.iter().map(|uid| uid.halves().1).collect::<Vec<_>>()
    };
    let by = "baseline = \"llava_image_text_matching_score\"";
    assert_eq!(select(&format!("{by}\nmin_score = 85")), [1, 4]);
    assert_eq!(select(&format!("{by}\nfraction = 0.34")), [4]);
}
