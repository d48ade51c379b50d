//! EXIF as text: the names and values that img2dataset writes into its `exif` column.

mod ifd;
mod python_text;
mod tags;

use crate::ImageFormat;

/// The EXIF tags of a file, name and value, in the order `exifread` lists them: `("Image Orientation", "Rotated 90 CW")`,
/// `("EXIF ExifVersion", "0220")`, `("GPS GPSLatitude", "[51, 30, 26]")`. Empty if the file has none; `None` if what it
/// has is too broken to read on, where img2dataset stores null.
///
/// Names and values are those of `process_file(.., details=False)` of the Python package `exifread` 3.0.0, trimmed as
/// img2dataset does. Maker notes, user comments and thumbnails are left out. The fork `exifread-nocycle` 3.0.1, which
/// img2dataset 1.47 installs, reads every byte-sized value as 0 (`EXIF ExifVersion` is empty there); that is not
/// followed.
pub fn exif_tags(bytes: &[u8]) -> Option<Vec<(String, String)>> {
    let offset = match ImageFormat::sniff(bytes) {
        Some(ImageFormat::Jpeg) => find_in_jpeg(bytes)?,
        Some(ImageFormat::Png) => find_in_png(bytes)?,
        Some(ImageFormat::WebP) => find_in_webp(bytes),
        Some(ImageFormat::Tiff) => Some(0),
        Some(ImageFormat::Gif | ImageFormat::Bmp) | None => None,
    };
    match offset {
        Some(offset) => ifd::read(&bytes[offset..]),
        None => Some(Vec::new()),
    }
}

/// Where the EXIF block of a JPEG file begins; inside, `None` if there is none. Outside, `None` if the file ends in the
/// middle of a segment's header.
///
/// The search has the limits of the original: it looks at the first 4,000 bytes after the JFIF segment only, and not
/// beyond the first quantisation table.
#[expect(clippy::option_option, reason = "no block and a broken file are different answers")]
fn find_in_jpeg(bytes: &[u8]) -> Option<Option<usize>> {
    let segment_len =
        |at: usize| Some(usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])));
    let mut base = 2;
    // Segments known to come first.
    while bytes.get(base) == Some(&0xff)
        && bytes
            .get(base + 4..base + 8)
            .is_some_and(|code| matches!(code, b"JFIF" | b"JFXX" | b"OLYM" | b"Phot"))
    {
        let len = segment_len(base + 2).filter(|&len| len >= 8)?;
        base += 2 + len;
        bytes.get(base)?;
    }
    let end = bytes.len().min(base + 4000);
    loop {
        let Some(marker) = bytes[..end].get(base..base + 2) else {
            return Some(None);
        };
        match marker {
            [0xff, 0xe1] if bytes[..end].get(base + 4..base + 8) == Some(b"Exif") => {
                // Past the marker, the length, `Exif` and two zeros. A block that begins at the end is empty.
                return Some(Some((base + 10).min(bytes.len())));
            }
            [0xff, 0xdb] => return Some(None),
            _ if base + 4 > end => {
                let is_known = matches!(marker, [0xff, 0xe0..=0xe2 | 0xec | 0xee | 0xd8]);
                return if is_known { None } else { Some(None) };
            }
            _ => base += 2 + segment_len(base + 2)?,
        }
    }
}

/// Where the `eXIf` chunk's data begin.
#[expect(clippy::option_option, reason = "no block and a broken file are different answers")]
fn find_in_png(bytes: &[u8]) -> Option<Option<usize>> {
    let mut at = 8;
    while let Some(header) = bytes.get(at..at + 8) {
        let (len, kind) = header.split_first_chunk::<4>()?;
        match kind {
            b"IEND" => return Some(None),
            b"eXIf" => return Some(Some(at + 8)),
            kind if !kind.is_ascii() => return None,
            _ => at = at.saturating_add(12).saturating_add(u32::from_be_bytes(*len) as usize),
        }
    }
    Some(None)
}

/// Where the `EXIF` chunk's data begin, in files with an extended header. Chunks of odd length are followed by a byte of
/// padding, which the original does not skip; nor does this.
fn find_in_webp(bytes: &[u8]) -> Option<usize> {
    if bytes.get(12..16)? != b"VP8X" || bytes.get(16)? & 8 == 0 {
        return None;
    }
    let mut at = 30;
    loop {
        let (kind, len) = bytes.get(at..at + 8)?.split_at(4);
        at += 8;
        if kind == b"EXIF" {
            return Some(at);
        }
        at = at.checked_add(u32::from_le_bytes(len.try_into().ok()?) as usize)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{RgbImage, encode_jpeg, encode_png, encode_webp};
    use proptest::prelude::*;

    /// A little-endian block with one directory of `(tag, type, count, value or offset)`.
    fn block(entries: &[(u16, u16, u32, [u8; 4])], data: &[u8]) -> Vec<u8> {
        let mut block = b"II\x2a\0\x08\0\0\0".to_vec();
        block.extend((entries.len() as u16).to_le_bytes());
        for (tag, kind, count, value) in entries {
            block.extend(tag.to_le_bytes());
            block.extend(kind.to_le_bytes());
            block.extend(count.to_le_bytes());
            block.extend(value);
        }
        block.extend([0; 4]);
        block.extend(data);
        block
    }

    fn in_jpeg(block: &[u8]) -> Vec<u8> {
        let plain = encode_jpeg(&RgbImage::new(2, 2, vec![9; 12]).unwrap(), 80);
        let segment = [b"Exif\0\0", block].concat();
        let header = [&[0xff, 0xe1][..], &(segment.len() as u16 + 2).to_be_bytes()].concat();
        [&plain[..2], &header, &segment, &plain[2..]].concat()
    }

    fn tags_of(entries: &[(u16, u16, u32, [u8; 4])], data: &[u8]) -> Vec<(String, String)> {
        exif_tags(&in_jpeg(&block(entries, data))).unwrap()
    }

    fn check(entry: (u16, u16, u32, [u8; 4]), data: &[u8], name: &str, value: &str) {
        assert_eq!(tags_of(&[entry], data), [(name.to_owned(), value.to_owned())]);
    }

    /// Where `data` of a block with one entry begins.
    const DATA: [u8; 4] = [8 + 2 + 12 + 4, 0, 0, 0];

    #[test]
    fn values_are_texts() {
        check((0x0112, 3, 1, [6, 0, 0, 0]), b"", "Image Orientation", "Rotated 90 CW");
        check((0x0112, 3, 1, [9, 0, 0, 0]), b"", "Image Orientation", "9");
        check((0x010f, 2, 6, DATA), b"Canon\0", "Image Make", "Canon");
        check((0x010f, 2, 3, *b"\xff\xfe'\0"), b"", "Image Make", r#"b"\xff\xfe'""#);
        check((0x9000, 7, 4, *b"0220"), b"", "Image ExifVersion", "0220");
        check((0x829a, 5, 1, DATA), &[10, 0, 0, 0, 100, 0, 0, 0], "Image ExposureTime", "1/10");
        check((0x829a, 5, 1, DATA), &[10, 0, 0, 0, 0, 0, 0, 0], "Image ExposureTime", "10/0");
        check(
            (0x9204, 10, 1, DATA),
            &[0xfe, 0xff, 0xff, 0xff, 4, 0, 0, 0],
            "Image ExposureBiasValue",
            "-1/2",
        );
        check((0x0102, 3, 3, DATA), &[8, 0, 8, 0, 16, 0], "Image BitsPerSample", "[8, 8, 16]");
        check((0x9101, 7, 4, [1, 2, 3, 0]), b"", "Image ComponentsConfiguration", "YCbCr");
        check((0xabcd, 11, 1, 0.1f32.to_le_bytes()), b"", "Image Tag 0xABCD", "(0.10000000149011612,)");
        check(
            (0x0123, 1, 60, DATA),
            &[7; 60],
            "Image GrayResponseCurve",
            &format!("[{}, ... ]", ["7"; 20].join(", ")),
        );
        assert_eq!(tags_of(&[(0x927c, 7, 4, *b"note"), (0x0112, 99, 1, [0; 4])], b""), []);
    }

    #[test]
    fn directories_have_names() {
        let gps = [1, 0, 1, 0, 2, 0, 2, 0, 0, 0, b'N', 0, 0, 0];
        let tags = tags_of(&[(0x8825, 4, 1, DATA)], &gps);
        assert_eq!(tags[0], ("GPS GPSLatitudeRef".to_owned(), "N".to_owned()));
        assert_eq!(tags[1], ("Image GPSInfo".to_owned(), "26".to_owned()));
        let exif = [1, 0, 0x03, 0xa0, 3, 0, 1, 0, 0, 0, 10, 0, 0, 0];
        let tags = tags_of(&[(0x8769, 4, 1, DATA)], &exif);
        assert_eq!(tags[1], ("EXIF ExifImageLength".to_owned(), "10".to_owned()));
    }

    #[test]
    fn containers() {
        let image = RgbImage::new(2, 2, vec![9; 12]).unwrap();
        for plain in [encode_jpeg(&image, 80), encode_png(&image), encode_webp(&image), b"GIF89a".to_vec()] {
            assert_eq!(exif_tags(&plain), Some(vec![]));
        }
        let block = block(&[(0x0112, 3, 1, [3, 0, 0, 0])], b"");
        let expected = Some(vec![("Image Orientation".to_owned(), "Rotated 180".to_owned())]);
        assert_eq!(exif_tags(&block), expected);
        let png = encode_png(&image);
        let chunk = [&(block.len() as u32).to_be_bytes()[..], b"eXIf", &block, &[0; 4]].concat();
        assert_eq!(exif_tags(&[&png[..33], &chunk, &png[33..]].concat()), expected);
        let webp = [b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", &[0; 10][..], b"EXIF\0\0\0\0", &block].concat();
        assert_eq!(exif_tags(&webp), expected);
    }

    #[test]
    fn what_is_broken_is_none() {
        assert_eq!(exif_tags(&in_jpeg(b"XX\x2a\0")), None, "unknown byte order");
        let mut cut = block(&[(0x829a, 5, 1, DATA)], &[10, 0, 0, 0, 0, 0]);
        assert_eq!(exif_tags(&cut), None, "half a number");
        cut.truncate(DATA[0].into());
        assert_eq!(
            exif_tags(&cut),
            Some(vec![("Image ExposureTime".to_owned(), "0/0".to_owned())]),
            "no number"
        );
    }

    #[test]
    fn loops_end() {
        // The next directory is the first again; and a GPS directory that is the whole block.
        let mut looped = block(&[(0x8825, 4, 1, [8, 0, 0, 0])], b"");
        let next = looped.len() - 4;
        looped[next..].copy_from_slice(&8u32.to_le_bytes());
        assert!(exif_tags(&looped).is_some());
        // Directories of thousands of entries, each of hundreds of values, in a chain that overlaps itself.
        let bomb = [b"II\x2a\0\x08\0\0\0".as_slice(), &[0x09, 0x00].repeat(100_000)].concat();
        exif_tags(&bomb);
    }

    proptest! {
        #[test]
        fn random_blocks_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            exif_tags(&[b"II\x2a\0\x08\0\0\0", &bytes[..]].concat());
            exif_tags(&[b"\xff\xd8\xff\xe1\0\x80Exif\0\0MM\0\x2a\0\0\0\x08", &bytes[..]].concat());
            exif_tags(&[b"\xff\xd8\xff", &bytes[..]].concat());
            exif_tags(&[b"\x89PNG\r\n\x1a\n", &bytes[..]].concat());
            exif_tags(&[b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0", &bytes[..]].concat());
        }
    }
}
