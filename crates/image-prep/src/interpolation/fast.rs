//! The mean of the covered area in integer arithmetic: columns of the image first, which leaves fewer rows for the other
//! direction, with a rounding to bytes between.

use super::Axis;
use crate::{Layout, Raster};

/// Bits after the binary point of a weight: one is as large as 16 bits with a sign allow.
const WEIGHT_BITS: u32 = 14;
const ONE_HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// The inputs of one output: a run, with the fixed-point share of each.
struct Cell {
    first: usize,
    weights: Vec<i16>,
}

/// Shares of a cell's inputs sum to exactly one, so that flat areas stay flat.
fn cells(axis: Axis) -> Vec<Cell> {
    let Axis { num_inputs, num_outputs, scale, .. } = axis;
    let one = f64::from(1 << WEIGHT_BITS);
    (0..num_outputs)
        .map(|output| {
            let begin = output as f64 * scale;
            let end = (begin + scale).min(num_inputs as f64);
            let first = (begin as usize).min(num_inputs - 1);
            let last = (end.ceil() as usize).clamp(first + 1, num_inputs);
            let mut weights = Vec::with_capacity(last - first);
            let (mut covered, mut given) = (0.0, 0);
            for input in first..last {
                covered += (end.min(input as f64 + 1.0) - begin.max(input as f64)).max(0.0);
                // What is due up to here, less what was given before: errors do not add up.
                let due = (covered / (end - begin) * one).round() as i16;
                weights.push(due - given);
                given = due;
            }
            if let Some(last) = weights.last_mut() {
                *last += (1 << WEIGHT_BITS) - given;
            }
            Cell { first, weights }
        })
        .collect()
}

pub(super) fn resize(image: &Raster, columns: Axis, rows: Axis) -> Vec<u8> {
    let (columns, rows, width) = (cells(columns), cells(rows), columns.num_inputs);
    match image.layout() {
        Layout::Gray => plain::<1>(image.pixels(), width, &columns, &rows),
        Layout::Rgb => {
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = crate::vector::available()
                && width * 3 >= crate::vector::COLUMNS
            {
                return avx2::resize(simd, image.pixels(), width, &columns, &rows);
            }
            plain::<3>(image.pixels(), width, &columns, &rows)
        }
    }
}

fn plain<const CHANNELS: usize>(pixels: &[u8], width: usize, columns: &[Cell], rows: &[Cell]) -> Vec<u8> {
    let row_len = width * CHANNELS;
    let mut resized = Vec::with_capacity(columns.len() * rows.len() * CHANNELS);
    let mut sums = vec![0; row_len];
    let mut flattened = vec![0u8; row_len];
    for cell in rows {
        sums.fill(ONE_HALF);
        for (row, &weight) in pixels[cell.first * row_len..].chunks_exact(row_len).zip(&cell.weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += i32::from(level) * i32::from(weight);
            }
        }
        for (byte, sum) in flattened.iter_mut().zip(&sums) {
            *byte = (sum >> WEIGHT_BITS) as u8;
        }
        let pixels = flattened.as_chunks::<CHANNELS>().0;
        for cell in columns {
            let mut sums = [ONE_HALF; CHANNELS];
            for (pixel, &weight) in pixels[cell.first..].iter().zip(&cell.weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * i32::from(weight);
                }
            }
            resized.extend(sums.map(|sum| (sum >> WEIGHT_BITS) as u8));
        }
    }
    resized
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with AVX2.

    use pulp::cast;
    use pulp::x86::V3;
    use std::arch::x86_64::__m256i;

    use super::{Cell, ONE_HALF, WEIGHT_BITS};
    use crate::vector::{self, COLUMNS, PADDING, Taps};

    /// Rows must have at least [`COLUMNS`] bytes.
    pub(super) fn resize(simd: V3, pixels: &[u8], width: usize, columns: &[Cell], rows: &[Cell]) -> Vec<u8> {
        let taps_of = |cells: &[Cell]| {
            let mut taps = Taps::default();
            for cell in cells {
                taps.push(cell.first, &cell.weights);
            }
            taps
        };
        let (column_taps, row_taps) = (taps_of(columns), taps_of(rows));
        let row_len = width * 3;
        let new_len = columns.len() * 3;
        let mut resized = vec![0; new_len * rows.len()];
        let mut flattened = [vec![0; row_len + PADDING], vec![0; row_len + PADDING]];
        // A pixel is written as four bytes, the last of which the next pixel overwrites.
        let mut narrowed = [vec![0; new_len + 1], vec![0; new_len + 1]];
        vector::run(
            simd,
            #[inline(always)]
            || {
                let mut row_taps = row_taps.iter();
                for targets in resized.chunks_mut(new_len * 2) {
                    for (flattened, (first, groups)) in flattened.iter_mut().zip(&mut row_taps) {
                        let rows = &pixels[first * row_len..];
                        vector::for_each_sixteen(
                            row_len,
                            #[inline(always)]
                            |at| {
                                let sums = vector::weigh_sixteen_columns(simd, rows, row_len, at, groups);
                                let bytes = vector::pack_sixteen(simd, sums.map(|sums| round(simd, sums)));
                                flattened[at..at + COLUMNS].copy_from_slice(&bytes);
                            },
                        );
                    }
                    let [low, high] = &mut narrowed;
                    vector::weigh_two_rows(
                        simd,
                        [&flattened[0], &flattened[1]],
                        &column_taps,
                        #[inline(always)]
                        |output, sums| {
                            let [first, second] = vector::pack_two_pixels(simd, round(simd, sums));
                            low[output * 3..output * 3 + 4].copy_from_slice(&first);
                            high[output * 3..output * 3 + 4].copy_from_slice(&second);
                        },
                    );
                    for (target, narrowed) in targets.chunks_mut(new_len).zip(&narrowed) {
                        target.copy_from_slice(&narrowed[..new_len]);
                    }
                }
            },
        );
        resized
    }

    #[inline(always)]
    fn round(simd: V3, sums: __m256i) -> __m256i {
        let sums = simd.avx2._mm256_add_epi32(sums, cast([ONE_HALF; 8]));
        simd.avx2._mm256_srai_epi32::<{ WEIGHT_BITS as i32 }>(sums)
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
            bytes in prop::collection::vec(any::<u8>(), 1..3000), width in 1u32..120, to_width in 1u32..120,
            to_height in 1u32..60,
        ) {
            let image = rgb_of(&bytes, width, to_height);
            let columns = Axis::new(width, to_width.min(width));
            let rows = Axis::new(image.height(), to_height);
            prop_assert_eq!(
                resize(&image, columns, rows),
                plain::<3>(image.pixels(), width as usize, &cells(columns), &cells(rows))
            );
        }
    }
}
