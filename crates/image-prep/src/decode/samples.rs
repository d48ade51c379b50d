//! Decoded samples in the file's own colours, and the ways from there to an image.

use super::{MattedImage, Size};
use crate::raster::gray_to_rgb;
use crate::{DecodeError, ImageFormat, Layout, Raster, RgbImage};

/// Which samples make a pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    Gray,
    GrayAlpha,
    Rgb,
    Rgba,
    /// As JPEG files store it: 255 is no ink.
    InvertedCmyk,
}

/// All pixels of a file, 8 bits per sample, row-major.
pub(super) struct Samples {
    pub(super) size: Size,
    pub(super) channels: Channels,
    pub(super) samples: Vec<u8>,
}

impl Samples {
    /// As Pillow's `convert("RGB")`: alpha is dropped.
    pub(super) fn into_rgb_image(self, format: ImageFormat) -> Result<RgbImage, DecodeError> {
        let samples = self.samples;
        let pixels = match self.channels {
            Channels::Gray => gray_to_rgb(&samples),
            Channels::GrayAlpha => map_pixels(&samples, |[gray, _]| [gray; 3]),
            Channels::Rgb => samples,
            Channels::Rgba => map_pixels(&samples, |[red, green, blue, _]| [red, green, blue]),
            Channels::InvertedCmyk => map_pixels(&samples, pillow_rgb_of_cmyk),
        };
        RgbImage::new(self.size.width, self.size.height, pixels)
            .map_err(|source| DecodeError::Corrupt { format, source: source.into() })
    }

    /// As img2dataset: alpha is blended with white.
    pub(super) fn into_matted(self, format: ImageFormat) -> Result<MattedImage, DecodeError> {
        let samples = self.samples;
        let (layout, pixels, had_alpha) = match self.channels {
            Channels::Gray => (Layout::Gray, samples, false),
            Channels::Rgb => (Layout::Rgb, samples, false),
            Channels::InvertedCmyk => (Layout::Rgb, map_pixels(&samples, opencv_rgb_of_cmyk), false),
            Channels::GrayAlpha => {
                let pixels = map_pixels(&samples, |[gray, alpha]| [on_white(gray, alpha); 3]);
                (Layout::Rgb, pixels, true)
            }
            Channels::Rgba => {
                let pixels = map_pixels(&samples, |[red, green, blue, alpha]| {
                    [red, green, blue].map(|value| on_white(value, alpha))
                });
                (Layout::Rgb, pixels, true)
            }
        };
        let raster = Raster::new(self.size.width, self.size.height, layout, pixels)
            .map_err(|source| DecodeError::Corrupt { format, source: source.into() })?;
        Ok(MattedImage { raster, had_alpha })
    }
}

/// Three bytes for each pixel of `N` samples.
fn map_pixels<const N: usize>(samples: &[u8], to_rgb: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    let (pixels, _) = samples.as_chunks::<N>();
    let mut rgb = vec![0; pixels.len() * 3];
    for (target, &pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().zip(pixels) {
        *target = to_rgb(pixel);
    }
    rgb
}

/// `alpha / 255 * value + 255 - alpha`, rounded to even. Source: img2dataset `resizer.py`, where it is computed in
/// 64-bit floating point in this order.
fn on_white(value: u8, alpha: u8) -> u8 {
    match alpha {
        255 => value,
        0 => 255,
        _ => {
            let alpha = f64::from(alpha);
            (alpha / 255.0 * f64::from(value) + 255.0 - alpha).round_ties_even() as u8
        }
    }
}

/// Source: `cmyk2rgb` in Pillow's `src/libImaging/Convert.c`, on values inverted as its JPEG reader does.
fn pillow_rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    [cyan, magenta, yellow].map(|ink| {
        // `MULDIV255`: the product divided by 255, rounded.
        let product = u32::from(255 - ink) * u32::from(black) + 128;
        black - (((product >> 8) + product) >> 8) as u8
    })
}

/// Source: `icvCvt_CMYK2BGR_8u_C4C3R` in OpenCV's `modules/imgcodecs/src/utils.cpp`.
fn opencv_rgb_of_cmyk([cyan, magenta, yellow, black]: [u8; 4]) -> [u8; 3] {
    let black = i32::from(black);
    [cyan, magenta, yellow].map(|ink| (black - (((255 - i32::from(ink)) * black) >> 8)) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transparency_shows_white() {
        assert_eq!((on_white(10, 255), on_white(10, 0)), (10, 255));
        // 128 / 255 * 0 + 255 - 128 = 127; 51 / 255 * 100 + 204 = 224.
        assert_eq!((on_white(0, 128), on_white(100, 51)), (127, 224));
    }

    #[test]
    fn full_and_no_ink() {
        for convert in [pillow_rgb_of_cmyk, opencv_rgb_of_cmyk] {
            assert_eq!(convert([255; 4]), [255; 3]);
            assert_eq!(convert([255, 255, 255, 0]), [0; 3]);
        }
        assert_eq!(pillow_rgb_of_cmyk([0, 255, 128, 255]), [0, 255, 128]);
        assert_eq!(opencv_rgb_of_cmyk([0, 255, 128, 255]), [1, 255, 129]);
    }

    #[test]
    fn no_ink_value_underflows() {
        for ink in 0..=255 {
            for black in 0..=255 {
                pillow_rgb_of_cmyk([ink, ink, ink, black]);
                opencv_rgb_of_cmyk([ink, ink, ink, black]);
            }
        }
    }
}
