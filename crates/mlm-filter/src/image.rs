//! Images as the vision tower of an MLM-Filter reads them.

use crate::config::ImageShape;
use oqvl_image_prep::{DecodeLimits, RgbImage, pixel_values};

/// What is put around an image: half of white, which the tower reads as nearly 0.
///
/// Source: `expand2square` of LLaVA, with `int(255 * mean)` of SigLIP's image processor.
const PADDING: u8 = 127;

/// Pixel values of `image` for a tower that reads squares of `image_size` pixels; `None` if a square around the image
/// would have more pixels than an image may have.
pub(crate) fn tower_pixels(image: &RgbImage, shape: ImageShape, image_size: u32) -> Option<Vec<f32>> {
    match shape {
        ImageShape::Squash => Some(pixel_values(image, image_size)),
        ImageShape::Pad if image.width() == image.height() => Some(pixel_values(image, image_size)),
        ImageShape::Pad => Some(pixel_values(&square(image)?, image_size)),
    }
}

/// The image in the middle of a square; of an odd number of rows or columns to add, the last half has one more.
fn square(image: &RgbImage) -> Option<RgbImage> {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let side = width.max(height);
    if (side as u64).pow(2) > DecodeLimits::default().max_pixels {
        return None;
    }
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    let mut pixels = vec![PADDING; 3 * side * side];
    for (row, line) in image.pixels().chunks_exact(3 * width).enumerate() {
        let start = 3 * ((top + row) * side + left);
        pixels[start..start + line.len()].copy_from_slice(line);
    }
    RgbImage::new(side as u32, side as u32, pixels).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(width: u32, height: u32) -> RgbImage {
        RgbImage::new(width, height, vec![255; (3 * width * height) as usize]).unwrap()
    }

    /// LLaVA's `expand2square(image, (127, 127, 127))` pastes at `(side - shorter) // 2`.
    #[test]
    fn padding_is_around_the_middle() {
        let flat = square(&line(4, 1)).unwrap();
        let rows: Vec<u8> = (0..4).map(|row| flat.pixel(0, row)[0]).collect();
        assert_eq!((flat.width(), flat.height(), rows), (4, 4, vec![127, 255, 127, 127]));
        let upright = square(&line(1, 3)).unwrap();
        let columns: Vec<u8> = (0..3).map(|column| upright.pixel(column, 1)[2]).collect();
        assert_eq!(columns, [127, 255, 127]);
    }

    #[test]
    fn shapes_differ_but_for_squares_and_lines_are_refused() {
        let values = |image: &RgbImage, shape| tower_pixels(image, shape, 2);
        assert_eq!(values(&line(4, 1), ImageShape::Squash), Some(vec![1.0; 12]));
        assert_ne!(values(&line(4, 1), ImageShape::Pad), Some(vec![1.0; 12]));
        assert_eq!(values(&line(5, 5), ImageShape::Pad), Some(vec![1.0; 12]));
        assert_eq!(values(&line(20_000, 1), ImageShape::Pad), None);
    }
}
