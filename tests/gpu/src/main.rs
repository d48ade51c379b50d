//! `oqvl-gpu`: the GPU kernels on a GPU. `check` holds operations against references in f64 on the CPU, `bench` times
//! them; both run PyTorch beside it on the same card. docs/gpu.md says how to bring this program to a GPU.
#![expect(clippy::print_stdout, reason = "a command-line program talks to a person")]

mod bench;
mod case;
mod cases;
mod check;
mod date;
mod results;
mod torch;
mod training_step;

use clap::{Parser, Subcommand};
use oqvl_kernels::device::Cuda;
use std::path::PathBuf;
use std::process::ExitCode;

/// The GPU kernels on a GPU.
#[derive(Parser)]
#[command(name = "oqvl-gpu", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Hold operations against their references in f64, beside PyTorch doing the same in bf16
    Check(Args),
    /// Time operations, beside PyTorch on the same GPU
    Bench(Args),
}

/// What both commands take.
#[derive(Debug, clap::Args)]
struct Args {
    /// Operations; all if none is named
    ops: Vec<String>,
    /// Which GPU, as CUDA numbers them
    #[arg(long, default_value_t = 0)]
    gpu: usize,
    /// An interpreter that has PyTorch
    #[arg(long, default_value = "python3")]
    python: PathBuf,
    /// Where results go; those of the other command that are there stay, if they are of the same GPU
    #[arg(long, default_value = "gpu.json")]
    json: PathBuf,
}

fn main() -> ExitCode {
    match run(&Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("error: {failure:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn run(command: &Command) -> anyhow::Result<bool> {
    let (Command::Check(args) | Command::Bench(args)) = command;
    for op in &args.ops {
        anyhow::ensure!(
            case::OPS.contains(&op.as_str()),
            "no operation `{op}`: there are {}",
            case::OPS.join(", ")
        );
    }
    let wanted = |op: &str| args.ops.is_empty() || args.ops.iter().any(|name| name == op);
    let cuda = Cuda::new(args.gpu)?;
    let gpu = cuda.description()?;
    println!(
        "{}, compute capability {}, {} multiprocessors; the driver knows CUDA {}, this program is built with {}",
        gpu.name, gpu.capability, gpu.multiprocessors, gpu.driver_cuda, gpu.built_with_cuda
    );
    let torch = torch::Torch::find(&args.python, args.gpu);
    match &torch {
        Ok(torch) => println!("beside {}", torch.version()),
        Err(why) => println!("no PyTorch beside it: {why}"),
    }
    let torch = torch.as_ref().ok();
    match command {
        Command::Check(_) => {
            let checks = check::run(&cuda, torch, wanted)?;
            println!("\n{}", check::table(&checks));
            let all_passed = checks.iter().all(|check| check.passed);
            results::update(&args.json, &gpu, torch, |results| {
                // What was not asked for stays.
                results.checks.retain(|old| !wanted(&old.op));
                results.checks.extend(checks);
            })?;
            println!("written to {}", args.json.display());
            println!("{}", if all_passed { "all checks passed" } else { "not all checks passed" });
            Ok(all_passed)
        }
        Command::Bench(_) => {
            let figures = bench::run(&cuda, torch, wanted)?;
            println!("\n{}", bench::table(&figures));
            let all_met = figures.iter().all(bench::Figure::is_met);
            results::update(&args.json, &gpu, torch, |results| {
                let is_new =
                    |old: &bench::Figure| figures.iter().any(|new| new.op == old.op && new.what == old.what);
                results.figures.retain(|old| !is_new(old));
                results.figures.extend(figures);
            })?;
            println!("written to {}", args.json.display());
            println!("{}", if all_met { "all targets met" } else { "not all targets met, or not judged" });
            Ok(all_met)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_read() {
        let cli = Cli::try_parse_from(["oqvl-gpu", "check", "attention", "--gpu", "1", "--json", "x.json"])
            .unwrap();
        let Command::Check(args) = cli.command else { panic!("not check") };
        assert_eq!((args.ops.as_slice(), args.gpu), (&["attention".to_owned()][..], 1));
        assert_eq!((args.python, args.json), ("python3".into(), "x.json".into()));
        assert!(Cli::try_parse_from(["oqvl-gpu"]).is_err());
        assert!(Cli::try_parse_from(["oqvl-gpu", "tune"]).is_err());
    }
}
