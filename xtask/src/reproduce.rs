//! `cargo xtask reproduce`: the whole pipeline of a config, from wherever it stands.
//!
//! Every stage knows by itself whether its output is up to date, and every stage can be killed and run again; the
//! runner therefore keeps no state that matters: it asks, runs what has to run, and asks again.

use crate::config::{RunConfig, nearest};
use crate::exit::Exit;
use crate::plan::{self, PlannedStage};
use crate::run_record::{RunRecord, StageManifest};
use crate::runner::Runner;
use crate::stages::{REPORT, STAGES, StageName};
use crate::work_dir::{self, WorkDirLock};
use crate::{cargo, headline, interrupt, units};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Arguments of `cargo xtask reproduce`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config file [default: configs/micro.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Start this stage anew, whatever is there, and go on from it
    #[arg(long, value_name = "STAGE", value_parser = parse_stage)]
    from: Option<StageName>,
    /// Stop after this stage
    #[arg(long, value_name = "STAGE", value_parser = parse_stage)]
    to: Option<StageName>,
    /// Where the outputs go [default: `work/` and the name in the config]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// Override one key of the config; may be given many times
    #[arg(long = "set", value_name = "TABLE.KEY=VALUE")]
    sets: Vec<String>,
}

/// What to do, with every name resolved.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) config: RunConfig,
    pub(crate) work_dir: PathBuf,
    /// The stage to start anew.
    pub(crate) from: Option<StageName>,
    /// The stages to bring up to date, in order.
    pub(crate) stages: Vec<StageName>,
}

fn parse_stage(name: &str) -> Result<StageName, String> {
    let known = STAGES.map(StageName::as_str);
    StageName::find(name).ok_or_else(|| match nearest(name, &known) {
        Some(nearest) => format!("there is no such stage; did you mean `{nearest}`?"),
        None => format!("there is no such stage; the stages are {}", known.join(", ")),
    })
}

impl Request {
    fn new(args: &Args) -> anyhow::Result<Self> {
        let path = args.config.clone().unwrap_or_else(|| cargo::below_root("configs/micro.toml"));
        let config = RunConfig::read(&path, &args.sets)?;
        let default_dir = || cargo::below_root(Path::new("work").join(&config.name));
        let work_dir = args.work_dir.clone().unwrap_or_else(default_dir);
        Self::resolve(config, work_dir, args.from, args.to)
    }

    /// Checks that the stages named exist in the config and are in order.
    pub(crate) fn resolve(
        config: RunConfig,
        work_dir: PathBuf,
        from: Option<StageName>,
        to: Option<StageName>,
    ) -> anyhow::Result<Self> {
        for (flag, stage) in [("--from", from), ("--to", to)] {
            if let Some(stage) = stage.filter(|stage| !config.stages.contains(stage)) {
                let (path, name) = (config.path.display(), stage.as_str());
                return Err(Exit::wrong_request(format!("{flag} {name}: {path} has no table [{name}]")));
            }
        }
        if let (Some(from), Some(to)) = (from, to)
            && from.position() > to.position()
        {
            let (from, to) = (from.as_str(), to.as_str());
            return Err(Exit::wrong_request(format!("--from {from} --to {to}: {to} comes before {from}")));
        }
        let last = to.map_or(usize::MAX, StageName::position);
        let stages = config.stages.iter().copied().filter(|stage| stage.position() <= last).collect();
        Ok(Self { config, work_dir, from, stages })
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    interrupt::listen()?;
    let request = Request::new(args)?;
    cargo::build_stages(&request.config.stages)?;
    bring_up_to_date(request)
}

/// Brings the stages of a request up to date. Their binaries must be built.
pub(crate) fn bring_up_to_date(request: Request) -> anyhow::Result<()> {
    let Request { config, work_dir, from, stages } = request;
    let runner = Runner::new(config, work_dir)?;
    // The whole config is checked, also the part that this request does not reach, and before anything is removed.
    runner.dry_run(&runner.config.stages)?;
    let lock = WorkDirLock::acquire(&runner.work_dir)?;
    if let Some(stage) = from {
        work_dir::remove_output(&runner.work_dir, stage)?;
    }
    let mut plan = runner.dry_run(&stages)?;
    println!("{} in {}", runner.config.path.display(), runner.work_dir.display());
    let mut record = RunRecord::read_or_default(&runner.work_dir);
    let has_report = stages.contains(&REPORT);
    let is_stale = has_report && report_is_stale(&runner.work_dir, &record);
    if plan.iter().all(PlannedStage::is_up_to_date) && !is_stale {
        return say_nothing_to_do(&runner, &plan, has_report);
    }
    // The report describes the present run, so that it runs whenever anything does.
    plan.iter_mut().filter(|planned| planned.stage == REPORT).for_each(PlannedStage::run_last);
    println!("{}\n", plan::table(&plan));
    run_stages(&runner, &lock, &stages, &mut record)?;
    println!();
    if has_report {
        println!("report: {}", runner.work_dir.join("report.md").display());
    } else {
        let names = stages.last().map_or("nothing", |stage| stage.as_str());
        println!("done up to {names}: {}", runner.work_dir.display());
    }
    Ok(())
}

/// A run that has nothing to do touches nothing, `run.json` and the report included: they keep describing the run
/// that made what lies there.
fn say_nothing_to_do(runner: &Runner, plan: &[PlannedStage], has_report: bool) -> anyhow::Result<()> {
    for planned in plan {
        println!("{}", headline::skipped(planned.stage.as_str()));
    }
    println!();
    let file = if has_report { runner.work_dir.join("report.md") } else { runner.work_dir.clone() };
    println!("everything is up to date: {}", file.display());
    Ok(())
}

/// Whether the report at the root is missing or speaks of an older run.
fn report_is_stale(work_dir: &Path, record: &RunRecord) -> bool {
    !record.reported || !["report.json", "report.md"].iter().all(|file| work_dir.join(file).is_file())
}

fn run_stages(
    runner: &Runner,
    lock: &WorkDirLock,
    stages: &[StageName],
    record: &mut RunRecord,
) -> anyhow::Result<()> {
    let work_dir = &runner.work_dir;
    let started = Instant::now();
    record.name.clone_from(&runner.config.name);
    record.config.clone_from(&runner.config.path);
    record.sets.clone_from(&runner.config.sets);
    record.stages.retain(|stage| runner.config.stages.iter().any(|known| known.as_str() == stage.name));
    for stage in stages {
        if interrupt::requested() {
            return Err(Exit::interrupted(&format!("the check of {}", stage.as_str())));
        }
        if *stage == REPORT {
            return write_report(runner, lock, record);
        }
        // Asked again because the stages before it may have come out as they were, or not.
        let is_up_to_date = runner.dry_run(&[*stage])?.iter().all(PlannedStage::is_up_to_date);
        let run = if is_up_to_date { None } else { Some(runner.run(*stage, lock)?) };
        let manifest = StageManifest::read(work_dir, *stage)?;
        record.note(*stage, &manifest, run);
        record.last_run_seconds = started.elapsed().as_secs_f64();
        record.reported = false;
        record.write(work_dir)?;
        let line = record.stages.iter().find(|noted| noted.name == stage.as_str()).filter(|_| !is_up_to_date);
        match line {
            Some(noted) => println!("{}", headline::done(noted, &manifest)),
            None => println!("{}", headline::skipped(stage.as_str())),
        }
    }
    Ok(())
}

/// Runs the report stage, always: the run it describes is the present one, even if every output came out the same.
fn write_report(runner: &Runner, lock: &WorkDirLock, record: &mut RunRecord) -> anyhow::Result<()> {
    work_dir::remove_output(&runner.work_dir, REPORT)?;
    let run = runner.run(REPORT, lock)?;
    record.reported = true;
    record.write(&runner.work_dir)?;
    let mut alone = RunRecord::default();
    let manifest = StageManifest::read(&runner.work_dir, REPORT)?;
    alone.note(REPORT, &manifest, Some(run));
    println!("{}", headline::done(&alone.stages[0], &manifest));
    let total: f64 = record.stages.iter().map(|stage| stage.seconds).sum();
    let peak = record.stages.iter().map(|stage| stage.peak_rss_bytes).max().unwrap_or(0);
    println!("{:<12} {:>9} {:>12} {:>9}", "all stages", "", units::seconds(total), units::bytes(peak));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str, from: Option<&str>, to: Option<&str>) -> Result<Vec<&'static str>, String> {
        let config = RunConfig::parse(Path::new("demo.toml"), text, &[])?;
        let find = |name: Option<&str>| name.map(|name| parse_stage(name).unwrap());
        let request = Request::resolve(config, PathBuf::from("work"), find(from), find(to));
        request.map(|r| r.stages.iter().map(|s| s.as_str()).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn to_ends_the_run_and_from_does_not_shorten_it() {
        let text = "name = \"demo\"\n[mixer]\n[packer]\n[trainer]";
        assert_eq!(request(text, None, None).unwrap(), ["mixer", "packer", "trainer"]);
        assert_eq!(request(text, Some("packer"), Some("packer")).unwrap(), ["mixer", "packer"]);
        let error = request(text, Some("trainer"), Some("mixer")).unwrap_err();
        assert_eq!(error, "--from trainer --to mixer: mixer comes before trainer");
        let error = request(text, Some("sft"), None).unwrap_err();
        assert_eq!(error, "--from sft: demo.toml has no table [sft]");
    }

    #[test]
    fn a_slip_in_a_stage_name_gets_the_nearest() {
        assert_eq!(parse_stage("triner").unwrap_err(), "there is no such stage; did you mean `trainer`?");
        assert!(parse_stage("xyzxyzxyz").unwrap_err().contains("the stages are micro-world"));
    }
}
