//! The EXIF orientation of a file: which way a camera was held.

use std::io::Cursor;

use image::codecs::{png::PngDecoder, tiff::TiffDecoder, webp::WebPDecoder};
use image::metadata::Orientation;
use image::{ImageDecoder, ImageResult};

use crate::ImageFormat;
use crate::decode::catch_panics;

/// The EXIF orientation tag, 1 to 8, where the file has a readable one. [`crate::decode`] does not turn images, as
/// Pillow's `convert` does not; whoever wants them upright asks here.
pub fn exif_orientation(bytes: &[u8]) -> Option<u8> {
    let format = ImageFormat::sniff(bytes)?;
    catch_panics(format, || Ok(read(format, bytes))).ok()?.ok()?.map(Orientation::to_exif)
}

fn read(format: ImageFormat, bytes: &[u8]) -> ImageResult<Option<Orientation>> {
    let file = Cursor::new(bytes);
    let exif = match format {
        ImageFormat::Jpeg => jpeg_exif(bytes).map(<[u8]>::to_vec),
        ImageFormat::Png => PngDecoder::new(file)?.exif_metadata()?,
        ImageFormat::WebP => WebPDecoder::new(file)?.exif_metadata()?,
        ImageFormat::Tiff => return TiffDecoder::new(file)?.orientation().map(Some),
        ImageFormat::Gif | ImageFormat::Bmp => None,
    };
    // Some WebP writers keep the prefix that JPEG puts before the block.
    Ok(exif.and_then(|exif| Orientation::from_exif_chunk(exif.strip_prefix(b"Exif\0\0").unwrap_or(&exif))))
}

/// The EXIF block of a JPEG file: the APP1 segment before the first scan that begins with `Exif`.
fn jpeg_exif(bytes: &[u8]) -> Option<&[u8]> {
    const APP1: u8 = 0xe1;
    const START_OF_SCAN: u8 = 0xda;
    let mut rest = bytes.get(2..)?;
    while let Some((&[first, marker, high, low], after)) = rest.split_first_chunk() {
        let is_segment = first == 0xff && !matches!(marker, 0x00 | 0x01 | 0xd0..=0xd8 | 0xff);
        if !is_segment {
            // Fill bytes and junk between segments occur in the wild.
            rest = &rest[1..];
            continue;
        }
        let payload = after.get(..usize::from(u16::from_be_bytes([high, low])).checked_sub(2)?)?;
        match (marker, payload.strip_prefix(b"Exif\0\0")) {
            (APP1, Some(exif)) => return Some(exif),
            (START_OF_SCAN, _) => return None,
            _ => rest = &after[payload.len()..],
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RgbImage, encode_jpeg};

    /// An APP1 segment holding a little-endian EXIF block with one entry: orientation.
    fn exif_segment(orientation: u8) -> Vec<u8> {
        let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
        exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
        let mut segment = vec![0xff, 0xe1];
        segment.extend((exif.len() as u16 + 2).to_be_bytes());
        segment.extend(exif);
        segment
    }

    #[test]
    fn orientation_of_a_jpeg() {
        let plain = encode_jpeg(&RgbImage::new(2, 2, vec![9; 12]).unwrap(), 80);
        assert_eq!(exif_orientation(&plain), None);
        for orientation in 1..=8 {
            let turned = [&plain[..2], &exif_segment(orientation), &plain[2..]].concat();
            assert_eq!(exif_orientation(&turned), Some(orientation));
        }
        let nonsense = [&plain[..2], &exif_segment(9), &plain[2..]].concat();
        assert_eq!(exif_orientation(&nonsense), None);
        assert_eq!(exif_orientation(b"GIF89a"), None);
        assert_eq!(exif_orientation(b""), None);
    }
}
