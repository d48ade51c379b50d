//! The stage binaries: built once, then run.

use crate::reproduce::Finished;
use crate::workspace_root;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Every stage, in running order.
pub const STAGES: [&str; 11] = [
    "micro-world",
    "data-fetch",
    "bootstrap",
    "clip-filter",
    "mlm-filter",
    "mixer",
    "packer",
    "trainer",
    "sft",
    "evaluator",
    "report",
];

/// The build directory this test was built into.
pub(crate) fn target_dir() -> PathBuf {
    // target/<profile>/deps/<test>; doc-tests lie elsewhere and fall back to the default.
    let test = std::env::current_exe().expect("the running test has a path");
    let target = test.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
    target.map_or_else(|| workspace_root().join("target"), Path::to_path_buf)
}

/// A cargo command in the workspace root.
pub(crate) fn cargo(args: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    command.args(args).current_dir(workspace_root()).stdin(Stdio::null());
    // As in xtask: what describes this test's package would make a nested cargo build the dependencies again.
    let is_of_this_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_this_package)) {
        command.env_remove(name);
    }
    command
}

/// Path of a stage's binary. The first call builds them all, in the release profile.
///
/// # Panics
/// If they do not build.
#[must_use]
pub fn stage_binary(stage: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let directory = BUILT.get_or_init(|| {
        let mut build = cargo(&["build", "--release", "--bins", "--quiet"]);
        for stage in STAGES {
            build.arg("--package").arg(format!("oqvl-{stage}"));
        }
        assert!(build.status().expect("cargo can be started").success(), "the stages do not build");
        target_dir().join("release")
    });
    directory.join(format!("oqvl-{stage}"))
}

/// Runs a stage with these arguments in the workspace root.
///
/// # Panics
/// If it cannot be started.
#[must_use]
pub fn run_stage(stage: &str, args: &[&str]) -> Finished {
    let mut command = Command::new(stage_binary(stage));
    command.args(args).current_dir(workspace_root()).stdin(Stdio::null());
    Finished::capture(&mut command)
}

/// As [`run_stage`], but asks the stage to stop (SIGTERM) as soon as the file `ready` is there.
///
/// # Panics
/// If it cannot be started, or ends before.
#[must_use]
pub fn terminate_stage(stage: &str, args: &[&str], ready: &Path) -> Finished {
    let started = Instant::now();
    let mut command = Command::new(stage_binary(stage));
    command.args(args).current_dir(workspace_root());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program can be started");
    while !ready.exists() {
        assert!(
            child.try_wait().expect("it was started").is_none(),
            "{stage} ended before it could be stopped"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    let signal = Command::new("sh").arg("-c").arg(format!("kill -s TERM {}", child.id())).status();
    assert!(signal.expect("there is a shell").success(), "{stage} ended before it could be stopped");
    Finished::new(child.wait_with_output().expect("it was started"), started)
}
