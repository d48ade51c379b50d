//! A checkpoint as a [`Responder`].

use oqvl_image_prep::pixel_values;
use oqvl_model::{GenerateConfig, Prompt, VlmCheckpoint};
use oqvl_text_prep::{ChatTemplate, SpecialTokens, TextError, Tokenizer, expanded_len, tokenize_with_images};
use rayon::prelude::*;

use crate::error::EvaluatorError;
use crate::predictions::Outcome;
use crate::prompt::PromptStyle;
use crate::runner::{Request, Responder};

/// Texts whose token ends an answer in the reference harness (ids 13, 11 and 198 of Qwen2.5), besides the end of the
/// turn. The harness lists ids of other models too, and not Qwen's own end of turn: with it an answer ends sooner, never
/// differently before that point.
const REFERENCE_STOPS: [&str; 3] = [".", ",", "\n"];

/// Greedy answers of a [`VlmCheckpoint`].
#[derive(Debug)]
pub struct CheckpointResponder {
    checkpoint: VlmCheckpoint,
    prompt_style: PromptStyle,
    generate: GenerateConfig,
}

impl CheckpointResponder {
    /// Answers of at most `max_new_tokens` tokens, prompted and ended as `prompt_style` says.
    ///
    /// # Errors
    /// If the tokenizer cannot encode the texts that end an answer.
    pub fn new(
        checkpoint: VlmCheckpoint,
        prompt_style: PromptStyle,
        max_new_tokens: usize,
    ) -> Result<Self, EvaluatorError> {
        let stop_ids = stop_ids(&checkpoint.tokenizer, prompt_style)?;
        Ok(Self {
            checkpoint,
            prompt_style,
            generate: GenerateConfig { max_new_tokens, stop_ids, ..GenerateConfig::default() },
        })
    }

    /// The prompt of a request, or the reason why the model cannot take it.
    fn prompt(&self, request: &Request) -> Result<Result<Prompt, &'static str>, EvaluatorError> {
        let vlm = &self.checkpoint.vlm;
        let input_ids = input_ids(&self.checkpoint.tokenizer, self.prompt_style, &request.prompt)?;
        let prompt_len = expanded_len(input_ids.len(), 1, vlm.num_image_tokens());
        if prompt_len + self.generate.max_new_tokens > vlm.config().text_config.max_position_embeddings {
            return Ok(Err("prompt-too-long"));
        }
        let image_size = vlm.image_size();
        let image = match &request.image {
            Some(image) => pixel_values(image, image_size),
            None => vec![0.0; 3 * image_size as usize * image_size as usize],
        };
        Ok(Ok(Prompt { input_ids, images: vec![image.into()] }))
    }
}

impl Responder for CheckpointResponder {
    fn respond(&self, requests: &[Request]) -> Result<Vec<Outcome>, EvaluatorError> {
        let mut refusals = Vec::with_capacity(requests.len());
        let mut prompts = Vec::with_capacity(requests.len());
        let prepared: Result<Vec<_>, EvaluatorError> =
            requests.par_iter().map(|request| self.prompt(request)).collect();
        for prompt in prepared? {
            refusals.push(prompt.as_ref().err().copied());
            prompts.extend(prompt);
        }
        let mut outputs = self.checkpoint.vlm.generate(&prompts, &self.generate)?.into_iter();
        let outcome = |refusal: Option<&str>| match refusal {
            Some(reason) => Ok(Outcome::Rejected(reason.to_owned())),
            None => {
                let ids = outputs.next().expect("generation answers every prompt");
                Ok(Outcome::Answered(self.checkpoint.tokenizer.decode(&ids, SpecialTokens::Skip)?))
            }
        };
        refusals.into_iter().map(outcome).collect()
    }
}

/// Chat: what fine-tuning saw before an answer. Reference: `<s>`, then the text, whose first piece therefore does not
/// start with `<s>` itself.
fn input_ids(tokenizer: &Tokenizer, style: PromptStyle, prompt: &str) -> Result<Vec<i64>, TextError> {
    match style {
        PromptStyle::Chat | PromptStyle::ChatOption => {
            ChatTemplate::Reference.generation_prompt(tokenizer, prompt)
        }
        PromptStyle::Reference => {
            let mut ids = vec![tokenizer.bos_id()];
            ids.extend(tokenize_with_images(tokenizer, prompt)?);
            Ok(ids)
        }
    }
}

fn stop_ids(tokenizer: &Tokenizer, style: PromptStyle) -> Result<Vec<i64>, TextError> {
    let mut ids = vec![tokenizer.eos_id()];
    if style == PromptStyle::Reference {
        for text in REFERENCE_STOPS {
            if let [id] = tokenizer.encode(text)?.as_slice() {
                ids.push(*id);
            }
        }
    }
    Ok(ids)
}
