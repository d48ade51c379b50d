//! The vision tower: SigLIP, frozen, so that there is only a forward.
//!
//! Heads of 72 channels and an MLP of 4304 are no sizes that GPUs like: loaded with more channels than the checkpoint has, the
//! tower computes the same. A channel more of queries and keys is zero in both, and adds nothing to their products, whose scale
//! is still that of the channels of the checkpoint; one of values is zero, and meets a column of zeros in the projection that
//! follows; one of the MLP is the GELU of zero, which is zero, and meets a column of zeros too.

use crate::training::{Linear, floats};
use anyhow::Context as _;
use oqvl_kernels::Rows;
use oqvl_kernels::attention::{FusedForward, Mask, Sequences, Shape};
use oqvl_kernels::backend::{Backend, Half, HalfMut};
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::device::{Float as _, Memory};
use oqvl_kernels::norm::{self, Norm};
use oqvl_kernels::patchify::Patches;
use std::collections::BTreeMap;
use std::ops::Range;

/// Weights by their names in a checkpoint, each flat, row after row.
pub type NamedWeights = BTreeMap<String, Vec<f64>>;

/// Kernels read 16 bytes at once: parameters begin at multiples of so many elements.
const UNIT: usize = 8;
/// Red, green and blue.
const CHANNELS: usize = 3;

/// Sizes of a tower, and of what goes through it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VisionSizes {
    /// Images at a time.
    pub batch: usize,
    /// Patches along a side of an image.
    pub grid: usize,
    /// Pixels along a side of a patch.
    pub patch_edge: usize,
    /// Channels.
    pub hidden: usize,
    /// Blocks that are run, at least one: the features are the output of the last of them. The reference takes those of the
    /// block before the last, so that of 27 blocks 26 are run; the last need not even be in the checkpoint.
    pub layers: usize,
    /// Heads.
    pub heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// The same with those that are filled up; `head_dim` if none are.
    pub padded_head_dim: usize,
    /// Channels of the MLP.
    pub intermediate: usize,
    /// The same with those that are filled up; `intermediate` if none are.
    pub padded_intermediate: usize,
    /// Added to the variance of each LayerNorm.
    pub layer_norm_eps: f64,
    /// The MLP's activation. The reference's tower is timm's, which has the exact form; the same weights in transformers have
    /// the other.
    pub activation: Gelu,
    /// Mean of each channel, of pixels in [0, 1].
    pub mean: [f64; 3],
    /// Deviation of each channel.
    pub deviation: [f64; 3],
}

impl VisionSizes {
    /// Patches of an image.
    #[must_use]
    pub fn tokens(&self) -> usize {
        self.grid * self.grid
    }

    /// Patches of all images.
    #[must_use]
    pub fn rows(&self) -> usize {
        self.batch * self.tokens()
    }

    /// Pixels along a side of an image. Where the edge of an image is no multiple of that of a patch, as 384 is none of 14, the
    /// pixels right and below the last whole patch are not among them.
    #[must_use]
    pub fn image_edge(&self) -> usize {
        self.grid * self.patch_edge
    }

    /// Columns of fused queries, keys and values.
    fn qkv(&self) -> usize {
        3 * self.attended()
    }

    /// Channels of all heads.
    fn attended(&self) -> usize {
        self.heads * self.padded_head_dim
    }

    fn patches(&self) -> Patches {
        let Self { batch, grid, patch_edge: edge, mean, deviation, .. } = *self;
        Patches { batch, grid_rows: grid, grid_cols: grid, edge, mean, deviation }
    }

    fn norm(&self) -> Norm {
        Norm { rows: self.rows(), hidden: self.hidden, eps: self.layer_norm_eps }
    }

    /// Scores are scaled by the channels that the checkpoint has.
    fn attention(&self) -> anyhow::Result<Shape> {
        let tokens = self.tokens();
        let sequences = Sequences::Batch { batch: self.batch, q_len: tokens, kv_len: tokens };
        let shape = Shape::new((self.heads, self.heads), self.padded_head_dim, Mask::Full, sequences)?;
        Ok(Shape { scale: (self.head_dim as f64).sqrt().recip(), ..shape })
    }

    /// Every tensor of a checkpoint that the tower reads: its name, as Hugging Face has it, and its number of elements.
    ///
    /// # Errors
    /// If a patch is too large.
    pub fn tensors(&self) -> anyhow::Result<Vec<(String, usize)>> {
        let layout = Layout::new(self)?;
        Ok(layout.tensors.into_iter().map(|tensor| (tensor.name, tensor.chunks * tensor.chunk)).collect())
    }

    fn check(&self) -> anyhow::Result<()> {
        let Self { batch, grid, patch_edge, hidden, layers, heads, head_dim, intermediate, .. } = *self;
        let sizes = [batch, grid, patch_edge, hidden, layers, heads, head_dim, intermediate];
        anyhow::ensure!(!sizes.contains(&0), "a tower of {self:?} has no features");
        let Self { padded_head_dim, padded_intermediate, .. } = *self;
        for (plain, padded) in [(head_dim, padded_head_dim), (intermediate, padded_intermediate)] {
            anyhow::ensure!(plain <= padded, "{plain} channels cannot be filled up to {padded}");
        }
        // Then there is no gap between queries, keys and values; the kernels take no others.
        let fits = padded_head_dim.is_multiple_of(UNIT);
        anyhow::ensure!(fits, "{padded_head_dim} channels of a head are no multiple of {UNIT}");
        Ok(())
    }
}

/// A tensor of a checkpoint, and where it goes: in chunks, each of which is filled up with zeros.
#[derive(Debug)]
struct Tensor {
    name: String,
    chunks: usize,
    chunk: usize,
    padded_chunk: usize,
    /// How often it is there, one after the other.
    copies: usize,
    start: usize,
}

impl Tensor {
    fn range(&self) -> Range<usize> {
        self.start..self.start + self.copies * self.chunks * self.padded_chunk
    }

    /// What lies in its range.
    fn elements(&self, weights: &NamedWeights) -> anyhow::Result<Vec<f64>> {
        let Self { name, chunks, chunk, padded_chunk, copies, .. } = self;
        let values = weights.get(name).with_context(|| format!("no {name} in the checkpoint"))?;
        let (found, expected) = (values.len(), chunks * chunk);
        anyhow::ensure!(found == expected, "{name} has {found} elements, not {expected}");
        let mut padded = vec![0.0; chunks * padded_chunk];
        for (from, to) in values.chunks_exact(*chunk).zip(padded.chunks_exact_mut(*padded_chunk)) {
            to[..*chunk].copy_from_slice(from);
        }
        Ok(padded.repeat(*copies))
    }
}

/// Gain and bias of a LayerNorm, or weight and bias of a product.
type WithBias = [Range<usize>; 2];

/// Where the parameters of a block are.
#[derive(Debug)]
struct Block {
    attention_norm: WithBias,
    /// Query, key and value weights, one below the other.
    qkv: WithBias,
    out: WithBias,
    mlp_norm: WithBias,
    fc1: WithBias,
    fc2: WithBias,
}

/// Where each parameter lies in a flat buffer.
#[derive(Debug, Default)]
struct Layout {
    tensors: Vec<Tensor>,
    len: usize,
    patch: WithBias,
    /// Of every image, `(rows, hidden)`.
    positions: Range<usize>,
    blocks: Vec<Block>,
}

impl Layout {
    fn new(sizes: &VisionSizes) -> anyhow::Result<Self> {
        sizes.check()?;
        let hidden = sizes.hidden;
        let mut layout = Self::default();
        let used_cols = CHANNELS * sizes.patch_edge * sizes.patch_edge;
        let name = |part: &str| format!("vision_model.embeddings.{part}");
        layout.patch = [
            layout.filled(name("patch_embedding.weight"), hidden, [used_cols, sizes.patches().cols()?]),
            layout.plain(name("patch_embedding.bias"), hidden),
        ];
        let positions = [sizes.tokens() * hidden; 2];
        layout.positions = layout.tensor(name("position_embedding.weight"), 1, positions, sizes.batch);
        for index in 0..sizes.layers {
            let block = layout.block(sizes, index);
            layout.blocks.push(block);
        }
        Ok(layout)
    }

    fn block(&mut self, sizes: &VisionSizes, index: usize) -> Block {
        let VisionSizes { hidden, heads, .. } = *sizes;
        let head_dim = [sizes.head_dim, sizes.padded_head_dim];
        let intermediate = [sizes.intermediate, sizes.padded_intermediate];
        let name = |part: &str| format!("vision_model.encoder.layers.{index}.{part}");
        let attention_norm =
            ["weight", "bias"].map(|of| self.plain(name(&format!("layer_norm1.{of}")), hidden));
        let qkv = [("weight", hidden), ("bias", 1)].map(|(of, inputs)| {
            let parts = ["q_proj", "k_proj", "v_proj"].map(|part| {
                self.filled(
                    name(&format!("self_attn.{part}.{of}")),
                    heads,
                    head_dim.map(|rows| rows * inputs),
                )
            });
            parts[0].start..parts[2].end
        });
        let out = [
            self.filled(name("self_attn.out_proj.weight"), hidden * heads, head_dim),
            self.plain(name("self_attn.out_proj.bias"), hidden),
        ];
        let mlp_norm = ["weight", "bias"].map(|of| self.plain(name(&format!("layer_norm2.{of}")), hidden));
        let fc1 = [("weight", hidden), ("bias", 1)].map(|(of, inputs)| {
            self.filled(name(&format!("mlp.fc1.{of}")), 1, intermediate.map(|rows| rows * inputs))
        });
        let fc2 = [
            self.filled(name("mlp.fc2.weight"), hidden, intermediate),
            self.plain(name("mlp.fc2.bias"), hidden),
        ];
        Block { attention_norm, qkv, out, mlp_norm, fc1, fc2 }
    }

    /// A tensor of which nothing is filled up.
    fn plain(&mut self, name: String, len: usize) -> Range<usize> {
        self.filled(name, 1, [len; 2])
    }

    /// A tensor of chunks: how long they are in the checkpoint, and how long here.
    fn filled(&mut self, name: String, chunks: usize, lens: [usize; 2]) -> Range<usize> {
        self.tensor(name, chunks, lens, 1)
    }

    fn tensor(
        &mut self,
        name: String,
        chunks: usize,
        [chunk, padded_chunk]: [usize; 2],
        copies: usize,
    ) -> Range<usize> {
        let tensor = Tensor { name, chunks, chunk, padded_chunk, copies, start: self.len };
        let range = tensor.range();
        self.len = range.end.next_multiple_of(UNIT);
        self.tensors.push(tensor);
        range
    }
}

/// What a forward writes.
struct Work<B: Memory> {
    pixels: B::Buffer<u8>,
    patches: B::Buffer<B::Half>,
    /// What is added to the residual stream.
    branch: B::Buffer<B::Half>,
    normed: B::Buffer<B::Half>,
    qkv: B::Buffer<B::Half>,
    attended: B::Buffer<B::Half>,
    fc1: B::Buffer<B::Half>,
    activated: B::Buffer<B::Half>,
    /// What only a backward would read.
    mean: B::Buffer<B::Full>,
    inverse: B::Buffer<B::Full>,
    lse: B::Buffer<B::Full>,
}

impl<B: Backend> Work<B> {
    /// The sum of the residual stream and of what is added to it, and the LayerNorm of that.
    fn normalise(
        &mut self,
        b: &B,
        norm: Norm,
        [weight, bias]: [Half<'_, B>; 2],
        residual: norm::Residual<'_, B>,
    ) -> anyhow::Result<()> {
        let args = norm::Forward {
            x: b.slice(&self.branch),
            residual: Some(residual),
            weight,
            centre: Some(norm::Centre { bias, mean: b.slice_mut(&mut self.mean) }),
            y: b.slice_mut(&mut self.normed),
            inverse: b.slice_mut(&mut self.inverse),
        };
        Ok(b.norm_forward(norm, args)?)
    }
}

/// A vision tower on a backend.
pub struct VisionTower<B: Backend> {
    backend: B,
    sizes: VisionSizes,
    layout: Layout,
    attention: Shape,
    weights: B::Buffer<B::Half>,
    work: Work<B>,
    /// The residual stream before attention.
    input: B::Buffer<B::Half>,
    /// The same before the MLP.
    middle: B::Buffer<B::Half>,
}

impl<B: Backend> VisionTower<B> {
    /// Takes all memory of the tower, in which [`load`](Self::load) comes first.
    ///
    /// # Errors
    /// If sizes do not fit together, or there is not enough memory.
    pub fn new(backend: B, sizes: VisionSizes) -> anyhow::Result<Self> {
        let layout = Layout::new(&sizes)?;
        let b = &backend;
        let weights = b.poisoned(layout.len)?;
        let (rows, of_stream) = (sizes.rows(), sizes.rows() * sizes.hidden);
        let edge = sizes.image_edge();
        let work = Work {
            pixels: b.poisoned(sizes.batch * edge * edge * CHANNELS)?,
            patches: b.poisoned(rows * sizes.patches().cols()?)?,
            branch: b.poisoned(of_stream)?,
            normed: b.poisoned(of_stream)?,
            qkv: b.poisoned(rows * sizes.qkv())?,
            attended: b.poisoned(rows * sizes.attended())?,
            fc1: b.poisoned(rows * sizes.padded_intermediate)?,
            activated: b.poisoned(rows * sizes.padded_intermediate)?,
            mean: b.poisoned(rows)?,
            inverse: b.poisoned(rows)?,
            lse: b.poisoned(rows * sizes.heads)?,
        };
        let (input, middle) = (b.poisoned(of_stream)?, b.poisoned(of_stream)?);
        Ok(Self { attention: sizes.attention()?, backend, sizes, layout, weights, work, input, middle })
    }

    /// Loads the weights, and fills them up with zeros where the sizes ask for it. Others in the checkpoint are passed over.
    ///
    /// # Errors
    /// If a weight is not there or has another length, or the backend fails.
    pub fn load(&mut self, checkpoint: &NamedWeights) -> anyhow::Result<()> {
        let Self { backend: b, layout, weights, .. } = self;
        for tensor in &layout.tensors {
            let elements = floats(&tensor.elements(checkpoint)?);
            b.copy_from_host(&elements, b.slice_mut(weights).range(tensor.range()))?;
        }
        Ok(())
    }

    /// What it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// From pixels, `(batch, image_edge, image_edge, 3)`, to features, `(rows, hidden)`: the output of the last block that is
    /// run, without the norm that follows the blocks. Takes no memory. The features are there until the next call.
    ///
    /// # Errors
    /// If there are not as many pixels, or the backend fails.
    pub fn forward(&mut self, pixels: &[u8]) -> anyhow::Result<Half<'_, B>> {
        let Self { backend: b, sizes, layout, attention, weights, work, input, middle } = self;
        let of = |range: &Range<usize>| b.slice(weights).range(range.clone());
        let VisionSizes { hidden, padded_intermediate: intermediate, .. } = *sizes;
        let rows = sizes.rows();
        let linear =
            |inputs: usize, outputs: usize, x: Half<'_, B>, [weight, bias]: &WithBias, y: HalfMut<'_, B>| {
                Linear { rows, inputs, outputs }.forward(b, x, of(weight), Some(of(bias)), y)
            };

        let to = b.slice_mut(&mut work.pixels);
        anyhow::ensure!(pixels.len() == to.len(), "{} values of pixels, not {}", pixels.len(), to.len());
        b.copy_from_host(pixels, to)?;
        let patches = sizes.patches();
        b.patchify(&patches, b.slice(&work.pixels), b.slice_mut(&mut work.patches))?;
        let branch = b.slice_mut(&mut work.branch);
        linear(patches.cols()?, hidden, b.slice(&work.patches), &layout.patch, branch)?;

        for (index, block) in layout.blocks.iter().enumerate() {
            // The sum of the residual stream and of what is added to it is made by the norm that reads it, and so is that of
            // patches and positions: these are there once for every image, as much memory as an activation takes, and no
            // kernel passes over the patches for them alone.
            let residual = if index == 0 { of(&layout.positions) } else { b.slice(middle) };
            let residual = norm::Residual { residual, sum: b.slice_mut(input) };
            work.normalise(b, sizes.norm(), block.attention_norm.each_ref().map(of), residual)?;
            let qkv = b.slice_mut(&mut work.qkv);
            linear(hidden, sizes.qkv(), b.slice(&work.normed), &block.qkv, qkv)?;
            b.attention_forward(
                attention,
                FusedForward {
                    qkv: b.slice(&work.qkv),
                    cu_seqlens: None,
                    out: b.slice_mut(&mut work.attended),
                    lse: b.slice_mut(&mut work.lse),
                },
            )?;
            let branch = b.slice_mut(&mut work.branch);
            linear(sizes.attended(), hidden, b.slice(&work.attended), &block.out, branch)?;
            let residual = norm::Residual { residual: b.slice(input), sum: b.slice_mut(middle) };
            work.normalise(b, sizes.norm(), block.mlp_norm.each_ref().map(of), residual)?;
            // Bias and GELU are not the product's epilogue: libraries have it in the tanh form alone, and the reference's tower
            // computes the exact one. One pass over the MLP's channels is the price.
            let [weight, bias] = &block.fc1;
            let fc1 = b.slice_mut(&mut work.fc1);
            let shape = Linear { rows, inputs: hidden, outputs: intermediate };
            shape.forward(b, b.slice(&work.normed), of(weight), None, fc1)?;
            let of_fc1 = Rows { rows, cols: intermediate };
            let activated = b.slice_mut(&mut work.activated);
            b.bias_gelu_forward(of_fc1, sizes.activation, b.slice(&work.fc1), of(bias), activated)?;
            let branch = b.slice_mut(&mut work.branch);
            linear(intermediate, hidden, b.slice(&work.activated), &block.fc2, branch)?;
        }
        // No norm follows that would make the last sum.
        b.add_assign(b.slice(&work.branch), b.slice_mut(middle))?;
        Ok(b.slice(middle))
    }

    /// Waits for the last [`forward`](Self::forward), and copies its features.
    ///
    /// # Errors
    /// If the backend has failed.
    pub fn features(&self) -> anyhow::Result<Vec<f64>> {
        Ok(self.backend.download(&self.middle)?.into_iter().map(|value| value.to_f64()).collect())
    }
}
