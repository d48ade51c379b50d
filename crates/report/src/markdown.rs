//! The whole page for people: `report.md`.

use crate::RunReport;
use crate::curves::BARS;
use crate::run_report::PACKING_DISTRIBUTIONS;
use serde_json::Value;
use std::fmt::Display;

/// Renders the page.
pub(crate) fn render(report: &RunReport) -> String {
    let sections = [
        overview(report),
        cost(report),
        fetch(report),
        faults(report),
        filters(report),
        subsets(report),
        counts(report),
        packing(report),
        training(report),
        evaluation(report),
        definitions(report),
    ];
    let mut page: String = sections.into_iter().flatten().collect::<Vec<_>>().join("\n\n");
    page.push('\n');
    page
}

/// A table: headings, then rows. The first column is left-aligned, numbers go right.
fn table(headings: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let alignment = (0..headings.len()).map(|column| if column == 0 { "---" } else { "---:" });
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let owned = |cells: &[&str]| cells.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>();
    let mut lines = vec![line(&owned(headings)), line(&owned(&alignment.collect::<Vec<_>>()))];
    lines.extend(rows.into_iter().map(|row| line(&row)));
    lines.join("\n")
}

fn overview(report: &RunReport) -> Option<String> {
    let mut rows = vec![
        vec!["wall clock of all stages".into(), seconds(report.seconds)],
        vec!["peak memory".into(), mebibytes(report.peak_rss_bytes)],
    ];
    if let Some(fetch) = &report.fetch {
        rows.push(vec!["images fetched".into(), format!("{} of {}", fetch.kept, fetch.seen)]);
    }
    if let Some(filters) = &report.filters {
        if filters.clip_auc.is_some() {
            rows.push(vec!["CLIP score, AUC clean against mismatched".into(), optional(filters.clip_auc)]);
        }
        if filters.mlm_recall.is_some() {
            let both = format!("{} / {}", optional(filters.mlm_precision), optional(filters.mlm_recall));
            rows.push(vec!["MLM-Filter, precision / recall".into(), both]);
        }
    }
    if let Some(efficiency) = report.packing.as_ref().and_then(|numbers| numbers.get("efficiency")) {
        rows.push(vec!["packing efficiency".into(), number(efficiency)]);
    }
    rows.extend(report.eval.iter().map(|(name, accuracy)| vec![words(name), format!("{accuracy:.3}")]));
    let commit = if report.commit.is_empty() { "unknown" } else { &report.commit };
    let source = format!("Seed {}, commit {commit}.", report.seed);
    Some(format!("# What this run did\n\n{source}\n\n{}", table(&["measure", "value"], rows)))
}

fn cost(report: &RunReport) -> Option<String> {
    let rows = report.stages.iter().map(|stage| {
        let skipped = if stage.skipped { "up to date" } else { "" };
        vec![stage.name.clone(), seconds(stage.seconds), mebibytes(stage.peak_rss_bytes), skipped.to_owned()]
    });
    let last = report
        .last_run_seconds
        .map(|time| format!("\n\nThe invocation that wrote this took {}.", seconds(time)));
    let table = table(&["stage", "wall clock", "peak memory", "last time"], rows);
    Some(format!("## Cost\n\n{table}{}", last.unwrap_or_default()))
}

fn fetch(report: &RunReport) -> Option<String> {
    let fetch = report.fetch.as_ref()?;
    let rejected = fetch.rejected.iter().map(|(reason, count)| vec![reason.clone(), count.to_string()]);
    let rows = std::iter::once(vec!["kept".to_owned(), fetch.kept.to_string()]).chain(rejected);
    Some(format!("## What was fetched\n\n{} URLs:\n\n{}", fetch.seen, table(&["outcome", "URLs"], rows)))
}

fn faults(report: &RunReport) -> Option<String> {
    if report.faults.is_empty() {
        return None;
    }
    let rows = report.faults.iter().map(|(fault, outcome)| {
        let reasons: Vec<String> =
            outcome.rejected.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        vec![fault.clone(), outcome.seen.to_string(), outcome.kept.to_string(), reasons.join(", ")]
    });
    Some(format!(
        "### What the known faults turned into\n\n{}",
        table(&["fault of the URL", "seen", "kept", "rejected as"], rows)
    ))
}

fn filters(report: &RunReport) -> Option<String> {
    let quality = report.filters.as_ref()?;
    let rows = quality.by_class.iter().map(|(class, outcome)| {
        let share = |selected: Option<u64>| match selected {
            Some(selected) => {
                format!("{selected} ({:.1} %)", 100.0 * selected as f64 / outcome.fetched as f64)
            }
            None => "–".to_owned(),
        };
        vec![
            class.clone(),
            outcome.fetched.to_string(),
            optional(outcome.mean_clip_score),
            share(outcome.clip_selected),
            share(outcome.mlm_selected),
            share(outcome.mixed),
        ]
    });
    let headings = [
        "true class",
        "fetched",
        "mean CLIP score",
        "passed CLIP filter",
        "passed MLM-Filter",
        "went into the mix",
    ];
    let selections = [
        ("CLIP filter", quality.clip_precision, quality.clip_recall),
        ("MLM-Filter", quality.mlm_precision, quality.mlm_recall),
        ("the mix", quality.mix_precision, quality.mix_recall),
    ];
    let selection_rows = selections
        .into_iter()
        .filter(|(_, _, recall)| recall.is_some())
        .map(|(name, precision, recall)| vec![name.to_owned(), optional(precision), optional(recall)])
        .collect::<Vec<_>>();
    let mut text = format!("## The filters against the truth\n\n{}", table(&headings, rows));
    if !selection_rows.is_empty() {
        let selections = table(&["selection of clean pairs", "precision", "recall"], selection_rows);
        text += &format!("\n\n{selections}");
    }
    Some(text)
}

fn subsets(report: &RunReport) -> Option<String> {
    if report.subsets.is_empty() {
        return None;
    }
    let rows = report
        .subsets
        .iter()
        .map(|subset| vec![subset.name.clone(), optional(subset.threshold), subset.samples.to_string()]);
    Some(format!(
        "## What the mix was selected from\n\n{}",
        table(&["subset", "lowest score", "samples"], rows)
    ))
}

fn counts(report: &RunReport) -> Option<String> {
    if report.counts.is_empty() {
        return None;
    }
    let rows = report.counts.iter().map(|(stage, counts)| {
        let reasons: Vec<String> =
            counts.rejected.iter().map(|(reason, n)| format!("{reason} {n}")).collect();
        vec![stage.clone(), counts.seen.to_string(), counts.kept.to_string(), reasons.join(", ")]
    });
    Some(format!("## What was kept\n\n{}", table(&["stage", "seen", "kept", "rejected as"], rows)))
}

fn packing(report: &RunReport) -> Option<String> {
    let packing = report.packing.as_ref()?;
    let numbers = packing.iter().filter(|(_, value)| value.is_number());
    let rows = numbers.map(|(key, value)| vec![words(key), number(value)]);
    let mut text = format!("## Packing\n\n{}", table(&["measure", "value"], rows));
    let lines: Vec<String> = PACKING_DISTRIBUTIONS
        .iter()
        .filter_map(|(key, what)| Some(format!("{what:<20} {}", distribution(packing.get(*key)?)?)))
        .collect();
    if !lines.is_empty() {
        text += &format!("\n\n```text\n{}\n```", lines.join("\n"));
    }
    Some(text)
}

/// Counts as bars from the first to the last that is not 0, with what these two stand for.
fn distribution(value: &Value) -> Option<String> {
    let width = value.get("bin_tokens").map_or(Some(1), Value::as_u64)?;
    let counts = value.get("counts").unwrap_or(value).as_array()?;
    let counts: Vec<u64> = counts.iter().map(Value::as_u64).collect::<Option<_>>()?;
    let first = counts.iter().position(|&count| count > 0)?;
    let last = counts.iter().rposition(|&count| count > 0)?;
    let most = *counts.iter().max()?;
    let bar = |&count: &u64| match count {
        0 => ' ',
        _ => BARS[(u128::from(count) * BARS.len() as u128).div_ceil(u128::from(most)) as usize - 1],
    };
    let bars: String = counts[first..=last].iter().map(bar).collect();
    Some(format!("{:>5} {bars} {}", first as u64 * width, last as u64 * width))
}

fn training(report: &RunReport) -> Option<String> {
    if report.training.is_empty() {
        return None;
    }
    let curves: Vec<String> = report
        .training
        .iter()
        .map(|(stage, curve)| {
            format!(
                "**{stage}**: {} steps, loss {:.3} in the first tenth, {:.3} in the last.\n\n```text\n{}\n```",
                curve.num_steps,
                curve.first_loss,
                curve.last_loss,
                curve.sparkline()
            )
        })
        .collect();
    Some(format!("## Training\n\n{}", curves.join("\n\n")))
}

fn evaluation(report: &RunReport) -> Option<String> {
    if report.eval.is_empty() {
        return None;
    }
    let rows = report.eval.iter().map(|(name, accuracy)| {
        let result = &report.eval_results[name];
        let questions = result.get("num").map_or_else(|| "–".to_owned(), number);
        let interval = result.get("ci95").and_then(Value::as_array).map(|ends| ends.iter().map(number));
        let interval = interval.map_or_else(|| "–".to_owned(), |ends| ends.collect::<Vec<_>>().join(" to "));
        vec![words(name), format!("{accuracy:.3}"), interval, questions]
    });
    let headings = ["benchmark", "accuracy", "95 % interval", "questions"];
    let mut text = format!("## Evaluation on held-out questions\n\n{}", table(&headings, rows));
    for (name, result) in &report.eval_results {
        let categories = result.get("by_category").and_then(Value::as_object).filter(|map| !map.is_empty());
        let Some(categories) = categories else { continue };
        let rows = categories.iter().map(|(category, score)| {
            let field = |key: &str| score.get(key).map_or_else(|| "–".to_owned(), number);
            vec![category.clone(), field("accuracy"), field("num")]
        });
        let table = table(&["category", "accuracy", "questions"], rows);
        text += &format!("\n\n### {} by category\n\n{table}", words(name));
    }
    Some(text)
}

fn definitions(report: &RunReport) -> Option<String> {
    let mut lines = vec![
        "Wall clock and memory of a stage are those of the run that produced its output, also where a later \
         invocation found it up to date.",
    ];
    if report.filters.is_some() {
        lines.push(
            "AUC: the probability that the CLIP score of a random clean pair exceeds that of a random mismatched \
             pair, a tie counting one half.",
        );
        lines.push(
            "Precision: share of clean pairs among those selected. Recall: share of those selected among the clean \
             pairs. Both over the samples that were fetched; every other true class counts as not to be selected.",
        );
    }
    if report.packing.is_some() {
        lines.push("Packing efficiency: tokens that are not padding per token of all packs.");
        lines.push("Bars count from the number on the left to the one on the right; the highest is the most frequent.");
    }
    let list: Vec<String> = lines.into_iter().map(|line| format!("- {line}")).collect();
    Some(format!("## How to read the numbers\n\n{}", list.join("\n")))
}

fn words(key: &str) -> String {
    key.replace('_', " ")
}

fn number(value: &Value) -> String {
    match (value.as_u64(), value.as_f64()) {
        (Some(whole), _) => whole.to_string(),
        (None, Some(real)) => format!("{real:.3}"),
        _ => value.to_string(),
    }
}

fn optional(value: Option<impl Display + Into<f64>>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{:.3}", value.into()))
}

fn seconds(seconds: f64) -> String {
    if seconds < 60.0 { format!("{seconds:.1} s") } else { format!("{:.1} min", seconds / 60.0) }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.0} MiB", bytes as f64 / f64::from(1 << 20))
}
