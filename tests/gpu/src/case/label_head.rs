//! The head of a language model and its loss as a whole, over the rows that carry a label alone.

use super::cross_entropy::{IGNORE, labels};
use super::{Call, Found, Input, On, Random};
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::cross_entropy::launch::Arguments;
use oqvl_kernels::cross_entropy::{CHANNELS, Loss};
use oqvl_kernels::device::{Float as _, Memory};
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
        let b = on.backend;
        let mut buffers = self.buffers(b, on.ints_of("labels")?, IGNORE, |len| on.room(len))?;
        (buffers.states, buffers.weight) = (on.half("states")?, on.half("weight")?);
        buffers.dweight = on.widened("old")?;
        self.step(b, &mut buffers, IGNORE)?;
        Ok(vec![
            on.found("stats", &buffers.stats)?.columns("losses", CHANNELS, 0..1),
            on.found("dstates", &buffers.dstates)?,
            on.found("dweight", &buffers.dweight)?,
        ])
    }
}

/// All memory of a head.
pub(crate) struct HeadBuffers<B: Memory> {
    labelled: [B::Buffer<i32>; 3],
    num_labelled: usize,
    scale: B::Buffer<B::Full>,
    states: B::Buffer<B::Half>,
    weight: B::Buffer<B::Half>,
    gathered: B::Buffer<B::Half>,
    dgathered: B::Buffer<B::Half>,
    dstates: B::Buffer<B::Half>,
    logits: B::Buffer<B::Half>,
    stats: B::Buffer<B::Full>,
    /// The gradient of the weight, which is added to.
    pub(crate) dweight: B::Buffer<B::Full>,
}

impl LabelHeadCall {
    /// Takes the memory. `half` makes what is read: states and weight.
    pub(crate) fn buffers<B: Backend>(
        &self,
        b: &B,
        labels: &[i32],
        ignore: i32,
        half: impl Fn(usize) -> anyhow::Result<B::Buffer<B::Half>>,
    ) -> anyhow::Result<HeadBuffers<B>> {
        let Self { rows, hidden, vocab, chunk_rows } = *self;
        let labelled = LabelRows::new(labels, ignore);
        let count = labelled.rows().len();
        Ok(HeadBuffers {
            labelled: [
                b.upload(labelled.rows())?,
                b.upload(labelled.places())?,
                b.upload(labelled.labels())?,
            ],
            num_labelled: count,
            scale: b.upload(&[B::Full::from_f64(1.0 / count as f64)])?,
            states: half(rows * hidden)?,
            weight: half(vocab * hidden)?,
            gathered: b.poisoned(count * hidden)?,
            dgathered: b.poisoned(count * hidden)?,
            dstates: b.poisoned(rows * hidden)?,
            logits: b.poisoned(chunk_rows.min(count) * vocab)?,
            stats: b.poisoned(CHANNELS * count)?,
            dweight: b.poisoned(vocab * hidden)?,
        })
    }

    /// Loss and gradients.
    pub(crate) fn step<B: Backend>(
        &self,
        b: &B,
        buffers: &mut HeadBuffers<B>,
        ignore: i32,
    ) -> candle_core::Result<()> {
        let Self { hidden, vocab, chunk_rows, .. } = *self;
        let HeadBuffers { labelled: [rows, places, labels], num_labelled: count, .. } = buffers;
        let count = *count;
        let weight = b.slice(&buffers.weight);
        b.gather_rows(hidden, b.slice(&buffers.states), b.slice(rows), b.slice_mut(&mut buffers.gathered))?;
        for start in (0..count).step_by(chunk_rows) {
            let chunk = start..(start + chunk_rows).min(count);
            let num = chunk.len();
            let elements = chunk.start * hidden..chunk.end * hidden;
            let states = b.slice(&buffers.gathered).range(elements.clone());
            let mut logits = b.slice_mut(&mut buffers.logits);
            let mut logits = logits.range(0..num * vocab);
            let product = Gemm::new(num, vocab, hidden).with_b_transposed();
            b.gemm(&product, (states, weight), None, logits.reborrow())?;
            let mut stats = b.slice_mut(&mut buffers.stats);
            let arguments = Arguments {
                logits: logits.reborrow(),
                labels: b.slice(labels).range(chunk.clone()),
                scale: Some(b.slice(&buffers.scale)),
                stats: stats.range(CHANNELS * chunk.start..CHANNELS * chunk.end),
            };
            let loss = Loss { ignore_index: ignore, scale: 1.0, z_loss: 0.0 };
            b.cross_entropy(Rows { rows: num, cols: vocab }, loss, arguments)?;
            let product = Gemm::new(vocab, hidden, num).with_a_transposed().accumulating();
            b.gemm_full(&product, (logits.as_slice(), states), b.slice_mut(&mut buffers.dweight))?;
            let mut dgathered = b.slice_mut(&mut buffers.dgathered);
            let to = dgathered.range(elements);
            b.gemm(&Gemm::new(num, hidden, vocab), (logits.as_slice(), weight), None, to)?;
        }
        let from = b.slice(&buffers.dgathered);
        b.gather_rows(hidden, from, b.slice(places), b.slice_mut(&mut buffers.dstates))
    }
}
