//! The stand-in of the public SigLIP checkpoint: both towers from scratch, with the sigmoid loss.

use crate::BootstrapError;
use crate::config::SiglipTable;
use crate::corpus::PairCorpus;
use candle_core::{Device, Tensor};
use oqvl_model::{
    LossOutput, Missing, ModelError, ParamStore, Siglip, SiglipConfig, SiglipTextConfig, SiglipVisionConfig,
    Trainable, save_checkpoint,
};
use oqvl_stage::RunContext;
use oqvl_text_prep::Tokenizer;
use oqvl_trainer::{ShuffledSampler, Task, TrainError, TrainingReport, train};
use std::collections::BTreeMap;
use std::path::Path;

/// Epsilon of the layer norms, as in the public checkpoints.
const LAYER_NORM_EPS: f64 = 1e-6;

fn siglip_config(table: &SiglipTable, vocab_size: usize) -> SiglipConfig {
    SiglipConfig {
        vision_config: SiglipVisionConfig {
            hidden_size: table.hidden_size,
            intermediate_size: table.intermediate_size,
            num_hidden_layers: table.num_vision_layers,
            num_attention_heads: table.num_attention_heads,
            image_size: table.image_size,
            patch_size: table.patch_size,
            layer_norm_eps: LAYER_NORM_EPS,
            hidden_act: table.hidden_act,
        },
        text_config: SiglipTextConfig {
            vocab_size,
            hidden_size: table.hidden_size,
            intermediate_size: table.intermediate_size,
            num_hidden_layers: table.num_text_layers,
            num_attention_heads: table.num_attention_heads,
            max_position_embeddings: table.max_text_tokens,
            layer_norm_eps: LAYER_NORM_EPS,
            hidden_act: table.hidden_act,
        },
    }
}

/// A seeded store whose loss starts at the best constant guess for the number of negatives: the paper's -10 is for
/// batches of thousands, and the optimizer would spend the whole of a short run on coming back from there.
fn seeded_store(table: &SiglipTable, seed: u64) -> Result<ParamStore, ModelError> {
    let num_negatives = table.training.per_device_batch_size.saturating_sub(1).max(1);
    let bias = Tensor::from_vec(vec![-(num_negatives as f32).ln()], 1, &Device::Cpu)?;
    let given = BTreeMap::from([("logit_bias".to_owned(), bias)]);
    let missing = Missing::Draw { seed, prefixes: vec![String::new()] };
    Ok(ParamStore::new(given, missing, Trainable::all(), &Device::Cpu))
}

struct PairTask<'a> {
    siglip: &'a Siglip,
    corpus: &'a PairCorpus,
    captions: Vec<Vec<i64>>,
    pad_id: i64,
    image_size: usize,
}

impl Task for PairTask<'_> {
    fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
        let pixels: Vec<f32> =
            indices.iter().flat_map(|&index| self.corpus.images[index].iter().copied()).collect();
        let shape = (indices.len(), 3, self.image_size, self.image_size);
        let texts: Vec<Vec<i64>> = indices.iter().map(|&index| self.captions[index].clone()).collect();
        let num_tokens = texts.iter().map(Vec::len).sum();
        let ids = self.siglip.text_batch(&texts, self.pad_id)?;
        let loss = self.siglip.loss(&Tensor::from_vec(pixels, shape, &Device::Cpu)?, &ids)?;
        Ok(LossOutput { loss, num_labels: indices.len(), num_tokens })
    }
}

/// Trains the pair on matching pairs and writes a checkpoint to `out_dir`.
pub(crate) fn train_siglip(
    table: &SiglipTable,
    corpus: &PairCorpus,
    tokenizer: &Tokenizer,
    tokenizer_file: &Path,
    run: &RunContext,
    out_dir: &Path,
) -> Result<TrainingReport, BootstrapError> {
    let config = siglip_config(table, tokenizer.vocab_size());
    let mut store = seeded_store(table, run.seed)?;
    let siglip = Siglip::new(&config, store.root())?;
    store.finish()?;
    let captions: Result<Vec<_>, _> =
        corpus.captions.iter().map(|caption| tokenizer.encode(caption)).collect();
    let task = PairTask {
        siglip: &siglip,
        corpus,
        captions: captions.map_err(ModelError::from)?,
        pad_id: tokenizer.pad_id(),
        image_size: table.image_size,
    };
    let global_batch_size = table.training.global_batch_size;
    let sampler = ShuffledSampler { num_examples: corpus.len(), global_batch_size, seed: run.seed };
    let report = train(&table.training, &store, &task, &sampler, run, out_dir)?;
    save_checkpoint(out_dir, &config, &store, tokenizer_file)?;
    Ok(report)
}
