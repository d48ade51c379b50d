//! Pillow's resampling, bit for bit.
//!
//! Two one-dimensional passes, horizontal first, with 8-bit rounding between them and weights in 22-bit fixed point.
//! Filters widen when an image shrinks, so every source pixel counts (no aliasing).
//!
//! Source: `src/libImaging/Resample.c` of Pillow (the 8-bit path). Checked against Pillow 11.1.0, the release of the
//! months in which the reference was trained; releases from 10.4 to 12.2 give the same. Pillow 13.0.0 runs the vertical
//! pass first where that is less work, and then differs by up to a few dozen levels at hard edges.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod portable;

use serde::{Deserialize, Serialize};
use std::ops::Range;

use crate::RgbImage;

/// Bits after the binary point of a weight: 32 less 8 for the pixel and 2 for overshoot. Source: `PRECISION_BITS`.
const PRECISION_BITS: u32 = 32 - 8 - 2;

/// A resampling kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Filter {
    /// Mean of the covered area, `Image.Resampling.BOX`.
    Box,
    /// Triangle, `Image.Resampling.BILINEAR`.
    Bilinear,
    /// Cubic convolution with a = −0.5, `Image.Resampling.BICUBIC`.
    Bicubic,
    /// Windowed sinc with three lobes, `Image.Resampling.LANCZOS`.
    Lanczos,
}

impl Filter {
    /// Half the width of the kernel, in source pixels at scale 1.
    fn support(self) -> f64 {
        match self {
            Self::Box => 0.5,
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    /// The kernel at distance `x` from its centre.
    fn weight(self, x: f64) -> f64 {
        /// The cubic's free parameter.
        const A: f64 = -0.5;
        let distance = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Bicubic if distance < 1.0 => ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0,
            Self::Bicubic if distance < 2.0 => (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// `image` scaled to `width` by `height`, as `PIL.Image.resize` does it. Equal sizes give a copy.
///
/// # Panics
/// If a side is 0 or over [`crate::MAX_SIDE`].
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let columns = Scaled { len: width, part: 0..width };
    resize_part(image, &columns, &Scaled { len: height, part: 0..height }, filter)
}

/// One direction of an image that is resized and of which a part is kept.
pub(crate) struct Scaled {
    /// Length of the whole.
    pub(crate) len: u32,
    /// What is kept of it.
    pub(crate) part: Range<u32>,
}

impl Scaled {
    /// The pass that changes `source_len` to this, unless that is nothing at all.
    fn kernels(&self, source_len: u32, filter: Filter) -> Option<Kernels> {
        let part = self.part.start as usize..self.part.end as usize;
        let changes = self.len != source_len || self.part != (0..source_len);
        changes.then(|| Kernels::part(source_len as usize, self.len as usize, part, filter))
    }
}

/// A part of what [`resize`] gives, at the price of the part: the whole may be of any size.
///
/// # Panics
/// If a side of the part is 0 or over [`crate::MAX_SIDE`].
pub(crate) fn resize_part(image: &RgbImage, columns: &Scaled, rows: &Scaled, filter: Filter) -> RgbImage {
    let (width, height) = (columns.part.len() as u32, rows.part.len() as u32);
    let mut vertical = rows.kernels(image.height(), filter);
    let mut pixels = std::borrow::Cow::Borrowed(image.pixels());
    if let Some(kernels) = &mut vertical {
        let (row_len, needed) = (image.width() as usize * 3, kernels.drop_unused_inputs());
        pixels = (&image.pixels()[needed.start * row_len..needed.end * row_len]).into();
    }
    if let Some(kernels) = columns.kernels(image.width(), filter) {
        pixels = resample_rows(&pixels, image.width() as usize, &kernels).into();
    }
    if let Some(kernels) = vertical {
        pixels = resample_columns(&pixels, width as usize * 3, &kernels).into();
    }
    RgbImage::new(width, height, pixels.into_owned())
        .unwrap_or_else(|error| panic!("resize of {image:?} to {width} x {height}: {error}"))
}

/// Changes the length of every row, in the fastest way there is here.
fn resample_rows(pixels: &[u8], source_width: usize, kernels: &Kernels) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if let Some((simd, groups)) = crate::vector::available().zip(avx2::Groups::new(kernels)) {
        return avx2::resample_rows(simd, pixels, source_width, &groups);
    }
    portable::resample_rows(pixels, source_width, kernels)
}

/// Changes the number of rows of `row_len` bytes, in the fastest way there is here.
fn resample_columns(pixels: &[u8], row_len: usize, kernels: &Kernels) -> Vec<u8> {
    #[cfg(target_arch = "x86_64")]
    if row_len >= crate::vector::COLUMNS
        && let Some((simd, groups)) = crate::vector::available().zip(avx2::Groups::new(kernels))
    {
        return avx2::resample_columns(simd, pixels, row_len, &groups);
    }
    portable::resample_columns(pixels, row_len, kernels)
}

/// The weights of one pass: for each output position, a run of inputs and a fixed-point weight for each.
struct Kernels {
    /// First input, and where the weights lie in `weights`.
    runs: Vec<(usize, Range<usize>)>,
    weights: Vec<i32>,
}

impl Kernels {
    /// The weights of a part of the outputs.
    fn part(num_inputs: usize, num_outputs: usize, outputs: Range<usize>, filter: Filter) -> Self {
        let scale = num_inputs as f64 / num_outputs as f64;
        let filter_scale = scale.max(1.0);
        let support = filter.support() * filter_scale;
        let inverse_filter_scale = 1.0 / filter_scale;

        let mut kernels = Self { runs: Vec::with_capacity(outputs.len()), weights: Vec::new() };
        for output in outputs {
            let center = (output as f64 + 0.5) * scale;
            // `as` truncates towards 0 as C does, and maps what is below 0 to 0.
            let first = (center - support + 0.5) as usize;
            let last = ((center + support + 0.5) as usize).min(num_inputs);
            let run: Vec<f64> = (first..last)
                .map(|input| filter.weight((input as f64 - center + 0.5) * inverse_filter_scale))
                .collect();
            let sum: f64 = run.iter().sum();
            let start = kernels.weights.len();
            kernels.weights.extend(
                run.iter().map(|&weight| to_fixed_point(if sum == 0.0 { weight } else { weight / sum })),
            );
            kernels.runs.push((first, start..kernels.weights.len()));
        }
        kernels
    }

    /// Counts inputs from the first that has a weight; those that have one were these.
    fn drop_unused_inputs(&mut self) -> Range<usize> {
        let unused = self.runs.iter().map(|(first, _)| *first).min().unwrap_or(0);
        let end = self.runs.iter().map(|(first, weights)| first + weights.len()).max().unwrap_or(0);
        self.runs.iter_mut().for_each(|(first, _)| *first -= unused);
        unused..end
    }

    fn iter(&self) -> impl Iterator<Item = (usize, &[i32])> {
        self.runs.iter().map(|(first, range)| (*first, &self.weights[range.clone()]))
    }
}

/// Rounds half away from zero.
fn to_fixed_point(weight: f64) -> i32 {
    let scaled = weight * f64::from(1u32 << PRECISION_BITS);
    (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
}

/// A sum of weighted bytes, begun at one half, back to a byte.
fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

const ONE_HALF: i32 = 1 << (PRECISION_BITS - 1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FILTERS: [Filter; 4] = [Filter::Box, Filter::Bilinear, Filter::Bicubic, Filter::Lanczos];

    #[test]
    fn equal_sizes_copy() {
        let image = RgbImage::new(3, 2, (0..18).collect()).unwrap();
        for filter in FILTERS {
            assert_eq!(resize(&image, 3, 2, filter), image);
        }
    }

    #[test]
    fn halving_with_a_box_is_the_mean() {
        let image = RgbImage::new(2, 2, vec![0, 10, 20, 4, 10, 20, 8, 10, 20, 12, 10, 255]).unwrap();
        // Rows first, rounded, then columns: (0 + 4) / 2 = 2, (8 + 12) / 2 = 10, (2 + 10) / 2 = 6; blue: 20, 138, 79.
        assert_eq!(resize(&image, 1, 1, Filter::Box).pixels(), [6, 10, 79]);
    }

    #[test]
    fn extreme_shapes() {
        let line = RgbImage::new(1, 5000, vec![77; 15_000]).unwrap();
        for filter in FILTERS {
            assert!(resize(&line, 7, 3, filter).pixels().iter().all(|&level| level == 77));
            assert!(resize(&line, 1, 1, filter).pixels().iter().all(|&level| level == 77));
        }
    }

    #[test]
    #[should_panic(expected = "sides must be from 1")]
    fn no_side_may_be_zero() {
        resize(&RgbImage::new(1, 1, vec![0; 3]).unwrap(), 0, 1, Filter::Box);
    }

    proptest! {
        /// Where there are no vectors, this compares the plain form with itself.
        #[test]
        fn vectors_change_nothing(
            bytes in prop::collection::vec(any::<u8>(), 1..4000), width in 1usize..200, outputs in 1usize..200,
        ) {
            let row_len = width * 3;
            let num_rows = bytes.len().div_ceil(row_len);
            let pixels: Vec<u8> = bytes.iter().copied().cycle().take(num_rows * row_len).collect();
            for filter in FILTERS {
                let kernels = Kernels::part(width, outputs, 0..outputs, filter);
                prop_assert_eq!(
                    resample_rows(&pixels, width, &kernels), portable::resample_rows(&pixels, width, &kernels)
                );
                let kernels = Kernels::part(num_rows, outputs, 0..outputs, filter);
                prop_assert_eq!(
                    resample_columns(&pixels, row_len, &kernels), portable::resample_columns(&pixels, row_len, &kernels)
                );
            }
        }

        #[test]
        fn a_flat_image_stays_flat(
            level: u8, width in 1u32..40, height in 1u32..40, to_width in 1u32..60, to_height in 1u32..60,
        ) {
            let image = RgbImage::new(width, height, vec![level; (width * height * 3) as usize]).unwrap();
            for filter in FILTERS {
                let resized = resize(&image, to_width, to_height, filter);
                prop_assert!(resized.pixels().iter().all(|&found| found == level));
            }
        }
    }
}
