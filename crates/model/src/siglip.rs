//! SigLIP: vision tower, text tower, and the pair trained with the sigmoid loss.
//!
//! Shape letters: `b` batch, `n` patches, `s` text positions, `v` hidden size.

use crate::ModelError;
use crate::layers::{Bias, LayerNorm, Linear, full_attention, lecun};
use crate::params::{Init, ParamBuilder};
use candle_core::{D, Result, Tensor};
use oqvl_kernels::linear;
use serde::{Deserialize, Serialize};

/// GELU variants of SigLIP checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HiddenAct {
    /// Exact GELU, as timm's `vit_so400m_patch14_siglip_384` (the reference's tower).
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation, as Hugging Face's SigLIP configs.
    #[serde(rename = "gelu_pytorch_tanh")]
    GeluPytorchTanh,
}

impl HiddenAct {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluPytorchTanh => x.gelu(),
        }
    }
}

/// Vision half, with the keys of Hugging Face's `SiglipVisionConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiglipVisionConfig {
    /// Width `v`.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks; at least 2, because features are taken before the last.
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

impl SiglipVisionConfig {
    /// Patches along one edge; pixels right and below the last whole patch are unused.
    #[must_use]
    pub fn grid(&self) -> usize {
        self.image_size / self.patch_size
    }

    pub(crate) fn validate(&self) -> std::result::Result<(), ModelError> {
        let wrong = |what: String| Err(ModelError::Config(format!("vision: {what}")));
        if self.patch_size == 0 || self.grid() == 0 {
            return wrong(format!("image_size {} holds no patch of {}", self.image_size, self.patch_size));
        }
        if self.num_attention_heads == 0 || !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            return wrong(format!(
                "{} heads do not divide hidden_size {}",
                self.num_attention_heads, self.hidden_size
            ));
        }
        if self.num_hidden_layers < 2 {
            return wrong(format!("num_hidden_layers must be at least 2, got {}", self.num_hidden_layers));
        }
        Ok(())
    }
}

/// Text half, with the keys of Hugging Face's `SiglipTextConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiglipTextConfig {
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Number of heads.
    pub num_attention_heads: usize,
    /// Every text is cut or padded to this many tokens; pads are attended, as SigLIP was trained.
    pub max_position_embeddings: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
}

/// Both halves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SiglipConfig {
    /// Vision half.
    pub vision_config: SiglipVisionConfig,
    /// Text half.
    pub text_config: SiglipTextConfig,
}

/// One pre-norm transformer block.
#[derive(Debug)]
struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
}

/// Width, MLP width, heads, epsilon, activation of a block.
#[derive(Clone, Copy)]
struct BlockSizes {
    hidden: usize,
    intermediate: usize,
    num_heads: usize,
    eps: f64,
    act: HiddenAct,
}

#[derive(Debug)]
struct Mlp {
    fc1: Linear,
    fc2: Linear,
    act: HiddenAct,
}

impl Mlp {
    fn new(mut p: ParamBuilder<'_>, sizes: BlockSizes) -> Result<Self> {
        let (hidden, intermediate) = (sizes.hidden, sizes.intermediate);
        Ok(Self {
            fc1: Linear::new(p.pp("fc1"), hidden, intermediate, Bias::Yes, lecun(hidden))?,
            fc2: Linear::new(p.pp("fc2"), intermediate, hidden, Bias::Yes, lecun(intermediate))?,
            act: sizes.act,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.act.forward(&self.fc1.forward(x)?)?)
    }
}

impl EncoderLayer {
    fn new(mut p: ParamBuilder<'_>, sizes: BlockSizes) -> Result<Self> {
        let init = lecun(sizes.hidden);
        let mut attention = p.pp("self_attn");
        let mut projection =
            |name: &str| Linear::new(attention.pp(name), sizes.hidden, sizes.hidden, Bias::Yes, init);
        let (q_proj, k_proj) = (projection("q_proj")?, projection("k_proj")?);
        let (v_proj, out_proj) = (projection("v_proj")?, projection("out_proj")?);
        Ok(Self {
            layer_norm1: LayerNorm::new(p.pp("layer_norm1"), sizes.hidden, sizes.eps)?,
            q_proj,
            k_proj,
            v_proj,
            out_proj,
            layer_norm2: LayerNorm::new(p.pp("layer_norm2"), sizes.hidden, sizes.eps)?,
            mlp: Mlp::new(p.pp("mlp"), sizes)?,
            num_heads: sizes.num_heads,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normal = self.layer_norm1.forward(x)?;
        let (q, k) = (self.q_proj.forward(&normal)?, self.k_proj.forward(&normal)?);
        let mixed = full_attention(&q, &k, &self.v_proj.forward(&normal)?, self.num_heads)?;
        let x = (x + self.out_proj.forward(&mixed)?)?;
        &x + self.mlp.forward(&self.layer_norm2.forward(&x)?)?
    }
}

fn encoder(mut p: ParamBuilder<'_>, num_layers: usize, sizes: BlockSizes) -> Result<Vec<EncoderLayer>> {
    let mut layers = p.pp("layers");
    (0..num_layers).map(|layer| EncoderLayer::new(layers.pp(layer), sizes)).collect()
}

/// The vision tower.
#[derive(Debug)]
pub struct SiglipVisionTower {
    config: SiglipVisionConfig,
    patch_weight: Tensor,
    patch_bias: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
    head: PoolingHead,
}

impl SiglipVisionTower {
    /// Takes the parameters below `vision_model.` of `p`, named as in Hugging Face's checkpoints.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(
        config: &SiglipVisionConfig,
        mut p: ParamBuilder<'_>,
    ) -> std::result::Result<Self, ModelError> {
        config.validate()?;
        let mut p = p.pp("vision_model");
        let (hidden, patch, grid) = (config.hidden_size, config.patch_size, config.grid());
        let mut embeddings = p.pp("embeddings");
        let mut conv = embeddings.pp("patch_embedding");
        let patch_weight = conv.get("weight", &[hidden, 3, patch, patch], lecun(3 * patch * patch))?;
        let patch_bias = conv.get("bias", &[hidden], Init::Constant(0.0))?;
        let positions = (grid * grid, hidden);
        let init = lecun(hidden);
        let position_embedding =
            embeddings.pp("position_embedding").get("weight", &[positions.0, positions.1], init)?;
        let sizes = BlockSizes {
            hidden,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            act: config.hidden_act,
        };
        Ok(Self {
            config: config.clone(),
            patch_weight,
            patch_bias,
            position_embedding,
            layers: encoder(p.pp("encoder"), config.num_hidden_layers, sizes)?,
            post_layernorm: LayerNorm::new(p.pp("post_layernorm"), hidden, config.layer_norm_eps)?,
            head: PoolingHead::new(p.pp("head"), sizes)?,
        })
    }

    /// The config it was built from.
    #[must_use]
    pub fn config(&self) -> &SiglipVisionConfig {
        &self.config
    }

    /// `(b, 3, image_size, image_size)` in [-1, 1] to patch embeddings `(b, n, v)`, row-major over the grid.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, channels, height, width) = pixel_values.dims4()?;
        let edge = self.config.image_size;
        if channels != 3 || height != edge || width != edge {
            candle_core::bail!("expected pixel_values (b, 3, {edge}, {edge}), got {:?}", pixel_values.dims());
        }
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        // The convolution has stride = kernel, so it is one product over unfolded patches.
        let used = pixel_values.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?.contiguous()?;
        let patches = used
            .reshape(vec![b, 3, grid, patch, grid, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((b, grid * grid, 3 * patch * patch))?;
        let weight = self.patch_weight.reshape((self.config.hidden_size, 3 * patch * patch))?;
        linear(&patches, &weight, Some(&self.patch_bias))?.broadcast_add(&self.position_embedding)
    }

    /// Patch features for the language model: the output of the second to last block, without the final norm.
    ///
    /// `(b, 3, image_size, image_size)` to `(b, grid * grid, v)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    ///
    /// Source: timm `get_intermediate_layers(n={depth - 2}, norm=False)`, as Prismatic calls it.
    pub fn patch_features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let used = &self.layers[..self.layers.len() - 1];
        used.iter().try_fold(self.embed(pixel_values)?, |x, layer| layer.forward(&x))
    }

    /// One vector per image, `(b, v)`: all blocks, final norm, attention pooling.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let x = self.layers.iter().try_fold(self.embed(pixel_values)?, |x, layer| layer.forward(&x))?;
        self.head.forward(&self.post_layernorm.forward(&x)?)
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
        let mixed =
            full_attention(&project(&probe, 0)?, &project(x_bnv, 1)?, &project(x_bnv, 2)?, self.num_heads)?;
        let x = self.out_proj.forward(&mixed)?;
        let x = (&x + self.mlp.forward(&self.layernorm.forward(&x)?)?)?;
        x.squeeze(1)
    }
}

/// The text tower.
#[derive(Debug)]
pub struct SiglipTextTower {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    final_layer_norm: LayerNorm,
    head: Linear,
}

impl SiglipTextTower {
    /// Takes the parameters below `text_model.` of `p`; the head maps to `projection_size`.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn new(config: &SiglipTextConfig, projection_size: usize, mut p: ParamBuilder<'_>) -> Result<Self> {
        let mut p = p.pp("text_model");
        let (hidden, init) = (config.hidden_size, lecun(config.hidden_size));
        let mut embeddings = p.pp("embeddings");
        let token_embedding =
            embeddings.pp("token_embedding").get("weight", &[config.vocab_size, hidden], init)?;
        let positions = [config.max_position_embeddings, hidden];
        let position_embedding = embeddings.pp("position_embedding").get("weight", &positions, init)?;
        let sizes = BlockSizes {
            hidden,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            act: config.hidden_act,
        };
        Ok(Self {
            token_embedding,
            position_embedding,
            layers: encoder(p.pp("encoder"), config.num_hidden_layers, sizes)?,
            final_layer_norm: LayerNorm::new(p.pp("final_layer_norm"), hidden, config.layer_norm_eps)?,
            head: Linear::new(p.pp("head"), hidden, projection_size, Bias::Yes, init)?,
        })
    }

    /// `(b, s)` token ids (u32), `s` the fixed text length, to one vector per text `(b, projection_size)`: the last
    /// position through the head.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pooled(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (b, s) = input_ids.dims2()?;
        let hidden = self.token_embedding.dim(1)?;
        let tokens =
            self.token_embedding.index_select(&input_ids.flatten_all()?, 0)?.reshape((b, s, hidden))?;
        let x = tokens.broadcast_add(&self.position_embedding)?;
        let x = self.layers.iter().try_fold(x, |x, layer| layer.forward(&x))?;
        let last = self.final_layer_norm.forward(&x)?.narrow(1, s - 1, 1)?.squeeze(1)?.contiguous()?;
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

fn normalize(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?)
}
