//! What the vision tower of SigLIP reads.

use crate::{Preprocessing, RgbImage};

/// Mean of red, green and blue, of 1. Source: `preprocessor_config.json` of google/siglip-so400m-patch14-384.
pub const SIGLIP_MEAN: [f32; 3] = [0.5; 3];
/// Standard deviation of red, green and blue, of 1. Source: as [`SIGLIP_MEAN`].
pub const SIGLIP_STD: [f32; 3] = [0.5; 3];

/// Pixel values of `image` for SigLIP: resized to `image_size` squared without regard to its aspect ratio
/// (Pillow bicubic), scaled to 0..1, then [`SIGLIP_MEAN`] taken away and divided by [`SIGLIP_STD`].
///
/// Returns shape `(3, image_size, image_size)` in row-major order (channel, row, column), values from −1 to 1.
///
/// # Panics
/// If `image_size` is 0 or over [`crate::MAX_SIDE`].
///
/// Source: the `resize-naive` transform of Open-Qwen2VL (`prismatic/models/backbones/vision/base_vision.py`).
pub fn pixel_values(image: &RgbImage, image_size: u32) -> Vec<f32> {
    Preprocessing::siglip(image_size).pixel_values(image)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn planes_are_separate_and_in_range() {
        let image = RgbImage::new(2, 1, vec![255, 0, 51, 255, 0, 204]).unwrap();
        let values = pixel_values(&image, 2);
        assert_eq!(values.len(), 12);
        assert_eq!(values[..4], [1.0; 4]);
        assert_eq!(values[4..8], [-1.0; 4]);
        assert_eq!(values[8], (51.0f32 / 255.0 - 0.5) / 0.5);
        assert_eq!(values[9], values[11]);
    }
}
