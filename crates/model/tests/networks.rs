//! Networks of a few hundred parameters against what their definitions say.

mod small_networks;

use candle_core::Device;
use oqvl_model::{Example, GenerateConfig, ModelError, ParamStore, Prompt, Trainable, Vlm, VlmConfig};
use oqvl_text_prep::{IGNORE_INDEX, IMAGE_TOKEN_ID as IMG};
use small_networks::{pixels, prompt, siglip, vlm_config};

/// A VLM drawn from a seed.
fn vlm(tie_word_embeddings: bool) -> Vlm {
    small_networks::vlm(&vlm_config(tie_word_embeddings), Trainable::None).0
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
        let vlm = vlm(tie);
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
    let vlm = vlm(true);
    let logits = |prompt: Prompt| vlm.next_token_logits(&[prompt]).unwrap().remove(0);
    let ids = [IMG, 5, IMG, 6];
    let (straight, swapped) = (logits(prompt(&ids, &[0, 1])), logits(prompt(&ids, &[1, 0])));
    assert!(straight.iter().zip(&swapped).any(|(a, b)| (a - b).abs() > 1e-3), "{straight:?} {swapped:?}");
}

#[test]
fn what_does_not_fit_is_named() {
    let vlm = vlm(true);
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

#[test]
fn the_pair_loss_is_the_papers_formula_over_unit_vectors() {
    let (siglip, _) = siglip();
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
