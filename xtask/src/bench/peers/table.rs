//! The results as people read them.

use super::record::{Ours, RaceRecord, SideRecord, WorkRecord};
use super::works::WORKS;
use crate::{marked_text, units};
use anyhow::Context as _;
use std::collections::BTreeMap;
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

const HEAD: &str =
    "| work | | ours | CPU | wall | loop | memory | asked | |\n|---|---|---|---:|---:|---:|---:|---:|---|\n";

/// Renews the figures of the page: those of these works. What other works gave in other runs stays.
pub(super) fn write_docs(page: &Path, records: &[WorkRecord]) -> anyhow::Result<()> {
    let old = std::fs::read_to_string(page).with_context(|| page.display().to_string())?;
    let mut results = Results::parse(marked_text::part(&old, PART)?);
    for record in records {
        results.0.insert(record.work.clone(), (rows(record), section(record)));
    }
    marked_text::replace(page, PART, &results.markdown())
}

/// The results of every work: its rows of the first table, and its section.
#[derive(Debug, Default, PartialEq, Eq)]
struct Results(BTreeMap<String, (String, String)>);

impl Results {
    /// Reads what [`markdown`](Self::markdown) wrote.
    fn parse(text: &str) -> Self {
        let mut results = Self::default();
        let (table, sections) = text.split_once(SECTION).unwrap_or((text, ""));
        for row in table.lines() {
            let work = row.strip_prefix("| ").and_then(|row| row.split_once(" |")).map(|(work, _)| work);
            if let Some(work) = work.filter(|work| *work != "work") {
                let rows = &mut results.0.entry(work.to_owned()).or_default().0;
                *rows += row;
                rows.push('\n');
            }
        }
        for section in sections.split(SECTION) {
            let work = section.lines().next().unwrap_or_default();
            if let Some((_, old)) = results.0.get_mut(work) {
                *old = format!("{SECTION}{}\n", section.trim_end());
            }
        }
        results
    }

    /// The ratios in one table, then every work with its figures, in the order in which works are run.
    fn markdown(&self) -> String {
        let results = || WORKS.iter().filter_map(|work| self.0.get(work.name));
        let rows: String = results().map(|(rows, _)| rows.as_str()).collect();
        let sections: String = results().map(|(_, section)| section.as_str()).collect();
        format!("{HEAD}{rows}{sections}")
    }
}

/// What a section begins with.
const SECTION: &str = "\n### ";

fn rows(record: &WorkRecord) -> String {
    let mut text = String::new();
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
    text
}

fn section(record: &WorkRecord) -> String {
    let mut text = format!("{SECTION}{}\n\n{}.\n\n", record.work, capitalised(&record.description));
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

    #[test]
    fn what_other_works_gave_stays() {
        let page =
            std::fs::read_to_string(crate::cargo::workspace_root().join("docs/benchmarks.md")).unwrap();
        let results = Results::parse(marked_text::part(&page, PART).unwrap());
        let names: Vec<&str> = WORKS.iter().map(|work| work.name).collect();
        assert!(names.iter().all(|name| results.0.contains_key(*name)), "{:?}", results.0.keys());
        assert_eq!(Results::parse(&results.markdown()), results);
        assert_eq!(marked_text::replaced(&page, PART, &results.markdown()).unwrap(), page);
    }

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
