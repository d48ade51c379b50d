//! Driving one stage binary: its dry run, its run, its end.

use crate::exit::Exit;
use crate::plan::PlannedStage;
use crate::stages::{DATA_FETCH, MICRO_WORLD, StageName};
use crate::work_dir::WorkDirLock;
use crate::world_server::WorldServer;
use crate::{cargo, child_output, config::RunConfig, interrupt};
use anyhow::Context;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long an interrupted stage may take to stop by itself.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// How often a running stage is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// What a stage that ran leaves to say besides its manifest.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct StageRun {
    /// Largest memory of the world server beside it, where there was one.
    pub(crate) server_peak_rss_bytes: Option<u64>,
}

/// Runs stages of one config in one work directory.
#[derive(Debug)]
pub(crate) struct Runner {
    binary_dir: PathBuf,
    /// The config file, overrides and stages.
    pub(crate) config: RunConfig,
    /// Where the outputs lie.
    pub(crate) work_dir: PathBuf,
}

impl Runner {
    pub(crate) fn new(config: RunConfig, work_dir: PathBuf) -> anyhow::Result<Self> {
        Ok(Self { binary_dir: cargo::binary_dir()?, config, work_dir })
    }

    fn command(&self, stage: StageName) -> Command {
        let mut command = Command::new(self.binary_dir.join(stage.package()));
        command.arg("--config").arg(&self.config.path).arg("--work-dir").arg(&self.work_dir);
        for set in self.config.sets_of(stage) {
            command.args(["--set", set]);
        }
        // A job array's variables concern the stages that the array starts, not a run of the whole pipeline.
        for variable in ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT"] {
            command.env_remove(variable);
        }
        command
    }

    /// Asks every stage of the config how it stands. This validates the whole config before anything runs.
    ///
    /// # Errors
    /// Exit code 2 with the stages' own sentences if a stage refuses its config.
    pub(crate) fn dry_run(&self, stages: &[StageName]) -> anyhow::Result<Vec<PlannedStage>> {
        let mut planned = Vec::with_capacity(stages.len());
        let mut refusals = Vec::new();
        for stage in stages {
            let output = self
                .command(*stage)
                .args(["--dry-run", "--log-format", "json"])
                .stdin(Stdio::null())
                .output()
                .with_context(|| format!("cannot start {}", stage.package()))?;
            if interrupt::requested() {
                return Err(Exit::interrupted("the check of the config"));
            }
            let sentence = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            match output.status.code() {
                Some(0) => planned.push(PlannedStage::parse(*stage, &output.stdout)?),
                Some(2) => refusals.push(sentence),
                _ => anyhow::bail!("{} --dry-run failed ({}): {sentence}", stage.package(), output.status),
            }
        }
        if refusals.is_empty() { Ok(planned) } else { Err(Exit::wrong_request(refusals.join("\n       "))) }
    }

    /// Runs one stage to its end. On a terminal it draws its own progress; elsewhere its lines come indented.
    ///
    /// # Errors
    /// With the stage's exit code if it fails, 130 if it was interrupted.
    pub(crate) fn run(&self, stage: StageName, lock: &WorkDirLock) -> anyhow::Result<StageRun> {
        let mut server = match stage {
            DATA_FETCH if self.config.stages.contains(&MICRO_WORLD) => {
                Some(WorldServer::start(&self.work_dir)?)
            }
            _ => None,
        };
        let on_terminal = std::io::stderr().is_terminal();
        let mut command = self.command(stage);
        command.stdin(lock.stage_stdin()?).stdout(match &server {
            Some(server) => server.lifeline()?,
            None => Stdio::null(),
        });
        command.stderr(if on_terminal { Stdio::inherit() } else { Stdio::piped() });
        let mut child = command.spawn().with_context(|| format!("cannot start {}", stage.package()))?;
        // The stage's own last line is left out: the runner says the same and more.
        let last_line = format!("{}: done in ", stage.as_str());
        let forwarder = child.stderr.take();
        let forwarder =
            forwarder.map(|stderr| child_output::forward(stderr, move |line| line.starts_with(&last_line)));
        let status = wait(&mut child, || server.iter_mut().for_each(WorldServer::measure))?;
        if let Some(forwarder) = forwarder {
            forwarder.join().expect("forwarding lines does not panic");
        }
        let server_peak_rss_bytes = server.map(WorldServer::stop);
        ended(stage, status)?;
        Ok(StageRun { server_peak_rss_bytes })
    }
}

/// Waits for a child; once somebody asked to stop, not longer than [`STOP_LIMIT`].
fn wait(child: &mut Child, mut while_waiting: impl FnMut()) -> anyhow::Result<ExitStatus> {
    let mut asked_to_stop: Option<Instant> = None;
    loop {
        while_waiting();
        if let Some(status) = child.try_wait().context("cannot wait for a stage")? {
            return Ok(status);
        }
        if interrupt::requested() && asked_to_stop.get_or_insert_with(Instant::now).elapsed() > STOP_LIMIT {
            // Stages can be killed at any moment; if it ended just now there is nothing left to do.
            let _ = child.kill();
        }
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// What the end of a stage means for the run.
fn ended(stage: StageName, status: ExitStatus) -> anyhow::Result<()> {
    let name = stage.as_str();
    if interrupt::requested() {
        return Err(Exit::interrupted(name));
    }
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => {
            let sentence = format!("stage {name} failed with exit code {code}; its own words are above");
            Err(Exit::child(u8::try_from(code).unwrap_or(1), sentence))
        }
        None => {
            Err(Exit::child(1, format!("stage {name} was killed ({status}); the same command continues")))
        }
    }
}
