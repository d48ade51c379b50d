//! The text a model is asked.

use oqvl_text_prep::IMAGE_PLACEHOLDER;
use serde::{Deserialize, Serialize};

/// Instruction behind multiple-choice questions (LLaVA, and all harnesses since).
const LETTER_INSTRUCTION: &str = "Answer with the option's letter from the given choices directly.";

/// Instruction behind multiple-choice questions for a model that was taught to answer with the option's text.
const OPTION_INSTRUCTION: &str = "Answer with one of the given choices directly.";

/// Instruction behind questions with a short free answer.
const SHORT_ANSWER_INSTRUCTION: &str = "Answer the question using a single word or phrase.";

/// Option letters the reference prompt always prints, filled or not.
const REFERENCE_LETTERS: [char; 4] = ['A', 'B', 'C', 'D'];

/// What the reference prompt prints for a missing option: how its table library shows an empty cell.
const REFERENCE_MISSING_OPTION: &str = "nan";

/// How a question becomes a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PromptStyle {
    /// The question is the user turn of the chat template that fine-tuning used.
    Chat,
    /// As `chat`, but a multiple-choice question asks for the text of an option instead of its letter. The extraction
    /// of answers is the same.
    ChatOption,
    /// The raw prompt of the reference harness, which uses no chat template even for the instruct model: `<s>`, then
    /// text that ends in `Answer:`.
    Reference,
}

/// What is asked, before a prompt style has been applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QuestionText {
    /// Choose one of the options `(letter, text)`, capital letters in ascending order.
    MultipleChoice {
        /// The question, without its options.
        question: String,
        /// The options that exist.
        options: Vec<(char, String)>,
    },
    /// Answer freely, in a word or phrase; yes/no questions are of this form.
    ShortAnswer {
        /// The question.
        question: String,
    },
}

impl PromptStyle {
    /// Writes `question` about one image, which the placeholder on the first line stands for.
    ///
    /// Chat: user text, to be put into the chat template. Reference: the whole prompt but for the leading `<s>`.
    ///
    /// Source of the reference wording: `vlm_eval` of Open-Qwen2VL, one harness per benchmark.
    ///
    /// ```
    /// use oqvl_evaluator::{PromptStyle, QuestionText};
    /// let question = QuestionText::ShortAnswer { question: "Is it red?".to_owned() };
    /// assert_eq!(
    ///     PromptStyle::Reference.render(&question),
    ///     "<image>\nQuestion: Is it red?\nAnswer the question using a single word or phrase.\nAnswer:"
    /// );
    /// ```
    pub fn render(self, question: &QuestionText) -> String {
        match (self, question) {
            (Self::Chat, QuestionText::MultipleChoice { question, options }) => {
                let lines = option_lines(options);
                format!("{IMAGE_PLACEHOLDER}\n{question}\n{lines}{LETTER_INSTRUCTION}")
            }
            (Self::ChatOption, QuestionText::MultipleChoice { question, options }) => {
                let lines = option_lines(options);
                format!("{IMAGE_PLACEHOLDER}\n{question}\n{lines}{OPTION_INSTRUCTION}")
            }
            (Self::Chat | Self::ChatOption, QuestionText::ShortAnswer { question }) => {
                format!("{IMAGE_PLACEHOLDER}\n{question}\n{SHORT_ANSWER_INSTRUCTION}")
            }
            (Self::Reference, QuestionText::MultipleChoice { question, options }) => {
                let lines = option_lines(&with_missing_options(options));
                format!("{IMAGE_PLACEHOLDER}\n{question}\n{lines}{LETTER_INSTRUCTION}\nAnswer:")
            }
            (Self::Reference, QuestionText::ShortAnswer { question }) => {
                format!("{IMAGE_PLACEHOLDER}\nQuestion: {question}\n{SHORT_ANSWER_INSTRUCTION}\nAnswer:")
            }
        }
    }
}

/// `A. {text}` and a line feed for every option.
fn option_lines(options: &[(char, String)]) -> String {
    options.iter().map(|(letter, text)| format!("{letter}. {text}\n")).collect()
}

/// `options` with every missing one of A to D put in as the reference would print it.
fn with_missing_options(options: &[(char, String)]) -> Vec<(char, String)> {
    let is_missing = |letter: &char| options.iter().all(|(option, _)| option != letter);
    let missing = REFERENCE_LETTERS.into_iter().filter(is_missing);
    let mut all = options.to_vec();
    all.extend(missing.map(|letter| (letter, REFERENCE_MISSING_OPTION.to_owned())));
    all.sort_by_key(|(letter, _)| *letter);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn multiple_choice() -> QuestionText {
        let options = [('A', "one"), ('B', "two"), ('D', "four")].map(|(l, t)| (l, t.to_owned())).to_vec();
        QuestionText::MultipleChoice { question: "How many?".to_owned(), options }
    }

    #[test]
    fn chat_prints_the_options_that_exist() {
        assert_eq!(
            PromptStyle::Chat.render(&multiple_choice()),
            "<image>\nHow many?\nA. one\nB. two\nD. four\n\
             Answer with the option's letter from the given choices directly."
        );
        assert_eq!(
            PromptStyle::ChatOption.render(&multiple_choice()),
            "<image>\nHow many?\nA. one\nB. two\nD. four\nAnswer with one of the given choices directly."
        );
        let open = QuestionText::ShortAnswer { question: "Which color?".to_owned() };
        assert_eq!(
            PromptStyle::Chat.render(&open),
            "<image>\nWhich color?\nAnswer the question using a single word or phrase."
        );
    }

    #[test]
    fn reference_prints_four_lines_always() {
        assert_eq!(
            PromptStyle::Reference.render(&multiple_choice()),
            "<image>\nHow many?\nA. one\nB. two\nC. nan\nD. four\n\
             Answer with the option's letter from the given choices directly.\nAnswer:"
        );
    }
}
