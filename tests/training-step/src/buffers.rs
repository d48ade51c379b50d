//! The memory of a run, all of which is taken before its first step.

use crate::pack::padded_labels;
use crate::training::{attention_shape, floats, norm_of};
use crate::{Activations, Layout, Sizes};
use anyhow::Context as _;
use oqvl_kernels::adamw::launch as adamw;
use oqvl_kernels::adamw::{CONTROL_LEN, DecayRanges};
use oqvl_kernels::attention::backward_workspace_len;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::column_sum::launch::partials_len;
use oqvl_kernels::cross_entropy::CHANNELS;
use oqvl_kernels::device::Memory;
use oqvl_kernels::{CuSeqlens, Rows, norm};

/// What a layer keeps for its backward.
pub(crate) struct Layer<B: Memory> {
    /// The residual stream before attention, and the inverse deviation of each row.
    pub(crate) input: B::Buffer<B::Half>,
    pub(crate) input_inverse: B::Buffer<B::Full>,
    /// Queries, keys and values, rotated.
    pub(crate) qkv: B::Buffer<B::Half>,
    pub(crate) attended: B::Buffer<B::Half>,
    pub(crate) lse: B::Buffer<B::Full>,
    /// The same before the MLP.
    pub(crate) middle: B::Buffer<B::Half>,
    pub(crate) middle_inverse: B::Buffer<B::Full>,
    pub(crate) gate_up: B::Buffer<B::Half>,
}

/// What can be made again from what a layer keeps.
pub(crate) struct Recomputed<B: Memory> {
    pub(crate) attention_normed: B::Buffer<B::Half>,
    pub(crate) mlp_normed: B::Buffer<B::Half>,
    pub(crate) product: B::Buffer<B::Half>,
}

/// A pack in the memory of the backend. Where packs differ in length, there is room for the longest.
pub(crate) struct Inputs<B: Memory> {
    pub(crate) vision: B::Buffer<B::Half>,
    pub(crate) sources: B::Buffer<i32>,
    pub(crate) positions: B::Buffer<i32>,
    pub(crate) cu_seqlens: B::Buffer<i32>,
    pub(crate) label_rows: B::Buffer<i32>,
    pub(crate) label_places: B::Buffer<i32>,
    pub(crate) labels: B::Buffer<i32>,
    /// One over the number of labels.
    pub(crate) scale: B::Buffer<B::Full>,
    pub(crate) bucket_ids: B::Buffer<i32>,
    pub(crate) bucket_starts: B::Buffer<i32>,
    pub(crate) bucket_rows: B::Buffer<i32>,
    pub(crate) visual_indices: B::Buffer<i32>,
}

/// Everything else that a step writes.
pub(crate) struct Work<B: Memory> {
    pub(crate) pooled: B::Buffer<B::Half>,
    pub(crate) fc1: B::Buffer<B::Half>,
    pub(crate) activated: B::Buffer<B::Half>,
    pub(crate) visual: B::Buffer<B::Half>,
    /// What a layer adds to the residual stream.
    pub(crate) branch: B::Buffer<B::Half>,
    pub(crate) output: B::Buffer<B::Half>,
    pub(crate) output_inverse: B::Buffer<B::Full>,
    pub(crate) output_normed: B::Buffer<B::Half>,
    /// Rows with a label, and their gradient.
    pub(crate) gathered: B::Buffer<B::Half>,
    pub(crate) dgathered: B::Buffer<B::Half>,
    pub(crate) logits: B::Buffer<B::Half>,
    pub(crate) stats: B::Buffer<B::Full>,
    pub(crate) loss_sums: B::Buffer<B::Full>,
    pub(crate) loss_counts: B::Buffer<i32>,
    /// The gradient of the residual stream: between layers, and within one between attention and the MLP.
    pub(crate) dstream: B::Buffer<B::Half>,
    pub(crate) dmiddle: B::Buffer<B::Half>,
    /// Gradients of `(rows, hidden)`.
    pub(crate) dnormed: B::Buffer<B::Half>,
    pub(crate) dattended: B::Buffer<B::Half>,
    pub(crate) dqkv: B::Buffer<B::Half>,
    pub(crate) dproduct: B::Buffer<B::Half>,
    pub(crate) dgate_up: B::Buffer<B::Half>,
    pub(crate) dvisual: B::Buffer<B::Half>,
    pub(crate) dactivated: B::Buffer<B::Half>,
    pub(crate) dfc1: B::Buffer<B::Half>,
    /// What operations need in between.
    pub(crate) attention: B::Buffer<B::Full>,
    pub(crate) norm_partials: B::Buffer<B::Full>,
    pub(crate) sum_partials: B::Buffer<B::Full>,
    pub(crate) norm_of_gradient: B::Buffer<B::Full>,
}

/// Parameters with all that belongs to them, one after the other in each buffer.
pub(crate) struct Parameters<B: Memory> {
    /// What the networks compute with.
    pub(crate) weights: B::Buffer<B::Half>,
    /// The same in full precision.
    pub(crate) masters: B::Buffer<B::Full>,
    pub(crate) gradients: B::Buffer<B::Full>,
    pub(crate) first_moments: B::Buffer<B::Full>,
    pub(crate) second_moments: B::Buffer<B::Full>,
    pub(crate) decay_boundaries: B::Buffer<i64>,
    pub(crate) decays: B::Buffer<B::Full>,
    pub(crate) control: B::Buffer<B::Full>,
    pub(crate) step: B::Buffer<i32>,
}

impl<B: Backend> Layer<B> {
    fn new(b: &B, sizes: &Sizes) -> anyhow::Result<Self> {
        let Sizes { rows, hidden, .. } = *sizes;
        Ok(Self {
            input: b.poisoned(rows * hidden)?,
            input_inverse: b.poisoned(rows)?,
            qkv: b.poisoned(rows * sizes.qkv())?,
            attended: b.poisoned(rows * sizes.attended())?,
            lse: b.poisoned(rows * sizes.heads)?,
            middle: b.poisoned(rows * hidden)?,
            middle_inverse: b.poisoned(rows)?,
            gate_up: b.poisoned(rows * 2 * sizes.intermediate)?,
        })
    }

    /// Those of all layers.
    pub(crate) fn all(b: &B, sizes: &Sizes) -> anyhow::Result<Vec<Self>> {
        (0..sizes.layers).map(|_| Self::new(b, sizes)).collect()
    }
}

impl<B: Backend> Recomputed<B> {
    fn new(b: &B, sizes: &Sizes) -> anyhow::Result<Self> {
        let Sizes { rows, hidden, intermediate, .. } = *sizes;
        Ok(Self {
            attention_normed: b.poisoned(rows * hidden)?,
            mlp_normed: b.poisoned(rows * hidden)?,
            product: b.poisoned(rows * intermediate)?,
        })
    }

    /// One for each layer, or one for all.
    pub(crate) fn all(b: &B, sizes: &Sizes, activations: Activations) -> anyhow::Result<Vec<Self>> {
        let number = match activations {
            Activations::Saved => sizes.layers,
            Activations::CheapRecomputed => 1,
        };
        (0..number).map(|_| Self::new(b, sizes)).collect()
    }
}

impl<B: Backend> Inputs<B> {
    pub(crate) fn new(b: &B, sizes: &Sizes) -> anyhow::Result<Self> {
        let rows = sizes.rows;
        Ok(Self {
            vision: b.poisoned(sizes.images * sizes.grid * sizes.grid * sizes.vision)?,
            sources: b.poisoned(rows)?,
            positions: b.poisoned(rows)?,
            cu_seqlens: b.poisoned(rows + 1)?,
            label_rows: b.poisoned(padded_labels(sizes, rows))?,
            label_places: b.poisoned(rows)?,
            labels: b.poisoned(padded_labels(sizes, rows))?,
            scale: b.poisoned(1)?,
            bucket_ids: b.poisoned(rows)?,
            bucket_starts: b.poisoned(rows + 1)?,
            bucket_rows: b.poisoned(rows)?,
            visual_indices: b.poisoned(sizes.visual_rows())?,
        })
    }
}

impl<B: Backend> Parameters<B> {
    /// Moments and gradients are zeros, parameters are nothing yet.
    pub(crate) fn new(b: &B, layout: &Layout, ranges: &DecayRanges) -> anyhow::Result<Self> {
        let zeros = || {
            let mut zeros = b.poisoned(layout.len())?;
            b.fill(b.slice_mut(&mut zeros), 0.0)?;
            anyhow::Ok(zeros)
        };
        let decays: Vec<f64> = ranges.decays().iter().map(|decay| f64::from(*decay)).collect();
        Ok(Self {
            weights: b.poisoned(layout.len())?,
            masters: b.poisoned(layout.len())?,
            gradients: zeros()?,
            first_moments: zeros()?,
            second_moments: zeros()?,
            decay_boundaries: b.upload(ranges.boundaries())?,
            decays: b.upload(&floats(&decays))?,
            control: b.poisoned(CONTROL_LEN)?,
            step: b.upload(&[0])?,
        })
    }
}

impl<B: Backend> Work<B> {
    pub(crate) fn new(b: &B, sizes: &Sizes, parameters: usize) -> anyhow::Result<Self> {
        let Sizes { rows, hidden, intermediate, vocab, chunk_rows, .. } = *sizes;
        let visual_rows = sizes.visual_rows();
        let one_pack = CuSeqlens::new(vec![0, i32::try_from(rows)?])?;
        let of_norms = norm::num_partials(norm_of(sizes));
        let sums = [
            Rows { rows, cols: sizes.qkv() },
            Rows { rows: visual_rows, cols: hidden },
            Rows { rows: of_norms, cols: hidden },
        ];
        let sums = sums.into_iter().map(partials_len).collect::<Option<Vec<usize>>>();
        let sums = sums.and_then(|lens| lens.into_iter().max()).context("too many rows")?;
        let (of_stream, of_labels) = (rows * hidden, padded_labels(sizes, rows) * hidden);
        Ok(Self {
            pooled: b.poisoned(visual_rows * sizes.vision)?,
            fc1: b.poisoned(visual_rows * hidden)?,
            activated: b.poisoned(visual_rows * hidden)?,
            visual: b.poisoned(visual_rows * hidden)?,
            branch: b.poisoned(of_stream)?,
            output: b.poisoned(of_stream)?,
            output_inverse: b.poisoned(rows)?,
            output_normed: b.poisoned(of_stream)?,
            gathered: b.poisoned(of_labels)?,
            dgathered: b.poisoned(of_labels)?,
            logits: b.poisoned(chunk_rows * vocab)?,
            stats: b.poisoned(chunk_rows * CHANNELS)?,
            loss_sums: b.poisoned(2)?,
            loss_counts: b.poisoned(2)?,
            dstream: b.poisoned(of_stream)?,
            dmiddle: b.poisoned(of_stream)?,
            dnormed: b.poisoned(of_stream)?,
            dattended: b.poisoned(rows * sizes.attended())?,
            dqkv: b.poisoned(rows * sizes.qkv())?,
            dproduct: b.poisoned(rows * intermediate)?,
            dgate_up: b.poisoned(rows * 2 * intermediate)?,
            dvisual: b.poisoned(visual_rows * hidden)?,
            dactivated: b.poisoned(visual_rows * hidden)?,
            dfc1: b.poisoned(visual_rows * hidden)?,
            attention: b.poisoned(backward_workspace_len(&attention_shape(sizes, &one_pack)?)?)?,
            norm_partials: b.poisoned(norm::partials_len(norm_of(sizes))?)?,
            sum_partials: b.poisoned(sums)?,
            norm_of_gradient: b.poisoned(adamw::partials_len(parameters))?,
        })
    }
}
