//! A JPEG file made from a larger one without a detour through RGB: brightness and the two colour differences, which have
//! a quarter of its samples, are decoded, made smaller and encoded each by itself. That is half of the samples, and
//! neither colours nor sampling are converted.

use crate::interpolation::shrink_plane;
use crate::{DecodeError, DecodeLimits, decode, encode};

/// Samples of one kind, in rows.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Bytes from row to row; what lies between them beyond `width` is padding, as are rows beyond `height`.
    pub(crate) stride: usize,
    pub(crate) samples: Vec<u8>,
}

/// An image with one sample of the colour differences for two by two pixels, as most JPEG files have it ("4:2:0").
#[derive(Debug)]
pub(crate) struct Ycbcr420 {
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// Brightness, blue difference, red difference.
    pub(crate) planes: [Plane; 3],
}

impl Ycbcr420 {
    /// Pixels that one sample of each plane stands for in either direction.
    pub(crate) const STEPS: [u32; 3] = [1, 2, 2];
}

/// The JPEG file in `bytes` as one of `width` by `height` pixels, of which it has no fewer in either direction, at
/// `quality` from 1 to 100. Nothing if it is not a JPEG file of YCbCr colours with 4:2:0 sampling, or if libjpeg can decode
/// it at half its size: then [`crate::draft_on_white`] is the quicker way.
///
/// Pixels are means of the area they cover, as for [`crate::Interpolation::Fast`].
///
/// # Errors
/// As [`crate::decode`].
///
/// # Panics
/// If a side or `quality` is 0, or `quality` over 100.
pub fn shrink_jpeg(
    bytes: &[u8],
    limits: &DecodeLimits,
    width: u32,
    height: u32,
    quality: u8,
) -> Result<Option<Vec<u8>>, DecodeError> {
    assert!(
        width > 0 && height > 0 && (1..=100).contains(&quality),
        "{width} x {height} at quality {quality}"
    );
    let Some(source) = decode::jpeg_planes(bytes, limits, width, height)? else {
        return Ok(None);
    };
    let scales =
        [(source.width, width), (source.height, height)].map(|(from, to)| f64::from(from) / f64::from(to));
    let planes = std::array::from_fn(|idx| {
        let [width, height] = [width, height].map(|side| side.div_ceil(Ycbcr420::STEPS[idx]));
        shrink_plane(&source.planes[idx], width, height, scales)
    });
    Ok(Some(encode::jpeg_planes(&Ycbcr420 { width, height, planes }, quality)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Interpolation, Layout, Raster, RgbImage, decode_on_white, draft_on_white, encode_jpeg, resize_opencv,
    };
    use proptest::prelude::*;

    const LIMITS: DecodeLimits = crate::DEFAULT_DECODE_LIMITS;

    /// Smooth, so that little is lost by coding: what differs afterwards was moved or mistaken.
    fn shaded(width: u32, height: u32) -> RgbImage {
        let wave =
            |at: u32, side: u32, turns: f64| (6.3 * turns * f64::from(at) / f64::from(side)).sin() * 50.0;
        let pixels = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| {
                let (across, down) = (wave(x, width.max(60), 1.3), wave(y, height.max(60), 0.8));
                [128.0 + across + down, 128.0 - across, 110.0 + down].map(|level| level as u8)
            })
            .collect();
        RgbImage::new(width, height, pixels).unwrap()
    }

    fn decoded(file: &[u8]) -> Raster {
        decode_on_white(file, &LIMITS).unwrap().raster
    }

    fn largest_difference(found: &Raster, expected: &Raster) -> u8 {
        assert_eq!((found.width(), found.height()), (expected.width(), expected.height()));
        found.pixels().iter().zip(expected.pixels()).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
    }

    #[test]
    fn only_for_files_it_is_the_quickest_way_for() {
        let file = encode_jpeg(&shaded(64, 48), 90);
        let shrunk =
            |file: &[u8], width, height| shrink_jpeg(file, &LIMITS, width, height, 90).unwrap().is_some();
        assert!(shrunk(&file, 33, 24) && shrunk(&file, 32, 25) && shrunk(&file, 64, 48));
        assert!(!shrunk(&file, 32, 24), "libjpeg decodes the half");
        assert!(!shrunk(&file, 65, 48) && !shrunk(&file, 64, 49), "not smaller");
        let gray = Raster::new(64, 48, Layout::Gray, vec![7; 64 * 48]).unwrap();
        assert!(!shrunk(&encode_jpeg(&gray, 90), 40, 30));
        assert!(!shrunk(&crate::encode_png(&gray), 40, 30) && !shrunk(b"", 40, 30));
        // Another sampling, as the frame header would have it: 4:2:2.
        let frame = file.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        let mut other = file.clone();
        other[frame + 11] = 0x21;
        assert!(!shrunk(&other, 40, 30));
    }

    #[test]
    fn broken_files_have_reasons() {
        let file = encode_jpeg(&shaded(64, 48), 90);
        let reason =
            |file: &[u8], limits: &DecodeLimits| shrink_jpeg(file, limits, 40, 30, 90).unwrap_err().reason();
        assert_eq!(reason(&file[..file.len() / 2], &LIMITS), "truncated-image");
        assert_eq!(reason(&file[..file.len() - 1], &LIMITS), "truncated-image");
        assert_eq!(reason(&file, &DecodeLimits { max_pixels: 64 * 48 - 1, ..LIMITS }), "image-too-large");
        for position in 0..file.len() {
            let mut file = file.clone();
            file[position] = file[position].wrapping_add(101);
            for result in
                [shrink_jpeg(&file, &LIMITS, 40, 30, 90).err(), draft_on_white(&file, &LIMITS, 20, 9).err()]
            {
                assert!(result.is_none_or(|error| error.reason() != "decoder-panicked"), "byte {position}");
            }
        }
    }

    proptest! {
        /// Every shape, those with half blocks and half colour samples too: nothing moves, nothing has another colour.
        #[test]
        fn as_by_way_of_rgb(
            width in 1u32..120, height in 1u32..120, across in 0.5f64..1.0, down in 0.5f64..1.0,
        ) {
            let file = encode_jpeg(&shaded(width, height), 98);
            let [new_width, new_height] =
                [(width, across), (height, down)].map(|(side, by)| (f64::from(side) * by).ceil() as u32);
            let Some(shrunk) = shrink_jpeg(&file, &LIMITS, new_width, new_height, 98).unwrap() else { return Ok(()) };
            let area = resize_opencv(&decoded(&file), new_width, new_height, Interpolation::Area);
            let difference = largest_difference(&decoded(&shrunk), &area);
            prop_assert!(difference <= 16, "{} x {} to {} x {}: {}", width, height, new_width, new_height, difference);
        }

        #[test]
        fn drafts_hold_what_is_asked(width in 1u32..200, height in 1u32..200, to_width in 1u32..200, to_height in 1u32..200) {
            let image = shaded(width, height);
            let (to_width, to_height) = (to_width.min(width), to_height.min(height));
            let draft = draft_on_white(&encode_jpeg(&image, 98), &LIMITS, to_width, to_height).unwrap().raster;
            prop_assert!(draft.width() >= to_width && draft.height() >= to_height);
            let can_halve = width.div_ceil(2) >= to_width && height.div_ceil(2) >= to_height;
            prop_assert_eq!(draft.width() == width && draft.height() == height, !can_halve || (width == 1 && height == 1));
            let exact = draft_on_white(&crate::encode_png(&image), &LIMITS, to_width, to_height).unwrap().raster;
            prop_assert_eq!(exact.pixels(), image.pixels(), "other formats come whole");
        }
    }
}
