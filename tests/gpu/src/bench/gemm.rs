//! Products of matrices, beside PyTorch's.

use super::{Backends, Figure, Timed, Work, best, full_room, numbers, room, time, timings};
use crate::torch::Torch;
use oqvl_kernels::gemm::{Epilogue, Gemm};
use serde::Serialize;

/// A product as PyTorch is asked for it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct GemmCall {
    what: &'static str,
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    /// Inputs as they come from the backward, the result added in f32.
    weight_gradient: bool,
}

/// The products of a layer of the language model for one pack of 4096 tokens.
pub(super) const CALLS: [GemmCall; 6] = [
    GemmCall { what: "q, k and v", m: 4096, n: 2048, k: 1536, bias: true, weight_gradient: false },
    GemmCall { what: "gate and up", m: 4096, n: 17_920, k: 1536, bias: false, weight_gradient: false },
    GemmCall { what: "down", m: 4096, n: 1536, k: 8960, bias: false, weight_gradient: false },
    GemmCall { what: "q, k and v", m: 2048, n: 1536, k: 4096, bias: false, weight_gradient: true },
    GemmCall { what: "gate and up", m: 17_920, n: 1536, k: 4096, bias: false, weight_gradient: true },
    GemmCall { what: "down", m: 1536, n: 8960, k: 4096, bias: false, weight_gradient: true },
];

/// Each product.
pub(super) fn figures<B: Timed>(
    b: &B,
    torch: Option<&Torch>,
    calls: &[GemmCall],
) -> anyhow::Result<Vec<Figure>> {
    /// Within 3 % of PyTorch.
    const BOUND: f64 = 0.97;
    let mut figures = Vec::new();
    for call in calls {
        let GemmCall { what, m, n, k, bias, weight_gradient } = *call;
        println!("gemm: {m} x {n} x {k}");
        let (left, right) = (numbers(b, m * k)?, numbers(b, n * k)?);
        let operands = || (b.slice(&left), b.slice(&right));
        let runs = if weight_gradient {
            let gemm = Gemm::new(m, n, k).with_a_transposed().accumulating();
            let mut d = full_room(b, m * n)?;
            b.fill(b.slice_mut(&mut d), 0.0)?;
            time(b, || b.gemm_full(&gemm, operands(), b.slice_mut(&mut d)))?
        } else {
            let epilogue = if bias { Epilogue::Bias } else { Epilogue::None };
            let gemm = Gemm::new(m, n, k).with_b_transposed().with_epilogue(epilogue);
            let (of_bias, mut d) = (numbers(b, n)?, room(b, m * n)?);
            let of_bias = || bias.then(|| b.slice(&of_bias));
            time(b, || b.gemm(&gemm, operands(), of_bias(), b.slice_mut(&mut d)))?
        };
        let kind = if weight_gradient { ", weight gradient added in f32" } else { "" };
        let work = Work::Operations(2.0 * (m * n * k) as f64);
        figures.push(Figure::new("gemm", format!("{what}{kind}, {m} x {n} x {k}"), runs, work));
    }
    let Some(times) = timings::<Backends>(torch, "gemm", &calls) else { return Ok(figures) };
    anyhow::ensure!(times.len() == calls.len(), "PyTorch answers {} of {} calls", times.len(), calls.len());
    for (figure, times) in figures.iter_mut().zip(times) {
        figure.peer = best(&times, BOUND);
    }
    Ok(figures)
}

#[cfg(test)]
pub(super) fn small_calls() -> [GemmCall; 2] {
    [
        GemmCall { what: "q, k and v", m: 9, n: 8, k: 16, bias: true, weight_gradient: false },
        GemmCall { what: "q, k and v", m: 8, n: 16, k: 9, bias: false, weight_gradient: true },
    ]
}
