//! Vector instructions for x86-64 processors with AVX2, chosen at run time. Everything done with them has a plain form
//! beside it that gives the same bits; tests compare the two.
//!
//! Two rows of an image are worked on at once, one in each half of a 256-bit register; a pixel's three channels fill
//! three of the four lanes of a half.

use pulp::x86::V3;
use pulp::{NullaryFnOnce, cast};
use std::arch::x86_64::{__m128i, __m256, __m256i};

/// Bytes that must follow a row: reads go up to this far beyond the last pixel that counts.
pub(crate) const PADDING: usize = 64;

/// The instructions, if this processor has them.
pub(crate) fn available() -> Option<V3> {
    V3::try_new()
}

/// Runs `work`, compiled for processors with the instructions.
///
/// That takes inlining all the way down. A closure handed over as `FnOnce` is called through a shim that need not be
/// inlined, and then each instruction becomes a call, as the machine code of an earlier form showed.
#[inline(always)]
pub(crate) fn run<R>(simd: V3, work: impl FnMut() -> R) -> R {
    struct Work<F>(F);

    impl<R, F: FnMut() -> R> NullaryFnOnce for Work<F> {
        type Output = R;

        #[inline(always)]
        fn call(mut self) -> R {
            (self.0)()
        }
    }

    simd.vectorize(Work(work))
}

/// Puts `row` into `padded`, followed by zeros.
pub(crate) fn pad(row: &[u8], padded: &mut Vec<u8>) {
    padded.clear();
    padded.extend_from_slice(row);
    padded.resize(row.len() + PADDING, 0);
}

/// The 16 bytes at `at` in each of two rows.
#[inline(always)]
pub(crate) fn load_two(simd: V3, rows: [&[u8]; 2], at: usize) -> __m256i {
    let [low, high] = rows.map(|row| {
        let bytes: [u8; 16] = *row[at..].first_chunk().expect("rows are padded");
        cast::<_, __m128i>(bytes)
    });
    simd.avx._mm256_set_m128i(high, low)
}

/// Of four RGB pixels in each half, the first two (`.0`) and the last two (`.1`), each as 16-bit pairs: red of both,
/// green of both, blue of both, nothing.
#[inline(always)]
pub(crate) fn pixel_pairs(simd: V3, pixels: __m256i) -> (__m256i, __m256i) {
    /// Zeroes the target byte.
    const Z: u8 = 0x80;
    const FIRST: [u8; 16] = [0, Z, 3, Z, 1, Z, 4, Z, 2, Z, 5, Z, Z, Z, Z, Z];
    const LAST: [u8; 16] = [6, Z, 9, Z, 7, Z, 10, Z, 8, Z, 11, Z, Z, Z, Z, Z];
    let twice = |mask: [u8; 16]| cast::<_, __m256i>([mask, mask]);
    (simd.avx2._mm256_shuffle_epi8(pixels, twice(FIRST)), simd.avx2._mm256_shuffle_epi8(pixels, twice(LAST)))
}

/// `sum` plus, lane by lane, the pairs of 16-bit numbers times the two weights.
#[inline(always)]
pub(crate) fn add_weighted(simd: V3, sum: __m256i, pairs: __m256i, weights: WeightPair) -> __m256i {
    let weights = simd.avx._mm256_set1_epi32(weights.0);
    simd.avx2._mm256_add_epi32(sum, simd.avx2._mm256_madd_epi16(pairs, weights))
}

/// Two 16-bit weights, the first in the lower half.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct WeightPair(i32);

impl WeightPair {
    pub(crate) fn new(first: i16, second: i16) -> Self {
        Self(i32::from(first as u16) | i32::from(second) << 16)
    }
}

/// Taps that are worked on together.
pub(crate) const GROUP: usize = 4;

/// The taps of one output after another: first input, and weights of 16 bits in groups of four.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    /// First input, and the number of groups.
    runs: Vec<(usize, usize)>,
    groups: Vec<[WeightPair; 2]>,
}

impl Taps {
    /// Adds an output.
    pub(crate) fn push(&mut self, first: usize, weights: &[i16]) {
        self.runs.push((first, weights.len().div_ceil(GROUP)));
        for weights in weights.chunks(GROUP) {
            let mut four = [0; GROUP];
            four[..weights.len()].copy_from_slice(weights);
            self.groups.push([WeightPair::new(four[0], four[1]), WeightPair::new(four[2], four[3])]);
        }
    }

    /// First input and groups of each output in turn.
    #[inline(always)]
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &[[WeightPair; 2]])> {
        runs_of(&self.runs, &self.groups)
    }
}

/// First input and groups of each output in turn; `runs` has the first input of each and the number of its groups.
#[inline(always)]
pub(crate) fn runs_of<'a, T>(
    runs: &'a [(usize, usize)],
    groups: &'a [T],
) -> impl Iterator<Item = (usize, &'a [T])> {
    let mut rest = groups;
    runs.iter().map(
        #[inline(always)]
        move |&(first, num_groups)| {
            let (groups, after) = rest.split_at(num_groups);
            rest = after;
            (first, groups)
        },
    )
}

/// The weighted sums of RGB pixels of two rows, given to `take` for each output in turn: red, green, blue and nothing of
/// the first row, then of the second. Weights must be such that sums fit into 32 bits.
#[inline(always)]
pub(crate) fn weigh_two_rows(simd: V3, rows: [&[u8]; 2], taps: &Taps, mut take: impl FnMut(usize, __m256i)) {
    for (output, (first, groups)) in taps.iter().enumerate() {
        let mut sum = simd.avx._mm256_setzero_si256();
        for (idx, group) in groups.iter().enumerate() {
            let (head, tail) = pixel_pairs(simd, load_two(simd, rows, (first + idx * GROUP) * 3));
            sum = add_weighted(simd, sum, head, group[0]);
            sum = add_weighted(simd, sum, tail, group[1]);
        }
        take(output, sum);
    }
}

/// Two RGB pixels and what stands in their fourth lanes, from 32-bit lanes cut to bytes.
#[inline(always)]
pub(crate) fn pack_two_pixels(simd: V3, pixels: __m256i) -> [[u8; 4]; 2] {
    let words = simd.avx2._mm256_packs_epi32(pixels, pixels);
    let bytes: [[u8; 4]; 8] = cast(simd.avx2._mm256_packus_epi16(words, words));
    [bytes[0], bytes[4]]
}

/// The taps of outputs of one channel, none of which has more than [`GROUP`]; eight outputs are worked on together.
#[derive(Debug)]
pub(crate) struct ShortTaps {
    /// First inputs of eight outputs, in the order of [`ShortTaps::ORDER`].
    firsts: Vec<[usize; 8]>,
    /// Weights of the first four of them, then of the last four.
    weights: Vec<[[i16; 16]; 2]>,
}

impl ShortTaps {
    /// Adding up neighbouring lanes of two vectors puts these outputs in order.
    const ORDER: [usize; 8] = [0, 1, 4, 5, 2, 3, 6, 7];

    /// First input and weights of each output in turn; nothing if one has too many weights.
    pub(crate) fn new<'a>(taps: impl ExactSizeIterator<Item = (usize, &'a [i16])>) -> Option<Self> {
        let mut firsts = vec![[0; 8]; taps.len().div_ceil(8)];
        let mut weights = vec![[[0; 16]; 2]; firsts.len()];
        for (output, (first, taps)) in taps.enumerate() {
            let lane = Self::ORDER.into_iter().position(|place| place == output % 8)?;
            firsts[output / 8][lane] = first;
            let start = lane % 4 * GROUP;
            weights[output / 8][lane / 4][start..start + GROUP].get_mut(..taps.len())?.copy_from_slice(taps);
        }
        Some(Self { firsts, weights })
    }

    /// The weighted sums of a row, given to `take` with the number of the first of eight outputs; beyond the last they are
    /// nothing.
    #[inline(always)]
    pub(crate) fn weigh_row(&self, simd: V3, row: &[u8], mut take: impl FnMut(usize, __m256i)) {
        for (idx, (firsts, weights)) in self.firsts.iter().zip(&self.weights).enumerate() {
            let mut inputs = [0; 8];
            for (four, &first) in inputs.iter_mut().zip(firsts) {
                *four = u32::from_le_bytes(*row[first..].first_chunk().expect("rows are padded"));
            }
            let [low, high]: [__m128i; 2] = cast(inputs);
            let low = simd.avx2._mm256_madd_epi16(simd.avx2._mm256_cvtepu8_epi16(low), cast(weights[0]));
            let high = simd.avx2._mm256_madd_epi16(simd.avx2._mm256_cvtepu8_epi16(high), cast(weights[1]));
            take(idx * 8, simd.avx2._mm256_hadd_epi32(low, high));
        }
    }
}

/// Eight bytes from 32-bit lanes.
#[inline(always)]
pub(crate) fn pack_eight(simd: V3, sums: __m256i) -> [u8; 8] {
    let [low, high] = pack_two_pixels(simd, sums);
    cast([low, high])
}

/// Columns, in bytes, that are worked on together.
pub(crate) const COLUMNS: usize = 16;

/// Calls `work` with the first of every [`COLUMNS`] columns. The last ones are done twice where they do not fill a vector;
/// `row_len` must be at least [`COLUMNS`].
#[inline(always)]
pub(crate) fn for_each_sixteen(row_len: usize, mut work: impl FnMut(usize)) {
    let mut at = 0;
    while at < row_len {
        at = at.min(row_len - COLUMNS);
        work(at);
        at += COLUMNS;
    }
}

/// Sixteen bytes of row `row` and of the next, from column `at` on, as 16-bit pairs: columns 0 to 7, then 8 to 15. Rows
/// beyond the last are the last.
#[inline(always)]
pub(crate) fn column_pairs(simd: V3, rows: &[u8], row_len: usize, at: usize, row: usize) -> [__m256i; 2] {
    let last = rows.len() - row_len + at;
    let [even, odd] = [row, row + 1].map(|row| {
        let bytes: [u8; COLUMNS] =
            *rows[(row * row_len + at).min(last)..].first_chunk().expect("rows are as long as that");
        cast::<_, __m128i>(bytes)
    });
    [
        simd.avx2._mm256_cvtepu8_epi16(simd.sse2._mm_unpacklo_epi8(even, odd)),
        simd.avx2._mm256_cvtepu8_epi16(simd.sse2._mm_unpackhi_epi8(even, odd)),
    ]
}

/// The weighted sums of sixteen columns, as [`column_pairs`] has them.
#[inline(always)]
pub(crate) fn weigh_sixteen_columns(
    simd: V3,
    rows: &[u8],
    row_len: usize,
    at: usize,
    groups: &[[WeightPair; 2]],
) -> [__m256i; 2] {
    let mut sums = [simd.avx._mm256_setzero_si256(); 2];
    for (idx, group) in groups.iter().enumerate() {
        for (pair, &weights) in group.iter().enumerate() {
            let pairs = column_pairs(simd, rows, row_len, at, idx * GROUP + pair * 2);
            for (sum, pairs) in sums.iter_mut().zip(pairs) {
                *sum = add_weighted(simd, *sum, pairs, weights);
            }
        }
    }
    sums
}

/// Sixteen columns, as [`column_pairs`] has them, from 32-bit lanes cut to bytes.
#[inline(always)]
pub(crate) fn pack_sixteen(simd: V3, [first, second]: [__m256i; 2]) -> [u8; COLUMNS] {
    // Packing works within 128-bit halves: columns 0-3, 8-11, then 4-7, 12-15.
    let words = simd.avx2._mm256_packs_epi32(first, second);
    let bytes: [[u8; 4]; 8] = cast(simd.avx2._mm256_packus_epi16(words, words));
    cast([bytes[0], bytes[4], bytes[1], bytes[5]])
}

/// One RGB pixel of each of two rows, at byte `at`, in floating point: three lanes of each half, the fourth is whatever
/// follows.
#[inline(always)]
pub(crate) fn load_two_pixels_f32(simd: V3, rows: [&[u8]; 2], at: usize) -> __m256 {
    let [low, high] = rows.map(|row| u32::from_le_bytes(*row[at..].first_chunk().expect("rows are padded")));
    let both: __m128i = cast([u64::from(low) | u64::from(high) << 32, 0]);
    simd.avx._mm256_cvtepi32_ps(simd.avx2._mm256_cvtepu8_epi32(both))
}
