//! Every parameter that is trained has a gradient, and a part that is cut off is seen to have none.
//!
//! An operation without a backward pass does not fail: what lies below it just never learns.

mod small_networks;

use candle_core::{Device, Result, Tensor};
use oqvl_kernels::cross_entropy;
use oqvl_model::{
    AvgPoolProjector, Clip, ClipConfig, ClipTextConfig, ClipVisionConfig, Example, HiddenAct, ParamStore,
    Qwen2, SECOND_TO_LAST, Trainable, VlmConfig,
};
use oqvl_text_prep::IMAGE_TOKEN_ID as IMG;
use small_networks::{pixels, prompt, siglip, vision_config, vlm, vlm_config};
use std::collections::BTreeMap;

/// Why a parameter learns nothing from a loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// No gradient reaches it.
    Absent,
    /// Its gradient holds an infinity or no number.
    NotFinite,
    /// No element of its gradient is more than rounding, beside the largest of the network.
    Zero,
}

/// Largest magnitude of a zero gradient, as a share of the largest in the network.
const ROUNDING: f32 = 1e-5;

/// The trainable parameters that `loss` does not teach.
fn flaws(loss: &Tensor, store: &ParamStore) -> BTreeMap<String, Flaw> {
    let gradients = loss.backward().unwrap();
    let mut sizes = BTreeMap::new();
    for (name, var) in store.vars() {
        let size = gradients.get(var).map(|gradient| {
            assert_eq!(gradient.dims(), var.dims(), "{name}");
            let values = gradient.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            // Not `max`: it passes over what is no number.
            values.iter().fold(0f32, |size, v| if v.abs() <= size { size } else { v.abs() })
        });
        sizes.insert(name.clone(), size);
    }
    assert!(!sizes.is_empty());
    let largest = sizes.values().flatten().copied().filter(|size| size.is_finite()).fold(0f32, f32::max);
    let flaw = |size: Option<f32>| match size {
        None => Some(Flaw::Absent),
        Some(size) if !size.is_finite() => Some(Flaw::NotFinite),
        Some(size) if size <= ROUNDING * largest => Some(Flaw::Zero),
        Some(_) => None,
    };
    sizes.into_iter().filter_map(|(name, size)| Some((name, flaw(size)?))).collect()
}

/// The parameters of `store` for which there is a flaw.
fn expected(store: &ParamStore, flaw: impl Fn(&str) -> Option<Flaw>) -> BTreeMap<String, Flaw> {
    store.vars().keys().filter_map(|name| Some((name.clone(), flaw(name)?))).collect()
}

/// A softmax does not see what a bias of the keys adds to all scores of a row. In Qwen2 RoPE turns it with the position.
fn is_unseen(name: &str) -> bool {
    name.ends_with("k_proj.bias")
}

fn example() -> Example {
    let prompt = prompt(&[1, IMG, 2, 3, IMG, 4], &[0, 1]);
    let labels = prompt.input_ids.clone();
    Example { prompt, labels }
}

#[test]
fn every_parameter_of_the_language_model_receives_a_gradient() {
    for tie in [true, false] {
        let mut store = ParamStore::seeded(5, &Device::Cpu);
        let qwen2 = Qwen2::new(&vlm_config(tie).text_config, store.root()).unwrap();
        let loss = qwen2.text_loss(&[&[1, 2, 3, 4, 5], &[6, 7, 8, 9, 10]]).unwrap().loss;
        assert_eq!(flaws(&loss, &store), BTreeMap::new());
        assert_eq!(store.vars().contains_key("lm_head.weight"), !tie);
    }
}

#[test]
fn every_parameter_but_the_frozen_tower_receives_a_gradient() {
    for tie in [true, false] {
        let trainable = ["projector.".to_owned(), "language_model.".to_owned()];
        let (vlm, store) = vlm(&vlm_config(tie), Trainable::Prefixes(trainable.to_vec()));
        let loss = vlm.loss(&[&example()]).unwrap().loss;
        assert_eq!(flaws(&loss, &store), BTreeMap::new());
        assert!(!store.frozen().is_empty());
        assert!(store.frozen().keys().all(|name| name.starts_with("vision_tower.")));
    }
}

#[test]
fn every_parameter_of_an_unfrozen_tower_that_features_use_receives_a_gradient() {
    for vision_feature_layer in [SECOND_TO_LAST, -1] {
        let config = VlmConfig { vision_feature_layer, ..vlm_config(true) };
        let (vlm, store) = vlm(&config, Trainable::all());
        assert!(store.frozen().is_empty());
        let loss = vlm.loss(&[&example()]).unwrap().loss;
        let unused = |name: &str| {
            let last = vision_feature_layer == SECOND_TO_LAST && name.contains(".encoder.layers.1.");
            last || name.contains(".post_layernorm.") || name.contains(".head.")
        };
        let flaw = |name: &str| match name.starts_with("vision_tower.") {
            true if unused(name) => Some(Flaw::Absent),
            true if is_unseen(name) => Some(Flaw::Zero),
            _ => None,
        };
        assert_eq!(flaws(&loss, &store), expected(&store, flaw));
    }
}

#[test]
fn every_parameter_of_the_siglip_pair_receives_a_gradient() {
    let (siglip, store) = siglip();
    let texts = siglip.text_batch(&[vec![1, 2], vec![3, 4, 5, 6, 7], vec![8]], 0).unwrap();
    let loss = siglip.loss(&pixels(3), &texts).unwrap();
    let flaw = |name: &str| is_unseen(name).then_some(Flaw::Zero);
    assert_eq!(flaws(&loss, &store), expected(&store, flaw));
}

#[test]
fn every_parameter_of_the_clip_pair_receives_a_gradient() {
    let vision = vision_config();
    let config = ClipConfig {
        vision_config: ClipVisionConfig {
            hidden_size: vision.hidden_size,
            intermediate_size: vision.intermediate_size,
            num_hidden_layers: vision.num_hidden_layers,
            num_attention_heads: vision.num_attention_heads,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
        },
        text_config: ClipTextConfig {
            vocab_size: 11,
            hidden_size: 6,
            intermediate_size: 10,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            max_position_embeddings: 5,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
            eos_token_id: 10,
        },
        projection_dim: 7,
    };
    let mut store = ParamStore::seeded(6, &Device::Cpu);
    let clip = Clip::new(&config, store.root()).unwrap();
    let texts = clip.text.batch(&[vec![1, 2, 10], vec![3, 4, 5, 6, 10], vec![8, 10]]).unwrap();
    let (images, texts) = (clip.image_embeds(&pixels(3)).unwrap(), clip.text_embeds(&texts).unwrap());
    let logits = clip.logits_per_image(&images, &texts).unwrap();
    // The loss of the paper: each image finds its text, and each text its image.
    let found = |logits: &Tensor| cross_entropy(logits, &[0, 1, 2]).unwrap();
    let loss = (found(&logits) + found(&logits.t().unwrap().contiguous().unwrap())).unwrap();
    let flaw = |name: &str| is_unseen(name).then_some(Flaw::Zero);
    assert_eq!(flaws(&loss, &store), expected(&store, flaw));
}

/// A place between two parts of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Behind the embeddings of tokens.
    Tokens,
    /// Behind the projector.
    Images,
    /// Behind the layers of the language model, before its head.
    Hidden,
}

/// The loss of a projector and a language model where `fault` is done to what passes `place`.
fn with_fault(place: Place, fault: impl Fn(&Tensor) -> Result<Tensor>) -> (Tensor, ParamStore) {
    let (text, vision) = (vlm_config(false).text_config, vision_config());
    let mut store = ParamStore::seeded(5, &Device::Cpu);
    let sizes = (vision.hidden_size, text.hidden_size, vision.grid());
    let projector = AvgPoolProjector::new(sizes.0, sizes.1, sizes.2, store.root().pp("projector")).unwrap();
    let qwen2 = Qwen2::new(&text, store.root().pp("language_model")).unwrap();
    let pass = |here: Place, x: Tensor| if here == place { fault(&x).unwrap() } else { x };

    let values: Vec<f32> = (0..16 * vision.hidden_size).map(|at| (at as f32 * 0.7).sin()).collect();
    let patches = Tensor::from_vec(values, (1, 16, vision.hidden_size), &Device::Cpu).unwrap();
    let images = pass(Place::Images, projector.forward(&patches, 2).unwrap());
    let ids = Tensor::new(&[1u32, 2, 3], &Device::Cpu).unwrap();
    let tokens = pass(Place::Tokens, qwen2.embed(&ids).unwrap().unsqueeze(0).unwrap());
    let embeds = Tensor::cat(&[&images, &tokens], 1).unwrap();
    let hidden = pass(Place::Hidden, qwen2.forward(&embeds).unwrap());
    let loss = cross_entropy(&qwen2.logits(&hidden.squeeze(0).unwrap()).unwrap(), &[4, 5, 6, 7, 8, 9, 10]);
    (loss.unwrap(), store)
}

#[test]
fn a_part_that_is_cut_off_is_seen() {
    let check = |place, fault: fn(&Tensor) -> Result<Tensor>, flaw: Option<Flaw>| {
        let (loss, store) = with_fault(place, fault);
        let below = |name: &str| match place {
            Place::Tokens => name == "language_model.model.embed_tokens.weight",
            Place::Images => name.starts_with("projector."),
            Place::Hidden => name != "language_model.lm_head.weight",
        };
        let expected = expected(&store, |name| flaw.filter(|_| below(name)));
        assert_eq!(flaws(&loss, &store), expected, "{place:?} {flaw:?}");
        assert_eq!(expected.is_empty(), flaw.is_none());
    };
    for place in [Place::Tokens, Place::Images, Place::Hidden] {
        check(place, |x| Ok(x.clone()), None);
        check(place, |x| Ok(x.detach()), Some(Flaw::Absent));
    }
    // Neither changes a value: a ramp that begins far above all of them, a root where it is steepest.
    check(Place::Images, |x| x.detach() + (x - 1e6)?.relu()?, Some(Flaw::Zero));
    check(Place::Images, |x| x.detach() + (x - x.detach())?.sqrt()?, Some(Flaw::NotFinite));
}
