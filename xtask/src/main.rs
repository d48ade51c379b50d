//! Runner of the project: `cargo xtask reproduce | ablate | bench | cuda | fixtures | gpu | kernels | parity | fuzz | test | ci | tidy`.
//!
//! It links no stage: it drives the stage binaries through their flags, their exit codes and the files they leave,
//! exactly as a person or a cluster script would.
#![expect(clippy::print_stdout, reason = "a command-line runner talks to a person")]

mod ablate;
mod bench;
mod cargo;
mod child_output;
mod ci;
mod config;
mod cuda;
mod exit;
mod fixtures;
mod fuzz;
mod gpu;
mod headline;
mod interrupt;
mod json_file;
mod kernels;
mod machine;
mod marked_text;
mod parity;
mod plan;
mod python;
mod reproduce;
mod run_record;
mod runner;
mod stages;
mod test;
mod tidy;
mod units;
mod work_dir;
mod world_server;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Runner of Open-Qwen2VL in Rust.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the whole pipeline of a config, skipping what is up to date; can be killed and run again at any moment
    Reproduce(reproduce::Args),
    /// Measure what each idea of the paper buys: runs of equal compute over three seeds; writes docs/ablations.md
    Ablate(ablate::Args),
    /// Measure against others: `bench peers` runs the data stages beside the Python tools they replace
    Bench(bench::Args),
    /// Build for NVIDIA GPUs, on a machine that need not have one: `cuda setup | env | build | check`
    Cuda(cuda::Args),
    /// Make the small networks that the tests hold ours against, with torch, transformers, timm and open_clip
    Fixtures(fixtures::Args),
    /// On a machine with an NVIDIA GPU: `gpu check` holds operations against their references, `gpu bench` times them
    Gpu(gpu::Args),
    /// Run every proof of the GPU kernels that needs no GPU: `kernels check`; writes target/kernels.json
    Kernels(kernels::Args),
    /// Print how far networks, token ids, pixels and exports are from the Python originals'; writes target/parity.json
    Parity(parity::Args),
    /// Feed hostile bytes to the readers until a promise breaks or the time is up
    Fuzz(fuzz::Args),
    /// Run every test: unit, property, doc, stage and pipeline tests
    Test(test::Args),
    /// Run everything a change must pass, cheapest first
    Ci,
    /// Check the rules of the house: arrows between crates, module docs, banned ops, names
    Tidy,
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Reproduce(args) => reproduce::run(&args),
        Command::Ablate(args) => ablate::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Cuda(args) => cuda::run(&args),
        Command::Fixtures(args) => fixtures::run(&args),
        Command::Gpu(args) => gpu::run(&args),
        Command::Kernels(args) => kernels::run(&args),
        Command::Parity(args) => parity::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Ci => ci::run(),
        Command::Tidy => tidy::run(),
    };
    exit::code(outcome)
}
