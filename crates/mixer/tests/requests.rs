//! What the binary says, and with which exit code, where a request or its input is wrong.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use oqvl_shard_io::{Sample, SampleKey, ShardWriter, UidSubset, write_atomic};

/// Two shards of three samples each.
fn write_pool(dir: &Path) {
    std::fs::create_dir_all(dir.join("pool")).unwrap();
    for shard in 0..2 {
        let mut writer = ShardWriter::create(&dir.join(format!("pool/{shard:05}.tar"))).unwrap();
        for number in shard * 3..shard * 3 + 3 {
            let mut sample = Sample::new(SampleKey::new(format!("{number:09}")).unwrap());
            let json = serde_json::json!({
                "uid": format!("{number:032x}"), "width": 100 * number, "original_width": 400,
                "original_height": 300, "status": 200, "clip_b32_similarity_score": "high",
            });
            sample.push("jpg", vec![number; 30]);
            sample.push("json", serde_json::to_vec(&json).unwrap());
            sample.push("txt", format!("caption {number}").into_bytes());
            let _locations = writer.push(&sample).unwrap();
        }
        let _summary = writer.finish().unwrap();
    }
}

/// The exit code of a run with one subset, and what it said.
fn run(dir: &Path, subset: &str, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oqvl-mixer"));
    command.arg("--work-dir").arg(dir).args(args);
    for set in ["seed=7", "mixer.select=union", "mixer.dedup=[]", "mixer.samples_per_shard=2"] {
        command.args(["--set", set]);
    }
    if !args.iter().any(|arg| arg.contains("metadata_dir")) {
        command.args(["--set", "mixer.shards=\"pool\""]);
    }
    command.args(["--set", &format!("mixer.subset=[{{ name = \"it\", {subset} }}]")]);
    let output = command.output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_wrong_request_is_told_with_its_key_and_exit_code_2() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    for (subset, expected) in [
        ("where = \"width > \"", "mixer.subset.0.where: is no SQL: expected an expression, found the end"),
        ("where = \"widht > 3\"", "mixer.subset.0.where: no column `widht`"),
        (
            "where = 'caption = \"red\"'",
            "mixer.subset.0.where: no column `red`; text goes in single quotes: 'red'",
        ),
        ("where = \"caption ~ '(a'\"", "mixer.subset.0.where: `(a` is no regular expression: unclosed group"),
        ("sql = \"SELECT uid FROM nowhere\"", "mixer.subset.0.sql: no table `nowhere`; there is only `pool`"),
        (
            "metric = \"caption\", min_score = 3",
            "mixer.subset.0.metric: the column `caption` holds text (Utf8), and must hold numbers",
        ),
        (
            "baseline = \"clip_score\", arch = \"l14\", min_score = 0.3",
            "mixer.subset.0.baseline: it goes by a column `clip_l14_similarity_score`, and the pool has `shard`",
        ),
        (
            "baseline = \"clip_score\", arch = \"b32\", fraction = 0.3",
            "mixer.subset.0.baseline: it goes by the column `clip_b32_similarity_score`, which in the pool holds no \
             numbers but Utf8",
        ),
        (
            "baseline = \"basic_filter\", variant = \"open-qwen2vl\"",
            "mixer.subset.0.baseline: it goes by the column `status`, which in the pool holds no text but Int64",
        ),
    ] {
        for args in [&["--dry-run"][..], &[]] {
            let (code, said) = run(dir.path(), subset, args);
            assert_eq!(code, 2, "{subset}, {args:?}: {said}");
            assert!(said.contains(expected) && !said.contains(".index"), "{subset}, {args:?}: {said}");
            assert!(args.is_empty() || !dir.path().join("mixer").exists(), "a dry run writes nothing");
        }
        let _absent = std::fs::remove_dir_all(dir.path().join("mixer"));
    }
    std::fs::create_dir(dir.path().join("metadata")).unwrap();
    let args = ["--set", "mixer.metadata_dir=\"metadata\""];
    let (code, said) = run(dir.path(), "where = \"true\"", &args);
    assert!(code == 2 && said.contains("mixer.metadata_files: "), "{said}");
}

/// Every file the stage has finished.
fn finished(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir.join("mixer")).unwrap().map(|entry| entry.unwrap().path());
    let named = entries.map(|path| (path.file_name().unwrap().to_str().unwrap().to_owned(), path));
    let shown = named.filter(|(name, _)| !name.starts_with('.'));
    shown.map(|(name, path)| (name, std::fs::read(path).unwrap())).collect()
}

#[test]
fn a_wrong_request_leaves_what_is_finished() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let (code, said) = run(dir.path(), "where = \"width > 0\"", &[]);
    assert_eq!(code, 0, "{said}");
    let before = finished(dir.path());
    assert!(
        before.contains_key("manifest.json") && before.contains_key("00000002.tar"),
        "{:?}",
        before.keys()
    );
    for subset in [
        "where = \"widht > 3\"",
        "metric = \"caption\", min_score = 3",
        "baseline = \"clip_score\", arch = \"l14\", min_score = 0.3",
        "baseline = \"clip_score\", arch = \"b32\", min_score = 0.3",
        "baseline = \"llava_caption_text_quality_score\", min_score = 3",
    ] {
        let (code, said) = run(dir.path(), subset, &[]);
        assert_eq!(code, 2, "{subset}: {said}");
        assert!(finished(dir.path()) == before, "{subset}");
    }
}

#[test]
fn a_baseline_looks_for_the_files_it_reads_in_a_folder() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/baselines/fork");
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("metadata");
    std::fs::create_dir(&folder).unwrap();
    let copy = |from: &str, to: &str| {
        write_atomic(&folder.join(to), &std::fs::read(fixtures.join(from)).unwrap()).unwrap();
    };
    copy("00000000.parquet", "00000000.parquet");
    let llava = "baseline = \"llava_image_text_matching_score\", min_score = 85";
    let check = |subset: &str, expected: &str| {
        for dry in [&["--dry-run"][..], &[]] {
            let args = [dry, &["--set", "mixer.metadata_dir=\"metadata\""]].concat();
            let (code, said) = run(dir.path(), subset, &args);
            assert_eq!(code, if expected.is_empty() { 0 } else { 2 }, "{subset}, {dry:?}: {said}");
            assert!(said.contains(expected), "{subset}, {dry:?}: {said}");
            assert!(dry.is_empty() || !dir.path().join("mixer").exists(), "a dry run writes nothing");
        }
        let _absent = std::fs::remove_dir_all(dir.path().join("mixer"));
    };
    check(llava, "mixer.subset.0.baseline: ");
    check(llava, "no file here is called `[0-9]");
    check(
        "baseline = \"clip_score\", arch = \"l14\", min_score = 0.3",
        "metadata/00000000.parquet has `uid`",
    );
    copy("00000000.parquet", "00000000_image_text_matching.parquet");
    check(llava, "a column `image_text_matching_score`, and ");
    check(llava, "metadata/00000000_image_text_matching.parquet has `uid`");
    copy("00000000_image_text_matching.parquet", "00000000_image_text_matching.parquet");
    check(llava, "");
}

#[test]
fn a_column_that_the_first_samples_lack_may_come() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("pool")).unwrap();
    let mut writer = ShardWriter::create(&dir.path().join("pool/00000.tar")).unwrap();
    for number in 0..300 {
        let mut sample = Sample::new(SampleKey::new(format!("{number:09}")).unwrap());
        let mut json = serde_json::json!({"uid": format!("{number:032x}")});
        if number == 299 {
            json["clip_l14_similarity_score"] = 0.5.into();
        }
        sample.push("json", serde_json::to_vec(&json).unwrap());
        let _locations = writer.push(&sample).unwrap();
    }
    let _summary = writer.finish().unwrap();
    let (code, said) = run(dir.path(), "baseline = \"clip_score\", arch = \"l14\", min_score = 0.3", &[]);
    assert_eq!((code, said.matches("WARN").count()), (0, 1), "{said}");
    assert!(said.contains("the first samples do not have it"), "{said}");
    let selected = UidSubset::read(&dir.path().join("mixer/selected.npy")).unwrap();
    assert_eq!(selected.iter().collect::<Vec<_>>(), [oqvl_shard_io::Uid::from_halves(0, 299)]);
}

#[test]
fn a_share_says_what_is_its_own() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let (code, said) = run(dir.path(), "where = \"width > 0\"", &["--shards", "0..1"]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("this share has 1 of 3 output shards, with 2 of 5 samples"), "{said}");
    let report = std::fs::read(dir.path().join("mixer/report.0-1.json")).unwrap();
    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
    assert_eq!(report["share"], serde_json::json!({"output_shards": 1, "samples": 2}));
    assert_eq!((&report["kept"], &report["output_shards"]), (&5.into(), &3.into()));
    let (code, said) = run(dir.path(), "where = \"width > 0\"", &["--shards", "7..9"]);
    assert_eq!((code, said.matches("WARN").count()), (0, 1), "{said}");
    assert!(said.contains("--shards 7..9 names no shard at all: there are 3"), "{said}");
}

#[test]
fn what_is_odd_about_an_input_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    write_atomic(&dir.path().join("pool/00001.parquet"), b"no parquet").unwrap();
    let (code, said) = run(dir.path(), "where = \"width > 0\"", &[]);
    assert_eq!((code, said.matches("WARN").count()), (0, 1), "{said}");
    assert!(said.contains("00001.parquet"), "{said}");

    std::fs::remove_file(dir.path().join("pool/00001.parquet")).unwrap();
    let listed: UidSubset =
        [1, 77, 78].map(|low| oqvl_shard_io::Uid::from_halves(0, low)).into_iter().collect();
    listed.write(&dir.path().join("list.npy")).unwrap();
    let (code, said) = run(dir.path(), "uids = \"list.npy\"", &[]);
    assert_eq!(code, 0, "{said}");
    let warning = "WARN 2 uids or keys of subset `it` are those of no sample of the pool";
    assert!(said.contains(warning), "{said}");
}

#[test]
fn a_report_that_was_removed_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let path = dir.path().join("mixer/report.json");
    let said = || run(dir.path(), "where = \"width > 0\"", &[]).1;
    let first = said();
    let report = std::fs::read(&path).unwrap_or_else(|_| panic!("{first}"));
    std::fs::remove_file(&path).unwrap();
    let second = said();
    assert!(second.contains("up to date"), "{second}");
    assert_eq!(std::fs::read(&path).unwrap(), report);
}
