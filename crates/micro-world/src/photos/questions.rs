//! Questions about real images, brought into the forms that training and benchmarks share; and the
//! benchmarks.

use super::source::{Part, PhotoQuestion, PhotoSet};
use crate::benchmark_files::{
    MultipleChoiceRow, OpenQuestion, YesNoLine, vqa_image_name, write_images, write_multiple_choice,
    write_vqa, write_yes_no,
};
use crate::encode::PictureFormat;
use crate::error::WorldError;
use crate::question::{LETTERS, multiple_choice_prompt, short_answer_prompt};
use crate::report::WorldReport;
use crate::world_dir::WorldDir;
use oqvl_stage::{RunContext, stream};
use rand::seq::SliceRandom;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// How a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// With two to four options.
    MultipleChoice,
    /// Answered with yes or no.
    YesNo,
    /// Answered with a word or two.
    Open,
}

/// A question in its final form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) form: Form,
    pub(super) benchmark: String,
    pub(super) question: String,
    /// In the order they are shown; empty without options.
    pub(super) options: Vec<String>,
    /// A letter, `yes` or `no`, or a word or two.
    pub(super) answer: String,
}

impl Asked {
    /// Number `number` of the questions. Options are shuffled: in some sets the right one is always the
    /// first.
    pub(super) fn new(question: &PhotoQuestion, seed: u64, number: u64) -> Asked {
        let asked = |form, text: &str, options, answer: String| Asked {
            form,
            benchmark: question.benchmark.clone(),
            question: text.to_owned(),
            options,
            answer,
        };
        if let Some(right) = question.correct_choice_idx.filter(|_| question.choices.len() <= LETTERS.len()) {
            let mut order: Vec<usize> = (0..question.choices.len()).collect();
            order.shuffle(&mut stream(seed, "micro-world/photo-options", 0, 0, number));
            let place = order.iter().position(|&index| index == right);
            let letter = LETTERS[place.expect("the right choice was checked to be one of the choices")];
            let options = order.iter().map(|&index| question.choices[index].trim().to_owned()).collect();
            return asked(Form::MultipleChoice, &question.question, options, letter.to_owned());
        }
        match (question.answer.as_str(), &question.statement) {
            ("true" | "false", Some(statement)) => {
                let answer = if question.answer == "true" { "yes" } else { "no" };
                let text = format!("Is this statement about the image true? {statement}");
                asked(Form::YesNo, &text, Vec::new(), answer.to_owned())
            }
            // A question that names its two answers as choices; one without choices asks in the open.
            ("yes" | "no", _) if !question.choices.is_empty() => {
                asked(Form::YesNo, &question.question, Vec::new(), question.answer.clone())
            }
            _ => asked(Form::Open, &question.question, Vec::new(), question.answer.clone()),
        }
    }

    /// What the user says, and the answer.
    pub(super) fn turn(&self) -> (String, String) {
        match self.form {
            Form::MultipleChoice => {
                // The answer of a multiple-choice question is a letter; what is taught is the option's text.
                let option = LETTERS.iter().position(|letter| *letter == self.answer);
                let text = option.and_then(|option| self.options.get(option)).unwrap_or(&self.answer);
                (multiple_choice_prompt(&self.question, &self.options), text.clone())
            }
            Form::YesNo | Form::Open => (short_answer_prompt(&self.question), self.answer.clone()),
        }
    }
}

/// The benchmarks under construction.
#[derive(Default)]
struct Benchmarks {
    multiple_choice: Vec<MultipleChoiceRow>,
    yes_no: Vec<YesNoLine>,
    open: Vec<OpenQuestion>,
    /// Files of `eval/images`.
    images: BTreeMap<String, Vec<u8>>,
}

/// Writes `eval/` from the questions about held-out images.
pub(super) fn write(
    run: &RunContext,
    world: &WorldDir,
    photos: &PhotoSet,
    report: &mut WorldReport,
) -> Result<(), WorldError> {
    let mut benchmarks = Benchmarks::default();
    // Training numbers its questions from 0; these must not get the same streams.
    let mut number = 1 << 32;
    for (image_idx, (photo, questions)) in photos.questions_of(Part::Eval).into_iter().enumerate() {
        run.check_interrupt()?;
        let bytes = photos.read(&photo.file)?;
        for question in questions {
            let asked = Asked::new(question, run.seed, number);
            number += 1;
            if let Err(reason) = benchmarks.push(asked, image_idx as u64, &photo.file, &bytes) {
                report.tally.reject(&photo.file, reason);
            }
        }
    }
    let Benchmarks { multiple_choice, yes_no, open, images } = benchmarks;
    write_images(world, "eval/images", &images.into_iter().collect::<Vec<_>>())?;
    write_multiple_choice(world, &multiple_choice, report)?;
    write_yes_no(world, &yes_no, report)?;
    write_vqa(world, &open, report)
}

impl Benchmarks {
    /// Adds a question to the benchmark of its form, or says why none takes it.
    fn push(&mut self, asked: Asked, image_id: u64, file: &str, bytes: &[u8]) -> Result<(), &'static str> {
        match asked.form {
            Form::MultipleChoice => {
                let letter = LETTERS.into_iter().find(|letter| *letter == asked.answer);
                // The table has four options; questions with two are for training only.
                let (Ok(options), Some(answer)) = (asked.options.try_into(), letter) else {
                    return Err("question-without-four-options");
                };
                self.multiple_choice.push(MultipleChoiceRow {
                    question: asked.question,
                    options,
                    answer,
                    category: asked.benchmark.clone(),
                    ability: asked.benchmark,
                    source: file.to_owned(),
                    image: bytes.to_vec(),
                });
            }
            Form::YesNo => {
                let image = file.replace('/', "_");
                self.images.entry(image.clone()).or_insert_with(|| bytes.to_vec());
                let label = if asked.answer == "yes" { "yes" } else { "no" };
                let question_id = self.yes_no.len() as u64 + 1;
                self.yes_no.push(YesNoLine { question_id, image, text: asked.question, label });
            }
            Form::Open => {
                let name = vqa_image_name(image_id);
                if let Entry::Vacant(place) = self.images.entry(name) {
                    place.insert(as_jpeg(bytes).ok_or("undecodable-image")?);
                }
                self.open.push(OpenQuestion {
                    image_id,
                    question: asked.question,
                    answer: asked.answer,
                    question_type: asked.benchmark,
                });
            }
        }
        Ok(())
    }
}

/// The image as a JPEG, which is what the names of VQAv2 promise; a JPEG stays as it is.
fn as_jpeg(bytes: &[u8]) -> Option<Vec<u8>> {
    if image::guess_format(bytes).ok()? == image::ImageFormat::Jpeg {
        return Some(bytes.to_vec());
    }
    let picture = image::load_from_memory(bytes).ok()?.to_rgb8();
    Some(PictureFormat::Jpeg.encode(&picture))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(
        choices: &[&str],
        right: Option<usize>,
        answer: &str,
        statement: Option<&str>,
    ) -> PhotoQuestion {
        PhotoQuestion {
            benchmark: "test".into(),
            file: "a.png".into(),
            question: "What is it?".into(),
            statement: statement.map(str::to_owned),
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            correct_choice_idx: right,
            answer: answer.into(),
        }
    }

    #[test]
    fn right_options_move_with_their_letter() {
        let mut letters = std::collections::BTreeSet::new();
        for number in 0..40 {
            let asked = Asked::new(&question(&["a", "b", "c", "d"], Some(0), "a", None), 7, number);
            let place = LETTERS.iter().position(|letter| *letter == asked.answer).unwrap();
            assert_eq!((asked.form, asked.options[place].as_str()), (Form::MultipleChoice, "a"));
            letters.insert(asked.answer);
        }
        assert_eq!(letters.len(), 4);
    }

    #[test]
    fn two_options_have_two_letters() {
        let asked = Asked::new(&question(&["a ", "b"], Some(1), "b", None), 7, 0);
        let (prompt, answer) = asked.turn();
        assert!(prompt.contains("\nB. ") && !prompt.contains("\nC. ") && !prompt.contains(" \n"), "{prompt}");
        // What is taught is the text of the right option, not its letter.
        assert_eq!((answer.as_str(), ["A", "B"].contains(&asked.answer.as_str())), ("b", true));
    }

    #[test]
    fn truth_becomes_yes_and_the_rest_stays_open() {
        let asked = Asked::new(&question(&["true", "false"], None, "false", Some("It rains.")), 7, 0);
        assert_eq!((asked.form, asked.answer.as_str()), (Form::YesNo, "no"));
        assert!(asked.question.ends_with("true? It rains."));
        assert_eq!(Asked::new(&question(&["yes", "no"], None, "yes", None), 7, 0).form, Form::YesNo);
        assert_eq!(Asked::new(&question(&[], None, "yes", None), 7, 0).form, Form::Open);
    }
}
