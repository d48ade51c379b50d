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
        Layout::Gray => fractional_cells::<1>(image.pixels(), columns, rows),
        Layout::Rgb => fractional_cells::<3>(image.pixels(), columns, rows),
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

/// One input of one output, with its share of it.
#[derive(Debug, Clone, Copy)]
struct Share {
    input: usize,
    weight: f32,
}

/// For each output the inputs its cell touches.
struct Shares {
    shares: Vec<Share>,
    /// Where the shares of each output end.
    ends: Vec<usize>,
}

impl Shares {
    /// Source: `computeResizeAreaTab`.
    fn new(axis: Axis) -> Self {
        /// A fraction of a pixel below this is left out.
        const NEGLIGIBLE: f64 = 1e-3;
        let Axis { num_inputs, num_outputs, scale, .. } = axis;
        let mut shares = Vec::with_capacity(num_outputs * (scale as usize + 2));
        let mut ends = Vec::with_capacity(num_outputs);
        for output in 0..num_outputs {
            let begin = output as f64 * scale;
            let end = begin + scale;
            let cell_width = scale.min(num_inputs as f64 - begin);
            let last_whole = (end.floor() as usize).min(num_inputs - 1);
            let first_whole = (begin.ceil() as usize).min(last_whole);
            if first_whole as f64 - begin > NEGLIGIBLE {
                let weight = ((first_whole as f64 - begin) / cell_width) as f32;
                shares.push(Share { input: first_whole - 1, weight });
            }
            let weight = (1.0 / cell_width) as f32;
            shares.extend((first_whole..last_whole).map(|input| Share { input, weight }));
            if end - last_whole as f64 > NEGLIGIBLE {
                let weight = ((end - last_whole as f64).min(1.0).min(cell_width) / cell_width) as f32;
                shares.push(Share { input: last_whole, weight });
            }
            ends.push(shares.len());
        }
        Self { shares, ends }
    }

    /// The shares of each output in turn.
    fn iter(&self) -> impl Iterator<Item = &[Share]> {
        let mut start = 0;
        self.ends.iter().map(move |&end| {
            let shares = &self.shares[start..end];
            start = end;
            shares
        })
    }
}

fn fractional_cells<const CHANNELS: usize>(pixels: &[u8], columns: Axis, rows: Axis) -> Vec<u8> {
    let row_len = columns.num_inputs * CHANNELS;
    let column_shares = Shares::new(columns);
    let mut resized = Vec::with_capacity(columns.num_outputs * rows.num_outputs * CHANNELS);
    let mut sums = vec![0.0f32; columns.num_outputs * CHANNELS];
    let mut narrowed = vec![0.0f32; columns.num_outputs * CHANNELS];
    // The last row of one cell is often the first of the next.
    let mut narrowed_row = None;
    for row_shares in Shares::new(rows).iter() {
        for (idx, &Share { input, weight }) in row_shares.iter().enumerate() {
            if narrowed_row != Some(input) {
                narrow::<CHANNELS>(&pixels[input * row_len..][..row_len], &column_shares, &mut narrowed);
                narrowed_row = Some(input);
            }
            if idx == 0 {
                for (sum, value) in sums.iter_mut().zip(&narrowed) {
                    *sum = weight * value;
                }
            } else {
                for (sum, value) in sums.iter_mut().zip(&narrowed) {
                    *sum += weight * value;
                }
            }
        }
        resized.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    resized
}

/// One row, shrunk.
fn narrow<const CHANNELS: usize>(row: &[u8], shares: &Shares, narrowed: &mut [f32]) {
    for (output, shares) in narrowed.as_chunks_mut::<CHANNELS>().0.iter_mut().zip(shares.iter()) {
        let mut sums = [0.0; CHANNELS];
        for share in shares {
            let pixel = &row[share.input * CHANNELS..][..CHANNELS];
            for (sum, &level) in sums.iter_mut().zip(pixel) {
                *sum += f32::from(level) * share.weight;
            }
        }
        *output = sums;
    }
}
