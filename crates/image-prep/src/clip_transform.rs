//! What the vision towers of CLIP read.

use crate::resample::{Scaled, resize_part};
use crate::{Filter, Preprocessing, RgbImage};

/// Mean of red, green and blue, of 1. Source: `_transform` of openai/CLIP; open_clip's `OPENAI_DATASET_MEAN`.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// Standard deviation of red, green and blue, of 1. Source: as [`CLIP_MEAN`].
#[expect(clippy::excessive_precision, reason = "digits as published")]
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Pixel values of `image` for CLIP: the shorter side resized to `image_size` (Pillow bicubic), the middle of the longer
/// one cut out, scaled to 0..1, then [`CLIP_MEAN`] taken away and divided by [`CLIP_STD`].
///
/// Returns shape `(3, image_size, image_size)` in row-major order (channel, row, column).
///
/// Rounding is torchvision's, as openai/CLIP and open_clip use it: the longer side is `image_size * long / short` rounded
/// down, and half of what is cut away is rounded to the nearest whole pixel, halves to the even one. Hugging Face's
/// `CLIPImageProcessor` rounds that down, so with an odd number of pixels to cut away every second number gives an image
/// one pixel further left or up there.
///
/// Only what is kept is computed, so long and thin images take no more memory than others.
///
/// # Panics
/// If `image_size` is 0 or over [`crate::MAX_SIDE`].
///
/// Source: `_transform` in `clip/clip.py` of openai/CLIP; `image_transform` of open_clip with `resize_mode="shortest"`;
/// `_compute_resized_output_size` and `center_crop` in `torchvision/transforms/functional.py`.
pub fn clip_pixel_values(image: &RgbImage, image_size: u32) -> Vec<f32> {
    Preprocessing::clip(image_size).pixel_values(image)
}

/// The shorter side resized to `size`, and the middle of the longer one.
pub(crate) fn middle_square(image: &RgbImage, size: u32) -> RgbImage {
    let shorter = image.width().min(image.height());
    let [columns, rows] = [image.width(), image.height()].map(|side| middle(side, shorter, size));
    resize_part(image, &columns, &rows, Filter::Bicubic)
}

/// A side resized as the shorter one is to `size`, and the `size` pixels in its middle.
fn middle(side: u32, shorter: u32, size: u32) -> Scaled {
    let len = u64::from(size) * u64::from(side) / u64::from(shorter);
    let len = u32::try_from(len).expect("both factors are at most MAX_SIDE, a 16-bit number");
    let excess = len - size;
    let half = excess / 2;
    // One more where the half is an odd number and a half.
    let start = half + (excess & half & 1);
    Scaled { len, part: start..start + size }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python: `int(size * long / short)` and `int(round((len - size) / 2.0))`.
    #[test]
    fn halves_go_to_the_even_pixel() {
        let middle = |side, shorter, size| {
            let Scaled { len, part } = super::middle(side, shorter, size);
            assert_eq!(part.len() as u32, size);
            (len, part.start)
        };
        assert_eq!(middle(10, 10, 10), (10, 0));
        assert_eq!(middle(11, 10, 10), (11, 0));
        assert_eq!(middle(12, 10, 10), (12, 1));
        assert_eq!(middle(13, 10, 10), (13, 2));
        assert_eq!(middle(15, 10, 10), (15, 2));
        assert_eq!(middle(17, 10, 10), (17, 4));
        // 224 * 640 / 427 = 335.7; 111 / 2 = 55.5.
        assert_eq!(middle(640, 427, 224), (335, 56));
        assert_eq!(middle(65_535, 1, 65_535), (4_294_836_225, 2_147_385_345));
    }

    #[test]
    fn a_line_takes_no_more_memory_than_a_square() {
        let pixels: Vec<u8> = (0..65_535u32).flat_map(|column| [((column + 100) >> 8) as u8; 3]).collect();
        let line = RgbImage::new(65_535, 1, pixels).unwrap();
        let upright = RgbImage::new(1, 65_535, line.pixels().to_vec()).unwrap();
        // The middle of the line, as long as one of its pixels: columns 32,668 to 32,923 have this level.
        let expected = (f32::from(128u8) / 255.0 - CLIP_MEAN[0]) / CLIP_STD[0];
        for image in [line, upright] {
            assert!(clip_pixel_values(&image, 224)[..224 * 224].iter().all(|&red| red == expected));
        }
    }
}
