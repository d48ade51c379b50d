//! Where the workspace and its binaries are, and how cargo is called.

use crate::exit::Exit;
use crate::stages::{STAGES, StageName};
use crate::units;
use anyhow::Context;
use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// A build that takes longer than this says that it is building.
const QUIET_BUILD: Duration = Duration::from_secs(3);
/// How often a long build without a terminal says that it goes on.
const BUILD_NEWS_INTERVAL: Duration = Duration::from_secs(60);

/// Root of the workspace.
pub(crate) fn workspace_root() -> PathBuf {
    // `cargo run` sets the variable; the compiled-in path serves a binary that was started by hand.
    let manifest_dir = std::env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest_dir.parent().map(Path::to_path_buf).unwrap_or(manifest_dir)
}

/// `path` below the workspace root, as short as the current directory allows.
pub(crate) fn below_root(path: impl AsRef<Path>) -> PathBuf {
    let root = workspace_root();
    match std::env::current_dir() {
        Ok(current) if current == root => path.as_ref().to_path_buf(),
        _ => root.join(path),
    }
}

/// Where cargo puts the binaries of this profile: beside this one, whatever `CARGO_TARGET_DIR` says.
pub(crate) fn binary_dir() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the running binary")?;
    Ok(own.parent().context("a binary lies in a directory")?.to_path_buf())
}

/// The build directory: above the binaries.
pub(crate) fn target_dir() -> anyhow::Result<PathBuf> {
    Ok(binary_dir()?.parent().context("a profile's directory has a parent")?.to_path_buf())
}

/// A cargo command in the workspace root, with the cargo that started this process.
pub(crate) fn command(args: &[&str]) -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(cargo);
    command.args(args).current_dir(workspace_root());
    // Build scripts (that of `ring`, below DataFusion) ask to run again when one of these changes, and cargo sets them
    // for the process it runs: a nested cargo that inherits them would rebuild for a quarter of an hour.
    let is_of_this_package =
        |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(is_of_this_package)) {
        command.env_remove(name);
    }
    command
}

/// Builds the binaries of the stages, in the release profile.
pub(crate) fn build_stages(stages: &[StageName]) -> anyhow::Result<()> {
    let packages = stages.iter().flat_map(|stage| ["--package".to_owned(), stage.package()]);
    build_bins(&packages.collect::<Vec<_>>())
}

/// Builds all stages and the package `tool` beside them, in the release profile: together, so that dependencies keep
/// the features they were built with for the stages.
pub(crate) fn build_stages_and(tool: &str) -> anyhow::Result<()> {
    let packages = STAGES.into_iter().map(StageName::package).chain([tool.to_owned()]);
    build_bins(&packages.flat_map(|package| ["--package".to_owned(), package]).collect::<Vec<_>>())
}

fn build_bins(packages: &[String]) -> anyhow::Result<()> {
    let mut build = command(&["build", "--release", "--bins"]);
    build.args(packages);
    // On a terminal cargo's own bar tells best what it does; in a log one line a minute is enough.
    let on_terminal = std::io::stderr().is_terminal();
    if !on_terminal {
        build.arg("--quiet");
    }
    let started = Instant::now();
    let mut child = build.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("cannot start cargo")?;
    let mut next_news = QUIET_BUILD;
    let status = loop {
        if let Some(status) = child.try_wait().context("cannot wait for cargo")? {
            break status;
        }
        if !on_terminal && started.elapsed() > next_news {
            let so_far = units::duration(started.elapsed());
            println!("building the stages, {so_far} so far (the first build takes minutes)");
            next_news = started.elapsed() + BUILD_NEWS_INTERVAL;
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    if crate::interrupt::requested() {
        return Err(Exit::interrupted("the build"));
    }
    anyhow::ensure!(status.success(), "the stages do not build");
    if next_news > QUIET_BUILD {
        println!("built the stages in {}", units::duration(started.elapsed()));
    }
    Ok(())
}

/// Version-control commit of the workspace, marked if files have changed since; `None` outside a repository.
pub(crate) fn commit() -> Option<String> {
    let mut git = Command::new("git");
    git.args(["describe", "--always", "--dirty", "--abbrev=12"]).current_dir(workspace_root());
    let output = git.stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    let commit = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !commit.is_empty()).then_some(commit)
}
