//! The whole micro reproduction: its bounds, a second run, kill and resume, numbers of threads.
//!
//! Behind the feature `pipeline`, because it takes most of an hour's quarter; `cargo xtask test` turns it on.

use oqvl_tests::{Moments, Reproduce, differences, losses, outputs, scratch_dir};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

/// What the whole micro run may take on two idle CPU cores. A machine that is slow or busy is no fault of the code: there, the
/// bound is listed as not tested.
const MAX_SECONDS: f64 = 12.0 * 60.0;
/// What it may take on the slowest and busiest machine; more is a fault of the code.
const MAX_SECONDS_ANYWHERE: f64 = 3.0 * MAX_SECONDS;
/// What it may take of memory anywhere.
const MAX_PEAK_RSS_BYTES: f64 = 3.0 * 1024.0 * 1024.0 * 1024.0;
/// A second run does nothing and says so within this.
const MAX_IDLE: Duration = Duration::from_secs(5);

/// What data-fetch makes of each fault of the micro world: its own reason, or the image all the same.
const FATES: [(&str, Option<&str>); 13] = [
    ("duplicate-content", None),
    ("gone", Some("gone")),
    ("hanging", Some("timeout")),
    ("huge-dimensions", Some("image-too-large")),
    ("not-an-image", Some("unknown-format")),
    ("not-found", Some("not-found")),
    ("opt-out", Some("opted-out")),
    ("redirect-loop", Some("redirect-loop")),
    ("server-error-then-fine", None),
    ("slow", None),
    ("tiny", Some("image-too-small")),
    ("truncated", Some("truncated-body")),
    ("wrong-content-type", None),
];

/// `report.json` of a work directory.
struct Report(Value);

impl Report {
    fn read(work_dir: &Path) -> Self {
        let path = work_dir.join("report.json");
        let bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        Self(serde_json::from_slice(&bytes).expect("report.json is JSON"))
    }

    fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or_else(|| panic!("report.json has nothing at {pointer}"))
    }

    fn number(&self, pointer: &str) -> f64 {
        self.at(pointer).as_f64().unwrap_or_else(|| panic!("{pointer} is {}, not a number", self.at(pointer)))
    }

    fn at_least(&self, pointer: &str, bound: f64) {
        assert!(self.number(pointer) >= bound, "{pointer} is {}, below {bound}", self.number(pointer));
    }

    fn at_most(&self, pointer: &str, bound: f64) {
        assert!(self.number(pointer) <= bound, "{pointer} is {}, above {bound}", self.number(pointer));
    }

    /// Counts by name below `pointer`.
    fn counts(&self, pointer: &str) -> BTreeMap<String, u64> {
        serde_json::from_value(self.at(pointer).clone()).unwrap_or_else(|error| panic!("{pointer}: {error}"))
    }
}

#[test]
fn the_micro_reproduction_keeps_its_bounds_and_a_second_run_does_nothing() {
    let run = Reproduce::micro(scratch_dir("micro"));
    let _ = run.finish_in_the_open();
    let report = Report::read(run.work_dir());

    report.at_most("/seconds", MAX_SECONDS_ANYWHERE);
    report.at_most("/last_run_seconds", MAX_SECONDS_ANYWHERE);
    let seconds = report.number("/seconds");
    if seconds > MAX_SECONDS {
        eprintln!("skipped: the bound of {MAX_SECONDS} s on the micro run, which took {seconds:.0} s here");
    }
    report.at_most("/peak_rss_bytes", MAX_PEAK_RSS_BYTES);
    report.at_least("/filters/clip_auc", 0.90);
    report.at_least("/filters/mlm_precision", 0.90);
    report.at_least("/filters/mlm_recall", 0.90);
    report.at_least("/packing/efficiency", 0.97);
    report.at_most("/eval/multiple_choice_blank", 0.40);
    report.at_least("/eval/multiple_choice", 0.70);
    report.at_least("/eval/yes_no", 0.80);
    every_stage_has_its_cost(&report);
    every_sample_is_kept_or_rejected(&report);
    every_fault_has_its_own_reason(&report);

    let before = modification_times(run.work_dir());
    let second = run.finish().succeeded();
    assert!(second.elapsed < MAX_IDLE, "the second run took {:?}\n{}", second.elapsed, second.stdout);
    assert!(second.stdout.contains("everything is up to date"), "{}", second.stdout);
    let after = modification_times(run.work_dir());
    let touched: Vec<_> = after.iter().filter(|(path, time)| before.get(*path) != Some(time)).collect();
    assert!(touched.is_empty(), "the second run wrote {touched:?}");
}

fn every_stage_has_its_cost(report: &Report) {
    let stages = report.at("/stages").as_array().expect("stages is a list");
    assert_eq!(stages.len(), 10, "{stages:?}");
    for (index, stage) in stages.iter().enumerate() {
        assert!(stage["name"].is_string() && stage["skipped"] == Value::Bool(false), "{stage}");
        report.at_least(&format!("/stages/{index}/seconds"), 0.0);
        report.at_least(&format!("/stages/{index}/peak_rss_bytes"), 1.0);
    }
}

fn every_sample_is_kept_or_rejected(report: &Report) {
    let mut stages: Vec<String> =
        report.at("/counts").as_object().expect("counts by stage").keys().cloned().collect();
    stages.retain(|stage| !stage.is_empty());
    assert!(stages.contains(&"data-fetch".to_owned()), "{stages:?}");
    let places = stages.iter().map(|stage| format!("/counts/{stage}")).chain(["/fetch".to_owned()]);
    for place in places {
        let rejected: u64 = report.counts(&format!("{place}/rejected")).values().sum();
        let (seen, kept) = (report.number(&format!("{place}/seen")), report.number(&format!("{place}/kept")));
        assert_eq!(seen, kept + rejected as f64, "{place}");
    }
}

fn every_fault_has_its_own_reason(report: &Report) {
    let reasons: BTreeSet<_> = FATES.iter().filter_map(|(_, reason)| *reason).collect();
    assert_eq!(
        reasons.len(),
        FATES.iter().filter(|(_, reason)| reason.is_some()).count(),
        "reasons are shared"
    );
    for (fault, reason) in FATES {
        let place = format!("/faults/{fault}");
        let (seen, kept) = (report.number(&format!("{place}/seen")), report.number(&format!("{place}/kept")));
        let rejected = report.counts(&format!("{place}/rejected"));
        assert!(seen > 0.0, "the world has no {fault}");
        match reason {
            None => assert_eq!((kept, rejected.len()), (seen, 0), "{fault}: {rejected:?}"),
            Some(reason) => {
                let expected = BTreeMap::from([(reason.to_owned(), seen as u64)]);
                assert_eq!((kept, &rejected), (0.0, &expected), "{fault}");
                // No other URL is lost for the same reason.
                assert_eq!(report.number(&format!("/fetch/rejected/{reason}")), seen, "{reason}");
            }
        }
    }
    assert_eq!(report.at("/faults/none/rejected"), &serde_json::json!({}), "URLs without a fault were lost");
}

/// When each file of a work directory was written last; the lock is opened by every run.
fn modification_times(work_dir: &Path) -> BTreeMap<PathBuf, SystemTime> {
    let mut times = BTreeMap::new();
    let mut pending = vec![work_dir.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a work directory can be listed") {
            let entry = entry.expect("a work directory can be listed");
            let hidden = entry.file_name().to_string_lossy().starts_with('.');
            if entry.path().is_dir() {
                pending.push(entry.path());
            } else if !hidden {
                let modified =
                    entry.metadata().and_then(|metadata| metadata.modified()).expect("a file has a time");
                times.insert(entry.path(), modified);
            }
        }
    }
    times
}

/// The micro reproduction at a size that is run several times: every stage, few samples, few steps. Every stage that
/// can resume within a model or a shard saves often enough to do so.
const TINY: [&str; 20] = [
    "micro-world.num_urls=600",
    "micro-world.num_siglip_pairs=200",
    "micro-world.num_mlm_filter_pairs=200",
    "micro-world.num_text_documents=400",
    "micro-world.num_sft_conversations=160",
    "micro-world.num_multiple_choice=24",
    "micro-world.num_yes_no=24",
    "micro-world.num_open_questions=12",
    "data-fetch.number_sample_per_shard=100",
    "mixer.samples_per_shard=100",
    "bootstrap.siglip.training.num_steps=12",
    "bootstrap.siglip.training.save_every_steps=4",
    "bootstrap.language_model.training.num_steps=12",
    "bootstrap.language_model.training.save_every_steps=4",
    "bootstrap.mlm_filter.training.num_steps=12",
    "bootstrap.mlm_filter.training.save_every_steps=4",
    "trainer.training.num_steps=12",
    "trainer.training.save_every_steps=4",
    "sft.training.num_steps=12",
    "sft.training.save_every_steps=4",
];

fn tiny(name: &str, threads: usize) -> Reproduce {
    Reproduce::micro(scratch_dir(name)).set_all(&TINY).set(&format!("threads={threads}"))
}

/// A tiny run with two threads that nobody disturbed.
fn undisturbed() -> &'static Reproduce {
    static RUN: OnceLock<Reproduce> = OnceLock::new();
    RUN.get_or_init(|| {
        let run = tiny("undisturbed", 2);
        let _ = run.finish_in_the_open();
        run
    })
}

fn assert_same_results(left: &Path, right: &Path) {
    for stage in ["trainer", "sft"] {
        let losses = (losses(left, stage), losses(right, stage));
        assert!(!losses.0.is_empty(), "{stage} took no step");
        assert_eq!(losses.0, losses.1, "losses of {stage}");
    }
    let (left, right) = (outputs(left), outputs(right));
    for kind in [".tar", ".parquet", ".npy", ".safetensors"] {
        assert!(left.keys().any(|path| path.ends_with(kind)), "no {kind} file to compare");
    }
    assert_eq!(differences(&left, &right), Vec::<String>::new());
}

/// Random moments of the undisturbed run, in order: the stage at work then, and for how long it had been.
fn random_moments(undisturbed: &Path, count: usize) -> Vec<(String, Duration)> {
    let stages = Report::read(undisturbed).at("/stages").clone();
    let stages: Vec<(String, f64)> = stages
        .as_array()
        .expect("stages is a list")
        .iter()
        .map(|stage| {
            (stage["name"].as_str().expect("a name").to_owned(), stage["seconds"].as_f64().expect("seconds"))
        })
        .collect();
    let total = Duration::from_secs_f64(stages.iter().map(|(_, seconds)| seconds).sum());
    let mut random = Moments::seeded(7);
    let mut moments: Vec<Duration> = (0..count).map(|_| random.between(Duration::ZERO, total)).collect();
    moments.sort();
    moments.into_iter().map(|moment| locate(&stages, moment)).collect()
}

fn locate(stages: &[(String, f64)], moment: Duration) -> (String, Duration) {
    let mut left = moment;
    for (name, seconds) in stages {
        let length = Duration::from_secs_f64(*seconds);
        if left <= length {
            return (name.clone(), left);
        }
        left -= length;
    }
    let (name, seconds) = stages.last().expect("there are stages");
    (name.clone(), Duration::from_secs_f64(*seconds))
}

#[test]
fn a_run_killed_at_five_moments_ends_like_an_undisturbed_one() {
    let undisturbed = undisturbed();
    let killed = tiny("killed", 2);
    for (stage, offset) in random_moments(undisturbed.work_dir(), 5) {
        eprintln!("killing the run when {stage} has been at work for {offset:?}");
        assert!(killed.kill_during(&stage, offset), "the run was over before it could be killed in {stage}");
    }
    let _ = killed.finish_in_the_open();
    assert_same_results(undisturbed.work_dir(), killed.work_dir());
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let two = undisturbed();
    let one = tiny("one-thread", 1);
    let _ = one.finish_in_the_open();
    assert_same_results(two.work_dir(), one.work_dir());
}

#[test]
fn another_seed_in_the_same_directory_makes_all_anew_but_what_was_downloaded() {
    let run = tiny("another-seed", 2).flag("--to", "data-fetch");
    let _ = run.finish().succeeded();
    let urls = || fs::read(run.work_dir().join("micro-world/urls.jsonl")).expect("a list of URLs");
    let before = urls();
    let other = run.clone().set("seed=8");
    let refused = other.finish();
    assert_ne!(refused.code, Some(0), "{}", refused.stderr);
    assert!(refused.stderr.contains("finished shards of another list"), "{}", refused.stderr);
    assert_ne!(urls(), before);
    let _ = other.set("data-fetch.incremental_mode=overwrite").finish().succeeded();
}
