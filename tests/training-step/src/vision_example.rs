//! Images and a vision tower that transformers has run too: the files of `fixtures/` that `fixtures/vision.py` has written.

use crate::example::floats;
use crate::{NamedWeights, VisionSizes, VisionTower};
use oqvl_kernels::backend::Backend;
use oqvl_kernels::bias_gelu::Gelu;
use safetensors::SafeTensors;
use serde::Deserialize;

/// A checkpoint, and images.
#[derive(Debug, Clone)]
pub struct VisionInput {
    /// The weights.
    pub weights: NamedWeights,
    /// `(batch, image_edge, image_edge, 3)`.
    pub pixels: Vec<u8>,
}

impl VisionInput {
    /// Weights and pixels that are a function of the seed, the former so wide that attention is far from uniform and that the
    /// forms of GELU differ.
    ///
    /// # Errors
    /// If there is no tower of these sizes.
    pub fn drawn(sizes: &VisionSizes, seed: u64) -> anyhow::Result<Self> {
        let mut state = seed;
        let mut next = || {
            // Source: SplitMix64, Steele et al., "Fast splittable pseudorandom number generators", 2014.
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            mixed ^ (mixed >> 31)
        };
        let mut weights = NamedWeights::new();
        for (name, len) in sizes.tensors()? {
            let (centre, width) = match name.as_str() {
                name if name.contains("norm") && name.ends_with("weight") => (1.0, 0.5),
                name if name.ends_with("bias") || name.contains("position") => (0.0, 0.8),
                name if name.contains("fc2") => (0.0, 2.0 / (sizes.intermediate as f64).sqrt()),
                name if name.contains("patch") => (0.0, 2.0 / sizes.patch_edge as f64),
                _ => (0.0, 2.0 / (sizes.hidden as f64).sqrt()),
            };
            // Between -1 and 1.
            let mut unit = || next() as i64 as f64 / 2f64.powi(63);
            weights.insert(name, (0..len).map(|_| centre + width * unit()).collect());
        }
        let edge = sizes.image_edge();
        let pixels = (0..sizes.batch * edge * edge * 3).map(|_| next().to_le_bytes()[0]).collect();
        Ok(Self { weights, pixels })
    }

    /// The features of a tower of these sizes.
    ///
    /// # Errors
    /// If there is none, or the backend fails.
    pub fn features<B: Backend>(&self, backend: B, sizes: VisionSizes) -> anyhow::Result<Vec<f64>> {
        let mut tower = VisionTower::new(backend, sizes)?;
        tower.load(&self.weights)?;
        tower.forward(&self.pixels)?;
        tower.features()
    }
}

/// A tower with all its states, as transformers has computed them in float32.
#[derive(Debug, Clone)]
pub struct VisionExample {
    sizes: VisionSizes,
    input: VisionInput,
    states: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Config {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    image_size: usize,
    patch_size: usize,
    layer_norm_eps: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

impl VisionExample {
    /// Reads the files, which are part of this program. The same weights have been run with both forms of GELU.
    ///
    /// # Errors
    /// If they are not of one tower.
    pub fn load(activation: Gelu) -> anyhow::Result<Self> {
        let config: Config = serde_json::from_slice(include_bytes!("../fixtures/vision.json"))?;
        let file = SafeTensors::deserialize(include_bytes!("../fixtures/vision.safetensors"))?;
        let images = file.tensor("pixels")?;
        let head_dim = config.hidden_size / config.num_attention_heads;
        let sizes = VisionSizes {
            batch: images.shape()[0],
            grid: config.image_size / config.patch_size,
            patch_edge: config.patch_size,
            hidden: config.hidden_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            head_dim,
            padded_head_dim: head_dim,
            intermediate: config.intermediate_size,
            padded_intermediate: config.intermediate_size,
            layer_norm_eps: config.layer_norm_eps,
            activation,
            mean: config.image_mean,
            deviation: config.image_std,
        };
        let names = file.names().into_iter().filter(|name| name.starts_with("vision_model."));
        let weights = names.map(|name| Ok((name.to_owned(), floats(&file, name)?)));
        let input = VisionInput {
            weights: weights.collect::<anyhow::Result<_>>()?,
            pixels: cut(images.data(), config.image_size, sizes.image_edge()),
        };
        let name = match activation {
            Gelu::Exact => "states.exact",
            Gelu::Tanh => "states.tanh",
        };
        let states = floats(&file, name)?;
        let len = sizes.rows() * sizes.hidden;
        anyhow::ensure!(states.len() == (sizes.layers + 1) * len, "{name} has {} elements", states.len());
        Ok(Self { states: states.chunks_exact(len).map(<[f64]>::to_vec).collect(), sizes, input })
    }

    /// All blocks, and nothing filled up.
    #[must_use]
    pub fn sizes(&self) -> VisionSizes {
        self.sizes
    }

    /// What goes in.
    #[must_use]
    pub fn input(&self) -> &VisionInput {
        &self.input
    }

    /// What comes out after so many blocks.
    #[must_use]
    pub fn expected(&self, layers: usize) -> &[f64] {
        &self.states[layers]
    }
}

/// The pixels that are in whole patches.
fn cut(pixels: &[u8], edge: usize, used: usize) -> Vec<u8> {
    let images = pixels.chunks_exact(edge * edge * 3);
    let rows = images.flat_map(|image| image.chunks_exact(edge * 3).take(used));
    rows.flat_map(|row| &row[..used * 3]).copied().collect()
}
