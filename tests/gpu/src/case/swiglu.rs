//! SwiGLU of a fused projection.

use super::{Call, Found, Input, On, Random, Tensors, tensor};
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;

/// Forward and backward.
#[derive(Debug, Clone)]
pub(crate) struct SwigluCall(pub(crate) Rows);

impl Call for SwigluCall {
    const OP: &'static str = "swiglu";

    fn name(&self) -> String {
        format!("{} x {}", self.0.rows, self.0.cols)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Rows { rows, cols } = self.0;
        vec![random.half("gate_up", &[rows, 2 * cols]), random.half("dh", &[rows, cols])]
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, sizes) = (on.backend, self.0);
        let (gate_up, dh) = (on.half("gate_up")?, on.half("dh")?);
        let len = sizes.rows * sizes.cols;
        let (mut h, mut dgate_up) = (on.room(len)?, on.room(2 * len)?);
        b.swiglu_forward(sizes, b.slice(&gate_up), b.slice_mut(&mut h))?;
        b.swiglu_backward(sizes, b.slice(&gate_up), b.slice(&dh), b.slice_mut(&mut dgate_up))?;
        Ok(vec![on.found("h", &h)?, on.found("dgate_up", &dgate_up)?])
    }

    fn through_candle(&self, inputs: &Tensors<'_>) -> Option<anyhow::Result<Vec<Found>>> {
        let run = || {
            let (gate_up, dh) = (inputs.var("gate_up")?, inputs.var("dh")?);
            let half = |start| gate_up.narrow(1, start, self.0.cols)?.contiguous();
            let h = oqvl_kernels::swiglu(&half(0)?, &half(self.0.cols)?)?;
            let mut results = vec![tensor("h", &h)?];
            results.extend(inputs.backward(&h, &dh, &[("dgate_up", &gate_up)])?);
            Ok(results)
        };
        Some(run())
    }
}
