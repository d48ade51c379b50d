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
//! Exit codes are those of the stages: 0 done, 1 failed, 2 wrong request, and 130 when Ctrl-C ends the program, which it
//! does outside of a session; in a session it ends the answer.

mod cli;
mod conversation;
mod error;
mod picture;
mod talk;
mod voice;

pub use cli::{Request, Template};
pub use conversation::Conversation;
pub use error::ChatError;

use candle_core::Device;
use oqvl_model::{Companions, VlmCheckpoint};
use std::process::ExitCode;

const EXIT_FAILED: u8 = 1;
const EXIT_WRONG_REQUEST: u8 = 2;

/// The program.
#[must_use]
pub fn main() -> ExitCode {
    let outcome = cli::parse().and_then(|request| run(&request));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            voice::say(&format!("oqvl-chat: {}", voice::with_causes(&error)));
            ExitCode::from(if error.is_wrong_request() { EXIT_WRONG_REQUEST } else { EXIT_FAILED })
        }
    }
}

fn run(request: &Request) -> Result<(), ChatError> {
    // Before the model is read, which takes longer than to find a typo.
    let images = request.images.iter().map(|path| picture::read(path)).collect::<Result<Vec<_>, _>>()?;
    let checkpoint = load(request)?;
    let image_size = checkpoint.vlm.image_size();
    let images = images.iter().map(|image| picture::pixels(image, image_size)).collect();
    match &request.question {
        Some(question) if request.probabilities.is_empty() => {
            talk::answer_once(request, &checkpoint, question, images)
        }
        Some(question) => talk::tell_probabilities(request, &checkpoint, question, images),
        None => talk::converse(request, &checkpoint, images),
    }
}

fn load(request: &Request) -> Result<VlmCheckpoint, ChatError> {
    // Ctrl-C ends the program here; what has come of a download is gone on with by the next one.
    let place = |model: &String| oqvl_stage::resolve_model(model, &|| false);
    let dir = place(&request.model)?;
    let vision_tower = request.vision_tower.as_ref().map(place).transpose()?;
    let language_model = request.language_model.as_ref().map(place).transpose()?;
    let companions =
        Companions { vision_tower: vision_tower.as_deref(), language_model: language_model.as_deref() };
    Ok(VlmCheckpoint::load_with(&dir, &companions, &Device::Cpu)?)
}
