//! Training images: what cannot be decoded becomes a blank one, by name and number.

use oqvl_image_prep::{DecodeLimits, decode, pixel_values, reference_shrink};
use oqvl_shard_io::ImageShrink;
use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

/// Warnings of a run; later images are counted without one.
const MAX_WARNINGS: usize = 10;

/// Turns files into pixel values. A file that is no image, or whose pixels are broken behind a good header, must not
/// end a run of days: it becomes zeros, mid-gray to the tower, and its conversation or pack stays.
///
/// Source: Open-Qwen2VL `FinetuneLargeDataset`, which does so in silence.
#[derive(Debug)]
pub struct ImageLoader {
    image_size: u32,
    shrink: ImageShrink,
    undecodable: Mutex<BTreeSet<String>>,
}

impl ImageLoader {
    /// Images come out at `image_size` squared.
    #[must_use]
    pub fn new(image_size: u32) -> Self {
        Self { image_size, shrink: ImageShrink::None, undecodable: Mutex::default() }
    }

    /// Images are shrunk so before they are brought to their size: a double resampling, for parity with the reference.
    #[must_use]
    pub fn with_shrink(self, shrink: ImageShrink) -> Self {
        Self { shrink, ..self }
    }

    /// Pixel values of a file, shape `(3, image_size, image_size)`; zeros if it cannot be decoded. `name` is for the
    /// user.
    pub fn load(&self, name: &str, bytes: &[u8]) -> Vec<f32> {
        match decode(bytes, &DecodeLimits::default()) {
            Ok(image) => match self.shrink {
                ImageShrink::None => pixel_values(&image, self.image_size),
                ImageShrink::Reference => pixel_values(&reference_shrink(&image), self.image_size),
            },
            Err(error) => {
                let mut undecodable = self.undecodable.lock().unwrap_or_else(PoisonError::into_inner);
                if undecodable.insert(name.to_owned()) && undecodable.len() <= MAX_WARNINGS {
                    tracing::warn!("{name}: {error}; a blank image takes its place");
                }
                vec![0.0; 3 * (self.image_size as usize).pow(2)]
            }
        }
    }

    /// Distinct names so far that were replaced.
    #[must_use]
    pub fn num_undecodable(&self) -> usize {
        self.undecodable.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_image_prep::{Filter, RgbImage, encode_png, resize};

    #[test]
    fn shrinking_resamples_twice() {
        let pixels = (0..400 * 500 * 3).map(|i| (i % 251) as u8).collect();
        let image = RgbImage::new(400, 500, pixels).unwrap();
        let loader = ImageLoader::new(40).with_shrink(ImageShrink::Reference);
        let expected = pixel_values(&resize(&image, 384, 384, Filter::Lanczos), 40);
        assert_eq!(loader.load("large", &encode_png(&image)), expected);
        assert_ne!(expected, pixel_values(&image, 40));
    }

    #[test]
    fn broken_pixels_become_zeros_and_are_counted_once() {
        let png = encode_png(&RgbImage::new(8, 8, vec![200; 8 * 8 * 3]).unwrap());
        let loader = ImageLoader::new(4);
        assert!(loader.load("whole", &png).iter().all(|&value| value > 0.5));
        assert_eq!(loader.num_undecodable(), 0);
        for _ in 0..2 {
            assert_eq!(loader.load("cut", &png[..png.len() - 20]), vec![0.0; 3 * 4 * 4]);
        }
        loader.load("text", b"no image");
        assert_eq!(loader.num_undecodable(), 2);
    }
}
