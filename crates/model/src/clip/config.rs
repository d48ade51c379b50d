//! Shapes of CLIP networks.

use crate::ModelError;
use crate::config::{check_heads, check_norm_eps, check_patches, check_vocabulary};
use crate::encoder::HiddenAct;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Vision half, with the keys and defaults of Hugging Face's `CLIPVisionConfig` (the defaults are ViT-B/32).
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Epsilon of the layer norms, from 1e-30 to 1.
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
        check_patches("vision", self.image_size, self.patch_size)?;
        check_norm_eps("vision", "layer_norm_eps", self.layer_norm_eps)?;
        check_heads("vision", self.num_attention_heads, self.hidden_size)
    }
}

/// Text half, with the keys and defaults of Hugging Face's `CLIPTextConfig` (the defaults are ViT-B/32).
#[derive(Debug, Clone, PartialEq, Serialize)]
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
    /// Epsilon of the layer norms, from 1e-30 to 1.
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
    /// The `eos_token_id` that means the highest id of a text.
    pub(crate) const HIGHEST_ID: u32 = 2;

    pub(super) fn validate(&self) -> Result<(), ModelError> {
        check_vocabulary("text", self.vocab_size, self.max_position_embeddings)?;
        check_norm_eps("text", "layer_norm_eps", self.layer_norm_eps)?;
        check_heads("text", self.num_attention_heads, self.hidden_size)
    }
}

/// Both halves. Read from the `config.json` of Hugging Face's `CLIPModel` and from `open_clip_config.json`: keys that say
/// nothing about what the network computes are passed over, by a list; any other key is an error.
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
    pub(super) fn validate(&self) -> Result<(), ModelError> {
        self.vision_config.validate()?;
        self.text_config.validate()
    }

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
