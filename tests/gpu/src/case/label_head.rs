//! The head of a language model and its loss as a whole, over the rows that carry a label alone.

use super::cross_entropy::{IGNORE, labels};
use super::{Call, Found, Input, On, Random};
use oqvl_kernels::backend::Backend;
use oqvl_kernels::column_sum::Rows;
use oqvl_kernels::cross_entropy::launch::Arguments;
use oqvl_kernels::cross_entropy::{CHANNELS, Loss};
use oqvl_kernels::device::Float as _;
use oqvl_kernels::gemm::Gemm;
use oqvl_kernels::label_head::LabelRows;
use serde_json::{Value, json};

/// Gathers, multiplies, computes the loss and multiplies back, a chunk of rows at a time; every fifth row has no label.
#[derive(Debug, Clone)]
pub(crate) struct LabelHeadCall {
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
    pub(crate) vocab: usize,
    pub(crate) chunk_rows: usize,
}

impl Call for LabelHeadCall {
    const OP: &'static str = "cross_entropy";

    fn name(&self) -> String {
        let Self { rows, hidden, vocab, chunk_rows } = self;
        format!("head of {rows} rows, {hidden} channels, {vocab} tokens, chunks of {chunk_rows}")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Self { rows, hidden, vocab, .. } = *self;
        vec![
            random.half("states", &[rows, hidden]),
            // Logits of size 1.
            random.scaled("weight", &[vocab, hidden], (hidden as f32).sqrt().recip()),
            random.scaled("old", &[vocab, hidden], 1e-3),
            labels(random, rows, vocab),
        ]
    }

    fn settings(&self) -> Value {
        json!({ "ignore": IGNORE })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let Self { hidden, vocab, chunk_rows, .. } = *self;
        let b = on.backend;
        let labelled = LabelRows::new(on.ints_of("labels")?, IGNORE);
        let count = labelled.rows().len();
        let [rows, places, labels] =
            [b.upload(labelled.rows())?, b.upload(labelled.places())?, b.upload(labelled.labels())?];
        let (states, weight) = (on.half("states")?, on.half("weight")?);
        let (mut dstates, mut dweight) = (on.room(self.rows * hidden)?, on.widened("old")?);
        let (mut gathered, mut dgathered) = (on.room(count * hidden)?, on.room(count * hidden)?);
        let mut logits = on.room(chunk_rows.min(count) * vocab)?;
        let mut stats = on.room(CHANNELS * count)?;
        let scale = b.upload(&[B::Full::from_f64(1.0 / count as f64)])?;
        b.gather_rows(hidden, b.slice(&states), b.slice(&rows), b.slice_mut(&mut gathered))?;
        for start in (0..count).step_by(chunk_rows) {
            let chunk = start..(start + chunk_rows).min(count);
            let num = chunk.len();
            let elements = chunk.start * hidden..chunk.end * hidden;
            let of_chunk = b.slice(&gathered).range(elements.clone());
            let mut logits = b.slice_mut(&mut logits);
            let mut logits = logits.range(0..num * vocab);
            let product = Gemm::new(num, vocab, hidden).with_b_transposed();
            b.gemm(&product, (of_chunk, b.slice(&weight)), None, logits.reborrow())?;
            let mut stats = b.slice_mut(&mut stats);
            let arguments = Arguments {
                logits: logits.reborrow(),
                labels: b.slice(&labels).range(chunk.clone()),
                scale: Some(b.slice(&scale)),
                stats: stats.range(CHANNELS * chunk.start..CHANNELS * chunk.end),
            };
            let loss = Loss { ignore_index: IGNORE, scale: 1.0, z_loss: 0.0 };
            b.cross_entropy(Rows { rows: num, cols: vocab }, loss, arguments)?;
            let product = Gemm::new(vocab, hidden, num).with_a_transposed().accumulating();
            b.gemm_full(&product, (logits.as_slice(), of_chunk), b.slice_mut(&mut dweight))?;
            let mut dgathered = b.slice_mut(&mut dgathered);
            let product = Gemm::new(num, hidden, vocab);
            let to = dgathered.range(elements);
            b.gemm(&product, (logits.as_slice(), b.slice(&weight)), None, to)?;
        }
        b.gather_rows(hidden, b.slice(&dgathered), b.slice(&places), b.slice_mut(&mut dstates))?;
        Ok(vec![
            on.found("stats", &stats)?.columns("losses", CHANNELS, 0..1),
            on.found("dstates", &dstates)?,
            on.found("dweight", &dweight)?,
        ])
    }
}
