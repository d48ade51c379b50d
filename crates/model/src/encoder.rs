//! The pre-norm transformer encoder of the towers of SigLIP and CLIP.

use crate::layers::{Bias, LayerNorm, Linear, in_f32, lecun, multi_head_attention};
use crate::params::{Init, ParamBuilder};
use candle_core::{Device, Result, Tensor};
use oqvl_kernels::{Mask, linear};
use serde::{Deserialize, Serialize};

/// GELU variants of image-text checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HiddenAct {
    /// Exact GELU, as timm's `vit_so400m_patch14_siglip_384` (the reference's tower) and open_clip's own models.
    #[serde(rename = "gelu")]
    Gelu,
    /// The tanh approximation, as Hugging Face's SigLIP configs.
    #[serde(rename = "gelu_pytorch_tanh")]
    GeluPytorchTanh,
    /// `x * sigmoid(1.702 x)`, as OpenAI's CLIP models.
    #[serde(rename = "quick_gelu")]
    QuickGelu,
}

impl HiddenAct {
    fn forward(self, x: &Tensor) -> Result<Tensor> {
        /// Source: `QuickGELU`, openai/CLIP `clip/model.py`.
        const SLOPE: f64 = 1.702;
        in_f32(x, |x| match self {
            Self::Gelu => x.gelu_erf(),
            Self::GeluPytorchTanh => x.gelu(),
            Self::QuickGelu => (x * SLOPE)?.silu()? / SLOPE,
        })
    }
}

/// Sizes of an image and of the patches it is cut into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PatchSizes {
    pub(crate) hidden: usize,
    pub(crate) image_size: usize,
    pub(crate) patch_size: usize,
}

/// A convolution whose stride is its kernel: one product over unfolded patches.
#[derive(Debug)]
pub(crate) struct PatchEmbedding {
    weight: Tensor,
    bias: Option<Tensor>,
    sizes: PatchSizes,
}

impl PatchEmbedding {
    pub(crate) fn new(mut p: ParamBuilder<'_>, sizes: PatchSizes, bias: Bias) -> Result<Self> {
        let (hidden, patch) = (sizes.hidden, sizes.patch_size);
        let weight = p.get("weight", &[hidden, 3, patch, patch], lecun(3 * patch * patch))?;
        let bias = match bias {
            Bias::Yes => Some(p.get("bias", &[hidden], Init::Constant(0.0))?),
            Bias::No => None,
        };
        Ok(Self { weight, bias, sizes })
    }

    /// `(b, 3, image_size, image_size)` to `(b, n, hidden)`, row-major over the grid. Pixels right and below the last
    /// whole patch are unused. Pixels come in any float and are given the weights' own.
    pub(crate) fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, channels, height, width) = pixel_values.dims4()?;
        let PatchSizes { hidden, image_size: edge, patch_size: patch } = self.sizes;
        if channels != 3 || height != edge || width != edge {
            candle_core::bail!("expected pixel_values (b, 3, {edge}, {edge}), got {:?}", pixel_values.dims());
        }
        let grid = edge / patch;
        let pixel_values = pixel_values.to_dtype(self.weight.dtype())?;
        let used = pixel_values.narrow(2, 0, grid * patch)?.narrow(3, 0, grid * patch)?.contiguous()?;
        let patches = used
            .reshape(vec![b, 3, grid, patch, grid, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((b, grid * grid, 3 * patch * patch))?;
        linear(&patches, &self.weight.reshape((hidden, 3 * patch * patch))?, self.bias.as_ref())
    }
}

/// Width, MLP width, heads, epsilon, activation and mask of a block.
#[derive(Clone, Copy)]
pub(crate) struct BlockSizes {
    pub(crate) hidden: usize,
    pub(crate) intermediate: usize,
    pub(crate) num_heads: usize,
    pub(crate) eps: f64,
    pub(crate) act: HiddenAct,
    pub(crate) mask: Mask,
}

#[derive(Debug)]
pub(crate) struct Mlp {
    fc1: Linear,
    fc2: Linear,
    act: HiddenAct,
}

impl Mlp {
    pub(crate) fn new(mut p: ParamBuilder<'_>, sizes: BlockSizes) -> Result<Self> {
        let (hidden, intermediate) = (sizes.hidden, sizes.intermediate);
        Ok(Self {
            fc1: Linear::new(p.pp("fc1"), hidden, intermediate, Bias::Yes, lecun(hidden))?,
            fc2: Linear::new(p.pp("fc2"), intermediate, hidden, Bias::Yes, lecun(intermediate))?,
            act: sizes.act,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.fc2.forward(&self.act.forward(&self.fc1.forward(x)?)?)
    }
}

/// One pre-norm transformer block.
#[derive(Debug)]
pub(crate) struct EncoderLayer {
    layer_norm1: LayerNorm,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    layer_norm2: LayerNorm,
    mlp: Mlp,
    num_heads: usize,
    mask: Mask,
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
            mask: sizes.mask,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let normal = self.layer_norm1.forward(x)?;
        let (q, k) = (self.q_proj.forward(&normal)?, self.k_proj.forward(&normal)?);
        let v = self.v_proj.forward(&normal)?;
        let mixed = multi_head_attention(&q, &k, &v, self.num_heads, self.mask)?;
        let x = (x + self.out_proj.forward(&mixed)?)?;
        &x + self.mlp.forward(&self.layer_norm2.forward(&x)?)?
    }
}

/// The blocks below `layers.` of `p`.
pub(crate) fn encoder(
    mut p: ParamBuilder<'_>,
    num_layers: usize,
    sizes: BlockSizes,
) -> Result<Vec<EncoderLayer>> {
    let mut layers = p.pp("layers");
    (0..num_layers).map(|layer| EncoderLayer::new(layers.pp(layer), sizes)).collect()
}

/// `x` through the blocks, `(b, s, hidden)`.
pub(crate) fn run(layers: &[EncoderLayer], x: Tensor) -> Result<Tensor> {
    layers.iter().try_fold(x, |x, layer| layer.forward(&x))
}

/// What the text towers of SigLIP and CLIP have in common: embeddings, blocks and the norm behind them.
#[derive(Debug)]
pub(crate) struct TextBody {
    token_embedding: Tensor,
    position_embedding: Tensor,
    layers: Vec<EncoderLayer>,
    pub(crate) final_layer_norm: LayerNorm,
}

/// Rows of the two embeddings and number of blocks of a text tower.
#[derive(Clone, Copy)]
pub(crate) struct TextSizes {
    pub(crate) vocab: usize,
    pub(crate) positions: usize,
    pub(crate) num_layers: usize,
}

impl TextBody {
    /// Takes `embeddings.…`, `encoder.…` and `final_layer_norm.…` of `p`.
    pub(crate) fn new(mut p: ParamBuilder<'_>, text: TextSizes, block: BlockSizes) -> Result<Self> {
        let (hidden, init) = (block.hidden, lecun(block.hidden));
        let mut embeddings = p.pp("embeddings");
        let token_embedding = embeddings.pp("token_embedding").get("weight", &[text.vocab, hidden], init)?;
        let position_embedding =
            embeddings.pp("position_embedding").get("weight", &[text.positions, hidden], init)?;
        Ok(Self {
            token_embedding,
            position_embedding,
            layers: encoder(p.pp("encoder"), text.num_layers, block)?,
            final_layer_norm: LayerNorm::new(p.pp("final_layer_norm"), hidden, block.eps)?,
        })
    }

    /// Where the parameters are.
    pub(crate) fn device(&self) -> &Device {
        self.token_embedding.device()
    }

    /// Rows of the token embedding.
    pub(crate) fn vocab_size(&self) -> Result<usize> {
        self.token_embedding.dim(0)
    }

    /// Rows of the position embedding.
    pub(crate) fn max_positions(&self) -> Result<usize> {
        self.position_embedding.dim(0)
    }

    /// `(b, s)` token ids (u32), `s` up to the number of positions, to `(b, s, hidden)`, not yet normalised.
    pub(crate) fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (b, s) = input_ids.dims2()?;
        let hidden = self.token_embedding.dim(1)?;
        let tokens =
            self.token_embedding.index_select(&input_ids.flatten_all()?, 0)?.reshape((b, s, hidden))?;
        run(&self.layers, tokens.broadcast_add(&self.position_embedding.narrow(0, 0, s)?)?)
    }
}
