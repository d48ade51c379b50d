//! The shrinking that the reference's packer does before an image is stored.

use std::borrow::Cow;

use crate::{Filter, RgbImage, resize};

/// The edge that images are shrunk to; those whose shorter edge is not over it stay.
const SHRUNK_EDGE: u32 = 384;

/// Width and height after the reference's shrinking.
///
/// Meant to bring the shorter edge to 384 and keep the shape, the formula divides and multiplies by the same edge: the
/// result is a square of 384, or 383 on the longer side where rounding falls short.
///
/// Source: `preprocess_caption`, Open-Qwen2VL `mm_sequence_packing/sequence_packing_image_to_pil.py`.
#[must_use]
pub fn reference_shrunk_size(width: u32, height: u32) -> (u32, u32) {
    if width.min(height) <= SHRUNK_EDGE {
        return (width, height);
    }
    let edge = f64::from(SHRUNK_EDGE);
    // In this order and in doubles: it decides between 384 and 383.
    let other = |longer: u32| (edge / f64::from(longer) * f64::from(longer)) as u32;
    if width > height { (other(width), SHRUNK_EDGE) } else { (SHRUNK_EDGE, other(height)) }
}

/// The image as the reference's packer stores it: [`reference_shrunk_size`], Lanczos.
#[must_use]
pub fn reference_shrink(image: &RgbImage) -> Cow<'_, RgbImage> {
    let (width, height) = reference_shrunk_size(image.width(), image.height());
    if (width, height) == (image.width(), image.height()) {
        Cow::Borrowed(image)
    } else {
        Cow::Owned(resize(image, width, height, Filter::Lanczos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_almost_always() {
        for (size, expected) in [
            ((384, 9000), (384, 9000)),
            ((385, 384), (385, 384)),
            ((512, 400), (384, 384)),
            ((535, 400), (383, 384)),
            ((400, 559), (384, 383)),
            ((640, 640), (384, 384)),
            ((683, 512), (384, 384)),
            ((1024, 768), (384, 384)),
        ] {
            assert_eq!(reference_shrunk_size(size.0, size.1), expected, "{size:?}");
        }
        let short = (385..=4096).filter(|&edge| reference_shrunk_size(4097, edge).1 != 384).count();
        assert_eq!(short, 0, "the shorter edge is always met");
        let short: Vec<u32> =
            (386..=4096).filter(|&edge| reference_shrunk_size(edge, 385).0 == 383).collect();
        assert_eq!(short.len(), 155);
        assert_eq!(short[..10], [535, 559, 588, 591, 607, 613, 614, 618, 625, 637]);
    }

    #[test]
    fn only_large_images_are_touched() {
        let small = RgbImage::new(384, 500, vec![9; 384 * 500 * 3]).unwrap();
        assert!(matches!(reference_shrink(&small), Cow::Borrowed(_)));
        let large = RgbImage::new(535, 400, vec![9; 535 * 400 * 3]).unwrap();
        let shrunk = reference_shrink(&large);
        assert_eq!((shrunk.width(), shrunk.height(), shrunk.pixel(100, 100)), (383, 384, [9, 9, 9]));
    }
}
