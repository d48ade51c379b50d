//! CLIP's batches, names and refusals, on the networks of `fixtures/clip`, which `fixtures/clip_goldens.py` has made with
//! transformers and open_clip. That every output equals theirs is what `oqvl-parity` tests.

use candle_core::{DType, Device, Tensor};
use oqvl_model::{
    Clip, ClipConfig, HiddenAct, Missing, ModelError, Network, ParamStore, Trainable, WEIGHTS_FILE,
    read_config, read_safetensors,
};
use std::collections::BTreeMap;
use std::path::PathBuf;

const MODELS: [&str; 4] = ["hf_quick_gelu", "hf_gelu", "open_clip_quick_gelu", "open_clip_gelu_custom_text"];
/// Of the largest value there is.
const TOLERANCE: f32 = 1e-5;

type Tensors = BTreeMap<String, Tensor>;

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/clip").join(name)
}

fn weights(name: &str) -> Tensors {
    read_safetensors(&folder(name).join(WEIGHTS_FILE), &Device::Cpu).unwrap()
}

fn build(config: &ClipConfig, weights: Tensors) -> Result<Clip, ModelError> {
    let given = Network::Clip.rename(weights)?;
    let mut store = ParamStore::new(given, Missing::Refuse, Trainable::None, &Device::Cpu);
    let clip = Clip::new(config, store.root())?;
    store.finish()?;
    Ok(clip)
}

/// A network and what its original made of the inputs.
fn open(name: &str) -> (Clip, Tensors) {
    let clip = build(&read_config(&folder(name)).unwrap(), weights(name)).unwrap();
    (clip, read_safetensors(&folder(name).join("golden.safetensors"), &Device::Cpu).unwrap())
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Not `>`: a NaN must fail.
        assert!(
            (found - expected).abs() <= TOLERANCE * largest,
            "{what}[{at}]: {found}, expected {expected}"
        );
    }
}

#[test]
fn a_text_does_not_depend_on_its_pads_and_batch_mates() {
    for name in MODELS {
        let (clip, goldens) = open(name);
        let texts: Vec<Vec<i64>> = goldens["input_ids"]
            .to_dtype(DType::I64)
            .unwrap()
            .to_vec2::<i64>()
            .unwrap()
            .into_iter()
            .map(|row| row[..row.iter().rposition(|id| *id != 0).unwrap() + 1].to_vec())
            .collect();
        assert!(texts.iter().any(|text| text.len() < 3) && texts.iter().any(|text| text.len() == 9));
        let together = clip.text_embeds(&clip.text.batch(&texts).unwrap()).unwrap();
        assert_close(&together, &goldens["text_embeds"], name);
        for (row, text) in texts.iter().enumerate() {
            let batch = clip.text.batch(std::slice::from_ref(text)).unwrap();
            assert_eq!(batch.dims(), [1, text.len()]);
            let alone = clip.text_embeds(&batch).unwrap();
            assert_close(&alone, &goldens["text_embeds"].narrow(0, row, 1).unwrap(), name);
        }
    }
}

#[test]
fn long_texts_are_cut_before_their_end_and_short_ones_padded() {
    let (clip, _) = open("hf_gelu");
    let long: Vec<i64> = (3..20).chain([50]).collect();
    let batch = clip.text.batch(&[vec![49, 50], long]).unwrap();
    let expected = [[49, 50, 0, 0, 0, 0, 0, 0, 0], [3, 4, 5, 6, 7, 8, 9, 10, 50]];
    assert_eq!(batch.to_vec2::<u32>().unwrap(), expected);
    assert_eq!(clip.text.batch(&[]).unwrap().dims(), [0, 0]);
}

#[test]
fn texts_that_do_not_fit_are_named() {
    let (clip, _) = open("hf_gelu");
    for id in [61, -1, i64::from(u32::MAX) + 1] {
        let error = clip.text.batch(&[vec![49, 50], vec![49, id, 50]]).unwrap_err();
        assert!(matches!(error, ModelError::TokenId { row: 1, id: found, vocab_size: 61 } if found == id));
    }
    let endless = clip.text.batch(&[vec![49, 50], vec![49]]).unwrap();
    assert!(matches!(clip.text_embeds(&endless), Err(ModelError::NoEndOfText { row: 1 })));
    let long = Tensor::zeros((1, 10), DType::U32, &Device::Cpu).unwrap();
    assert!(matches!(clip.text_embeds(&long), Err(ModelError::TooLong { len: 10, max: 9, .. })));
}

/// Numbers of parameters as open_clip's and OpenAI's models have them (counted in open_clip 3.3.0).
#[test]
fn the_published_networks_have_the_published_sizes() {
    type Preset = fn(HiddenAct) -> ClipConfig;
    let presets: [(Preset, usize); 4] = [
        (ClipConfig::vit_b_32, 151_277_313),
        (ClipConfig::vit_b_16, 149_620_737),
        (ClipConfig::vit_l_14, 427_616_513),
        (ClipConfig::vit_l_14_336, 427_944_193),
    ];
    for (preset, expected) in presets {
        // Nothing is given: every parameter is zeros, which cost no memory.
        let mut store = ParamStore::new(Tensors::new(), Missing::Refuse, Trainable::None, &Device::Cpu);
        Clip::new(&preset(HiddenAct::QuickGelu), store.root()).unwrap();
        assert_eq!(store.frozen().values().map(Tensor::elem_count).sum::<usize>(), expected);
    }
}

#[test]
fn the_same_network_under_other_names_is_the_same() {
    let (clip, goldens) = open("open_clip_quick_gelu");
    let expected = clip.image_embeds(&goldens["pixel_values"]).unwrap().to_vec2::<f32>().unwrap();
    let config = read_config(&folder("open_clip_quick_gelu")).unwrap();
    let mut distributed: Tensors = weights("open_clip_quick_gelu")
        .into_iter()
        .map(|(name, tensor)| (format!("module.{name}"), tensor))
        .collect();
    let scalar = || Tensor::new(22i64, &Device::Cpu).unwrap();
    // OpenAI's archives hold these; open_clip makes the scale a vector on request.
    for name in ["input_resolution", "context_length", "vocab_size"] {
        distributed.insert(name.to_owned(), scalar());
    }
    let scale = distributed["module.logit_scale"].reshape(1).unwrap();
    distributed.insert("module.logit_scale".to_owned(), scale);
    let found = build(&config, distributed).unwrap().image_embeds(&goldens["pixel_values"]).unwrap();
    assert_eq!(found.to_vec2::<f32>().unwrap(), expected);

    let mut old = weights("hf_gelu");
    for tower in ["text_model", "vision_model"] {
        old.insert(format!("{tower}.embeddings.position_ids"), scalar());
    }
    assert!(build(&read_config(&folder("hf_gelu")).unwrap(), old).is_ok());
}

#[test]
fn tensors_of_other_networks_are_all_named() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let config: ClipConfig = read_config(&folder("open_clip_quick_gelu")).unwrap();
    let with = |added: &[(&str, &[usize])]| {
        let mut given = weights("open_clip_quick_gelu");
        given.extend(added.iter().map(|(name, dims)| ((*name).to_owned(), zeros(dims))));
        build(&config, given).unwrap_err().to_string()
    };
    let cut = "visual.transformer.resblocks.1.attn.in_proj_bias";
    let error = with(&[(cut, &[95])]);
    assert!(error.contains(&format!("`{cut}` is [95], expected 3 blocks")), "{error}");
    let error =
        with(&[("visual.proj", &[32]), ("logit_bias", &[]), ("transformer.resblocks.0.ls_1.gamma", &[24])]);
    for part in [
        "`visual_projection.weight` is [32], expected [20, 32]",
        "`logit_bias` is not in the network",
        "`transformer.resblocks.0.ls_1.gamma` is not in the network",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(error.matches('`').count(), 6, "{error}");
}
