//! `cargo xtask test`: every test of the project, and a list of those that were skipped.

use crate::{bench, cargo, parity};
use anyhow::Context;
use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

/// What a test prints when something it needs is not there.
pub(crate) const SKIPPED: &str = "skipped: ";
/// Builds the pipeline tests too; they are behind a feature so that a plain `cargo test` takes minutes, not more.
pub(crate) const PIPELINE_FEATURE: &str = "oqvl-tests/pipeline";

/// Arguments of `cargo xtask test`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Leave out the pipeline tests, which run the whole micro reproduction and take most of the time
    #[arg(long)]
    no_pipeline: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let mut skipped = workspace()?;
    skipped.extend(parity::check()?);
    skipped.extend(peers()?);
    if args.no_pipeline {
        skipped.push("the pipeline tests (--no-pipeline)".to_owned());
    } else {
        skipped.extend(pipeline()?);
    }
    print_skipped(&skipped);
    Ok(())
}

/// Unit, property, golden, stage and doc tests. Returns what was skipped.
pub(crate) fn workspace() -> anyhow::Result<Vec<String>> {
    run_tests(&["test", "--release", "--workspace"], &["--show-output"])
}

/// The runs beside Python peers on tiny input: that they work and that both sides agree. Returns what was skipped.
pub(crate) fn peers() -> anyhow::Result<Vec<String>> {
    let skipped = bench::peers::smoke()?;
    Ok(skipped.into_iter().map(|why| format!("the runs beside Python peers: {why}")).collect())
}

/// The micro reproduction with its bounds, kill and resume, thread counts. Returns what was skipped.
pub(crate) fn pipeline() -> anyhow::Result<Vec<String>> {
    // The whole workspace is named so that dependencies keep the features they were built with for the other tests.
    let args = ["test", "--release", "--workspace", "--features", PIPELINE_FEATURE, "--test", "pipeline"];
    run_tests(&args, &["--nocapture", "--test-threads=1"])
}

/// The list of skipped tests, as the last thing a person reads.
pub(crate) fn print_skipped(skipped: &[String]) {
    if skipped.is_empty() {
        println!("\nno test was skipped");
        return;
    }
    println!("\n{} skipped, not passed:", skipped.len());
    for line in skipped {
        println!("  {line}");
    }
}

fn run_tests(cargo_args: &[&str], test_args: &[&str]) -> anyhow::Result<Vec<String>> {
    let mut child = cargo::command(cargo_args)
        .arg("--")
        .args(test_args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let stdout = child.stdout.take().expect("piped just above");
    let mut filter = OutputFilter::default();
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read the output of the tests")?;
        let line = String::from_utf8_lossy(&line);
        if filter.shows(&line) {
            println!("{line}");
            std::io::stdout().flush().context("cannot print")?;
        }
    }
    let status = child.wait().context("cannot wait for cargo")?;
    anyhow::ensure!(status.success(), "cargo {} failed", cargo_args.join(" "));
    Ok(filter.skipped)
}

/// Keeps the output of passing tests out of sight, where cargo lists it under `successes:`, but for its notes on
/// what was skipped.
#[derive(Debug, Default)]
struct OutputFilter {
    inside_successes: bool,
    skipped: Vec<String>,
}

impl OutputFilter {
    /// Whether a person should see the line.
    fn shows(&mut self, line: &str) -> bool {
        if let Some((_, note)) = line.split_once(SKIPPED) {
            let note = note.trim().to_owned();
            if !self.skipped.contains(&note) {
                self.skipped.push(note);
            }
        }
        match line.trim_end() {
            "successes:" => self.inside_successes = true,
            "failures:" => self.inside_successes = false,
            text if text.starts_with("test result:") => self.inside_successes = false,
            _ => {}
        }
        !self.inside_successes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_of_passing_tests_is_hidden_but_its_skips_are_noted() {
        let output = "test a ... ok\n\nsuccesses:\n\n---- a stdout ----\nnoise\nskipped: no photos\n\
                      skipped: no photos\n\nfailures:\n\n---- b stdout ----\nboom\n\ntest result: FAILED.";
        let mut filter = OutputFilter::default();
        let shown: Vec<&str> = output.lines().filter(|line| filter.shows(line)).collect();
        assert!(!shown.contains(&"noise") && shown.contains(&"boom"), "{shown:?}");
        assert!(shown.contains(&"test result: FAILED."));
        assert_eq!(filter.skipped, ["no photos"]);
    }
}
