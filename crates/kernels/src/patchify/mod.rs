//! Images as the rows of a matrix, one a patch, so that the patch embedding of a vision tower is a product.

mod launch;
mod sys;

pub use launch::patchify;

use crate::element::{Element, lit};
use candle_core::{Result, bail};

/// Channels of a pixel: red, green, blue.
const CHANNELS: usize = 3;
/// Columns are filled up with zeros to a multiple of this, so that every row is 16 bytes aligned in bf16.
const UNIT: usize = 8;

/// Images of one size, and how their pixels are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Patches {
    /// Number of images.
    pub batch: usize,
    /// Patches of an image from top to bottom.
    pub grid_rows: usize,
    /// Patches of an image from left to right.
    pub grid_cols: usize,
    /// Pixels along a side of a patch.
    pub edge: usize,
    /// Mean of each channel, of pixels in [0, 1].
    pub mean: [f64; 3],
    /// Deviation of each channel.
    pub deviation: [f64; 3],
}

impl Patches {
    /// Columns that hold pixels.
    fn used_cols(&self) -> Option<usize> {
        self.edge.checked_mul(self.edge)?.checked_mul(CHANNELS)
    }

    /// Columns of a row, filled up to a multiple of 8: those of the weight that the rows are multiplied by.
    ///
    /// # Errors
    /// If there are more than can be counted.
    pub fn cols(&self) -> Result<usize> {
        match self.used_cols().and_then(|cols| cols.checked_next_multiple_of(UNIT)) {
            Some(cols) => Ok(cols),
            None => bail!("patchify: a patch of edge {} is too large", self.edge),
        }
    }

    /// Rows of the result: patches of all images.
    ///
    /// # Errors
    /// If there are more than can be counted.
    pub fn num_patches(&self) -> Result<usize> {
        let patches =
            self.batch.checked_mul(self.grid_rows).and_then(|rows| rows.checked_mul(self.grid_cols));
        match patches {
            Some(patches) => Ok(patches),
            None => bail!("patchify: {self:?} has more patches than can be counted"),
        }
    }

    /// `(pixels, elements of the result)`.
    fn lens(&self) -> Result<(usize, usize)> {
        let patches = self.num_patches()?;
        let pixels = self.used_cols().and_then(|cols| cols.checked_mul(patches));
        let elements = self.cols()?.checked_mul(patches);
        match (pixels, elements) {
            (Some(pixels), Some(elements)) if i64::try_from(elements).is_ok() => Ok((pixels, elements)),
            _ => bail!("patchify: {self:?} has more pixels than can be counted"),
        }
    }

    /// What a pixel is multiplied by, and what is added then.
    fn scale_and_shift(&self) -> Result<([f64; 3], [f64; 3])> {
        let is_number = |x: &f64| x.is_finite();
        if !self.mean.iter().all(is_number) || !self.deviation.iter().all(|x| x.is_finite() && *x > 0.0) {
            bail!("patchify: mean {:?} and deviation {:?} normalise nothing", self.mean, self.deviation);
        }
        let scale = self.deviation.map(|deviation| (255.0 * deviation).recip());
        let shift = std::array::from_fn(|channel| -self.mean[channel] / self.deviation[channel]);
        Ok((scale, shift))
    }
}

/// The same on the CPU in f32 or f64.
///
/// # Errors
/// If a length does not fit, or the deviation is not positive.
pub fn reference<T: Element>(sizes: &Patches, pixels: &[u8], rows: &mut [T]) -> Result<()> {
    let (num_pixels, num_elements) = sizes.lens()?;
    let (scale, shift) = sizes.scale_and_shift()?;
    if pixels.len() != num_pixels || rows.len() != num_elements {
        bail!(
            "patchify: {} pixel values to {} elements, not {num_pixels} to {num_elements}",
            pixels.len(),
            rows.len()
        );
    }
    let Patches { grid_rows, grid_cols, edge, .. } = *sizes;
    let cols = sizes.cols()?;
    rows.fill(T::zero());
    for (patch, row) in rows.chunks_exact_mut(cols.max(1)).enumerate() {
        let (image, within) = (patch / (grid_rows * grid_cols), patch % (grid_rows * grid_cols));
        let (top, left) = ((image * grid_rows + within / grid_cols) * edge, within % grid_cols * edge);
        for y in 0..edge {
            for x in 0..edge {
                let pixel = ((top + y) * grid_cols * edge + left + x) * CHANNELS;
                for channel in 0..CHANNELS {
                    let value = f64::from(pixels[pixel + channel]) * scale[channel] + shift[channel];
                    row[(channel * edge + y) * edge + x] = lit(value);
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// A product of the rows with a flattened weight is the convolution that embeds patches.
    #[test]
    fn a_product_with_the_rows_is_a_convolution() {
        let sizes = Patches {
            batch: 2,
            grid_rows: 2,
            grid_cols: 3,
            edge: 3,
            mean: [0.5, 0.4, 0.3],
            deviation: [0.5, 0.25, 0.2],
        };
        let (height, width, out) = (6, 9, 4);
        let pixels: Vec<u8> = (0..2 * height * width * 3).map(|at| (at * 37 % 256) as u8).collect();
        let cols = sizes.cols().unwrap();
        assert_eq!((cols, sizes.num_patches().unwrap()), (32, 12));
        let mut rows = vec![f64::NAN; 12 * cols];
        reference(&sizes, &pixels, &mut rows).unwrap();

        let device = Device::Cpu;
        let weight: Vec<f64> = (0..out * 27).map(|at| f64::from(at as i32 % 11) - 5.0).collect();
        let weight = Tensor::from_vec(weight, (out, 3, 3, 3), &device).unwrap();
        let normalised: Vec<f64> = pixels
            .iter()
            .enumerate()
            .map(|(at, pixel)| (f64::from(*pixel) / 255.0 - sizes.mean[at % 3]) / sizes.deviation[at % 3])
            .collect();
        let images = Tensor::from_vec(normalised, (2, height, width, 3), &device).unwrap();
        let images = images.permute((0, 3, 1, 2)).unwrap().contiguous().unwrap();
        let expected = images.conv2d(&weight, 0, 3, 1, 1).unwrap();
        let expected = expected.flatten_from(2).unwrap().transpose(1, 2).unwrap().reshape((12, out)).unwrap();
        let padded = weight.reshape((out, 27)).unwrap().pad_with_zeros(1, 0, cols - 27).unwrap();
        let rows = Tensor::from_vec(rows, (12, cols), &device).unwrap();
        let found = rows.matmul(&padded.t().unwrap()).unwrap();
        crate::gradcheck::assert_same(&found, &expected, 1e-12);
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let sizes =
            Patches { batch: 1, grid_rows: 1, grid_cols: 1, edge: 2, mean: [0.0; 3], deviation: [1.0; 3] };
        assert!(reference(&sizes, &[0; 11], &mut [0f32; 16]).is_err());
        assert!(reference(&sizes, &[0; 12], &mut [0f32; 12]).is_err());
        assert!(reference(&Patches { deviation: [0.0; 3], ..sizes }, &[0; 12], &mut [0f32; 16]).is_err());
        assert!(Patches { edge: usize::MAX, ..sizes }.cols().is_err());
        assert!(Patches { batch: usize::MAX, grid_rows: 2, ..sizes }.num_patches().is_err());
    }
}
