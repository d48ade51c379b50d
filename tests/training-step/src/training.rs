//! The step.

use crate::buffers::{Inputs, Layer, Parameters, Recomputed, Work};
use crate::pack::IGNORE_INDEX;
use crate::{Layout, Pack, Sizes};
use anyhow::Context as _;
use oqvl_kernels::Rows;
use oqvl_kernels::adamw::launch as adamw;
use oqvl_kernels::adamw::{AdamW, DecayRanges, NORM, SKIP};
use oqvl_kernels::attention::{FusedBackward, FusedForward, Mask, Sequences, Shape};
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
        sizes.check()?;
        let layout = Layout::new(&sizes, settings.weight_decay);
        let ranges = layout.decay()?;
        let b = &backend;
        Ok(Self {
            parameters: Parameters::new(b, &layout, &ranges)?,
            inputs: Inputs::new(b, &sizes)?,
            layers: Layer::all(b, &sizes)?,
            recomputed: Recomputed::all(b, &sizes, settings.activations)?,
            work: Work::new(b, &sizes, layout.len())?,
            cos: b.upload(&floats(cos))?,
            sin: b.upload(&floats(sin))?,
            backend,
            sizes,
            settings,
            layout,
            ranges,
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
        let scale = B::Full::from_f64(1.0 / pack.num_labels.max(1) as f64);
        b.copy_from_host(&floats(&pack.vision), b.slice_mut(&mut inputs.vision))?;
        b.copy_from_host(&[scale], b.slice_mut(&mut inputs.scale))?;
        for (from, to) in [
            (&pack.sources, &mut inputs.sources),
            (&pack.positions, &mut inputs.positions),
            (&pack.label_places, &mut inputs.label_places),
            (&pack.visual_indices, &mut inputs.visual_indices),
        ] {
            b.copy_from_host(from, b.slice_mut(to))?;
        }
        // As many as there are of each.
        for (from, to) in [
            (pack.cu_seqlens.boundaries(), &mut inputs.cu_seqlens),
            (&pack.label_rows, &mut inputs.label_rows),
            (&pack.labels, &mut inputs.labels),
            (pack.buckets.ids(), &mut inputs.bucket_ids),
            (pack.buckets.starts(), &mut inputs.bucket_starts),
            (pack.buckets.rows(), &mut inputs.bucket_rows),
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
        self.forward_embeddings()?;
        for index in 0..self.sizes.layers {
            self.forward_attention(pack, index)?;
            self.forward_mlp(index)?;
        }
        let Self { backend: b, sizes, layout, parameters, layers, work, .. } = self;
        let residual = b.slice(&layers[sizes.layers - 1].middle);
        let residual = norm::Residual { residual, sum: b.slice_mut(&mut work.output) };
        let weight = b.slice(&parameters.weights).range(layout.norm.clone());
        let normed = (b.slice_mut(&mut work.output_normed), b.slice_mut(&mut work.output_inverse));
        normalise(b, sizes, (b.slice(&work.branch), Some(residual)), weight, normed)?;
        self.head(pack)
    }

    /// The projector, and its tokens among the embeddings of the others.
    fn forward_embeddings(&mut self) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, inputs, layers, work, .. } = self;
        let weights = |range: &Range<usize>| b.slice(&parameters.weights).range(range.clone());
        let (rows, hidden) = (sizes.visual_rows(), sizes.hidden);
        let [[fc1, fc1_bias], [fc2, fc2_bias]] = &layout.projector;
        b.avg_pool_forward(pooling(sizes), b.slice(&inputs.vision), b.slice_mut(&mut work.pooled))?;
        let shape = Linear { rows, inputs: sizes.vision, outputs: hidden };
        shape.forward(b, b.slice(&work.pooled), weights(fc1), None, b.slice_mut(&mut work.fc1))?;
        let (x, y) = (b.slice(&work.fc1), b.slice_mut(&mut work.activated));
        b.bias_gelu_forward(Rows { rows, cols: hidden }, Gelu::Exact, x, weights(fc1_bias), y)?;
        let shape = Linear { rows, inputs: hidden, outputs: hidden };
        let bias = Some(weights(fc2_bias));
        shape.forward(b, b.slice(&work.activated), weights(fc2), bias, b.slice_mut(&mut work.visual))?;
        let from = Embeddings { table: weights(&layout.embedding), visual: b.slice(&work.visual) };
        let to = b.slice_mut(&mut layers[0].input);
        Ok(b.embedding_forward(hidden, from, b.slice(&inputs.sources), to)?)
    }

    /// From the residual stream to what attention adds to it.
    fn forward_attention(&mut self, pack: &Pack, index: usize) -> anyhow::Result<()> {
        let Self {
            backend: b, sizes, layout, parameters, inputs, layers, recomputed, work, cos, sin, ..
        } = self;
        let weights = |range: &Range<usize>| b.slice(&parameters.weights).range(range.clone());
        let of_layer = &layout.layers[index];
        let (before, layer) = layers.split_at_mut(index);
        let layer = &mut layer[0];
        let place = index.min(recomputed.len() - 1);
        let recomputed = &mut recomputed[place];
        let normed = (b.slice_mut(&mut recomputed.attention_normed), b.slice_mut(&mut layer.input_inverse));
        let weight = weights(&of_layer.attention_norm);
        match before.last() {
            None => normalise(b, sizes, (b.slice(&layer.input), None), weight, normed)?,
            // The sum of the residual stream and of what the last layer adds to it is made by the norm that reads it.
            Some(last) => {
                let (residual, sum) = (b.slice(&last.middle), b.slice_mut(&mut layer.input));
                let residual = norm::Residual { residual, sum };
                normalise(b, sizes, (b.slice(&work.branch), Some(residual)), weight, normed)?;
            }
        }
        let shape = Linear { rows: sizes.rows, inputs: sizes.hidden, outputs: sizes.qkv() };
        let normed = b.slice(&recomputed.attention_normed);
        shape.forward(b, normed, weights(&of_layer.qkv), None, b.slice_mut(&mut layer.qkv))?;
        let angles = Angles { positions: b.slice(&inputs.positions), cos: b.slice(cos), sin: b.slice(sin) };
        let bias = Some(weights(&of_layer.qkv_bias));
        b.rope_forward(qkv_of(sizes), b.slice_mut(&mut layer.qkv), bias, angles)?;
        let boundaries = 0..pack.cu_seqlens.boundaries().len();
        let args = FusedForward {
            qkv: b.slice(&layer.qkv),
            cu_seqlens: Some(b.slice(&inputs.cu_seqlens).range(boundaries)),
            out: b.slice_mut(&mut layer.attended),
            lse: b.slice_mut(&mut layer.lse),
        };
        b.attention_forward(&attention_shape(sizes, &pack.cu_seqlens)?, args)?;
        let shape = Linear { rows: sizes.rows, inputs: sizes.attended(), outputs: sizes.hidden };
        let attended = b.slice(&layer.attended);
        shape.forward(b, attended, weights(&of_layer.out), None, b.slice_mut(&mut work.branch))
    }

    /// The same of the MLP.
    fn forward_mlp(&mut self, index: usize) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, layers, recomputed, work, .. } = self;
        let weights = |range: &Range<usize>| b.slice(&parameters.weights).range(range.clone());
        let Sizes { rows, hidden, intermediate, .. } = *sizes;
        let (of_layer, layer) = (&layout.layers[index], &mut layers[index]);
        let place = index.min(recomputed.len() - 1);
        let recomputed = &mut recomputed[place];
        let residual =
            norm::Residual { residual: b.slice(&layer.input), sum: b.slice_mut(&mut layer.middle) };
        let normed = (b.slice_mut(&mut recomputed.mlp_normed), b.slice_mut(&mut layer.middle_inverse));
        let weight = weights(&of_layer.mlp_norm);
        normalise(b, sizes, (b.slice(&work.branch), Some(residual)), weight, normed)?;
        let shape = Linear { rows, inputs: hidden, outputs: 2 * intermediate };
        let normed = b.slice(&recomputed.mlp_normed);
        shape.forward(b, normed, weights(&of_layer.gate_up), None, b.slice_mut(&mut layer.gate_up))?;
        let product = b.slice_mut(&mut recomputed.product);
        b.swiglu_forward(Rows { rows, cols: intermediate }, b.slice(&layer.gate_up), product)?;
        let shape = Linear { rows, inputs: intermediate, outputs: hidden };
        let product = b.slice(&recomputed.product);
        shape.forward(b, product, weights(&of_layer.down), None, b.slice_mut(&mut work.branch))
    }

    /// Logits, losses and the gradient of the head, of rows with a label alone, a chunk at a time.
    fn head(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, inputs, work, .. } = self;
        let Sizes { hidden, vocab, .. } = *sizes;
        let Parameters { weights, gradients, .. } = parameters;
        let embedding = || b.slice(weights).range(layout.embedding.clone());
        // Filled up to whole chunks, so that products have one size whatever the number of labels.
        let num_labels = pack.labels.len();
        let indices = b.slice(&inputs.label_rows).range(0..num_labels);
        let mut gathered = b.slice_mut(&mut work.gathered);
        b.gather_rows(hidden, b.slice(&work.output_normed), indices, gathered.range(0..num_labels * hidden))?;
        let loss = Loss { ignore_index: IGNORE_INDEX, scale: 1.0, z_loss: 0.0 };
        let mut output = Output::Overwrite;
        for start in (0..num_labels).step_by(sizes.chunk_rows) {
            let chunk = start..start + sizes.chunk_rows;
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
        let Self { backend: b, sizes, layout, parameters, work, .. } = self;
        let Parameters { weights, gradients, .. } = parameters;
        let mut gradients = b.slice_mut(gradients);
        let normed = Normed {
            input: b.slice(&work.output),
            weight: b.slice(weights).range(layout.norm.clone()),
            dy: b.slice(&work.dnormed),
            past: None,
            inverse: b.slice(&work.output_inverse),
        };
        let between = (&mut work.norm_partials, &mut work.sum_partials);
        let to = (b.slice_mut(&mut work.dstream), gradients.range(layout.norm.clone()));
        normed.backward(b, sizes, between, to)?;
        for index in (0..self.sizes.layers).rev() {
            if self.settings.activations == Activations::CheapRecomputed {
                self.recompute(index)?;
            }
            self.backward_mlp(index)?;
            self.backward_attention(pack, index)?;
        }
        self.backward_embeddings(pack)?;
        self.backward_projector()
    }

    /// What the forward has made and not kept, by the same operations on the same numbers.
    fn recompute(&mut self, index: usize) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, layers, recomputed, .. } = self;
        let weights = |range: &Range<usize>| b.slice(&parameters.weights).range(range.clone());
        let (of_layer, layer, recomputed) = (&layout.layers[index], &mut layers[index], &mut recomputed[0]);
        let of_product = Rows { rows: sizes.rows, cols: sizes.intermediate };
        b.swiglu_forward(of_product, b.slice(&layer.gate_up), b.slice_mut(&mut recomputed.product))?;
        let normed = (b.slice_mut(&mut recomputed.mlp_normed), b.slice_mut(&mut layer.middle_inverse));
        normalise(b, sizes, (b.slice(&layer.middle), None), weights(&of_layer.mlp_norm), normed)?;
        let normed = (b.slice_mut(&mut recomputed.attention_normed), b.slice_mut(&mut layer.input_inverse));
        normalise(b, sizes, (b.slice(&layer.input), None), weights(&of_layer.attention_norm), normed)
    }

    /// From the gradient of the residual stream after the MLP to that before it.
    fn backward_mlp(&mut self, index: usize) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, layers, recomputed, work, .. } = self;
        let Parameters { weights, gradients, .. } = parameters;
        let weights = |range: &Range<usize>| b.slice(weights).range(range.clone());
        let mut gradients = b.slice_mut(gradients);
        let Sizes { rows, hidden, intermediate, .. } = *sizes;
        let (of_layer, layer) = (&layout.layers[index], &layers[index]);
        let recomputed = &recomputed[index.min(recomputed.len() - 1)];
        let dstream = b.slice(&work.dstream);

        let shape = Linear { rows, inputs: intermediate, outputs: hidden };
        let inputs = (b.slice(&recomputed.product), weights(&of_layer.down), dstream);
        let dproduct = b.slice_mut(&mut work.dproduct);
        shape.backward(b, inputs, dproduct, gradients.range(of_layer.down.clone()))?;
        let of_product = Rows { rows, cols: intermediate };
        let (gate_up, dproduct) = (b.slice(&layer.gate_up), b.slice(&work.dproduct));
        b.swiglu_backward(of_product, gate_up, dproduct, b.slice_mut(&mut work.dgate_up))?;
        let shape = Linear { rows, inputs: hidden, outputs: 2 * intermediate };
        let normed = b.slice(&recomputed.mlp_normed);
        let inputs = (normed, weights(&of_layer.gate_up), b.slice(&work.dgate_up));
        let dnormed = b.slice_mut(&mut work.dnormed);
        shape.backward(b, inputs, dnormed, gradients.range(of_layer.gate_up.clone()))?;
        let normed = Normed {
            input: b.slice(&layer.middle),
            weight: weights(&of_layer.mlp_norm),
            dy: b.slice(&work.dnormed),
            past: Some(dstream),
            inverse: b.slice(&layer.middle_inverse),
        };
        let between = (&mut work.norm_partials, &mut work.sum_partials);
        let to = (b.slice_mut(&mut work.dmiddle), gradients.range(of_layer.mlp_norm.clone()));
        normed.backward(b, sizes, between, to)
    }

    /// From the gradient of the residual stream after attention to that before it.
    fn backward_attention(&mut self, pack: &Pack, index: usize) -> anyhow::Result<()> {
        let Self {
            backend: b, sizes, layout, parameters, inputs, layers, recomputed, work, cos, sin, ..
        } = self;
        let Parameters { weights, gradients, .. } = parameters;
        let weights = |range: &Range<usize>| b.slice(weights).range(range.clone());
        let mut gradients = b.slice_mut(gradients);
        let Sizes { rows, hidden, .. } = *sizes;
        let (of_layer, layer) = (&layout.layers[index], &layers[index]);
        let recomputed = &recomputed[index.min(recomputed.len() - 1)];
        let dmiddle = b.slice(&work.dmiddle);

        let shape = Linear { rows, inputs: sizes.attended(), outputs: hidden };
        let inputs_of_out = (b.slice(&layer.attended), weights(&of_layer.out), dmiddle);
        let dattended = b.slice_mut(&mut work.dattended);
        shape.backward(b, inputs_of_out, dattended, gradients.range(of_layer.out.clone()))?;
        let boundaries = 0..pack.cu_seqlens.boundaries().len();
        let args = FusedBackward {
            qkv: b.slice(&layer.qkv),
            cu_seqlens: Some(b.slice(&inputs.cu_seqlens).range(boundaries)),
            out: b.slice(&layer.attended),
            lse: b.slice(&layer.lse),
            dout: b.slice(&work.dattended),
            dqkv: b.slice_mut(&mut work.dqkv),
            workspace: b.slice_mut(&mut work.attention),
        };
        b.attention_backward(&attention_shape(sizes, &pack.cu_seqlens)?, args)?;
        let angles = Angles { positions: b.slice(&inputs.positions), cos: b.slice(cos), sin: b.slice(sin) };
        let of_qkv = Rows { rows, cols: sizes.qkv() };
        let mut partials = b.slice_mut(&mut work.sum_partials);
        let bias = BiasGradient {
            partials: partials.range(0..partials_len(of_qkv).context("too many rows")?),
            dbias: gradients.range(of_layer.qkv_bias.clone()),
            output: Output::Accumulate,
        };
        b.rope_backward(qkv_of(sizes), b.slice_mut(&mut work.dqkv), angles, Some(bias))?;
        let shape = Linear { rows, inputs: hidden, outputs: sizes.qkv() };
        let normed = b.slice(&recomputed.attention_normed);
        let inputs_of_qkv = (normed, weights(&of_layer.qkv), b.slice(&work.dqkv));
        let dnormed = b.slice_mut(&mut work.dnormed);
        shape.backward(b, inputs_of_qkv, dnormed, gradients.range(of_layer.qkv.clone()))?;
        let normed = Normed {
            input: b.slice(&layer.input),
            weight: weights(&of_layer.attention_norm),
            dy: b.slice(&work.dnormed),
            past: Some(dmiddle),
            inverse: b.slice(&layer.input_inverse),
        };
        let between = (&mut work.norm_partials, &mut work.sum_partials);
        let to = (b.slice_mut(&mut work.dstream), gradients.range(of_layer.attention_norm.clone()));
        normed.backward(b, sizes, between, to)
    }

    /// To the table of tokens, and to the tokens of images.
    fn backward_embeddings(&mut self, pack: &Pack) -> anyhow::Result<()> {
        let Self { backend: b, sizes, layout, parameters, inputs, work, .. } = self;
        let num_buckets = pack.buckets.ids().len();
        let buckets = DeviceBuckets {
            ids: b.slice(&inputs.bucket_ids).range(0..num_buckets),
            starts: b.slice(&inputs.bucket_starts).range(0..num_buckets + 1),
            rows: b.slice(&inputs.bucket_rows).range(0..pack.buckets.rows().len()),
        };
        let dstream = b.slice(&work.dstream);
        let mut gradients = b.slice_mut(&mut parameters.gradients);
        let dtable = gradients.range(layout.embedding.clone());
        b.embedding_backward(sizes.hidden, dstream, buckets, dtable)?;
        let indices = b.slice(&inputs.visual_indices);
        Ok(b.gather_rows(sizes.hidden, dstream, indices, b.slice_mut(&mut work.dvisual))?)
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

/// An RMSNorm, of `x` or of its sum with a residual.
fn normalise<B: Backend>(
    b: &B,
    sizes: &Sizes,
    (x, residual): (Half<'_, B>, Option<norm::Residual<'_, B>>),
    weight: Half<'_, B>,
    (y, inverse): (HalfMut<'_, B>, FullMut<'_, B>),
) -> anyhow::Result<()> {
    let args = norm::Forward { x, residual, weight, centre: None, y, inverse };
    Ok(b.norm_forward(norm_of(sizes), args)?)
}

type FullBuffer<B> = <B as Memory>::Buffer<<B as Memory>::Full>;

/// What the backward of an RMSNorm reads.
struct Normed<'a, B: Backend> {
    input: Half<'a, B>,
    weight: Half<'a, B>,
    dy: Half<'a, B>,
    /// The gradient that reaches the input past the norm.
    past: Option<Half<'a, B>>,
    inverse: Full<'a, B>,
}

impl<B: Backend> Normed<'_, B> {
    /// Overwrites the gradient of the input, and adds to that of the gains, by way of sums of some rows and sums of those.
    fn backward(
        self,
        b: &B,
        sizes: &Sizes,
        (partials, sums): (&mut FullBuffer<B>, &mut FullBuffer<B>),
        (dinput, dweight): (HalfMut<'_, B>, FullMut<'_, B>),
    ) -> anyhow::Result<()> {
        let Self { input: s, weight, dy, past: dresidual, inverse } = self;
        let norm = norm_of(sizes);
        let dweight_partials = b.slice_mut(partials);
        let args =
            norm::Backward { s, weight, dy, dresidual, inverse, ds: dinput, dweight_partials, centre: None };
        b.norm_backward(norm, args)?;
        let rows = Rows { rows: norm::num_partials(norm), cols: norm.hidden };
        let len = partials_len(rows).context("too many rows")?;
        let mut sums = b.slice_mut(sums);
        Ok(b.column_sum_full(rows, b.slice(partials), sums.range(0..len), dweight, Output::Accumulate)?)
    }
}

pub(crate) fn norm_of(sizes: &Sizes) -> Norm {
    Norm { rows: sizes.rows, hidden: sizes.hidden, eps: sizes.rms_eps }
}

fn qkv_of(sizes: &Sizes) -> Qkv {
    let Sizes { rows, heads: num_heads, kv_heads: num_kv_heads, head_dim, .. } = *sizes;
    Qkv { rows, num_heads, num_kv_heads, head_dim }
}

pub(crate) fn attention_shape(sizes: &Sizes, cu_seqlens: &CuSeqlens) -> anyhow::Result<Shape> {
    let sequences = Sequences::Packed(cu_seqlens.clone());
    Ok(Shape::new((sizes.heads, sizes.kv_heads), sizes.head_dim, Mask::Causal, sequences)?)
}

fn pooling(sizes: &Sizes) -> Pooling {
    Pooling { batch: sizes.images, grid: sizes.grid, pooled: sizes.pooled, channels: sizes.vision }
}

pub(crate) fn floats<T: Float + Number>(values: &[f64]) -> Vec<T> {
    values.iter().map(|value| T::from_f64(*value)).collect()
}
