//! OpenCV's interpolations of a fixed number of neighbours: two, four or eight in each direction.
//!
//! Weights are 11-bit fixed point. Rows first, into 32-bit sums that are not rounded; then columns.
//!
//! Source: `resizeGeneric_` and its row and column kernels in OpenCV's `modules/imgproc/src/resize.cpp`. The x86 wheels of
//! OpenCV leave `INTER_CUBIC` to Intel's IPP, which works in floating point throughout: its result differs from this by one
//! level in about one pixel of twenty.

use super::{Axis, to_byte};
use crate::Raster;

/// Which neighbours count how much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    Linear,
    /// What `INTER_AREA` means where an image grows: nearest, with a linear ramp inside the pixels on an edge.
    LinearArea,
    Cubic,
    Lanczos4,
}

impl Kernel {
    fn num_taps(self) -> usize {
        match self {
            Self::Linear | Self::LinearArea => 2,
            Self::Cubic => 4,
            Self::Lanczos4 => 8,
        }
    }

    /// Weights at the distance `fraction`, from 0 to 1, behind the tap in the middle; only the first
    /// [`Kernel::num_taps`] count.
    fn weights(self, fraction: f32) -> [i32; MAX_TAPS] {
        let mut weights = [0.0; MAX_TAPS];
        match self {
            Self::Linear | Self::LinearArea => weights[..2].copy_from_slice(&[1.0 - fraction, fraction]),
            Self::Cubic => weights[..4].copy_from_slice(&cubic(fraction)),
            Self::Lanczos4 => weights = lanczos4(fraction),
        }
        weights.map(|weight| (weight * ONE as f32).round_ties_even() as i32)
    }
}

/// Taps of the widest kernel.
const MAX_TAPS: usize = 8;
/// Bits after the binary point of a weight: `INTER_RESIZE_COEF_BITS`.
const WEIGHT_BITS: u32 = 11;
const ONE: i32 = 1 << WEIGHT_BITS;

/// Source: `interpolateCubic`.
fn cubic(x: f32) -> [f32; 4] {
    /// The kernel's free parameter.
    const A: f32 = -0.75;
    let first = ((A * (x + 1.0) - 5.0 * A) * (x + 1.0) + 8.0 * A) * (x + 1.0) - 4.0 * A;
    let second = ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let third = ((A + 2.0) * (1.0 - x) - (A + 3.0)) * (1.0 - x) * (1.0 - x) + 1.0;
    [first, second, third, 1.0 - first - second - third]
}

/// Source: `interpolateLanczos4`.
fn lanczos4(x: f32) -> [f32; 8] {
    use std::f64::consts::{FRAC_1_SQRT_2, FRAC_PI_4};
    /// Sine and cosine of the angle of tap `i` are those of tap 0 turned by `i` eighths.
    const TURNS: [[f64; 2]; 8] = [
        [1.0, 0.0],
        [-FRAC_1_SQRT_2, -FRAC_1_SQRT_2],
        [0.0, 1.0],
        [FRAC_1_SQRT_2, -FRAC_1_SQRT_2],
        [-1.0, 0.0],
        [FRAC_1_SQRT_2, FRAC_1_SQRT_2],
        [0.0, -1.0],
        [-FRAC_1_SQRT_2, FRAC_1_SQRT_2],
    ];
    let (sine, cosine) = (-f64::from(x + 3.0) * FRAC_PI_4).sin_cos();
    let mut weights: [f32; 8] = std::array::from_fn(|tap| {
        let distance = x + 3.0 - tap as f32;
        if distance.abs() < 1e-6 {
            // The kernel's peak. So large that, divided by the sum, it is 1 and the others are 0.
            return 1e30;
        }
        let angle = -f64::from(distance) * FRAC_PI_4;
        ((TURNS[tap][0] * sine + TURNS[tap][1] * cosine) / (angle * angle)) as f32
    });
    let inverse_sum = 1.0 / weights.iter().sum::<f32>();
    for weight in &mut weights {
        *weight *= inverse_sum;
    }
    weights
}

/// The taps of one output: inputs `first`, `first + 1` and so on, which may lie outside the image.
struct Taps {
    first: i64,
    weights: [i32; MAX_TAPS],
}

fn taps_of(axis: Axis, kernel: Kernel, edge: Edge) -> impl Iterator<Item = Taps> {
    let num_taps = kernel.num_taps() as i64;
    (0..axis.num_outputs).map(move |output| {
        let (mut input, mut fraction) = if kernel == Kernel::LinearArea {
            let input = (output as f64 * axis.scale).floor();
            let fraction = ((output + 1) as f64 - (input + 1.0) * axis.inverse_scale) as f32;
            (input as i64, if fraction <= 0.0 { 0.0 } else { fraction - fraction.floor() })
        } else {
            let position = ((output as f64 + 0.5) * axis.scale - 0.5) as f32;
            (position.floor() as i64, position - position.floor())
        };
        // OpenCV moves the two taps inside the image in rows, and leaves them outside in columns.
        if num_taps == 2 && edge == Edge::MoveInside {
            let last = axis.num_inputs as i64 - 1;
            if input < 0 || input >= last {
                (input, fraction) = (input.clamp(0, last), 0.0);
            }
        }
        Taps { first: input - (num_taps / 2 - 1), weights: kernel.weights(fraction) }
    })
}

/// What becomes of two taps beyond the first or last input. More than two are left there; inputs outside the image
/// are those on its edge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    MoveInside,
    Leave,
}

pub(super) fn resize(image: &Raster, columns: Axis, rows: Axis, kernel: Kernel) -> Vec<u8> {
    match (kernel, image.layout().num_channels()) {
        (Kernel::Linear | Kernel::LinearArea, 1) => {
            resize_with::<2, 1>(image, columns, rows, kernel, mix_linear)
        }
        (Kernel::Linear | Kernel::LinearArea, _) => {
            resize_with::<2, 3>(image, columns, rows, kernel, mix_linear)
        }
        (Kernel::Cubic, 1) => resize_with::<4, 1>(image, columns, rows, kernel, mix_cubic),
        (Kernel::Cubic, _) => resize_with::<4, 3>(image, columns, rows, kernel, mix_cubic),
        (Kernel::Lanczos4, 1) => resize_with::<8, 1>(image, columns, rows, kernel, mix_lanczos4),
        (Kernel::Lanczos4, _) => resize_with::<8, 3>(image, columns, rows, kernel, mix_lanczos4),
    }
}

/// `mix` gives the byte in the middle of `TAPS` row sums, with the weights of the rows.
fn resize_with<const TAPS: usize, const CHANNELS: usize>(
    image: &Raster,
    columns: Axis,
    rows: Axis,
    kernel: Kernel,
    mix: impl Fn([i32; TAPS], [i32; TAPS]) -> u8,
) -> Vec<u8> {
    let column_taps: Vec<Taps> = taps_of(columns, kernel, Edge::MoveInside).collect();
    let in_row_len = columns.num_inputs * CHANNELS;
    let out_row_len = columns.num_outputs * CHANNELS;
    let mut resized = Vec::with_capacity(out_row_len * rows.num_outputs);
    // The last `TAPS` rows that were widened, each at its number modulo `TAPS`.
    let mut widened: [Vec<i32>; TAPS] = std::array::from_fn(|_| vec![0; out_row_len]);
    let mut widened_rows = [usize::MAX; TAPS];
    for taps in taps_of(rows, kernel, Edge::Leave) {
        let inputs: [usize; TAPS] = std::array::from_fn(|tap| {
            (taps.first + tap as i64).clamp(0, rows.num_inputs as i64 - 1) as usize
        });
        for input in inputs {
            if widened_rows[input % TAPS] != input {
                let row = &image.pixels()[input * in_row_len..][..in_row_len];
                widen::<TAPS, CHANNELS>(row, &column_taps, &mut widened[input % TAPS]);
                widened_rows[input % TAPS] = input;
            }
        }
        let sources = inputs.map(|input| &widened[input % TAPS][..]);
        let weights: [i32; TAPS] = std::array::from_fn(|tap| taps.weights[tap]);
        resized.extend((0..out_row_len).map(|idx| mix(sources.map(|row| row[idx]), weights)));
    }
    resized
}

/// One row at its new length, in fixed point.
fn widen<const TAPS: usize, const CHANNELS: usize>(row: &[u8], taps: &[Taps], widened: &mut [i32]) {
    let pixels = row.as_chunks::<CHANNELS>().0;
    let last = pixels.len() as i64 - 1;
    for (output, taps) in widened.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(taps) {
        let mut sums = [0; CHANNELS];
        let mut add = |pixel: &[u8; CHANNELS], weight: i32| {
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += i32::from(level) * weight;
            }
        };
        let inside = usize::try_from(taps.first).ok().and_then(|first| pixels.get(first..first + TAPS));
        if let Some(inside) = inside {
            for (pixel, &weight) in inside.iter().zip(&taps.weights) {
                add(pixel, weight);
            }
        } else {
            for (tap, &weight) in taps.weights[..TAPS].iter().enumerate() {
                add(&pixels[(taps.first + tap as i64).clamp(0, last) as usize], weight);
            }
        }
        *output = sums;
    }
}

/// Two roundings down and one to the nearest, as OpenCV's vector code has it.
fn mix_linear(sums: [i32; 2], weights: [i32; 2]) -> u8 {
    let part = |tap: usize| (weights[tap] * (sums[tap] >> 4)) >> 16;
    ((part(0) + part(1) + 2) >> 2).clamp(0, 255) as u8
}

/// In 32-bit floating point, as OpenCV's vector code has it.
fn mix_cubic(sums: [i32; 4], weights: [i32; 4]) -> u8 {
    const INVERSE_ONE: f32 = 1.0 / (ONE as f32 * ONE as f32);
    let part = |tap: usize| sums[tap] as f32 * (weights[tap] as f32 * INVERSE_ONE);
    to_byte(part(0) + (part(1) + (part(2) + part(3))))
}

fn mix_lanczos4(sums: [i32; 8], weights: [i32; 8]) -> u8 {
    const ONE_HALF: i32 = 1 << (2 * WEIGHT_BITS - 1);
    let sum: i32 =
        sums.iter().zip(weights).map(|(sum, weight)| sum.wrapping_mul(weight)).fold(0, i32::wrapping_add);
    (sum.wrapping_add(ONE_HALF) >> (2 * WEIGHT_BITS)).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_sum_to_about_one() {
        for kernel in [Kernel::Linear, Kernel::Cubic, Kernel::Lanczos4] {
            for step in 0..=100 {
                let sum: i32 = kernel.weights(step as f32 / 100.0).iter().sum();
                assert!((sum - ONE).abs() <= 3, "{kernel:?} {step}: {sum}");
            }
            assert_eq!(
                kernel.weights(0.0)[kernel.num_taps() / 2 - 1],
                ONE,
                "{kernel:?} at a pixel is that pixel"
            );
        }
    }
}
