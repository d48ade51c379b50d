//! The sizes that the frames inside a WebP file state for themselves.
//!
//! An extended file states the size of its canvas, and each frame its own once more. The decoder allocates for what the
//! frame says before it notices that the two differ: 800 bytes could ask for 400 MB. So the frames are measured first.
//!
//! Source: RFC 9649, sections 2.5 to 2.7 and 3.4; RFC 6386, section 9.1.

use super::Size;

/// `RIFF`, a length, `WEBP`.
const FILE_HEADER_BYTES: usize = 12;
/// A chunk's name and length.
const CHUNK_HEADER_BYTES: usize = 8;
/// What stands in an animation's frame before its chunks.
const ANIMATION_FRAME_HEADER_BYTES: usize = 16;

/// The size each frame of the file states, as far as its chunks can be followed.
pub(super) fn frame_sizes(file: &[u8]) -> Vec<Size> {
    let mut sizes = Vec::new();
    for (name, payload) in chunks(file.get(FILE_HEADER_BYTES..).unwrap_or_default()) {
        if name == b"ANMF" {
            let inner = payload.get(ANIMATION_FRAME_HEADER_BYTES..).unwrap_or_default();
            sizes.extend(chunks(inner).filter_map(|(name, payload)| frame_size(name, payload)));
        } else {
            sizes.extend(frame_size(name, payload));
        }
    }
    sizes
}

/// Names and contents of consecutive chunks; the last of a cut file as far as it goes.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (header, rest) = bytes.split_at_checked(CHUNK_HEADER_BYTES)?;
        let (name, length) = header.split_at(4);
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let payload = &rest[..length.min(rest.len())];
        // Chunks begin at even places.
        bytes = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
        Some((name, payload))
    })
}

/// What the first bytes of a lossy or lossless frame say.
fn frame_size(name: &[u8], payload: &[u8]) -> Option<Size> {
    const START_CODE: [u8; 3] = [0x9d, 0x01, 0x2a];
    const SIGNATURE: u8 = 0x2f;
    let bits = |place: usize| -> Option<u32> {
        Some(u32::from_le_bytes(payload.get(place..place + 4)?.try_into().ok()?))
    };
    match name {
        b"VP8 " if payload.get(3..6)? == START_CODE => {
            let sides = bits(6)?;
            Some(Size { width: sides & 0x3fff, height: sides >> 16 & 0x3fff })
        }
        b"VP8L" if payload.first() == Some(&SIGNATURE) => {
            let sides = bits(1)?;
            Some(Size { width: (sides & 0x3fff) + 1, height: (sides >> 14 & 0x3fff) + 1 })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, decode, encode_webp};

    fn sizes(file: &[u8]) -> Vec<(u32, u32)> {
        frame_sizes(file).iter().map(|size| (size.width, size.height)).collect()
    }

    fn chunk(name: &[u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut bytes = [&name[..], &(payload.len() as u32).to_le_bytes(), payload].concat();
        bytes.resize(bytes.len().next_multiple_of(2), 0);
        bytes
    }

    fn file(chunks: &[Vec<u8>]) -> Vec<u8> {
        let body = chunks.concat();
        [&b"RIFF"[..], &(body.len() as u32 + 4).to_le_bytes(), b"WEBP", &body].concat()
    }

    fn lossy(width: u16, height: u16) -> Vec<u8> {
        [&[0x10, 0, 0, 0x9d, 0x01, 0x2a][..], &width.to_le_bytes(), &height.to_le_bytes(), &[0; 21]].concat()
    }

    #[test]
    fn frames_of_every_kind_are_measured() {
        let lossless = chunk(b"VP8L", &[0x2f, 0xe7, 0x40, 0x02, 0x00, 0]);
        assert_eq!(sizes(&file(std::slice::from_ref(&lossless))), [(232, 10)]);
        assert_eq!(
            sizes(&file(&[chunk(b"ICCP", b"odd"), chunk(b"VP8 ", &lossy(16383, 0xc005))])),
            [(16383, 5)]
        );
        let frame = [&[0; 16][..], &chunk(b"ALPH", b"x"), &chunk(b"VP8 ", &lossy(7, 8))].concat();
        let animation = file(&[chunk(b"VP8X", &[2; 10]), chunk(b"ANMF", &frame), chunk(b"ANMF", &[0; 9])]);
        assert_eq!(sizes(&animation), [(7, 8)]);
    }

    #[test]
    fn cut_and_lying_files_are_followed_as_far_as_they_go() {
        let whole = file(&[chunk(b"VP8 ", &lossy(7, 8))]);
        for end in 0..whole.len() {
            assert!(sizes(&whole[..end]).len() <= 1);
        }
        let mut endless = whole.clone();
        endless[16..20].fill(0xff);
        assert_eq!(sizes(&endless), [(7, 8)]);
    }

    #[test]
    fn a_frame_larger_than_its_canvas_is_refused_before_it_is_decoded() {
        let canvas = chunk(b"VP8X", &[0, 0, 0, 0, 23, 0, 0, 23, 0, 0]);
        let bomb = file(&[canvas, chunk(b"VP8 ", &lossy(16383, 16383))]);
        let error = decode(&bomb, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.reason(), "image-too-large", "{error}");
    }

    #[test]
    fn files_of_the_encoder_state_their_size() {
        let image = crate::RgbImage::new(40, 30, vec![9; 40 * 30 * 3]).unwrap();
        assert_eq!(sizes(&encode_webp(&image)), [(40, 30)]);
    }
}
