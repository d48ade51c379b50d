//! What the first directory of a TIFF file claims. The decoder reserves memory for a tag's values, up to 256 MiB, before it
//! sees that the file ends long before them.

/// Tags of a directory that are looked at; real files have some dozen.
const MAX_TAGS: u64 = 1 << 16;

/// Whether a tag of the first directory says that it has more bytes of values than the file has bytes.
pub(super) fn exceed_file(bytes: &[u8]) -> bool {
    any_tag_exceeds(bytes).unwrap_or(false)
}

/// `None` where the directory ends early, which the decoder will tell.
fn any_tag_exceeds(bytes: &[u8]) -> Option<bool> {
    let file = File { bytes, is_little_endian: bytes.first()? == &b'I' };
    // Version 43 is BigTIFF, with numbers of eight bytes where the other has four, and two for the number of tags.
    let is_big = file.number(2, 2)? == 43;
    let (at_offset, num_count_bytes, num_value_bytes, tag_bytes) =
        if is_big { (8, 8, 8, 20) } else { (4, 2, 4, 12) };
    let directory = file.number(at_offset, num_value_bytes)?;
    let num_tags = file.number(directory, num_count_bytes)?;
    let first = directory.checked_add(num_count_bytes)?;
    for tag in 0..num_tags.min(MAX_TAGS) {
        let at = first.checked_add(tag * tag_bytes)?;
        let kind = file.number(at.checked_add(2)?, 2)?;
        let count = file.number(at.checked_add(4)?, num_value_bytes)?;
        if count.saturating_mul(bytes_of(kind)) > bytes.len() as u64 {
            return Some(true);
        }
    }
    Some(false)
}

/// Bytes of a value of a type, by its number in the format; 1 for those that it does not have.
fn bytes_of(kind: u64) -> u64 {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}

struct File<'a> {
    bytes: &'a [u8],
    is_little_endian: bool,
}

impl File<'_> {
    /// The number of `num_bytes` bytes at `at`.
    fn number(&self, at: u64, num_bytes: u64) -> Option<u64> {
        let start = usize::try_from(at).ok()?;
        let bytes = self.bytes.get(start..)?.get(..num_bytes as usize)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(match self.is_little_endian {
            true => bytes.iter().rev().fold(0, add),
            false => bytes.iter().fold(0, add),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, decode};

    fn tiff() -> Vec<u8> {
        let image = image::RgbImage::from_pixel(9, 7, image::Rgb([1, 2, 3]));
        let mut file = std::io::Cursor::new(Vec::new());
        image.write_to(&mut file, image::ImageFormat::Tiff).unwrap();
        file.into_inner()
    }

    #[test]
    fn a_claim_beyond_the_file_is_seen_wherever_it_is() {
        let file = tiff();
        assert!(!exceed_file(&file) && decode(&file, &DecodeLimits::default()).is_ok());
        let directory = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
        let num_tags = usize::from(u16::from_le_bytes([file[directory], file[directory + 1]]));
        assert!(num_tags > 8);
        for tag in 0..num_tags {
            let mut file = file.clone();
            let count = directory + 2 + 12 * tag + 4;
            file[count..count + 4].copy_from_slice(&6_553_600_u32.to_le_bytes());
            assert!(exceed_file(&file));
            assert_eq!(decode(&file, &DecodeLimits::default()).unwrap_err().reason(), "corrupt-image");
        }
    }

    #[test]
    fn both_byte_orders_and_sizes_are_read() {
        let tag = |count: u64, is_big: bool| {
            let mut file = if is_big { vec![b'M', b'M', 0, 43, 0, 8, 0, 0] } else { vec![b'M', b'M', 0, 42] };
            if is_big {
                file.extend(16_u64.to_be_bytes());
                file.extend(1_u64.to_be_bytes());
            } else {
                file.extend(8_u32.to_be_bytes());
                file.extend(1_u16.to_be_bytes());
            }
            file.extend([0x01, 0x11, 0, 4]);
            if is_big {
                file.extend(count.to_be_bytes())
            } else {
                file.extend((count as u32).to_be_bytes())
            }
            file.extend([0; 64]);
            file
        };
        for is_big in [false, true] {
            assert!(!exceed_file(&tag(16, is_big)) && exceed_file(&tag(60, is_big)));
        }
        for end in 0..tag(60, true).len() {
            exceed_file(&tag(60, true)[..end]);
        }
    }
}
