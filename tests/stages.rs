//! Every stage through its binary: flags, config, and what it says when the request is wrong.

use oqvl_tests::{Reproduce, STAGES, run_stage, scratch_dir, terminate_stage};

const CONFIG: &str = "configs/micro.toml";

/// A world that is drawn in a moment.
const SMALL_WORLD: [&str; 16] = [
    "--set",
    "micro-world.num_urls=64",
    "--set",
    "micro-world.num_siglip_pairs=8",
    "--set",
    "micro-world.num_mlm_filter_pairs=40",
    "--set",
    "micro-world.num_text_documents=8",
    "--set",
    "micro-world.num_sft_conversations=8",
    "--set",
    "micro-world.num_multiple_choice=8",
    "--set",
    "micro-world.num_yes_no=8",
    "--set",
    "micro-world.num_open_questions=8",
];

/// The stage refuses with exit code 2 and one sentence that contains `expected`.
fn check_refusal(stage: &str, args: &[&str], expected: &str) {
    let run = run_stage(stage, args);
    assert_eq!(run.code, Some(2), "{stage} {args:?}: {}", run.stderr);
    assert!(run.stderr.contains(expected), "{stage} {args:?} should name `{expected}`: {}", run.stderr);
    assert_eq!(run.stdout, "", "{stage} {args:?}");
}

#[test]
fn a_slip_in_a_flag_is_refused() {
    for stage in STAGES {
        check_refusal(stage, &["--confg", CONFIG], "--confg");
    }
}

#[test]
fn a_slip_in_a_key_is_refused_in_one_sentence() {
    let work_dir = scratch_dir("slip-in-a-key");
    let work_dir = work_dir.to_str().expect("the build directory has a plain name");
    for stage in STAGES {
        let set = format!("{stage}.no_such_key=1");
        let args = ["--config", CONFIG, "--work-dir", work_dir, "--set", &set];
        check_refusal(stage, &args, "no_such_key");
        let run = run_stage(stage, &args);
        assert_eq!(run.stderr.trim_end().lines().count(), 1, "{stage}: {}", run.stderr);
    }
    let left = std::fs::read_dir(work_dir).expect("it was created").count();
    assert_eq!(left, 0, "a refused request leaves nothing behind");
}

#[test]
fn a_config_without_the_stage_is_refused() {
    for stage in STAGES {
        check_refusal(stage, &["--set", "seed=1"], &format!("[{stage}]"));
    }
}

#[test]
fn the_shown_config_is_complete_and_shows_itself() {
    let scratch = scratch_dir("show-config");
    for stage in STAGES {
        let shown = run_stage(stage, &["--config", CONFIG, "--show-config"]).succeeded().stdout;
        let table: toml::Table =
            shown.parse().unwrap_or_else(|error| panic!("{stage} shows no TOML: {error}\n{shown}"));
        assert_eq!(table.keys().collect::<Vec<_>>(), [stage], "{shown}");
        let file = scratch.join(format!("{stage}.toml"));
        std::io::Write::write_all(&mut std::fs::File::create(&file).expect("scratch"), shown.as_bytes())
            .expect("scratch");
        let again = run_stage(stage, &["--config", file.to_str().expect("plain"), "--show-config"])
            .succeeded()
            .stdout;
        assert_eq!(shown, again, "{stage}");
    }
}

#[test]
fn stages_that_run_as_one_process_refuse_a_share() {
    for stage in ["micro-world", "bootstrap", "trainer", "sft", "report"] {
        check_refusal(stage, &["--config", CONFIG, "--shards", "0..1", "--dry-run"], "--shards");
    }
}

#[test]
fn what_a_run_left_that_was_killed_at_its_start_is_taken_over() {
    let work_dir = scratch_dir("killed-at-start");
    let out_dir = work_dir.join("micro-world");
    std::fs::create_dir_all(&out_dir).expect("scratch");
    oqvl_shard_io::write_atomic(&out_dir.join(".tmp-fingerprint"), b"{").expect("scratch");
    let work_dir = work_dir.to_str().expect("the build directory has a plain name");
    let mut args = vec!["--config", CONFIG, "--work-dir", work_dir];
    args.extend(SMALL_WORLD);
    let _ = run_stage("micro-world", &args).succeeded();

    // A directory with somebody's files is another matter.
    std::fs::remove_file(out_dir.join("fingerprint.json")).expect("scratch");
    std::fs::remove_file(out_dir.join("manifest.json")).expect("scratch");
    check_refusal("micro-world", &args, "was not written by stage");
    args.push("--dry-run");
    check_refusal("micro-world", &args, "was not written by stage");
    assert!(out_dir.join("urls.jsonl").exists());
}

#[test]
fn a_file_of_somebody_among_finished_output_stops_what_would_remove_it() {
    let work_dir = scratch_dir("foreign-file");
    let out_dir = work_dir.join("micro-world");
    let work_dir = work_dir.to_str().expect("the build directory has a plain name");
    let mut args = vec!["--config", CONFIG, "--work-dir", work_dir];
    args.extend(SMALL_WORLD);
    let _ = run_stage("micro-world", &args).succeeded();
    let notes = out_dir.join("NOTES.txt");
    oqvl_shard_io::write_atomic(&notes, b"mine").expect("scratch");
    // Nothing to do, so nothing to remove.
    let _ = run_stage("micro-world", &args).succeeded();
    args.extend(["--set", "seed=8"]);
    check_refusal("micro-world", &args, "NOTES.txt was not written by stage");
    std::fs::remove_file(&notes).expect("scratch");
    let again = run_stage("micro-world", &args).succeeded();
    assert!(again.stderr.contains("is made anew"), "{}", again.stderr);
    // Nor does what a killed run left go without a word.
    std::fs::remove_file(out_dir.join("manifest.json")).expect("scratch");
    args.extend(["--set", "seed=9"]);
    let again = run_stage("micro-world", &args).succeeded();
    assert!(again.stderr.contains("is made anew"), "{}", again.stderr);
}

#[test]
fn a_damaged_manifest_or_output_is_made_again_and_a_damaged_stamp_is_named() {
    let work_dir = scratch_dir("damaged");
    let out_dir = work_dir.join("micro-world");
    let work_dir = work_dir.to_str().expect("the build directory has a plain name");
    let mut args = vec!["--config", CONFIG, "--work-dir", work_dir];
    args.extend(SMALL_WORLD);
    let damages: [(&str, &[u8]); 2] = [("manifest.json", b""), ("urls.jsonl", b"{}")];
    let _ = run_stage("micro-world", &args).succeeded();
    let urls = std::fs::read(out_dir.join("urls.jsonl")).expect("urls");
    for (file, bytes) in damages {
        oqvl_shard_io::write_atomic(&out_dir.join(file), bytes).expect("scratch");
        let _ = run_stage("micro-world", &args).succeeded();
        assert_eq!(std::fs::read(out_dir.join("urls.jsonl")).expect("urls"), urls, "{file}");
    }
    oqvl_shard_io::write_atomic(&out_dir.join("fingerprint.json"), b"garbage").expect("scratch");
    let run = run_stage("micro-world", &args);
    assert_eq!(run.code, Some(1), "{}", run.stderr);
    assert!(run.stderr.contains("is damaged: remove it"), "{}", run.stderr);
}

#[test]
fn a_shard_that_was_cut_is_made_again() {
    let work_dir = scratch_dir("cut-shard");
    let _ = oqvl_testkit::tiny_shard(
        &work_dir.join("pool"),
        "00000",
        &[("a", "one"), ("b", "two"), ("c", "three")],
    );
    let shard = work_dir.join("mixer/00000000.tar");
    let mut args = vec!["--work-dir", work_dir.to_str().expect("the build directory has a plain name")];
    for set in [
        "seed=7",
        "mixer.shards=pool",
        "mixer.select=all",
        "mixer.dedup=[\"uid\"]",
        "mixer.samples_per_shard=2",
    ] {
        args.extend(["--set", set]);
    }
    let _ = run_stage("mixer", &args).succeeded();
    let whole = std::fs::read(&shard).expect("a shard");
    oqvl_shard_io::write_atomic(&shard, &whole[..whole.len() / 2]).expect("scratch");
    let _ = run_stage("mixer", &args).succeeded();
    assert_eq!(std::fs::read(&shard).expect("a shard"), whole);
}

#[test]
fn a_stopped_stage_says_so_and_exits_with_130() {
    let work_dir = scratch_dir("stopped");
    let args = [
        "--config",
        CONFIG,
        "--work-dir",
        work_dir.to_str().expect("plain"),
        "--set",
        "micro-world.num_urls=400000",
    ];
    let run = terminate_stage("micro-world", &args, &work_dir.join("micro-world/fingerprint.json"));
    assert_eq!(run.code, Some(130), "{}", run.stderr);
    assert!(run.stderr.trim_end().ends_with("the same command continues from here"), "{}", run.stderr);
}

#[test]
fn the_runner_refuses_names_nobody_owns() {
    for (set, expected) in [
        ("pakcer.seq_len=1", "did you mean `packer`"),
        ("sead=1", "did you mean `seed`"),
        ("packer.no_such_key=1", "no_such_key"),
        ("nothing", "expected table.key=value"),
    ] {
        let run = Reproduce::micro(scratch_dir("runner-refuses")).set(set).finish();
        assert_eq!(run.code, Some(2), "{set}: {}", run.stderr);
        assert!(run.stderr.contains(expected), "{set}: {}", run.stderr);
    }
    let run = Reproduce::micro(scratch_dir("runner-refuses")).flag("--to", "trianer").finish();
    assert_eq!(run.code, Some(2));
    assert!(run.stderr.contains("did you mean `trainer`"), "{}", run.stderr);
}
