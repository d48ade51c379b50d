//! JPEG files.

use std::io::Cursor;

use image::ImageDecoder as _;
use image::codecs::jpeg::JpegDecoder;

use super::{DecodeLimits, Size, from_image_error, raster_file};
use crate::{DecodeError, ImageFormat, RgbImage};

const FORMAT: ImageFormat = ImageFormat::Jpeg;

pub(super) fn probe(bytes: &[u8]) -> Result<Size, DecodeError> {
    let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(|error| from_image_error(FORMAT, error))?;
    let (width, height) = decoder.dimensions();
    Ok(Size { width, height })
}

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits) -> Result<RgbImage, DecodeError> {
    let decoder = JpegDecoder::new(Cursor::new(bytes)).map_err(|error| from_image_error(FORMAT, error))?;
    // The decoder fills what is missing with gray and reports success.
    if !reaches_end_of_image(bytes) {
        return Err(DecodeError::Truncated { format: FORMAT });
    }
    raster_file::read(FORMAT, decoder, limits)
}

/// Whether an end-of-image marker follows the first scan. Pillow asks for one too: without it, its decoder waits for
/// more bytes and gives up.
///
/// In compressed data the byte 0xff is always followed by 0x00 or a restart marker, so the pair cannot occur there by
/// chance. Segments before the scan are skipped as a whole: a thumbnail in one has an end-of-image marker of its own.
fn reaches_end_of_image(bytes: &[u8]) -> bool {
    const START_OF_SCAN: u8 = 0xda;
    const END_OF_IMAGE: u8 = 0xd9;
    let mut position = 2;
    while let Some(&[first, marker, high, low]) = bytes.get(position..).and_then(|rest| rest.first_chunk()) {
        let is_segment = first == 0xff && !matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff);
        if !is_segment {
            // Fill bytes and junk between segments occur in the wild.
            position += 1;
            continue;
        }
        position += 2 + usize::from(u16::from_be_bytes([high, low]));
        if marker == START_OF_SCAN {
            let scan = bytes.get(position..).unwrap_or_default();
            return scan.windows(2).any(|pair| pair == [0xff, END_OF_IMAGE]);
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, encode_jpeg};

    #[test]
    fn a_missing_end_is_truncation() {
        let pixels = (0..32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect();
        let file = encode_jpeg(&RgbImage::new(32, 32, pixels).unwrap(), 90);
        let limits = DecodeLimits::default();
        assert!(decode(&file, &limits).is_ok());
        let with_garbage = [&file[..], &[0; 100]].concat();
        assert_eq!(decode(&with_garbage, &limits).unwrap(), decode(&file, &limits).unwrap());
        for num_missing in [1, 2, 50, file.len() / 2] {
            let error = decode(&file[..file.len() - num_missing], &limits).unwrap_err();
            assert_eq!(error.reason(), "truncated-image", "{num_missing} bytes missing");
        }
    }

    #[test]
    fn the_end_of_a_thumbnail_does_not_count() {
        let file = encode_jpeg(&RgbImage::new(8, 8, vec![90; 192]).unwrap(), 90);
        let thumbnail = [&[0xff, 0xe1, 0, 8][..], &[0xff, 0xd8, 0xff, 0xd9, 0, 0]].concat();
        let with_thumbnail = [&file[..2], &thumbnail, &file[2..]].concat();
        assert!(reaches_end_of_image(&with_thumbnail));
        assert!(!reaches_end_of_image(&with_thumbnail[..with_thumbnail.len() - 2]));
    }
}
