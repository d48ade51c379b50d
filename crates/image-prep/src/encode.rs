//! Images to bytes.

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder};

use crate::RgbImage;

/// A baseline JPEG file at `quality` from 1 (worst) to 100; values outside are moved inside.
///
/// The same image gives the same bytes everywhere, but not those libjpeg would write.
pub fn encode_jpeg(image: &RgbImage, quality: u8) -> Vec<u8> {
    let mut file = Vec::new();
    write(image, JpegEncoder::new_with_quality(&mut file, quality.clamp(1, 100)));
    file
}

/// A PNG file.
pub fn encode_png(image: &RgbImage) -> Vec<u8> {
    let mut file = Vec::new();
    write(image, PngEncoder::new(&mut file));
    file
}

/// A lossless WebP file.
///
/// # Panics
/// If a side is over 16,384 pixels, the most that WebP holds.
pub fn encode_webp(image: &RgbImage) -> Vec<u8> {
    assert!(image.width().max(image.height()) <= 16_384, "{image:?} is too large for WebP");
    let mut file = Vec::new();
    write(image, WebPEncoder::new_lossless(&mut file));
    file
}

fn write(image: &RgbImage, encoder: impl ImageEncoder) {
    encoder
        .write_image(image.pixels(), image.width(), image.height(), ExtendedColorType::Rgb8)
        .expect("an image with valid sides is written to memory");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, ImageFormat, decode, probe};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lossless_files_decode_to_the_image(width in 1u32..9, height in 1u32..9, seed: u8) {
            let pixels = (0..width * height * 3).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let image = RgbImage::new(width, height, pixels).unwrap();
            for (file, format) in [(encode_png(&image), ImageFormat::Png), (encode_webp(&image), ImageFormat::WebP)] {
                prop_assert_eq!(probe(&file).unwrap(), (format, width, height));
                prop_assert_eq!(decode(&file, &DecodeLimits::default()).unwrap(), image.clone());
            }
        }
    }

    #[test]
    fn jpeg_is_close() {
        let pixels = (0..64 * 48).flat_map(|i| [(i % 64 * 4) as u8, (i / 64 * 5) as u8, 128]).collect();
        let image = RgbImage::new(64, 48, pixels).unwrap();
        let decoded = decode(&encode_jpeg(&image, 95), &DecodeLimits::default()).unwrap();
        let largest = image.pixels().iter().zip(decoded.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(largest < Some(12), "{largest:?}");
        assert!(encode_jpeg(&image, 20).len() < encode_jpeg(&image, 95).len());
    }
}
