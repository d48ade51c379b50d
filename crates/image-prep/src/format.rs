//! Image formats, told apart by their first bytes: file names and content types on the web are often wrong.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A format this crate decodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// JPEG (JFIF, EXIF or bare).
    Jpeg,
    /// PNG, animated or not.
    Png,
    /// WebP, lossy, lossless or animated.
    WebP,
    /// GIF, animated or not.
    Gif,
    /// Windows bitmap.
    Bmp,
    /// TIFF and BigTIFF.
    Tiff,
}

impl ImageFormat {
    /// The format whose signature `bytes` begin with.
    pub fn sniff(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'B', b'M', ..] => Some(Self::Bmp),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            _ => None,
        }
    }

    /// The usual file extension, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            Self::Png => "png",
            Self::WebP => "webp",
            Self::Gif => "gif",
            Self::Bmp => "bmp",
            Self::Tiff => "tiff",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures() {
        let check = |bytes: &[u8], expected| assert_eq!(ImageFormat::sniff(bytes), expected, "{bytes:?}");
        check(b"", None);
        check(b"B", None);
        check(b"BM", Some(ImageFormat::Bmp));
        check(b"\xff\xd8\xff\xe0", Some(ImageFormat::Jpeg));
        check(b"\xff\xd8", None);
        check(b"GIF89a", Some(ImageFormat::Gif));
        check(b"GIF88a", None);
        check(b"RIFF\0\0\0\0WEBPVP8 ", Some(ImageFormat::WebP));
        check(b"RIFF\0\0\0\0WAVE", None);
        check(b"II\x2a\0", Some(ImageFormat::Tiff));
        check(b"MM\0\x2b", Some(ImageFormat::Tiff));
        check(b"\x89PNG\r\n\x1a\n", Some(ImageFormat::Png));
        // Formats that Pillow reads and this crate does not: AVIF, ICO, JPEG 2000, SVG.
        check(b"\0\0\0\x20ftypavif", None);
        check(b"\0\0\x01\0", None);
        check(b"\xff\x4f\xff\x51", None);
        check(b"<svg xmlns=", None);
    }
}
