//! Encoding drawings, and bodies that are no proper pictures.

use image::codecs::{bmp::BmpEncoder, gif::GifEncoder, jpeg::JpegEncoder, png, webp::WebPEncoder};
use image::{ExtendedColorType, ImageEncoder, RgbImage};

/// An image file format of the world.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PictureFormat {
    /// PNG, compressed fast.
    Png,
    /// JPEG, quality 92.
    Jpeg,
    /// WebP, lossless.
    WebP,
    /// GIF with its own palette.
    Gif,
    /// BMP, 24 bits.
    Bmp,
}

impl PictureFormat {
    /// Every format.
    pub const ALL: [PictureFormat; 5] = [
        PictureFormat::Png,
        PictureFormat::Jpeg,
        PictureFormat::WebP,
        PictureFormat::Gif,
        PictureFormat::Bmp,
    ];

    /// File name extension.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            PictureFormat::Png => "png",
            PictureFormat::Jpeg => "jpg",
            PictureFormat::WebP => "webp",
            PictureFormat::Gif => "gif",
            PictureFormat::Bmp => "bmp",
        }
    }

    /// Media type.
    #[must_use]
    pub fn content_type(self) -> &'static str {
        match self {
            PictureFormat::Png => "image/png",
            PictureFormat::Jpeg => "image/jpeg",
            PictureFormat::WebP => "image/webp",
            PictureFormat::Gif => "image/gif",
            PictureFormat::Bmp => "image/bmp",
        }
    }

    /// The picture as a file of this format; the same bytes for the same pixels.
    #[must_use]
    pub fn encode(self, picture: &RgbImage) -> Vec<u8> {
        let mut bytes = Vec::new();
        let (width, height) = picture.dimensions();
        let rgb = ExtendedColorType::Rgb8;
        let written = match self {
            PictureFormat::Png => {
                // Areas of one colour: the filter that looks up and the fastest compression are good enough.
                let (compression, filter) = (png::CompressionType::Fast, png::FilterType::Up);
                png::PngEncoder::new_with_quality(&mut bytes, compression, filter)
                    .write_image(picture, width, height, rgb)
            }
            PictureFormat::Jpeg => {
                JpegEncoder::new_with_quality(&mut bytes, 92).write_image(picture, width, height, rgb)
            }
            PictureFormat::WebP => {
                WebPEncoder::new_lossless(&mut bytes).write_image(picture, width, height, rgb)
            }
            PictureFormat::Gif => {
                GifEncoder::new_with_speed(&mut bytes, 20).encode(picture, width, height, rgb)
            }
            PictureFormat::Bmp => BmpEncoder::new(&mut bytes).write_image(picture, width, height, rgb),
        };
        written.expect("a small RGB picture can be encoded in every format, and a vector takes all bytes");
        bytes
    }
}

/// A PNG of one pixel, or of two by two.
pub(crate) fn tiny_picture(side: u32) -> Vec<u8> {
    PictureFormat::Png.encode(&RgbImage::from_pixel(side, side, image::Rgb([128, 128, 128])))
}

/// A PNG of under 100 bytes whose intact header claims `side` by `side` pixels.
pub(crate) fn picture_that_claims(side: u32) -> Vec<u8> {
    // Signature (8 bytes), then the IHDR chunk: length, name, width, height, five more bytes, CRC of name and
    // data.
    const NAME: usize = 12;
    const WIDTH: usize = 16;
    const CRC: usize = 29;
    let mut bytes = tiny_picture(1);
    bytes[WIDTH..WIDTH + 4].copy_from_slice(&side.to_be_bytes());
    bytes[WIDTH + 4..WIDTH + 8].copy_from_slice(&side.to_be_bytes());
    let crc = crc32(&bytes[NAME..CRC]);
    bytes[CRC..CRC + 4].copy_from_slice(&crc.to_be_bytes());
    bytes
}

/// An HTML page.
pub(crate) fn web_page(number: u64) -> Vec<u8> {
    format!(
        "<!DOCTYPE html>\n<html><head><title>Page {number}</title></head>\
         <body><p>The image you are looking for has moved.</p></body></html>\n"
    )
    .into_bytes()
}

/// The CRC of PNG chunks (ISO 3309), bit by bit: it is needed for 17 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scene::{Canvas, Scene, Split, draw};

    #[test]
    fn formats_keep_the_picture() {
        let picture = draw(&Scene::generate(7, Split::Web, 3), Canvas::sized(96, 128));
        for format in PictureFormat::ALL {
            let bytes = format.encode(&picture);
            assert_eq!(bytes, format.encode(&picture), "{format:?} is not deterministic");
            let read = image::load_from_memory(&bytes).unwrap().to_rgb8();
            assert_eq!(read.dimensions(), picture.dimensions());
            let error: u64 = read.iter().zip(picture.iter()).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
            let mean_error = error as f64 / (96.0 * 128.0 * 3.0);
            assert!(mean_error < 6.0, "{format:?}: {mean_error}");
            assert!(
                format == PictureFormat::Bmp || bytes.len() < 16_000,
                "{format:?}: {} bytes",
                bytes.len()
            );
        }
    }

    #[test]
    fn crc_is_pngs() {
        assert_eq!(crc32(b"IEND"), 0xae42_6082);
    }

    #[test]
    fn the_huge_picture_is_small_and_its_header_is_read() {
        let bytes = picture_that_claims(60_000);
        assert!(bytes.len() < 100);
        let reader = image::ImageReader::new(std::io::Cursor::new(&bytes)).with_guessed_format().unwrap();
        assert_eq!(reader.into_dimensions().unwrap(), (60_000, 60_000));
    }
}
