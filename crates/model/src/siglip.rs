//! SigLIP: vision tower, text tower, and the pair trained with the sigmoid loss.
//!
//! Shape letters: `b` batch, `n` patches, `s` text positions, `v` hidden size.
//!
//! Not `candle-transformers`': that computes the tanh GELU alone, ends after the norm of the last block where features come from
//! the block before it, and its fused layer norm has no gradient.

use crate::ModelError;
use crate::config::{check_heads, check_norm_eps, check_patches, check_vocabulary};
use crate::encoder::{
    BlockSizes, EncoderLayer, HiddenAct, Mlp, PatchEmbedding, PatchSizes, TextBody, TextSizes, encoder, run,
};
use crate::layers::{Bias, LayerNorm, Linear, lecun, multi_head_attention, normalize};
use crate::params::{Init, ParamBuilder};
use candle_core::{Result, Tensor};
use oqvl_kernels::{Mask, linear};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The [state](SiglipVisionTower::hidden_state) that the reference and most LLaVAs take an image's features from.
pub const SECOND_TO_LAST: i64 = -2;

/// Vision half, with the keys of Hugging Face's `SiglipVisionConfig`; also read from the folders of Hugging Face's, timm's
/// and open_clip's SigLIP, of a tower or a pair.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct SiglipVisionConfig {
    /// Width `v`.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks; at least 1.
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

impl SiglipVisionConfig {
    /// Patches along one edge; pixels right and below the last whole patch are unused.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }

    /// Blocks whose output is the state `layer`; none if there is no such state.
    pub(crate) fn num_blocks_to(&self, layer: i64) -> Option<usize> {
        let num_states = i64::try_from(self.num_hidden_layers).ok()? + 1;
        let from_start = if layer < 0 { num_states + layer } else { layer };
        usize::try_from(from_start).ok().filter(|blocks| *blocks <= self.num_hidden_layers)
    }

    pub(crate) fn validate(&self) -> std::result::Result<(), ModelError> {
        check_patches("vision", self.image_size, self.patch_size)?;
        check_heads("vision", self.num_attention_heads, self.hidden_size)?;
        if self.num_hidden_layers == 0 {
            return Err(ModelError::Config("vision: num_hidden_layers must be at least 1, got 0".to_owned()));
        }
        check_norm_eps("vision", "layer_norm_eps", self.layer_norm_eps)
    }
}

/// Text half, with the keys of Hugging Face's `SiglipTextConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct SiglipTextConfig {
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
    /// Every text is cut or padded to this many tokens; pads are attended, as SigLIP was trained.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms, from 1e-30 to 1.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
}

impl SiglipTextConfig {
    fn validate(&self) -> std::result::Result<(), ModelError> {
        check_vocabulary("text", self.vocab_size, self.max_position_embeddings)?;
        check_heads("text", self.num_attention_heads, self.hidden_size)?;
        check_norm_eps("text", "layer_norm_eps", self.layer_norm_eps)
    }
}

/// Both halves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct SiglipConfig {
    /// Vision half.
    pub vision_config: SiglipVisionConfig,
    /// Text half.
    pub text_config: SiglipTextConfig,
}

impl SiglipConfig {
    pub(crate) fn validate(&self) -> std::result::Result<(), ModelError> {
        self.vision_config.validate()?;
        self.text_config.validate()
    }
}

/// The vision tower.
#[derive(Debug)]
pub struct SiglipVisionTower {
    config: SiglipVisionConfig,
    patch_embedding: PatchEmbedding,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    head: Option<PoolingHead>,
}

impl SiglipVisionTower {
    /// Takes the parameters below `vision_model.` of `p`, named as in Hugging Face's checkpoints. A tower for features
    /// alone may come without its head.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(
        config: &SiglipVisionConfig,
        mut p: ParamBuilder<'_>,
    ) -> std::result::Result<Self, ModelError> {
        config.validate()?;
        let mut p = p.pp("vision_model");
        let (hidden, grid) = (config.hidden_size, config.grid());
        let mut embeddings = p.pp("embeddings");
        let patches = PatchSizes { hidden, image_size: config.image_size, patch_size: config.patch_size };
        let patch_embedding = PatchEmbedding::new(embeddings.pp("patch_embedding"), patches, Bias::Yes)?;
        let positions = [grid * grid, hidden];
        let position_embedding =
            embeddings.pp("position_embedding").get("weight", &positions, lecun(hidden))?;
        let sizes = BlockSizes {
            hidden,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            act: config.hidden_act,
            mask: Mask::Full,
        };
        Ok(Self {
            config: config.clone(),
            patch_embedding,
            position_embedding,
            layers: encoder(p.pp("encoder"), config.num_hidden_layers, sizes)?,
            post_layernorm: LayerNorm::new(p.pp("post_layernorm"), hidden, config.layer_norm_eps)?,
            head: match p.has("head.") {
                true => Some(PoolingHead::new(p.pp("head"), sizes)?),
                false => None,
            },
        })
    }

    /// The config it was built from.
    #[must_use]
    pub fn config(&self) -> &SiglipVisionConfig {
        &self.config
    }

    /// `(b, 3, image_size, image_size)` in [-1, 1] to patch embeddings `(b, n, v)`, row-major over the grid.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.patch_embedding.forward(pixel_values)?.broadcast_add(&self.position_embedding)
    }

    /// Patch features for the language model, as the reference takes them: the output of the second to last block, without
    /// the final norm.
    ///
    /// `(b, 3, image_size, image_size)` to `(b, grid * grid, v)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    ///
    /// Source: timm `get_intermediate_layers(n={depth - 2}, norm=False)`, as Prismatic calls it.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        self.hidden_state(pixel_values, SECOND_TO_LAST)
    }

    /// One of the states that Hugging Face calls `hidden_states`: 0 is the embeddings, what follows are the outputs of the
    /// blocks, none of them normalised. Negative numbers count from the end.
    ///
    /// `(b, 3, image_size, image_size)` to `(b, grid * grid, v)`.
    ///
    /// # Errors
    /// If the shape does not fit, or there is no such state.
    ///
    /// Source: `get_image_features` of transformers' LLaVA.
    pub fn hidden_state(&self, pixel_values: &Tensor, layer: i64) -> Result<Tensor> {
        let Some(num_blocks) = self.config.num_blocks_to(layer) else {
            candle_core::bail!("no state {layer} in a tower of {} blocks", self.layers.len());
        };
        run(&self.layers[..num_blocks], self.embed(pixel_values)?)
    }

    /// One vector per image, `(b, v)`: all blocks, final norm, attention pooling.
    ///
    /// # Errors
    /// If the shape does not fit, or the tower came without its head.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let Some(head) = &self.head else { candle_core::bail!("the tower came without its pooling head") };
        let x = run(&self.layers, self.embed(pixel_values)?)?;
        head.forward(&self.post_layernorm.forward(&x)?)
    }
}

/// Attention pooling: one learned query over all patches, then an MLP.
#[derive(Debug)]
struct PoolingHead {
    probe: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_proj: Linear,
    layernorm: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
}

impl PoolingHead {
    fn new(mut p: ParamBuilder<'_>, sizes: BlockSizes) -> Result<Self> {
        let (hidden, init) = (sizes.hidden, lecun(sizes.hidden));
        let probe = p.get("probe", &[1, 1, hidden], Init::Normal(1.0))?;
        let mut attention = p.pp("attention");
        Ok(Self {
            probe,
            in_proj_weight: attention.get("in_proj_weight", &[3 * hidden, hidden], init)?,
            in_proj_bias: attention.get("in_proj_bias", &[3 * hidden], Init::Constant(0.0))?,
            out_proj: Linear::new(attention.pp("out_proj"), hidden, hidden, Bias::Yes, init)?,
            layernorm: LayerNorm::new(p.pp("layernorm"), hidden, sizes.eps)?,
            mlp: Mlp::new(p.pp("mlp"), sizes)?,
            num_heads: sizes.num_heads,
        })
    }

    fn forward(&self, x_bnv: &Tensor) -> Result<Tensor> {
        let (b, _, hidden) = x_bnv.dims3()?;
        let project = |x: &Tensor, part: usize| {
            let weight = self.in_proj_weight.narrow(0, part * hidden, hidden)?;
            linear(x, &weight, Some(&self.in_proj_bias.narrow(0, part * hidden, hidden)?))
        };
        let probe = self.probe.expand((b, 1, hidden))?.contiguous()?;
        let (q, k, v) = (project(&probe, 0)?, project(x_bnv, 1)?, project(x_bnv, 2)?);
        let mixed = multi_head_attention(&q, &k, &v, self.num_heads, Mask::Full)?;
        let x = self.out_proj.forward(&mixed)?;
        let x = (&x + self.mlp.forward(&self.layernorm.forward(&x)?)?)?;
        x.squeeze(1)
    }
}

/// The text tower.
#[derive(Debug)]
pub struct SiglipTextTower {
    body: TextBody,
    head: Linear,
}

impl SiglipTextTower {
    /// Takes the parameters below `text_model.` of `p`; the head maps to `projection_size`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(
        config: &SiglipTextConfig,
        projection_size: usize,
        mut p: ParamBuilder<'_>,
    ) -> std::result::Result<Self, ModelError> {
        config.validate()?;
        let mut p = p.pp("text_model");
        let hidden = config.hidden_size;
        let text = TextSizes {
            vocab: config.vocab_size,
            positions: config.max_position_embeddings,
            num_layers: config.num_hidden_layers,
        };
        let block = BlockSizes {
            hidden,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            act: config.hidden_act,
            mask: Mask::Full,
        };
        Ok(Self {
            body: TextBody::new(p.reborrow(), text, block)?,
            head: Linear::new(p.pp("head"), hidden, projection_size, Bias::Yes, lecun(hidden))?,
        })
    }

    /// `(b, s)` token ids (u32), `s` the fixed text length, to one vector per text `(b, projection_size)`: the last
    /// position through the head.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pooled(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (_, s) = input_ids.dims2()?;
        let expected = self.body.max_positions()?;
        if s != expected {
            candle_core::bail!("texts of {s} tokens, SigLIP was trained on {expected}");
        }
        let x = self.body.final_layer_norm.forward(&self.body.forward(input_ids)?)?;
        let last = x.narrow(1, s - 1, 1)?.squeeze(1)?.contiguous()?;
        self.head.forward(&last)
    }
}

/// Image and text tower with the temperature and bias of the sigmoid loss.
#[derive(Debug)]
pub struct Siglip {
    /// Vision half.
    pub vision: SiglipVisionTower,
    /// Text half.
    pub text: SiglipTextTower,
    logit_scale: Tensor,
    logit_bias: Tensor,
    max_text_len: usize,
}

impl Siglip {
    /// Builds both towers, named as Hugging Face's `SiglipModel`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &SiglipConfig, mut p: ParamBuilder<'_>) -> std::result::Result<Self, ModelError> {
        Ok(Self {
            vision: SiglipVisionTower::new(&config.vision_config, p.reborrow())?,
            text: SiglipTextTower::new(&config.text_config, config.vision_config.hidden_size, p.reborrow())?,
            // Starting values of the SigLIP paper: temperature 10, bias -10.
            logit_scale: p.get("logit_scale", &[1], Init::Constant(10f64.ln()))?,
            logit_bias: p.get("logit_bias", &[1], Init::Constant(-10.0))?,
            max_text_len: config.text_config.max_position_embeddings,
        })
    }

    /// Token ids of a batch of texts as the text tower takes them: cut or padded on the right, `(b, s)` u32.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn text_batch(&self, texts: &[Vec<i64>], pad_id: i64) -> Result<Tensor> {
        let mut ids = Vec::with_capacity(texts.len() * self.max_text_len);
        for text in texts {
            let padded = text.iter().copied().chain(std::iter::repeat(pad_id)).take(self.max_text_len);
            ids.extend(padded.map(|id| id as u32));
        }
        Tensor::from_vec(ids, (texts.len(), self.max_text_len), self.logit_scale.device())
    }

    /// Unit vectors of images, `(b, v)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Result<Tensor> {
        normalize(&self.vision.pooled(pixel_values)?)
    }

    /// Unit vectors of texts, `(b, v)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn text_embeds(&self, input_ids: &Tensor) -> Result<Tensor> {
        normalize(&self.text.pooled(input_ids)?)
    }

    /// Sigmoid loss of a batch of matching pairs: every other combination is a negative.
    ///
    /// `-(1/b) sum_ij log sigmoid(z_ij (t cos_ij + bias))`, `z` 1 on the diagonal and -1 elsewhere; a scalar.
    ///
    /// # Errors
    /// If the numbers of images and texts differ.
    ///
    /// Source: Zhai et al., "Sigmoid Loss for Language Image Pre-Training", 2023.
    pub fn loss(&self, pixel_values: &Tensor, input_ids: &Tensor) -> Result<Tensor> {
        let (images, texts) = (self.image_embeds(pixel_values)?, self.text_embeds(input_ids)?);
        let b = images.dim(0)?;
        let cosines = linear(&texts, &images, None)?;
        let logits = cosines.broadcast_mul(&self.logit_scale.exp()?)?.broadcast_add(&self.logit_bias)?;
        let signs: Vec<f32> = (0..b * b).map(|at| if at / b == at % b { 1.0 } else { -1.0 }).collect();
        let margin = (logits * Tensor::from_vec(signs, (b, b), images.device())?)?;
        // -log sigmoid(m) = log(1 + exp(-m)) = max(-m, 0) + log(1 + exp(-|m|)), which cannot overflow.
        let loss = (margin.neg()?.relu()? + (margin.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
        loss.sum_all()? / b as f64
    }
}
