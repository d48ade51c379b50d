//! `cargo xtask parity`: how far our networks, token ids, pixels and exports are from the Python originals'.
//!
//! The package `oqvl-parity` measures; here its rows become a table and `target/parity.json`.

use crate::machine::Machine;
use crate::{cargo, fixtures, json_file, marked_text};
use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::process::{Command, Stdio};

const BINARY: &str = "oqvl-parity";
const SKIPPED: &str = "skipped: ";
/// The page with the table, and the part of it that is written.
const PAGE: &str = "docs/parity.md";
const PART: &str = "parity";

/// Arguments of `cargo xtask parity`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Put the table into docs/parity.md
    #[arg(long)]
    write_docs: bool,
    /// Take the binary as it is
    #[arg(long)]
    no_build: bool,
    /// Do not load exported folders with transformers, whose environment takes 5 GB below target/
    #[arg(long)]
    no_python: bool,
}

/// One comparison, as `oqvl_parity::Row` writes it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Row {
    architecture: String,
    fixture: String,
    dtype: String,
    what: String,
    max_error: Option<f64>,
    bound: Option<f64>,
    pytorch_error: Option<f64>,
    equal: Option<Equal>,
    passed: bool,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Equal {
    num_equal: usize,
    num_items: usize,
}

/// A row, and what it was measured with.
#[derive(Serialize)]
struct Record<'a> {
    #[serde(flatten)]
    row: &'a Row,
    commit: Option<&'a str>,
    machine: &'a Machine,
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let skipped = measure(args)?;
    skipped.iter().for_each(|why| println!("{SKIPPED}{why}"));
    Ok(())
}

/// As a part of the tests. Returns what was skipped.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    measure(&Args::default())
}

fn measure(args: &Args) -> anyhow::Result<Vec<String>> {
    if !args.no_build {
        cargo::build_stages_and(BINARY)?;
    }
    let mut compare = Command::new(cargo::binary_dir()?.join(BINARY));
    let mut skipped = Vec::new();
    if !args.no_python {
        match fixtures::venv()? {
            Ok(venv) => {
                compare.arg("--python").arg(venv.python());
            }
            Err(why) => skipped.push(format!("the environment with transformers: {why}")),
        }
    }
    let output = compare.stdin(Stdio::null()).output();
    let output = output.context("cannot start oqvl-parity")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "oqvl-parity failed ({}): {said}", output.status);
    let lines = String::from_utf8_lossy(&output.stdout);
    let rows: Vec<Row> =
        lines.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("oqvl-parity")?;
    let (commit, machine) = (cargo::commit(), Machine::this());
    let records: Vec<Record<'_>> =
        rows.iter().map(|row| Record { row, commit: commit.as_deref(), machine: &machine }).collect();
    let path = cargo::target_dir()?.join("parity.json");
    json_file::write(&path, &records)?;
    let text = markdown(&rows);
    println!("{text}\n{} comparisons in {}", rows.len(), path.display());
    if args.write_docs {
        let commit = commit.as_deref().unwrap_or("unknown");
        let source =
            format!("{text}\nCommit {commit}; {}, {} cores.\n", machine.processor, machine.num_cores);
        marked_text::replace(&cargo::workspace_root().join(PAGE), PART, &source)?;
    }
    let failed: Vec<String> = rows.iter().filter(|row| !row.passed).map(failure).collect();
    anyhow::ensure!(failed.is_empty(), "{} rows miss their bound:\n  {}", failed.len(), failed.join("\n  "));
    skipped.extend(said.lines().filter_map(|line| line.strip_prefix(SKIPPED)).map(str::to_owned));
    Ok(skipped)
}

fn failure(row: &Row) -> String {
    let Row { fixture, dtype, what, .. } = row;
    match row.equal {
        Some(Equal { num_equal, num_items }) => {
            format!("{fixture}, {dtype}, {what}: {num_equal} of {num_items} are equal")
        }
        None => format!(
            "{fixture}, {dtype}, {what}: error {}, bound {}",
            figure(row.max_error),
            figure(row.bound)
        ),
    }
}

fn figure(value: Option<f64>) -> String {
    value.map_or("not a number".to_owned(), |value| format!("{value:.1e}"))
}

/// A line for every output of every kind of network: of its fixtures the one that comes closest to its bound.
fn markdown(rows: &[Row]) -> String {
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        let same = |group: &&mut Vec<&Row>| {
            let first = group[0];
            (&first.architecture, &first.dtype, &first.what) == (&row.architecture, &row.dtype, &row.what)
        };
        match groups.iter_mut().find(same) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    let mut text =
        "| architecture | dtype | what | fixtures | max error | PyTorch's own | bound | equal | |\n\
                    |---|---|---|---:|---:|---:|---:|---:|---|\n"
            .to_owned();
    for group in groups {
        let share = |row: &Row| match (row.max_error, row.bound) {
            (Some(error), Some(bound)) if bound > 0.0 => error / bound,
            _ => f64::INFINITY,
        };
        let worst = group.iter().max_by(|a, b| share(a).total_cmp(&share(b))).expect("no group is empty");
        let equal = group.iter().filter_map(|row| row.equal);
        let (num_equal, num_items) =
            equal.fold((0, 0), |(sum, all), equal| (sum + equal.num_equal, all + equal.num_items));
        let is_tensor = worst.equal.is_none();
        let shown = |value: Option<f64>| if is_tensor { figure(value) } else { String::new() };
        let pytorch = worst.pytorch_error.map_or(String::new(), |error| figure(Some(error)));
        let equal = if is_tensor { String::new() } else { format!("{num_equal} of {num_items}") };
        let verdict = if group.iter().all(|row| row.passed) { "kept" } else { "**missed**" };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {pytorch} | {} | {equal} | {verdict} |",
            worst.architecture,
            worst.dtype,
            worst.what,
            group.len(),
            shown(worst.max_error),
            shown(worst.bound),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(fixture: &str, max_error: Option<f64>, equal: Option<Equal>, passed: bool) -> Row {
        Row {
            architecture: "A".to_owned(),
            fixture: fixture.to_owned(),
            dtype: "f32".to_owned(),
            what: if equal.is_some() { "ids" } else { "logits" }.to_owned(),
            max_error,
            bound: equal.is_none().then_some(1e-5),
            pytorch_error: None,
            equal,
            passed,
        }
    }

    #[test]
    fn the_page_has_room_for_the_table() {
        let page = std::fs::read_to_string(cargo::workspace_root().join(PAGE)).unwrap();
        assert!(marked_text::replaced(&page, PART, "").is_ok());
    }

    #[test]
    fn a_line_shows_the_worst_of_its_fixtures_and_all_that_is_equal() {
        let equal = |num_equal| Some(Equal { num_equal, num_items: 64 });
        let rows = [
            row("a/1", Some(2e-7), None, true),
            row("a/2", Some(3e-6), None, true),
            row("a/1", None, equal(64), true),
            row("a/2", None, equal(63), false),
        ];
        let text = markdown(&rows);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| A | f32 | logits | 2 | 3.0e-6 |  | 1.0e-5 |  | kept |",
                "| A | f32 | ids | 2 |  |  |  | 127 of 128 | **missed** |",
            ]
        );
        assert_eq!(failure(&rows[3]), "a/2, f32, ids: 63 of 64 are equal");
        let broken = row("a/3", None, None, false);
        assert_eq!(failure(&broken), "a/3, f32, logits: error not a number, bound 1.0e-5");
        assert!(markdown(&[broken]).contains("| not a number |"));
    }
}
