//! AdamW, with the norm of the gradient and clipping.

use super::{Bound, Call, Found, IN_F32, Input, On, Random, Values};
use oqvl_kernels::adamw::launch::{Buffers, Control, Decay, partials_len};
use oqvl_kernels::adamw::{AdamW, CONTROL_LEN, DecayRanges, NORM};
use oqvl_kernels::backend::Backend;
use oqvl_kernels::device::Float as _;
use serde_json::{Value, json};

const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, max_norm: 1.0 };
/// Of each step: as many steps as there are.
const RATES: [f64; 3] = [1e-2, 5e-3, 2e-3];
/// What the gradient is multiplied by; a power of two, as where sums over tokens are scaled to a mean.
const SCALE: f32 = 0.125;
const DECAY: f32 = 0.1;
const EMA: f32 = 0.75;

/// Which gradients there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gradients {
    Finite,
    /// One of the second step is infinite, so that the step is skipped.
    Overflowing,
}

/// Some steps on weights of two ranges, of which the first decays.
#[derive(Debug, Clone)]
pub(crate) struct AdamWCall {
    /// Weights that decay, and those that do not; multiples of 8.
    pub(crate) ranges: [usize; 2],
    pub(crate) gradients: Gradients,
}

impl AdamWCall {
    fn len(&self) -> usize {
        self.ranges.iter().sum()
    }
}

impl Call for AdamWCall {
    const OP: &'static str = "adamw";

    fn name(&self) -> String {
        let [decaying, others] = self.ranges;
        let skipped = if self.gradients == Gradients::Overflowing { ", one of them skipped" } else { "" };
        format!("{} steps{skipped}, {decaying} weights that decay and {others} that do not", RATES.len())
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let scale = Input { name: "scale", dims: vec![1], values: Values::Full(vec![SCALE]) };
        let mut grads = random.full("grads", &[RATES.len(), self.len()]);
        if let (Gradients::Overflowing, Values::Full(values)) = (self.gradients, &mut grads.values) {
            values[self.len() + self.len() / 2] = f32::INFINITY;
        }
        vec![random.full("w", &[self.len()]), grads, scale]
    }

    fn settings(&self) -> Value {
        let AdamW { beta1, beta2, eps, max_norm } = SETTINGS;
        json!({
            "ranges": self.ranges, "decay": DECAY, "rates": RATES, "betas": [beta1, beta2], "eps": eps,
            "max_norm": max_norm, "ema": EMA,
        })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, len) = (on.backend, self.len());
        let ranges = DecayRanges::new(&[(self.ranges[0], DECAY), (self.ranges[1], 0.0)])?;
        let boundaries = b.upload(ranges.boundaries())?;
        let decays: Vec<B::Full> =
            ranges.decays().iter().map(|decay| B::Full::from_f64(f64::from(*decay))).collect();
        let decays = b.upload(&decays)?;
        let zeros = || b.upload(&vec![B::Full::from_f64(0.0); len]);
        let (mut w, mut m, mut v, mut ema) = (on.full("w")?, zeros()?, zeros()?, on.full("w")?);
        let (mut copy, mut grad) = (on.room(len)?, on.room(len)?);
        let (grads, scale) = (b.download(&on.full("grads")?)?, on.full("scale")?);
        let mut partials = on.room(partials_len(len))?;
        let (mut numbers, mut step) = (on.room(CONTROL_LEN)?, b.upload(&[0])?);
        let mut norms = Vec::new();
        for (index, rate) in RATES.into_iter().enumerate() {
            b.copy_from_host(&grads[index * len..(index + 1) * len], b.slice_mut(&mut grad))?;
            let mut control = Control { numbers: b.slice_mut(&mut numbers), step: b.slice_mut(&mut step) };
            let between = b.slice_mut(&mut partials);
            b.gradient_norm(&SETTINGS, b.slice(&grad), Some(b.slice(&scale)), between, &mut control)?;
            let buffers = Buffers {
                w: b.slice_mut(&mut w),
                grad: b.slice_mut(&mut grad),
                m: b.slice_mut(&mut m),
                v: b.slice_mut(&mut v),
                copy: Some(b.slice_mut(&mut copy)),
                ema: Some((b.slice_mut(&mut ema), EMA)),
            };
            let decay = Decay { boundaries: b.slice(&boundaries), decays: b.slice(&decays) };
            b.adamw_update(&SETTINGS, rate, buffers, &ranges, decay, &control)?;
            // That of a step that is skipped is none; that it is, weights and moments show.
            norms.extend(Some(b.download(&numbers)?[NORM].to_f64()).filter(|norm| norm.is_finite()));
        }
        Ok(vec![
            on.found("w", &w)?.within(IN_F32),
            on.found("m", &m)?.within(IN_F32),
            on.found("v", &v)?.within(IN_F32),
            on.found("ema", &ema)?.within(IN_F32),
            on.found("copy", &copy)?,
            on.found("grad", &grad)?.within(Bound::Exact),
            Found { name: "norms", values: norms, bound: IN_F32 },
        ])
    }
}
