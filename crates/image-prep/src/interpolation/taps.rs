//! OpenCV's interpolations of a fixed number of neighbours: two, four or eight in each direction.
//!
//! Weights are 11-bit fixed point. Rows first, into 32-bit sums that are not rounded; then columns.
//!
//! Source: `resizeGeneric_` and its row and column kernels in OpenCV's `modules/imgproc/src/resize.cpp`. The x86 wheels of
//! OpenCV leave `INTER_CUBIC` to Intel's IPP, which works in floating point throughout: its result differs from this by one
//! level in about one pixel of twenty.

use super::{Axis, to_byte};
use crate::{Layout, Raster};

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

impl Taps {
    /// The first tap in a row that was extended by [`MARGIN`].
    fn first_in_extended(&self) -> usize {
        (self.first + MARGIN as i64) as usize
    }
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
    let job = Job { pixels: image.pixels(), columns, rows, kernel };
    match image.layout() {
        Layout::Gray => job.run(1, widen::<1>),
        Layout::Rgb => {
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = crate::vector::available() {
                return avx2::run(simd, &job);
            }
            job.run(3, widen::<3>)
        }
    }
}

/// A resize to do.
struct Job<'a> {
    pixels: &'a [u8],
    columns: Axis,
    rows: Axis,
    kernel: Kernel,
}

/// Pixels that a row is extended by on either side, equal to its outermost: no tap lies further outside.
const MARGIN: usize = MAX_TAPS / 2;

impl Job<'_> {
    /// `widen` gives two neighbouring rows, extended by [`MARGIN`], their new length, in fixed point.
    #[inline(always)]
    fn run(&self, channels: usize, mut widen: impl FnMut([&[u8]; 2], &[Taps], [&mut [i32]; 2])) -> Vec<u8> {
        let &Self { pixels, columns, rows, kernel } = self;
        let column_taps: Vec<Taps> = taps_of(columns, kernel, Edge::MoveInside).collect();
        let row_len = columns.num_inputs * channels;
        let new_len = columns.num_outputs * channels;
        let num_taps = kernel.num_taps();
        let mut resized = vec![0; new_len * rows.num_outputs];
        let mut extended = [Vec::new(), Vec::new()];
        // The last rows that were widened, each at its number modulo twice the taps. A fourth channel may be written
        // behind the last pixel.
        let mut widened: [Vec<i32>; 2 * MAX_TAPS] = std::array::from_fn(|_| Vec::new());
        widened[..2 * num_taps].fill(vec![0; new_len + 1]);
        let mut num_widened = 0;
        for (target, taps) in resized.chunks_exact_mut(new_len).zip(taps_of(rows, kernel, Edge::Leave)) {
            let inputs: [usize; MAX_TAPS] = std::array::from_fn(|tap| {
                (taps.first + tap.min(num_taps - 1) as i64).clamp(0, rows.num_inputs as i64 - 1) as usize
            });
            // Rows that no output reads are widened too; there are such only where an image shrinks much.
            num_widened = num_widened.max(inputs[0] / 2 * 2);
            while num_widened <= inputs[MAX_TAPS - 1] {
                for (extended, number) in extended.iter_mut().zip([num_widened, num_widened + 1]) {
                    extend(
                        &pixels[number.min(rows.num_inputs - 1) * row_len..][..row_len],
                        channels,
                        extended,
                    );
                }
                let (head, tail) = widened.split_at_mut(num_widened % (2 * num_taps) + 1);
                let targets = [&mut head[num_widened % (2 * num_taps)][..], &mut tail[0][..]];
                widen([&extended[0], &extended[1]], &column_taps, targets);
                num_widened += 2;
            }
            let sums: [&[i32]; MAX_TAPS] = inputs.map(|input| &widened[input % (2 * num_taps)][..new_len]);
            match kernel {
                Kernel::Linear | Kernel::LinearArea => mix_linear(&sums[..2], &taps.weights, target),
                Kernel::Cubic => mix_cubic(&sums[..4], &taps.weights, target),
                Kernel::Lanczos4 => mix_lanczos4(&sums, &taps.weights, target),
            }
        }
        resized
    }
}

/// Puts `row` into `extended`, with its outermost pixels repeated on either side.
fn extend(row: &[u8], channels: usize, extended: &mut Vec<u8>) {
    extended.clear();
    for _ in 0..MARGIN {
        extended.extend_from_slice(&row[..channels]);
    }
    extended.extend_from_slice(row);
    for _ in 0..MARGIN {
        extended.extend_from_slice(&row[row.len() - channels..]);
    }
    #[cfg(target_arch = "x86_64")]
    extended.resize(extended.len() + crate::vector::PADDING, 0);
}

fn widen<const CHANNELS: usize>(rows: [&[u8]; 2], taps: &[Taps], targets: [&mut [i32]; 2]) {
    for (row, target) in rows.into_iter().zip(targets) {
        let pixels = row.as_chunks::<CHANNELS>().0;
        for (output, taps) in target.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(taps) {
            let mut sums = [0; CHANNELS];
            for (pixel, &weight) in pixels[taps.first_in_extended()..].iter().zip(&taps.weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * weight;
                }
            }
            *output = sums;
        }
    }
}

/// Sums that are worked on together.
const CHUNK: usize = 32;

/// Two roundings down and one to the nearest, as OpenCV's vector code has it.
#[inline(always)]
fn mix_linear(rows: &[&[i32]], weights: &[i32; MAX_TAPS], target: &mut [u8]) {
    for (idx, target) in target.chunks_mut(CHUNK).enumerate() {
        let mut totals = [0; CHUNK];
        for (row, &weight) in rows.iter().zip(weights) {
            for (total, &sum) in totals.iter_mut().zip(&row[idx * CHUNK..][..target.len()]) {
                *total += (weight * (sum >> 4)) >> 16;
            }
        }
        for (byte, total) in target.iter_mut().zip(totals) {
            *byte = ((total + 2) >> 2).clamp(0, 255) as u8;
        }
    }
}

/// In 32-bit floating point from the last row to the first, as OpenCV's vector code has it; what does not fill its last
/// vector of eight, in integers.
#[inline(always)]
fn mix_cubic(rows: &[&[i32]], weights: &[i32; MAX_TAPS], target: &mut [u8]) {
    const INVERSE_ONE: f32 = 1.0 / (ONE as f32 * ONE as f32);
    let num_in_vectors = target.len() / 8 * 8;
    let (vectors, tail) = target.split_at_mut(num_in_vectors);
    for (idx, target) in vectors.chunks_mut(CHUNK).enumerate() {
        let mut totals = [0.0; CHUNK];
        for (row, &weight) in rows.iter().zip(weights).rev() {
            let weight = weight as f32 * INVERSE_ONE;
            for (total, &sum) in totals.iter_mut().zip(&row[idx * CHUNK..][..target.len()]) {
                *total += sum as f32 * weight;
            }
        }
        for (byte, total) in target.iter_mut().zip(totals) {
            *byte = to_byte(total);
        }
    }
    for (idx, byte) in tail.iter_mut().enumerate() {
        let products =
            rows.iter().zip(weights).map(|(row, &weight)| row[num_in_vectors + idx].wrapping_mul(weight));
        *byte = from_fixed_point(products.fold(ONE_HALF, i32::wrapping_add));
    }
}

/// One half in the fixed point of twice weighted bytes.
const ONE_HALF: i32 = 1 << (2 * WEIGHT_BITS - 1);

/// A sum of twice weighted bytes, begun at one half, back to a byte.
#[inline(always)]
fn from_fixed_point(sum: i32) -> u8 {
    (sum >> (2 * WEIGHT_BITS)).clamp(0, 255) as u8
}

#[inline(always)]
fn mix_lanczos4(rows: &[&[i32]], weights: &[i32; MAX_TAPS], target: &mut [u8]) {
    for (idx, target) in target.chunks_mut(CHUNK).enumerate() {
        let mut totals = [ONE_HALF; CHUNK];
        for (row, &weight) in rows.iter().zip(weights) {
            for (total, &sum) in totals.iter_mut().zip(&row[idx * CHUNK..][..target.len()]) {
                *total = total.wrapping_add(sum.wrapping_mul(weight));
            }
        }
        for (byte, total) in target.iter_mut().zip(totals) {
            *byte = from_fixed_point(total);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! Rows of RGB pixels with AVX2; the columns vectorise by themselves.

    use pulp::cast;
    use pulp::x86::V3;

    use super::Job;
    use crate::vector;

    pub(super) fn run(simd: V3, job: &Job<'_>) -> Vec<u8> {
        let mut column_taps = vector::Taps::default();
        for taps in super::taps_of(job.columns, job.kernel, super::Edge::MoveInside) {
            let weights = taps.weights.map(|weight| weight as i16);
            column_taps.push(taps.first_in_extended(), &weights[..job.kernel.num_taps()]);
        }
        vector::run(
            simd,
            #[inline(always)]
            || {
                job.run(
                    3,
                    #[inline(always)]
                    |rows, _, [low, high]| {
                        vector::weigh_two_rows(
                            simd,
                            rows,
                            &column_taps,
                            #[inline(always)]
                            |output, sums| {
                                let [first, second]: [[i32; 4]; 2] = cast(sums);
                                low[output * 3..output * 3 + 4].copy_from_slice(&first);
                                high[output * 3..output * 3 + 4].copy_from_slice(&second);
                            },
                        );
                    },
                )
            },
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interpolation::tests::rgb_of;
    use proptest::prelude::*;

    proptest! {
        /// Where there are no vectors, this compares the plain form with itself.
        #[test]
        fn vectors_change_nothing(
            bytes in prop::collection::vec(any::<u8>(), 1..2000), width in 1u32..60, to_width in 1u32..90,
            to_height in 1u32..60,
        ) {
            let image = rgb_of(&bytes, width, 1);
            let columns = Axis::new(width, to_width);
            let rows = Axis::new(image.height(), to_height);
            for kernel in [Kernel::Linear, Kernel::LinearArea, Kernel::Cubic, Kernel::Lanczos4] {
                let plain = Job { pixels: image.pixels(), columns, rows, kernel }.run(3, widen::<3>);
                prop_assert_eq!(resize(&image, columns, rows, kernel), plain);
            }
        }
    }

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
