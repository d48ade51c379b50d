//! A run of ten steps that PyTorch has made too: the files of `fixtures/`, which `fixtures/make.py` has written and describes.

use crate::{Activations, Layout, Pack, Report, Settings, Sizes, Training};
use anyhow::Context as _;
use oqvl_kernels::adamw::AdamW;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::embedding::visual_source;
use oqvl_kernels::{CuSeqlens, RopeTables};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use std::ops::Range;

/// Of which run of PyTorch something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// That in float32.
    F32,
    /// That in float64.
    F64,
}

/// The run, and what PyTorch has made of it.
pub struct Example {
    sizes: Sizes,
    config: Config,
    initial: Vec<f64>,
    packs: Vec<Pack>,
    angles: [Vec<f64>; 2],
    expected: Run,
    learning_rates: Vec<f64>,
}

/// What comes of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// Mean loss over the rows with a label, before each step.
    pub losses: Vec<f64>,
    /// Norm of the gradient of all parameters, before clipping.
    pub gradient_norms: Vec<f64>,
    /// Gradients of the first step.
    pub gradients: Vec<f64>,
    /// Parameters after the last.
    pub parameters: Vec<f64>,
}

impl Run {
    /// Every bit of it.
    #[must_use]
    pub fn bits(&self) -> Vec<u64> {
        let Self { losses, gradient_norms, gradients, parameters } = self;
        let all = [losses, gradient_norms, gradients, parameters].into_iter().flatten();
        all.map(|value| value.to_bits()).collect()
    }
}

#[derive(Deserialize)]
struct Config {
    text_config: TextConfig,
    vision_hidden_size: usize,
    grid: usize,
    pooled_grid: usize,
    optimizer: Optimizer,
}

#[derive(Deserialize)]
struct TextConfig {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    max_position_embeddings: usize,
    rope_theta: f64,
    rms_norm_eps: f64,
}

#[derive(Deserialize)]
struct Optimizer {
    betas: [f64; 2],
    eps: f64,
    weight_decay: f32,
    max_norm: f64,
}

impl Example {
    /// Reads the files, which are part of this program.
    ///
    /// # Errors
    /// If they are not of one run.
    pub fn load(precision: Precision) -> anyhow::Result<Self> {
        let config: Config = serde_json::from_slice(include_bytes!("../fixtures/config.json"))?;
        let initial = SafeTensors::deserialize(include_bytes!("../fixtures/initial.safetensors"))?;
        let batches = SafeTensors::deserialize(include_bytes!("../fixtures/batches.safetensors"))?;
        let expected = match precision {
            Precision::F32 => include_bytes!("../fixtures/f32.safetensors").as_slice(),
            Precision::F64 => include_bytes!("../fixtures/f64.safetensors"),
        };
        let expected = SafeTensors::deserialize(expected)?;
        let text = &config.text_config;
        let sizes = Sizes {
            rows: batches.tensor("0.tokens")?.shape()[0],
            images: batches.tensor("0.image_rows")?.shape()[0],
            vocab: text.vocab_size,
            hidden: text.hidden_size,
            intermediate: text.intermediate_size,
            layers: text.num_hidden_layers,
            heads: text.num_attention_heads,
            kv_heads: text.num_key_value_heads,
            head_dim: text.hidden_size / text.num_attention_heads,
            positions: text.max_position_embeddings,
            rms_eps: text.rms_norm_eps,
            vision: config.vision_hidden_size,
            grid: config.grid,
            pooled: config.pooled_grid,
            // More than one chunk, the last of which is not full.
            chunk_rows: 7,
        };
        let layout = Layout::new(&sizes, config.optimizer.weight_decay);
        let flat = |file: &SafeTensors<'_>, prefix: &str| -> anyhow::Result<Vec<f64>> {
            let mut all = vec![f64::NAN; layout.len()];
            for (name, range) in layout.tensors() {
                let values = floats(file, &format!("{prefix}{name}"))?;
                anyhow::ensure!(values.len() == range.len(), "{name} has {} elements", values.len());
                all[range].copy_from_slice(&values);
            }
            Ok(all)
        };
        let num_packs = batches.names().iter().filter(|name| name.ends_with(".tokens")).count();
        let packs = (0..num_packs).map(|number| pack(&sizes, &batches, number));
        Ok(Self {
            initial: flat(&initial, "")?,
            packs: packs.collect::<anyhow::Result<_>>()?,
            angles: angles(&sizes, text.rope_theta, precision),
            expected: Run {
                losses: floats(&expected, "losses")?,
                gradient_norms: floats(&expected, "gradient_norms")?,
                gradients: flat(&expected, "gradients.")?,
                parameters: flat(&expected, "parameters.")?,
            },
            learning_rates: floats(&expected, "learning_rates")?,
            sizes,
            config,
        })
    }

    /// Sizes of the networks and of every pack.
    #[must_use]
    pub fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Parameters before the first step.
    #[must_use]
    pub fn initial(&self) -> &[f64] {
        &self.initial
    }

    /// What PyTorch has made of it.
    #[must_use]
    pub fn expected(&self) -> &Run {
        &self.expected
    }

    /// Every tensor of a checkpoint: its name, and where it lies in the flat buffers of a [`Run`].
    #[must_use]
    pub fn tensors(&self) -> Vec<(String, Range<usize>)> {
        let layout = Layout::new(&self.sizes, 0.0);
        layout.tensors().map(|(name, range)| (name.to_owned(), range)).collect()
    }

    /// A run from the beginning.
    ///
    /// # Errors
    /// If there is not enough memory.
    pub fn training<B: Backend>(&self, backend: B, activations: Activations) -> anyhow::Result<Training<B>> {
        let Optimizer { betas: [beta1, beta2], eps, weight_decay, max_norm } = self.config.optimizer;
        let adamw = AdamW { beta1, beta2, eps, max_norm };
        let settings = Settings { adamw, weight_decay, activations };
        let [cos, sin] = &self.angles;
        let mut training = Training::new(backend, self.sizes, settings, [cos, sin])?;
        training.set_parameters(&self.initial)?;
        Ok(training)
    }

    /// What each step learns from, and at which rate.
    pub fn steps(&self) -> impl Iterator<Item = (&Pack, f64)> {
        self.packs.iter().cycle().zip(self.learning_rates.iter().copied())
    }

    /// All steps on a backend.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn run<B: Backend>(&self, backend: B, activations: Activations) -> anyhow::Result<Run> {
        self.run_steps(backend, activations, self.learning_rates.len())
    }

    /// The first steps on a backend.
    ///
    /// # Errors
    /// If the backend fails.
    pub fn run_steps<B: Backend>(
        &self,
        backend: B,
        activations: Activations,
        steps: usize,
    ) -> anyhow::Result<Run> {
        let mut training = self.training(backend, activations)?;
        let (mut reports, mut gradients) = (Vec::<Report>::new(), None);
        for (pack, lr) in self.steps().take(steps) {
            training.load(pack)?;
            training.forward(pack)?;
            training.backward(pack)?;
            if gradients.is_none() {
                gradients = Some(training.gradients()?);
            }
            training.update(lr)?;
            reports.push(training.report()?);
        }
        Ok(Run {
            losses: reports.iter().map(|report| report.loss).collect(),
            gradient_norms: reports.iter().map(|report| report.gradient_norm).collect(),
            gradients: gradients.context("a run has steps")?,
            parameters: training.parameters()?,
        })
    }
}

fn pack(sizes: &Sizes, batches: &SafeTensors<'_>, number: usize) -> anyhow::Result<Pack> {
    let mut sources = ints(batches, &format!("{number}.tokens"))?;
    for (feature, row) in ints(batches, &format!("{number}.image_rows"))?.into_iter().enumerate() {
        sources[usize::try_from(row)?] = visual_source(feature);
    }
    let cu_seqlens = CuSeqlens::new(ints(batches, &format!("{number}.cu_seqlens"))?)?;
    let vision = floats(batches, &format!("{number}.vision_features"))?;
    Pack::new(sizes, sources, &ints(batches, &format!("{number}.labels"))?, cu_seqlens, vision)
}

/// In f32 as networks are trained with; in f64 as the run in float64 has them, which no training has.
fn angles(sizes: &Sizes, theta: f64, precision: Precision) -> [Vec<f64>; 2] {
    let Sizes { head_dim, positions, .. } = *sizes;
    if precision == Precision::F32 {
        let (cos, sin) = RopeTables::new(head_dim, positions, theta).cos_sin();
        return [cos, sin];
    }
    let pairs = || (0..positions).flat_map(|position| (0..head_dim / 2).map(move |pair| (position, pair)));
    let angle = |(position, pair)| position as f64 / theta.powf(2.0 * pair as f64 / head_dim as f64);
    [pairs().map(|at| angle(at).cos()).collect(), pairs().map(|at| angle(at).sin()).collect()]
}

pub(crate) fn floats(file: &SafeTensors<'_>, name: &str) -> anyhow::Result<Vec<f64>> {
    let tensor = file.tensor(name).with_context(|| name.to_owned())?;
    match tensor.dtype() {
        Dtype::F32 => Ok(numbers(tensor.data(), |bytes| f64::from(f32::from_le_bytes(bytes)))),
        Dtype::F64 => Ok(numbers(tensor.data(), f64::from_le_bytes)),
        dtype => anyhow::bail!("{name} is {dtype:?}"),
    }
}

fn ints(file: &SafeTensors<'_>, name: &str) -> anyhow::Result<Vec<i32>> {
    let tensor = file.tensor(name).with_context(|| name.to_owned())?;
    anyhow::ensure!(tensor.dtype() == Dtype::I32, "{name} is {:?}", tensor.dtype());
    Ok(numbers(tensor.data(), i32::from_le_bytes))
}

fn numbers<const N: usize, T>(bytes: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|bytes| number(*bytes)).collect()
}
