//! The fine-tuning stage.

use crate::SftError;
use crate::config::SftConfig;
use crate::conversation::Conversation;
use crate::sampler::{ExampleShape, SplitModalitySampler};
use oqvl_image_prep::probe;
use oqvl_model::{Example, LossOutput, Prompt, TOKENIZER_FILE, Vlm, save_checkpoint};
use oqvl_shard_io::read_json;
use oqvl_stage::{RunContext, Stage, Tally};
use oqvl_text_prep::{ChatExample, ChatTemplate, IGNORE_INDEX, IMAGE_TOKEN_ID, Tokenizer, fitting_len};
use oqvl_trainer::{
    CHECKPOINT_DIR, ImageLoader, Task, TrainError, TrainingReport, reopen, train, train_once,
};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Fine-tuning on conversations.
#[derive(Debug)]
pub struct Sft;

/// `report.json` of the stage.
#[derive(Debug, Serialize)]
pub struct SftReport {
    /// Conversations used, and those that are not and why.
    #[serde(flatten)]
    pub tally: Tally,
    /// Images whose pixels could not be decoded and that were trained on as blank ones, among those this process
    /// read.
    pub num_undecodable_images: usize,
    /// The loop.
    #[serde(flatten)]
    pub training: TrainingReport,
}

/// A conversation ready to learn from.
struct Prepared {
    chat: ChatExample,
    image: Option<PathBuf>,
    shape: ExampleShape,
}

/// Turns a conversation into ids and labels, or says why it cannot be used.
fn prepare(
    conversation: &Conversation,
    images: &Path,
    tokenizer: &Tokenizer,
    limit: Limit,
) -> Result<Prepared, SftError> {
    let chat = ChatTemplate::Reference.sft_example(tokenizer, &conversation.turns())?;
    let image = conversation.image.as_ref().map(|name| images.join(name));
    let shape = ExampleShape { is_multimodal: image.is_some(), length: conversation.num_words() };
    Ok(Prepared { chat: cut(chat, limit), image, shape })
}

/// Longest sequence, in tokens, and the tokens of an image.
#[derive(Debug, Clone, Copy)]
struct Limit {
    max_tokens: usize,
    num_image_tokens: usize,
}

/// Cuts ids and labels on the right so that the expanded sequence fits.
fn cut(mut chat: ChatExample, limit: Limit) -> ChatExample {
    let keep = fitting_len(&chat.input_ids, limit.num_image_tokens, limit.max_tokens);
    chat.input_ids.truncate(keep);
    chat.labels.truncate(keep);
    chat
}

/// Why a prepared conversation teaches nothing.
fn reject_reason(prepared: &Prepared) -> Option<&'static str> {
    let placeholders = prepared.chat.input_ids.iter().filter(|id| **id == IMAGE_TOKEN_ID).count();
    if placeholders != usize::from(prepared.image.is_some()) {
        return Some("placeholders-do-not-match-image");
    }
    if prepared.chat.labels.iter().all(|label| *label == IGNORE_INDEX) {
        return Some("nothing-to-learn");
    }
    let Some(path) = &prepared.image else { return None };
    // The reference trains on a blank image in place of one it cannot read; here that is left to those whose header
    // promises pixels that do not come.
    match std::fs::read(path) {
        Err(_) => Some("missing-image"),
        Ok(bytes) => probe(&bytes).err().map(|_| "undecodable-image"),
    }
}

struct ChatTask<'a> {
    vlm: &'a Vlm,
    examples: &'a [Prepared],
    images: ImageLoader,
}

impl ChatTask<'_> {
    fn example(&self, index: usize) -> Result<Example, TrainError> {
        let prepared = &self.examples[index];
        let mut images = Vec::new();
        if let Some(path) = &prepared.image {
            let bytes = std::fs::read(path).map_err(TrainError::io(path))?;
            images.push(self.images.load(&path.display().to_string(), &bytes).into());
        }
        let ChatExample { input_ids, labels } = prepared.chat.clone();
        Ok(Example { prompt: Prompt { input_ids, images }, labels })
    }
}

impl Task for ChatTask<'_> {
    fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
        let examples: Result<Vec<_>, _> = indices.iter().map(|&index| self.example(index)).collect();
        Ok(self.vlm.loss(&examples?.iter().collect::<Vec<_>>())?)
    }
}

impl Stage for Sft {
    const NAME: &'static str = "sft";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Config = SftConfig;
    type Report = SftReport;
    type Error = SftError;

    fn run(config: &SftConfig, run: &RunContext) -> Result<SftReport, SftError> {
        let checkpoint = run.resolve(&config.model);
        let (vlm, store) = reopen(&checkpoint, config.pooled_grid)?;
        let tokenizer_file = checkpoint.join(TOKENIZER_FILE);
        let tokenizer = Tokenizer::from_file(&tokenizer_file)?;

        let data = run.resolve(&config.data);
        let conversations: Vec<Conversation> = read_json(&data)?;
        let max_tokens = config.max_tokens.min(vlm.config().text_config.max_position_embeddings);
        let limit = Limit { max_tokens, num_image_tokens: vlm.num_image_tokens() };
        let images = run.resolve(&config.images);
        let (mut tally, mut examples) = (Tally::default(), Vec::new());
        for conversation in &conversations {
            if conversation.turns().is_empty() {
                tally.reject(conversation.id.to_string(), "empty-conversation");
                continue;
            }
            let prepared = prepare(conversation, &images, &tokenizer, limit)?;
            match reject_reason(&prepared) {
                None => {
                    tally.keep();
                    examples.push(prepared);
                }
                Some(reason) => tally.reject(conversation.id.to_string(), reason),
            }
        }
        tally.assert_balanced();
        if examples.is_empty() {
            return Err(SftError::NoData { path: data });
        }

        let sampler = SplitModalitySampler {
            shapes: examples.iter().map(|example| example.shape).collect(),
            global_batch_size: config.training.global_batch_size,
            world_size: 1,
            num_image_tokens: vlm.num_image_tokens(),
            seed: run.seed,
        };
        let task = ChatTask { vlm: &vlm, examples: &examples, images: ImageLoader::new(vlm.image_size()) };
        let checkpoint = run.out_dir.join(CHECKPOINT_DIR);
        let training = train_once(&run.out_dir, &checkpoint, || {
            let report = train(&config.training, &store, &task, &sampler, run, &run.out_dir)?;
            save_checkpoint(&checkpoint, vlm.config(), &store, &tokenizer_file)?;
            Ok::<_, SftError>(report)
        })?;
        Ok(SftReport { tally, num_undecodable_images: task.images.num_undecodable(), training })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cutting_counts_image_tokens_and_keeps_labels_aligned() {
        let chat =
            || ChatExample { input_ids: vec![1, IMAGE_TOKEN_ID, 2, 3], labels: vec![-100, -100, 2, 3] };
        let check = |max_tokens, expected: &[i64]| {
            let chat = cut(chat(), Limit { max_tokens, num_image_tokens: 4 });
            assert_eq!(chat.input_ids, expected);
            assert_eq!(chat.labels.len(), expected.len());
        };
        check(7, &[1, IMAGE_TOKEN_ID, 2, 3]);
        check(6, &[1, IMAGE_TOKEN_ID, 2]);
        check(4, &[1]);
        check(0, &[]);
    }
}
