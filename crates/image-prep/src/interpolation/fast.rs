//! The mean of the covered area in integer arithmetic: columns of the image first, which runs over contiguous bytes,
//! then rows, with a rounding to bytes between.

use super::Axis;
use crate::Raster;

/// Bits after the binary point of a weight.
const WEIGHT_BITS: u32 = 15;
const ONE_HALF: u32 = 1 << (WEIGHT_BITS - 1);

/// The inputs of one output: a run, with the fixed-point share of each.
struct Cell {
    first: usize,
    weights: Vec<u32>,
}

/// Shares of a cell's inputs sum to exactly one, so that flat areas stay flat.
fn cells(axis: Axis) -> Vec<Cell> {
    let Axis { num_inputs, num_outputs, scale, .. } = axis;
    let one = f64::from(1u32 << WEIGHT_BITS);
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
                let due = (covered / (end - begin) * one).round() as u32;
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
    match image.layout().num_channels() {
        1 => resize_with::<1>(image.pixels(), columns, rows),
        _ => resize_with::<3>(image.pixels(), columns, rows),
    }
}

fn resize_with<const CHANNELS: usize>(pixels: &[u8], columns: Axis, rows: Axis) -> Vec<u8> {
    let row_len = columns.num_inputs * CHANNELS;
    let column_cells = cells(columns);
    let mut resized = Vec::with_capacity(columns.num_outputs * rows.num_outputs * CHANNELS);
    let mut sums = vec![0u32; row_len];
    let mut flattened = vec![0u8; row_len];
    for cell in cells(rows) {
        sums.fill(ONE_HALF);
        for (row, &weight) in pixels[cell.first * row_len..].chunks_exact(row_len).zip(&cell.weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += u32::from(level) * weight;
            }
        }
        for (byte, sum) in flattened.iter_mut().zip(&sums) {
            *byte = (sum >> WEIGHT_BITS) as u8;
        }
        let pixels = flattened.as_chunks::<CHANNELS>().0;
        for cell in &column_cells {
            let mut sums = [ONE_HALF; CHANNELS];
            for (pixel, &weight) in pixels[cell.first..].iter().zip(&cell.weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += u32::from(level) * weight;
                }
            }
            resized.extend(sums.map(|sum| (sum >> WEIGHT_BITS) as u8));
        }
    }
    resized
}
