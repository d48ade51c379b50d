//! AdamW, beside PyTorch's fused one and beside a copy.

use super::{BANDWIDTH_BOUND, Figure, Peer, Sizes, Timed, Work, beside_copy, full_room, room, time, timings};
use crate::torch::Torch;
use anyhow::Context as _;
use oqvl_kernels::adamw::launch::{Buffers, Control, Decay, partials_len};
use oqvl_kernels::adamw::{AdamW, CONTROL_LEN, DecayRanges, UNIT};
use oqvl_kernels::device::Float as _;
use serde::Deserialize;
use std::collections::BTreeMap;

/// Weights of Qwen2.5-1.5B with projector, about.
const MAX_PARAMETERS: usize = 1_550_000_000;
/// Weights, gradients and both moments in f32, and the copy in bf16.
const BYTES_OF_STATE: usize = 4 * 4 + 2;
/// What the update reads (weight, gradient, both moments) and writes (weight, both moments, a gradient of 0, the copy in bf16).
const BYTES_OF_UPDATE: usize = 4 * 4 + 4 * 4 + 2;
/// What the norm reads.
const BYTES_OF_NORM: usize = 4;

/// As many as there are in training, or as half of the memory holds.
pub(super) fn parameters(memory_bytes: u64) -> usize {
    let most = usize::try_from(memory_bytes / 2).unwrap_or(usize::MAX) / BYTES_OF_STATE;
    MAX_PARAMETERS.min(most) / UNIT * UNIT
}

/// What PyTorch answers.
#[derive(Debug, Deserialize)]
struct Times {
    /// All that the two calls of ours do: norm, clipping, step, zeros for gradients, copy.
    whole: f64,
    /// The optimizer's step alone.
    step: f64,
}

/// The norm and the update apart, and both.
pub(super) fn figures<B: Timed>(
    b: &B,
    torch: Option<&Torch>,
    sizes: Sizes,
    copy: &Figure,
) -> anyhow::Result<Vec<Figure>> {
    const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, max_norm: 1.0 };
    const RATE: f64 = 5e-5;
    let len = sizes.parameters;
    println!("adamw: {len} weights");
    let calls = [serde_json::json!({ "parameters": len })];
    let times = timings::<Times>(torch, "adamw", &calls);
    let filled = |value: f32| -> anyhow::Result<B::Buffer<B::Full>> {
        let mut buffer = full_room(b, len)?;
        b.fill(b.slice_mut(&mut buffer), value)?;
        Ok(buffer)
    };
    let (mut w, mut grad, mut m, mut v) = (filled(0.5)?, filled(1e-3)?, filled(0.0)?, filled(0.0)?);
    let mut weights = room(b, len)?;
    // Most weights are of matrices, which decay.
    let decaying = len / 10 * 9 / UNIT * UNIT;
    let ranges = DecayRanges::new(&[(decaying, 0.1), (len - decaying, 0.0)])?;
    let boundaries = b.upload(ranges.boundaries())?;
    let decays: Vec<B::Full> =
        ranges.decays().iter().map(|decay| B::Full::from_f64(f64::from(*decay))).collect();
    let decays = b.upload(&decays)?;
    let mut partials = full_room(b, partials_len(len))?;
    let (mut numbers, mut step) = (full_room(b, CONTROL_LEN)?, b.upload(&[0])?);
    let mut run = |norms: bool, updates: bool| {
        let mut control = Control { numbers: b.slice_mut(&mut numbers), step: b.slice_mut(&mut step) };
        if norms {
            b.gradient_norm(&SETTINGS, b.slice(&grad), None, b.slice_mut(&mut partials), &mut control)?;
        }
        if !updates {
            return Ok(());
        }
        let buffers = Buffers {
            w: b.slice_mut(&mut w),
            grad: b.slice_mut(&mut grad),
            m: b.slice_mut(&mut m),
            v: b.slice_mut(&mut v),
            copy: Some(b.slice_mut(&mut weights)),
            ema: None,
        };
        let decay = Decay { boundaries: b.slice(&boundaries), decays: b.slice(&decays) };
        b.adamw_update(&SETTINGS, RATE, buffers, &ranges, decay, &control)
    };
    let figure = |what: &str, bytes: usize, runs| {
        let work = Work::Bytes((len * bytes) as f64);
        Figure::new("adamw", format!("{what}, {len} weights, {bytes} bytes of each"), runs, work)
    };
    // The norm comes first: the update reads what it leaves.
    let norm = figure("norm", BYTES_OF_NORM, time(b, || run(true, false))?);
    let update = figure("update", BYTES_OF_UPDATE, time(b, || run(false, true))?);
    let mut both = figure("norm and update", BYTES_OF_NORM + BYTES_OF_UPDATE, time(b, || run(true, true))?);
    if let Some(times) = times {
        let Times { whole, step } = times.first().context("PyTorch answers no call")?;
        let name = "PyTorch: clip_grad_norm_, fused AdamW, zeros, copy to bf16".to_owned();
        both.peer = Some(Peer { name, seconds: *whole, bound: 1.0 });
        both.beside = BTreeMap::from([("PyTorch's fused AdamW alone".to_owned(), *step)]);
    }
    let kept = |figure| beside_copy(figure, copy, BANDWIDTH_BOUND);
    Ok(vec![kept(norm), kept(update), both])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_weights_as_fit() {
        assert_eq!(parameters(80 << 30), MAX_PARAMETERS);
        assert_eq!(parameters(40 << 30), 1_193_046_464);
        assert!(parameters(40 << 30) * BYTES_OF_STATE <= 20 << 30);
    }
}
