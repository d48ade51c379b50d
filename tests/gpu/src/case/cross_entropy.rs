//! Softmax cross-entropy of given logits.

use super::{Bound, Call, Found, IN_F32, Input, On, Random, Values};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::cross_entropy::launch::{Arguments, Totals};
use oqvl_kernels::cross_entropy::{CHANNELS, Loss};
use serde_json::{Value, json};

/// The label of rows that have none.
pub(super) const IGNORE: i32 = -7;
const SCALE: f32 = 0.125;

/// Losses of all rows, their gradient, and their sums; every fifth row has no label.
#[derive(Debug, Clone)]
pub(crate) struct CrossEntropyCall {
    pub(crate) rows: usize,
    pub(crate) vocab: usize,
    pub(crate) z_loss: f32,
}

/// Every fifth of so many is none.
pub(super) fn labels(random: &mut Random, rows: usize, vocab: usize) -> Input {
    random.ints("labels", rows, |random, at| if at % 5 == 2 { IGNORE } else { random.below(vocab) })
}

impl Call for CrossEntropyCall {
    const OP: &'static str = "cross_entropy";

    fn name(&self) -> String {
        let Self { rows, vocab, z_loss } = self;
        let z_loss = if *z_loss > 0.0 { ", with z-loss" } else { "" };
        format!("{rows} x {vocab} logits{z_loss}")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let scale = Input { name: "scale", dims: vec![1], values: Values::Full(vec![0.5]) };
        vec![
            random.scaled("logits", &[self.rows, self.vocab], 3.0),
            labels(random, self.rows, self.vocab),
            scale,
        ]
    }

    fn settings(&self) -> Value {
        json!({ "ignore": IGNORE, "loss_scale": SCALE, "z_loss": self.z_loss })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let b = on.backend;
        let (mut logits, labels, scale) = (on.half("logits")?, on.ints("labels")?, on.full("scale")?);
        let mut stats = on.room(CHANNELS * self.rows)?;
        let (mut sums, mut counts) = (on.room(2)?, on.room::<i32>(2)?);
        let arguments = Arguments {
            logits: b.slice_mut(&mut logits),
            labels: b.slice(&labels),
            scale: Some(b.slice(&scale)),
            stats: b.slice_mut(&mut stats),
        };
        let loss = Loss { ignore_index: IGNORE, scale: SCALE, z_loss: self.z_loss };
        b.cross_entropy(Rows { rows: self.rows, cols: self.vocab }, loss, arguments)?;
        let totals = Totals {
            sums: b.slice_mut(&mut sums),
            counts: b.slice_mut(&mut counts),
            output: Output::Overwrite,
        };
        b.cross_entropy_totals(b.slice(&stats), totals)?;
        let counts = b.download(&counts)?.into_iter().map(f64::from).collect();
        Ok(vec![
            on.found("dlogits", &logits)?,
            on.found("stats", &stats)?.within(IN_F32),
            on.found("sums", &sums)?.within(IN_F32),
            Found { name: "counts", values: counts, bound: Bound::Exact },
        ])
    }
}
