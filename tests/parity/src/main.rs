//! Prints the rows of [`oqvl_parity::measure`], one JSON object a line; `cargo xtask parity` is for people.
#![expect(clippy::print_stdout, reason = "the rows are its output")]

use clap::Parser as _;
use std::path::PathBuf;

/// Compare networks, token ids, pixels and exports with the Python originals; a JSON object a line
#[derive(clap::Parser)]
struct Args {
    /// An interpreter that has transformers, to load exported folders with
    #[arg(long)]
    python: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let rows = oqvl_parity::measure(args.python.as_deref(), |why| eprintln!("skipped: {why}"))?;
    for row in rows {
        println!("{}", serde_json::to_string(&row)?);
    }
    Ok(())
}
