//! `cargo xtask ci`: everything a change must pass, cheapest first. `.ci/run` calls exactly this.
//!
//! Everything is built in the release profile: clippy and rustdoc share one set of checked dependencies, tests and
//! stages share one set of compiled ones. A tool that is not installed is reported as skipped, never as passed.

use crate::{cargo, cuda, kernels, parity, test, tidy, units};
use anyhow::Context as _;
use std::process::{Command, Stdio};
use std::time::Instant;

/// One step.
struct Step {
    name: &'static str,
    run: fn() -> anyhow::Result<Outcome>,
}

/// How a step that did not fail ended.
enum Outcome {
    Passed,
    /// Passed, but for these.
    PassedWithSkips(Vec<String>),
    Skipped(String),
}

const STEPS: [Step; 13] = [
    Step { name: "fmt", run: || run_cargo(&["fmt", "--all", "--check"]) },
    Step { name: "tidy", run: || tidy::run().map(|()| Outcome::Passed) },
    Step { name: "typos", run: || run_tool("typos", &["--version"], Command::new("typos")) },
    Step { name: "deny", run: || run_tool("cargo-deny", &["--version"], cargo::command(&["deny", "check"])) },
    Step { name: "clippy", run: clippy },
    Step { name: "doc", run: doc },
    Step { name: "package", run: package },
    Step { name: "test", run: || test::workspace().map(Outcome::PassedWithSkips) },
    Step { name: "cuda", run: cuda },
    Step { name: "kernels", run: || kernels::check().map(Outcome::PassedWithSkips) },
    Step { name: "parity", run: || parity::check().map(Outcome::PassedWithSkips) },
    Step { name: "peers", run: || test::peers().map(Outcome::PassedWithSkips) },
    Step { name: "pipeline", run: || test::pipeline().map(Outcome::PassedWithSkips) },
];

/// Runs the command; stops at the first step that fails.
pub(crate) fn run() -> anyhow::Result<()> {
    let started = Instant::now();
    let mut summary = Vec::new();
    let mut skipped = Vec::new();
    for step in STEPS {
        println!("\n== {}", step.name);
        let step_started = Instant::now();
        let outcome = (step.run)().with_context(|| format!("ci step `{}`", step.name))?;
        let time = units::duration(step_started.elapsed());
        let word = match outcome {
            Outcome::Passed => "passed".to_owned(),
            Outcome::PassedWithSkips(skips) => {
                let word = if skips.is_empty() {
                    "passed".into()
                } else {
                    format!("passed, {} skipped", skips.len())
                };
                skipped.extend(skips);
                word
            }
            Outcome::Skipped(why) => {
                println!("skipped: {why}");
                let word = format!("skipped ({why})");
                skipped.push(format!("{}: {why}", step.name));
                word
            }
        };
        summary.push(format!("{:<10} {time:>12}  {word}", step.name));
    }
    println!("\n{}", summary.join("\n"));
    test::print_skipped(&skipped);
    println!("ci passed in {}", units::duration(started.elapsed()));
    Ok(())
}

fn clippy() -> anyhow::Result<Outcome> {
    let features = ["--features", test::PIPELINE_FEATURE];
    let mut command = cargo::command(&["clippy", "--release", "--workspace", "--all-targets"]);
    run_command(command.args(features).args(["--", "-D", "warnings"]))
}

fn doc() -> anyhow::Result<Outcome> {
    let mut command = cargo::command(&["doc", "--release", "--workspace", "--no-deps"]);
    run_command(command.env("RUSTDOCFLAGS", "-D warnings"))
}

fn cuda() -> anyhow::Result<Outcome> {
    Ok(match cuda::check()? {
        Ok(()) => Outcome::Passed,
        Err(why) => Outcome::Skipped(why),
    })
}

/// Every crate that can be published packs: those below `crates/`. Building each package once more from its archive is left to
/// whoever publishes: it compiles the whole workspace a second time.
fn package() -> anyhow::Result<Outcome> {
    let mut packages = Vec::new();
    let dir = cargo::workspace_root().join("crates");
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        packages.push(format!("--package=oqvl-{}", entry?.file_name().display()));
    }
    packages.sort();
    let mut command = cargo::command(&["package", "--no-verify", "--allow-dirty", "--quiet"]);
    run_command(command.args(packages))
}

fn run_cargo(args: &[&str]) -> anyhow::Result<Outcome> {
    run_command(&mut cargo::command(args))
}

/// Runs `command` if the program `tool` can be started.
fn run_tool(tool: &str, probe: &[&str], mut command: Command) -> anyhow::Result<Outcome> {
    let installed = Command::new(tool)
        .args(probe)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match installed {
        Ok(status) if status.success() => run_command(command.current_dir(cargo::workspace_root())),
        _ => Ok(Outcome::Skipped(format!("{tool} is not installed"))),
    }
}

fn run_command(command: &mut Command) -> anyhow::Result<Outcome> {
    let status = command.stdin(Stdio::null()).status().context("cannot start the program")?;
    anyhow::ensure!(status.success(), "{command:?} failed ({status})");
    Ok(Outcome::Passed)
}
