//! Serves a world directory over HTTP until it is told to stop; see `oqvl_micro_world::WorldServer`.

use anyhow::Context as _;
use clap::Parser;
use oqvl_micro_world::WorldServer;
use std::io::{IsTerminal as _, Read as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;

/// Serves a micro world over HTTP on the loopback address, with all its faults.
#[derive(Debug, Parser)]
#[command(name = "oqvl-world-server", version)]
struct Arguments {
    /// The world: the output directory of the stage micro-world.
    #[arg(long, value_name = "DIR")]
    world: PathBuf,
    /// Port; 0 takes any that is free.
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Where to write which host is at which address, once the server listens [default: hosts.local.json in the
    /// world].
    #[arg(long, value_name = "FILE")]
    hosts_file: Option<PathBuf>,
    /// Stop when standard input ends, and so with the process that started this one.
    #[arg(long)]
    exit_with_stdin: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal()).init();
    match serve(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Serves until a signal, or the end of standard input.
fn serve(arguments: Arguments) -> anyhow::Result<()> {
    let (stop, stopped) = mpsc::channel();
    let on_signal = stop.clone();
    ctrlc::set_handler(move || {
        // Nobody listens any more once the server is stopping.
        let _ = on_signal.send(());
    })
    .context("cannot handle signals")?;
    if arguments.exit_with_stdin {
        std::thread::spawn(move || {
            // An error ends it too: better to stop too early than never.
            let _ = std::io::stdin().lock().read_to_end(&mut Vec::new());
            let _ = stop.send(());
        });
    }
    let server = WorldServer::start(&arguments.world, arguments.port)?;
    let hosts_file = arguments.hosts_file.unwrap_or_else(|| arguments.world.join("hosts.local.json"));
    server.write_hosts_file(&hosts_file)?;
    tracing::info!(address = %server.address(), hosts_file = %hosts_file.display(), "serving");
    // Without either way to stop the channel stays open: `on_signal` lives in the handler.
    let _ = stopped.recv();
    server.stop();
    // A hosts file without a server would send fetchers to a port that may be someone else's by then.
    std::fs::remove_file(&hosts_file).with_context(|| format!("cannot remove {}", hosts_file.display()))
}
