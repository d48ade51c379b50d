//! Bias and rotary embedding of a fused projection.

use super::{Call, Found, IN_F32, Input, On, Random, Values, sum_partials};
use anyhow::Context as _;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::column_sum::launch::BiasGradient;
use oqvl_kernels::rope::launch::{Angles, Qkv};
use oqvl_kernels::rope::positions;
use oqvl_kernels::{CuSeqlens, Output, RopeTables};
use serde_json::{Value, json};

/// Of the rows of packed sequences, whose positions begin anew; both ways in place.
#[derive(Debug, Clone)]
pub(crate) struct RopeCall {
    /// Query heads, and key heads.
    pub(crate) heads: (usize, usize),
    pub(crate) head_dim: usize,
    pub(crate) boundaries: CuSeqlens,
}

impl RopeCall {
    pub(crate) fn new(heads: (usize, usize), head_dim: usize, boundaries: &[i32]) -> Self {
        let boundaries = CuSeqlens::new(boundaries.to_vec()).expect("the boundaries of a case are in order");
        Self { heads, head_dim, boundaries }
    }

    fn sizes(&self) -> Qkv {
        let (num_heads, num_kv_heads) = self.heads;
        Qkv { rows: self.boundaries.num_rows(), num_heads, num_kv_heads, head_dim: self.head_dim }
    }

    fn cols(&self) -> usize {
        (self.heads.0 + 2 * self.heads.1) * self.head_dim
    }
}

impl Call for RopeCall {
    const OP: &'static str = "rope";

    fn name(&self) -> String {
        let Self { heads, head_dim, boundaries } = self;
        let (sequences, rows) = (boundaries.num_sequences(), boundaries.num_rows());
        format!("{sequences} packed in {rows}, {}:{} heads of {head_dim}", heads.0, heads.1)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let (rows, cols) = (self.boundaries.num_rows(), self.cols());
        let num_positions = self.boundaries.max_len();
        let (cos, sin) = RopeTables::new(self.head_dim, num_positions, 1_000_000.0).cos_sin::<f32>();
        let table = |name, values| {
            let dims = vec![num_positions, self.head_dim / 2];
            Input { name, dims, values: Values::Full(values) }
        };
        let positions = positions(&self.boundaries);
        vec![
            random.half("qkv", &[rows, cols]),
            random.half("bias", &[cols]),
            random.half("dy", &[rows, cols]),
            table("cos", cos),
            table("sin", sin),
            Input { name: "positions", dims: vec![rows], values: Values::Ints(positions) },
        ]
    }

    fn settings(&self) -> Value {
        json!({ "rotated_heads": self.heads.0 + self.heads.1, "head_dim": self.head_dim })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, sizes) = (on.backend, self.sizes());
        let (mut qkv, bias, mut dqkv) = (on.half("qkv")?, on.half("bias")?, on.half("dy")?);
        let (positions, cos, sin) = (on.ints("positions")?, on.full("cos")?, on.full("sin")?);
        let matrix = sizes.sizes().context("the sizes of a case can be counted")?;
        let (mut partials, mut dbias) = (on.room(sum_partials(matrix)?)?, on.room(matrix.cols)?);
        let angles = || Angles { positions: b.slice(&positions), cos: b.slice(&cos), sin: b.slice(&sin) };
        b.rope_forward(sizes, b.slice_mut(&mut qkv), Some(b.slice(&bias)), angles())?;
        let to_dbias = BiasGradient {
            partials: b.slice_mut(&mut partials),
            dbias: b.slice_mut(&mut dbias),
            output: Output::Overwrite,
        };
        b.rope_backward(sizes, b.slice_mut(&mut dqkv), angles(), Some(to_dbias))?;
        Ok(vec![on.found("y", &qkv)?, on.found("dqkv", &dqkv)?, on.found("dbias", &dbias)?.within(IN_F32)])
    }
}
