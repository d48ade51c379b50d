//! Bytes to images. [`decode`] has Pillow's `convert("RGB")` as its definition of right, [`decode_on_white`] OpenCV's
//! `IMREAD_UNCHANGED`. Of the former:
//!
//! - Only the first frame of an animation counts.
//! - Alpha is dropped, not blended: a transparent pixel shows the colour that is stored under it.
//! - Palettes are expanded, gray becomes three equal bytes, CMYK becomes RGB.
//! - 16-bit samples keep their high byte. Pillow does so for colour; for 16-bit *gray* it clips everything above 255
//!   to white, which destroys the image, and is not followed.
//! - Truncated files are errors, as with Pillow's default settings.

mod gif_file;
mod jpeg_file;
mod png_file;
mod raster_file;
mod samples;
mod tiff_claims;
mod webp_frames;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Deserialize, Serialize};

use self::samples::{Channels, Samples};
use crate::shrink_jpeg::Ycbcr420;
use crate::{DecodeError, ImageFormat, MAX_SIDE, Raster, RgbImage};

/// The most that [`decode`] accepts, checked against the header before anything is allocated for pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeLimits {
    /// Pixels per row.
    pub max_width: u32,
    /// Rows.
    pub max_height: u32,
    /// Pixels in all.
    pub max_pixels: u64,
    /// Bytes of the decoded samples, in the file's own layout (an RGBA image of 16 bits takes 8 bytes per pixel). A
    /// decoder's working memory comes on top, up to about twice this.
    pub max_alloc_bytes: u64,
}

/// Sides as long as a JPEG can have, as many pixels as Pillow lets pass (twice its `MAX_IMAGE_PIXELS`; beyond that it
/// raises `DecompressionBombError`), and 1 GiB of samples.
pub const DEFAULT_DECODE_LIMITS: DecodeLimits = DecodeLimits {
    max_width: MAX_SIDE,
    max_height: MAX_SIDE,
    max_pixels: 178_956_970,
    max_alloc_bytes: 1 << 30,
};

impl Default for DecodeLimits {
    fn default() -> Self {
        DEFAULT_DECODE_LIMITS
    }
}

impl DecodeLimits {
    /// Whether samples of `bytes_per_pixel` for a `width` by `height` image may be allocated.
    fn check(&self, format: ImageFormat, size: Size, bytes_per_pixel: u64) -> Result<(), DecodeError> {
        let Size { width, height } = size;
        let num_pixels = u64::from(width) * u64::from(height);
        let too_large = |limit: String| Err(DecodeError::TooLarge { format, width, height, limit });
        if width > self.max_width.min(MAX_SIDE) {
            return too_large(format!("max_width = {}", self.max_width.min(MAX_SIDE)));
        }
        if height > self.max_height.min(MAX_SIDE) {
            return too_large(format!("max_height = {}", self.max_height.min(MAX_SIDE)));
        }
        if num_pixels > self.max_pixels {
            return too_large(format!("max_pixels = {}", self.max_pixels));
        }
        if num_pixels.saturating_mul(bytes_per_pixel) > self.max_alloc_bytes {
            return too_large(format!("max_alloc_bytes = {}", self.max_alloc_bytes));
        }
        Ok(())
    }
}

/// Width and height as a header states them.
#[derive(Debug, Clone, Copy)]
struct Size {
    width: u32,
    height: u32,
}

/// The image in `bytes`, as Pillow's `Image.open(..).convert("RGB")` sees it. EXIF orientation is not applied; see
/// [`crate::exif_orientation`].
///
/// # Errors
/// If the bytes are of no supported format, over the limits, truncated, or broken. Never panics.
pub fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let format = sniff(bytes)?;
    catch_panics(format, || read(format, bytes, limits, Reader::Pillow)?.into_rgb_image(format))
}

/// An image as a downloader wants it: gray stays gray, and what was transparent is white.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MattedImage {
    /// The pixels.
    pub raster: Raster,
    /// Whether the file has an alpha channel, or for GIF a transparent colour. The pixels are then no longer those of
    /// the file, even where nothing was transparent.
    pub had_alpha: bool,
}

/// The image in `bytes` as OpenCV's `imdecode(.., IMREAD_UNCHANGED)` sees it, put on white where it is transparent.
/// This is how img2dataset reads images; its transparency formula is `rint(alpha / 255 * value + 255 - alpha)`.
///
/// Where it differs from [`decode`]: gray files give gray rasters; alpha is blended instead of dropped (except in gray
/// PNG files with a single transparent level, where OpenCV ignores it); CMYK becomes RGB by OpenCV's formula; a GIF
/// canvas that the first frame leaves uncovered shows the background colour. EXIF orientation is not applied.
///
/// Deviations from OpenCV 4.14: 16-bit samples keep their high byte (img2dataset turns such images white); the alpha
/// of TIFF files is applied once (OpenCV has multiplied it in already); wrong checksums in PNG files are overlooked;
/// AVIF and JPEG 2000 are not read.
///
/// # Errors
/// As [`decode`].
pub fn decode_on_white(bytes: &[u8], limits: &DecodeLimits) -> Result<MattedImage, DecodeError> {
    let format = sniff(bytes)?;
    catch_panics(format, || read(format, bytes, limits, Reader::OpenCv)?.into_matted(format))
}

/// As [`decode_on_white`], quicker and less exactly, for an image that will be made smaller: a JPEG file may come at a
/// half, a quarter or an eighth of its size (rounded up), as small as still holds `width` by `height` pixels, which is
/// what Pillow calls `draft`; and with libjpeg's cheaper transform and upsampling. Files of other formats come whole.
///
/// # Errors
/// As [`decode`]. The limits are for the size that the header states.
pub fn draft_on_white(
    bytes: &[u8],
    limits: &DecodeLimits,
    width: u32,
    height: u32,
) -> Result<MattedImage, DecodeError> {
    if ImageFormat::sniff(bytes) != Some(ImageFormat::Jpeg) {
        return decode_on_white(bytes, limits);
    }
    let format = ImageFormat::Jpeg;
    let least = Some(Size { width, height });
    catch_panics(format, || jpeg_file::decode(bytes, limits, least)?.into_matted(format))
}

/// The planes of a JPEG file, if [`crate::shrink_jpeg`] is for it.
pub(crate) fn jpeg_planes(
    bytes: &[u8],
    limits: &DecodeLimits,
    width: u32,
    height: u32,
) -> Result<Option<Ycbcr420>, DecodeError> {
    if ImageFormat::sniff(bytes) != Some(ImageFormat::Jpeg) {
        return Ok(None);
    }
    let least = Size { width, height };
    catch_panics(ImageFormat::Jpeg, || jpeg_file::decode_planes(bytes, limits, least))
}

/// Whose view of a file counts where they differ before colours are converted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Pillow,
    OpenCv,
}

fn read(
    format: ImageFormat,
    bytes: &[u8],
    limits: &DecodeLimits,
    reader: Reader,
) -> Result<Samples, DecodeError> {
    match format {
        ImageFormat::Jpeg => jpeg_file::decode(bytes, limits, None),
        ImageFormat::Png => png_file::decode(bytes, limits),
        ImageFormat::Gif => gif_file::decode(bytes, limits, reader),
        ImageFormat::WebP | ImageFormat::Bmp | ImageFormat::Tiff => {
            raster_file::decode(format, bytes, limits)
        }
    }
}

/// Format, width and height of the image in `bytes`, from its header alone: whether the rest can be decoded is not
/// looked at, and no limit is checked.
///
/// # Errors
/// If the bytes are of no supported format, or the header is truncated or broken.
pub fn probe(bytes: &[u8]) -> Result<(ImageFormat, u32, u32), DecodeError> {
    let format = sniff(bytes)?;
    let Size { width, height } = catch_panics(format, || match format {
        ImageFormat::Jpeg => jpeg_file::probe(bytes),
        ImageFormat::Png => png_file::probe(bytes),
        ImageFormat::Gif => gif_file::probe(bytes),
        ImageFormat::WebP | ImageFormat::Bmp | ImageFormat::Tiff => raster_file::probe(format, bytes),
    })?;
    if width == 0 || height == 0 {
        return Err(no_pixels(format));
    }
    Ok((format, width, height))
}

fn sniff(bytes: &[u8]) -> Result<ImageFormat, DecodeError> {
    if bytes.is_empty() {
        return Err(DecodeError::Empty);
    }
    ImageFormat::sniff(bytes).ok_or(DecodeError::UnknownFormat)
}

/// Runs a decoder and turns a panic of it into an error.
pub(crate) fn catch_panics<T>(
    format: ImageFormat,
    decode: impl FnOnce() -> Result<T, DecodeError>,
) -> Result<T, DecodeError> {
    // Decoders only borrow the file's bytes, which they cannot change: nothing half-written survives the unwinding.
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or(Err(DecodeError::DecoderPanicked { format }))
}

fn no_pixels(format: ImageFormat) -> DecodeError {
    DecodeError::Corrupt { format, source: "the image has no pixels".into() }
}

/// Sorts a decoder's error: what ended early is truncated, all else corrupt.
fn truncated_or_corrupt(
    format: ImageFormat,
    source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> DecodeError {
    let source = source.into();
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(source.as_ref());
    while let Some(error) = cause {
        let io = error.downcast_ref::<std::io::Error>();
        if io.is_some_and(|io| io.kind() == std::io::ErrorKind::UnexpectedEof) {
            return DecodeError::Truncated { format };
        }
        cause = error.source();
    }
    DecodeError::Corrupt { format, source }
}

/// As [`truncated_or_corrupt`], for the error type of the `image` crate.
fn from_image_error(format: ImageFormat, error: image::ImageError) -> DecodeError {
    match error {
        image::ImageError::Unsupported(source) => DecodeError::Unsupported { format, source: source.into() },
        other => truncated_or_corrupt(format, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{encode_jpeg, encode_png, encode_webp};
    use proptest::prelude::*;

    fn sample_files() -> Vec<Vec<u8>> {
        let pixels = (0..20 * 14 * 3).map(|i| (i * 31 % 251) as u8).collect();
        let image = RgbImage::new(20, 14, pixels).unwrap();
        let mut gif = Vec::new();
        let mut encoder = gif::Encoder::new(&mut gif, 4, 3, &[1, 2, 3, 200, 100, 50]).unwrap();
        let frame = gif::Frame { width: 4, height: 3, buffer: [0, 1].repeat(6).into(), ..Default::default() };
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        let image_crate = image::RgbImage::from_raw(20, 14, image.pixels().to_vec()).unwrap();
        let with_image_crate = [image::ImageFormat::Bmp, image::ImageFormat::Tiff].map(|format| {
            let mut file = std::io::Cursor::new(Vec::new());
            image_crate.write_to(&mut file, format).unwrap();
            file.into_inner()
        });
        let mut files = vec![encode_jpeg(&image, 80), encode_png(&image), encode_webp(&image), gif];
        files.extend(with_image_crate);
        files
    }

    #[test]
    fn every_format_decodes_and_probes_alike() {
        let formats: Vec<ImageFormat> = sample_files()
            .iter()
            .map(|file| {
                let image = decode(file, &DecodeLimits::default()).unwrap();
                let (format, width, height) = probe(file).unwrap();
                assert_eq!((width, height), (image.width(), image.height()));
                format
            })
            .collect();
        use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
        assert_eq!(formats, [Jpeg, Png, WebP, Gif, Bmp, Tiff]);
    }

    #[test]
    fn limits_are_inclusive_and_named() {
        for file in sample_files() {
            let (_, width, height) = probe(&file).unwrap();
            let exact = DecodeLimits {
                max_width: width,
                max_height: height,
                max_pixels: u64::from(width * height),
                max_alloc_bytes: u64::from(width * height) * 4,
            };
            assert!(decode(&file, &exact).is_ok());
            let tight = [
                ("max_width", DecodeLimits { max_width: width - 1, ..exact }),
                ("max_height", DecodeLimits { max_height: height - 1, ..exact }),
                ("max_pixels", DecodeLimits { max_pixels: exact.max_pixels - 1, ..exact }),
                ("max_alloc_bytes", DecodeLimits { max_alloc_bytes: exact.max_pixels - 1, ..exact }),
            ];
            for (name, limits) in tight {
                let error = decode(&file, &limits).unwrap_err();
                assert_eq!(error.reason(), "image-too-large");
                assert!(error.to_string().contains(name), "{error}");
            }
        }
    }

    #[test]
    fn nothing_and_text_are_no_images() {
        assert_eq!(decode(b"", &DecodeLimits::default()).unwrap_err().reason(), "empty-file");
        assert_eq!(probe(b"").unwrap_err().reason(), "empty-file");
        assert_eq!(probe(b"hello").unwrap_err().reason(), "unknown-format");
    }

    #[test]
    fn a_panicking_decoder_is_an_error() {
        let result: Result<(), _> = catch_panics(ImageFormat::Bmp, || panic!("on purpose"));
        assert_eq!(result.unwrap_err().reason(), "decoder-panicked");
    }

    /// Small enough that a mutated header cannot make a test slow.
    const SMALL: DecodeLimits =
        DecodeLimits { max_width: 4096, max_height: 4096, max_pixels: 1 << 20, max_alloc_bytes: 8 << 20 };

    fn check_no_panic(file: &[u8]) {
        for error in [decode(file, &SMALL).err(), probe(file).err()].into_iter().flatten() {
            assert_ne!(error.reason(), "decoder-panicked");
        }
        crate::exif_orientation(file);
    }

    #[test]
    fn every_truncation_is_survived() {
        for file in sample_files() {
            for len in 0..file.len() {
                check_no_panic(&file[..len]);
            }
            // Half of any of these files is not an image.
            assert!(decode(&file[..file.len() / 2], &SMALL).is_err());
        }
    }

    proptest! {
        #[test]
        fn random_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200), format in 0usize..6) {
            check_no_panic(&bytes);
            // Behind a genuine signature the decoders do look at them.
            let signature = &sample_files()[format][..12];
            check_no_panic(&[signature, &bytes].concat());
        }

        #[test]
        fn damaged_files_are_survived(
            format in 0usize..6, changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let mut file = sample_files().swap_remove(format);
            for (position, byte) in changes {
                let position = position.index(file.len());
                file[position] = byte;
            }
            check_no_panic(&file);
        }
    }
}
