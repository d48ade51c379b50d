//! Embeddings of tokens and visual features.

use super::{Bound, Call, Found, IN_F32, Input, On, Random};
use oqvl_kernels::backend::Backend;
use oqvl_kernels::embedding::launch::{DeviceBuckets, Embeddings};
use oqvl_kernels::embedding::{Buckets, visual_indices, visual_source};
use serde_json::{Value, json};

/// A token that has no gradient.
const PADDING: i32 = 0;

/// Of a sequence whose first rows, after one token, are the visual features; each token is there several times.
#[derive(Debug, Clone)]
pub(crate) struct EmbeddingCall {
    pub(crate) rows: usize,
    pub(crate) visual_rows: usize,
    pub(crate) vocab: usize,
    pub(crate) hidden: usize,
}

impl Call for EmbeddingCall {
    const OP: &'static str = "embedding";

    fn name(&self) -> String {
        let Self { rows, visual_rows, vocab, hidden } = self;
        format!("{rows} rows, {visual_rows} of them visual, {vocab} tokens, {hidden} channels")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Self { rows, visual_rows, vocab, hidden } = *self;
        let source = |random: &mut Random, at: usize| match at.checked_sub(1) {
            Some(row) if row < visual_rows => visual_source(row),
            // Every other row from a few tokens, which have long buckets.
            _ if at.is_multiple_of(2) => random.below(vocab.min(7)),
            _ => random.below(vocab),
        };
        vec![
            random.half("table", &[vocab, hidden]),
            random.half("visual", &[visual_rows, hidden]),
            random.half("dy", &[rows, hidden]),
            random.full("old", &[vocab, hidden]),
            random.ints("sources", rows, source),
        ]
    }

    fn settings(&self) -> Value {
        json!({ "padding": PADDING })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let Self { rows, visual_rows, hidden, .. } = *self;
        let b = on.backend;
        let (table, visual, dy) = (on.half("table")?, on.half("visual")?, on.half("dy")?);
        let (sources, mut dtable) = (on.ints("sources")?, on.full("old")?);
        let from = on.ints_of("sources")?;
        let buckets = Buckets::new(from, Some(PADDING));
        let [ids, starts, listed] =
            [b.upload(buckets.ids())?, b.upload(buckets.starts())?, b.upload(buckets.rows())?];
        let of_visual = b.upload(&visual_indices(from, visual_rows)?)?;
        let (mut y, mut dvisual) = (on.room(rows * hidden)?, on.room(visual_rows * hidden)?);
        let embeddings = Embeddings { table: b.slice(&table), visual: b.slice(&visual) };
        b.embedding_forward(hidden, embeddings, b.slice(&sources), b.slice_mut(&mut y))?;
        let buckets = DeviceBuckets { ids: b.slice(&ids), starts: b.slice(&starts), rows: b.slice(&listed) };
        b.embedding_backward(hidden, b.slice(&dy), buckets, b.slice_mut(&mut dtable))?;
        b.gather_rows(hidden, b.slice(&dy), b.slice(&of_visual), b.slice_mut(&mut dvisual))?;
        Ok(vec![
            on.found("y", &y)?.within(Bound::Exact),
            on.found("dtable", &dtable)?.within(IN_F32),
            on.found("dvisual", &dvisual)?.within(Bound::Exact),
        ])
    }
}
