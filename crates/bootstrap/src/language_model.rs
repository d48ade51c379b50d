//! The stand-in of the public language model: Qwen2-shaped, next-token prediction on text from scratch.

use crate::BootstrapError;
use crate::config::LanguageModelTable;
use candle_core::Device;
use oqvl_model::{LossOutput, ParamStore, Qwen2, Qwen2Config, save_checkpoint};
use oqvl_stage::RunContext;
use oqvl_text_prep::Tokenizer;
use oqvl_trainer::{ShuffledSampler, Task, TrainError, TrainingReport, train};
use rayon::prelude::*;
use std::path::Path;

struct TextTask<'a> {
    model: &'a Qwen2,
    sequences: Vec<Vec<u32>>,
}

impl Task for TextTask<'_> {
    fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
        let sequences: Vec<&[u32]> = indices.iter().map(|&index| self.sequences[index].as_slice()).collect();
        Ok(self.model.text_loss(&sequences)?)
    }
}

/// Documents between `<s>` and `<|im_end|>` (the boundaries packing uses), one after another, cut to `seq_len`; what
/// is left at the end is dropped.
fn sequences(
    texts: &[String],
    tokenizer: &Tokenizer,
    seq_len: usize,
) -> Result<Vec<Vec<u32>>, BootstrapError> {
    let documents: Result<Vec<Vec<i64>>, _> = texts.par_iter().map(|text| tokenizer.encode(text)).collect();
    let bounded = documents?.into_iter().flat_map(|ids| {
        std::iter::once(tokenizer.bos_id()).chain(ids).chain(std::iter::once(tokenizer.eos_id()))
    });
    let stream: Vec<u32> = bounded.map(|id| id as u32).collect();
    Ok(stream.chunks_exact(seq_len).map(<[u32]>::to_vec).collect())
}

/// Trains the language model and writes a checkpoint to `out_dir`.
pub(crate) fn train_language_model(
    table: &LanguageModelTable,
    texts: &[String],
    (tokenizer, tokenizer_file): (&Tokenizer, &Path),
    corpus_path: &Path,
    run: &RunContext,
    out_dir: &Path,
) -> Result<TrainingReport, BootstrapError> {
    let config = Qwen2Config {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: table.hidden_size,
        intermediate_size: table.intermediate_size,
        num_hidden_layers: table.num_hidden_layers,
        num_attention_heads: table.num_attention_heads,
        num_key_value_heads: table.num_key_value_heads,
        max_position_embeddings: table.max_position_embeddings,
        rope_theta: table.rope_theta,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    };
    let mut store = ParamStore::seeded(run.seed, &Device::Cpu);
    let model = Qwen2::new(&config, store.root())?;
    store.finish()?;
    let sequences = sequences(texts, tokenizer, table.seq_len)?;
    if sequences.is_empty() {
        let what = "fewer tokens than one sequence of language_model.seq_len";
        return Err(BootstrapError::NoData { path: corpus_path.to_path_buf(), what });
    }
    let global_batch_size = table.training.global_batch_size;
    let sampler = ShuffledSampler { num_examples: sequences.len(), global_batch_size, seed: run.seed };
    let task = TextTask { model: &model, sequences };
    let report = train(&table.training, &store, &task, &sampler, run, out_dir)?;
    save_checkpoint(out_dir, &config, &store, tokenizer_file)?;
    Ok(report)
}
