//! SigLIP as Hugging Face, timm and open_clip describe it.

use super::clip::mlp_width;
use super::{Keys, open_clip_model};
use crate::encoder::HiddenAct;
use crate::siglip::{SiglipConfig, SiglipTextConfig, SiglipVisionConfig};
use oqvl_image_prep::{SIGLIP_MEAN, SIGLIP_STD};
use serde_json::{Map, Value};

/// Epsilon of every norm of SigLIP, in big_vision, transformers and timm.
const EPS: f64 = 1e-6;

/// Keys of timm's `pretrained_cfg` that say where weights are from and whose they are, and how timm itself cuts images and
/// changes a network. Here images are made as the reference makes them, which overrides timm's cut too.
///
/// Source: timm `models/_pretrained.py`.
const TIMM_ORIGIN: &[&str] = &[
    "architecture",
    "classifier",
    "crop_mode",
    "crop_pct",
    "custom_load",
    "description",
    "file",
    "first_conv",
    "fixed_input_size",
    "hf_hub_filename",
    "hf_hub_id",
    "label_descriptions",
    "label_names",
    "label_offset",
    "license",
    "min_input_size",
    "notes",
    "num_classes",
    "origin_url",
    "paper_ids",
    "paper_name",
    "pool_size",
    "source",
    "tag",
    "test_crop_pct",
    "test_input_size",
    "test_pool_size",
    "url",
];

impl TryFrom<Map<String, Value>> for SiglipVisionConfig {
    type Error = String;

    /// A tower alone, or the one of a pair, described by ours, Hugging Face, timm or open_clip.
    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let mut keys = Keys::new(keys);
        if keys.contains("architecture") {
            return timm_folder(keys);
        }
        if keys.contains("model_cfg") {
            let mut keys = open_clip_model(keys)?;
            let config = open_clip_tower(&mut keys)?;
            // The other half, which is not asked for.
            keys.pass_over(&["text_cfg"]);
            keys.finish()?;
            return Ok(config);
        }
        if keys.contains("vision_config") {
            let config = tower_of_pair(&mut keys)?;
            keys.pass_over(&["eos_token_id", "text_config"]);
            keys.finish()?;
            return Ok(config);
        }
        vision(keys)
    }
}

/// Hugging Face's `SiglipVisionConfig`, or ours. In old files the table of a pair says its `model_type` only at the top.
fn vision(mut keys: Keys) -> Result<SiglipVisionConfig, String> {
    keys.only("model_type", "siglip_vision_model")?;
    let config = SiglipVisionConfig {
        hidden_size: keys.take_or("hidden_size", 768)?,
        intermediate_size: keys.take_or("intermediate_size", 3072)?,
        num_hidden_layers: keys.take_or("num_hidden_layers", 12)?,
        num_attention_heads: keys.take_or("num_attention_heads", 12)?,
        image_size: keys.take_or("image_size", 224)?,
        patch_size: keys.take_or("patch_size", 16)?,
        layer_norm_eps: keys.take_or("layer_norm_eps", EPS)?,
        hidden_act: keys.take_or("hidden_act", HiddenAct::GeluPytorchTanh)?,
    };
    keys.only("num_channels", 3)?;
    // Whether the head is in the weights is theirs to say.
    keys.pass_over(&["vision_use_head", "eos_token_id"]);
    keys.finish()?;
    Ok(config)
}

impl TryFrom<Map<String, Value>> for SiglipTextConfig {
    type Error = String;

    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        text(Keys::new(keys), None)
    }
}

/// `projection_size`, where it is said, must be the width of the vision tower.
fn text(mut keys: Keys, width: Option<usize>) -> Result<SiglipTextConfig, String> {
    keys.only("model_type", "siglip_text_model")?;
    let config = SiglipTextConfig {
        vocab_size: keys.take_or("vocab_size", 32_000)?,
        hidden_size: keys.take_or("hidden_size", 768)?,
        intermediate_size: keys.take_or("intermediate_size", 3072)?,
        num_hidden_layers: keys.take_or("num_hidden_layers", 12)?,
        num_attention_heads: keys.take_or("num_attention_heads", 12)?,
        max_position_embeddings: keys.take_or("max_position_embeddings", 64)?,
        layer_norm_eps: keys.take_or("layer_norm_eps", EPS)?,
        hidden_act: keys.take_or("hidden_act", HiddenAct::GeluPytorchTanh)?,
    };
    keys.only("projection_size", width.unwrap_or(config.hidden_size))?;
    keys.pass_over(&["eos_token_id"]);
    keys.finish()?;
    Ok(config)
}

impl TryFrom<Map<String, Value>> for SiglipConfig {
    type Error = String;

    /// A pair, described by ours, Hugging Face or open_clip.
    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let mut keys = Keys::new(keys);
        if keys.contains("model_cfg") {
            return open_clip(open_clip_model(keys)?);
        }
        let vision_config = tower_of_pair(&mut keys)?;
        let tower = Keys::new(keys.table("text_config")?).within(keys.is_of_hugging_face());
        let text_config =
            text(tower, Some(vision_config.hidden_size)).map_err(|error| format!("text_config: {error}"))?;
        keys.pass_over(&["eos_token_id"]);
        keys.finish()?;
        Ok(Self { vision_config, text_config })
    }
}

/// The vision half of a pair of Hugging Face's or ours.
fn tower_of_pair(keys: &mut Keys) -> Result<SiglipVisionConfig, String> {
    keys.only("model_type", "siglip")?;
    let tower = Keys::new(keys.table("vision_config")?).within(keys.is_of_hugging_face());
    vision(tower).map_err(|error| format!("vision_config: {error}"))
}

/// `config.json` of timm's folders: the name of an architecture, and how its weights were trained.
///
/// Source: `save_config_for_hf` of timm `models/_hub.py`.
fn timm_folder(mut keys: Keys) -> Result<SiglipVisionConfig, String> {
    let name: String = keys.require("architecture")?;
    let config = timm_tower(&name)?;
    if keys.contains("pretrained_cfg") {
        let trained = Keys::new(keys.table("pretrained_cfg")?);
        timm_training(trained, &config).map_err(|error| format!("pretrained_cfg: {error}"))?;
    }
    keys.only("global_pool", "map")?;
    keys.only("num_classes", 0)?;
    keys.only("num_features", config.hidden_size)?;
    if let Some(changed) = keys.take::<Map<String, Value>>("model_args")?
        && !changed.is_empty()
    {
        return Err(format!("`model_args` changes {name}: {}", Value::Object(changed)));
    }
    keys.finish()?;
    Ok(config)
}

/// `pretrained_cfg` of timm's folders: what the weights were trained on.
fn timm_training(mut keys: Keys, config: &SiglipVisionConfig) -> Result<(), String> {
    keys.only("input_size", vec![3, config.image_size, config.image_size])?;
    keys.only("mean", SIGLIP_MEAN.to_vec())?;
    keys.only("std", SIGLIP_STD.to_vec())?;
    keys.only("interpolation", "bicubic")?;
    keys.pass_over(TIMM_ORIGIN);
    keys.finish()
}

/// timm's `vit_{size}_patch{patch}_siglip_{image}`.
///
/// Source: timm `models/vision_transformer.py`. The activation is the exact GELU, except in sizes that came with SigLIP 2.
pub(super) fn timm_tower(name: &str) -> Result<SiglipVisionConfig, String> {
    let unknown =
        || format!("`{name}` is not an architecture known here: vit_{{size}}_patch{{n}}_siglip_{{n}}");
    let mut parts = name.strip_prefix("vit_").ok_or_else(unknown)?.split('_');
    let mut next = || parts.next().ok_or_else(unknown);
    let (size, patch, family, image) = (next()?, next()?, next()?, next()?);
    let patch_size = patch.strip_prefix("patch").and_then(|edge| edge.parse().ok()).ok_or_else(unknown)?;
    let image_size = image.parse().map_err(|_| unknown())?;
    if family != "siglip" || parts.next().is_some() {
        return Err(unknown());
    }
    let hidden_act = match (size, patch_size, image_size) {
        ("base", 32, 256)
        | ("large", 16, 512)
        | ("so400m", 16, 256 | 384 | 512)
        | ("giantopt", 16, 256 | 384) => HiddenAct::GeluPytorchTanh,
        ("base", 16, 224 | 256 | 384 | 512) | ("large", 16, 256 | 384) | ("so400m", 14, 224 | 378 | 384) => {
            HiddenAct::Gelu
        }
        _ => return Err(unknown()),
    };
    tower(size, patch_size, image_size, hidden_act).ok_or_else(unknown)
}

/// Google's `siglip-{size}-patch{patch}-{image}` on the hub, with transformers' activation.
pub(super) fn hub_tower(id: &str) -> Option<SiglipVisionConfig> {
    let name = id.rsplit('/').next()?.strip_prefix("siglip-")?;
    let mut parts = name.split('-');
    let (size, patch, image) = (parts.next()?, parts.next()?.strip_prefix("patch")?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    tower(size, patch.parse().ok()?, image.parse().ok()?, HiddenAct::GeluPytorchTanh)
}

fn tower(size: &str, patch_size: usize, image_size: usize, act: HiddenAct) -> Option<SiglipVisionConfig> {
    let (hidden_size, intermediate_size, num_hidden_layers, num_attention_heads) = match size {
        "base" => (768, 3072, 12, 12),
        "large" => (1024, 4096, 24, 16),
        "so400m" => (1152, 4304, 27, 16),
        "giantopt" => (1536, 6144, 40, 16),
        _ => return None,
    };
    Some(SiglipVisionConfig {
        hidden_size,
        intermediate_size,
        num_hidden_layers,
        num_attention_heads,
        image_size,
        patch_size,
        layer_norm_eps: EPS,
        hidden_act: act,
    })
}

/// A pair, of its `model_cfg`.
///
/// Source: open_clip `model_configs/ViT-SO400M-14-SigLIP-384.json`, `model.py` and `transformer.py`.
fn open_clip(mut keys: Keys) -> Result<SiglipConfig, String> {
    let vision_config = open_clip_tower(&mut keys)?;
    let text = Keys::new(keys.table("text_cfg")?);
    let text_config = open_clip_text(text).map_err(|error| format!("text_cfg: {error}"))?;
    keys.finish()?;
    Ok(SiglipConfig { vision_config, text_config })
}

/// Takes everything but the text half out of a `model_cfg`.
fn open_clip_tower(keys: &mut Keys) -> Result<SiglipVisionConfig, String> {
    let tower = Keys::new(keys.table("vision_cfg")?);
    let config = open_clip_vision(tower).map_err(|error| format!("vision_cfg: {error}"))?;
    keys.only("embed_dim", config.hidden_size)?;
    keys.only("custom_text", true)?;
    keys.only("quick_gelu", false)?;
    keys.pass_over(&["init_logit_bias", "init_logit_scale"]);
    Ok(config)
}

fn open_clip_vision(mut keys: Keys) -> Result<SiglipVisionConfig, String> {
    let config = timm_tower(&keys.require::<String>("timm_model_name")?)?;
    keys.only("image_size", config.image_size)?;
    keys.only("timm_pool", "map")?;
    keys.only("timm_proj", "none")?;
    // Whose weights training began with, what it left out, and the bias of a projection that is not there.
    keys.pass_over(&[
        "patch_dropout",
        "timm_drop",
        "timm_drop_path",
        "timm_model_pretrained",
        "timm_proj_bias",
    ]);
    keys.finish()?;
    Ok(config)
}

fn open_clip_text(mut keys: Keys) -> Result<SiglipTextConfig, String> {
    let hidden_size: usize = keys.require("width")?;
    let mut act = Keys::new(keys.take("act_kwargs")?.unwrap_or_default());
    let hidden_act = match act.take::<String>("approximate")?.as_deref() {
        None | Some("none") => HiddenAct::Gelu,
        Some("tanh") => HiddenAct::GeluPytorchTanh,
        Some(other) => return Err(format!("`act_kwargs` asks for `{other}`, which is not known")),
    };
    let mut norm = Keys::new(keys.take("norm_kwargs")?.unwrap_or_default());
    let config = SiglipTextConfig {
        vocab_size: keys.require("vocab_size")?,
        hidden_size,
        intermediate_size: mlp_width(&mut keys, hidden_size)?,
        num_hidden_layers: keys.require("layers")?,
        num_attention_heads: keys.require("heads")?,
        max_position_embeddings: keys.require("context_length")?,
        // PyTorch's default.
        layer_norm_eps: norm.take("eps")?.unwrap_or(1e-5),
        hidden_act,
    };
    for (key, expected) in [("no_causal_mask", true), ("proj_bias", true)] {
        if keys.take::<bool>(key)? != Some(expected) {
            return Err(format!("`{key}` must be {expected}: without it this is not SigLIP"));
        }
    }
    if keys.take::<String>("pool_type")?.as_deref() != Some("last") {
        return Err("`pool_type` must be \"last\": without it this is not SigLIP".to_owned());
    }
    // How texts become ids is the tokenizer's business.
    keys.pass_over(&["hf_tokenizer_name", "tokenizer_kwargs"]);
    act.finish()?;
    norm.finish()?;
    keys.finish()?;
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::de::DeserializeOwned;
    use serde_json::json;

    fn read<C: DeserializeOwned>(config: Value) -> Result<C, String> {
        serde_json::from_value(config).map_err(|error| error.to_string())
    }

    fn so400m(hidden_act: HiddenAct) -> SiglipVisionConfig {
        SiglipVisionConfig {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            layer_norm_eps: 1e-6,
            hidden_act,
        }
    }

    /// `config.json` of google/siglip-so400m-patch14-384, and its tower alone as transformers 5 saves it.
    #[test]
    fn hugging_face_computes_the_tanh_gelu() {
        let pair = json!({
            "architectures": ["SiglipModel"], "initializer_factor": 1.0, "model_type": "siglip",
            "text_config": {
                "hidden_size": 1152, "intermediate_size": 4304, "model_type": "siglip_text_model",
                "num_attention_heads": 16, "num_hidden_layers": 27,
            },
            "torch_dtype": "float32", "transformers_version": "4.37.0.dev0",
            "vision_config": {
                "hidden_size": 1152, "image_size": 384, "intermediate_size": 4304,
                "model_type": "siglip_vision_model", "num_attention_heads": 16, "num_hidden_layers": 27,
                "patch_size": 14,
            },
        });
        let expected = so400m(HiddenAct::GeluPytorchTanh);
        let config: SiglipConfig = read(pair.clone()).unwrap();
        assert_eq!(config.vision_config, expected);
        assert_eq!((config.text_config.vocab_size, config.text_config.max_position_embeddings), (32_000, 64));
        assert_eq!(read::<SiglipVisionConfig>(pair.clone()).unwrap(), expected);
        assert_eq!(read::<SiglipConfig>(serde_json::to_value(&config).unwrap()).unwrap(), config);
        let mut alone = pair["vision_config"].clone();
        alone["architectures"] = json!(["SiglipVisionModel"]);
        alone["dtype"] = json!("float32");
        alone["num_channels"] = json!(3);
        alone["vision_use_head"] = json!(true);
        assert_eq!(read::<SiglipVisionConfig>(alone).unwrap(), expected);
    }

    /// As timm/vit_so400m_patch14_siglip_384.webli and timm/ViT-SO400M-14-SigLIP-384 are on the hub.
    #[test]
    fn timm_and_open_clip_compute_the_exact_gelu() {
        let timm = json!({
            "architecture": "vit_so400m_patch14_siglip_384", "num_classes": 0, "num_features": 1152,
            "global_pool": "map",
            "pretrained_cfg": {
                "tag": "webli", "custom_load": false, "input_size": [3, 384, 384], "fixed_input_size": true,
                "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center", "mean": [0.5, 0.5, 0.5],
                "std": [0.5, 0.5, 0.5], "num_classes": 0, "pool_size": null, "first_conv": "patch_embed.proj",
                "classifier": null, "license": "apache-2.0",
            },
        });
        assert_eq!(read::<SiglipVisionConfig>(timm.clone()).unwrap(), so400m(HiddenAct::Gelu));
        let open_clip = json!({
            "model_cfg": {
                "embed_dim": 1152, "init_logit_bias": -10, "custom_text": true,
                "vision_cfg": {
                    "image_size": 384, "timm_model_name": "vit_so400m_patch14_siglip_384",
                    "timm_model_pretrained": false, "timm_pool": "map", "timm_proj": "none",
                },
                "text_cfg": {
                    "context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
                    "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 1152, "heads": 16, "layers": 27,
                    "mlp_ratio": 3.7362, "no_causal_mask": true, "proj_bias": true, "pool_type": "last",
                    "norm_kwargs": {"eps": 1e-6},
                },
            },
            "preprocess_cfg": {
                "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "resize_mode": "squash",
            },
        });
        assert_eq!(read::<SiglipVisionConfig>(open_clip.clone()).unwrap(), so400m(HiddenAct::Gelu));
        let config: SiglipConfig = read(open_clip.clone()).unwrap();
        assert_eq!(config.text_config.intermediate_size, 4304);
        assert_eq!(
            (config.text_config.hidden_act, config.text_config.layer_norm_eps),
            (HiddenAct::Gelu, 1e-6)
        );
        for (pointer, value, expected) in [
            ("/model_cfg/text_cfg/no_causal_mask", json!(false), "text_cfg: `no_causal_mask` must be true"),
            ("/model_cfg/text_cfg/pool_type", json!("argmax"), "text_cfg: `pool_type` must be"),
            ("/model_cfg/vision_cfg/timm_proj", json!("linear"), "vision_cfg: `timm_proj` is \"linear\""),
            ("/model_cfg/vision_cfg/image_size", json!(224), "vision_cfg: `image_size` is 224, only 384"),
        ] {
            let mut other = open_clip.clone();
            *other.pointer_mut(pointer).unwrap() = value;
            let error = read::<SiglipConfig>(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        // Whether the pair is asked for or the tower alone.
        for (pointer, expected) in [
            ("", "unknown key `new_idea`"),
            ("/model_cfg", "unknown key `new_idea`"),
            ("/model_cfg/vision_cfg", "vision_cfg: unknown key `new_idea`"),
        ] {
            let mut other = open_clip.clone();
            other.pointer_mut(pointer).unwrap()["new_idea"] = json!(1);
            assert_eq!(read::<SiglipConfig>(other.clone()).unwrap_err(), expected);
            assert_eq!(read::<SiglipVisionConfig>(other).unwrap_err(), expected);
        }
        for (key, value, expected) in [
            (
                "architecture",
                json!("vit_so400m_patch14_siglip_gap_384"),
                "`vit_so400m_patch14_siglip_gap_384` is",
            ),
            ("architecture", json!("resnet50"), "`resnet50` is not an architecture known here"),
            ("global_pool", json!("avg"), "`global_pool` is \"avg\", only \"map\""),
            ("model_args", json!({"depth": 3}), "`model_args` changes"),
            ("num_features", json!(768), "`num_features` is 768, only 1152"),
            ("new_idea", json!(1), "unknown key `new_idea`"),
            (
                "pretrained_cfg",
                json!({"input_size": [3, 224, 224]}),
                "pretrained_cfg: `input_size` is [3,224,224], only [3,384,384]",
            ),
            (
                "pretrained_cfg",
                json!({"mean": [0.485, 0.456, 0.406]}),
                "pretrained_cfg: `mean` is [0.485,0.456,0.406], only [0.5,0.5,0.5]",
            ),
            ("pretrained_cfg", json!({"new_idea": 1}), "pretrained_cfg: unknown key `new_idea`"),
        ] {
            let mut other = timm.clone();
            other[key] = value;
            let error = read::<SiglipVisionConfig>(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn what_would_be_another_network_is_refused() {
        let pair = json!({"model_type": "siglip", "vision_config": {}, "text_config": {}});
        assert_eq!(read::<SiglipConfig>(pair.clone()).unwrap().vision_config.hidden_size, 768);
        for (pointer, key, value, expected) in [
            ("", "model_type", json!("clip"), "`model_type` is \"clip\", only \"siglip\""),
            ("/vision_config", "num_channels", json!(1), "vision_config: `num_channels` is 1, only 3"),
            ("/vision_config", "qk_norm", json!(true), "vision_config: unknown key `qk_norm`"),
            ("/vision_config", "image_size", json!([1, 2]), "vision_config: `image_size` cannot be [1,2]"),
            ("/vision_config", "hidden_act", json!("relu"), "vision_config: `hidden_act` cannot be \"relu\""),
            ("/text_config", "projection_size", json!(5), "text_config: `projection_size` is 5, only 768"),
        ] {
            let mut other = pair.clone();
            other.pointer_mut(pointer).unwrap()[key] = value;
            let error = read::<SiglipConfig>(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        // A tower of a pair is read like the pair.
        for (key, value, expected) in [
            ("model_type", json!("clip"), "`model_type` is \"clip\", only \"siglip\""),
            ("new_idea", json!(1), "unknown key `new_idea`"),
        ] {
            let mut other = pair.clone();
            other[key] = value;
            let error = read::<SiglipVisionConfig>(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let ours = json!({"vision_config": {"hidden_size": 8}, "text_config": {}});
        assert_eq!(read::<SiglipConfig>(ours).unwrap_err(), "vision_config: `intermediate_size` is missing");
    }
}
