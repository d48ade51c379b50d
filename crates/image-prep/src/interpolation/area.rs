//! `INTER_AREA` where an image shrinks, in the 32-bit floating-point order of OpenCV, so that bytes are equal.
//!
//! Source: `resizeAreaFast_` and `ResizeArea_Invoker` in OpenCV's `modules/imgproc/src/resize.cpp`.

use super::{Axis, to_byte};
use crate::{Layout, Raster};

pub(super) fn resize(image: &Raster, columns: Axis, rows: Axis) -> Vec<u8> {
    if let (Some(across), Some(down)) = (columns.whole_ratio(), rows.whole_ratio()) {
        return match image.layout() {
            Layout::Gray => whole_cells::<1>(image.pixels(), columns, rows, across, down),
            Layout::Rgb => whole_cells::<3>(image.pixels(), columns, rows, across, down),
        };
    }
    match image.layout() {
        Layout::Gray => fractional_cells(image.pixels(), 1, columns, rows, narrow::<1>),
        Layout::Rgb => {
            #[cfg(target_arch = "x86_64")]
            if let Some(simd) = crate::vector::available() {
                return avx2::fractional_cells(simd, image.pixels(), columns, rows);
            }
            fractional_cells(image.pixels(), 3, columns, rows, narrow::<3>)
        }
    }
}

/// Cells of `across` by `down` whole pixels.
fn whole_cells<const CHANNELS: usize>(
    pixels: &[u8],
    columns: Axis,
    rows: Axis,
    across: usize,
    down: usize,
) -> Vec<u8> {
    let row_len = columns.num_inputs * CHANNELS;
    let inverse_area = 1.0 / (across * down) as f32;
    let mut resized = Vec::with_capacity(columns.num_outputs * rows.num_outputs * CHANNELS);
    let mut sums = vec![0u32; row_len];
    for cell_rows in pixels.chunks_exact(row_len * down).take(rows.num_outputs) {
        // Columns first: one pass over contiguous bytes.
        sums.fill(0);
        for row in cell_rows.chunks_exact(row_len) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += u32::from(level);
            }
        }
        for cell in sums.chunks_exact(across * CHANNELS).take(columns.num_outputs) {
            let mut sum = [0; CHANNELS];
            for pixel in cell.as_chunks::<CHANNELS>().0 {
                for (sum, level) in sum.iter_mut().zip(pixel) {
                    *sum += level;
                }
            }
            // OpenCV has a kernel of its own for two by two, which rounds halves up.
            resized.extend(sum.map(|sum| match (across, down) {
                (2, 2) => ((sum + 2) >> 2) as u8,
                _ => to_byte(sum as f32 * inverse_area),
            }));
        }
    }
    resized
}

/// For each output the first input its cell touches, and the share of the cell that each input has from there on.
struct Cells {
    /// First input, and the number of shares.
    runs: Vec<(usize, usize)>,
    shares: Vec<f32>,
}

impl Cells {
    /// Source: `computeResizeAreaTab`.
    fn new(axis: Axis) -> Self {
        /// A fraction of a pixel below this is left out.
        const NEGLIGIBLE: f64 = 1e-3;
        let Axis { num_inputs, num_outputs, scale, .. } = axis;
        let mut cells = Self { runs: Vec::with_capacity(num_outputs), shares: Vec::new() };
        for output in 0..num_outputs {
            let begin = output as f64 * scale;
            let end = begin + scale;
            let cell_width = scale.min(num_inputs as f64 - begin);
            let last_whole = (end.floor() as usize).min(num_inputs - 1);
            let first_whole = (begin.ceil() as usize).min(last_whole);
            let num_before = cells.shares.len();
            let mut first = first_whole;
            if first_whole as f64 - begin > NEGLIGIBLE {
                first = first_whole - 1;
                cells.shares.push(((first_whole as f64 - begin) / cell_width) as f32);
            }
            cells.shares.extend((first_whole..last_whole).map(|_| (1.0 / cell_width) as f32));
            if end - last_whole as f64 > NEGLIGIBLE {
                let covered = (end - last_whole as f64).min(1.0).min(cell_width);
                cells.shares.push((covered / cell_width) as f32);
            }
            cells.runs.push((first, cells.shares.len() - num_before));
        }
        cells
    }

    /// First input and shares of each output in turn.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[f32])> {
        let mut rest = &self.shares[..];
        self.runs.iter().map(move |&(first, num_shares)| {
            let (shares, after) = rest.split_at(num_shares);
            rest = after;
            (first, shares)
        })
    }
}

/// Cells with fractions of pixels. `narrow` shrinks two neighbouring rows (the second may be the first again).
#[inline(always)]
fn fractional_cells(
    pixels: &[u8],
    channels: usize,
    columns: Axis,
    rows: Axis,
    mut narrow: impl FnMut([&[u8]; 2], &Cells, [&mut [f32]; 2]),
) -> Vec<u8> {
    let row_len = columns.num_inputs * channels;
    let new_len = columns.num_outputs * channels;
    let column_cells = Cells::new(columns);
    let mut resized = Vec::with_capacity(new_len * rows.num_outputs);
    let mut sums = vec![0.0f32; new_len];
    // Shrunk rows of even and of odd numbers. A fourth channel may be written behind the last pixel. The last row of a
    // cell is often the first of the next, and is kept.
    let mut narrowed = [vec![0.0f32; new_len + 1], vec![0.0f32; new_len + 1]];
    let mut num_narrowed = 0;
    for (first, shares) in Cells::new(rows).iter() {
        for (idx, &share) in shares.iter().enumerate() {
            let input = first + idx;
            if input >= num_narrowed {
                let row = |number: usize| &pixels[number.min(rows.num_inputs - 1) * row_len..][..row_len];
                let [even, odd] = &mut narrowed;
                let targets = if input % 2 == 0 {
                    [&mut even[..], &mut odd[..]]
                } else {
                    [&mut odd[..], &mut even[..]]
                };
                narrow([row(input), row(input + 1)], &column_cells, targets);
                num_narrowed = input + 2;
            }
            let narrowed = &narrowed[input % 2][..new_len];
            if idx == 0 {
                for (sum, value) in sums.iter_mut().zip(narrowed) {
                    *sum = share * value;
                }
            } else {
                for (sum, value) in sums.iter_mut().zip(narrowed) {
                    *sum += share * value;
                }
            }
        }
        resized.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    resized
}

fn narrow<const CHANNELS: usize>(rows: [&[u8]; 2], cells: &Cells, targets: [&mut [f32]; 2]) {
    for (row, target) in rows.into_iter().zip(targets) {
        let pixels = row.as_chunks::<CHANNELS>().0;
        for (output, (first, shares)) in target.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(cells.iter()) {
            let mut sums = [0.0; CHANNELS];
            for (pixel, &share) in pixels[first..].iter().zip(shares) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += f32::from(level) * share;
                }
            }
            *output = sums;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    //! The same with AVX2: products and sums are rounded one by one, as in the plain form, so that the bits are equal.

    use pulp::cast;
    use pulp::x86::V3;

    use super::{Axis, Cells};
    use crate::vector;

    pub(super) fn fractional_cells(simd: V3, pixels: &[u8], columns: Axis, rows: Axis) -> Vec<u8> {
        let mut padded = [Vec::new(), Vec::new()];
        vector::run(
            simd,
            #[inline(always)]
            || {
                super::fractional_cells(
                    pixels,
                    3,
                    columns,
                    rows,
                    #[inline(always)]
                    |rows, cells, targets| {
                        for (row, padded) in rows.into_iter().zip(&mut padded) {
                            vector::pad(row, padded);
                        }
                        narrow(simd, [&padded[0], &padded[1]], cells, targets);
                    },
                )
            },
        )
    }

    #[inline(always)]
    fn narrow(simd: V3, rows: [&[u8]; 2], cells: &Cells, [low, high]: [&mut [f32]; 2]) {
        for (output, (first, shares)) in cells.iter().enumerate() {
            let mut sum = simd.avx._mm256_setzero_ps();
            for (idx, &share) in shares.iter().enumerate() {
                let pixels = vector::load_two_pixels_f32(simd, rows, (first + idx) * 3);
                let product = simd.avx._mm256_mul_ps(pixels, simd.avx._mm256_set1_ps(share));
                sum = simd.avx._mm256_add_ps(sum, product);
            }
            let [first, second]: [[f32; 4]; 2] = cast(sum);
            low[output * 3..output * 3 + 4].copy_from_slice(&first);
            high[output * 3..output * 3 + 4].copy_from_slice(&second);
        }
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
            prop_assume!(columns.whole_ratio().is_none() || rows.whole_ratio().is_none());
            prop_assert_eq!(
                resize(&image, columns, rows),
                fractional_cells(image.pixels(), 3, columns, rows, narrow::<3>)
            );
        }
    }
}
