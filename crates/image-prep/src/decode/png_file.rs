//! PNG files. Read with the `png` crate itself, because `image` offers no way to look past a wrong checksum, which
//! Pillow does.

use std::io::Cursor;

use png::{BitDepth, ColorType, DecodingError, Transformations};

use super::{Channels, DecodeLimits, Samples, Size, truncated_or_corrupt};
use crate::{DecodeError, ImageFormat};

const FORMAT: ImageFormat = ImageFormat::Png;

pub(super) fn probe(bytes: &[u8]) -> Result<Size, DecodeError> {
    let mut decoder = open(bytes, usize::MAX);
    let header = decoder.read_header_info().map_err(to_decode_error)?;
    Ok(Size { width: header.width, height: header.height })
}

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<Samples, DecodeError> {
    let max_bytes = usize::try_from(limits.max_alloc_bytes).unwrap_or(usize::MAX);
    let mut decoder = open(bytes, max_bytes);
    let header = decoder.read_header_info().map_err(to_decode_error)?;
    let size = Size { width: header.width, height: header.height };
    // Before the rest of the header is read, with the least a pixel can take.
    limits.check(FORMAT, size, 1)?;

    let mut reader = decoder.read_info().map_err(to_decode_error)?;
    // A gray file without an alpha channel may name one transparent level; neither Pillow's RGB nor OpenCV show it.
    let is_gray = reader.info().color_type == ColorType::Grayscale;
    let (channels, depth) = reader.output_color_type();
    let bytes_per_sample = if depth == BitDepth::Sixteen { 2 } else { 1 };
    limits.check(FORMAT, size, channels.samples() as u64 * bytes_per_sample)?;
    let num_bytes = reader.output_buffer_size().ok_or_else(|| super::no_pixels(FORMAT))?;
    let mut samples = vec![0; num_bytes];
    reader.next_frame(&mut samples).map_err(to_decode_error)?;

    if depth == BitDepth::Sixteen {
        samples = samples.iter().copied().step_by(2).collect(); // big-endian: the first byte is the high one
    }
    let channels = match channels {
        ColorType::Grayscale => Channels::Gray,
        ColorType::GrayscaleAlpha if is_gray => {
            samples = samples.iter().copied().step_by(2).collect();
            Channels::Gray
        }
        ColorType::GrayscaleAlpha => Channels::GrayAlpha,
        ColorType::Rgb => Channels::Rgb,
        ColorType::Rgba => Channels::Rgba,
        ColorType::Indexed => unreachable!("palettes are expanded"),
    };
    Ok(Samples { size, channels, samples })
}

fn open(bytes: &[u8], max_bytes: usize) -> png::Decoder<Cursor<&[u8]>> {
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: max_bytes });
    decoder.ignore_checksums(true);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    // Palettes and samples of 1, 2 and 4 bits become 8-bit samples; 16-bit samples stay.
    decoder.set_transformations(Transformations::EXPAND);
    decoder
}

fn to_decode_error(error: DecodingError) -> DecodeError {
    match error {
        // Unwrapped, because `png` hides it among the sources.
        DecodingError::IoError(io) => truncated_or_corrupt(FORMAT, io),
        other => truncated_or_corrupt(FORMAT, other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RgbImage, decode, encode_png};

    #[test]
    fn a_wrong_checksum_is_overlooked_wrong_pixels_are_not() {
        let image = RgbImage::new(9, 9, (0..243).collect()).unwrap();
        let file = encode_png(&image);
        let idat = file.windows(4).position(|kind| kind == b"IDAT").unwrap();
        let num_bytes = u32::from_be_bytes(file[idat - 4..idat].try_into().unwrap()) as usize;

        let mut wrong_checksum = file.clone();
        wrong_checksum[idat + 4 + num_bytes] ^= 1;
        assert_eq!(decode(&wrong_checksum, &DecodeLimits::default()).unwrap(), image);

        let mut wrong_stream = file;
        wrong_stream[idat + 4] ^= 0x0f; // the compression method of the zlib header
        assert!(decode(&wrong_stream, &DecodeLimits::default()).is_err());
    }

    #[test]
    fn what_ends_early_is_truncated() {
        let file = encode_png(&RgbImage::new(9, 9, (0..243).collect()).unwrap());
        for num_bytes in [10, 30, file.len() / 2, file.len() - 20] {
            let error = decode(&file[..num_bytes], &DecodeLimits::default()).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{num_bytes} bytes: {error}");
        }
    }

    #[test]
    fn gray_of_16_bits_keeps_its_high_byte() {
        let mut file = Vec::new();
        let mut encoder = png::Encoder::new(&mut file, 2, 1);
        encoder.set_color(ColorType::Grayscale);
        encoder.set_depth(BitDepth::Sixteen);
        encoder.write_header().unwrap().write_image_data(&[0x01, 0xff, 0xab, 0xcd]).unwrap();
        let image = decode(&file, &DecodeLimits::default()).unwrap();
        assert_eq!((image.pixel(0, 0), image.pixel(1, 0)), ([1; 3], [0xab; 3]));
    }
}
