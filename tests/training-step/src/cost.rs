//! What a step of Open-Qwen2VL's pre-training costs, counted before any of it is done.

use crate::{Activations, Pack, Settings, Sizes, Training, VisionSizes, VisionTower};
use oqvl_kernels::adamw::AdamW;
use oqvl_kernels::backend::{Count, Counting};
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::embedding::visual_source;
use oqvl_kernels::{CuSeqlens, RopeTables};
use std::collections::BTreeMap;

/// Rows of a pack that carry a label, on average over the paper's data: what 23.3 images of 144 tokens leave of 4096 (28.4 million
/// pairs are 5 billion tokens).
const LABELS: usize = 746;

/// One pack of 4096 tokens as the paper's data has them on average, Qwen2.5-1.5B, and the projector of SigLIP-SO400M.
pub const PAPER: Sizes = Sizes {
    rows: 4096,
    images: 23,
    vocab: 151_936,
    hidden: 1536,
    intermediate: 8960,
    layers: 28,
    heads: 12,
    kv_heads: 2,
    head_dim: 128,
    positions: 4096,
    rms_eps: 1e-6,
    vision: 1152,
    grid: 27,
    pooled: 12,
    chunk_rows: LABELS,
};

/// SigLIP-SO400M over the images of one pack, filled up to sizes that suit a GPU, and the 26 of its 27 blocks that are used.
pub const PAPER_TOWER: VisionSizes = VisionSizes {
    batch: PAPER.images,
    grid: 27,
    patch_edge: 14,
    hidden: 1152,
    layers: 26,
    heads: 16,
    head_dim: 72,
    padded_head_dim: 80,
    intermediate: 4304,
    padded_intermediate: 4352,
    layer_norm_eps: 1e-6,
    activation: Gelu::Exact,
    mean: [0.5; 3],
    deviation: [0.5; 3],
};

/// What a step on one pack costs, with the optimizer's; or what features of its images cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Cost {
    /// Bytes of memory of parameters, optimizer and activations: all that is taken of the backend. A library's workspace for
    /// products (32 MiB for each stream) comes on top.
    pub memory_bytes: usize,
    /// Of which the work itself has taken.
    pub memory_of_work: usize,
    /// What is computed, read and written, by operation.
    pub counts: BTreeMap<&'static str, Count>,
}

impl Cost {
    /// Counts a step of [`PAPER`]'s sizes.
    ///
    /// # Errors
    /// None that is known: the sizes fit together.
    pub fn of_paper(activations: Activations) -> anyhow::Result<Self> {
        let adamw = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, max_norm: 1.0 };
        let settings = Settings { adamw, weight_decay: 0.1, activations };
        let (cos, sin) = RopeTables::new(PAPER.head_dim, PAPER.positions, 1e6).cos_sin::<f64>();
        let mut training = Training::new(Counting::default(), PAPER, settings, [&cos, &sin])?;
        let images = PAPER.visual_rows();
        let sources = (0..PAPER.rows).map(|row| if row < images { visual_source(row) } else { row as i32 });
        let labels = (0..PAPER.rows).map(|row| if row < PAPER.rows - LABELS { -1 } else { row as i32 });
        let labels: Vec<i32> = labels.collect();
        let cu_seqlens = CuSeqlens::new(vec![0, i32::try_from(PAPER.rows)?])?;
        let vision = vec![0.0; PAPER.images * PAPER.grid * PAPER.grid * PAPER.vision];
        let pack = Pack::new(&PAPER, sources.collect(), &labels, cu_seqlens, vision)?;
        let memory_bytes = training.backend().memory_bytes();
        training.load(&pack)?;
        // What sets moments to zero before the first step.
        training.backend().take_counts();
        training.forward(&pack)?;
        training.backward(&pack)?;
        training.update(5e-5)?;
        Ok(Self::since(memory_bytes, training.backend()))
    }

    /// Counts the features of a pack's images by a tower of these sizes.
    ///
    /// # Errors
    /// If the sizes do not fit together.
    pub fn of_tower(sizes: VisionSizes) -> anyhow::Result<Self> {
        let mut tower = VisionTower::new(Counting::default(), sizes)?;
        let memory_bytes = tower.backend().memory_bytes();
        let edge = sizes.image_edge();
        tower.forward(&vec![0; sizes.batch * edge * edge * 3])?;
        Ok(Self::since(memory_bytes, tower.backend()))
    }

    fn since(memory_bytes: usize, backend: &Counting) -> Self {
        let memory_of_work = backend.memory_bytes() - memory_bytes;
        Self { memory_bytes, memory_of_work, counts: backend.take_counts() }
    }
}
