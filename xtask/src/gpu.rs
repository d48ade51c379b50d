//! `cargo xtask gpu check | bench`: builds `oqvl-gpu` with CUDA and runs it on the GPU of this machine.

use crate::exit::Exit;
use crate::{cargo, cuda};
use anyhow::Context as _;
use std::process::{Command as Process, Stdio};

/// Arguments of `cargo xtask gpu`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Hold operations against their references in f64, beside PyTorch
    Check(Rest),
    /// Time operations, beside PyTorch
    Bench(Rest),
}

/// What is passed on.
#[derive(Debug, clap::Args)]
struct Rest {
    /// Arguments of `oqvl-gpu`, which `--help` after `--` lists
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let (name, rest) = match &args.command {
        Command::Check(rest) => ("check", rest),
        Command::Bench(rest) => ("bench", rest),
    };
    let program = cuda::build_gpu_program()?;
    let mut run = Process::new(&program.path);
    run.arg(name).args(&rest.arguments).current_dir(cargo::workspace_root());
    // The libraries it was linked with; a driver's libcuda is found without help.
    let libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let places = std::env::split_paths(&libraries)
        .filter(|path| !path.as_os_str().is_empty())
        .chain(program.libraries);
    run.env("LD_LIBRARY_PATH", std::env::join_paths(places)?);
    let status = run.stdin(Stdio::null()).status();
    let status = status.with_context(|| format!("cannot start {}", program.path.display()))?;
    match status.code() {
        Some(0) => Ok(()),
        // What the dynamic loader says of a library that is missing is printed above.
        Some(127) => Err(Exit::child(
            1,
            "oqvl-gpu does not start: the library named above is missing, libcuda.so.1 where there is no NVIDIA driver; see docs/gpu.md",
        )),
        _ => Err(Exit::child(1, format!("oqvl-gpu {name} failed ({status})"))),
    }
}
