//! The pooling of the projector.

use super::{Call, Found, Input, On, Random, Tensors, tensor};
use anyhow::Context as _;
use oqvl_kernels::adaptive_avg_pool;
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::backend::Backend;
use serde_json::{Value, json};

/// Forward and backward.
#[derive(Debug, Clone)]
pub(crate) struct AvgPoolCall(pub(crate) Pooling);

impl Call for AvgPoolCall {
    const OP: &'static str = "avg_pool";

    fn name(&self) -> String {
        let Pooling { batch, grid, pooled, channels } = self.0;
        format!("{batch} grids, {grid} to {pooled}, {channels} channels")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Pooling { batch, grid, pooled, channels } = self.0;
        vec![
            random.half("x", &[batch, grid * grid, channels]),
            random.half("dy", &[batch, pooled * pooled, channels]),
        ]
    }

    fn settings(&self) -> Value {
        json!({ "grid": self.0.grid, "pooled": self.0.pooled })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, sizes) = (on.backend, self.0);
        let lens = sizes.input_len().zip(sizes.output_len()).context("the sizes of a case can be counted")?;
        let (x, dy) = (on.half("x")?, on.half("dy")?);
        let (mut y, mut dx) = (on.room(lens.1)?, on.room(lens.0)?);
        b.avg_pool_forward(sizes, b.slice(&x), b.slice_mut(&mut y))?;
        b.avg_pool_backward(sizes, b.slice(&dy), b.slice_mut(&mut dx))?;
        Ok(vec![on.found("y", &y)?, on.found("dx", &dx)?])
    }

    fn through_candle(&self, inputs: &Tensors<'_>) -> Option<anyhow::Result<Vec<Found>>> {
        let run = || {
            let (x, dy) = (inputs.var("x")?, inputs.var("dy")?);
            let y = adaptive_avg_pool(&x, self.0.pooled)?;
            let mut results = vec![tensor("y", &y)?];
            results.extend(inputs.backward(&y, &dy, &[("dx", &x)])?);
            Ok(results)
        };
        Some(run())
    }
}
