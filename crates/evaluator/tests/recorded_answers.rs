//! Recorded answers of real models against the numbers official scorers gave for them.
//!
//! The files lie beside the repository, not in it: `../shared/fixtures/eval`, described by the README there (which
//! scorer at which commit produced which number). Where the folder is missing the tests say so and pass.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oqvl_evaluator::benchmarks::{MmbenchBenchmark, PopeBenchmark};
use oqvl_evaluator::extraction::{extract_letter, pope_official_yes_no, pope_reference_yes_no};
use oqvl_evaluator::metrics::{VqaRule, normalize_answer, soft_accuracy};
use oqvl_evaluator::{Benchmark, Extras};
use serde_json::Value;

/// The fixture folder; where there is none, a line on standard error says that the calling test is skipped and why.
fn fixtures() -> Option<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/eval");
    if folder.is_dir() {
        return Some(folder);
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("skipped: {test} needs recorded answers, and {} is not a directory", folder.display());
    None
}

fn json(path: PathBuf) -> Value {
    oqvl_shard_io::read_json(&path).unwrap()
}

fn json_lines(path: PathBuf) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string"))
}

/// Extras and accuracy of `answers`, one per question, in order.
fn score(benchmark: &dyn Benchmark, answers: &[String]) -> (f64, Extras) {
    assert_eq!(benchmark.questions().len(), answers.len());
    let answers: Vec<(usize, &str)> = answers.iter().map(String::as_str).enumerate().collect();
    let sum: f64 = answers.iter().map(|(idx, output)| benchmark.judge(*idx, output).credit).sum();
    (sum / answers.len() as f64, benchmark.extras(&answers))
}

fn assert_close(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-9, "{what}: {found}, expected {expected}");
}

#[test]
fn pope_splits_of_llava() {
    let Some(folder) = fixtures().map(|folder| folder.join("pope")) else { return };
    let expected = json(folder.join("llava15_13b.expected.json"));
    let all = json_lines(folder.join("llava15_13b.jsonl"));
    for split in ["adversarial", "popular", "random"] {
        let labels = folder.join(format!("coco_pope_{split}.json"));
        let benchmark = PopeBenchmark::load(&labels, &folder).unwrap();
        assert_eq!(benchmark.rejected(), []);
        // Answers of the three splits are told apart by an offset of their ids.
        let answers: HashMap<String, String> = all
            .iter()
            .filter(|line| line["category"] == split)
            .map(|line| {
                (
                    (line["question_id"].as_u64().unwrap() % 10_000_000).to_string(),
                    text(&line["text"]).to_owned(),
                )
            })
            .collect();
        let answers: Vec<String> = benchmark.questions().iter().map(|q| answers[&q.id].clone()).collect();
        let (accuracy, extras) = score(&benchmark, &answers);
        let official = &expected[split]["official"];
        assert_close(accuracy, official["accuracy"].as_f64().unwrap(), split);
        for metric in ["f1", "precision", "recall", "yes_ratio"] {
            assert_close(extras.metrics[metric], official[metric].as_f64().unwrap(), metric);
            assert_close(extras.other_rules["official"][metric], official[metric].as_f64().unwrap(), metric);
        }
        let reference = &expected[split]["open_qwen2vl_reference"];
        for metric in ["accuracy", "f1"] {
            assert_close(
                extras.other_rules["reference"][metric],
                reference[metric].as_f64().unwrap(),
                metric,
            );
        }
    }
}

#[test]
fn yes_no_rules_of_others() {
    let Some(folder) = fixtures() else { return };
    for case in json(folder.join("extraction/yes_no.json")).as_array().unwrap() {
        let answer = text(&case["text"]);
        assert_eq!(pope_official_yes_no(answer).as_str(), text(&case["pope_official"]), "{answer:?}");
        // The reference prints what it compares: only a bare yes or no is one.
        let reference = pope_reference_yes_no(answer).map(|found| found.as_str());
        let expected =
            Some(text(&case["open_qwen2vl_reference"])).filter(|found| matches!(*found, "yes" | "no"));
        assert_eq!(reference, expected, "{answer:?}");
    }
}

#[test]
fn mmbench_of_llava() {
    let Some(folder) = fixtures().map(|folder| folder.join("mmbench")) else { return };
    let expected = json(folder.join("llava15_13b_dev20230712.expected.json"));
    let rows = json_lines(folder.join("llava15_13b_dev20230712.jsonl"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mmbench.tsv");
    let mut writer = csv::WriterBuilder::new().delimiter(b'\t').from_path(&path).unwrap();
    let columns = ["index", "question", "A", "B", "C", "D", "answer"];
    writer.write_record(columns.iter().chain(&["image"])).unwrap();
    for row in &rows {
        let cell = |column: &&str| match &row[*column] {
            Value::String(text) => text.clone(),
            Value::Null => String::new(),
            other => other.to_string(),
        };
        // The recorded rows come without images; any base64 will do where nothing decodes it.
        writer.write_record(columns.iter().map(cell).chain(["A".repeat(80)])).unwrap();
    }
    writer.flush().unwrap();

    let benchmark = MmbenchBenchmark::load(&path).unwrap();
    assert_eq!(benchmark.rejected(), []);
    let answers: Vec<String> = rows.iter().map(|row| text(&row["prediction"]).to_owned()).collect();
    let (accuracy, extras) = score(&benchmark, &answers);
    let all_rows = &expected["vanilla_all_rows"];
    assert_close(accuracy, all_rows["hit"].as_f64().unwrap() / all_rows["n"].as_f64().unwrap(), "all rows");
    assert_close(
        extras.other_rules["circular"]["accuracy"],
        expected["circular"]["accuracy"].as_f64().unwrap(),
        "circular",
    );
    assert_eq!(extras.other_rules["circular"]["num"], 1176.0);
    let reference = expected["open_qwen2vl_reference_substring_all_rows"]["accuracy"].as_f64().unwrap();
    assert_close(extras.other_rules["reference"]["accuracy"], reference, "reference");
}

/// Where five published scorers read the same letter, so must we.
#[test]
fn letters_nobody_disputes() {
    let Some(folder) = fixtures() else { return };
    const SCORERS: [&str; 5] = [
        "mmmu_official",
        "open_qwen2vl_reference",
        "lmms_eval_mmmu",
        "lmms_eval_mcq_extract",
        "vlmevalkit_can_infer",
    ];
    let mut num_undisputed = 0;
    for group in json(folder.join("extraction/multiple_choice.json")).as_object().unwrap().values() {
        for case in group.as_array().unwrap() {
            let letters: Vec<Option<&str>> = SCORERS.iter().map(|scorer| case[*scorer].as_str()).collect();
            let Some(letter) = letters[0].filter(|letter| letter.len() == 1) else { continue };
            if letters.iter().any(|other| *other != Some(letter)) {
                continue;
            }
            num_undisputed += 1;
            let options: BTreeMap<String, String> = serde_json::from_value(case["choices"].clone()).unwrap();
            let options: Vec<(char, String)> =
                options.into_iter().map(|(letter, text)| (letter.chars().next().unwrap(), text)).collect();
            let found = extract_letter(text(&case["text"]), &options).map(|found| found.letter.to_string());
            assert_eq!(found.as_deref(), Some(letter), "{case}");
        }
    }
    assert!(num_undisputed > 40, "only {num_undisputed} cases were compared");
}

#[test]
fn vqa_normalization_of_the_official_script() {
    let Some(folder) = fixtures() else { return };
    let cases = json(folder.join("extraction/vqa_normalization.json"));
    for case in cases.as_array().unwrap() {
        let answer = text(&case["text"]);
        assert_eq!(normalize_answer(answer), text(&case["vqa_official"]), "{answer:?}");
        assert_eq!(normalize_answer(answer), text(&case["open_qwen2vl_vqav2"]), "{answer:?}");
    }
}

/// Predictions by question id, and per question its annotators, in file order.
fn vqa_files(ground_truth: PathBuf, predictions: PathBuf, answer: &str) -> Vec<(String, Vec<String>)> {
    let predictions: HashMap<u64, String> = json_lines(predictions)
        .iter()
        .map(|line| (line["question_id"].as_u64().unwrap(), text(&line[answer]).to_owned()))
        .collect();
    json_lines(ground_truth)
        .iter()
        .map(|line| {
            let id = line["question_id"].as_u64().unwrap();
            (predictions[&id].clone(), serde_json::from_value(line["answers"].clone()).unwrap())
        })
        .collect()
}

/// Mean in percent, rounded to two decimals as the official script prints it.
fn percent(rows: &[(String, Vec<String>)], rule: VqaRule) -> f64 {
    let sum: f64 =
        rows.iter().map(|(prediction, annotators)| soft_accuracy(prediction, annotators, rule)).sum();
    (sum / rows.len() as f64 * 10_000.0).round() / 100.0
}

#[test]
fn okvqa_of_pica() {
    let Some(folder) = fixtures().map(|folder| folder.join("okvqa")) else { return };
    let expected = json(folder.join("pica_vinvl.expected.json"));
    let rows = vqa_files(folder.join("val_gt.jsonl"), folder.join("pica_vinvl.jsonl"), "answer");
    assert_eq!(percent(&rows, VqaRule::Official), expected["vqa_official"].as_f64().unwrap());
    assert_eq!(percent(&rows, VqaRule::Reference), expected["open_qwen2vl_vqav2_scorer"].as_f64().unwrap());
    let per_sample = expected["per_sample_percent"].as_array().unwrap();
    assert_eq!(per_sample.len(), rows.len());
    for ((prediction, annotators), expected) in rows.iter().zip(per_sample) {
        let found = soft_accuracy(prediction, annotators, VqaRule::Official) * 100.0;
        assert!(
            (found - expected.as_f64().unwrap()).abs() < 0.01,
            "{prediction:?} among {annotators:?}: {found}"
        );
    }
}

/// Two models on TextVQA, scored as if it were VQAv2: this is where the rules fall apart, because answers keep their case.
#[test]
fn textvqa_in_vqa_format() {
    let Some(folder) = fixtures().map(|folder| folder.join("textvqa")) else { return };
    for model in ["llava15_13b_with_ocr", "qwen25vl_3b"] {
        let expected = &json(folder.join(format!("{model}.expected.json")))["same_data_in_vqa_format"];
        let predictions = folder.join(format!("{model}.jsonl"));
        let mut rows = vqa_files(folder.join("val_gt.jsonl"), predictions, "prediction");
        assert_eq!(percent(&rows, VqaRule::Official), expected["vqa_official"].as_f64().unwrap(), "{model}");
        assert_eq!(
            percent(&rows, VqaRule::Reference),
            expected["open_qwen2vl_vqav2_scorer"].as_f64().unwrap(),
            "{model}"
        );
        for (prediction, _) in &mut rows {
            *prediction = prediction.to_lowercase();
        }
        let lowercased = expected["vqa_official_on_lowercased_predictions"].as_f64().unwrap();
        assert_eq!(percent(&rows, VqaRule::Official), lowercased, "{model}");
    }
}
