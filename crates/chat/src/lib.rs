//! `oqvl-chat`: questions about images, answered by a vision-language model on a terminal.
//!
//! Nouns: [`Request`] (what was typed), [`Conversation`] (turns, images and how they become a prompt), and the two ways to
//! talk: one question, or a session line by line. The answer goes to standard output, everything else to standard error.
//!
//! ```
//! use oqvl_chat::{Conversation, Template};
//! use oqvl_text_prep::{BpeTrainer, IMAGE_TOKEN_ID};
//!
//! let tokenizer = BpeTrainer::new(300).train(["What is it?".to_owned()].into_iter())?.tokenizer()?;
//! let mut conversation = Conversation::new(Template::Qwen);
//! conversation.add_image(vec![0.0; 3 * 384 * 384].into());
//! let (prompt, question) = conversation.ask(&tokenizer, "What is it?")?;
//! assert_eq!(question, "<image>\nWhat is it?");
//! assert!(prompt.input_ids.contains(&IMAGE_TOKEN_ID));
//! conversation.keep(question, "A cube.");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Exit codes are those of the stages: 0 done, 1 failed, 2 wrong request. Ctrl-C ends the program, but in a session at a
//! terminal the answer alone.

mod cli;
mod conversation;
mod error;
mod picture;
mod talk;
mod voice;

pub use cli::{Request, Template};
pub use conversation::Conversation;
pub use error::ChatError;

use candle_core::{DType, Device};
use clap::ValueEnum as _;
use oqvl_model::{VlmCheckpoint, chat_template};
use oqvl_stage::{ModelFinder, ModelFlags, run_program, tell};
use std::process::ExitCode;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    run_program("oqvl-chat", || run(&cli::parse()?))
}

fn run(request: &Request) -> Result<(), ChatError> {
    // Before the model is read, which takes longer than to find a typo.
    let images = request.images.iter().map(|path| picture::read(path)).collect::<Result<Vec<_>, _>>()?;
    let mut finder = ModelFinder::from_env();
    let folders = request.names().find::<ChatError>(
        |name, wants| Ok(finder.find(name, wants)?),
        |default| tell(&format!("{default}; {} names another", ModelFlags::flag(default.backbone.name()))),
    )?;
    let template = match request.template {
        Some(template) => template,
        None => {
            let template = Template::from(chat_template(&folders.model)?);
            let value = template.to_possible_value().expect("no template is hidden");
            tell(&format!("template: {} (--template chooses another)", value.get_name()));
            template
        }
    };
    let checkpoint =
        VlmCheckpoint::load_with(&folders.model, &folders.companions(), DType::F32, &Device::Cpu)?;
    let mut conversation = Conversation::new(template);
    for image in &images {
        conversation.add_image(picture::pixels(image, checkpoint.vlm.image_size()));
    }
    match &request.question {
        Some(question) if request.probabilities.is_empty() => {
            talk::answer_once(request, &checkpoint, question, conversation)
        }
        Some(question) => talk::tell_probabilities(request, &checkpoint, question, &conversation),
        None => talk::converse(request, &checkpoint, conversation),
    }
}
