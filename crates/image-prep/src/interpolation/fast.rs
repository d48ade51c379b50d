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
    let channels = image.layout().num_channels();
    let stride = columns.num_outputs * channels;
    let mut resized = vec![0; rows.num_outputs * stride];
    let source = Rows { samples: image.pixels(), stride: columns.num_inputs * channels };
    match image.layout() {
        Layout::Gray => resize_plane(source, columns, rows, &mut resized, stride),
        Layout::Rgb => {
            let (columns, rows) = (cells(columns), cells(rows));
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = crate::vector::available()
                && source.stride >= crate::vector::COLUMNS
            {
                avx2::resize(simd, source, &columns, &rows, &mut resized);
                return resized;
            }
            plain::<3>(source, &columns, &rows, &mut resized, stride);
        }
    }
    resized
}

/// Rows of samples, `stride` bytes apart; the last is as long as the others.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) samples: &'a [u8],
    pub(super) stride: usize,
}

/// Shrinks one channel. Rows of the result are `stride` bytes apart in `resized`; what lies between them may change.
pub(super) fn resize_plane(source: Rows<'_>, columns: Axis, rows: Axis, resized: &mut [u8], stride: usize) {
    #[cfg(target_arch = "x86_64")]
    let width = columns.num_inputs;
    let (columns, rows) = (cells(columns), cells(rows));
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = crate::vector::available()
        && width >= crate::vector::COLUMNS
        && let Some(column_taps) =
            crate::vector::ShortTaps::new(columns.iter().map(|cell| (cell.first, &cell.weights[..])))
    {
        avx2::resize_plane(simd, source, width, &column_taps, &rows, resized, stride);
        return;
    }
    plain::<1>(source, &columns, &rows, resized, stride);
}

fn plain<const CHANNELS: usize>(
    source: Rows<'_>,
    columns: &[Cell],
    rows: &[Cell],
    resized: &mut [u8],
    stride: usize,
) {
    let row_len = columns.last().map_or(0, |cell| cell.first + cell.weights.len()) * CHANNELS;
    let mut sums = vec![0; row_len];
    let mut flattened = vec![0u8; row_len];
    for (cell, target) in rows.iter().zip(resized.chunks_mut(stride)) {
        sums.fill(ONE_HALF);
        for (row, &weight) in
            source.samples[cell.first * source.stride..].chunks(source.stride).zip(&cell.weights)
        {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += i32::from(level) * i32::from(weight);
            }
        }
        for (byte, sum) in flattened.iter_mut().zip(&sums) {
            *byte = (sum >> WEIGHT_BITS) as u8;
        }
        let pixels = flattened.as_chunks::<CHANNELS>().0;
        for (cell, target) in columns.iter().zip(target.as_chunks_mut::<CHANNELS>().0) {
            let mut sums = [ONE_HALF; CHANNELS];
            for (pixel, &weight) in pixels[cell.first..].iter().zip(&cell.weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * i32::from(weight);
                }
            }
            *target = sums.map(|sum| (sum >> WEIGHT_BITS) as u8);
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with AVX2.

    use pulp::cast;
    use pulp::x86::V3;
    use std::arch::x86_64::__m256i;

    use super::{Cell, ONE_HALF, Rows, WEIGHT_BITS};
    use crate::vector::{self, COLUMNS, PADDING, ShortTaps, Taps, WeightPair};

    fn taps_of(cells: &[Cell]) -> Taps {
        let mut taps = Taps::default();
        for cell in cells {
            taps.push(cell.first, &cell.weights);
        }
        taps
    }

    /// RGB rows of at least [`COLUMNS`] bytes without anything between them.
    pub(super) fn resize(simd: V3, source: Rows<'_>, columns: &[Cell], rows: &[Cell], resized: &mut [u8]) {
        let (column_taps, row_taps) = (taps_of(columns), taps_of(rows));
        let new_len = columns.len() * 3;
        let mut flattened = [vec![0; source.stride + PADDING], vec![0; source.stride + PADDING]];
        // A pixel is written as four bytes, the last of which the next pixel overwrites.
        let mut narrowed = [vec![0; new_len + 1], vec![0; new_len + 1]];
        vector::run(
            simd,
            #[inline(always)]
            || {
                let mut row_taps = row_taps.iter();
                for targets in resized.chunks_mut(new_len * 2) {
                    for (flattened, (first, groups)) in flattened.iter_mut().zip(&mut row_taps) {
                        flatten(simd, source, source.stride, first, groups, flattened);
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
    }

    /// One channel of at least [`COLUMNS`] columns.
    pub(super) fn resize_plane(
        simd: V3,
        source: Rows<'_>,
        width: usize,
        columns: &ShortTaps,
        rows: &[Cell],
        resized: &mut [u8],
        stride: usize,
    ) {
        let row_taps = taps_of(rows);
        let mut flattened = vec![0; width + PADDING];
        vector::run(
            simd,
            #[inline(always)]
            || {
                for (target, (first, groups)) in resized.chunks_mut(stride).zip(row_taps.iter()) {
                    flatten(simd, source, width, first, groups, &mut flattened);
                    columns.weigh_row(
                        simd,
                        &flattened,
                        #[inline(always)]
                        |output, sums| {
                            let bytes = vector::pack_eight(simd, round(simd, sums));
                            match target[output..].first_chunk_mut() {
                                Some(eight) => *eight = bytes,
                                None => {
                                    let rest = &mut target[output..];
                                    rest.copy_from_slice(&bytes[..rest.len()]);
                                }
                            }
                        },
                    );
                }
            },
        );
    }

    /// The weighted mean of the rows from `first` on, `len` bytes of each.
    #[inline(always)]
    fn flatten(
        simd: V3,
        source: Rows<'_>,
        len: usize,
        first: usize,
        groups: &[[WeightPair; 2]],
        flattened: &mut [u8],
    ) {
        let Rows { samples, stride } = source;
        let rows = &samples[first * stride..];
        vector::for_each_sixteen(
            len,
            #[inline(always)]
            |at| {
                let sums = vector::weigh_sixteen_columns(simd, rows, stride, at, groups);
                let bytes = vector::pack_sixteen(simd, sums.map(|sums| round(simd, sums)));
                flattened[at..at + COLUMNS].copy_from_slice(&bytes);
            },
        );
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
            for image in [image.clone(), Raster::new(width * 3, image.height(), Layout::Gray, image.into_pixels()).unwrap()] {
                let channels = image.layout().num_channels();
                let columns = Axis::new(image.width(), to_width.min(width) * (3 / channels as u32));
                let rows = Axis::new(image.height(), to_height);
                let stride = columns.num_outputs * channels;
                let source = Rows { samples: image.pixels(), stride: columns.num_inputs * channels };
                let mut expected = vec![0; rows.num_outputs * stride];
                let plain = if channels == 1 { plain::<1> } else { plain::<3> };
                plain(source, &cells(columns), &cells(rows), &mut expected, stride);
                prop_assert_eq!(resize(&image, columns, rows), expected);
            }
        }
    }
}
