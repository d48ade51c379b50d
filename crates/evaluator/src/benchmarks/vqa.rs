//! Open questions with several annotators, in the layout of VQAv2 and OK-VQA: a JSON file of questions
//! (`questions[].{question_id, image_id, question}`) and one of annotations (`annotations[].{question_id,
//! answers[].answer, question_type, answer_type}`).
//!
//! Headline: soft accuracy with both sides normalised ([`VqaRule::Normalized`]). Beside it: the official script's rule
//! and the reference harness's, which first deletes line feeds, full stops and commas from the answer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use oqvl_stage::{ConfigError, RejectedSample, RunContext};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Benchmark, ImageSource, Judgement, Question, RowAudit, has_placeholder, id_text, image_path};
use crate::config::ImageMode;
use crate::error::EvaluatorError;
use crate::metrics::{VqaRule, normalize_answer, soft_accuracy};
use crate::prompt::QuestionText;
use crate::results::Extras;

/// How VQAv2 and OK-VQA name the images of the validation split.
const COCO_VAL2014_NAME: &str = "COCO_val2014_{image_id:012}.jpg";

/// The places of `image_name` that the image's id goes into: as it is, or padded with zeros to twelve digits.
const IMAGE_ID_PLACES: [(&str, usize); 2] = [("{image_id}", 0), ("{image_id:012}", 12)];

/// Where an answer ends for the reference harness, whose few-shot prompts end their examples so.
const END_OF_EXAMPLE: &str = "<|endofchunk|>";

/// Its `[[evaluator.benchmark]]` table, `kind = "vqa"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VqaConfig {
    /// Name in results and directories.
    pub name: String,
    /// The questions.
    pub questions: PathBuf,
    /// Their annotations.
    pub annotations: PathBuf,
    /// Directory of the images.
    pub images: PathBuf,
    /// File name of an image, with `{image_id}` or `{image_id:012}` (twelve digits) where its id goes.
    #[serde(default = "coco_val2014_name")]
    pub image_name: String,
    /// Whether the model gets to see the images.
    #[serde(default)]
    pub image: ImageMode,
}

fn coco_val2014_name() -> String {
    COCO_VAL2014_NAME.to_owned()
}

impl VqaConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if IMAGE_ID_PLACES.iter().any(|(place, _)| self.image_name.contains(place)) {
            return Ok(());
        }
        let message = format!("must contain {{image_id}} or {{image_id:012}}, got `{}`", self.image_name);
        Err(ConfigError::new("image_name", message))
    }
}

/// Questions and annotations in memory.
#[derive(Debug)]
pub struct VqaBenchmark {
    questions: Vec<Question>,
    /// What the annotators of each question answered.
    annotators: Vec<Vec<String>>,
    rejected: Vec<RejectedSample>,
}

#[derive(Deserialize)]
struct QuestionFile {
    questions: Vec<Value>,
}

#[derive(Deserialize)]
struct AnnotationFile {
    annotations: Vec<Value>,
}

#[derive(Deserialize)]
struct QuestionRow {
    question_id: Value,
    image_id: Value,
    question: String,
}

#[derive(Deserialize)]
struct AnnotationRow {
    question_id: Value,
    answers: Vec<AnswerRow>,
    question_type: Option<String>,
    answer_type: Option<String>,
}

#[derive(Deserialize)]
struct AnswerRow {
    answer: String,
}

impl VqaBenchmark {
    /// Reads both files. Images are opened when they are needed.
    ///
    /// # Errors
    /// If a file cannot be read, or has no list `questions` or `annotations`.
    pub fn load(config: &VqaConfig, run: &RunContext) -> Result<Self, EvaluatorError> {
        let questions: QuestionFile = read(&run.resolve(&config.questions), "VQA question")?;
        let annotations: AnnotationFile = read(&run.resolve(&config.annotations), "VQA annotation")?;
        let images = run.resolve(&config.images);
        Ok(Self::join(questions.questions, annotations.annotations, |id| {
            image_path(&images, &image_file_name(&config.image_name, id))
        }))
    }

    fn join(questions: Vec<Value>, annotations: Vec<Value>, image: impl Fn(&str) -> Option<PathBuf>) -> Self {
        let mut annotated: HashMap<String, AnnotationRow> = annotations
            .into_iter()
            .filter_map(|row| serde_json::from_value::<AnnotationRow>(row).ok())
            .filter_map(|row| Some((id_text(&row.question_id)?, row)))
            .collect();
        let mut audit = RowAudit::default();
        let mut benchmark = Self { questions: Vec::new(), annotators: Vec::new(), rejected: Vec::new() };
        for (row_idx, row) in questions.into_iter().enumerate() {
            let parsed = serde_json::from_value::<QuestionRow>(row).ok();
            let Some((row, id)) = parsed.and_then(|row| id_text(&row.question_id).map(|id| (row, id))) else {
                audit.reject(format!("row-{row_idx}"), "unreadable-question");
                continue;
            };
            if !audit.is_new(&id) {
                audit.reject(id, "duplicate-question-id");
            } else if let Err(reason) = benchmark.admit(&id, row, annotated.remove(&id), &image) {
                audit.reject(id, reason);
            }
        }
        benchmark.rejected = audit.rejected;
        benchmark
    }

    fn admit(
        &mut self,
        id: &str,
        row: QuestionRow,
        annotation: Option<AnnotationRow>,
        image: impl Fn(&str) -> Option<PathBuf>,
    ) -> Result<(), &'static str> {
        if row.question.trim().is_empty() {
            return Err("question-missing");
        }
        if has_placeholder(&row.question) {
            return Err("image-placeholder-in-text");
        }
        let annotation = annotation.ok_or("annotation-missing")?;
        if annotation.answers.is_empty() {
            return Err("no-annotators");
        }
        let image_id = id_text(&row.image_id).ok_or("image-id-missing")?;
        let image = image(&image_id).ok_or("image-path-outside")?;
        let facets = [("question_type", annotation.question_type), ("answer_type", annotation.answer_type)];
        self.questions.push(Question {
            id: id.to_owned(),
            text: QuestionText::ShortAnswer { question: row.question },
            image: ImageSource::File(image),
            facets: facets.into_iter().filter_map(|(facet, value)| Some((facet, value?))).collect(),
        });
        self.annotators.push(annotation.answers.into_iter().map(|answer| answer.answer).collect());
        Ok(())
    }
}

impl Benchmark for VqaBenchmark {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn rejected(&self) -> &[RejectedSample] {
        &self.rejected
    }

    fn judge(&self, question_idx: usize, output: &str) -> Judgement {
        let annotators = &self.annotators[question_idx];
        Judgement {
            credit: soft_accuracy(output, annotators, VqaRule::Normalized),
            extracted: Some(normalize_answer(output)).filter(|answer| !answer.is_empty()),
            gold: distinct_answers(annotators),
        }
    }

    fn extras(&self, answers: &[(usize, &str)]) -> Extras {
        let mean = |credit: &dyn Fn(&str, &[String]) -> f64| {
            let sum: f64 = answers.iter().map(|(idx, output)| credit(output, &self.annotators[*idx])).sum();
            sum / answers.len().max(1) as f64
        };
        let official = mean(&|output, annotators| soft_accuracy(output, annotators, VqaRule::Official));
        let reference = mean(&|output, annotators| {
            soft_accuracy(&reference_clean_up(output), annotators, VqaRule::Reference)
        });
        let mut extras = Extras::default();
        extras.rule("official", [("accuracy", official)]);
        extras.rule("reference", [("accuracy", reference)]);
        extras
    }
}

/// Every answer once, in the order they were given, with the number of annotators who gave it: `red x8, blue x2`.
fn distinct_answers(annotators: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for answer in annotators {
        match counts.iter_mut().find(|(known, _)| known == answer) {
            Some((_, count)) => *count += 1,
            None => counts.push((answer, 1)),
        }
    }
    let shown: Vec<String> = counts.iter().map(|(answer, count)| format!("{answer} x{count}")).collect();
    shown.join(", ")
}

/// What the reference harness does to an answer before it scores it: line feeds, full stops and commas deleted,
/// lower-cased, cut where the next few-shot example would begin.
fn reference_clean_up(output: &str) -> String {
    let cleaned = output.replace(['\n', '.', ','], "").to_lowercase();
    cleaned.split(END_OF_EXAMPLE).next().unwrap_or_default().to_owned()
}

fn image_file_name(template: &str, image_id: &str) -> String {
    IMAGE_ID_PLACES.iter().fold(template.to_owned(), |name, (place, width)| {
        name.replace(place, &format!("{image_id:0>width$}"))
    })
}

fn read<T: DeserializeOwned>(path: &Path, format: &'static str) -> Result<T, EvaluatorError> {
    let bytes = std::fs::read(path).map_err(EvaluatorError::io(path))?;
    serde_json::from_slice(&bytes).map_err(|error| EvaluatorError::Format {
        path: path.to_path_buf(),
        format,
        problem: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn join(questions: Value, annotations: Value) -> VqaBenchmark {
        let (Value::Array(questions), Value::Array(annotations)) = (questions, annotations) else {
            panic!("both must be lists");
        };
        let image = |id: &str| image_path(Path::new("images"), &image_file_name(COCO_VAL2014_NAME, id));
        VqaBenchmark::join(questions, annotations, image)
    }

    #[test]
    fn image_names() {
        assert_eq!(image_file_name(COCO_VAL2014_NAME, "42"), "COCO_val2014_000000000042.jpg");
        assert_eq!(image_file_name("{image_id}.png", "ab"), "ab.png");
    }

    #[test]
    fn questions_meet_their_annotations() {
        let benchmark = join(
            json!([
                {"question_id": 1, "image_id": 7, "question": "Which color?"},
                {"question_id": 2, "image_id": 7, "question": "No annotation?"},
                {"question_id": 1, "image_id": 7, "question": "Again?"},
                {"question_id": 3, "image_id": 7, "question": "Nobody?"},
                {"question_id": 4, "image_id": null, "question": "Where?"},
                {"question_id": 5, "image_id": 1, "question": ""},
                {"question": "id?"},
                "no object",
            ]),
            json!([
                {"question_id": 1, "question_type": "which", "answer_type": "other",
                 "answers": [{"answer": "red", "answer_id": 1}, {"answer": "red", "answer_id": 2}, {"answer": "blue", "answer_id": 3}]},
                {"question_id": 3, "answers": []},
                {"question_id": 4, "answers": [{"answer": "x"}]},
                {"question_id": 5, "answers": [{"answer": "x"}]},
                {"question_id": 2, "answers": "broken"},
            ]),
        );
        let found: Vec<_> = benchmark.rejected.iter().map(|r| (r.key.as_str(), r.reason.as_str())).collect();
        let expected = [
            ("2", "annotation-missing"),
            ("1", "duplicate-question-id"),
            ("3", "no-annotators"),
            ("4", "image-id-missing"),
            ("5", "question-missing"),
            ("row-6", "unreadable-question"),
            ("row-7", "unreadable-question"),
        ];
        assert_eq!(found, expected);
        let facets = [("question_type", "which".to_owned()), ("answer_type", "other".to_owned())];
        assert_eq!(benchmark.questions[0].facets, facets);
        assert_eq!(benchmark.annotators[0], ["red", "red", "blue"]);
    }

    #[test]
    fn three_rules_side_by_side() {
        let answers: Vec<Value> = (1..=10).map(|id| json!({"answer": "Red", "answer_id": id})).collect();
        let benchmark = join(
            json!([{"question_id": 1, "image_id": 7, "question": "Which color?"}]),
            json!([{"question_id": 1, "answers": answers}]),
        );
        assert_eq!(benchmark.judge(0, "red.").credit, 1.0);
        assert_eq!(benchmark.judge(0, "red.").extracted.as_deref(), Some("red"));
        assert_eq!(benchmark.judge(0, "...").extracted, None);
        assert_eq!(benchmark.judge(0, "red.").gold, "Red x10");
        let extras = benchmark.extras(&[(0, "red.")]);
        // All annotators wrote "Red", so the official rule compares case.
        assert_eq!(extras.other_rules["official"]["accuracy"], 0.0);
        assert_eq!(extras.other_rules["reference"]["accuracy"], 0.0);
    }

    #[test]
    fn reference_clean_up_cuts_decimals() {
        assert_eq!(reference_clean_up("3.5, about\n"), "35 about");
        assert_eq!(reference_clean_up("Red<|endofchunk|><image>"), "red");
    }
}
