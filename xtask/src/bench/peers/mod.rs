//! `cargo xtask bench peers`: our tools and the Python tools they replace, side by side.
//!
//! A *work* is a row of the table in `docs/benchmarks.md`. It makes its input, runs *races* (sides one after the other,
//! again and again: A B C A B C, so that what else the machine does hits all of them), and *checks* that both sides
//! did the same. Every side is a command run by `benches/peers/measure.py`; the median of the rounds counts.

mod race;
mod record;
mod table;
mod works;

use crate::exit::Exit;
use crate::python::Venv;
use crate::{cargo, interrupt, units};
use anyhow::Context as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use works::{WORKS, Work};

/// Rounds of every race when measuring.
const ROUNDS: usize = 3;
/// Changes when the data that `oqvl-peers` makes changes: data of older versions are made anew.
const DATA_VERSION: u32 = 1;
/// Arguments of `cargo xtask bench peers`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Works to run; all of them if none is named
    works: Vec<String>,
    /// Tiny inputs, one round, the same checks: whether everything still runs and agrees
    #[arg(long)]
    quick: bool,
    /// Rounds of every race
    #[arg(long, default_value_t = ROUNDS)]
    rounds: usize,
    /// Put the results into docs/benchmarks.md
    #[arg(long)]
    write_docs: bool,
    /// Take the binaries as they are
    #[arg(long)]
    no_build: bool,
}

/// Whether binaries are built before they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Build {
    First,
    AsTheyAre,
}

/// What every work is given.
#[derive(Debug)]
pub(crate) struct Context {
    venv: Venv,
    quick: bool,
    rounds: usize,
    /// Inputs; kept between runs.
    data_dir: PathBuf,
    /// Outputs of the sides; emptied before every run.
    scratch_dir: PathBuf,
}

impl Context {
    /// The environment with torch and transformers, made at the first use.
    fn models_venv(&self) -> anyhow::Result<Venv> {
        crate::fixtures::venv()?.map_err(Exit::wrong_request)
    }

    /// A script of `benches/peers`.
    fn script(&self, name: &str) -> PathBuf {
        scripts_dir().join(name)
    }

    /// A binary of this workspace.
    fn binary(&self, name: &str) -> anyhow::Result<PathBuf> {
        Ok(cargo::binary_dir()?.join(name))
    }

    /// One of two sizes.
    fn size<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Data made by `oqvl-peers`, made now unless they are there already.
    ///
    /// `{dir}` in the arguments stands for the place; what is there counts only if the last making of it ended well.
    fn data(&self, name: &str, args: &[&str]) -> anyhow::Result<PathBuf> {
        let dir = self.data_dir.join(name);
        let recipe = format!("version {DATA_VERSION}: {}", args.join(" "));
        let marker = self.data_dir.join(format!("{name}.made"));
        if fs::read_to_string(&marker).is_ok_and(|made| made == recipe) {
            return Ok(dir);
        }
        println!("  making {name}");
        remove_all(&marker)?;
        remove_all(&dir)?;
        fs::create_dir_all(&self.data_dir)?;
        let place = dir.to_string_lossy().into_owned();
        let mut command = Command::new(self.binary(PEERS_BINARY)?);
        command.args(args.iter().map(|arg| if *arg == "{dir}" { place.as_str() } else { arg }));
        let status = command.stdin(Stdio::null()).status().context("cannot start oqvl-peers")?;
        anyhow::ensure!(status.success(), "making {name} failed ({status})");
        crate::json_file::write_bytes(&marker, recipe.as_bytes())?;
        Ok(dir)
    }

    /// Real images and captions beside the checkout, if they are there.
    fn shared_data(&self) -> Option<PathBuf> {
        let dir = cargo::workspace_root().join("../shared/data");
        dir.is_dir().then_some(dir)
    }

    /// An empty directory for the output of one side; its parent exists.
    fn scratch(&self, name: &str) -> PathBuf {
        self.scratch_dir.join(name)
    }
}

/// The binary with our side of what no stage does, and with the data.
const PEERS_BINARY: &str = "oqvl-peers";

fn scripts_dir() -> PathBuf {
    cargo::workspace_root().join("benches/peers")
}

fn bench_dir() -> anyhow::Result<PathBuf> {
    Ok(cargo::target_dir()?.join("bench"))
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    interrupt::listen()?;
    let works = chosen(&args.works)?;
    let rounds = if args.quick { 1 } else { args.rounds.max(1) };
    let build = if args.no_build { Build::AsTheyAre } else { Build::First };
    match prepare(args.quick, rounds, build)? {
        Prepared::Ready(context) => measure(&context, &works, args.write_docs),
        Prepared::Impossible(why) => Err(Exit::wrong_request(why)),
    }
}

/// The smoke run: every work on tiny input. Says why if it cannot run here.
pub(crate) fn smoke() -> anyhow::Result<Option<String>> {
    match prepare(true, 1, Build::First)? {
        Prepared::Ready(context) => {
            let works: Vec<Work> = WORKS.into_iter().filter(|work| !work.runs_networks).collect();
            measure(&context, &works, false).map(|()| None)
        }
        Prepared::Impossible(why) => Ok(Some(why)),
    }
}

enum Prepared {
    Ready(Context),
    /// Something this needs cannot be had here.
    Impossible(String),
}

fn prepare(quick: bool, rounds: usize, build: Build) -> anyhow::Result<Prepared> {
    let dir = bench_dir()?;
    let venv = match Venv::prepare(&dir.join("venv"), &scripts_dir().join("requirements.txt"))? {
        Ok(venv) => venv,
        Err(why) => return Ok(Prepared::Impossible(why)),
    };
    if build == Build::First {
        cargo::build_stages_and("oqvl-benches")?;
    }
    let scratch_dir = dir.join("scratch");
    remove_all(&scratch_dir)?;
    fs::create_dir_all(&scratch_dir).with_context(|| scratch_dir.display().to_string())?;
    let data_dir = dir.join(if quick { "data-quick" } else { "data" });
    Ok(Prepared::Ready(Context { venv, quick, rounds, data_dir, scratch_dir }))
}

fn measure(context: &Context, works: &[Work], write_docs: bool) -> anyhow::Result<()> {
    let started = Instant::now();
    let path = bench_dir()?.join(if context.quick { "peers-quick.json" } else { "peers.json" });
    let mut failed = Vec::new();
    for work in works {
        println!("{}", work.name);
        let record = (work.run)(context).with_context(|| format!("work `{}`", work.name))?;
        failed.extend(record.failed_checks());
        record::store(&path, record)?;
    }
    remove_all(&context.scratch_dir)?;
    let records = record::load(&path)?;
    println!("\n{}", table::overview(&records));
    println!("wrote {} in {}", path.display(), units::duration(started.elapsed()));
    if write_docs {
        anyhow::ensure!(!context.quick, "--quick measures nothing that belongs into docs/benchmarks.md");
        table::write_docs(&cargo::workspace_root().join("docs/benchmarks.md"), &records)?;
    }
    anyhow::ensure!(failed.is_empty(), "the sides do not agree: {}", failed.join("; "));
    Ok(())
}

fn chosen(names: &[String]) -> anyhow::Result<Vec<Work>> {
    if names.is_empty() {
        return Ok(WORKS.to_vec());
    }
    let known = || WORKS.map(|work| work.name).join(", ");
    names
        .iter()
        .map(|name| {
            let found = WORKS.into_iter().find(|work| work.name == name);
            found.ok_or_else(|| Exit::wrong_request(format!("no work `{name}`: there are {}", known())))
        })
        .collect()
}

/// Removes a file or a directory, if it is there.
fn remove_all(path: &Path) -> anyhow::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => return Ok(()),
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}
