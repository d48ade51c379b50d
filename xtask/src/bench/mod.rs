//! `cargo xtask bench`: measurements that take more than a criterion bench.

pub(crate) mod peers;

use clap::Subcommand;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Run the data stages and their Python peers side by side on the same input; writes target/bench/peers.json
    Peers(peers::Args),
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match &args.what {
        What::Peers(args) => peers::run(args),
    }
}
