//! Networks of a few hundred parameters against what their definitions say.

use candle_core::{Device, Tensor};
use oqvl_model::{
    Example, GenerateConfig, HiddenAct, Missing, ModelError, ParamStore, Prompt, Qwen2Config, SECOND_TO_LAST,
    Siglip, SiglipConfig, SiglipTextConfig, SiglipVisionConfig, Trainable, Vlm, VlmConfig,
};
use oqvl_text_prep::{IGNORE_INDEX, IMAGE_TOKEN_ID as IMG};
use std::collections::BTreeMap;

const IMAGE_SIZE: usize = 8;

fn vision_config() -> SiglipVisionConfig {
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

fn vlm_config(tie_word_embeddings: bool) -> VlmConfig {
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

/// A VLM drawn from a seed whose tower is frozen, as in training.
fn vlm(tie_word_embeddings: bool) -> (Vlm, ParamStore) {
    let missing = Missing::Draw { seed: 5, prefixes: vec![String::new()] };
    let trainable = Trainable::Prefixes(vec!["projector.".to_owned(), "language_model.".to_owned()]);
    let mut store = ParamStore::new(BTreeMap::new(), missing, trainable, &Device::Cpu);
    let vlm = Vlm::new(&vlm_config(tie_word_embeddings), store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    (vlm, store)
}

/// Pixel values that differ by `number`.
fn image(number: usize) -> Vec<f32> {
    (0..3 * IMAGE_SIZE * IMAGE_SIZE).map(|at| ((at * (number + 3)) as f32 * 0.37).sin()).collect()
}

fn prompt(input_ids: &[i64], images: &[usize]) -> Prompt {
    Prompt {
        input_ids: input_ids.to_vec(),
        images: images.iter().map(|&number| image(number).into()).collect(),
    }
}

/// Prompts of several lengths, with none, one and two images.
fn prompts() -> Vec<Prompt> {
    vec![
        prompt(&[1, IMG, 2, 3], &[0]),
        prompt(&[4, 5], &[]),
        prompt(&[1, IMG, 6, IMG, 7, 8, 9], &[1, 2]),
        prompt(&[IMG], &[2]),
    ]
}

#[test]
fn the_loss_is_the_mean_over_labelled_tokens_of_minus_their_log_probabilities() {
    for tie in [true, false] {
        let (vlm, _) = vlm(tie);
        let examples: Vec<Example> = prompts()
            .into_iter()
            .map(|prompt| {
                // Every other id is a label; those at placeholders must not count.
                let labels = prompt.input_ids.iter().enumerate();
                let labels = labels.map(|(at, &id)| if at % 2 == 1 { id } else { IGNORE_INDEX }).collect();
                Example { prompt, labels }
            })
            .collect();
        let mut terms = Vec::new();
        for Example { prompt, labels } in &examples {
            for (at, &label) in labels.iter().enumerate().skip(1) {
                if label == IGNORE_INDEX || label == IMG {
                    continue;
                }
                let input_ids = prompt.input_ids[..at].to_vec();
                let num_images = input_ids.iter().filter(|id| **id == IMG).count();
                let before = Prompt { input_ids, images: prompt.images[..num_images].to_vec() };
                let logits = vlm.next_token_logits(&[before]).unwrap().remove(0);
                let sum: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
                terms.push(sum.ln() - f64::from(logits[label as usize]));
            }
        }
        let output = vlm.loss(&examples.iter().collect::<Vec<_>>()).unwrap();
        assert_eq!(output.num_labels, terms.len());
        // Four tokens an image.
        assert_eq!(output.num_tokens, (3 + 4) + 2 + (5 + 8) + 4);
        let expected = terms.iter().sum::<f64>() / terms.len() as f64;
        let loss = f64::from(output.loss.to_scalar::<f32>().unwrap());
        assert!((loss - expected).abs() < 1e-5, "{loss} is not {expected}");
    }
}

#[test]
fn the_order_of_images_matters() {
    let (vlm, _) = vlm(true);
    let logits = |prompt: Prompt| vlm.next_token_logits(&[prompt]).unwrap().remove(0);
    let ids = [IMG, 5, IMG, 6];
    let (straight, swapped) = (logits(prompt(&ids, &[0, 1])), logits(prompt(&ids, &[1, 0])));
    assert!(straight.iter().zip(&swapped).any(|(a, b)| (a - b).abs() > 1e-3), "{straight:?} {swapped:?}");
}

#[test]
fn gradients_reach_everything_but_the_tower() {
    for tie in [true, false] {
        let (vlm, store) = vlm(tie);
        let prompt = prompt(&[1, IMG, 2, 3], &[0]);
        let labels = prompt.input_ids.clone();
        let loss = vlm.loss(&[&Example { prompt, labels }]).unwrap().loss;
        let gradients = loss.backward().unwrap();
        for (name, var) in store.vars() {
            let gradient = gradients.get(var).unwrap_or_else(|| panic!("`{name}` has no gradient"));
            let size = gradient.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            // The softmax is blind to what a bias of the keys adds to all scores of a row; RoPE spoils it a little.
            assert!(size > 0.0 && size.is_finite(), "the gradient of `{name}` is {size}");
        }
        assert!(store.frozen().keys().all(|name| name.starts_with("vision_tower.")));
        assert!(!store.frozen().is_empty());
        assert_eq!(store.vars().contains_key("language_model.lm_head.weight"), !tie);
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let (vlm, _) = vlm(true);
    let fails = |prompt: Prompt| vlm.next_token_logits(&[prompts().remove(0), prompt]).unwrap_err();
    assert!(matches!(
        fails(prompt(&[1, IMG], &[])),
        ModelError::ImageCount { row: 1, placeholders: 1, images: 0 }
    ));
    assert!(matches!(fails(prompt(&[17], &[])), ModelError::TokenId { row: 1, id: 17, vocab_size: 17 }));
    assert!(matches!(fails(prompt(&[-7], &[])), ModelError::TokenId { id: -7, .. }));
    assert!(matches!(fails(prompt(&[1; 25], &[])), ModelError::TooLong { row: 1, len: 25, max: 24 }));
    let config = GenerateConfig { max_new_tokens: 6, ..GenerateConfig::default() };
    let too_long = vlm.generate(&[prompt(&[1; 20], &[])], &config).unwrap_err();
    assert!(matches!(too_long, ModelError::TooLong { len: 25, .. }), "{too_long}");
    assert!(vlm.generate(&[prompt(&[1; 19], &[])], &config).is_ok());
    let wrong = VlmConfig { pooled_grid: 5, ..vlm_config(true) };
    let mut store = ParamStore::seeded(1, &Device::Cpu);
    assert!(Vlm::new(&wrong, store.root(), &Device::Cpu).unwrap_err().to_string().contains("pooled_grid 5"));
}

fn siglip() -> (Siglip, ParamStore) {
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

fn pixels(count: usize) -> Tensor {
    let values: Vec<f32> = (0..count).flat_map(image).collect();
    Tensor::from_vec(values, (count, 3, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu).unwrap()
}

#[test]
fn the_pair_loss_is_the_papers_formula_over_unit_vectors() {
    let (siglip, store) = siglip();
    let texts = siglip.text_batch(&[vec![1, 2], vec![3, 4, 5, 6, 7], vec![8]], 0).unwrap();
    assert_eq!(texts.to_vec2::<u32>().unwrap(), [[1, 2, 0, 0], [3, 4, 5, 6], [8, 0, 0, 0]]);
    let images = siglip.image_embeds(&pixels(3)).unwrap().to_vec2::<f32>().unwrap();
    let embeds = siglip.text_embeds(&texts).unwrap().to_vec2::<f32>().unwrap();
    let dot = |a: &[f32], b: &[f32]| -> f64 { a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum() };
    for vector in images.iter().chain(&embeds) {
        assert!((dot(vector, vector) - 1.0).abs() < 1e-5);
    }
    let mut expected = 0.0;
    for (row, text) in embeds.iter().enumerate() {
        for (col, image) in images.iter().enumerate() {
            let sign = if row == col { 1.0 } else { -1.0 };
            // Temperature 10 and bias -10 at the start.
            expected -= (1.0 / (1.0 + (-sign * (10.0 * dot(text, image) - 10.0)).exp())).ln() / 3.0;
        }
    }
    let loss = siglip.loss(&pixels(3), &texts).unwrap();
    let value = f64::from(loss.to_scalar::<f32>().unwrap());
    assert!((value - expected).abs() < 1e-4, "{value} is not {expected}");
    let gradients = loss.backward().unwrap();
    let without: Vec<_> = store.vars().iter().filter(|(_, var)| gradients.get(var).is_none()).collect();
    assert!(without.is_empty(), "{without:?}");
}

#[test]
fn features_come_from_before_the_last_block() {
    let (siglip, store) = siglip();
    let features = || siglip.vision.patch_features(&pixels(1)).unwrap().flatten_all().unwrap();
    let pooled = || siglip.vision.pooled(&pixels(1)).unwrap().flatten_all().unwrap();
    let (before, pooled_before) = (features().to_vec1::<f32>().unwrap(), pooled().to_vec1::<f32>().unwrap());
    assert_eq!(before.len(), 16 * 8);
    let last = &store.vars()["vision_model.encoder.layers.1.mlp.fc2.bias"];
    last.set(&last.affine(1.0, 0.5).unwrap()).unwrap();
    assert_eq!(features().to_vec1::<f32>().unwrap(), before);
    assert_ne!(pooled().to_vec1::<f32>().unwrap(), pooled_before);
    let used = &store.vars()["vision_model.encoder.layers.0.mlp.fc2.bias"];
    used.set(&used.affine(1.0, 0.5).unwrap()).unwrap();
    assert_ne!(features().to_vec1::<f32>().unwrap(), before);
}
