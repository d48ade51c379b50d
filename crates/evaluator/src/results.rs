//! What an evaluation says: one [`BenchmarkResult`] per benchmark.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::benchmarks::Benchmark;
use crate::config::ImageMode;
use crate::metrics::Proportion;
use crate::prompt::PromptStyle;

/// Numbers of a benchmark beyond its mean credit.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Extras {
    /// Further numbers under the headline rule, such as `f1`.
    pub metrics: BTreeMap<&'static str, f64>,
    /// The same answers under other published rules: rule name to its numbers.
    pub other_rules: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
}

impl Extras {
    /// Adds numbers found under another rule.
    pub fn rule(&mut self, rule: &'static str, numbers: impl IntoIterator<Item = (&'static str, f64)>) {
        self.other_rules.entry(rule).or_default().extend(numbers);
    }
}

/// One entry of `results.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchmarkResult {
    /// Mean credit of the answered questions, their number, and the 95 % Wilson interval.
    #[serde(flatten)]
    pub overall: Proportion,
    /// Rows of the file that could not be asked; they are in no mean.
    pub num_rejected: u64,
    /// What the model got to see.
    pub image: ImageMode,
    /// How it was asked.
    pub prompt_style: PromptStyle,
    /// Further numbers under the headline rule.
    #[serde(flatten)]
    pub metrics: BTreeMap<&'static str, f64>,
    /// `by_category` and the like: facet, value, mean credit.
    #[serde(flatten)]
    pub breakdowns: BTreeMap<String, BTreeMap<String, Proportion>>,
    /// The same answers under other published rules.
    pub other_rules: BTreeMap<&'static str, BTreeMap<&'static str, f64>>,
}

impl BenchmarkResult {
    /// Scores `answers`, pairs of question index and output in file order.
    pub(crate) fn of(
        benchmark: &dyn Benchmark,
        answers: &[(usize, &str)],
        num_rejected: u64,
        image: ImageMode,
        prompt_style: PromptStyle,
    ) -> Self {
        let credits: Vec<f64> =
            answers.iter().map(|(idx, output)| benchmark.judge(*idx, output).credit).collect();
        let mut groups: BTreeMap<String, BTreeMap<String, Vec<f64>>> = BTreeMap::new();
        groups.insert("by_category".to_owned(), BTreeMap::new());
        for ((question_idx, _), credit) in answers.iter().zip(&credits) {
            for (facet, value) in &benchmark.questions()[*question_idx].facets {
                let values = groups.entry(format!("by_{facet}")).or_default();
                values.entry(value.clone()).or_default().push(*credit);
            }
        }
        let breakdowns = groups
            .into_iter()
            .map(|(facet, values)| {
                (facet, values.into_iter().map(|(value, all)| (value, Proportion::of(all))).collect())
            })
            .collect();
        let Extras { metrics, other_rules } = benchmark.extras(answers);
        let overall = Proportion::of(credits);
        Self { overall, num_rejected, image, prompt_style, metrics, breakdowns, other_rules }
    }
}
