//! RMSNorm and LayerNorm.

use super::{Bound, Call, Found, IN_F32, Input, On, Random, Tensors, sum_partials, tensor};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::norm::{self, Norm};
use serde_json::{Value, json};

const EPS: f64 = 1e-6;

/// Which norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Rms,
    Layer,
}

/// What goes past the norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    Nothing,
    /// The residual stream, which is added to before, and whose gradient is added after.
    Residual,
}

/// Forward, backward, and the sums that make the gradients of the gains.
#[derive(Debug, Clone)]
pub(crate) struct NormCall {
    pub(crate) kind: Kind,
    pub(crate) past: Past,
    pub(crate) rows: usize,
    pub(crate) hidden: usize,
}

impl NormCall {
    fn sizes(&self) -> Norm {
        Norm { rows: self.rows, hidden: self.hidden, eps: EPS }
    }

    /// What is computed in f32: of inputs as they are, or of a sum that was rounded.
    fn bound(&self) -> Bound {
        if self.past == Past::Nothing { IN_F32 } else { Bound::BesidePytorch }
    }
}

impl Call for NormCall {
    const OP: &'static str = "norm";

    fn name(&self) -> String {
        let residual = if self.past == Past::Residual { ", with the residual stream" } else { "" };
        format!("{:?}, {} x {}{residual}", self.kind, self.rows, self.hidden)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let (dims, gains) = ([self.rows, self.hidden], [self.hidden]);
        let mut inputs =
            vec![random.half("x", &dims), random.half("weight", &gains), random.half("dy", &dims)];
        if self.kind == Kind::Layer {
            inputs.push(random.half("bias", &gains));
        }
        if self.past == Past::Residual {
            inputs.extend([random.half("residual", &dims), random.half("dresidual", &dims)]);
        }
        inputs
    }

    fn settings(&self) -> Value {
        json!({ "eps": EPS })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, sizes) = (on.backend, self.sizes());
        let len = self.rows * self.hidden;
        let (x, weight, dy) = (on.half("x")?, on.half("weight")?, on.half("dy")?);
        let bias = (self.kind == Kind::Layer).then(|| on.half("bias")).transpose()?;
        let has_residual = self.past == Past::Residual;
        let residual = has_residual.then(|| on.half("residual")).transpose()?;
        let dresidual = has_residual.then(|| on.half("dresidual")).transpose()?;
        let (mut sum, mut y, mut ds) = (on.room(len)?, on.room(len)?, on.room(len)?);
        let (mut inverse, mut mean) = (on.room(self.rows)?, on.room(self.rows)?);
        let partials = norm::partials_len(sizes)?;
        let [mut of_weight, mut of_bias] = [on.room(partials)?, on.room(partials)?];
        let forward = norm::Forward {
            x: b.slice(&x),
            residual: residual
                .as_ref()
                .map(|residual| norm::Residual { residual: b.slice(residual), sum: b.slice_mut(&mut sum) }),
            weight: b.slice(&weight),
            centre: bias
                .as_ref()
                .map(|bias| norm::Centre { bias: b.slice(bias), mean: b.slice_mut(&mut mean) }),
            y: b.slice_mut(&mut y),
            inverse: b.slice_mut(&mut inverse),
        };
        b.norm_forward(sizes, forward)?;
        let backward = norm::Backward {
            s: b.slice(if has_residual { &sum } else { &x }),
            weight: b.slice(&weight),
            dy: b.slice(&dy),
            dresidual: dresidual.as_ref().map(|dresidual| b.slice(dresidual)),
            inverse: b.slice(&inverse),
            ds: b.slice_mut(&mut ds),
            dweight_partials: b.slice_mut(&mut of_weight),
            centre: bias.as_ref().map(|_| norm::CentreBackward {
                mean: b.slice(&mean),
                dbias_partials: b.slice_mut(&mut of_bias),
            }),
        };
        b.norm_backward(sizes, backward)?;
        let sums = Rows { rows: norm::num_partials(sizes), cols: self.hidden };
        let gain = |name, from: &B::Buffer<B::Full>| {
            let (mut partials, mut to) = (on.room(sum_partials(sums)?)?, on.room(self.hidden)?);
            let (between, to_gain) = (b.slice_mut(&mut partials), b.slice_mut(&mut to));
            b.column_sum_full(sums, b.slice(from), between, to_gain, Output::Overwrite)?;
            on.found(name, &to)
        };
        let mut results = vec![
            on.found("y", &y)?,
            on.found("inverse", &inverse)?.within(self.bound()),
            on.found("dx", &ds)?,
            gain("dweight", &of_weight)?.within(self.bound()),
        ];
        if has_residual {
            results.push(on.found("sum", &sum)?);
        }
        if self.kind == Kind::Layer {
            results.push(on.found("mean", &mean)?.within(self.bound()));
            // A sum of gradients alone.
            results.push(gain("dbias", &of_bias)?.within(IN_F32));
        }
        Ok(results)
    }

    fn through_candle(&self, inputs: &Tensors<'_>) -> Option<anyhow::Result<Vec<Found>>> {
        let run = || {
            let (x, weight, dy) = (inputs.var("x")?, inputs.var("weight")?, inputs.var("dy")?);
            let mut leaves = vec![("dx", &x), ("dweight", &weight)];
            let bias;
            let y = match self.kind {
                Kind::Rms => oqvl_kernels::rms_norm(&x, &weight, EPS)?,
                Kind::Layer => {
                    bias = inputs.var("bias")?;
                    leaves.push(("dbias", &bias));
                    oqvl_kernels::layer_norm(&x, &weight, &bias, EPS)?
                }
            };
            let mut results = vec![tensor("y", &y)?];
            results.extend(inputs.backward(&y, &dy, &leaves)?);
            Ok(results)
        };
        // Candle programs add the residual stream apart.
        (self.past == Past::Nothing).then(run)
    }
}
