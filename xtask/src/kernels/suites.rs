//! The tests of the kernels' crate and of the emulation, run as the programs that cargo has built of them.

use crate::{cargo, test};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Packages with the tests.
pub(super) const KERNELS: &str = "oqvl-kernels";
pub(super) const EMULATION: &str = "oqvl-emulation";
pub(super) const WORKED_EXAMPLE: &str = "oqvl-training-step";
/// Where they are.
const PACKAGES: [(&str, &str); 3] =
    [(KERNELS, "crates/kernels"), (EMULATION, "tests/emulation"), (WORKED_EXAMPLE, "tests/training-step")];

/// A program full of tests.
#[derive(Debug)]
pub(super) struct Program {
    package: &'static str,
    /// The library's or the test file's name.
    target: String,
    path: PathBuf,
}

/// How a test ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    Passed,
    Failed,
    /// It could not be run here.
    Skipped(String),
}

/// One test that was run.
#[derive(Debug)]
pub(super) struct Test {
    package: &'static str,
    /// `<target>::<path>`.
    name: String,
    outcome: Outcome,
}

/// How the tests of one operation went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Tally {
    pub(super) passed: usize,
    pub(super) failed: usize,
    pub(super) skipped: usize,
}

/// Builds the test programs of these packages, with the features that all other tests have.
pub(super) fn build() -> anyhow::Result<Vec<Program>> {
    let args =
        ["test", "--release", "--workspace", "--no-run", "--message-format", "json-render-diagnostics"];
    let mut command = cargo::command(&args);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().expect("piped just above");
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        programs.extend(program(&line.context("cannot read what cargo says")?));
    }
    let status = child.wait().context("cannot wait for cargo")?;
    anyhow::ensure!(status.success(), "the tests do not build");
    Ok(programs)
}

/// The test program that a message of cargo is about.
fn program(line: &str) -> Option<Program> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        package_id: String,
        target: Target,
        profile: Profile,
        executable: Option<PathBuf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
    }
    #[derive(Deserialize)]
    struct Profile {
        test: bool,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    if message.reason != "compiler-artifact" || !message.profile.test {
        return None;
    }
    let is_of = |package: &&str| message.package_id.contains(&format!("#{package}@"));
    let package = PACKAGES.map(|(package, _)| package).into_iter().find(is_of)?;
    Some(Program { package, target: message.target.name, path: message.executable? })
}

/// Runs the programs of a package, with those tests alone whose names contain one of `filters`, all if there is none.
pub(super) fn run(
    programs: &[Program],
    package: &'static str,
    filters: &[&str],
    environment: &[(&str, String)],
) -> anyhow::Result<Vec<Test>> {
    let mut tests = Vec::new();
    let (_, folder) = PACKAGES.iter().find(|(name, _)| *name == package).context("no such package")?;
    for program in programs.iter().filter(|program| program.package == package) {
        let mut command = Command::new(&program.path);
        command
            .args(filters)
            .arg("--show-output")
            .envs(environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(cargo::workspace_root().join(folder)).env("RUST_BACKTRACE", "0");
        command.env("CARGO_MANIFEST_DIR", cargo::workspace_root().join(folder));
        let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("cannot start {}", program.path.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            println!("{text}");
        }
        let found = parse(&text);
        let all_ended = text.lines().any(|line| line.starts_with("test result:"));
        anyhow::ensure!(all_ended, "{} ended early ({})", program.path.display(), output.status);
        tests.extend(found.into_iter().map(|(name, outcome)| Test {
            package,
            name: format!("{}::{name}", program.target),
            outcome,
        }));
    }
    Ok(tests)
}

/// Every test that the output of a test program names, and how it ended.
fn parse(text: &str) -> BTreeMap<String, Outcome> {
    let mut outcomes = BTreeMap::new();
    let mut speaker = None;
    for line in text.lines() {
        let ended = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... "));
        if let Some((name, word)) = ended {
            let outcome = if word == "ok" { Outcome::Passed } else { Outcome::Failed };
            outcomes.insert(name.trim_end_matches(" - should panic").to_owned(), outcome);
        } else if let Some(name) =
            line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----"))
        {
            speaker = Some(name.to_owned());
        } else if let (Some(name), Some((_, why))) = (&speaker, line.split_once(test::SKIPPED)) {
            let outcome = outcomes.get_mut(name);
            if let Some(outcome) = outcome.filter(|outcome| **outcome == Outcome::Passed) {
                *outcome = Outcome::Skipped(why.trim().to_owned());
            }
        }
    }
    outcomes
}

/// How the tests of an operation went: those in a program or a module of its name.
pub(super) fn tally(tests: &[Test], op: &str) -> Tally {
    let mut tally = Tally::default();
    for test in tests.iter().filter(|test| test.name.split("::").any(|part| part == op)) {
        match test.outcome {
            Outcome::Passed => tally.passed += 1,
            Outcome::Failed => tally.failed += 1,
            Outcome::Skipped(_) => tally.skipped += 1,
        }
    }
    tally
}

/// Names of the tests that failed.
pub(super) fn failures(tests: &[Test]) -> impl Iterator<Item = String> + '_ {
    let failed = tests.iter().filter(|test| test.outcome == Outcome::Failed);
    failed.map(|test| format!("{} of {}", test.name, test.package))
}

/// Why tests were skipped, each reason once.
pub(super) fn skips(tests: &[Test]) -> Vec<String> {
    let mut whys: Vec<String> = tests
        .iter()
        .filter_map(|test| match &test.outcome {
            Outcome::Skipped(why) => Some(why.clone()),
            Outcome::Passed | Outcome::Failed => None,
        })
        .collect();
    whys.sort();
    whys.dedup();
    whys
}

/// What a test program needs in its environment to run kernels under the address sanitizer; `None` without GCC's.
pub(super) fn address_environment() -> Option<Vec<(&'static str, String)>> {
    let output = Command::new("g++").arg("-print-file-name=libasan.so").stdin(Stdio::null()).output().ok()?;
    let library = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    // A name without a directory is the answer for what is not there.
    let is_there = output.status.success() && Path::new(&library).is_absolute();
    is_there.then(|| vec![("LD_PRELOAD", library), ("ASAN_OPTIONS", "detect_leaks=0".to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_tests_ended_is_in_the_output() {
        let output = "running 3 tests\ntest pool::a ... ok\ntest pool::b ... FAILED\ntest gemm::c ... ok\n\
                      test pool_projector::d ... ok\n\n\
                      successes:\n\n---- gemm::c stdout ----\nskipped: no compiler\n\n\
                      failures:\n\n---- pool::b stdout ----\nskipped: not what it failed of\n\n\
                      test result: FAILED. 2 passed; 1 failed;";
        let tests: Vec<Test> = parse(output)
            .into_iter()
            .map(|(name, outcome)| Test { package: KERNELS, name, outcome })
            .collect();
        assert_eq!(tally(&tests, "pool"), Tally { passed: 1, failed: 1, skipped: 0 });
        assert_eq!(tally(&tests, "gemm"), Tally { passed: 0, failed: 0, skipped: 1 });
        assert_eq!(failures(&tests).collect::<Vec<_>>(), ["pool::b of oqvl-kernels"]);
        assert_eq!(skips(&tests), ["no compiler"]);
    }

    #[test]
    fn a_test_program_is_in_a_message_of_cargo() {
        let message = |package: &str, test: bool| {
            format!(
                r#"{{"reason":"compiler-artifact","package_id":"path+file:///c#{package}@0.1.0","target":{{"name":"attention"}},"profile":{{"test":{test}}},"executable":"/t/x"}}"#
            )
        };
        let found = program(&message(EMULATION, true)).unwrap();
        assert_eq!((found.package, found.target.as_str()), (EMULATION, "attention"));
        assert!(program(&message(EMULATION, false)).is_none());
        assert!(program(&message("oqvl-model", true)).is_none());
    }
}
