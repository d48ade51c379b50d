//! The step.

use crate::pack::IGNORE_INDEX;
use crate::{Layout, Pack, Sizes};
use anyhow::Context as _;
use oqvl_kernels::Rows;
use oqvl_kernels::adamw::launch as adamw;
use oqvl_kernels::adamw::{AdamW, CONTROL_LEN, DecayRanges, NORM, SKIP};
use oqvl_kernels::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape, backward_workspace_len};
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::backend::{Backend, Full, FullMut, Half, HalfMut};
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::column_sum::launch::{BiasGradient, partials_len};
use oqvl_kernels::cross_entropy::launch::{Arguments, Totals};
use oqvl_kernels::cross_entropy::{CHANNELS, Loss};
use oqvl_kernels::device::{Float, Memory, Number};
use oqvl_kernels::embedding::launch::{DeviceBuckets, Embeddings};
use oqvl_kernels::gemm::{Epilogue, Gemm};
use oqvl_kernels::norm::{self, Norm};
use oqvl_kernels::rope::launch::{Angles, Qkv};
use oqvl_kernels::{CuSeqlens, Output};
use std::ops::Range;

/// Which activations are kept from the forward to the backward.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activations {
    /// All.
    Saved,
    /// All but those that one pass over memory makes again: the results of norms and SwiGLU, for which there is room once.
    CheapRecomputed,
}

/// Settings of a run.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Of the optimizer.
    pub adamw: AdamW,
    /// Of matrices.
    pub weight_decay: f32,
    /// What is kept.
    pub activations: Activations,
}

/// What a step says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Report {
    /// Mean cross-entropy over the rows with a label, before the step.
    pub loss: f64,
    /// Share of those rows whose label was the likeliest token.
    pub accuracy: f64,
    /// Norm of the gradient of all parameters, before clipping.
    pub gradient_norm: f64,
    /// Whether the step was left out, because the gradient is not finite.
    pub skipped: bool,
}

/// What a layer keeps for its backward.
struct Layer<B: Memory> {
    /// The residual stream before attention, and the inverse deviation of each row.
    input: B::Buffer<B::Half>,
    input_inverse: B::Buffer<B::Full>,
    /// Queries, keys and values, rotated.
    qkv: B::Buffer<B::Half>,
    attended: B::Buffer<B::Half>,
    lse: B::Buffer<B::Full>,
    /// The same before the MLP.
    middle: B::Buffer<B::Half>,
    middle_inverse: B::Buffer<B::Full>,
    gate_up: B::Buffer<B::Half>,
}

/// What can be made again from what a layer keeps.
struct Recomputed<B: Memory> {
    attention_normed: B::Buffer<B::Half>,
    mlp_normed: B::Buffer<B::Half>,
    product: B::Buffer<B::Half>,
}

/// A pack in the memory of the backend. Where packs differ in length, there is room for the longest.
struct Inputs<B: Memory> {
    vision: B::Buffer<B::Half>,
    sources: B::Buffer<i32>,
    positions: B::Buffer<i32>,
    cu_seqlens: B::Buffer<i32>,
    label_rows: B::Buffer<i32>,
    label_places: B::Buffer<i32>,
    labels: B::Buffer<i32>,
    /// One over the number of labels.
    scale: B::Buffer<B::Full>,
    bucket_ids: B::Buffer<i32>,
    bucket_starts: B::Buffer<i32>,
    bucket_rows: B::Buffer<i32>,
    visual_indices: B::Buffer<i32>,
}

/// Everything else that a step writes.
struct Work<B: Memory> {
    pooled: B::Buffer<B::Half>,
    fc1: B::Buffer<B::Half>,
    activated: B::Buffer<B::Half>,
    visual: B::Buffer<B::Half>,
    /// What a layer adds to the residual stream.
    branch: B::Buffer<B::Half>,
    output: B::Buffer<B::Half>,
    output_inverse: B::Buffer<B::Full>,
    output_normed: B::Buffer<B::Half>,
    /// Rows with a label, and their gradient.
    gathered: B::Buffer<B::Half>,
    dgathered: B::Buffer<B::Half>,
    logits: B::Buffer<B::Half>,
    stats: B::Buffer<B::Full>,
    loss_sums: B::Buffer<B::Full>,
    loss_counts: B::Buffer<i32>,
    /// The gradient of the residual stream, which norms read and write in turn.
    dstream: [B::Buffer<B::Half>; 2],
    /// Gradients of `(rows, hidden)`.
    dnormed: B::Buffer<B::Half>,
    dattended: B::Buffer<B::Half>,
    dqkv: B::Buffer<B::Half>,
    dproduct: B::Buffer<B::Half>,
    dgate_up: B::Buffer<B::Half>,
    dvisual: B::Buffer<B::Half>,
    dactivated: B::Buffer<B::Half>,
    dfc1: B::Buffer<B::Half>,
    /// What operations need in between.
    attention: B::Buffer<B::Full>,
    norm_partials: B::Buffer<B::Full>,
    sum_partials: B::Buffer<B::Full>,
    norm_of_gradient: B::Buffer<B::Full>,
}

/// Parameters with all that belongs to them, one after the other in each buffer.
struct Parameters<B: Memory> {
    /// What the networks compute with.
    weights: B::Buffer<B::Half>,
    /// The same in full precision.
    masters: B::Buffer<B::Full>,
    gradients: B::Buffer<B::Full>,
    first_moments: B::Buffer<B::Full>,
    second_moments: B::Buffer<B::Full>,
    decay_boundaries: B::Buffer<i64>,
    decays: B::Buffer<B::Full>,
    control: B::Buffer<B::Full>,
    step: B::Buffer<i32>,
}

/// A training run on a backend.
pub struct Training<B: Backend> {
    backend: B,
    sizes: Sizes,
    settings: Settings,
    layout: Layout,
    ranges: DecayRanges,
    parameters: Parameters<B>,
    inputs: Inputs<B>,
    layers: Vec<Layer<B>>,
    recomputed: Vec<Recomputed<B>>,
    work: Work<B>,
    cos: B::Buffer<B::Full>,
    sin: B::Buffer<B::Full>,
}

impl<B: Backend> Training<B> {
    /// Takes all memory of the run, in which [`set_parameters`](Self::set_parameters) comes first. `cos` and `sin`, of every
    /// position: `(positions, head_dim / 2)`.
    ///
    /// # Errors
    /// If a length is not that of the sizes, or there is not enough memory.
    pub fn new(
        backend: B,
        sizes: Sizes,
        settings: Settings,
        [cos, sin]: [&[f64]; 2],
    ) -> anyhow::Result<Self> {
        let layout = Layout::new(&sizes, settings.weight_decay);
        let ranges = layout.decay()?;
        let b = &backend;
        let decays: Vec<f64> = ranges.decays().iter().map(|decay| f64::from(*decay)).collect();
        let zeros = || {
            let mut zeros = b.poisoned(layout.len())?;
            b.fill(b.slice_mut(&mut zeros), 0.0)?;
            anyhow::Ok(zeros)
        };
        let parameters = Parameters {
            weights: b.poisoned(layout.len())?,
            masters: b.poisoned(layout.len())?,
            gradients: zeros()?,
            first_moments: zeros()?,
            second_moments: zeros()?,
            decay_boundaries: b.upload(ranges.boundaries())?,
            decays: b.upload(&floats(&decays))?,
            control: b.poisoned(CONTROL_LEN)?,
            step: b.upload(&[0])?,
        };
        let rows = sizes.rows;
        let layer = || {
            anyhow::Ok(Layer {
                input: b.poisoned(rows * sizes.hidden)?,
                input_inverse: b.poisoned(rows)?,
                qkv: b.poisoned(rows * sizes.qkv())?,
                attended: b.poisoned(rows * sizes.attended())?,
                lse: b.poisoned(rows * sizes.heads)?,
                middle: b.poisoned(rows * sizes.hidden)?,
                middle_inverse: b.poisoned(rows)?,
                gate_up: b.poisoned(rows * 2 * sizes.intermediate)?,
            })
        };
        let recomputed = || {
            anyhow::Ok(Recomputed {
                attention_normed: b.poisoned(rows * sizes.hidden)?,
                mlp_normed: b.poisoned(rows * sizes.hidden)?,
                product: b.poisoned(rows * sizes.intermediate)?,
            })
        };
        let num_recomputed = match settings.activations {
            Activations::Saved => sizes.layers,
            Activations::CheapRecomputed => 1,
        };
        let inputs = Inputs {
            vision: b.poisoned(sizes.images * sizes.grid * sizes.grid * sizes.vision)?,
            sources: b.poisoned(rows)?,
            positions: b.poisoned(rows)?,
            cu_seqlens: b.poisoned(rows + 1)?,
            label_rows: b.poisoned(rows)?,
            label_places: b.poisoned(rows)?,
            labels: b.poisoned(rows)?,
            scale: b.poisoned(1)?,
            bucket_ids: b.poisoned(rows)?,
            bucket_starts: b.poisoned(rows + 1)?,
            bucket_rows: b.poisoned(rows)?,
            visual_indices: b.poisoned(sizes.visual_rows())?,
        };
        let layers = (0..sizes.layers).map(|_| layer()).collect::<anyhow::Result<_>>()?;
        let recomputed = (0..num_recomputed).map(|_| recomputed()).collect::<anyhow::Result<_>>()?;
        let work = Work::new(b, &sizes, layout.len())?;
        let (cos, sin) = (b.upload(&floats(cos))?, b.upload(&floats(sin))?);
        Ok(Self {
            backend,
            sizes,
            settings,
            layout,
            ranges,
            parameters,
            inputs,
            layers,
            recomputed,
            work,
            cos,
            sin,
        })
    }

    /// What it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Sets all parameters, as [`Layout`] has them.
    ///
    /// # Errors
    /// If there are not as many, or the backend fails.
    pub fn set_parameters(&mut self, parameters: &[f64]) -> anyhow::Result<()> {
        let Self { backend: b, parameters: Parameters { weights, masters, .. }, .. } = self;
        b.copy_from_host(&floats(parameters), b.slice_mut(masters))?;
        Ok(b.copy_from_host(&floats(parameters), b.slice_mut(weights))?)
    }

    /// The parameters in full precision, as the layout has them.
    ///
    /// # Errors
    /// If the backend has failed.
    pub fn parameters(&self) -> anyhow::Result<Vec<f64>> {
        Ok(self.backend.download(&self.parameters.masters)?.into_iter().map(Float::to_f64).collect())
    }

    /// The gradients that [`backward`](Self::backward) has left. After [`update`](Self::update) they are zeros.
    ///
    /// # Errors
    /// If the backend has failed.
    pub fn gradients(&self) -> anyhow::Result<Vec<f64>> {
        Ok(self.backend.download(&self.parameters.gradients)?.into_iter().map(Float::to_f64).collect())
    }

    /// One step on one pack. Nothing between the loading of the pack and the report waits for the backend.
    ///
    /// # Errors
    /// If the pack is of other sizes, or the backend fails.
    pub fn step(&mut self, pack: &Pack, lr: f64) -> anyhow::Result<Report> {
        self.load(pack)?;
        self.forward(pack)?;
        self.backward(pack)?;
        self.update(lr)?;
        self.report()
    }

    /// Copies a pack to the backend.
    ///
    /// # Errors
    /// If it is of other sizes, or the backend fails.
    pub fn load(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self { backend: b, inputs, .. } = self;
        let num_labels = pack.labelled.rows().len();
        let scale = B::Full::from_f64(1.0 / num_labels.max(1) as f64);
        b.copy_from_host(&floats(&pack.vision), b.slice_mut(&mut inputs.vision))?;
        b.copy_from_host(&[scale], b.slice_mut(&mut inputs.scale))?;
        for (from, to) in [
            (pack.sources.as_slice(), &mut inputs.sources),
            (&pack.positions, &mut inputs.positions),
            (pack.cu_seqlens.boundaries(), &mut inputs.cu_seqlens),
            (pack.labelled.rows(), &mut inputs.label_rows),
            (pack.labelled.places(), &mut inputs.label_places),
            (pack.labelled.labels(), &mut inputs.labels),
            (pack.buckets.ids(), &mut inputs.bucket_ids),
            (pack.buckets.starts(), &mut inputs.bucket_starts),
            (pack.buckets.rows(), &mut inputs.bucket_rows),
            (&pack.visual_indices, &mut inputs.visual_indices),
        ] {
            let mut to = b.slice_mut(to);
            anyhow::ensure!(from.len() <= to.len(), "a pack of other sizes than the run's");
            b.copy_from_host(from, to.range(0..from.len()))?;
        }
        Ok(())
    }

    /// From the pack to the loss, whose gradient it leaves where the logits were; the head goes backward at once, while its
    /// logits are there.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn forward(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self {
            backend: b, sizes, layout, parameters, inputs, layers, recomputed, work, cos, sin, ..
        } = self;
        let weights = |range: &Range<usize>| b.slice(&parameters.weights).range(range.clone());
        let (rows, hidden) = (sizes.rows, sizes.hidden);

        let [[fc1, fc1_bias], [fc2, fc2_bias]] = &layout.projector;
        let visual_rows = sizes.visual_rows();
        let of_fc1 = Rows { rows: visual_rows, cols: hidden };
        b.avg_pool_forward(pooling(sizes), b.slice(&inputs.vision), b.slice_mut(&mut work.pooled))?;
        let shape = Linear { rows: visual_rows, inputs: sizes.vision, outputs: hidden };
        shape.forward(b, b.slice(&work.pooled), weights(fc1), None, b.slice_mut(&mut work.fc1))?;
        let (x, y) = (b.slice(&work.fc1), b.slice_mut(&mut work.activated));
        b.bias_gelu_forward(of_fc1, Gelu::Exact, x, weights(fc1_bias), y)?;
        let shape = Linear { rows: visual_rows, inputs: hidden, outputs: hidden };
        let bias = Some(weights(fc2_bias));
        shape.forward(b, b.slice(&work.activated), weights(fc2), bias, b.slice_mut(&mut work.visual))?;

        let from = Embeddings { table: weights(&layout.embedding), visual: b.slice(&work.visual) };
        let embedded = b.slice_mut(&mut layers[0].input);
        b.embedding_forward(hidden, from, b.slice(&inputs.sources), embedded)?;

        let attention = attention_shape(sizes, &pack.cu_seqlens)?;
        let boundaries = 0..pack.cu_seqlens.boundaries().len();
        for index in 0..sizes.layers {
            let of_layer = &layout.layers[index];
            let (before, layer) = layers.split_at_mut(index);
            let layer = &mut layer[0];
            let place = index.min(recomputed.len() - 1);
            let recomputed = &mut recomputed[place];
            // The sum of the residual stream and of what the last layer adds to it is made by the norm that reads it.
            if let Some(last) = before.last() {
                let residual =
                    norm::Residual { residual: b.slice(&last.middle), sum: b.slice_mut(&mut layer.input) };
                b.norm_forward(
                    norm_of(sizes),
                    norm::Forward {
                        x: b.slice(&work.branch),
                        residual: Some(residual),
                        weight: weights(&of_layer.attention_norm),
                        centre: None,
                        y: b.slice_mut(&mut recomputed.attention_normed),
                        inverse: b.slice_mut(&mut layer.input_inverse),
                    },
                )?;
            } else {
                normalise(
                    b,
                    sizes,
                    (b.slice(&layer.input), weights(&of_layer.attention_norm)),
                    b.slice_mut(&mut recomputed.attention_normed),
                    b.slice_mut(&mut layer.input_inverse),
                )?;
            }
            let shape = Linear { rows, inputs: hidden, outputs: sizes.qkv() };
            let normed = b.slice(&recomputed.attention_normed);
            shape.forward(b, normed, weights(&of_layer.qkv), None, b.slice_mut(&mut layer.qkv))?;
            let angles =
                Angles { positions: b.slice(&inputs.positions), cos: b.slice(cos), sin: b.slice(sin) };
            let bias = Some(weights(&of_layer.qkv_bias));
            b.rope_forward(qkv_of(sizes), b.slice_mut(&mut layer.qkv), bias, angles)?;
            b.attention_forward(
                &attention,
                FusedForward {
                    qkv: b.slice(&layer.qkv),
                    cu_seqlens: Some(b.slice(&inputs.cu_seqlens).range(boundaries.clone())),
                    out: b.slice_mut(&mut layer.attended),
                    lse: b.slice_mut(&mut layer.lse),
                },
            )?;
            let shape = Linear { rows, inputs: sizes.attended(), outputs: hidden };
            let attended = b.slice(&layer.attended);
            shape.forward(b, attended, weights(&of_layer.out), None, b.slice_mut(&mut work.branch))?;
            let residual =
                norm::Residual { residual: b.slice(&layer.input), sum: b.slice_mut(&mut layer.middle) };
            b.norm_forward(
                norm_of(sizes),
                norm::Forward {
                    x: b.slice(&work.branch),
                    residual: Some(residual),
                    weight: weights(&of_layer.mlp_norm),
                    centre: None,
                    y: b.slice_mut(&mut recomputed.mlp_normed),
                    inverse: b.slice_mut(&mut layer.middle_inverse),
                },
            )?;
            let shape = Linear { rows, inputs: hidden, outputs: 2 * sizes.intermediate };
            let normed = b.slice(&recomputed.mlp_normed);
            shape.forward(b, normed, weights(&of_layer.gate_up), None, b.slice_mut(&mut layer.gate_up))?;
            let of_product = Rows { rows, cols: sizes.intermediate };
            let product = b.slice_mut(&mut recomputed.product);
            b.swiglu_forward(of_product, b.slice(&layer.gate_up), product)?;
            let shape = Linear { rows, inputs: sizes.intermediate, outputs: hidden };
            let product = b.slice(&recomputed.product);
            shape.forward(b, product, weights(&of_layer.down), None, b.slice_mut(&mut work.branch))?;
        }
        let last = &layers[sizes.layers - 1];
        let residual = norm::Residual { residual: b.slice(&last.middle), sum: b.slice_mut(&mut work.output) };
        b.norm_forward(
            norm_of(sizes),
            norm::Forward {
                x: b.slice(&work.branch),
                residual: Some(residual),
                weight: weights(&layout.norm),
                centre: None,
                y: b.slice_mut(&mut work.output_normed),
                inverse: b.slice_mut(&mut work.output_inverse),
            },
        )?;
        self.head(pack)
    }

    /// Logits, losses and the gradient of the head, of rows with a label alone, a chunk at a time.
    fn head(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, inputs, work, .. } = self;
        let Sizes { hidden, vocab, .. } = *sizes;
        let Parameters { weights, gradients, .. } = parameters;
        let embedding = || b.slice(weights).range(layout.embedding.clone());
        let num_labels = pack.labelled.rows().len();
        let indices = b.slice(&inputs.label_rows).range(0..num_labels);
        let mut gathered = b.slice_mut(&mut work.gathered);
        b.gather_rows(hidden, b.slice(&work.output_normed), indices, gathered.range(0..num_labels * hidden))?;
        let loss = Loss { ignore_index: IGNORE_INDEX, scale: 1.0, z_loss: 0.0 };
        let mut output = Output::Overwrite;
        for start in (0..num_labels.max(1)).step_by(sizes.chunk_rows) {
            let chunk = start..(start + sizes.chunk_rows).min(num_labels);
            let elements = chunk.start * hidden..chunk.end * hidden;
            let states = b.slice(&work.gathered).range(elements.clone());
            let shape = Linear { rows: chunk.len(), inputs: hidden, outputs: vocab };
            let mut logits = b.slice_mut(&mut work.logits);
            let mut logits = logits.range(0..chunk.len() * vocab);
            shape.forward(b, states, embedding(), None, logits.reborrow())?;
            let mut stats = b.slice_mut(&mut work.stats);
            let mut stats = stats.range(0..chunk.len() * CHANNELS);
            b.cross_entropy(
                Rows { rows: chunk.len(), cols: vocab },
                loss,
                Arguments {
                    logits: logits.reborrow(),
                    labels: b.slice(&inputs.labels).range(chunk),
                    scale: Some(b.slice(&inputs.scale)),
                    stats: stats.reborrow(),
                },
            )?;
            b.cross_entropy_totals(
                stats.as_slice(),
                Totals {
                    sums: b.slice_mut(&mut work.loss_sums),
                    counts: b.slice_mut(&mut work.loss_counts),
                    output,
                },
            )?;
            output = Output::Accumulate;
            let mut gradients = b.slice_mut(gradients);
            let mut dstates = b.slice_mut(&mut work.dgathered);
            let dweight = gradients.range(layout.embedding.clone());
            shape.backward(b, (states, embedding(), logits.as_slice()), dstates.range(elements), dweight)?;
        }
        let places = b.slice(&inputs.label_places);
        let dstates = b.slice(&work.dgathered).range(0..num_labels * hidden);
        Ok(b.gather_rows(hidden, dstates, places, b.slice_mut(&mut work.dnormed))?)
    }

    /// Adds the gradient of every parameter to what is there.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn backward(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self {
            backend: b, sizes, layout, parameters, inputs, layers, recomputed, work, cos, sin, ..
        } = self;
        let Parameters { weights, gradients, .. } = parameters;
        let weights = |range: &Range<usize>| b.slice(weights).range(range.clone());
        let mut gradients = b.slice_mut(gradients);
        let (rows, hidden) = (sizes.rows, sizes.hidden);
        let recomputes = self.settings.activations == Activations::CheapRecomputed;
        let attention = attention_shape(sizes, &pack.cu_seqlens)?;
        let boundaries = 0..pack.cu_seqlens.boundaries().len();
        let [dstream, dnext] = &mut work.dstream;
        let mut norms =
            NormBackward { sizes, partials: &mut work.norm_partials, sums: &mut work.sum_partials };

        norms.run(
            b,
            Normed {
                input: b.slice(&work.output),
                weight: weights(&layout.norm),
                dy: b.slice(&work.dnormed),
                past: None,
                inverse: b.slice(&work.output_inverse),
            },
            b.slice_mut(dstream),
            gradients.range(layout.norm.clone()),
        )?;
        for index in (0..sizes.layers).rev() {
            let of_layer = &layout.layers[index];
            let layer = &mut layers[index];
            let place = index.min(recomputed.len() - 1);
            let recomputed = &mut recomputed[place];
            let of_product = Rows { rows, cols: sizes.intermediate };
            if recomputes {
                let product = b.slice_mut(&mut recomputed.product);
                b.swiglu_forward(of_product, b.slice(&layer.gate_up), product)?;
                let inputs = (b.slice(&layer.middle), weights(&of_layer.mlp_norm));
                let normed = b.slice_mut(&mut recomputed.mlp_normed);
                normalise(b, sizes, inputs, normed, b.slice_mut(&mut layer.middle_inverse))?;
                let inputs = (b.slice(&layer.input), weights(&of_layer.attention_norm));
                let normed = b.slice_mut(&mut recomputed.attention_normed);
                normalise(b, sizes, inputs, normed, b.slice_mut(&mut layer.input_inverse))?;
            }

            let shape = Linear { rows, inputs: sizes.intermediate, outputs: hidden };
            let inputs_of = (b.slice(&recomputed.product), weights(&of_layer.down), b.slice(dstream));
            let dproduct = b.slice_mut(&mut work.dproduct);
            shape.backward(b, inputs_of, dproduct, gradients.range(of_layer.down.clone()))?;
            let (gate_up, dproduct) = (b.slice(&layer.gate_up), b.slice(&work.dproduct));
            b.swiglu_backward(of_product, gate_up, dproduct, b.slice_mut(&mut work.dgate_up))?;
            let shape = Linear { rows, inputs: hidden, outputs: 2 * sizes.intermediate };
            let normed = b.slice(&recomputed.mlp_normed);
            let inputs_of = (normed, weights(&of_layer.gate_up), b.slice(&work.dgate_up));
            let dnormed = b.slice_mut(&mut work.dnormed);
            shape.backward(b, inputs_of, dnormed, gradients.range(of_layer.gate_up.clone()))?;
            norms.run(
                b,
                Normed {
                    input: b.slice(&layer.middle),
                    weight: weights(&of_layer.mlp_norm),
                    dy: b.slice(&work.dnormed),
                    past: Some(b.slice(dstream)),
                    inverse: b.slice(&layer.middle_inverse),
                },
                b.slice_mut(dnext),
                gradients.range(of_layer.mlp_norm.clone()),
            )?;

            let shape = Linear { rows, inputs: sizes.attended(), outputs: hidden };
            let inputs_of = (b.slice(&layer.attended), weights(&of_layer.out), b.slice(dnext));
            let dattended = b.slice_mut(&mut work.dattended);
            shape.backward(b, inputs_of, dattended, gradients.range(of_layer.out.clone()))?;
            b.attention_backward(
                &attention,
                FusedBackward {
                    qkv: b.slice(&layer.qkv),
                    cu_seqlens: Some(b.slice(&inputs.cu_seqlens).range(boundaries.clone())),
                    out: b.slice(&layer.attended),
                    lse: b.slice(&layer.lse),
                    dout: b.slice(&work.dattended),
                    dqkv: b.slice_mut(&mut work.dqkv),
                    workspace: b.slice_mut(&mut work.attention),
                },
            )?;
            let angles =
                Angles { positions: b.slice(&inputs.positions), cos: b.slice(cos), sin: b.slice(sin) };
            let of_qkv = Rows { rows, cols: sizes.qkv() };
            let mut partials = b.slice_mut(&mut *norms.sums);
            let bias = BiasGradient {
                partials: partials.range(0..partials_len(of_qkv).context("too many rows")?),
                dbias: gradients.range(of_layer.qkv_bias.clone()),
                output: Output::Accumulate,
            };
            b.rope_backward(qkv_of(sizes), b.slice_mut(&mut work.dqkv), angles, Some(bias))?;
            let shape = Linear { rows, inputs: hidden, outputs: sizes.qkv() };
            let normed = b.slice(&recomputed.attention_normed);
            let inputs_of = (normed, weights(&of_layer.qkv), b.slice(&work.dqkv));
            let dnormed = b.slice_mut(&mut work.dnormed);
            shape.backward(b, inputs_of, dnormed, gradients.range(of_layer.qkv.clone()))?;
            norms.run(
                b,
                Normed {
                    input: b.slice(&layer.input),
                    weight: weights(&of_layer.attention_norm),
                    dy: b.slice(&work.dnormed),
                    past: Some(b.slice(dnext)),
                    inverse: b.slice(&layer.input_inverse),
                },
                b.slice_mut(dstream),
                gradients.range(of_layer.attention_norm.clone()),
            )?;
        }

        let num_buckets = pack.buckets.ids().len();
        let buckets = DeviceBuckets {
            ids: b.slice(&inputs.bucket_ids).range(0..num_buckets),
            starts: b.slice(&inputs.bucket_starts).range(0..num_buckets + 1),
            rows: b.slice(&inputs.bucket_rows).range(0..pack.buckets.rows().len()),
        };
        b.embedding_backward(hidden, b.slice(dstream), buckets, gradients.range(layout.embedding.clone()))?;
        let visual = b.slice(&inputs.visual_indices);
        b.gather_rows(hidden, b.slice(dstream), visual, b.slice_mut(&mut work.dvisual))?;
        self.backward_projector()
    }

    fn backward_projector(&mut self) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, work, .. } = self;
        let Parameters { weights, gradients, .. } = parameters;
        let weights = |range: &Range<usize>| b.slice(weights).range(range.clone());
        let mut gradients = b.slice_mut(gradients);
        let [[fc1, fc1_bias], [fc2, fc2_bias]] = &layout.projector;
        let (visual_rows, hidden) = (sizes.visual_rows(), sizes.hidden);
        let of_fc1 = Rows { rows: visual_rows, cols: hidden };
        let partials_of_fc1 = partials_len(of_fc1).context("too many rows")?;
        let mut partials = b.slice_mut(&mut work.sum_partials);
        let dbias = gradients.range(fc2_bias.clone());
        let dvisual = b.slice(&work.dvisual);
        b.column_sum(of_fc1, dvisual, partials.range(0..partials_of_fc1), dbias, Output::Accumulate)?;
        let shape = Linear { rows: visual_rows, inputs: hidden, outputs: hidden };
        let dactivated = b.slice_mut(&mut work.dactivated);
        let inputs = (b.slice(&work.activated), weights(fc2), dvisual);
        shape.backward(b, inputs, dactivated, gradients.range(fc2.clone()))?;
        let bias = BiasGradient {
            partials: partials.range(0..partials_of_fc1),
            dbias: gradients.range(fc1_bias.clone()),
            output: Output::Accumulate,
        };
        let inputs = (b.slice(&work.fc1), weights(fc1_bias), b.slice(&work.dactivated));
        b.bias_gelu_backward(of_fc1, Gelu::Exact, inputs, b.slice_mut(&mut work.dfc1), bias)?;
        // The vision tower is frozen: nothing goes on to the patches.
        let shape = Linear { rows: visual_rows, inputs: sizes.vision, outputs: hidden };
        let inputs = (b.slice(&work.pooled), b.slice(&work.dfc1));
        shape.backward_weight(b, inputs, gradients.range(fc1.clone()))
    }

    /// One step of AdamW, with clipping; what it needs to know of the gradient stays on the backend. Gradients are zeros after.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn update(&mut self, lr: f64) -> anyhow::Result<()> {
        let Self { backend: b, settings, ranges, parameters, work, .. } = self;
        let Parameters {
            weights,
            masters,
            gradients,
            first_moments,
            second_moments,
            decay_boundaries,
            decays,
            control,
            step,
        } = parameters;
        let mut control = adamw::Control { numbers: b.slice_mut(control), step: b.slice_mut(step) };
        let partials = b.slice_mut(&mut work.norm_of_gradient);
        b.gradient_norm(&settings.adamw, b.slice(gradients), None, partials, &mut control)?;
        let buffers = adamw::Buffers {
            w: b.slice_mut(masters),
            grad: b.slice_mut(gradients),
            m: b.slice_mut(first_moments),
            v: b.slice_mut(second_moments),
            copy: Some(b.slice_mut(weights)),
            ema: None,
        };
        let decay = adamw::Decay { boundaries: b.slice(decay_boundaries), decays: b.slice(decays) };
        Ok(b.adamw_update(&settings.adamw, lr, buffers, ranges, decay, &control)?)
    }

    /// Waits for the last step, and says what it was like.
    ///
    /// # Errors
    /// If the backend has failed.
    pub fn report(&self) -> anyhow::Result<Report> {
        let Self { backend: b, parameters, work, .. } = self;
        let sums = b.download(&work.loss_sums)?;
        let counts = b.download(&work.loss_counts)?;
        let control = b.download(&parameters.control)?;
        let labels = f64::from(counts[0].max(1));
        Ok(Report {
            loss: sums[0].to_f64() / labels,
            accuracy: f64::from(counts[1]) / labels,
            gradient_norm: control[NORM].to_f64(),
            skipped: control[SKIP].to_f64() != 0.0,
        })
    }
}

impl<B: Backend> Work<B> {
    fn new(b: &B, sizes: &Sizes, parameters: usize) -> anyhow::Result<Self> {
        let Sizes { rows, hidden, intermediate, vocab, chunk_rows, .. } = *sizes;
        let visual_rows = sizes.visual_rows();
        let one_pack = CuSeqlens::new(vec![0, i32::try_from(rows)?])?;
        let of_norms = norm::num_partials(norm_of(sizes));
        let sums = [
            Rows { rows, cols: sizes.qkv() },
            Rows { rows: visual_rows, cols: hidden },
            Rows { rows: of_norms, cols: hidden },
        ];
        let sums = sums.map(partials_len).into_iter().max().flatten().context("too many rows")?;
        let of_stream = rows * hidden;
        Ok(Self {
            pooled: b.poisoned(visual_rows * sizes.vision)?,
            fc1: b.poisoned(visual_rows * hidden)?,
            activated: b.poisoned(visual_rows * hidden)?,
            visual: b.poisoned(visual_rows * hidden)?,
            branch: b.poisoned(of_stream)?,
            output: b.poisoned(of_stream)?,
            output_inverse: b.poisoned(rows)?,
            output_normed: b.poisoned(of_stream)?,
            gathered: b.poisoned(of_stream)?,
            dgathered: b.poisoned(of_stream)?,
            logits: b.poisoned(chunk_rows * vocab)?,
            stats: b.poisoned(chunk_rows * CHANNELS)?,
            loss_sums: b.poisoned(2)?,
            loss_counts: b.poisoned(2)?,
            dstream: [b.poisoned(of_stream)?, b.poisoned(of_stream)?],
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

/// A product with a weight `(outputs, inputs)`.
pub(crate) struct Linear {
    pub(crate) rows: usize,
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
}

impl Linear {
    /// `y = x weight^T + bias`.
    pub(crate) fn forward<B: Backend>(
        &self,
        b: &B,
        x: Half<'_, B>,
        weight: Half<'_, B>,
        bias: Option<Half<'_, B>>,
        y: HalfMut<'_, B>,
    ) -> anyhow::Result<()> {
        let epilogue = if bias.is_some() { Epilogue::Bias } else { Epilogue::None };
        let gemm =
            Gemm::new(self.rows, self.outputs, self.inputs).with_b_transposed().with_epilogue(epilogue);
        Ok(b.gemm(&gemm, (x, weight), bias, y)?)
    }

    /// `dx = dy weight`, and `dweight += dy^T x`.
    fn backward<B: Backend>(
        &self,
        b: &B,
        (x, weight, dy): (Half<'_, B>, Half<'_, B>, Half<'_, B>),
        dx: HalfMut<'_, B>,
        dweight: FullMut<'_, B>,
    ) -> anyhow::Result<()> {
        b.gemm(&Gemm::new(self.rows, self.inputs, self.outputs), (dy, weight), None, dx)?;
        self.backward_weight(b, (x, dy), dweight)
    }

    fn backward_weight<B: Backend>(
        &self,
        b: &B,
        (x, dy): (Half<'_, B>, Half<'_, B>),
        dweight: FullMut<'_, B>,
    ) -> anyhow::Result<()> {
        let gemm = Gemm::new(self.outputs, self.inputs, self.rows).with_a_transposed().accumulating();
        Ok(b.gemm_full(&gemm, (dy, x), dweight)?)
    }
}

/// An RMSNorm that adds nothing before.
fn normalise<B: Backend>(
    b: &B,
    sizes: &Sizes,
    (x, weight): (Half<'_, B>, Half<'_, B>),
    y: HalfMut<'_, B>,
    inverse: FullMut<'_, B>,
) -> anyhow::Result<()> {
    let args = norm::Forward { x, residual: None, weight, centre: None, y, inverse };
    Ok(b.norm_forward(norm_of(sizes), args)?)
}

/// What the backward of an RMSNorm reads.
struct Normed<'a, B: Backend> {
    input: Half<'a, B>,
    weight: Half<'a, B>,
    dy: Half<'a, B>,
    /// The gradient that reaches the input past the norm.
    past: Option<Half<'a, B>>,
    inverse: Full<'a, B>,
}

/// Backward of RMSNorms, in two stages, with the memory between them.
struct NormBackward<'a, B: Backend> {
    sizes: &'a Sizes,
    partials: &'a mut B::Buffer<B::Full>,
    sums: &'a mut B::Buffer<B::Full>,
}

impl<B: Backend> NormBackward<'_, B> {
    fn run(
        &mut self,
        b: &B,
        normed: Normed<'_, B>,
        dinput: HalfMut<'_, B>,
        dweight: FullMut<'_, B>,
    ) -> anyhow::Result<()> {
        let Normed { input: s, weight, dy, past: dresidual, inverse } = normed;
        let norm = norm_of(self.sizes);
        b.norm_backward(
            norm,
            norm::Backward {
                s,
                weight,
                dy,
                dresidual,
                inverse,
                ds: dinput,
                dweight_partials: b.slice_mut(self.partials),
                centre: None,
            },
        )?;
        let rows = Rows { rows: norm::num_partials(norm), cols: norm.hidden };
        let len = partials_len(rows).context("too many rows")?;
        let mut sums = b.slice_mut(self.sums);
        Ok(b.column_sum_full(rows, b.slice(self.partials), sums.range(0..len), dweight, Output::Accumulate)?)
    }
}

fn norm_of(sizes: &Sizes) -> Norm {
    Norm { rows: sizes.rows, hidden: sizes.hidden, eps: sizes.rms_eps }
}

fn qkv_of(sizes: &Sizes) -> Qkv {
    let Sizes { rows, heads: num_heads, kv_heads: num_kv_heads, head_dim, .. } = *sizes;
    Qkv { rows, num_heads, num_kv_heads, head_dim }
}

fn attention_shape(sizes: &Sizes, cu_seqlens: &CuSeqlens) -> anyhow::Result<Shape> {
    let sequences = Sequences::Packed(cu_seqlens.clone());
    Ok(Shape::new((sizes.heads, sizes.kv_heads), sizes.head_dim, Mask::Causal, sequences)?)
}

fn pooling(sizes: &Sizes) -> Pooling {
    Pooling { batch: sizes.images, grid: sizes.grid, pooled: sizes.pooled, channels: sizes.vision }
}

pub(crate) fn floats<T: Float + Number>(values: &[f64]) -> Vec<T> {
    values.iter().map(|value| T::from_f64(*value)).collect()
}
