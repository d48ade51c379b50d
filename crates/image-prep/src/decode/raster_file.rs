//! Formats that the decoders of the `image` crate read as Pillow does: WebP, BMP and TIFF.

use std::io::Cursor;

use image::codecs::{bmp::BmpDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::{ColorType, ImageDecoder};

use super::{Channels, DecodeLimits, Samples, Size, from_image_error, tiff_claims, webp_frames};
use crate::{DecodeError, ImageFormat};

/// Bytes of a pixel in the least that a frame is decoded to.
const RGB_BYTES: u64 = 3;

/// # Panics
/// If `format` is not WebP, BMP or TIFF.
pub(super) fn probe(format: ImageFormat, bytes: &[u8]) -> Result<Size, DecodeError> {
    let (width, height) = open(format, bytes)?.dimensions();
    Ok(Size { width, height })
}

/// # Panics
/// If `format` is not WebP, BMP or TIFF.
pub(super) fn decode(
    format: ImageFormat,
    bytes: &[u8],
    limits: &DecodeLimits,
) -> Result<Samples, DecodeError> {
    if format == ImageFormat::WebP {
        for frame in webp_frames::frame_sizes(bytes) {
            limits.check(format, frame, RGB_BYTES)?;
        }
    }
    let mut samples = read(format, open(format, bytes)?, limits)?;
    // The decoder expands palettes; OpenCV keeps bitmaps with a palette of grays gray.
    if format == ImageFormat::Bmp && has_palette(bytes) && is_gray(&samples) {
        samples.samples = samples.samples.into_iter().step_by(3).collect();
        samples.channels = Channels::Gray;
    }
    Ok(samples)
}

/// Whether a bitmap's pixels are indices: its bits per pixel, at byte 28 after either form of the header that browsers
/// write.
fn has_palette(bytes: &[u8]) -> bool {
    matches!(bytes.get(28..30), Some(&[1..=8, 0]))
}

fn is_gray(samples: &Samples) -> bool {
    samples.channels == Channels::Rgb
        && samples.samples.as_chunks().0.iter().all(|&[red, green, blue]| red == green && green == blue)
}

fn open(format: ImageFormat, bytes: &[u8]) -> Result<Box<dyn ImageDecoder + '_>, DecodeError> {
    if format == ImageFormat::Tiff && tiff_claims::exceed_file(bytes) {
        let source = "a tag has more values than the file has room for".into();
        return Err(DecodeError::Corrupt { format, source });
    }
    let file = Cursor::new(bytes);
    let decoder: Result<Box<dyn ImageDecoder>, _> = match format {
        ImageFormat::WebP => WebPDecoder::new(file).map(|decoder| Box::new(decoder) as _),
        ImageFormat::Bmp => BmpDecoder::new(file).map(|decoder| Box::new(decoder) as _),
        ImageFormat::Tiff => TiffDecoder::new(file).map(|decoder| Box::new(decoder) as _),
        ImageFormat::Jpeg | ImageFormat::Png | ImageFormat::Gif => {
            unreachable!("{format} has its own module")
        }
    };
    decoder.map_err(|error| from_image_error(format, error))
}

/// The pixels of an opened file, after the limits.
fn read(
    format: ImageFormat,
    mut decoder: impl ImageDecoder,
    limits: &DecodeLimits,
) -> Result<Samples, DecodeError> {
    let (width, height) = decoder.dimensions();
    let size = Size { width, height };
    let color = decoder.color_type();
    limits.check(format, size, u64::from(color.bytes_per_pixel()))?;
    let mut decoder_limits = image::Limits::no_limits();
    // What a TIFF needs beside the samples themselves (a strip, CMYK before conversion) is bounded by the same again.
    decoder_limits.max_alloc = Some(limits.max_alloc_bytes.saturating_mul(2));
    decoder.set_limits(decoder_limits).map_err(|error| from_image_error(format, error))?;

    let num_bytes = usize::try_from(decoder.total_bytes()).map_err(|_| super::no_pixels(format))?;
    let mut samples = vec![0; num_bytes];
    decoder.read_image(&mut samples).map_err(|error| from_image_error(format, error))?;

    let (channels, depth) = match color {
        ColorType::L8 => (Channels::Gray, 8),
        ColorType::La8 => (Channels::GrayAlpha, 8),
        ColorType::Rgb8 => (Channels::Rgb, 8),
        ColorType::Rgba8 => (Channels::Rgba, 8),
        ColorType::L16 => (Channels::Gray, 16),
        ColorType::La16 => (Channels::GrayAlpha, 16),
        ColorType::Rgb16 => (Channels::Rgb, 16),
        ColorType::Rgba16 => (Channels::Rgba, 16),
        // Floating-point TIFF: Pillow does not read it as colour either.
        other => {
            let source = format!("samples of type {other:?}").into();
            return Err(DecodeError::Unsupported { format, source });
        }
    };
    if depth == 16 {
        samples = high_bytes(&samples);
    }
    Ok(Samples { size, channels, samples })
}

/// The high byte of each 16-bit sample in the machine's byte order.
fn high_bytes(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(2).map(|sample| (u16::from_ne_bytes([sample[0], sample[1]]) >> 8) as u8).collect()
}
