//! Greedy generation and next-token scores, batched.

use crate::ModelError;
use crate::vlm::{Prompt, Vlm};
use candle_core::Tensor;
use rayon::prelude::*;

/// Sequences that go through the network together. A constant, so that results never depend on the caller's batches.
const CHUNK: usize = 16;

/// How to generate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerateConfig {
    /// Stop after this many tokens.
    pub max_new_tokens: usize,
    /// Stop at one of these; it is not part of the result.
    pub stop_ids: Vec<i64>,
}

impl Vlm {
    /// Continues every prompt greedily. Returns the new ids of each, without prompt and stop id.
    ///
    /// Rows are padded on the right under a causal mask and each keeps its own cache: a row's result does not depend
    /// on its neighbours. Chunks of rows run in parallel.
    ///
    /// # Errors
    /// If a prompt does not fit the model, also with `max_new_tokens` more tokens.
    pub fn generate(&self, prompts: &[Prompt], config: &GenerateConfig) -> Result<Vec<Vec<i64>>, ModelError> {
        let chunks: Result<Vec<_>, _> =
            prompts.par_chunks(CHUNK).map(|chunk| self.generate_chunk(chunk, config)).collect();
        Ok(chunks?.into_iter().flatten().collect())
    }

    /// Logits of the token after each prompt: one vector of `vocab_size` per prompt.
    ///
    /// # Errors
    /// If a prompt does not fit the model.
    pub fn next_token_logits(&self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, ModelError> {
        let chunks: Result<Vec<_>, ModelError> = prompts
            .par_chunks(CHUNK)
            .map(|chunk| {
                let embedded = self.embed(&chunk.iter().collect::<Vec<_>>())?;
                let hidden = self.language_model.forward(&embedded.inputs_embeds)?;
                Ok(self.last_logits(&hidden, &embedded.lens)?.to_vec2::<f32>()?)
            })
            .collect();
        Ok(chunks?.into_iter().flatten().collect())
    }

    /// `(b, s, h)` to the logits of each row's last real position, `(b, vocab_size)`.
    fn last_logits(&self, hidden: &Tensor, lens: &[usize]) -> Result<Tensor, ModelError> {
        let (b, s, h) = hidden.dims3()?;
        let last: Vec<u32> =
            lens.iter().enumerate().map(|(row, len)| (row * s + len.saturating_sub(1)) as u32).collect();
        let rows = hidden.reshape((b * s, h))?.index_select(&Tensor::from_vec(last, b, self.device())?, 0)?;
        Ok(self.language_model.logits(&rows)?)
    }

    fn generate_chunk(
        &self,
        prompts: &[Prompt],
        config: &GenerateConfig,
    ) -> Result<Vec<Vec<i64>>, ModelError> {
        let mut outputs = vec![Vec::new(); prompts.len()];
        if config.max_new_tokens == 0 || prompts.is_empty() {
            return Ok(outputs);
        }
        let embedded = self.embed(&prompts.iter().collect::<Vec<_>>())?;
        let max = self.config().text_config.max_position_embeddings;
        for (row, len) in embedded.lens.iter().enumerate() {
            let len = len + config.max_new_tokens - 1;
            if len > max {
                return Err(ModelError::TooLong { row, len, max });
            }
        }
        let (hidden, mut caches) = self.language_model.prefill(&embedded.inputs_embeds, &embedded.lens)?;
        let mut logits = self.last_logits(&hidden, &embedded.lens)?;
        let mut running: Vec<usize> = (0..prompts.len()).collect();
        loop {
            let chosen = logits.argmax(1)?.to_vec1::<u32>()?;
            let mut next = Vec::with_capacity(running.len());
            let mut still_running = Vec::with_capacity(running.len());
            for (&row, &id) in running.iter().zip(&chosen) {
                if config.stop_ids.contains(&i64::from(id)) {
                    continue;
                }
                outputs[row].push(i64::from(id));
                if outputs[row].len() < config.max_new_tokens {
                    still_running.push(row);
                    next.push(id);
                }
            }
            if still_running.is_empty() {
                return Ok(outputs);
            }
            running = still_running;
            let num_rows = running.len();
            let embeds =
                self.language_model.embed(&Tensor::from_vec(next, num_rows, self.device())?)?.unsqueeze(1)?;
            let mut active: Vec<_> = caches
                .iter_mut()
                .enumerate()
                .filter(|(row, _)| running.contains(row))
                .map(|(_, cache)| cache)
                .collect();
            let hidden = self.language_model.decode(&embeds, &mut active)?;
            logits = self.language_model.logits(&hidden.squeeze(1)?)?;
        }
    }
}
