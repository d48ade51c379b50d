//! `cargo xtask cuda`: what it takes to build for NVIDIA GPUs, on a machine that need not have one.

mod binaries;
pub(crate) mod toolkit;

pub(crate) use binaries::{Program, compile_kernels};

use crate::exit::Exit;
use toolkit::Toolkit;

/// Arguments of `cargo xtask cuda`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Find a CUDA toolkit of version 12.8 or later, or fetch one into ~/.cache (OQVL_CUDA_DIR)
    Setup,
    /// Print the environment to build with, for `eval "$(cargo xtask cuda env)"`
    Env,
    /// Build the programs that can use a GPU, for compute capability 8.0 to 9.0, into target/cuda
    Build,
    /// Lint the CUDA side, compile all kernels, and link a program; candle's own kernels are compiled without optimisation
    Check,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match args.command {
        Command::Setup => {
            let toolkit = setup()?;
            println!("{} in {}", toolkit.version(), toolkit.root().display());
            println!(
                "ready: `cargo xtask cuda build` uses it; other builds do after eval \"$(cargo xtask cuda env)\""
            );
            Ok(())
        }
        Command::Env => {
            let ready = Toolkit::find_ready()?;
            let toolkit = ready
                .ok_or_else(|| Exit::wrong_request("no CUDA toolkit: run `cargo xtask cuda setup` first"))?;
            for (name, value) in toolkit.environment() {
                println!("export {name}='{}'", value.to_string_lossy().replace('\'', "'\\''"));
            }
            Ok(())
        }
        Command::Build => binaries::build(&setup()?),
        Command::Check => binaries::check(&setup()?),
    }
}

fn setup() -> anyhow::Result<Toolkit> {
    Toolkit::prepare()?.map_err(Exit::wrong_request)
}

/// Builds the program that checks and times the kernels on a GPU.
pub(crate) fn build_gpu_program() -> anyhow::Result<Program> {
    binaries::build_gpu_program(&setup()?)
}

/// What `cargo xtask cuda check` does, for the steps of `ci`. The inner error says why there can be no toolkit here.
pub(crate) fn check() -> anyhow::Result<Result<(), String>> {
    match Toolkit::prepare()? {
        Ok(toolkit) => binaries::check(&toolkit).map(Ok),
        Err(why) => Ok(Err(why)),
    }
}
