//! `predictions.jsonl`: one line per question, in the order they were asked; the log that a killed run resumes from.
//!
//! A line holds everything needed to see why a question scored as it did. On reading only `id`, `output` and `rejected`
//! count: credits are computed again from the output, so that a log never disagrees with the scorer.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::benchmarks::{Benchmark, Question};
use crate::error::EvaluatorError;

/// What became of a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The model's answer.
    Answered(String),
    /// It could not be asked, for this reason.
    Rejected(String),
}

impl Outcome {
    /// An answer without white space at its ends.
    pub(crate) fn trimmed(self) -> Self {
        match self {
            Self::Answered(output) => Self::Answered(output.trim().to_owned()),
            rejected @ Self::Rejected(_) => rejected,
        }
    }
}

/// One line.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    prompt: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    extracted: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gold: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    credit: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejected: Option<String>,
}

/// The log, open for appending.
#[derive(Debug)]
pub(crate) struct PredictionLog {
    path: PathBuf,
    file: File,
}

impl PredictionLog {
    /// Opens or creates the log at `path` and reads back what it holds: for each of `questions` its outcome, if there
    /// is one. A torn last line is cut off.
    pub(crate) fn open(
        path: &Path,
        questions: &[Question],
    ) -> Result<(Self, Vec<Option<Outcome>>), EvaluatorError> {
        let io = || EvaluatorError::io(path);
        let bytes = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            read => read.map_err(io())?,
        };
        let (outcomes, num_valid_bytes) = parse(path, &bytes, questions)?;
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(io())?;
        if num_valid_bytes < bytes.len() {
            file.set_len(num_valid_bytes as u64).map_err(io())?;
        }
        Ok((Self { path: path.to_path_buf(), file }, outcomes))
    }

    /// Appends the outcomes of these questions and waits until they are on disk.
    pub(crate) fn append(
        &mut self,
        benchmark: &dyn Benchmark,
        outcomes: &[(usize, String, &Outcome)],
    ) -> Result<(), EvaluatorError> {
        let mut text = Vec::new();
        for (question_idx, prompt, outcome) in outcomes {
            let line = Line::of(benchmark, *question_idx, prompt, outcome);
            serde_json::to_writer(&mut text, &line)
                .expect("strings and finite numbers can be written as JSON");
            text.push(b'\n');
        }
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        written.map_err(EvaluatorError::io(&self.path))
    }
}

impl Line {
    fn of(benchmark: &dyn Benchmark, question_idx: usize, prompt: &str, outcome: &Outcome) -> Self {
        let id = benchmark.questions()[question_idx].id.clone();
        let empty = Self {
            id,
            prompt: None,
            output: None,
            extracted: None,
            gold: None,
            credit: None,
            rejected: None,
        };
        match outcome {
            Outcome::Answered(output) => {
                let judgement = benchmark.judge(question_idx, output);
                Self {
                    prompt: Some(prompt.to_owned()),
                    output: Some(output.clone()),
                    extracted: judgement.extracted,
                    gold: Some(judgement.gold),
                    credit: Some(judgement.credit),
                    ..empty
                }
            }
            Outcome::Rejected(reason) => Self { rejected: Some(reason.clone()), ..empty },
        }
    }

    fn outcome(self) -> Option<Outcome> {
        self.output.map(Outcome::Answered).or(self.rejected.map(Outcome::Rejected))
    }
}

/// Outcomes by question, and how many bytes of the log are whole lines.
fn parse(
    path: &Path,
    bytes: &[u8],
    questions: &[Question],
) -> Result<(Vec<Option<Outcome>>, usize), EvaluatorError> {
    let positions: HashMap<&str, usize> =
        questions.iter().enumerate().map(|(idx, q)| (q.id.as_str(), idx)).collect();
    let mut outcomes = vec![None; questions.len()];
    let mut num_valid_bytes = 0;
    for (line_idx, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let wrong = |problem: String| EvaluatorError::PredictionLog {
            path: path.to_path_buf(),
            line: line_idx + 1,
            problem,
        };
        let is_last = num_valid_bytes + line.len() == bytes.len();
        let parsed = match serde_json::from_slice::<Line>(line) {
            Ok(parsed) if line.ends_with(b"\n") => parsed,
            // Whatever is wrong with the last line, a kill or a power cut while it was written explains it.
            _ if is_last => break,
            Ok(_) => unreachable!("only the last line can lack its line feed"),
            Err(error) => return Err(wrong(format!("not a prediction: {error}"))),
        };
        let id = parsed.id.clone();
        let question_idx = *positions
            .get(id.as_str())
            .ok_or_else(|| wrong(format!("question `{id}` is not in the benchmark")))?;
        let outcome = parsed.outcome().ok_or_else(|| wrong("neither `output` nor `rejected`".to_owned()))?;
        if outcomes[question_idx].replace(outcome).is_some() {
            return Err(wrong(format!("question `{id}` is answered a second time")));
        }
        num_valid_bytes += line.len();
    }
    Ok((outcomes, num_valid_bytes))
}
