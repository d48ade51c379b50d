//! The baselines keep what the same rules keep in pandas, numpy, fastText and NLTK: `golden/baselines.py` wrote the pool
//! and the answers.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oqvl_mixer::{Mixer, MixerConfig, MixerReport};
use oqvl_shard_io::{UidSubset, read_json};
use oqvl_stage::{RunContext, Stage, StageConfig as _};

/// A baseline, and what it keeps of a folder.
#[derive(Debug, serde::Deserialize)]
struct Case {
    folder: String,
    /// The subset's table, `@` for the directory of the fixtures.
    subset: String,
    uids: Vec<String>,
    /// Uids at the threshold of a fraction, of which the rule keeps some.
    ties: Vec<String>,
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/baselines")
}

/// Runs the mixer on a folder of the fixtures; returns the uids it keeps.
fn run(folder: &str, subset: &str) -> Result<(MixerReport, BTreeSet<String>), String> {
    let at = fixtures().display().to_string();
    let subset = subset.replace('@', &at).replace("[assets]", "[subset.assets]");
    let text = format!(
        "metadata_dir = \"{at}/{folder}\"\nselect = \"union\"\ndedup = []\n[[subset]]\nname = \"it\"\n{subset}"
    );
    let config: MixerConfig = toml::from_str(&text).map_err(|error| error.to_string())?;
    config.validate().map_err(|error| error.to_string())?;
    let work_dir = tempfile::tempdir().unwrap();
    let run = RunContext::for_test::<Mixer>(work_dir.path(), 7).unwrap();
    let report = Mixer::run(&config, &run).map_err(|error| error.to_string())?;
    let list = UidSubset::read(&run.out_dir.join("selected.npy")).unwrap();
    Ok((report, list.iter().map(|uid| uid.to_string()).collect()))
}

#[test]
fn every_baseline_keeps_what_the_plain_rules_keep() {
    let cases: Vec<Case> = read_json(&fixtures().join("expected.json")).unwrap();
    assert!(cases.len() > 25);
    for case in cases {
        let (report, kept) =
            run(&case.folder, &case.subset).unwrap_or_else(|error| panic!("{error}: {case:?}"));
        let ties: BTreeSet<String> = case.ties.iter().cloned().collect();
        let expected: BTreeSet<String> = case.uids.iter().cloned().collect();
        let certain: BTreeSet<String> = kept.difference(&ties).cloned().collect();
        assert_eq!(certain, expected, "{}: {} of {}", case.subset, kept.len(), report.tally.seen);
        if !ties.is_empty() {
            let num_won = kept.intersection(&ties).count();
            assert!(num_won < ties.len(), "{}: all {num_won} ties", case.subset);
        }
        // Every file of the folder is the pool, and some name a uid several times.
        assert!(report.tally.kept >= kept.len() as u64);
    }
}

#[test]
fn wrong_assets_are_named() {
    let language = "language_model = \"@/language.bin\"";
    for (subset, expected) in [
        (format!("baseline = \"laion2b\"\n[assets]\n{language}"), "language.bin: its SHA-256 is"),
        ("baseline = \"laion2b\"\n[assets]\nlanguage_model = \"@/lid.bin\"".into(), "there is no such file"),
        ("baseline = \"clip_score\"\narch = \"l14\"\nmin_score = 0.1".into(), "clip_l14_similarity_score"),
        (
            "baseline = \"reward_quality_score\"\nmin_score = 0.1\n[assets]\ncaption_lists = \"@/expected.json\"".into(),
            "expected.json: ",
        ),
    ] {
        let error = run("fork", &subset).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}
