//! Yes/no questions in POPE's layout: JSON lines of `question_id`, `image` (a file name), `text`, `label` (`yes` or
//! `no`), and optionally `category`.
//!
//! Headline: accuracy and F1 of the first "yes" or "no" in the answer ([`extract_yes_no`]); an answer with neither is
//! wrong and counts as not-yes. Beside it: the rules of POPE's own script and of the reference harness.

use std::path::{Path, PathBuf};

use oqvl_stage::RejectedSample;
use serde::{Deserialize, Serialize};

use super::{Benchmark, ImageSource, Judgement, Question, RowAudit, has_placeholder, id_text, image_path};
use crate::config::ImageMode;
use crate::error::EvaluatorError;
use crate::extraction::{YesNo, extract_yes_no, pope_official_yes_no, pope_reference_yes_no};
use crate::metrics::BinaryCounts;
use crate::prompt::QuestionText;
use crate::results::Extras;

/// Its `[[evaluator.benchmark]]` table, `kind = "pope"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PopeConfig {
    /// Name in results and directories.
    pub name: String,
    /// The JSON lines.
    pub file: PathBuf,
    /// Directory of the images.
    pub images: PathBuf,
    /// Whether the model gets to see the images.
    #[serde(default)]
    pub image: ImageMode,
}

/// A question file in memory.
#[derive(Debug)]
pub struct PopeBenchmark {
    questions: Vec<Question>,
    labels: Vec<YesNo>,
    rejected: Vec<RejectedSample>,
}

/// One line; fields that files add are ignored.
#[derive(Deserialize)]
struct Line {
    question_id: serde_json::Value,
    image: String,
    text: String,
    label: String,
    category: Option<String>,
}

impl PopeBenchmark {
    /// Reads the lines of `path`; image names are relative to `images`. Images are opened when they are needed.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn load(path: &Path, images: &Path) -> Result<Self, EvaluatorError> {
        let bytes = std::fs::read(path).map_err(EvaluatorError::io(path))?;
        Ok(Self::parse(&bytes, images))
    }

    fn parse(bytes: &[u8], images: &Path) -> Self {
        let mut audit = RowAudit::default();
        let mut benchmark = Self { questions: Vec::new(), labels: Vec::new(), rejected: Vec::new() };
        for (line_idx, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let parsed = serde_json::from_slice::<Line>(line).ok();
            let Some((line, id)) = parsed.and_then(|line| id_text(&line.question_id).map(|id| (line, id)))
            else {
                audit.reject(format!("line-{}", line_idx + 1), "unreadable-line");
                continue;
            };
            if !audit.is_new(&id) {
                audit.reject(id, "duplicate-question-id");
            } else if let Err(reason) = benchmark.admit(id.clone(), line, images) {
                audit.reject(id, reason);
            }
        }
        benchmark.rejected = audit.rejected;
        benchmark
    }

    fn admit(&mut self, id: String, line: Line, images: &Path) -> Result<(), &'static str> {
        if line.text.trim().is_empty() {
            return Err("question-missing");
        }
        if has_placeholder(&line.text) {
            return Err("image-placeholder-in-text");
        }
        let label = YesNo::from_label(&line.label).ok_or("label-not-yes-or-no")?;
        let image = image_path(images, &line.image).ok_or("image-path-outside")?;
        self.questions.push(Question {
            id,
            text: QuestionText::ShortAnswer { question: line.text },
            image: ImageSource::File(image),
            facets: line.category.map(|category| ("category", category)).into_iter().collect(),
        });
        self.labels.push(label);
        Ok(())
    }

    fn counts(&self, answers: &[(usize, &str)], rule: impl Fn(&str) -> Option<YesNo>) -> BinaryCounts {
        let mut counts = BinaryCounts::default();
        for &(question_idx, output) in answers {
            counts.add(self.labels[question_idx], rule(output));
        }
        counts
    }
}

impl Benchmark for PopeBenchmark {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn rejected(&self) -> &[RejectedSample] {
        &self.rejected
    }

    fn judge(&self, question_idx: usize, output: &str) -> Judgement {
        let answer = extract_yes_no(output);
        let label = self.labels[question_idx];
        Judgement {
            credit: f64::from(answer == Some(label)),
            extracted: answer.map(|answer| answer.as_str().to_owned()),
            gold: label.as_str().to_owned(),
        }
    }

    fn extras(&self, answers: &[(usize, &str)]) -> Extras {
        let mut extras = Extras::default();
        let unread = answers.iter().filter(|(_, output)| extract_yes_no(output).is_none()).count();
        extras.metrics.insert("unread", unread as f64);
        extras.metrics.extend(binary_metrics(&self.counts(answers, extract_yes_no)));
        let official = self.counts(answers, |output| Some(pope_official_yes_no(output)));
        let reference = self.counts(answers, pope_reference_yes_no);
        for (rule, counts) in [("official", official), ("reference", reference)] {
            extras.rule(rule, [("accuracy", counts.accuracy())]);
            extras.rule(rule, binary_metrics(&counts));
        }
        extras
    }
}

fn binary_metrics(counts: &BinaryCounts) -> [(&'static str, f64); 4] {
    [
        ("f1", counts.f1()),
        ("precision", counts.precision()),
        ("recall", counts.recall()),
        ("yes_ratio", counts.yes_ratio()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: u32, label: &str) -> String {
        format!(r#"{{"question_id": {id}, "image": "{id}.jpg", "text": "Is it red?", "label": "{label}"}}"#)
    }

    #[test]
    fn bad_lines_are_counted_with_a_reason() {
        let lines = [
            line(1, "yes"),
            String::new(),
            "{".to_owned(),
            line(1, "no"),
            line(2, "maybe"),
            r#"{"question_id": "a", "image": "../x.jpg", "text": "q", "label": "no"}"#.to_owned(),
            r#"{"question_id": "b", "image": "x.jpg", "text": " ", "label": "no"}"#.to_owned(),
            r#"{"question_id": "c", "image": "x.jpg", "text": "<image>", "label": "no"}"#.to_owned(),
            r#"{"question_id": null, "image": "x.jpg", "text": "q", "label": "no"}"#.to_owned(),
            r#"{"question_id": "d", "image": "x.jpg", "text": "q", "label": "No", "category": "c", "extra": 1}"#.to_owned(),
        ];
        let benchmark = PopeBenchmark::parse(lines.join("\n").as_bytes(), Path::new("images"));
        let found: Vec<_> = benchmark.rejected.iter().map(|r| (r.key.as_str(), r.reason.as_str())).collect();
        let expected = [
            ("line-3", "unreadable-line"),
            ("1", "duplicate-question-id"),
            ("2", "label-not-yes-or-no"),
            ("a", "image-path-outside"),
            ("b", "question-missing"),
            ("c", "image-placeholder-in-text"),
            ("line-9", "unreadable-line"),
        ];
        assert_eq!(found, expected);
        assert_eq!(benchmark.labels, [YesNo::Yes, YesNo::No]);
        assert_eq!(benchmark.questions[1].facets, [("category", "c".to_owned())]);
        assert!(
            matches!(&benchmark.questions[0].image, ImageSource::File(path) if path == Path::new("images/1.jpg"))
        );
    }

    #[test]
    fn an_empty_file_has_no_questions() {
        let benchmark = PopeBenchmark::parse(b"", Path::new("images"));
        assert!(benchmark.questions.is_empty() && benchmark.rejected.is_empty());
        assert_eq!(benchmark.extras(&[]).metrics["f1"], 0.0);
    }

    #[test]
    fn the_rules_differ_on_an_unclear_answer() {
        let lines = [line(1, "yes"), line(2, "no")].join("\n");
        let benchmark = PopeBenchmark::parse(lines.as_bytes(), Path::new("images"));
        let outputs = [(0, "perhaps"), (1, "No, it is not")];
        assert_eq!(benchmark.judge(0, "perhaps").credit, 0.0);
        assert_eq!(benchmark.judge(1, "No, it is not").credit, 1.0);
        let extras = benchmark.extras(&outputs);
        assert_eq!(extras.metrics["f1"], 0.0);
        assert_eq!(extras.metrics["unread"], 1.0);
        assert_eq!(extras.other_rules["official"]["accuracy"], 1.0);
        assert_eq!(extras.other_rules["reference"]["accuracy"], 0.0);
    }
}
