//! The stage with a script in place of the model: batches, logs, resuming.

use std::cell::RefCell;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oqvl_image_prep::{RgbImage, encode_png};
use oqvl_shard_io::write_atomic;
use oqvl_stage::Interrupted;

use super::*;

/// Answers by a function of the request, fails after `budget` batches, and remembers what it was asked.
struct Script {
    answer: fn(&Request) -> String,
    budget: usize,
    asked: RefCell<Vec<Vec<String>>>,
}

impl Script {
    fn new(answer: fn(&Request) -> String) -> Self {
        Self { answer, budget: usize::MAX, asked: RefCell::default() }
    }

    fn failing_after(self, budget: usize) -> Self {
        Self { budget, ..self }
    }

    fn num_batches(&self) -> usize {
        self.asked.borrow().len()
    }
}

impl Responder for Script {
    fn respond(&self, requests: &[Request]) -> Result<Vec<Outcome>, EvaluatorError> {
        if self.num_batches() == self.budget {
            return Err(Interrupted.into());
        }
        self.asked.borrow_mut().push(requests.iter().map(|request| request.prompt.clone()).collect());
        Ok(requests.iter().map(self.answer).map(Outcome::Answered).collect())
    }
}

/// Right on a bright image, wrong on a dark one, `C` on a blank one.
fn looks(request: &Request) -> String {
    match request.image.as_ref().map(|image| image.pixels()[0] > 100) {
        Some(true) => " A\n".to_owned(),
        Some(false) => "B".to_owned(),
        None => "C".to_owned(),
    }
}

fn png(gray: u8) -> Vec<u8> {
    // Noise keeps the file longer than the longest reference to another row's image.
    let pixels: Vec<u8> = (0..24 * 24 * 3).map(|idx: u32| gray.wrapping_add((idx * idx % 7) as u8)).collect();
    encode_png(&RgbImage::new(24, 24, pixels).unwrap())
}

/// Seven rows: bright, dark, broken, then bright to the end; the answer is always A.
fn write_world(work_dir: &Path) {
    let mut tsv = "index\tquestion\tA\tB\tC\tanswer\tcategory\timage\n".to_owned();
    for index in 0..7 {
        let image = match index {
            1 => STANDARD.encode(png(10)),
            2 => STANDARD.encode([b'x'; 60]),
            _ => STANDARD.encode(png(200)),
        };
        let category = if index < 3 { "early" } else { "late" };
        tsv += &format!("{index}\tquestion {index}?\tone\ttwo\tthree\tA\t{category}\t{image}\n");
    }
    write_atomic(&work_dir.join("choice.tsv"), tsv.as_bytes()).unwrap();
    std::fs::create_dir_all(work_dir.join("images")).unwrap();
    write_atomic(&work_dir.join("images/1.png"), &png(200)).unwrap();
    let questions = r#"{"questions": [{"question_id": 1, "image_id": 1, "question": "Which letter?"}]}"#;
    let annotations = r#"{"annotations": [{"question_id": 1, "answer_type": "other", "answers":
        [{"answer": "b"}, {"answer": "b"}, {"answer": "a"}, {"answer": "c"}]}]}"#;
    write_atomic(&work_dir.join("questions.json"), questions.as_bytes()).unwrap();
    write_atomic(&work_dir.join("annotations.json"), annotations.as_bytes()).unwrap();
}

fn config() -> EvaluatorConfig {
    serde_json::from_value(serde_json::json!({
        "model": "checkpoint", "prompt_style": "chat", "batch_size": 2, "max_new_tokens": 4,
        "benchmark": [
            {"name": "choice", "kind": "mmbench", "file": "choice.tsv"},
            {"name": "choice_blank", "kind": "mmbench", "file": "choice.tsv", "image": "blank"},
            {"name": "open", "kind": "vqa", "questions": "questions.json", "annotations": "annotations.json",
             "images": "images", "image_name": "{image_id}.png"},
        ],
    }))
    .unwrap()
}

fn evaluate(script: &Script, work_dir: &Path) -> Result<EvaluatorReport, EvaluatorError> {
    let run = RunContext::for_test::<Evaluator>(work_dir, 7).unwrap();
    run_with(&config(), script, "digest".to_owned(), &run)
}

fn outputs(work_dir: &Path) -> Vec<Vec<u8>> {
    let files = [
        "choice/predictions.jsonl",
        "choice_blank/predictions.jsonl",
        "open/predictions.jsonl",
        RESULTS_FILE,
    ];
    files.iter().map(|file| std::fs::read(work_dir.join("evaluator").join(file)).unwrap()).collect()
}

#[test]
fn whole_run() {
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    let script = Script::new(looks);
    let report = evaluate(&script, dir.path()).unwrap();
    assert_eq!((report.tally.seen, report.tally.kept), (15, 13));
    assert_eq!(report.tally.rejected.values().sum::<u64>(), 2);
    assert_eq!(report.tally.rejects[0].key, "choice/2");
    assert!(report.tally.rejects[0].reason.starts_with("image-"), "{:?}", report.tally.rejects);

    let choice = &report.results["choice"];
    assert_eq!((choice.overall.num, choice.num_rejected), (6, 1));
    assert!((choice.overall.accuracy - 5.0 / 6.0).abs() < 1e-12);
    assert_eq!(choice.breakdowns["by_category"]["early"].accuracy, 0.5);
    assert_eq!(choice.breakdowns["by_category"]["late"].num, 4);
    assert_eq!(report.results["choice_blank"].overall.accuracy, 0.0);
    assert_eq!(report.results["choice_blank"].overall.num, 6);

    let results: serde_json::Value =
        oqvl_shard_io::read_json(&dir.path().join("evaluator/results.json")).unwrap();
    assert_eq!(results["choice"]["num"], 6);
    assert_eq!(results["choice"]["ci95"].as_array().unwrap().len(), 2);
    assert_eq!(results["open"]["by_answer_type"]["other"]["num"], 1);
    // One of four annotators wrote "a", and each of the other three sees it: (0 + 3 * 1/3) / 4.
    assert_eq!(results["open"]["accuracy"], 0.25);

    let text = String::from_utf8(outputs(dir.path()).remove(0)).unwrap();
    let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let expected_prompt = "<image>\nquestion 0?\nA. one\nB. two\nC. three\n\
                           Answer with the option's letter from the given choices directly.";
    assert_eq!(first["prompt"], expected_prompt);
    assert_eq!((&first["output"], &first["gold"], &first["credit"]), (&"A".into(), &"A".into(), &1.0.into()));
}

#[test]
fn a_finished_run_asks_nothing_again() {
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    evaluate(&Script::new(looks), dir.path()).unwrap();
    let before = outputs(dir.path());
    let again = Script::new(looks);
    evaluate(&again, dir.path()).unwrap();
    assert_eq!(again.num_batches(), 0);
    assert_eq!(outputs(dir.path()), before);
}

/// Killed after any batch, or in the middle of writing a log: the same bytes in the end.
#[test]
fn resumed_runs_equal_undisturbed_ones() {
    let undisturbed = tempfile::tempdir().unwrap();
    write_world(undisturbed.path());
    let whole = Script::new(looks);
    let report = evaluate(&whole, undisturbed.path()).unwrap();
    let expected = outputs(undisturbed.path());

    for budget in 0..whole.num_batches() {
        let dir = tempfile::tempdir().unwrap();
        write_world(dir.path());
        let killed = evaluate(&Script::new(looks).failing_after(budget), dir.path()).unwrap_err();
        assert!(matches!(killed, EvaluatorError::Interrupted(_)));
        let rest = Script::new(looks);
        let resumed = evaluate(&rest, dir.path()).unwrap();
        assert_eq!(rest.num_batches(), whole.num_batches() - budget);
        assert_eq!(resumed.tally, report.tally);
        assert_eq!(outputs(dir.path()), expected);
    }

    let log = undisturbed.path().join("evaluator/choice/predictions.jsonl");
    let line_ends = (1..expected[0].len()).filter(|end| expected[0][end - 1] == b'\n');
    let around_line_ends = line_ends.flat_map(|end| [end - 1, end, end + 1]);
    // A prime step, so that cuts fall everywhere in a line; each cut costs a whole run.
    for num_bytes in around_line_ends.chain((0..expected[0].len()).step_by(97)) {
        write_atomic(&log, &expected[0][..num_bytes]).unwrap();
        let rest = Script::new(looks);
        evaluate(&rest, undisturbed.path()).unwrap();
        assert_eq!(outputs(undisturbed.path()), expected, "cut at byte {num_bytes}");
        for (asked, of_whole) in rest.asked.borrow().iter().rev().zip(whole.asked.borrow()[..4].iter().rev())
        {
            assert_eq!(asked, of_whole, "batches must be cut at the same places");
        }
    }
}

#[test]
fn a_log_of_another_benchmark_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    let log = dir.path().join("evaluator/choice/predictions.jsonl");
    std::fs::create_dir_all(log.parent().unwrap()).unwrap();
    let good = r#"{"id":"0","output":"A"}"#;
    for (first, problem) in [
        (r#"{"id":"77","output":"A"}"#, "question `77` is not in the benchmark"),
        (r#"{"id":"1"}"#, "neither `output` nor `rejected`"),
        ("{", "not a prediction"),
        (good, "answered a second time"),
    ] {
        write_atomic(&log, format!("{first}\n{good}\n").as_bytes()).unwrap();
        let error = evaluate(&Script::new(looks), dir.path()).unwrap_err();
        assert!(matches!(error, EvaluatorError::PredictionLog { .. }), "{error}");
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn a_benchmark_without_a_usable_row_fails_by_name() {
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    let header = "index\tquestion\tA\tB\tanswer\timage\n";
    write_atomic(&dir.path().join("choice.tsv"), header.as_bytes()).unwrap();
    let error = evaluate(&Script::new(looks), dir.path()).unwrap_err().to_string();
    assert!(error.contains("`choice`") && error.contains("empty file"), "{error}");
    write_atomic(&dir.path().join("choice.tsv"), format!("{header}1\tq\ta\tb\tA\t\n").as_bytes()).unwrap();
    let error = evaluate(&Script::new(looks), dir.path()).unwrap_err().to_string();
    assert!(error.contains("none of its 1 rows") && error.contains("image-missing"), "{error}");
}

#[test]
fn a_responder_must_answer_every_request() {
    struct Mute;
    impl Responder for Mute {
        fn respond(&self, _: &[Request]) -> Result<Vec<Outcome>, EvaluatorError> {
            Ok(Vec::new())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    let run = RunContext::for_test::<Evaluator>(dir.path(), 7).unwrap();
    let error = run_with(&config(), &Mute, String::new(), &run).unwrap_err();
    assert!(matches!(error, EvaluatorError::AnswerCount { expected: 2, found: 0 }));
}
