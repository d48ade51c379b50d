//! Images to bytes.

mod jpeg_file;
mod png_file;
mod webp_file;

use crate::shrink_jpeg::Ycbcr420;
use crate::{EncodeError, ImageFormat, RasterRef};

/// A format to write, with its one setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Baseline JPEG with 4:2:0 colour, the defaults of Pillow and OpenCV. Gray rasters give one-component files.
    Jpeg {
        /// From 1 (worst) to 100.
        quality: u8,
    },
    /// PNG.
    Png {
        /// zlib's compression level, from 0 (stored) to 9 (smallest). Changes the size of the file only.
        level: u8,
    },
    /// Lossy WebP.
    WebpLossy {
        /// From 0 (worst) to 100.
        quality: u8,
    },
    /// Lossless WebP.
    WebpLossless,
}

impl Encoding {
    /// The level that Pillow and zlib take when none is given.
    pub const DEFAULT_PNG_LEVEL: u8 = 6;

    /// The format of the file.
    pub fn format(self) -> ImageFormat {
        match self {
            Self::Jpeg { .. } => ImageFormat::Jpeg,
            Self::Png { .. } => ImageFormat::Png,
            Self::WebpLossy { .. } | Self::WebpLossless => ImageFormat::WebP,
        }
    }

    /// The longest side that can be written, in pixels.
    pub fn max_side(self) -> u32 {
        match self.format() {
            // libjpeg's own limit, below the 65,535 of the format.
            ImageFormat::Jpeg => 65_500,
            ImageFormat::WebP => 16_383,
            _ => crate::MAX_SIDE,
        }
    }

    /// Whether the setting is one the format has.
    ///
    /// # Errors
    /// If it is out of range.
    pub fn validate(self) -> Result<(), EncodeError> {
        let (setting, range, found) = match self {
            Self::Jpeg { quality } => ("JPEG quality", 1..=100, quality),
            Self::Png { level } => ("PNG compression level", 0..=9, level),
            Self::WebpLossy { quality } => ("WebP quality", 0..=100, quality),
            Self::WebpLossless => return Ok(()),
        };
        if range.contains(&found) {
            return Ok(());
        }
        Err(EncodeError::Setting { setting, min: *range.start(), max: *range.end(), found })
    }
}

/// `image` as a file. The same image gives the same bytes, whatever the machine.
///
/// JPEG files are those that Pillow and OpenCV write, byte for byte where it was compared.
///
/// # Errors
/// If a side is over [`Encoding::max_side`], or the setting out of range.
pub fn encode<'a>(image: impl Into<RasterRef<'a>>, encoding: Encoding) -> Result<Vec<u8>, EncodeError> {
    let image = image.into();
    encoding.validate()?;
    let RasterRef { width, height, .. } = image;
    if width.max(height) > encoding.max_side() {
        let max_side = encoding.max_side();
        return Err(EncodeError::TooLarge { format: encoding.format(), width, height, max_side });
    }
    Ok(match encoding {
        Encoding::Jpeg { quality } => jpeg_file::encode(image, quality),
        Encoding::Png { level } => png_file::encode(image, level),
        Encoding::WebpLossy { quality } => webp_file::encode_lossy(image, quality),
        Encoding::WebpLossless => webp_file::encode_lossless(image),
    })
}

/// A JPEG file at `quality` from 1 (worst) to 100; values outside are moved inside. Shorthand for [`encode`].
///
/// # Panics
/// If a side is over 65,500 pixels, the most that libjpeg writes.
pub fn encode_jpeg<'a>(image: impl Into<RasterRef<'a>>, quality: u8) -> Vec<u8> {
    encode_or_panic(image.into(), Encoding::Jpeg { quality: quality.clamp(1, 100) })
}

/// A PNG file at the usual compression level. Shorthand for [`encode`].
pub fn encode_png<'a>(image: impl Into<RasterRef<'a>>) -> Vec<u8> {
    encode_or_panic(image.into(), Encoding::Png { level: Encoding::DEFAULT_PNG_LEVEL })
}

/// A lossless WebP file. Shorthand for [`encode`].
///
/// # Panics
/// If a side is over 16,383 pixels, the most that WebP holds.
pub fn encode_webp<'a>(image: impl Into<RasterRef<'a>>) -> Vec<u8> {
    encode_or_panic(image.into(), Encoding::WebpLossless)
}

/// A JPEG file of three planes; sides up to 65,500, `quality` from 1 to 100.
pub(crate) fn jpeg_planes(image: &Ycbcr420, quality: u8) -> Vec<u8> {
    jpeg_file::encode_planes(image, quality)
}

fn encode_or_panic(image: RasterRef<'_>, encoding: Encoding) -> Vec<u8> {
    encode(image, encoding).unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, Layout, Raster, RgbImage, decode, decode_on_white, probe};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lossless_files_decode_to_the_image(
            width in 1u32..9, height in 1u32..9, seed: u8, level in 0u8..=9, is_gray: bool,
        ) {
            let layout = if is_gray { Layout::Gray } else { Layout::Rgb };
            let num_bytes = width * height * layout.num_channels() as u32;
            let pixels = (0..num_bytes).map(|i| (i as u8).wrapping_mul(37).wrapping_add(seed)).collect();
            let image = Raster::new(width, height, layout, pixels).unwrap();
            for encoding in [Encoding::Png { level }, Encoding::WebpLossless] {
                let file = encode(&image, encoding).unwrap();
                prop_assert_eq!(probe(&file).unwrap(), (encoding.format(), width, height));
                prop_assert_eq!(decode(&file, &DecodeLimits::default()).unwrap(), image.clone().into_rgb());
            }
            let png = encode(&image, Encoding::Png { level }).unwrap();
            let read_back = decode_on_white(&png, &DecodeLimits::default()).unwrap();
            prop_assert_eq!((read_back.raster, read_back.had_alpha), (image, false));
        }
    }

    fn gradient(width: u32, height: u32) -> RgbImage {
        let pixels = (0..width * height)
            .flat_map(|i| [(i % width * 255 / width) as u8, (i / width * 255 / height) as u8, 128])
            .collect();
        RgbImage::new(width, height, pixels).unwrap()
    }

    #[test]
    fn lossy_files_are_close_and_smaller_at_lower_quality() {
        let image = gradient(64, 48);
        let lossy: [fn(u8) -> Encoding; 2] =
            [|quality| Encoding::Jpeg { quality }, |quality| Encoding::WebpLossy { quality }];
        for encoding in lossy {
            let file = encode(&image, encoding(95)).unwrap();
            let decoded = decode(&file, &DecodeLimits::default()).unwrap();
            let largest = image.pixels().iter().zip(decoded.pixels()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(largest < Some(16), "{:?}: {largest:?}", encoding(95));
            assert!(encode(&image, encoding(20)).unwrap().len() < file.len());
        }
    }

    #[test]
    fn gray_jpeg_files_have_one_component() {
        let gray = Raster::new(20, 10, Layout::Gray, (0..200).collect()).unwrap();
        let read_back = decode_on_white(&encode_jpeg(&gray, 100), &DecodeLimits::default()).unwrap();
        assert_eq!(read_back.raster.layout(), Layout::Gray);
    }

    #[test]
    fn higher_png_levels_are_smaller() {
        let image = gradient(200, 200);
        let len = |level| encode(&image, Encoding::Png { level }).unwrap().len();
        assert!(len(0) > len(1) && len(1) > len(9), "{} {} {}", len(0), len(1), len(9));
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let long = Raster::new(65_501, 1, Layout::Gray, vec![0; 65_501]).unwrap();
        let error = encode(&long, Encoding::Jpeg { quality: 90 }).unwrap_err();
        assert_eq!(error.to_string(), "a JPEG file cannot hold 65501 x 1 pixels: sides end at 65500");
        assert!(encode(&long, Encoding::WebpLossless).is_err());
        assert!(encode(&long, Encoding::Png { level: 1 }).is_ok());
        for encoding in
            [Encoding::Jpeg { quality: 0 }, Encoding::Jpeg { quality: 101 }, Encoding::Png { level: 10 }]
        {
            assert!(matches!(encode(&gradient(2, 2), encoding), Err(EncodeError::Setting { .. })));
        }
        let error = Encoding::WebpLossy { quality: 101 }.validate().unwrap_err();
        assert_eq!(error.to_string(), "WebP quality must be from 0 to 100, got 101");
    }

    #[test]
    fn the_longest_sides_can_be_written() {
        for encoding in
            [Encoding::Jpeg { quality: 50 }, Encoding::WebpLossless, Encoding::WebpLossy { quality: 50 }]
        {
            let side = encoding.max_side();
            let image = Raster::new(side, 1, Layout::Gray, vec![9; side as usize]).unwrap();
            assert_eq!(probe(&encode(&image, encoding).unwrap()).unwrap(), (encoding.format(), side, 1));
        }
    }
}
