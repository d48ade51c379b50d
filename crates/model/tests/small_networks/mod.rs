//! Networks of a few hundred parameters, and what they are given.

use candle_core::{Device, Tensor};
use oqvl_model::{
    HiddenAct, Missing, ParamStore, Prompt, Qwen2Config, SECOND_TO_LAST, Siglip, SiglipConfig,
    SiglipTextConfig, SiglipVisionConfig, Trainable, Vlm, VlmConfig,
};
use std::collections::BTreeMap;

const IMAGE_SIZE: usize = 8;

/// A vision tower of two blocks and 16 patches.
pub(crate) fn vision_config() -> SiglipVisionConfig {
    SiglipVisionConfig {
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: IMAGE_SIZE,
        patch_size: 2,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::Gelu,
    }
}

/// A VLM of two layers and four tokens an image.
pub(crate) fn vlm_config(tie_word_embeddings: bool) -> VlmConfig {
    let text_config = Qwen2Config {
        vocab_size: 17,
        hidden_size: 12,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 24,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings,
    };
    VlmConfig {
        vision_config: vision_config(),
        text_config,
        pooled_grid: 2,
        vision_feature_layer: SECOND_TO_LAST,
    }
}

/// A VLM drawn from a seed.
pub(crate) fn vlm(config: &VlmConfig, trainable: Trainable) -> (Vlm, ParamStore) {
    let missing = Missing::Draw { seed: 5, prefixes: vec![String::new()] };
    let mut store = ParamStore::new(BTreeMap::new(), missing, trainable, &Device::Cpu);
    let vlm = Vlm::new(config, store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    (vlm, store)
}

/// Pixel values that differ by `number`.
fn image(number: usize) -> Vec<f32> {
    (0..3 * IMAGE_SIZE * IMAGE_SIZE).map(|at| ((at * (number + 3)) as f32 * 0.37).sin()).collect()
}

/// A sequence with its images, by number.
pub(crate) fn prompt(input_ids: &[i64], images: &[usize]) -> Prompt {
    Prompt {
        input_ids: input_ids.to_vec(),
        images: images.iter().map(|&number| image(number).into()).collect(),
    }
}

/// A pair drawn from a seed, all of it trainable.
pub(crate) fn siglip() -> (Siglip, ParamStore) {
    let text_config = SiglipTextConfig {
        vocab_size: 11,
        hidden_size: 8,
        intermediate_size: 12,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 4,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::GeluPytorchTanh,
    };
    let mut store = ParamStore::seeded(6, &Device::Cpu);
    let siglip = Siglip::new(&SiglipConfig { vision_config: vision_config(), text_config }, store.root());
    store.finish().unwrap();
    (siglip.unwrap(), store)
}

/// The first images, `(count, 3, IMAGE_SIZE, IMAGE_SIZE)`.
pub(crate) fn pixels(count: usize) -> Tensor {
    let values: Vec<f32> = (0..count).flat_map(image).collect();
    Tensor::from_vec(values, (count, 3, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu).unwrap()
}
