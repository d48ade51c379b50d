//! `cargo xtask fixtures`: small random networks of the Python originals and what those make of fixed inputs, below
//! `crates/model/tests/fixtures`, and what ten steps of training make of one, in `tests/training-step/fixtures`. The files
//! are committed, so that tests need no Python.

use crate::cargo;
use crate::exit::Exit;
use crate::python::Venv;
use anyhow::Context as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Where the scripts lie that make fixtures, each with what it makes; the first says with which versions.
const FOLDERS: [&str; 2] = ["crates/model/tests/fixtures", "tests/training-step/fixtures"];

/// Arguments of `cargo xtask fixtures`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// An interpreter that has what crates/model/tests/fixtures/requirements.txt lists; without it one is made under
    /// target/, from a package index
    #[arg(long)]
    python: Option<PathBuf>,
}

/// The environment with torch, transformers, timm and open_clip, made at the first use. The inner error says why there can
/// be none here.
pub(crate) fn venv() -> anyhow::Result<Result<Venv, String>> {
    Venv::prepare(&cargo::target_dir()?.join("fixtures-venv"), &folder(FOLDERS[0]).join("requirements.txt"))
}

fn folder(name: &str) -> PathBuf {
    cargo::workspace_root().join(name)
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let python = match &args.python {
        Some(python) => python.clone(),
        None => venv()?.map_err(Exit::wrong_request)?.python(),
    };
    for name in FOLDERS {
        // The threads of a library decide on the order of its sums.
        let mut make = Command::new(&python);
        make.arg(folder(name).join("make.py"))
            .envs([("OMP_NUM_THREADS", "1"), ("PYTHONDONTWRITEBYTECODE", "1")]);
        let status = make.stdin(Stdio::null()).status();
        let status = status.with_context(|| format!("cannot start {}", python.display()))?;
        anyhow::ensure!(status.success(), "{name}/make.py failed ({status})");
        println!("wrote {name}");
    }
    println!("`git diff --stat` says what has changed");
    Ok(())
}
