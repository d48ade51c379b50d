//! CLIP as Hugging Face and open_clip describe it.

use super::{Keys, open_clip_model};
use crate::clip::{ClipConfig, ClipTextConfig, ClipVisionConfig};
use crate::encoder::HiddenAct;
use serde_json::{Map, Value};

impl TryFrom<Map<String, Value>> for ClipConfig {
    type Error = String;

    /// A pair, described by Hugging Face or open_clip; the defaults are theirs.
    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let mut keys = Keys::new(keys);
        if keys.contains("model_cfg") {
            return open_clip(open_clip_model(keys)?);
        }
        keys.only("model_type", "clip")?;
        let half = half_of(&mut keys, "vision_config", "vision_config_dict")?;
        let vision_config = vision(half).map_err(|error| format!("vision_config: {error}"))?;
        let half = half_of(&mut keys, "text_config", "text_config_dict")?;
        let text_config = text(half).map_err(|error| format!("text_config: {error}"))?;
        let projection_dim = keys.take_or("projection_dim", 512)?;
        keys.pass_over(&["eos_token_id"]);
        keys.finish()?;
        Ok(Self { vision_config, text_config, projection_dim })
    }
}

/// The keys of one half. A file may have them a second time under an old name; that one counts, as in Hugging Face's
/// `CLIPConfig`.
fn half_of(keys: &mut Keys, name: &str, old_name: &str) -> Result<Keys, String> {
    let (new, old): (Option<Map<String, Value>>, _) = (keys.take(name)?, keys.take(old_name)?);
    let theirs = keys.is_of_hugging_face();
    match old.or(new) {
        Some(half) => Ok(Keys::new(half).within(theirs)),
        None if theirs => Ok(Keys::new(Map::new()).within(theirs)),
        None => Err(format!("`{name}` is missing")),
    }
}

fn vision(mut keys: Keys) -> Result<ClipVisionConfig, String> {
    keys.only("model_type", "clip_vision_model")?;
    let default = ClipVisionConfig::default();
    let config = ClipVisionConfig {
        hidden_size: keys.take_or("hidden_size", default.hidden_size)?,
        intermediate_size: keys.take_or("intermediate_size", default.intermediate_size)?,
        num_hidden_layers: keys.take_or("num_hidden_layers", default.num_hidden_layers)?,
        num_attention_heads: keys.take_or("num_attention_heads", default.num_attention_heads)?,
        image_size: keys.take_or("image_size", default.image_size)?,
        patch_size: keys.take_or("patch_size", default.patch_size)?,
        layer_norm_eps: keys.take_or("layer_norm_eps", default.layer_norm_eps)?,
        hidden_act: keys.take_or("hidden_act", default.hidden_act)?,
    };
    keys.only("num_channels", 3)?;
    // A vision tower has no end of text, and its projection is the model's.
    keys.pass_over(&["eos_token_id", "projection_dim"]);
    keys.finish()?;
    Ok(config)
}

fn text(mut keys: Keys) -> Result<ClipTextConfig, String> {
    keys.only("model_type", "clip_text_model")?;
    let default = ClipTextConfig::default();
    let config = ClipTextConfig {
        vocab_size: keys.take_or("vocab_size", default.vocab_size)?,
        hidden_size: keys.take_or("hidden_size", default.hidden_size)?,
        intermediate_size: keys.take_or("intermediate_size", default.intermediate_size)?,
        num_hidden_layers: keys.take_or("num_hidden_layers", default.num_hidden_layers)?,
        num_attention_heads: keys.take_or("num_attention_heads", default.num_attention_heads)?,
        max_position_embeddings: keys.take_or("max_position_embeddings", default.max_position_embeddings)?,
        layer_norm_eps: keys.take_or("layer_norm_eps", default.layer_norm_eps)?,
        hidden_act: keys.take_or("hidden_act", default.hidden_act)?,
        eos_token_id: keys.take_or("eos_token_id", default.eos_token_id)?,
    };
    // The projection is the model's.
    keys.pass_over(&["projection_dim"]);
    keys.finish()?;
    Ok(config)
}

/// A pair, of its `model_cfg`. Most keys that are not listed make another network.
///
/// Source: `CLIPVisionCfg`, `CLIPTextCfg` and `CLIP.__init__` of open_clip 3.3.
fn open_clip(mut keys: Keys) -> Result<ClipConfig, String> {
    let hidden_act = match keys.take("quick_gelu")?.unwrap_or(false) {
        true => HiddenAct::QuickGelu,
        false => HiddenAct::Gelu,
    };
    let half = Keys::new(keys.table("vision_cfg")?);
    let vision_config = open_clip_vision(half, hidden_act).map_err(|error| format!("vision_cfg: {error}"))?;
    let half = Keys::new(keys.table("text_cfg")?);
    let text_config = open_clip_text(half, hidden_act).map_err(|error| format!("text_cfg: {error}"))?;
    let projection_dim = keys.require("embed_dim")?;
    // Which class holds the text tower, so how its tensors are called, and where training starts.
    keys.pass_over(&["custom_text", "init_logit_scale"]);
    keys.finish()?;
    Ok(ClipConfig { vision_config, text_config, projection_dim })
}

fn open_clip_vision(mut keys: Keys, hidden_act: HiddenAct) -> Result<ClipVisionConfig, String> {
    let hidden_size: usize = keys.take("width")?.unwrap_or(768);
    let head_width = keys.take("head_width")?.unwrap_or(64);
    let Some(num_attention_heads) = hidden_size.checked_div(head_width) else {
        return Err("`head_width` must be at least 1, got 0".to_owned());
    };
    let config = ClipVisionConfig {
        hidden_size,
        intermediate_size: mlp_width(&mut keys, hidden_size)?,
        num_hidden_layers: keys.take("layers")?.unwrap_or(12),
        num_attention_heads,
        image_size: keys.take("image_size")?.unwrap_or(224),
        patch_size: keys.take("patch_size")?.unwrap_or(16),
        hidden_act,
        ..ClipVisionConfig::default()
    };
    // Patches left out in training.
    keys.pass_over(&["patch_dropout"]);
    keys.finish()?;
    Ok(config)
}

fn open_clip_text(mut keys: Keys, hidden_act: HiddenAct) -> Result<ClipTextConfig, String> {
    let hidden_size = keys.take("width")?.unwrap_or(512);
    let config = ClipTextConfig {
        vocab_size: keys.take("vocab_size")?.unwrap_or(49_408),
        hidden_size,
        intermediate_size: mlp_width(&mut keys, hidden_size)?,
        num_hidden_layers: keys.take("layers")?.unwrap_or(12),
        num_attention_heads: keys.take("heads")?.unwrap_or(8),
        max_position_embeddings: keys.take("context_length")?.unwrap_or(77),
        hidden_act,
        // `pool_type` is "argmax" where it is not said.
        eos_token_id: ClipTextConfig::HIGHEST_ID,
        ..ClipTextConfig::default()
    };
    keys.finish()?;
    Ok(config)
}

/// Python's `int(width * mlp_ratio)`.
pub(super) fn mlp_width(keys: &mut Keys, width: usize) -> Result<usize, String> {
    let ratio: f64 = keys.take("mlp_ratio")?.unwrap_or(4.0);
    Ok((width as f64 * ratio) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<ClipConfig, String> {
        serde_json::from_value(config).map_err(|error| error.to_string())
    }

    /// As transformers saves a config that equals its defaults: next to nothing is left.
    #[test]
    fn what_is_not_said_is_vit_b_32() {
        let config = json!({
            "architectures": ["CLIPModel"], "model_type": "clip", "logit_scale_init_value": 2.6592,
            "text_config": {"dropout": 0.0, "model_type": "clip_text_model"},
            "vision_config": {"dropout": 0.0, "model_type": "clip_vision_model", "patch_size": 16},
        });
        assert_eq!(read(config).unwrap(), ClipConfig::vit_b_16(HiddenAct::QuickGelu));
    }

    /// As OpenAI's ViT-L/14 is on the hub: both names of each half, and the end of text that is none.
    #[test]
    fn old_names_count_and_two_is_kept() {
        let config = json!({
            "model_type": "clip", "projection_dim": 768, "torch_dtype": "float32", "transformers_version": null,
            "text_config": {"hidden_size": 1, "eos_token_id": 2, "top_k": 50, "id2label": {"0": "LABEL_0"}},
            "text_config_dict": {
                "hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
                "num_hidden_layers": 12, "projection_dim": 768, "eos_token_id": 2,
            },
            "vision_config": {
                "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_channels": 3,
                "num_hidden_layers": 24, "patch_size": 14, "eos_token_id": null,
            },
            "vision_config_dict": null,
        });
        let mut expected = ClipConfig::vit_l_14(HiddenAct::QuickGelu);
        expected.text_config.eos_token_id = ClipTextConfig::HIGHEST_ID;
        assert_eq!(read(config).unwrap(), expected);
    }

    #[test]
    fn a_config_comes_back() {
        let config = ClipConfig::vit_l_14_336(HiddenAct::Gelu);
        assert_eq!(read(serde_json::to_value(&config).unwrap()).unwrap(), config);
        assert_eq!(
            read(json!({"vision_config": {}})).unwrap_err(),
            "vision_config: `hidden_size` is missing"
        );
    }

    #[test]
    fn what_would_be_another_network_is_refused() {
        for (key, value, expected) in [
            ("model_type", json!("siglip"), "`model_type` is \"siglip\", only \"clip\""),
            ("vision_config", json!({"num_channels": 4}), "vision_config: `num_channels` is 4, only 3"),
            ("vision_config", json!({"qk_norm": true}), "vision_config: unknown key `qk_norm`"),
            ("text_config", json!({"hidden_act": "relu"}), "text_config: `hidden_act` cannot be \"relu\""),
            ("text_config", json!([]), "`text_config` cannot be []"),
            ("projection_size", json!(5), "unknown key `projection_size`"),
        ] {
            let mut config = json!({"model_type": "clip"});
            config[key] = value;
            let error = read(config).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    /// `ViT-L-14-336-quickgelu.json` of open_clip 3.3, and `ViT-B-16.json`.
    #[test]
    fn published_configs_of_open_clip_are_the_presets() {
        let large = json!({"model_cfg": {
            "embed_dim": 768, "quick_gelu": true,
            "vision_cfg": {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
        }});
        let base = json!({"model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        }, "preprocess_cfg": {}});
        let with_highest = |mut config: ClipConfig| {
            config.text_config.eos_token_id = ClipTextConfig::HIGHEST_ID;
            config
        };
        assert_eq!(read(large), Ok(with_highest(ClipConfig::vit_l_14_336(HiddenAct::QuickGelu))));
        assert_eq!(read(base), Ok(with_highest(ClipConfig::vit_b_16(HiddenAct::Gelu))));
    }

    #[test]
    fn other_networks_of_open_clip_are_refused_by_their_keys() {
        for (key, value, expected) in [
            ("vision_cfg", json!({"timm_model_name": "vit"}), "vision_cfg: unknown key `timm_model_name`"),
            ("vision_cfg", json!({"head_width": 0}), "vision_cfg: `head_width` must be at least 1"),
            ("vision_cfg", json!({"layers": [3, 4, 6, 3]}), "vision_cfg: `layers` cannot be [3,4,6,3]"),
            ("text_cfg", json!({"hf_model_name": "roberta"}), "text_cfg: unknown key `hf_model_name`"),
            ("multimodal_cfg", json!({}), "unknown key `multimodal_cfg`"),
        ] {
            let mut model = json!({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}});
            model[key] = value;
            let error = read(json!({ "model_cfg": model })).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
        let beside = json!({"model_cfg": {"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}, "new_idea": 1});
        assert_eq!(read(beside).unwrap_err(), "unknown key `new_idea`");
    }
}
