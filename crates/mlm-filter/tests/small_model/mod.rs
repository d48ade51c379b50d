//! Models for the tests of this crate.

use candle_core::{Device, Tensor};
use oqvl_model::{
    HiddenAct, Missing, ParamStore, Qwen2Config, SECOND_TO_LAST, SiglipVisionConfig, TOKENIZER_FILE,
    Trainable, Vlm, VlmConfig, save_checkpoint,
};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::{BpeTrainer, Tokenizer};
use std::collections::BTreeMap;
use std::path::Path;

/// Width of the language model.
pub(crate) const HIDDEN: usize = 8;

/// A small model: `given` as it is, the rest drawn from a seed.
pub(crate) fn save_model(
    dir: &Path,
    max_position_embeddings: usize,
    given: impl Fn(&Tokenizer, usize) -> BTreeMap<String, Tensor>,
) {
    let trained = BpeTrainer::new(300).train(std::iter::empty()).unwrap();
    let tokenizer_file = dir.join(TOKENIZER_FILE);
    std::fs::create_dir_all(dir).unwrap();
    write_atomic(&tokenizer_file, trained.json()).unwrap();
    let tokenizer = Tokenizer::from_file(&tokenizer_file).unwrap();
    let vision_config = SiglipVisionConfig {
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::Gelu,
    };
    let text_config = Qwen2Config {
        vocab_size: tokenizer.vocab_size(),
        hidden_size: HIDDEN,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
    };
    let vocab_size = text_config.vocab_size;
    let config =
        VlmConfig { vision_config, text_config, pooled_grid: 2, vision_feature_layer: SECOND_TO_LAST };
    let missing = Missing::Draw { seed: 4, prefixes: vec![String::new()] };
    let mut store = ParamStore::new(
        given(&tokenizer, vocab_size),
        missing,
        Trainable::Prefixes(vec![String::new()]),
        &Device::Cpu,
    );
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    save_checkpoint(dir, &config, &store, &tokenizer_file).unwrap();
}
