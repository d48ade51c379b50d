//! The page with the results: means and spreads, and what each idea buys.

use super::Measurement;
use super::arms::{ARMS, COMPARISONS, SEEDS};
use crate::units;

/// A column of the tables.
struct Column {
    heading: &'static str,
    value: fn(&Measurement) -> f64,
    decimals: usize,
}

const COLUMNS: [Column; 6] = [
    Column { heading: "multiple choice", value: |run| accuracy(run, "multiple_choice"), decimals: 3 },
    Column { heading: "yes/no", value: |run| accuracy(run, "yes_no"), decimals: 3 },
    Column { heading: "pre-training tokens/s", value: |run| run.tokens_per_second, decimals: 0 },
    Column { heading: "pairs/s", value: |run| run.pairs_per_second, decimals: 1 },
    Column { heading: "pre-training seconds", value: Measurement::seconds, decimals: 1 },
    Column { heading: "last pre-training loss", value: |run| run.last_loss, decimals: 3 },
];

fn accuracy(run: &Measurement, benchmark: &str) -> f64 {
    run.eval.get(benchmark).copied().unwrap_or(f64::NAN)
}

/// The whole page.
pub(super) fn document(measurements: &[Measurement], machine: &str) -> String {
    let seeds: Vec<String> = SEEDS.iter().map(ToString::to_string).collect();
    let total: f64 = measurements.iter().map(Measurement::seconds).sum();
    format!(
        "# What each idea buys\n\n\
         Written by `cargo xtask ablate`; do not edit. Measured on {machine}.\n\n\
         Every arm is run with the seeds {seeds} and with equal compute: the same number of optimizer steps \
         and, in each, about the same number of positions through the language model, padding included. Data, \
         tokenizer, towers and filters are shared. Numbers are means over the seeds, ± the sample standard \
         deviation. Tokens per second count only tokens that are not padding; pairs are pairs of image and text. \
         Losses of arms with other data or other image tokens are not comparable with each other. \
         Pre-training took {total} in all.\n\n\
         ## Arms\n\n{arms}\n\n\
         ## Differences\n\n\
         With the idea minus without it, seed by seed.\n\n{differences}\n",
        seeds = seeds.join(", "),
        total = units::seconds(total),
        arms = arms_table(measurements),
        differences = differences_table(measurements),
    )
}

fn arms_table(measurements: &[Measurement]) -> String {
    let rows = ARMS.iter().map(|arm| {
        let runs: Vec<&Measurement> = measurements.iter().filter(|run| run.arm == arm.name).collect();
        let cells = COLUMNS.iter().map(|column| {
            let values: Vec<f64> = runs.iter().map(|run| (column.value)(run)).collect();
            mean_and_spread(&values, column.decimals)
        });
        format!("| **{}**: {} | {} |", arm.name, arm.what, cells.collect::<Vec<_>>().join(" | "))
    });
    let headings = COLUMNS.iter().map(|column| column.heading);
    table("arm", headings, rows)
}

fn differences_table(measurements: &[Measurement]) -> String {
    let columns = &COLUMNS[..5];
    let find = |arm: &str, seed: u64| measurements.iter().find(|run| run.arm == arm && run.seed == seed);
    let rows = COMPARISONS.iter().map(|comparison| {
        let cells = columns.iter().map(|column| {
            let pairs = SEEDS
                .iter()
                .filter_map(|seed| Some((find(comparison.with, *seed)?, find(comparison.without, *seed)?)));
            let values: Vec<f64> =
                pairs.map(|(with, without)| (column.value)(with) - (column.value)(without)).collect();
            let sign = if mean(&values) >= 0.0 { "+" } else { "" };
            format!("{sign}{}", mean_and_spread(&values, column.decimals))
        });
        let names = format!("{} − {}", comparison.with, comparison.without);
        format!("| {} ({names}) | {} |", comparison.idea, cells.collect::<Vec<_>>().join(" | "))
    });
    table("idea", columns.iter().map(|column| column.heading), rows)
}

fn table<'a>(
    first: &str,
    headings: impl Iterator<Item = &'a str>,
    rows: impl Iterator<Item = String>,
) -> String {
    let headings: Vec<&str> = headings.collect();
    let mut lines = vec![format!("| {first} | {} |", headings.join(" | "))];
    lines.push(format!("| --- |{}", " ---: |".repeat(headings.len())));
    lines.extend(rows);
    lines.join("\n")
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// `mean ± sample standard deviation`; one value has no spread.
fn mean_and_spread(values: &[f64], decimals: usize) -> String {
    let mean = mean(values);
    if values.len() < 2 {
        return format!("{mean:.decimals$}");
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (values.len() - 1) as f64;
    format!("{mean:.decimals$} ± {:.decimals$}", variance.sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn measurement(arm: &'static str, seed: u64, accuracy: f64) -> Measurement {
        let eval =
            BTreeMap::from([("multiple_choice".to_owned(), accuracy), ("yes_no".to_owned(), accuracy)]);
        Measurement {
            arm,
            seed,
            eval,
            num_tokens: 1000,
            tokens_per_second: 500.0,
            pairs_per_second: 20.0,
            last_loss: 1.0,
        }
    }

    #[test]
    fn spread_by_hand() {
        // Deviations -1, 0, 1: variance 2 / 2.
        assert_eq!(mean_and_spread(&[1.0, 2.0, 3.0], 2), "2.00 ± 1.00");
        assert_eq!(mean_and_spread(&[0.5], 1), "0.5");
    }

    #[test]
    fn differences_are_taken_seed_by_seed() {
        let mut runs = Vec::new();
        for (seed, with, without) in [(7, 0.8, 0.7), (8, 0.6, 0.5), (9, 0.9, 0.8)] {
            runs.push(measurement("baseline", seed, with));
            runs.extend(["unfiltered", "padded", "full-only"].map(|arm| measurement(arm, seed, without)));
        }
        let page = document(&runs, "a machine");
        // The arms spread over 0.15, their difference not at all.
        assert!(page.contains("| filtering the data (baseline − unfiltered) | +0.100 ± 0.000 |"), "{page}");
        assert!(page.contains("0.767 ± 0.153"), "{page}");
        assert!(page.contains("| 500 ± 0 |"), "{page}");
    }
}
