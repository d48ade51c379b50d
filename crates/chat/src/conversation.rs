//! Turns and images, and the prompt they become.

use crate::cli::Template;
use crate::error::ChatError;
use oqvl_model::Prompt;
use oqvl_text_prep::{
    ChatTemplate, ESCAPED_PLACEHOLDER, IMAGE_PLACEHOLDER, Role, TextError, Tokenizer, Turn,
    tokenize_with_images,
};
use std::sync::Arc;

/// What has been said so far, and the images that are waiting for the next question.
#[derive(Debug)]
pub struct Conversation {
    template: Template,
    turns: Vec<Turn>,
    images: Vec<Arc<[f32]>>,
    waiting: Vec<Arc<[f32]>>,
}

impl Conversation {
    /// A conversation that has not begun.
    #[must_use]
    pub fn new(template: Template) -> Self {
        Self { template, turns: Vec::new(), images: Vec::new(), waiting: Vec::new() }
    }

    /// Adds an image to the next question: its pixel values, as [`Prompt::images`].
    pub fn add_image(&mut self, pixels: Arc<[f32]>) {
        self.waiting.push(pixels);
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        *self = Self::new(self.template);
    }

    /// Asks: the prompt for the answer, and the question as it was put, for [`keep`](Self::keep). Images that are waiting
    /// stand where the question says `<image>`; if it says it nowhere, before it, a line each.
    ///
    /// # Errors
    /// If the question says `<image>` another number of times than images are waiting, or cannot be tokenized.
    pub fn ask(&self, tokenizer: &Tokenizer, question: &str) -> Result<(Prompt, String), ChatError> {
        let (placeholders, waiting) = (question.matches(IMAGE_PLACEHOLDER).count(), self.waiting.len());
        let question = match placeholders {
            0 => format!("{IMAGE_PLACEHOLDER}\n").repeat(waiting) + question,
            _ if placeholders == waiting => question.to_owned(),
            _ => return Err(ChatError::Placeholders { placeholders, images: waiting }),
        };
        let input_ids = self.input_ids(tokenizer, &question)?;
        let images = self.images.iter().chain(&self.waiting).map(Arc::clone).collect();
        Ok((Prompt { input_ids, images }, question))
    }

    fn input_ids(&self, tokenizer: &Tokenizer, question: &str) -> Result<Vec<i64>, TextError> {
        let template = match self.template {
            Template::Reference => ChatTemplate::Reference,
            Template::Qwen => ChatTemplate::Qwen,
            Template::Raw => {
                // Source: `generate_batch`, which puts BOS before whatever it is given.
                let mut ids = vec![tokenizer.bos_id()];
                ids.extend(tokenize_with_images(tokenizer, question)?);
                return Ok(ids);
            }
        };
        let mut turns = self.turns.clone();
        turns.push(Turn::new(Role::Human, question));
        template.conversation_prompt(tokenizer, &turns)
    }

    /// Whether the template takes text from a question, as [`ask`](Self::ask) put it, and not just the line feed after an
    /// image: see [`tokenize_with_images`].
    #[must_use]
    pub fn loses_text(&self, question: &str) -> bool {
        let mut after_images = question.split(IMAGE_PLACEHOLDER).skip(1);
        self.template == Template::Reference
            && self.turns.is_empty()
            && after_images.any(|text| !text.starts_with('\n'))
    }

    /// Keeps a question, as [`ask`](Self::ask) put it, and its answer. Nothing is kept of raw questions.
    pub fn keep(&mut self, question: String, answer: &str) {
        let images = std::mem::take(&mut self.waiting);
        if self.template == Template::Raw {
            return;
        }
        self.images.extend(images);
        self.turns.push(Turn::new(Role::Human, question));
        // A model may say the word; only images have placeholders.
        self.turns.push(Turn::new(Role::Assistant, answer.replace(IMAGE_PLACEHOLDER, ESCAPED_PLACEHOLDER)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_text_prep::{BpeTrainer, IMAGE_TOKEN_ID, SpecialTokens};

    fn tokenizer() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    /// A prompt as text, `[img]` for images.
    fn shown(tokenizer: &Tokenizer, prompt: &Prompt) -> String {
        let pieces = prompt.input_ids.split(|id| *id == IMAGE_TOKEN_ID);
        pieces
            .map(|ids| tokenizer.decode(ids, SpecialTokens::Keep).unwrap())
            .collect::<Vec<_>>()
            .join("[img]")
    }

    #[test]
    fn questions_answers_and_images_follow_each_other() {
        let tokenizer = tokenizer();
        let mut conversation = Conversation::new(Template::Reference);
        conversation.add_image(Arc::new([0.0]));
        let (prompt, question) = conversation.ask(&tokenizer, "What is it?").unwrap();
        assert_eq!(question, "<image>\nWhat is it?");
        let opening = "<s><|im_start|>system\nYou are a helpful assistant.<|im_end|>\n";
        // The newline after the image is lost, as in training.
        let first = format!("{opening}<|im_start|>user\n[img]What is it?<|im_end|>assistant\n");
        assert_eq!((shown(&tokenizer, &prompt), prompt.images.len()), (first.clone(), 1));
        conversation.keep(question, "An <image>!");
        conversation.add_image(Arc::new([1.0]));
        let (prompt, _) = conversation.ask(&tokenizer, "And in <image>?").unwrap();
        let second = format!(
            "{first}An <image-placeholder>!<|im_end|>\n<|im_start|>user\nAnd in [img]?<|im_end|>assistant\n"
        );
        assert_eq!((shown(&tokenizer, &prompt), prompt.images.len()), (second, 2));
        assert_eq!(&*prompt.images[1], [1.0]);
        conversation.reset();
        let (prompt, _) = conversation.ask(&tokenizer, "Hm").unwrap();
        assert!(prompt.images.is_empty());
    }

    #[test]
    fn qwens_template_and_none() {
        let tokenizer = tokenizer();
        let prompt = |template, questions: &[&str]| {
            let mut conversation = Conversation::new(template);
            for question in questions {
                let (_, question) = conversation.ask(&tokenizer, question).unwrap();
                conversation.keep(question, "yes");
            }
            conversation.add_image(Arc::new([0.0]));
            shown(&tokenizer, &conversation.ask(&tokenizer, "q").unwrap().0)
        };
        assert_eq!(prompt(Template::Raw, &["a"]), "<s>[img]\nq");
        let opening = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>";
        assert_eq!(
            prompt(Template::Qwen, &["a"]),
            format!(
                "{opening}\n<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n\
                 <|im_start|>user\n[img]\nq<|im_end|>\n<|im_start|>assistant\n"
            )
        );
    }

    #[test]
    fn what_the_references_template_takes_is_noticed() {
        let mut conversation = Conversation::new(Template::Reference);
        for (question, loses) in [
            ("<image>\nWhat?", false),
            ("no image", false),
            ("What is <image>?", true),
            ("At the end <image>", true),
        ] {
            assert_eq!(conversation.loses_text(question), loses, "{question}");
            assert!(!Conversation::new(Template::Qwen).loses_text(question));
            assert!(!Conversation::new(Template::Raw).loses_text(question));
        }
        conversation.keep("What is it?".to_owned(), "a cube");
        assert!(!conversation.loses_text("And <image>?"));
    }

    #[test]
    fn placeholders_must_match_the_images() {
        let mut conversation = Conversation::new(Template::Reference);
        let error = conversation.ask(&tokenizer(), "<image> and <image>").unwrap_err();
        assert!(matches!(error, ChatError::Placeholders { placeholders: 2, images: 0 }));
        conversation.add_image(Arc::new([0.0]));
        assert!(conversation.ask(&tokenizer(), "<image> and <image>").is_err());
        conversation.add_image(Arc::new([0.0]));
        assert!(conversation.ask(&tokenizer(), "<image> and <image>").is_ok());
    }
}
