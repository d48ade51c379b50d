//! GELU of a sum with a bias.

use super::{Call, Found, IN_F32, Input, On, Random, Tensors, sum_partials, tensor};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::column_sum::launch::BiasGradient;
use serde_json::{Value, json};

/// Forward and backward, with the gradient of the bias in full precision.
#[derive(Debug, Clone)]
pub(crate) struct BiasGeluCall(pub(crate) Gelu, pub(crate) Rows);

impl Call for BiasGeluCall {
    const OP: &'static str = "bias_gelu";

    fn name(&self) -> String {
        format!("{} x {}, {:?}", self.1.rows, self.1.cols, self.0)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Rows { rows, cols } = self.1;
        vec![random.half("x", &[rows, cols]), random.half("bias", &[cols]), random.half("dy", &[rows, cols])]
    }

    fn settings(&self) -> Value {
        json!({ "approximate": if self.0 == Gelu::Tanh { "tanh" } else { "none" } })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, kind, sizes) = (on.backend, self.0, self.1);
        let len = sizes.rows * sizes.cols;
        let (x, bias, dy) = (on.half("x")?, on.half("bias")?, on.half("dy")?);
        let (mut y, mut dx, mut dbias) = (on.room(len)?, on.room(len)?, on.room(sizes.cols)?);
        let mut partials = on.room(sum_partials(sizes)?)?;
        b.bias_gelu_forward(sizes, kind, b.slice(&x), b.slice(&bias), b.slice_mut(&mut y))?;
        let inputs = (b.slice(&x), b.slice(&bias), b.slice(&dy));
        let to_dbias = BiasGradient {
            partials: b.slice_mut(&mut partials),
            dbias: b.slice_mut(&mut dbias),
            output: Output::Overwrite,
        };
        b.bias_gelu_backward(sizes, kind, inputs, b.slice_mut(&mut dx), to_dbias)?;
        Ok(vec![on.found("y", &y)?, on.found("dx", &dx)?, on.found("dbias", &dbias)?.within(IN_F32)])
    }

    fn through_candle(&self, inputs: &Tensors<'_>) -> Option<anyhow::Result<Vec<Found>>> {
        let run = || {
            let (x, bias, dy) = (inputs.var("x")?, inputs.var("bias")?, inputs.var("dy")?);
            let y = match self.0 {
                Gelu::Exact => oqvl_kernels::bias_gelu(&x, &bias)?,
                Gelu::Tanh => oqvl_kernels::bias_gelu_tanh(&x, &bias)?,
            };
            let mut results = vec![tensor("y", &y)?];
            results.extend(inputs.backward(&y, &dy, &[("dx", &x), ("dbias", &bias)])?);
            Ok(results)
        };
        Some(run())
    }
}
