//! Shapes of CLIP networks, and `config.json` files that describe them.

use crate::ModelError;
use crate::config::remove_unread;
use crate::encoder::HiddenAct;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Vision half, with the keys and defaults of Hugging Face's `CLIPVisionConfig` (the defaults are ViT-B/32).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipVisionConfig {
    /// Width `v`.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Edge of the square input, pixels.
    pub image_size: usize,
    /// Edge of a patch, pixels.
    pub patch_size: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
}

impl Default for ClipVisionConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            image_size: 224,
            patch_size: 32,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
        }
    }
}

impl ClipVisionConfig {
    /// Patches along one edge; pixels right and below the last whole patch are unused.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    pub(super) fn validate(&self) -> Result<(), ModelError> {
        if self.patch_size == 0 || self.grid() == 0 {
            let (image, patch) = (self.image_size, self.patch_size);
            return Err(ModelError::Config(format!("vision: image_size {image} holds no patch of {patch}")));
        }
        heads_fit("vision", self.num_attention_heads, self.hidden_size)
    }
}

fn heads_fit(tower: &str, heads: usize, hidden: usize) -> Result<(), ModelError> {
    if heads == 0 || !hidden.is_multiple_of(heads) {
        return Err(ModelError::Config(format!("{tower}: {heads} heads do not divide hidden_size {hidden}")));
    }
    Ok(())
}

/// Text half, with the keys and defaults of Hugging Face's `CLIPTextConfig` (the defaults are ViT-B/32).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClipTextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Longest text, tokens.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// The id that ends a text and carries its feature. 2 means the highest id of the text, whatever it is: OpenAI's and
    /// open_clip's rule, and what old configs of Hugging Face's have.
    pub eos_token_id: u32,
}

impl Default for ClipTextConfig {
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
            eos_token_id: 49407,
        }
    }
}

impl ClipTextConfig {
    pub(super) fn validate(&self) -> Result<(), ModelError> {
        if self.max_position_embeddings == 0 || self.vocab_size == 0 {
            let what = "text: vocab_size and max_position_embeddings must be at least 1";
            return Err(ModelError::Config(what.to_owned()));
        }
        heads_fit("text", self.num_attention_heads, self.hidden_size)
    }
}

/// Both halves. Read from `config.json` files as Hugging Face's `CLIPModel` has them: keys that say nothing about what
/// the network computes are passed over, by a list; any other key is an error.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct ClipConfig {
    /// Vision half.
    pub vision_config: ClipVisionConfig,
    /// Text half.
    pub text_config: ClipTextConfig,
    /// Size `p` of the shared space.
    pub projection_dim: usize,
}

impl ClipConfig {
    /// ViT-B/32: 151,277,313 parameters. OpenAI's weights want [`HiddenAct::QuickGelu`], those that open_clip trained
    /// itself mostly [`HiddenAct::Gelu`]; so it is for all four.
    ///
    /// Source: Table 20 of the paper; openai/CLIP and open_clip's `model_configs`.
    #[must_use]
    pub fn vit_b_32(act: HiddenAct) -> Self {
        Self::base(32, act)
    }

    /// ViT-B/16: 149,620,737 parameters.
    #[must_use]
    pub fn vit_b_16(act: HiddenAct) -> Self {
        Self::base(16, act)
    }

    /// ViT-L/14 for images of 224 pixels: 427,616,513 parameters.
    #[must_use]
    pub fn vit_l_14(act: HiddenAct) -> Self {
        Self::large(224, act)
    }

    /// ViT-L/14 for images of 336 pixels: 427,944,193 parameters.
    #[must_use]
    pub fn vit_l_14_336(act: HiddenAct) -> Self {
        Self::large(336, act)
    }

    fn base(patch_size: usize, act: HiddenAct) -> Self {
        Self {
            vision_config: ClipVisionConfig { patch_size, hidden_act: act, ..Default::default() },
            text_config: ClipTextConfig { hidden_act: act, ..Default::default() },
            projection_dim: 512,
        }
    }

    fn large(image_size: usize, act: HiddenAct) -> Self {
        let vision_config = ClipVisionConfig {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 24,
            num_attention_heads: 16,
            image_size,
            patch_size: 14,
            hidden_act: act,
            ..Default::default()
        };
        let text_config = ClipTextConfig {
            hidden_size: 768,
            intermediate_size: 3072,
            num_attention_heads: 12,
            hidden_act: act,
            ..Default::default()
        };
        Self { vision_config, text_config, projection_dim: 768 }
    }
}

impl TryFrom<Map<String, Value>> for ClipConfig {
    type Error = String;

    fn try_from(mut keys: Map<String, Value>) -> Result<Self, String> {
        let vision = tower(&mut keys, "vision_config", "vision_config_dict")?;
        let vision_config = vision_config(vision).map_err(|error| format!("vision_config: {error}"))?;
        let text = tower(&mut keys, "text_config", "text_config_dict")?;
        let text_config = text_config(text).map_err(|error| format!("text_config: {error}"))?;
        remove_unread(&mut keys, &["eos_token_id"]);
        let projection_dim = match keys.remove("projection_dim") {
            None => 512,
            Some(dim) => serde_json::from_value(dim).map_err(|error| format!("projection_dim: {error}"))?,
        };
        match keys.keys().next() {
            Some(key) => Err(format!("unknown key `{key}`")),
            None => Ok(Self { vision_config, text_config, projection_dim }),
        }
    }
}

/// The keys of one half. A file may have them a second time under an old name; that one counts, as in Hugging Face's
/// `CLIPConfig`.
fn tower(keys: &mut Map<String, Value>, name: &str, old_name: &str) -> Result<Map<String, Value>, String> {
    let (new, old) = (keys.remove(name), keys.remove(old_name));
    match (old, new) {
        (Some(Value::Object(half)), _) | (None | Some(Value::Null), Some(Value::Object(half))) => Ok(half),
        (None | Some(Value::Null), None | Some(Value::Null)) => Ok(Map::new()),
        _ => Err(format!("{name} must be a table")),
    }
}

fn vision_config(mut keys: Map<String, Value>) -> Result<ClipVisionConfig, String> {
    // A vision tower has no end of text, and its projection is the model's.
    remove_unread(&mut keys, &["eos_token_id", "projection_dim"]);
    match keys.remove("num_channels") {
        None => {}
        Some(channels) if channels == 3 => {}
        Some(channels) => return Err(format!("num_channels must be 3, got {channels}")),
    }
    serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())
}

fn text_config(mut keys: Map<String, Value>) -> Result<ClipTextConfig, String> {
    remove_unread(&mut keys, &["projection_dim"]);
    serde_json::from_value(Value::Object(keys)).map_err(|error| error.to_string())
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
            "projection_dim": 768, "torch_dtype": "float32", "transformers_version": null,
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
        expected.text_config.eos_token_id = 2;
        assert_eq!(read(config).unwrap(), expected);
    }

    #[test]
    fn a_config_comes_back() {
        let config = ClipConfig::vit_l_14_336(HiddenAct::Gelu);
        assert_eq!(read(serde_json::to_value(&config).unwrap()).unwrap(), config);
    }

    #[test]
    fn what_would_be_another_network_is_refused() {
        for (config, expected) in [
            (json!({"vision_config": {"num_channels": 4}}), "vision_config: num_channels must be 3, got 4"),
            (json!({"vision_config": {"qk_norm": true}}), "vision_config: unknown field `qk_norm`"),
            (json!({"text_config": {"hidden_act": "relu"}}), "text_config: unknown variant `relu`"),
            (json!({"text_config": []}), "text_config must be a table"),
            (json!({"projection_size": 5}), "unknown key `projection_size`"),
        ] {
            let error = read(config).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
