//! How large everything is, and where parameters lie.

use anyhow::Context as _;
use oqvl_kernels::adamw::DecayRanges;
use std::ops::Range;

/// Sizes of the networks and of what goes through them.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Rows of a pack.
    pub rows: usize,
    /// Images of a pack.
    pub images: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Channels of the language model.
    pub hidden: usize,
    /// Channels of its MLP.
    pub intermediate: usize,
    /// Its layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key (and value) heads.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Positions that angles are known for.
    pub positions: usize,
    /// Added to the mean of squares of each RMSNorm.
    pub rms_eps: f64,
    /// Channels of the vision tower's patches.
    pub vision: usize,
    /// Patches along a side of an image.
    pub grid: usize,
    /// Tokens along a side of an image.
    pub pooled: usize,
    /// Rows whose logits there are at one time.
    pub chunk_rows: usize,
}

impl Sizes {
    /// Refuses sizes of which there is nothing to train, or whose products have no number.
    pub(crate) fn check(&self) -> anyhow::Result<()> {
        let Self { rows, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, .. } = *self;
        let Self { positions, vision, grid, pooled, chunk_rows, .. } = *self;
        let sizes = [rows, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim];
        let others = [positions, vision, grid, pooled, chunk_rows];
        anyhow::ensure!(!sizes.iter().chain(&others).any(|size| *size == 0), "{self:?}: a size is 0");
        // The largest matrices are products of three of these and a small number.
        const MAX: usize = 1 << 20;
        let largest = sizes.iter().chain(&others).chain([&self.images]).max();
        anyhow::ensure!(largest.is_some_and(|size| *size <= MAX), "{self:?}: sizes go up to {MAX}");
        Ok(())
    }

    /// Columns of fused queries, keys and values.
    #[must_use]
    pub fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Channels of all query heads.
    #[must_use]
    pub fn attended(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Tokens of all images of a pack.
    #[must_use]
    pub fn visual_rows(&self) -> usize {
        self.images * self.pooled * self.pooled
    }
}

/// Where the parameters of a layer are.
#[derive(Debug, Clone)]
pub(crate) struct LayerRanges {
    pub(crate) attention_norm: Range<usize>,
    /// Query, key and value weights, one below the other: `(qkv, hidden)`.
    pub(crate) qkv: Range<usize>,
    pub(crate) qkv_bias: Range<usize>,
    pub(crate) out: Range<usize>,
    pub(crate) mlp_norm: Range<usize>,
    /// Gate and up weights, one below the other: `(2 * intermediate, hidden)`.
    pub(crate) gate_up: Range<usize>,
    pub(crate) down: Range<usize>,
}

/// Where each parameter lies in a flat buffer: those that one product takes are neighbours.
#[derive(Debug, Clone)]
pub struct Layout {
    tensors: Vec<(String, Range<usize>, f32)>,
    pub(crate) embedding: Range<usize>,
    pub(crate) layers: Vec<LayerRanges>,
    pub(crate) norm: Range<usize>,
    /// Weight and bias of the projector's first and second layer.
    pub(crate) projector: [[Range<usize>; 2]; 2],
}

impl Layout {
    /// Parameters have the names of a checkpoint; matrices decay by `weight_decay`, vectors do not.
    #[must_use]
    pub fn new(sizes: &Sizes, weight_decay: f32) -> Self {
        let Sizes { vocab, hidden, intermediate, head_dim, vision, .. } = *sizes;
        let mut tensors: Vec<(String, Range<usize>, f32)> = Vec::new();
        let mut add = |name: String, rows: usize, cols: usize, decay: f32| {
            let start = tensors.last().map_or(0, |(_, range, _)| range.end);
            tensors.push((name, start..start + rows * cols, decay));
            start..start + rows * cols
        };
        let mut matrix = |name: String, rows, cols| add(name, rows, cols, weight_decay);
        let embedding = matrix("language_model.model.embed_tokens.weight".to_owned(), vocab, hidden);
        let (q, kv) = (sizes.attended(), sizes.kv_heads * head_dim);
        let mut layers = Vec::new();
        for layer in 0..sizes.layers {
            let name = |part: &str| format!("language_model.model.layers.{layer}.{part}");
            let attention_norm = add(name("input_layernorm.weight"), 1, hidden, 0.0);
            let mut fused = |parts: &[(&str, usize, usize)], decay| {
                let ranges: Vec<Range<usize>> =
                    parts.iter().map(|(part, rows, cols)| add(name(part), *rows, *cols, decay)).collect();
                ranges[0].start..ranges[ranges.len() - 1].end
            };
            let qkv = [
                ("self_attn.q_proj.weight", q, hidden),
                ("self_attn.k_proj.weight", kv, hidden),
                ("self_attn.v_proj.weight", kv, hidden),
            ];
            let bias = [
                ("self_attn.q_proj.bias", q, 1),
                ("self_attn.k_proj.bias", kv, 1),
                ("self_attn.v_proj.bias", kv, 1),
            ];
            let gate_up = [
                ("mlp.gate_proj.weight", intermediate, hidden),
                ("mlp.up_proj.weight", intermediate, hidden),
            ];
            layers.push(LayerRanges {
                attention_norm,
                qkv: fused(&qkv, weight_decay),
                qkv_bias: fused(&bias, 0.0),
                out: fused(&[("self_attn.o_proj.weight", hidden, q)], weight_decay),
                mlp_norm: fused(&[("post_attention_layernorm.weight", 1, hidden)], 0.0),
                gate_up: fused(&gate_up, weight_decay),
                down: fused(&[("mlp.down_proj.weight", hidden, intermediate)], weight_decay),
            });
        }
        let norm = add("language_model.model.norm.weight".to_owned(), 1, hidden, 0.0);
        let projector = [(0, vision), (2, hidden)].map(|(index, inputs)| {
            let name = |part: &str| format!("projector.mlp_projector.{index}.{part}");
            [add(name("weight"), hidden, inputs, weight_decay), add(name("bias"), hidden, 1, 0.0)]
        });
        Self { tensors, embedding, layers, norm, projector }
    }

    /// Parameters of all tensors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |(_, range, _)| range.end)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Every tensor of a checkpoint: its name, and where it lies.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        self.tensors.iter().map(|(name, range, _)| (name.as_str(), range.clone()))
    }

    pub(crate) fn decay(&self) -> anyhow::Result<DecayRanges> {
        let ranges: Vec<(usize, f32)> =
            self.tensors.iter().map(|(_, range, decay)| (range.len(), *decay)).collect();
        DecayRanges::new(&ranges).context("parameters are multiples of 8")
    }
}
