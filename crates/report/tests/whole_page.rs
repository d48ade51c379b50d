//! The stage on a small work directory: what the page says, and what it says when something is missing.

use oqvl_report::{Report, ReportConfig, RunReport};
use oqvl_shard_io::{Manifest, ScoreTable, Uid, UidSubset, write_atomic, write_json_atomic};
use oqvl_stage::{RunContext, Stage};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// A finished stage with one output file per name.
fn finish(work_dir: &Path, stage: &str, report: Value, outputs: &[&str]) {
    let out_dir = work_dir.join(stage);
    fs::create_dir_all(&out_dir).unwrap();
    let manifest = Manifest {
        stage: stage.to_owned(),
        version: "0.1.0".to_owned(),
        commit: "abc".to_owned(),
        fingerprint: String::new(),
        seed: 7,
        config: Value::Null,
        inputs: Default::default(),
        outputs: outputs.iter().map(|name| ((*name).to_owned(), String::new())).collect(),
        output_bytes: Default::default(),
        seconds: 1.5,
        peak_rss_bytes: 1 << 20,
        report,
    };
    manifest.write(&out_dir.join("manifest.json")).unwrap();
}

fn uid(number: u64) -> Uid {
    Uid::from_halves(1, number)
}

/// A work directory in which two URLs were fetched and one was gone.
fn small_world(work_dir: &Path) -> ReportConfig {
    finish(work_dir, "micro-world", json!({}), &["truth.jsonl"]);
    let truth = |number, pair: &str, fault: Value| {
        json!({"uid": uid(number).to_string(), "url": "http://a/", "pair": pair, "fault": fault, "scene": 1})
            .to_string()
    };
    let lines = [
        truth(0, "clean", Value::Null),
        truth(1, "mismatched", json!("slow")),
        truth(2, "clean", json!("gone")),
    ];
    write_atomic(&work_dir.join("micro-world/truth.jsonl"), lines.join("\n").as_bytes()).unwrap();

    let fetched = json!({"seen": 3, "kept": 2, "rejected": {"gone": 1}, "rejects": []});
    finish(work_dir, "data-fetch", fetched, &["00000.parquet", "00000.tar"]);
    write_fetch_table(&work_dir.join("data-fetch/00000.parquet"));

    finish(work_dir, "clip-filter", json!({"seen": 2, "kept": 2, "rejected": {}}), &["00000.clip.parquet"]);
    let scores = ScoreTable {
        scorer: "clip".to_owned(),
        keys: vec!["000000000".to_owned(), "000000001".to_owned()],
        uids: vec![Some(uid(0).to_string()), Some(uid(1).to_string())],
        metrics: vec![("clip_score".to_owned(), vec![Some(0.8), Some(0.1)])],
        ..ScoreTable::default()
    };
    scores.write(&work_dir.join("clip-filter/00000.clip.parquet")).unwrap();

    let subsets = json!({"subsets": [{"name": "mlm", "threshold": 85.0, "scored": 2, "missing_score": 0, "samples": 1}]});
    finish(work_dir, "mixer", subsets, &["mlm.npy"]);
    let subset: UidSubset = [uid(0)].into_iter().collect();
    subset.write(&work_dir.join("mixer/mlm.npy")).unwrap();

    let packing = json!({
        "num_packs": 4, "efficiency": 0.98, "algorithm": "ffd", "packs_by_images": [0, 1, 0, 8],
        "fill_histogram": {"bin_tokens": 64, "counts": [0, 0, 1, 3, 0, 0]},
    });
    finish(work_dir, "packer", packing, &[]);
    finish(work_dir, "trainer", json!({}), &["metrics.jsonl"]);
    let steps = "{\"step\":1,\"loss\":4.0,\"tokens\":9}\n{\"step\":2,\"loss\":2.0,\"tokens\":9}\n";
    write_atomic(&work_dir.join("trainer/metrics.jsonl"), steps.as_bytes()).unwrap();

    finish(work_dir, "evaluator", json!({}), &["results.json"]);
    let results = json!({
        "multiple_choice": {"accuracy": 0.75, "num": 4, "ci95": [0.3, 0.95],
                            "by_category": {"colour": {"accuracy": 1.0, "num": 2, "ci95": [0.4, 1.0]}}},
        "multiple_choice_blank": {"accuracy": 0.25, "num": 4, "ci95": [0.1, 0.7], "by_category": {}},
    });
    write_json_atomic(&work_dir.join("evaluator/results.json"), &results).unwrap();
    let stages = ["micro-world", "data-fetch", "clip-filter", "mixer", "packer", "trainer", "evaluator"];
    ReportConfig {
        stages: stages.map(str::to_owned).to_vec(),
        truth: Some("micro-world/truth.jsonl".into()),
        clip_subset: None,
        mlm_subset: Some("mixer/mlm.npy".into()),
        selected: None,
    }
}

/// The parquet of the one shard: two rows kept, the third gone.
fn write_fetch_table(path: &Path) {
    use arrow_array::{RecordBatch, StringArray};
    use arrow_schema::{DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;
    use std::sync::Arc;

    let schema = Arc::new(Schema::new(
        ["uid", "status", "error_message"].map(|name| Field::new(name, DataType::Utf8, true)).to_vec(),
    ));
    let uids = StringArray::from_iter((0..3).map(|number| Some(uid(number).to_string())));
    let statuses = StringArray::from(vec!["success", "success", "failed_to_download"]);
    let messages = StringArray::from(vec![None, None, Some("gone")]);
    let batch =
        RecordBatch::try_new(schema.clone(), vec![Arc::new(uids), Arc::new(statuses), Arc::new(messages)]);
    let mut writer = ArrowWriter::try_new(fs::File::create(path).unwrap(), schema, None).unwrap();
    writer.write(&batch.unwrap()).unwrap();
    writer.close().unwrap();
}

fn report(work_dir: &Path, config: &ReportConfig) -> RunReport {
    let run = RunContext::for_test::<Report>(work_dir, 7).unwrap();
    Report::run(config, &run).unwrap()
}

#[test]
fn the_json_has_the_promised_keys() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_world(dir.path());
    report(dir.path(), &config);
    let json: Value = oqvl_shard_io::read_json(&dir.path().join("report.json")).unwrap();
    for (pointer, expected) in [
        ("/seconds", json!(10.5)),
        ("/peak_rss_bytes", json!(1 << 20)),
        ("/fetch/seen", json!(3)),
        ("/fetch/kept", json!(2)),
        ("/fetch/rejected/gone", json!(1)),
        ("/faults/gone/rejected/gone", json!(1)),
        ("/faults/slow/kept", json!(1)),
        ("/filters/clip_auc", json!(1.0)),
        ("/filters/mlm_precision", json!(1.0)),
        ("/filters/mlm_recall", json!(1.0)),
        ("/packing/efficiency", json!(0.98)),
        ("/packing/fill_histogram/bin_tokens", json!(64)),
        ("/training/trainer/last_loss", json!(2.0)),
        ("/eval/multiple_choice", json!(0.75)),
        ("/eval/multiple_choice_blank", json!(0.25)),
        ("/stages/1/name", json!("data-fetch")),
        ("/stages/1/seconds", json!(1.5)),
        ("/stages/1/skipped", json!(false)),
    ] {
        assert_eq!(json.pointer(pointer), Some(&expected), "{pointer}");
    }
    assert!(json.get("last_run_seconds").is_none());
}

#[test]
fn the_page_has_every_section_and_whole_tables() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_world(dir.path());
    report(dir.path(), &config);
    let page = fs::read_to_string(dir.path().join("report.md")).unwrap();
    for part in
        ["## Cost", "## What was fetched", "| gone | 1 | 0 | gone 1 |", "## The filters against the truth"]
    {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    for part in [
        "| mlm | 85.000 | 1 |",
        "## Packing",
        "packs by tokens        128 ▃█ 192\npacks by images          1 ▁ █ 3\n",
        "## Training",
        "█▁",
        "### multiple choice by category",
        "## How to read the numbers",
    ] {
        assert!(page.contains(part), "{part} in\n{page}");
    }
    let columns = |line: &str| line.matches('|').count();
    for pair in page.lines().collect::<Vec<_>>().windows(2) {
        if pair.iter().all(|line| line.starts_with('|')) {
            assert_eq!(columns(pair[0]), columns(pair[1]), "{pair:?}");
        }
    }
}

#[test]
fn the_same_directory_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_world(dir.path());
    let files = ["report.json", "report.md"];
    let read = || files.map(|file| fs::read(dir.path().join(file)).unwrap());
    report(dir.path(), &config);
    let first = read();
    report(dir.path(), &config);
    assert_eq!(first, read());
}

#[test]
fn parts_that_are_not_in_the_run_are_not_on_the_page() {
    let dir = tempfile::tempdir().unwrap();
    small_world(dir.path());
    let config = ReportConfig {
        stages: vec!["mixer".into()],
        truth: None,
        clip_subset: None,
        mlm_subset: None,
        selected: None,
    };
    let report = report(dir.path(), &config);
    assert_eq!((report.fetch, report.packing, report.filters), (None, None, None));
    let page = fs::read_to_string(dir.path().join("report.md")).unwrap();
    assert!(!page.contains("## Packing") && !page.contains("## Evaluation"), "{page}");
}

#[test]
fn a_packer_that_does_not_tell_its_efficiency_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_world(dir.path());
    finish(dir.path(), "packer", json!({"num_packs": 4}), &[]);
    let run = RunContext::for_test::<Report>(dir.path(), 7).unwrap();
    let error = Report::run(&config, &run).unwrap_err().to_string();
    assert!(error.ends_with("packer/report.json has no number at `efficiency`"), "{error}");
}
