//! `cargo xtask reproduce`, run to its end or killed on the way.

use crate::binaries::{STAGES, cargo};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// One invocation of `cargo xtask reproduce`, to be repeated as often as one likes.
#[derive(Debug, Clone)]
pub struct Reproduce {
    config: PathBuf,
    work_dir: PathBuf,
    sets: Vec<String>,
    flags: Vec<String>,
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it printed as an aside.
    pub stderr: String,
    /// Wall clock.
    pub elapsed: Duration,
}

impl Finished {
    pub(crate) fn capture(command: &mut Command) -> Self {
        let started = Instant::now();
        Self::new(command.output().expect("the program can be started"), started)
    }

    pub(crate) fn new(output: Output, started: Instant) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            elapsed: started.elapsed(),
        }
    }

    /// The same, if it ended well.
    ///
    /// # Panics
    /// With everything it printed if it did not.
    #[must_use]
    pub fn succeeded(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }
}

impl Reproduce {
    /// The micro reproduction in a work directory of its own.
    #[must_use]
    pub fn micro(work_dir: PathBuf) -> Self {
        Self::of("configs/micro.toml", work_dir)
    }

    /// Another config, its path relative to the workspace root.
    #[must_use]
    pub fn of(config: &str, work_dir: PathBuf) -> Self {
        Self { config: config.into(), work_dir, sets: Vec::new(), flags: Vec::new() }
    }

    /// Overrides one key of the config.
    #[must_use]
    pub fn set(mut self, assignment: &str) -> Self {
        self.sets.push(assignment.to_owned());
        self
    }

    /// Overrides many keys.
    #[must_use]
    pub fn set_all(self, assignments: &[&str]) -> Self {
        assignments.iter().fold(self, |run, assignment| run.set(assignment))
    }

    /// Adds a flag with its value.
    #[must_use]
    pub fn flag(mut self, flag: &str, value: &str) -> Self {
        self.flags.extend([flag.to_owned(), value.to_owned()]);
        self
    }

    /// Where the outputs go.
    #[must_use]
    pub fn work_dir(&self) -> &Path {
        &self.work_dir
    }

    fn command(&self) -> Command {
        let mut command = cargo(&["xtask", "reproduce"]);
        command.arg("--config").arg(&self.config).arg("--work-dir").arg(&self.work_dir);
        for assignment in &self.sets {
            command.args(["--set", assignment]);
        }
        command.args(&self.flags);
        command
    }

    /// Runs to the end and keeps what was printed.
    #[must_use]
    pub fn finish(&self) -> Finished {
        Finished::capture(&mut self.command())
    }

    /// Runs to the end, showing what it prints as it comes; says how long it took.
    ///
    /// # Panics
    /// If it fails.
    #[must_use]
    pub fn finish_in_the_open(&self) -> Duration {
        let started = Instant::now();
        let status = self.command().status().expect("cargo can be started");
        assert!(status.success(), "the reproduction failed: {status}");
        started.elapsed()
    }

    /// Starts it and sends SIGKILL to it and all its children once `stage` has been at work for `offset`, or at once
    /// when a later stage begins. Says whether it was still alive then.
    ///
    /// # Panics
    /// If it fails by itself before.
    #[must_use]
    pub fn kill_during(&self, stage: &str, offset: Duration) -> bool {
        let mut command = self.command();
        command.process_group(0).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = command.spawn().expect("cargo can be started");
        let mut at_work_since: Option<Instant> = None;
        while at_work_since.is_none_or(|since| since.elapsed() < offset) {
            if let Some(status) = child.try_wait().expect("a child can be waited for") {
                assert!(status.success(), "the reproduction failed before it was killed: {status}");
                return false;
            }
            match self.furthest_stage_at_work() {
                Some(position) if STAGES[position] == stage => {
                    at_work_since.get_or_insert_with(Instant::now);
                }
                Some(position) if STAGES[..position].contains(&stage) => break,
                _ => {}
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        kill_group(&mut child);
        true
    }

    /// Position of the last stage that has begun and not finished.
    fn furthest_stage_at_work(&self) -> Option<usize> {
        let has = |stage: &str, file: &str| self.work_dir.join(stage).join(file).is_file();
        STAGES.iter().rposition(|stage| has(stage, "fingerprint.json") && !has(stage, "manifest.json"))
    }
}

/// SIGKILL to a process group, which std cannot send: the shell can.
fn kill_group(leader: &mut Child) {
    let killed = Command::new("sh").arg("-c").arg(format!("kill -s KILL -- -{}", leader.id())).status();
    assert!(killed.expect("there is a shell").success(), "the process group is gone already");
    leader.wait().expect("a killed child can be waited for");
}
