//! `cargo xtask fuzz`: the readers against hostile bytes, for as long as one likes.
//!
//! The fuzzer is the package `oqvl-fuzz`; here it is put under a limit on its address space, and a process that dies
//! is run again with the same seed and made to leave the input it dies of.

use crate::{cargo, json_file, units};
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Address space of a fuzzer in KiB: what a reader may claim, C libraries included, before the system says no.
const MAX_ADDRESS_SPACE_KIB: u64 = 4 << 20;
/// Exit code of a fuzzer that found something and kept it.
const FOUND: i32 = 3;

/// Arguments of `cargo xtask fuzz`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Targets; all if none is named
    targets: Vec<String>,
    /// Seconds for every target
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Where the random numbers start; the time of day if not given
    #[arg(long)]
    seed: Option<u64>,
    /// Take the fuzzer as it is
    #[arg(long)]
    no_build: bool,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if !args.no_build {
        cargo::build_stages_and("oqvl-fuzz")?;
    }
    let fuzzer = cargo::binary_dir()?.join("oqvl-fuzz");
    let known = list(&fuzzer)?;
    for name in &args.targets {
        if !known.contains(name) {
            let sentence = format!("no target `{name}`: there are {}", known.join(", "));
            return Err(crate::exit::Exit::wrong_request(sentence));
        }
    }
    let targets = if args.targets.is_empty() { known } else { args.targets.clone() };
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(7, |since| since.as_secs());
    let seed = args.seed.unwrap_or_else(now);
    let each = units::duration(Duration::from_secs_f64(args.seconds.clamp(0.0, 1e9)));
    println!("{} targets, {each} each, seed {seed}", targets.len());
    let dir = cargo::target_dir()?.join("fuzz");
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let run = Run { fuzzer, dir, seed, seconds: args.seconds };
    let mut num_findings = 0;
    for target in &targets {
        num_findings += usize::from(run.target(target)?);
    }
    anyhow::ensure!(num_findings == 0, "{num_findings} of {} targets broke a promise", targets.len());
    Ok(())
}

fn list(fuzzer: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new(fuzzer).arg("--list").output().context("cannot start oqvl-fuzz")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

struct Run {
    fuzzer: PathBuf,
    /// Findings go there.
    dir: PathBuf,
    seed: u64,
    seconds: f64,
}

impl Run {
    /// Whether the target breaks a promise.
    fn target(&self, target: &str) -> anyhow::Result<bool> {
        let status = self.command(target, self.seconds).status().context("cannot start sh")?;
        match status.code() {
            Some(0) => return Ok(false),
            Some(FOUND) => return Ok(true),
            _ => println!("{target}: the process died ({status}); looking for the input"),
        }
        // The same seed makes the same inputs; it may take longer to get there.
        let current = self.dir.join("current");
        let status =
            self.command(target, self.seconds * 10.0).arg("--keep-current").arg(&current).status()?;
        if status.code() == Some(0) {
            println!("{target}: it did not die again");
            return Ok(true);
        }
        let input = fs::read(&current).with_context(|| current.display().to_string())?;
        let kept = self.dir.join(format!("{target}-died-{}", self.seed));
        json_file::write_bytes(&kept, &input)?;
        println!("{target}: dies of {}", kept.display());
        Ok(true)
    }

    fn command(&self, target: &str, seconds: f64) -> Command {
        let limited = format!("ulimit -v {MAX_ADDRESS_SPACE_KIB} && exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &limited]).arg(&self.fuzzer).arg(target);
        command.args(["--seed", &self.seed.to_string(), "--seconds", &seconds.to_string()]);
        command.arg("--findings").arg(&self.dir).stdin(Stdio::null());
        command
    }
}
