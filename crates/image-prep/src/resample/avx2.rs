//! The two passes with AVX2.
//!
//! The instruction of choice multiplies 16-bit numbers and adds pairs of products. Weights have 24 bits, so each is split
//! into an upper part and a lower byte, which are summed apart; 32-bit arithmetic puts them together without loss.

use pulp::x86::V3;
use std::arch::x86_64::__m256i;

use super::{Kernels, ONE_HALF, PRECISION_BITS};
use crate::vector::{self, COLUMNS, GROUP, WeightPair, add_weighted, runs_of};

/// The weights of four taps in pairs, upper parts and lower bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Group {
    upper: [WeightPair; 2],
    lower: [WeightPair; 2],
}

/// [`Kernels`] in groups of four taps, filled up with zeros.
pub(super) struct Groups {
    /// First input, and the number of groups.
    runs: Vec<(usize, usize)>,
    groups: Vec<Group>,
}

impl Groups {
    /// `None` if an upper part has more than 16 bits, which would take a weight over 2.
    pub(super) fn new(kernels: &Kernels) -> Option<Self> {
        let upper = |weight: i32| i16::try_from(weight >> 8).ok();
        let lower = |weight: i32| (weight & 0xff) as i16;
        let mut groups = Self { runs: Vec::with_capacity(kernels.runs.len()), groups: Vec::new() };
        for (first, weights) in kernels.iter() {
            groups.runs.push((first, weights.len().div_ceil(GROUP)));
            for weights in weights.chunks(GROUP) {
                let mut four = [0; GROUP];
                four[..weights.len()].copy_from_slice(weights);
                let pair = |at: usize| {
                    Some((
                        WeightPair::new(upper(four[at])?, upper(four[at + 1])?),
                        WeightPair::new(lower(four[at]), lower(four[at + 1])),
                    ))
                };
                let ((upper_first, lower_first), (upper_last, lower_last)) = (pair(0)?, pair(2)?);
                groups
                    .groups
                    .push(Group { upper: [upper_first, upper_last], lower: [lower_first, lower_last] });
            }
        }
        Some(groups)
    }

    /// The groups of each output in turn.
    #[inline(always)]
    fn iter(&self) -> impl Iterator<Item = (usize, &[Group])> {
        runs_of(&self.runs, &self.groups)
    }
}

/// Upper and lower sums put together and rounded, still in 32 bits.
#[inline(always)]
fn round(simd: V3, upper: __m256i, lower: __m256i) -> __m256i {
    let sum = simd.avx2._mm256_add_epi32(simd.avx2._mm256_slli_epi32::<8>(upper), lower);
    let sum = simd.avx2._mm256_add_epi32(sum, simd.avx._mm256_set1_epi32(ONE_HALF));
    simd.avx2._mm256_srai_epi32::<{ PRECISION_BITS as i32 }>(sum)
}

/// Changes the length of every row.
pub(super) fn resample_rows(simd: V3, pixels: &[u8], source_width: usize, groups: &Groups) -> Vec<u8> {
    let row_len = source_width * 3;
    let new_len = groups.runs.len() * 3;
    let mut resampled = Vec::with_capacity(pixels.len() / row_len * new_len);
    let mut padded = [Vec::new(), Vec::new()];
    // A pixel is written as four bytes, the last of which the next pixel overwrites.
    let mut shrunk = [vec![0; new_len + 1], vec![0; new_len + 1]];
    for rows in pixels.chunks(row_len * 2) {
        let (first, second) = rows.split_at(row_len);
        vector::pad(first, &mut padded[0]);
        vector::pad(if second.is_empty() { first } else { second }, &mut padded[1]);
        let [low, high] = &mut shrunk;
        let sources = [&padded[0][..], &padded[1][..]];
        vector::run(
            simd,
            #[inline(always)]
            || two_rows(simd, sources, groups, low, high),
        );
        resampled.extend_from_slice(&shrunk[0][..new_len]);
        if !second.is_empty() {
            resampled.extend_from_slice(&shrunk[1][..new_len]);
        }
    }
    resampled
}

#[inline(always)]
fn two_rows(simd: V3, rows: [&[u8]; 2], groups: &Groups, low: &mut [u8], high: &mut [u8]) {
    let zero = simd.avx._mm256_setzero_si256();
    for (output, (first, groups)) in groups.iter().enumerate() {
        let (mut upper, mut lower) = (zero, zero);
        for (idx, group) in groups.iter().enumerate() {
            let pixels = vector::load_two(simd, rows, (first + idx * GROUP) * 3);
            let (head, tail) = vector::pixel_pairs(simd, pixels);
            upper = add_weighted(simd, upper, head, group.upper[0]);
            lower = add_weighted(simd, lower, head, group.lower[0]);
            upper = add_weighted(simd, upper, tail, group.upper[1]);
            lower = add_weighted(simd, lower, tail, group.lower[1]);
        }
        let [first, second] = vector::pack_two_pixels(simd, round(simd, upper, lower));
        low[output * 3..output * 3 + 4].copy_from_slice(&first);
        high[output * 3..output * 3 + 4].copy_from_slice(&second);
    }
}

/// Changes the number of rows; `row_len`, a row's length in bytes, must be at least [`COLUMNS`].
pub(super) fn resample_columns(simd: V3, pixels: &[u8], row_len: usize, groups: &Groups) -> Vec<u8> {
    let mut resampled = vec![0; groups.runs.len() * row_len];
    vector::run(
        simd,
        #[inline(always)]
        || {
            for (target, (first, groups)) in resampled.chunks_exact_mut(row_len).zip(groups.iter()) {
                let rows = &pixels[first * row_len..];
                vector::for_each_sixteen(
                    row_len,
                    #[inline(always)]
                    |at| {
                        let bytes = sixteen_columns(simd, rows, row_len, at, groups);
                        target[at..at + COLUMNS].copy_from_slice(&bytes);
                    },
                );
            }
        },
    );
    resampled
}

#[inline(always)]
fn sixteen_columns(simd: V3, rows: &[u8], row_len: usize, at: usize, groups: &[Group]) -> [u8; COLUMNS] {
    let zero = simd.avx._mm256_setzero_si256();
    let (mut upper, mut lower) = ([zero; 2], [zero; 2]);
    for (idx, group) in groups.iter().enumerate() {
        for (pair, (&upper_weights, &lower_weights)) in group.upper.iter().zip(&group.lower).enumerate() {
            let pairs = vector::column_pairs(simd, rows, row_len, at, idx * GROUP + pair * 2);
            for ((upper, lower), pairs) in upper.iter_mut().zip(&mut lower).zip(pairs) {
                *upper = add_weighted(simd, *upper, pairs, upper_weights);
                *lower = add_weighted(simd, *lower, pairs, lower_weights);
            }
        }
    }
    vector::pack_sixteen(simd, [0, 1].map(|half| round(simd, upper[half], lower[half])))
}
