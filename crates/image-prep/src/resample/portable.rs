//! The two passes in plain Rust: what they compute, and the way to it on processors without AVX2.

use super::{Kernels, ONE_HALF, to_byte};

/// Changes the length of every row.
pub(super) fn resample_rows(pixels: &[u8], source_width: usize, kernels: &Kernels) -> Vec<u8> {
    let height = pixels.len() / (source_width * 3);
    let mut resampled = Vec::with_capacity(height * kernels.runs.len() * 3);
    for row in pixels.chunks_exact(source_width * 3) {
        let pixels = row.as_chunks::<3>().0;
        for (first, weights) in kernels.iter() {
            let mut sums = [ONE_HALF; 3];
            for (pixel, weight) in pixels[first..].iter().zip(weights) {
                for (sum, &level) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(level) * weight;
                }
            }
            resampled.extend(sums.map(to_byte));
        }
    }
    resampled
}

/// Changes the number of rows; `row_len` is a row's length in bytes.
pub(super) fn resample_columns(pixels: &[u8], row_len: usize, kernels: &Kernels) -> Vec<u8> {
    let mut resampled = Vec::with_capacity(kernels.runs.len() * row_len);
    let mut sums = vec![0; row_len];
    for (first, weights) in kernels.iter() {
        sums.fill(ONE_HALF);
        // Row by row rather than pixel by pixel: the inner loop runs over contiguous bytes and vectorises.
        for (row, weight) in pixels[first * row_len..].chunks_exact(row_len).zip(weights) {
            for (sum, &level) in sums.iter_mut().zip(row) {
                *sum += i32::from(level) * weight;
            }
        }
        resampled.extend(sums.iter().map(|&sum| to_byte(sum)));
    }
    resampled
}
