//! How an image becomes what a vision tower reads.

use crate::clip_transform::{CLIP_MEAN, CLIP_STD, middle_square};
use crate::pixel_values::{SIGLIP_MEAN, SIGLIP_STD};
use crate::{Filter, RgbImage, resize};

/// How an image that is not square becomes one, bicubically.
///
/// Source: `resize_mode` of open_clip's `PreprocessCfg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResizeMode {
    /// The whole image is squeezed into the square.
    Squash,
    /// The shorter side becomes that of the square, the middle of the longer one is cut out.
    Shortest,
}

/// Size, mean and standard deviation of what a tower reads. Towers that agree in all of them can share an image's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocessing {
    /// Edge of the square, pixels.
    pub image_size: u32,
    /// Mean of red, green and blue, of 1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, of 1.
    pub std: [f32; 3],
    /// How it becomes a square.
    pub resize_mode: ResizeMode,
}

impl Preprocessing {
    /// OpenAI's CLIP and most of open_clip's: see [`clip_pixel_values`](crate::clip_pixel_values).
    #[must_use]
    pub const fn clip(image_size: u32) -> Self {
        Self { image_size, mean: CLIP_MEAN, std: CLIP_STD, resize_mode: ResizeMode::Shortest }
    }

    /// SigLIP's: see [`pixel_values`](crate::pixel_values()).
    #[must_use]
    pub const fn siglip(image_size: u32) -> Self {
        Self { image_size, mean: SIGLIP_MEAN, std: SIGLIP_STD, resize_mode: ResizeMode::Squash }
    }

    /// The image resized, scaled to 0..1, then the mean taken away and divided by the standard deviation.
    ///
    /// Returns shape `(3, image_size, image_size)` in row-major order (channel, row, column).
    ///
    /// # Panics
    /// If `image_size` is 0 or over [`crate::MAX_SIDE`].
    #[must_use]
    pub fn pixel_values(&self, image: &RgbImage) -> Vec<f32> {
        let square = match self.resize_mode {
            ResizeMode::Squash => resize(image, self.image_size, self.image_size, Filter::Bicubic),
            ResizeMode::Shortest => middle_square(image, self.image_size),
        };
        let value =
            |channel: usize, level: usize| (level as f32 / 255.0 - self.mean[channel]) / self.std[channel];
        let value_of: [[f32; 256]; 3] =
            std::array::from_fn(|channel| std::array::from_fn(|level| value(channel, level)));
        planes(&square, &value_of)
    }
}

/// The three planes of `image`, one after another, each level replaced by what its channel has for it.
fn planes(image: &RgbImage, value_of: &[[f32; 256]; 3]) -> Vec<f32> {
    let pixels = image.pixels().as_chunks::<3>().0;
    let mut values = vec![0.0; 3 * pixels.len()];
    let (red, rest) = values.split_at_mut(pixels.len());
    let (green, blue) = rest.split_at_mut(pixels.len());
    for (((pixel, red), green), blue) in pixels.iter().zip(red).zip(green).zip(blue) {
        let value = |channel: usize| value_of[channel][usize::from(pixel[channel])];
        (*red, *green, *blue) = (value(0), value(1), value(2));
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_channel_has_its_own_mean_and_deviation() {
        let image = RgbImage::new(3, 1, vec![0, 51, 255, 51, 51, 51, 255, 0, 0]).unwrap();
        let preprocessing =
            Preprocessing { mean: [0.0, 0.2, 1.0], std: [1.0, 0.5, 0.25], ..Preprocessing::clip(1) };
        // The middle pixel alone.
        let expected = [0.2, 0.0, -3.2];
        let values = preprocessing.pixel_values(&image);
        assert!(
            values.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-6),
            "{values:?}"
        );
        let whole = Preprocessing { resize_mode: ResizeMode::Squash, ..preprocessing }.pixel_values(&image);
        assert_ne!(whole, values);
    }
}
