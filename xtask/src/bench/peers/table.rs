//! The results as people read them.

use super::record::{Ours, RaceRecord, SideRecord, WorkRecord};
use crate::{marked_text, units};
use std::fmt::Write as _;
use std::path::Path;

/// A line per comparison, for a terminal.
pub(super) fn overview(records: &[WorkRecord]) -> String {
    let mut text = String::new();
    for record in records {
        for (race, ours) in comparisons(record) {
            let verdict = ours.target.as_ref().map_or(String::new(), |target| {
                let word = if target.met { "met" } else { "NOT met" };
                format!(", {:.1}x of at least {}x: {word}", target.measured, target.at_least)
            });
            let line = format!(
                "{}, {}, {}: cpu {:.1}x, wall {:.1}x, memory {}{verdict}",
                record.work,
                race.name,
                ours.side.name,
                ours.ratios.cpu_seconds,
                ours.ratios.wall_seconds,
                ours.ratios.peak_memory.map_or("?".to_owned(), |ratio| format!("{ratio:.1}x"))
            );
            text += &line;
            text.push('\n');
        }
    }
    text
}

fn comparisons(record: &WorkRecord) -> impl Iterator<Item = (&RaceRecord, &Ours)> {
    record.races.iter().flat_map(|race| race.ours.iter().map(move |ours| (race, ours)))
}

/// The part of the page that is written.
const PART: &str = "peers";

/// Renews the figures of the page.
pub(super) fn write_docs(page: &Path, records: &[WorkRecord]) -> anyhow::Result<()> {
    marked_text::replace(page, PART, &markdown(records))
}

/// The results as Markdown: the ratios in one table, then every work with its figures.
fn markdown(records: &[WorkRecord]) -> String {
    let mut text = String::new();
    text += "| work | | ours | CPU | wall | loop | memory | asked | |\n|---|---|---|---:|---:|---:|---:|---:|---|\n";
    for record in records {
        for (race, ours) in comparisons(record) {
            let (asked, verdict) = match &ours.target {
                Some(target) => (
                    format!("{} {}x", target.metric.name(), target.at_least),
                    if target.met { "met" } else { "**not met**" },
                ),
                None => (String::new(), ""),
            };
            let ratio = |ratio: Option<f64>| ratio.map_or(String::new(), |ratio| format!("{ratio:.1}x"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {asked} | {verdict} |",
                record.work,
                race.name,
                ours.side.name,
                ratio(Some(ours.ratios.cpu_seconds)),
                ratio(Some(ours.ratios.wall_seconds)),
                ratio(ours.ratios.loop_seconds.or(ours.ratios.peer_loop_to_our_wall)),
                ratio(ours.ratios.peak_memory),
            );
        }
    }
    for record in records {
        text += &work_section(record);
    }
    text
}

fn work_section(record: &WorkRecord) -> String {
    let mut text = format!("\n### {}\n\n{}.\n\n", record.work, capitalised(&record.description));
    let _ = writeln!(text, "Input: `{}`.\n", record.input);
    let _ = writeln!(
        text,
        "| | {} | CPU s | wall s | loop s | per CPU second | peak memory |\n|---|---:|---:|---:|---:|---:|---:|",
        record.items
    );
    for race in &record.races {
        for side in std::iter::once(&race.peer).chain(race.ours.iter().map(|ours| &ours.side)) {
            text += &side_row(race, side);
        }
    }
    let failed = record.failed_checks();
    let checks = record.checks.iter().map(|check| check.what.as_str()).collect::<Vec<_>>().join("; ");
    let _ = match failed.is_empty() {
        true => writeln!(text, "\nBoth sides agree on: {checks}."),
        false => writeln!(text, "\n**The sides do not agree**: {}.", failed.join("; ")),
    };
    let load = record.load.map(|load| load.map_or("?".to_owned(), |load| format!("{load:.1}")));
    let _ = writeln!(
        text,
        "\nMedian of {} rounds in turn; load average {} before, {} after; {}, {} cores, {}; commit {}; {}, Python {}.",
        record.rounds,
        load[0],
        load[1],
        record.machine.processor,
        record.machine.num_cores,
        units::bytes(record.machine.memory_bytes),
        record.commit.as_deref().unwrap_or("unknown"),
        record.rustc.as_deref().unwrap_or("unknown rustc"),
        record.versions.get("python").and_then(|version| version.as_str()).unwrap_or("unknown"),
    );
    text
}

fn side_row(race: &RaceRecord, side: &SideRecord) -> String {
    let rate = if side.cpu_seconds > 0.0 { race.num_items as f64 / side.cpu_seconds } else { 0.0 };
    format!(
        "| {}, {} | {} | {:.2} | {:.2} | {} | {rate:.0} | {} |\n",
        race.name,
        side.name,
        units::count(race.num_items),
        side.cpu_seconds,
        side.wall_seconds,
        side.loop_seconds.map_or(String::new(), |seconds| format!("{seconds:.3}")),
        units::bytes(side.peak_memory_bytes)
    )
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    characters
        .next()
        .map_or(String::new(), |first| first.to_uppercase().collect::<String>() + characters.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::peers::works::WORKS;

    #[test]
    fn the_page_has_room_for_the_results_and_names_every_work() {
        let page =
            std::fs::read_to_string(crate::cargo::workspace_root().join("docs/benchmarks.md")).unwrap();
        assert!(marked_text::replaced(&page, PART, "").is_ok(), "lines where results begin and end");
        for work in WORKS {
            assert!(page.contains(&format!("| `{}` |", work.name)), "{} is not described", work.name);
        }
    }
}
