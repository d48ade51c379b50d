//! Conversations: the chat template, its ids and its labels.

use serde::{Deserialize, Serialize};

use crate::{
    IGNORE_INDEX, TextError, Tokenizer, tokenize_with_images,
    tokenizer::{BOS_TOKEN, EOS_TOKEN, IM_START_TOKEN},
};

/// The system message of every conversation of the reference.
const SYSTEM_MESSAGE: &str = "You are a helpful assistant.";

/// The system message that Qwen2.5's own template puts before a conversation that brings none.
const QWEN_SYSTEM_MESSAGE: &str = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.";

/// Who speaks in a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// The person who asks.
    Human,
    /// The model that answers.
    Assistant,
}

/// One turn of a conversation; `text` may hold `<image>` placeholders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said, without template tokens.
    pub text: String,
}

impl Turn {
    /// A turn.
    pub fn new(role: Role, text: impl Into<String>) -> Self {
        Self { role, text: text.into() }
    }
}

/// Ids and labels of a conversation, of equal length. Positions of images hold [`crate::IMAGE_TOKEN_ID`] in
/// `input_ids`; a label is the id itself (the trainer shifts) or [`IGNORE_INDEX`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatExample {
    /// What the model reads.
    pub input_ids: Vec<i64>,
    /// What the loss compares with.
    pub labels: Vec<i64>,
}

/// How a conversation is written as text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChatTemplate {
    /// The template the released instruct weights were trained with. It differs from Qwen's own in one place, and
    /// that must stay: a human turn ends `<|im_end|>assistant\n`, without `\n<|im_start|>` between the two.
    ///
    /// ```text
    /// <s><|im_start|>system
    /// You are a helpful assistant.<|im_end|>
    /// <|im_start|>user
    /// {question}<|im_end|>assistant
    /// {answer}<|im_end|>
    /// <|im_start|>user
    /// {question}<|im_end|>assistant
    /// …
    /// ```
    ///
    /// As in the reference, even turns are written as the human's and odd turns as the assistant's *whatever their
    /// [`Role`] says*; messages are stripped of white space; an empty answer is written as one blank.
    ///
    /// Source: `Qwen2PromptBuilder`, Open-Qwen2VL `prismatic/models/backbones/llm/prompting/qwen2_prompter.py`.
    #[default]
    Reference,
    /// Qwen2.5's own template, which the language model knew before it saw images. Messages are left as they are.
    ///
    /// ```text
    /// <|im_start|>system
    /// You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
    /// <|im_start|>user
    /// {question}<|im_end|>
    /// <|im_start|>assistant
    /// {answer}<|im_end|>
    /// …
    /// ```
    ///
    /// Source: `chat_template` of `tokenizer_config.json`, Qwen/Qwen2.5-1.5B-Instruct, without tools.
    Qwen,
}

impl ChatTemplate {
    /// The conversation as one text, the closing newline included.
    pub fn render(&self, turns: &[Turn]) -> String {
        turns.iter().enumerate().map(|(turn_idx, turn)| self.render_turn(turn_idx, &turn.text)).collect()
    }

    /// A fine-tuning example: turns are tokenized one by one and joined. Labels of human turns are
    /// [`IGNORE_INDEX`]; labels of assistant turns are their ids, `<|im_end|>` and the closing newline included.
    ///
    /// Nothing is cut to a maximum length here: that is the trainer's decision.
    ///
    /// # Errors
    /// If there is no turn, or the tokenizer refuses one.
    pub fn sft_example(&self, tokenizer: &Tokenizer, turns: &[Turn]) -> Result<ChatExample, TextError> {
        if turns.is_empty() {
            return Err(TextError::EmptyConversation);
        }
        let mut example = ChatExample { input_ids: Vec::new(), labels: Vec::new() };
        for (turn_idx, turn) in turns.iter().enumerate() {
            let ids = tokenize_with_images(tokenizer, &self.render_turn(turn_idx, &turn.text))?;
            match written_role(turn_idx) {
                Role::Human => example.labels.resize(example.labels.len() + ids.len(), IGNORE_INDEX),
                // A placeholder in an answer is no token to predict; the model ignores its label as well.
                Role::Assistant => {
                    example.labels.extend(ids.iter().map(|&id| if id < 0 { IGNORE_INDEX } else { id }))
                }
            }
            example.input_ids.extend(ids);
        }
        Ok(example)
    }

    /// What generation starts from for a fresh question: exactly the ids a fine-tuning example has before its first
    /// answer token, the newline after `assistant` included.
    ///
    /// The reference strips that newline at inference, so its model must produce it first. Here the prompt is what
    /// training saw; this is a deliberate deviation.
    ///
    /// # Errors
    /// If the tokenizer refuses the question.
    pub fn generation_prompt(&self, tokenizer: &Tokenizer, user_text: &str) -> Result<Vec<i64>, TextError> {
        tokenize_with_images(tokenizer, &self.render_turn(0, user_text))
    }

    /// As [`generation_prompt`](Self::generation_prompt), in a conversation: what an answer to the last turn, a human's,
    /// is generated from. The turns are those of a [fine-tuning example](Self::sft_example), tokenized one by one.
    ///
    /// # Errors
    /// If there is no turn, or the tokenizer refuses one.
    pub fn conversation_prompt(&self, tokenizer: &Tokenizer, turns: &[Turn]) -> Result<Vec<i64>, TextError> {
        Ok(self.sft_example(tokenizer, turns)?.input_ids)
    }

    fn render_turn(&self, turn_idx: usize, message: &str) -> String {
        match (self, written_role(turn_idx)) {
            (Self::Reference, Role::Human) => {
                let opening = match turn_idx {
                    0 => format!("{BOS_TOKEN}{IM_START_TOKEN}system\n{SYSTEM_MESSAGE}{EOS_TOKEN}\n"),
                    _ => String::new(),
                };
                format!("{opening}{IM_START_TOKEN}user\n{}{EOS_TOKEN}assistant\n", strip(message))
            }
            (Self::Reference, Role::Assistant) => {
                let message = strip(message);
                let answer = if message.is_empty() { " " } else { message };
                format!("{answer}{EOS_TOKEN}\n")
            }
            (Self::Qwen, Role::Human) => {
                let opening = match turn_idx {
                    0 => format!("{IM_START_TOKEN}system\n{QWEN_SYSTEM_MESSAGE}{EOS_TOKEN}\n"),
                    _ => String::new(),
                };
                format!("{opening}{IM_START_TOKEN}user\n{message}{EOS_TOKEN}\n{IM_START_TOKEN}assistant\n")
            }
            (Self::Qwen, Role::Assistant) => format!("{message}{EOS_TOKEN}\n"),
        }
    }
}

/// The role a turn is written with: its place decides.
fn written_role(turn_idx: usize) -> Role {
    if turn_idx.is_multiple_of(2) { Role::Human } else { Role::Assistant }
}

/// Python's `str.strip`: Unicode white space and the four separators U+001C to U+001F.
fn strip(text: &str) -> &str {
    text.trim_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BpeTrainer, IMAGE_TOKEN_ID};
    use proptest::prelude::*;

    fn bytes_only() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    fn conversation(messages: &[&str]) -> Vec<Turn> {
        let turn = |(turn_idx, text): (usize, &&str)| Turn::new(written_role(turn_idx), *text);
        messages.iter().enumerate().map(turn).collect()
    }

    #[test]
    fn the_template_byte_for_byte() {
        let turns = conversation(&[" hi\n", "hello", "again?", ""]);
        assert_eq!(
            ChatTemplate::Reference.render(&turns),
            "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\nhi<|im_end|>assistant\nhello<|im_end|>\n\
             <|im_start|>user\nagain?<|im_end|>assistant\n <|im_end|>\n"
        );
    }

    #[test]
    fn qwens_own_template_byte_for_byte() {
        let turns = conversation(&[" hi\n", "hello", "again?"]);
        assert_eq!(
            ChatTemplate::Qwen.render(&turns),
            "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n\
             <|im_start|>user\n hi\n<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n\
             <|im_start|>user\nagain?<|im_end|>\n<|im_start|>assistant\n"
        );
        // Nothing is dropped after an image: it does not begin with `<s>`.
        let ids = ChatTemplate::Qwen.generation_prompt(&bytes_only(), "<image>\nq").unwrap();
        let image = ids.iter().position(|&id| id == IMAGE_TOKEN_ID).unwrap();
        assert_eq!(ids[image + 1..image + 3], bytes_only().encode("\nq").unwrap());
    }

    #[test]
    fn a_conversation_goes_on_from_what_training_saw() {
        let tokenizer = bytes_only();
        let turns = conversation(&["<image>\nq", "yes", "why?", "so"]);
        for template in [ChatTemplate::Reference, ChatTemplate::Qwen] {
            let whole = template.sft_example(&tokenizer, &turns).unwrap().input_ids;
            let prompt = template.conversation_prompt(&tokenizer, &turns[..3]).unwrap();
            assert_eq!(whole[prompt.len()..], tokenizer.encode("so<|im_end|>\n").unwrap());
            assert_eq!(whole[..prompt.len()], prompt);
            let first = template.conversation_prompt(&tokenizer, &turns[..1]).unwrap();
            assert_eq!(first, template.generation_prompt(&tokenizer, "<image>\nq").unwrap());
        }
    }

    #[test]
    fn first_turn_ids_lose_the_newline_after_the_image() {
        let tokenizer = bytes_only();
        let encode = |text: &str| tokenizer.encode(text).unwrap();
        let ids = ChatTemplate::Reference.generation_prompt(&tokenizer, "<image>\nWhat is it?").unwrap();
        let expected = [
            vec![tokenizer.bos_id(), tokenizer.im_start_id()],
            encode("system\nYou are a helpful assistant."),
            vec![tokenizer.eos_id()],
            encode("\n"),
            vec![tokenizer.im_start_id()],
            encode("user\n"),
            vec![IMAGE_TOKEN_ID],
            encode("What is it?"),
            vec![tokenizer.eos_id()],
            encode("assistant\n"),
        ];
        assert_eq!(ids, expected.concat());
    }

    #[test]
    fn an_image_at_the_end_swallows_the_end_of_turn() {
        let tokenizer = bytes_only();
        let ids = ChatTemplate::Reference.generation_prompt(&tokenizer, "Look:\n<image>").unwrap();
        let image = ids.iter().position(|&id| id == IMAGE_TOKEN_ID).unwrap();
        assert_eq!(ids[image + 1..], tokenizer.encode("assistant\n").unwrap());
    }

    #[test]
    fn labels_cover_answers_with_their_end_and_newline() {
        let tokenizer = bytes_only();
        let turns = conversation(&["<image>\nq", "yes", "why", "so"]);
        let example = ChatTemplate::Reference.sft_example(&tokenizer, &turns).unwrap();
        assert_eq!(example.input_ids.len(), example.labels.len());
        let labelled =
            example.labels.iter().copied().filter(|&label| label != IGNORE_INDEX).collect::<Vec<_>>();
        assert_eq!(labelled, tokenizer.encode("yes<|im_end|>\nso<|im_end|>\n").unwrap());
    }

    #[test]
    fn parity_decides_not_the_role() {
        let tokenizer = bytes_only();
        let odd = [Turn::new(Role::Assistant, "a"), Turn::new(Role::Human, "b")];
        let even = [Turn::new(Role::Human, "a"), Turn::new(Role::Assistant, "b")];
        let of = |turns: &[Turn]| ChatTemplate::Reference.sft_example(&tokenizer, turns).unwrap();
        assert_eq!(of(&odd), of(&even));
    }

    #[test]
    fn no_turns_is_an_error() {
        let error = ChatTemplate::Reference.sft_example(&bytes_only(), &[]).unwrap_err();
        assert!(matches!(error, TextError::EmptyConversation));
    }

    #[test]
    fn strip_is_pythons() {
        assert_eq!(strip("\u{1f} \u{a0}\u{3000}a b\u{85}\n"), "a b");
        assert_eq!(strip("\u{200b}a"), "\u{200b}a");
    }

    proptest! {
        #[test]
        fn generation_prompt_is_the_unlabelled_prefix(question in "[a-z<>\n ]{0,12}", answer in "[a-z]{1,6}") {
            let tokenizer = bytes_only();
            let turns = conversation(&[&question, &answer]);
            let example = ChatTemplate::Reference.sft_example(&tokenizer, &turns).unwrap();
            let prompt = ChatTemplate::Reference.generation_prompt(&tokenizer, &question).unwrap();
            prop_assert_eq!(&example.input_ids[..prompt.len()], &prompt[..]);
            for (position, (&id, &label)) in example.input_ids.iter().zip(&example.labels).enumerate() {
                prop_assert_eq!(label, if position < prompt.len() { IGNORE_INDEX } else { id });
            }
        }
    }
}
