//! `open_clip_config.json`: how open_clip describes a network and what it does to images.

use super::preprocessing::Preprocessing;
use super::{ClipConfig, ClipTextConfig, ClipVisionConfig};
use crate::encoder::HiddenAct;
use serde::Deserialize;
use serde_json::{Map, Value};

/// The file of a folder that open_clip has written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenClipFolder {
    model_cfg: Value,
    #[serde(default)]
    preprocess_cfg: Map<String, Value>,
}

/// `model_cfg`. What is not listed is refused: most of open_clip's keys make another network.
///
/// Source: `CLIPVisionCfg`, `CLIPTextCfg` and `CLIP.__init__` of open_clip 3.3.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelCfg {
    embed_dim: usize,
    vision_cfg: VisionCfg,
    text_cfg: TextCfg,
    #[serde(default)]
    quick_gelu: bool,
    /// Says only which class holds the text tower, so how its tensors are called.
    #[serde(default, rename = "custom_text")]
    _custom_text: bool,
    #[serde(default, rename = "init_logit_scale")]
    _init_logit_scale: Option<f64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct VisionCfg {
    layers: usize,
    width: usize,
    head_width: usize,
    mlp_ratio: f64,
    patch_size: usize,
    image_size: usize,
    /// Patches left out in training.
    #[serde(rename = "patch_dropout")]
    _patch_dropout: f64,
}

impl Default for VisionCfg {
    fn default() -> Self {
        Self {
            layers: 12,
            width: 768,
            head_width: 64,
            mlp_ratio: 4.0,
            patch_size: 16,
            image_size: 224,
            _patch_dropout: 0.0,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct TextCfg {
    context_length: usize,
    vocab_size: usize,
    width: usize,
    heads: usize,
    layers: usize,
    mlp_ratio: f64,
}

impl Default for TextCfg {
    fn default() -> Self {
        Self { context_length: 77, vocab_size: 49408, width: 512, heads: 8, layers: 12, mlp_ratio: 4.0 }
    }
}

impl OpenClipFolder {
    /// The network, in our words.
    pub(super) fn config(&self) -> Result<ClipConfig, String> {
        let cfg: ModelCfg =
            serde_json::from_value(self.model_cfg.clone()).map_err(|error| format!("model_cfg: {error}"))?;
        let ModelCfg { embed_dim, vision_cfg: vision, text_cfg: text, quick_gelu, .. } = cfg;
        if vision.head_width == 0 {
            return Err("model_cfg.vision_cfg.head_width must be at least 1, got 0".to_owned());
        }
        let hidden_act = if quick_gelu { HiddenAct::QuickGelu } else { HiddenAct::Gelu };
        // Python's `int(width * mlp_ratio)`.
        let intermediate = |width: usize, ratio: f64| (width as f64 * ratio) as usize;
        let vision_config = ClipVisionConfig {
            hidden_size: vision.width,
            intermediate_size: intermediate(vision.width, vision.mlp_ratio),
            num_hidden_layers: vision.layers,
            num_attention_heads: vision.width / vision.head_width,
            image_size: vision.image_size,
            patch_size: vision.patch_size,
            layer_norm_eps: 1e-5,
            hidden_act,
        };
        let text_config = ClipTextConfig {
            vocab_size: text.vocab_size,
            hidden_size: text.width,
            intermediate_size: intermediate(text.width, text.mlp_ratio),
            num_hidden_layers: text.layers,
            num_attention_heads: text.heads,
            max_position_embeddings: text.context_length,
            layer_norm_eps: 1e-5,
            hidden_act,
            // `pool_type` is "argmax" where it is not said.
            eos_token_id: 2,
        };
        Ok(ClipConfig { vision_config, text_config, projection_dim: embed_dim })
    }

    /// What is done to images; open_clip's own transform where nothing is said.
    pub(super) fn preprocessing(&self) -> Preprocessing {
        Preprocessing::of_open_clip(&self.preprocess_cfg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(file: Value) -> Result<ClipConfig, String> {
        serde_json::from_value::<OpenClipFolder>(file).map_err(|error| error.to_string())?.config()
    }

    /// `ViT-L-14-336-quickgelu.json` of open_clip 3.3, and `ViT-B-16.json`.
    #[test]
    fn published_configs_are_the_presets() {
        let large = json!({"model_cfg": {
            "embed_dim": 768, "quick_gelu": true,
            "vision_cfg": {"image_size": 336, "layers": 24, "width": 1024, "patch_size": 14},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 768, "heads": 12, "layers": 12},
        }});
        let base = json!({"model_cfg": {
            "embed_dim": 512,
            "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
        }});
        let with_highest = |mut config: ClipConfig| {
            config.text_config.eos_token_id = 2;
            config
        };
        assert_eq!(read(large), Ok(with_highest(ClipConfig::vit_l_14_336(HiddenAct::QuickGelu))));
        assert_eq!(read(base), Ok(with_highest(ClipConfig::vit_b_16(HiddenAct::Gelu))));
    }

    #[test]
    fn other_networks_are_refused_by_their_keys() {
        for (changed, expected) in [
            (json!({"vision_cfg": {"timm_model_name": "vit_base"}}), "unknown field `timm_model_name`"),
            (json!({"text_cfg": {"hf_model_name": "roberta"}}), "unknown field `hf_model_name`"),
            (json!({"multimodal_cfg": {}}), "unknown field `multimodal_cfg`"),
            (json!({"vision_cfg": {"head_width": 0}}), "head_width must be at least 1"),
        ] {
            let mut model = json!({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}});
            model.as_object_mut().unwrap().extend(changed.as_object().unwrap().clone());
            let error = read(json!({ "model_cfg": model })).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
