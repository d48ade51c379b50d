//! `cargo xtask kernels check`: every proof of the GPU kernels that needs no GPU, and the table that says what is proven.

mod ops;
mod ptxas;
mod suites;

use crate::cuda::{self, toolkit::Toolkit};
use crate::machine::Machine;
use crate::{cargo, json_file};
use ops::{OPS, Op, Source};
use ptxas::Usage;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use suites::{EMULATION, KERNELS, Tally, Test, WORKED_EXAMPLE};

/// What was seen on a GPU; see docs/gpu.md.
const GPU_RESULTS: &str = "docs/gpu.json";
/// How kernels run on a CPU, in the words of the emulation.
const MODES: [&str; 3] = ["plain", "address", "race"];
/// What kernels are compiled for.
const TARGETS: [&str; 2] = ["sm_80", "sm_90a"];

/// Arguments of `cargo xtask kernels`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run every proof that needs no GPU, print what is proven of each operation, and write target/kernels.json
    Check,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    match args.command {
        Command::Check => {
            let skipped = check()?;
            crate::test::print_skipped(&skipped);
            Ok(())
        }
    }
}

/// What is proven of one operation: `None` is what was not tried, and for a library or a sequence what cannot be.
#[derive(Debug, Serialize)]
struct Row {
    op: &'static str,
    /// Tests of the CPU side.
    cpu_tested: Tally,
    /// Tests of the kernels' own source on a CPU, by mode.
    emulated: Option<BTreeMap<&'static str, Option<Tally>>>,
    /// Whether it compiles, by architecture.
    compiled: Option<BTreeMap<&'static str, Option<bool>>>,
    /// Checks on a GPU that passed and failed.
    gpu_checked: Option<Tally>,
    /// Figures measured on a GPU.
    gpu_measured: Option<usize>,
}

/// `target/kernels.json`.
#[derive(Debug, Serialize)]
struct Report<'a> {
    commit: Option<String>,
    machine: Machine,
    /// What the kernels were compiled with.
    toolkit: Option<String>,
    /// The GPU of the last two columns.
    gpu: Option<String>,
    ops: &'a [Row],
    kernels: &'a [Usage],
    skipped: &'a [String],
}

/// What `oqvl-gpu` leaves, as far as the table needs it.
#[derive(Debug, Deserialize)]
struct GpuResults {
    gpu: String,
    #[serde(default)]
    checks: Vec<GpuCheck>,
    #[serde(default)]
    figures: Vec<GpuFigure>,
}

#[derive(Debug, Deserialize)]
struct GpuCheck {
    op: String,
    passed: bool,
}

#[derive(Debug, Deserialize)]
struct GpuFigure {
    op: String,
}

/// Everything that was run.
#[derive(Debug, Default)]
struct Evidence {
    cpu: Vec<Test>,
    /// Tests by mode; `None` where the mode cannot be run here.
    emulated: BTreeMap<&'static str, Option<Vec<Test>>>,
    /// Kernels that ran on the CPU, with the shared memory of a block in bytes.
    launched: BTreeMap<String, u32>,
    /// `None` without a toolkit.
    usages: Option<Vec<Usage>>,
    gpu: Option<GpuResults>,
}

/// Runs all proofs, prints and writes the table. Fails if a proof fails; returns what could not be tried.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let mut skipped = Vec::new();
    let programs = suites::build()?;
    let names: Vec<&str> = OPS.iter().map(|op| op.name).collect();
    let mut evidence = Evidence { cpu: suites::run(&programs, KERNELS, &names, &[])?, ..Evidence::default() };
    evidence.cpu.extend(suites::run(&programs, WORKED_EXAMPLE, &[], &[])?);
    let launches = cargo::target_dir()?.join("emulation/launches.txt");
    fs::create_dir_all(launches.parent().expect("joined above"))?;
    if launches.exists() {
        fs::remove_file(&launches)?;
    }
    for mode in MODES {
        let mut environment = vec![("OQVL_EMULATION", mode.to_owned())];
        environment.push(("OQVL_EMULATION_LAUNCHES", launches.to_string_lossy().into_owned()));
        if mode == "address" {
            let Some(sanitizer) = suites::address_environment() else {
                skipped.push("the kernels under the address sanitizer (no libasan of g++)".to_owned());
                evidence.emulated.insert(mode, None);
                continue;
            };
            environment.extend(sanitizer);
        }
        println!("running the kernels on the CPU ({mode})");
        let tests = suites::run(&programs, EMULATION, &[], &environment)?;
        skipped.extend(suites::skips(&tests));
        evidence.emulated.insert(mode, Some(tests));
    }
    if launches.exists() {
        evidence.launched = launched(&fs::read_to_string(&launches)?);
    }
    let mut toolkit_name = None;
    match Toolkit::prepare()? {
        Ok(toolkit) => {
            println!("compiling the kernels with {}", toolkit.version());
            toolkit_name = Some(toolkit.version());
            let mut usages = ptxas::read(&cuda::compile_kernels(&toolkit)?)?;
            for usage in &mut usages {
                usage.dynamic_shared_bytes = evidence.launched.get(&usage.kernel).copied();
            }
            evidence.usages = Some(usages);
        }
        Err(why) => skipped.push(format!("compiling the kernels ({why})")),
    }
    let results = cargo::workspace_root().join(GPU_RESULTS);
    evidence.gpu = results.exists().then(|| json_file::read(&results)).transpose()?;
    if evidence.gpu.is_none() {
        skipped.push("the kernels on a GPU (none so far: `cargo xtask gpu check`)".to_owned());
    }

    let rows: Vec<Row> = OPS.iter().map(|op| row(op, &evidence)).collect();
    let usages = evidence.usages.as_deref().unwrap_or_default();
    println!("\n{}\n{}", table(&rows, evidence.gpu.as_ref()), usage_table(usages));
    let path = cargo::target_dir()?.join("kernels.json");
    let report = Report {
        commit: cargo::commit(),
        machine: Machine::this(),
        toolkit: toolkit_name,
        gpu: evidence.gpu.as_ref().map(|results| results.gpu.clone()),
        ops: &rows,
        kernels: usages,
        skipped: &skipped,
    };
    json_file::write(&path, &report)?;
    println!("written to {}", path.display());
    let broken = broken(&evidence);
    anyhow::ensure!(broken.is_empty(), "{} proofs fail:\n  {}", broken.len(), broken.join("\n  "));
    Ok(skipped)
}

fn row(op: &Op, evidence: &Evidence) -> Row {
    let emulated = || {
        let tallies = evidence
            .emulated
            .iter()
            .map(|(mode, tests)| (*mode, tests.as_ref().map(|tests| suites::tally(tests, op.name))));
        Some(tallies.collect())
    };
    let compiled = |module: &'static str| {
        let is_compiled = |target: &str| {
            let usages = evidence.usages.as_ref()?;
            Some(usages.iter().any(|usage| usage.module == module && usage.target == target))
        };
        Some(TARGETS.iter().map(|target| (*target, is_compiled(target))).collect())
    };
    let (emulated, compiled) = match op.source {
        Source::Ours { module, .. } => (emulated(), compiled(module)),
        Source::Sequence => (emulated(), None),
        Source::Library => (None, None),
    };
    let checks = evidence.gpu.as_ref().map(|results| {
        let mut tally = Tally::default();
        for check in results.checks.iter().filter(|check| check.op == op.name) {
            *(if check.passed { &mut tally.passed } else { &mut tally.failed }) += 1;
        }
        tally
    });
    let figures = |results: &GpuResults| results.figures.iter().filter(|figure| figure.op == op.name).count();
    Row {
        op: op.name,
        cpu_tested: suites::tally(&evidence.cpu, op.name),
        emulated,
        compiled,
        gpu_checked: checks,
        gpu_measured: evidence.gpu.as_ref().map(figures),
    }
}

/// What the emulation writes of the kernels that ran: a name and bytes a line. The most bytes of each.
fn launched(text: &str) -> BTreeMap<String, u32> {
    let mut launched = BTreeMap::new();
    for (kernel, bytes) in text.lines().filter_map(|line| line.split_once(' ')) {
        let bytes = bytes.parse().unwrap_or(0);
        let most = launched.entry(kernel.to_owned()).or_insert(bytes);
        *most = bytes.max(*most);
    }
    launched
}

/// What must not be: tests that fail, operations without a proof, hot kernels that spill.
fn broken(evidence: &Evidence) -> Vec<String> {
    let mut broken: Vec<String> = suites::failures(&evidence.cpu).collect();
    for (mode, tests) in &evidence.emulated {
        let failures = tests.iter().flat_map(|tests| suites::failures(tests));
        broken.extend(failures.map(|failure| format!("{failure} ({mode})")));
    }
    for op in &OPS {
        if suites::tally(&evidence.cpu, op.name).passed == 0 {
            broken.push(format!("{} has no test that passes on a CPU", op.name));
        }
        if matches!(op.source, Source::Library) {
            continue;
        }
        for (mode, tests) in &evidence.emulated {
            let tally = tests.as_ref().map(|tests| suites::tally(tests, op.name));
            if tally.is_some_and(|tally| tally.passed + tally.skipped == 0) {
                broken.push(format!("{} has no test that passes in emulation ({mode})", op.name));
            }
        }
        let (Source::Ours { module, hot }, Some(usages)) = (&op.source, &evidence.usages) else { continue };
        let of_op = || usages.iter().filter(|usage| usage.module == *module);
        for target in TARGETS {
            if !of_op().any(|usage| usage.target == target) {
                broken.push(format!("{module}.cu has no kernel for {target}"));
            }
        }
        if evidence.emulated.values().any(Option::is_some) {
            let never: BTreeSet<&str> = of_op()
                .filter(|usage| usage.dynamic_shared_bytes.is_none())
                .map(|usage| usage.kernel.as_str())
                .collect();
            broken.extend(never.iter().map(|kernel| format!("{kernel} was never run on the CPU")));
        }
        for (beginning, max_spill_bytes) in *hot {
            let kernels: Vec<&Usage> = of_op().filter(|usage| usage.kernel.starts_with(*beginning)).collect();
            if kernels.is_empty() {
                broken.push(format!("{module}.cu has no kernel named {beginning}*, which is said to be hot"));
            }
            for usage in kernels.iter().filter(|usage| usage.spill_bytes() > *max_spill_bytes) {
                broken.push(format!(
                    "{} spills {} bytes on {}; it is hot, the bound is {max_spill_bytes}",
                    usage.kernel,
                    usage.spill_bytes(),
                    usage.target
                ));
            }
        }
    }
    broken
}

/// `12`, `12 of 13`, or why there is nothing.
fn tally_text(tally: Option<Tally>) -> String {
    match tally {
        None => "not run".to_owned(),
        Some(Tally { passed: 0, failed: 0, skipped: 0 }) => "none".to_owned(),
        Some(Tally { passed: 0, failed: 0, .. }) => "skipped".to_owned(),
        Some(Tally { passed, failed: 0, .. }) => format!("{passed} passed"),
        Some(Tally { passed, failed, .. }) => format!("**{failed} of {} failed**", passed + failed),
    }
}

fn table(rows: &[Row], gpu: Option<&GpuResults>) -> String {
    const LIBRARY: &str = "library";
    let mut text = "| op | cpu_tested |".to_owned();
    let columns = MODES.map(|mode| format!(" emulated: {mode} |")).concat();
    let columns = columns + &TARGETS.map(|target| format!(" compiled: {target} |")).concat();
    let _ = writeln!(text, "{columns} gpu_checked | gpu_measured |");
    let _ = writeln!(text, "|---|---|{}---|---|", "---|".repeat(MODES.len() + TARGETS.len()));
    for row in rows {
        let _ = write!(text, "| {} | {} |", row.op, tally_text(Some(row.cpu_tested)));
        for mode in MODES {
            let cell = row
                .emulated
                .as_ref()
                .map_or(LIBRARY.to_owned(), |modes| tally_text(modes.get(mode).copied().flatten()));
            let _ = write!(text, " {cell} |");
        }
        for target in TARGETS {
            let none = if row.emulated.is_some() { "its parts" } else { LIBRARY };
            let cell =
                row.compiled.as_ref().map_or(none, |targets| match targets.get(target).copied().flatten() {
                    Some(true) => "yes",
                    Some(false) => "**no**",
                    None => "not run",
                });
            let _ = write!(text, " {cell} |");
        }
        let checked = if gpu.is_some() { tally_text(row.gpu_checked) } else { "no GPU".to_owned() };
        let measured = match row.gpu_measured {
            Some(0) => "none".to_owned(),
            Some(number) => format!("{number} figures"),
            None => "no GPU".to_owned(),
        };
        let _ = writeln!(text, " {checked} | {measured} |");
    }
    text
}

fn usage_table(usages: &[Usage]) -> String {
    let hot = |usage: &Usage| {
        OPS.iter().any(|op| match op.source {
            Source::Ours { module, hot } => {
                module == usage.module && hot.iter().any(|(name, _)| usage.kernel.starts_with(*name))
            }
            Source::Library | Source::Sequence => false,
        })
    };
    let mut text = "| kernel | for | registers | shared bytes | stack | spill stores | spill loads | |\n\
                    |---|---|---:|---:|---:|---:|---:|---|\n"
        .to_owned();
    for usage in usages {
        let Usage { kernel, target, registers, stack_bytes, .. } = usage;
        let shared = usage
            .dynamic_shared_bytes
            .map_or("not run".to_owned(), |dynamic| (usage.static_shared_bytes + dynamic).to_string());
        let _ = writeln!(
            text,
            "| {kernel} | {target} | {registers} | {shared} | {stack_bytes} | {} | {} | {} |",
            usage.spill_store_bytes,
            usage.spill_load_bytes,
            if hot(usage) { "hot" } else { "" }
        );
    }
    text
}
