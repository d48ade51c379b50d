//! Multiple choice in VLMEvalKit's TSV layout (MMBench; SEED-Bench, AI2D and MMStar files have the same shape).
//!
//! Tab separated with a header: `index`, `question`, `answer` (a letter), `A`, `B`, … (an empty cell or `nan` is no
//! option), `image` in base64, and optionally `category` and `l2-category`. An `image` of at most 64 characters is
//! the `index` of another row whose image is meant. Rotated copies of a question have the index `base + 1000000 * r`.
//!
//! Headline: mean over all rows of "the letter read by [`extract_letter`] is the right one". Beside it: the circular
//! accuracy of MMBench's authors, where a question counts only if every rotation is answered, and the reference
//! harness's rule, where it is enough that the letter occurs anywhere in the answer.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use oqvl_stage::RejectedSample;
use serde::{Deserialize, Serialize};

use super::{Benchmark, ImageSource, Judgement, Question, RowAudit, has_placeholder};
use crate::config::ImageMode;
use crate::error::EvaluatorError;
use crate::extraction::extract_letter;
use crate::prompt::QuestionText;
use crate::results::Extras;

/// Longest `image` cell that names another row instead of holding an image (VLMEvalKit, `ImageBaseDataset`).
const MAX_IMAGE_REFERENCE_CHARS: usize = 64;

/// Rotations of a question have the same index modulo this (VLMEvalKit, `mcq_circular_eval`).
const CIRCULAR_MODULUS: u64 = 1_000_000;

/// Standard alphabet; files come with and without padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Its `[[evaluator.benchmark]]` table, `kind = "mmbench"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MmbenchConfig {
    /// Name in results and directories.
    pub name: String,
    /// The TSV.
    pub file: PathBuf,
    /// Whether the model gets to see the images.
    #[serde(default)]
    pub image: ImageMode,
}

/// A TSV in memory.
#[derive(Debug)]
pub struct MmbenchBenchmark {
    questions: Vec<Question>,
    /// The right letter of each question.
    answers: Vec<char>,
    rejected: Vec<RejectedSample>,
}

impl MmbenchBenchmark {
    /// Reads the TSV at `path`.
    ///
    /// # Errors
    /// If it cannot be read or lacks one of the columns `index`, `image`, `question`, `answer`.
    pub fn load(path: &Path) -> Result<Self, EvaluatorError> {
        let bytes = std::fs::read(path).map_err(EvaluatorError::io(path))?;
        Self::parse(&bytes).map_err(|problem| EvaluatorError::Format {
            path: path.to_path_buf(),
            format: "VLMEvalKit TSV",
            problem,
        })
    }

    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').flexible(true).from_reader(bytes);
        let columns = Columns::from_header(reader.headers().map_err(|error| error.to_string())?)?;
        let mut audit = RowAudit::default();
        let mut rows = Vec::new();
        for (row_idx, record) in reader.into_records().enumerate() {
            let Ok(record) = record else {
                audit.reject(format!("row-{row_idx}"), "unreadable-row");
                continue;
            };
            let row = columns.row(&record);
            if row.index.is_empty() {
                audit.reject(format!("row-{row_idx}"), "index-missing");
            } else if !audit.is_new(&row.index) {
                audit.reject(row.index, "duplicate-index");
            } else {
                rows.push(row);
            }
        }
        let images: HashMap<String, Result<Arc<[u8]>, &'static str>> = rows
            .iter()
            .filter(|row| row.image.len() > MAX_IMAGE_REFERENCE_CHARS)
            .map(|row| (row.index.clone(), decode_base64(&row.image)))
            .collect();
        let mut benchmark = Self { questions: Vec::new(), answers: Vec::new(), rejected: Vec::new() };
        for row in rows {
            let index = row.index.clone();
            match benchmark.admit(row, &images) {
                Ok(()) => {}
                Err(reason) => audit.reject(index, reason),
            }
        }
        benchmark.rejected = audit.rejected;
        Ok(benchmark)
    }

    fn admit(
        &mut self,
        row: Row,
        images: &HashMap<String, Result<Arc<[u8]>, &'static str>>,
    ) -> Result<(), &'static str> {
        if row.question.is_empty() {
            return Err("question-missing");
        }
        if row.options.len() < 2 {
            return Err("too-few-options");
        }
        if has_placeholder(&row.question) || row.options.iter().any(|(_, option)| has_placeholder(option)) {
            return Err("image-placeholder-in-text");
        }
        let letter = row.answer.trim().to_ascii_uppercase();
        let answer =
            row.options.iter().map(|(option, _)| *option).find(|option| letter == option.to_string());
        let answer = answer.ok_or("answer-is-no-option")?;
        let owner = match row.image.len() {
            0 => return Err("image-missing"),
            1..=MAX_IMAGE_REFERENCE_CHARS => row.image.trim(),
            _ => row.index.as_str(),
        };
        let image = Arc::clone(
            images.get(owner).ok_or("image-reference-unknown")?.as_ref().map_err(|reason| *reason)?,
        );
        self.questions.push(Question {
            id: row.index,
            text: QuestionText::MultipleChoice { question: row.question, options: row.options },
            image: ImageSource::Bytes(image),
            facets: row.facets,
        });
        self.answers.push(answer);
        Ok(())
    }

    fn is_right(&self, question_idx: usize, output: &str) -> bool {
        self.letter(question_idx, output) == Some(self.answers[question_idx])
    }

    fn letter(&self, question_idx: usize, output: &str) -> Option<char> {
        extract_letter(output, self.options(question_idx)).map(|found| found.letter)
    }

    fn options(&self, question_idx: usize) -> &[(char, String)] {
        match &self.questions[question_idx].text {
            QuestionText::MultipleChoice { options, .. } => options,
            QuestionText::ShortAnswer { .. } => &[],
        }
    }
}

impl Benchmark for MmbenchBenchmark {
    fn questions(&self) -> &[Question] {
        &self.questions
    }

    fn rejected(&self) -> &[RejectedSample] {
        &self.rejected
    }

    fn judge(&self, question_idx: usize, output: &str) -> Judgement {
        let letter = self.letter(question_idx, output);
        let gold = self.answers[question_idx];
        Judgement {
            credit: f64::from(letter == Some(gold)),
            extracted: letter.map(String::from),
            gold: gold.to_string(),
        }
    }

    fn extras(&self, answers: &[(usize, &str)]) -> Extras {
        let mut unread = 0_u64;
        let mut reference_right = 0_u64;
        let mut chance = 0.0;
        let mut groups: BTreeMap<String, bool> = BTreeMap::new();
        for &(question_idx, output) in answers {
            unread += u64::from(self.letter(question_idx, output).is_none());
            let gold = self.answers[question_idx].to_ascii_lowercase();
            reference_right += u64::from(output.to_lowercase().contains(gold));
            chance += 1.0 / self.options(question_idx).len() as f64;
            let group = circular_group(&self.questions[question_idx].id);
            *groups.entry(group).or_insert(true) &= self.is_right(question_idx, output);
        }
        let num = answers.len().max(1) as f64;
        let mut extras = Extras::default();
        extras.metrics.insert("chance", chance / num);
        extras.metrics.insert("unread", unread as f64);
        extras.rule("reference", [("accuracy", reference_right as f64 / num)]);
        let num_whole = groups.values().filter(|right| **right).count() as f64;
        let num_groups = groups.len().max(1) as f64;
        extras.rule("circular", [("accuracy", num_whole / num_groups), ("num", num_groups)]);
        extras
    }
}

/// What all rotations of a question have in common.
fn circular_group(index: &str) -> String {
    index.parse::<u64>().map_or_else(|_| index.to_owned(), |number| (number % CIRCULAR_MODULUS).to_string())
}

/// Where the columns are.
struct Columns {
    index: usize,
    image: usize,
    question: usize,
    answer: usize,
    options: Vec<(char, usize)>,
    facets: Vec<(&'static str, usize)>,
}

/// One line, as text.
struct Row {
    index: String,
    image: String,
    question: String,
    answer: String,
    options: Vec<(char, String)>,
    facets: Vec<(&'static str, String)>,
}

impl Columns {
    fn from_header(header: &csv::StringRecord) -> Result<Self, String> {
        let position =
            |name: &str| header.iter().position(|column| column.trim_start_matches('\u{feff}') == name);
        let required = |name: &str| position(name).ok_or_else(|| format!("it has no column `{name}`"));
        let facets =
            [("category", "category"), ("l2_category", "l2-category"), ("l2_category", "l2_category")];
        Ok(Self {
            index: required("index")?,
            image: required("image")?,
            question: required("question")?,
            answer: required("answer")?,
            options: ('A'..='Z')
                .filter_map(|letter| Some((letter, position(&letter.to_string())?)))
                .collect(),
            facets: facets
                .into_iter()
                .filter_map(|(facet, column)| Some((facet, position(column)?)))
                .collect(),
        })
    }

    fn row(&self, record: &csv::StringRecord) -> Row {
        let cell = |column: usize| record.get(column).unwrap_or_default().to_owned();
        let filled =
            |column: usize| Some(cell(column)).filter(|text| !text.trim().is_empty() && text != "nan");
        Row {
            index: cell(self.index),
            image: cell(self.image),
            question: cell(self.question),
            answer: cell(self.answer),
            options: self
                .options
                .iter()
                .filter_map(|(letter, column)| Some((*letter, filled(*column)?)))
                .collect(),
            facets: self
                .facets
                .iter()
                .filter_map(|(facet, column)| Some((*facet, filled(*column)?)))
                .collect(),
        }
    }
}

fn decode_base64(cell: &str) -> Result<Arc<[u8]>, &'static str> {
    if cell.starts_with('[') {
        return Err("several-images");
    }
    let compact: Vec<u8> = cell.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64.decode(compact).map(Arc::from).map_err(|_| "image-not-base64")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(fill: u8) -> String {
        BASE64.encode([fill; 90])
    }

    fn benchmark(rows: &[&str]) -> MmbenchBenchmark {
        let mut text = "index\tquestion\tA\tB\tC\tD\tanswer\tcategory\timage\n".to_owned();
        for row in rows {
            text += row;
            text += "\n";
        }
        MmbenchBenchmark::parse(text.as_bytes()).unwrap()
    }

    fn reasons(benchmark: &MmbenchBenchmark) -> Vec<(&str, &str)> {
        benchmark.rejected.iter().map(|reject| (reject.key.as_str(), reject.reason.as_str())).collect()
    }

    #[test]
    fn rows_options_and_shared_images() {
        let image = image(7);
        let benchmark = benchmark(&[
            &format!("1\tWhich one?\tred\tblue\tnan\t\tb\tcolor\t{image}"),
            "1000001\t\"Which \"\"one\"\"?\nSay.\"\tblue\tred\t\t\tA\tcolor\t1",
        ]);
        assert_eq!(reasons(&benchmark), []);
        assert_eq!(benchmark.answers, ['B', 'A']);
        let options = [('A', "blue".to_owned()), ('B', "red".to_owned())].to_vec();
        let question = "Which \"one\"?\nSay.".to_owned();
        assert_eq!(benchmark.questions[1].text, QuestionText::MultipleChoice { question, options });
        assert_eq!(benchmark.questions[0].facets, [("category", "color".to_owned())]);
        for question in &benchmark.questions {
            assert!(matches!(&question.image, ImageSource::Bytes(bytes) if bytes.as_ref() == [7; 90]));
        }
    }

    #[test]
    fn bad_rows_are_counted_with_a_reason() {
        let good = image(1);
        let rows = [
            format!("1\tq\ta\tb\t\t\tC\t\t{good}"),
            format!("2\tq\ta\t\t\t\tA\t\t{good}"),
            format!("3\t\ta\tb\t\t\tA\t\t{good}"),
            format!("4\tq <image>\ta\tb\t\t\tA\t\t{good}"),
            "5\tq\ta\tb\t\t\tA\t\t".to_owned(),
            "6\tq\ta\tb\t\t\tA\t\t99".to_owned(),
            format!("7\tq\ta\tb\t\t\tA\t\t{}", "*".repeat(65)),
            "8\tq\ta\tb\t\t\tA\t\t7".to_owned(),
            format!("9\tq\ta\tb\t\t\tA\t\t[{good}]"),
            format!("\tq\ta\tb\t\t\tA\t\t{good}"),
            format!("1\tq\ta\tb\t\t\tA\t\t{good}"),
            "10".to_owned(),
            format!("11\tq\ta\tb\t\t\tA\t\t{good}"),
        ];
        let benchmark = benchmark(&rows.iter().map(String::as_str).collect::<Vec<_>>());
        let mut found = reasons(&benchmark);
        found.sort_unstable();
        let mut expected = [
            ("1", "answer-is-no-option"),
            ("2", "too-few-options"),
            ("3", "question-missing"),
            ("4", "image-placeholder-in-text"),
            ("5", "image-missing"),
            ("6", "image-reference-unknown"),
            ("7", "image-not-base64"),
            ("8", "image-not-base64"),
            ("9", "several-images"),
            ("row-9", "index-missing"),
            ("1", "duplicate-index"),
            ("10", "question-missing"),
        ];
        expected.sort_unstable();
        assert_eq!(found, expected);
        assert_eq!(benchmark.questions.len(), 1);
    }

    #[test]
    fn bytes_that_are_no_text_reject_one_row() {
        let mut text = b"index\tquestion\tA\tB\tanswer\timage\n1\t\xff\ta\tb\tA\t2\n".to_vec();
        text.extend(format!("2\tq\ta\tb\tA\t{}\n", image(3)).bytes());
        let benchmark = MmbenchBenchmark::parse(&text).unwrap();
        assert_eq!(reasons(&benchmark), [("row-0", "unreadable-row")]);
        assert_eq!(benchmark.questions.len(), 1);
    }

    #[test]
    fn a_missing_column_is_named() {
        let error = MmbenchBenchmark::parse(b"index\tquestion\tanswer\n").unwrap_err();
        assert_eq!(error, "it has no column `image`");
        assert!(MmbenchBenchmark::parse(b"").is_err());
    }

    #[test]
    fn circular_and_reference_rules() {
        let image = image(7);
        let benchmark = benchmark(&[
            &format!("1\tq\tred\tblue\t\t\tA\t\t{image}"),
            "1000001\tq\tblue\tred\t\t\tB\t\t1",
            &format!("2\tq\tred\tblue\tgreen\tpink\tC\t\t{image}"),
        ]);
        let outputs = [(0, "A"), (1, "A."), (2, "It is green, because")];
        let judged: Vec<f64> =
            outputs.iter().map(|(idx, output)| benchmark.judge(*idx, output).credit).collect();
        assert_eq!(judged, [1.0, 0.0, 1.0]);
        let extras = benchmark.extras(&outputs);
        assert_eq!(extras.other_rules["circular"], BTreeMap::from([("accuracy", 0.5), ("num", 2.0)]));
        // "because" holds the letter c: the lenient rule would be right by luck.
        assert_eq!(extras.other_rules["reference"]["accuracy"], 2.0 / 3.0);
        assert!((extras.metrics["chance"] - 1.25 / 3.0).abs() < 1e-12);
    }
}
