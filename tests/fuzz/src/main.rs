//! Runs one target until a time is up or a promise is broken; `cargo xtask fuzz` starts it under limits.
#![expect(clippy::print_stdout, reason = "the findings are the output of this program")]

use anyhow::Context as _;
use clap::Parser;
use oqvl_fuzz::{Campaign, TARGETS, Target, run_once, target};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// An input that takes longer is a finding.
const TIME_BOUND: Duration = Duration::from_secs(10);
/// How often the watch looks.
const WATCH_INTERVAL: Duration = Duration::from_millis(200);
/// Exit code of a run that found something.
const FOUND: u8 = 3;

/// Fuzzes one reader.
#[derive(Debug, Parser)]
#[command(name = "oqvl-fuzz")]
struct Arguments {
    /// Names the targets and stops
    #[arg(long)]
    list: bool,
    /// The target
    target: Option<String>,
    /// How long
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Where the random numbers start
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Where an input that breaks a promise is put
    #[arg(long, default_value = ".")]
    findings: PathBuf,
    /// Put every input there before it runs, so that it is known even if the process dies; slow
    #[arg(long)]
    keep_current: Option<PathBuf>,
    /// Run this file once instead
    #[arg(long)]
    input: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        return ExitCode::SUCCESS;
    }
    match run(&arguments) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("oqvl-fuzz: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let name = arguments.target.as_deref().context("which target? --list names them")?;
    let target = target(name).with_context(|| format!("no target `{name}`; --list names them"))?;
    if let Some(path) = &arguments.input {
        let input = std::fs::read(path).with_context(|| path.display().to_string())?;
        return Ok(report_once(target, &input));
    }
    let watched = Arc::new(Watched::default());
    watch(target, arguments.findings.clone(), Arc::clone(&watched));
    // A panic is a finding, told once and in one line.
    std::panic::set_hook(Box::new(|_| {}));
    let started = Instant::now();
    let mut campaign = Campaign::new(target, arguments.seed);
    while started.elapsed().as_secs_f64() < arguments.seconds {
        let input = campaign.next_input();
        if let Some(path) = &arguments.keep_current {
            oqvl_shard_io::write_atomic(path, input)?;
        }
        watched.begin(input);
        let finding = campaign.run();
        watched.end();
        if let Some(finding) = finding {
            let path = keep(&arguments.findings, target, &finding.input)?;
            println!("{name}: input {}: {}\n  {}", campaign.num_inputs(), finding.problem, path.display());
            return Ok(ExitCode::from(FOUND));
        }
    }
    let (inputs, outcomes) = (campaign.num_inputs(), campaign.num_outcomes());
    let rate = inputs as f64 / started.elapsed().as_secs_f64();
    println!("{name}: {inputs} inputs ({rate:.0}/s), {outcomes} outcomes, no finding");
    Ok(ExitCode::SUCCESS)
}

fn report_once(target: &Target, input: &[u8]) -> ExitCode {
    match run_once(target, input) {
        Ok(outcome) => {
            println!("{}: {outcome}", target.name);
            ExitCode::SUCCESS
        }
        Err(problem) => {
            println!("{}: {problem}", target.name);
            ExitCode::from(FOUND)
        }
    }
}

/// Writes an input under a name made of its content.
fn keep(dir: &Path, target: &Target, input: &[u8]) -> anyhow::Result<PathBuf> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    let digest = oqvl_shard_io::digest_bytes(input);
    let path = dir.join(format!("{}-{}", target.name, &digest[..16]));
    oqvl_shard_io::write_atomic(&path, input).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// The input that runs now, for the watch to see.
#[derive(Debug, Default)]
struct Watched {
    running: Mutex<Option<(Instant, Vec<u8>)>>,
}

impl Watched {
    fn begin(&self, input: &[u8]) {
        *self.running.lock().expect("nobody panics with it") = Some((Instant::now(), input.to_vec()));
    }

    fn end(&self) {
        *self.running.lock().expect("nobody panics with it") = None;
    }

    /// The input, if it has run for too long.
    fn overdue(&self) -> Option<Vec<u8>> {
        let running = self.running.lock().expect("nobody panics with it");
        running.as_ref().filter(|(since, _)| since.elapsed() > TIME_BOUND).map(|(_, input)| input.clone())
    }
}

/// Ends the process when an input runs for too long.
fn watch(target: &'static Target, findings: PathBuf, watched: Arc<Watched>) {
    std::thread::spawn(move || {
        loop {
            std::thread::sleep(WATCH_INTERVAL);
            let Some(input) = watched.overdue() else { continue };
            let place = keep(&findings, target, &input).map_or_else(
                |error| format!("which cannot be kept: {error:#}"),
                |path| path.display().to_string(),
            );
            println!("{}: runs for more than {TIME_BOUND:?}\n  {place}", target.name);
            std::process::exit(FOUND.into());
        }
    });
}
