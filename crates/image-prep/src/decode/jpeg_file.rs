//! JPEG files, read by libjpeg-turbo's decoder (in mozjpeg's copy of it), so that pixels equal Pillow's and OpenCV's.
//!
//! libjpeg reports errors by unwinding out of its C code. That is caught here: a broken file is an error like any other
//! and prints nothing.

use std::cell::Cell;
use std::io::{self, BufRead, Read};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use mozjpeg::{ColorSpace, CompInfoExt, DctMethod, Decompress};

use super::{Channels, DecodeLimits, Samples, Size};
use crate::shrink_jpeg::{Plane, Ycbcr420};
use crate::{DecodeError, ImageFormat};

const FORMAT: ImageFormat = ImageFormat::Jpeg;

/// Scans that a file may have whatever its size. Encoders write about ten; one for each bit of each coefficient of each
/// component would be some thousands.
const MAX_FREE_SCANS: usize = 64;

/// Number of scans times number of pixels that a file of more scans may have: a few seconds of work. A scan costs time
/// for every pixel even if it holds a dozen bytes, so that a small file could keep a decoder busy for hours.
const MAX_SCAN_PIXELS: u64 = 1 << 28;

pub(super) fn probe(bytes: &[u8]) -> Result<Size, DecodeError> {
    with_libjpeg(bytes, |file| Ok(size_of(&Decompress::new_reader(file)?)))
}

/// All pixels; or, if a size is given that they will be brought down to, quickly some that are no fewer.
pub(super) fn decode(
    bytes: &[u8],
    limits: &DecodeLimits,
    least: Option<Size>,
) -> Result<Samples, DecodeError> {
    with_libjpeg(bytes, |file| {
        let mut file = Decompress::new_reader(file)?;
        let size = size_of(&file);
        let (channels, output) = match file.color_space() {
            ColorSpace::JCS_GRAYSCALE => (Channels::Gray, ColorSpace::JCS_GRAYSCALE),
            ColorSpace::JCS_YCbCr | ColorSpace::JCS_RGB => (Channels::Rgb, ColorSpace::JCS_RGB),
            ColorSpace::JCS_CMYK | ColorSpace::JCS_YCCK => (Channels::InvertedCmyk, ColorSpace::JCS_CMYK),
            _ => {
                let source = format!("{} colour components", file.components().len()).into();
                return Err(DecodeError::Unsupported { format: FORMAT, source }.into());
            }
        };
        check(bytes, limits, size, file.components().len() as u64)?;
        if let Some(least) = least {
            file.scale(eighths(size, least));
            file.dct_method(DctMethod::IntegerFast);
            file.do_fancy_upsampling(false);
        }
        let mut file = file.to_colorspace(output)?;
        let size = Size { width: file.width() as u32, height: file.height() as u32 };
        let samples = file.read_scanlines::<u8>()?;
        Ok(Samples { size, channels, samples })
    })
}

/// The three planes of an image that libjpeg cannot decode at a fraction of its size and still hold `least`; nothing for
/// any other file.
pub(super) fn decode_planes(
    bytes: &[u8],
    limits: &DecodeLimits,
    least: Size,
) -> Result<Option<Ycbcr420>, DecodeError> {
    with_libjpeg(bytes, |file| {
        let mut file = Decompress::new_reader(file)?;
        let size = size_of(&file);
        let sampling: Vec<_> = file.components().iter().map(CompInfoExt::sampling).collect();
        let is_suitable = file.color_space() == ColorSpace::JCS_YCbCr
            && sampling == [(2, 2), (1, 1), (1, 1)]
            && size.width >= least.width
            && size.height >= least.height
            && eighths(size, least) == 8;
        if !is_suitable {
            return Ok(None);
        }
        check(bytes, limits, size, 3)?;
        let Size { width, height } = size;
        // libjpeg decodes whole blocks, two rows of them at a time where brightness has two for one of colour.
        let mut planes = Ycbcr420::STEPS.map(|step| {
            let [width, height] = [width, height].map(|side| side.div_ceil(step));
            let stride = width.next_multiple_of(8) as usize;
            let num_rows = height.next_multiple_of(16 / step) as usize;
            Plane { width, height, stride, samples: Vec::with_capacity(stride * num_rows) }
        });
        file.dct_method(DctMethod::IntegerFast);
        let [y, cb, cr] = &mut planes;
        file.raw()?.read_raw_data(&mut [&mut y.samples, &mut cb.samples, &mut cr.samples]);
        Ok(Some(Ycbcr420 { width, height, planes }))
    })
}

/// Eighths of its sides that an image can be decoded to and still hold `least`. Only the powers of two are quicker than
/// the whole: for those there are vector instructions.
fn eighths(size: Size, least: Size) -> u8 {
    let holds = |&eighths: &u8| {
        let scaled = |side: u32| (side * u32::from(eighths)).div_ceil(8);
        scaled(size.width) >= least.width && scaled(size.height) >= least.height
    };
    [1, 2, 4].into_iter().find(holds).unwrap_or(8)
}

fn size_of<R>(file: &Decompress<R>) -> Size {
    // libjpeg refuses sides over 65,500.
    Size { width: file.width() as u32, height: file.height() as u32 }
}

/// Refuses files that are too large, or take too long.
fn check(bytes: &[u8], limits: &DecodeLimits, size: Size, bytes_per_pixel: u64) -> Result<(), DecodeError> {
    limits.check(FORMAT, size, bytes_per_pixel)?;
    check_scans(bytes, size)
}

/// Refuses files with far more scans than any encoder writes.
fn check_scans(bytes: &[u8], size: Size) -> Result<(), DecodeError> {
    const START_OF_SCAN: u8 = 0xda;
    let num_scans =
        memchr::memchr_iter(0xff, bytes).filter(|&at| bytes.get(at + 1) == Some(&START_OF_SCAN)).count();
    let Size { width, height } = size;
    let scan_pixels = (num_scans as u64).saturating_mul(u64::from(width) * u64::from(height));
    if num_scans > MAX_FREE_SCANS && scan_pixels > MAX_SCAN_PIXELS {
        let limit = format!("{MAX_FREE_SCANS} scans, with {num_scans} of them");
        return Err(DecodeError::TooLarge { format: FORMAT, width, height, limit });
    }
    Ok(())
}

/// What can end the reading of a file from inside [`with_libjpeg`].
enum Stop {
    /// The wrapper of libjpeg, or the [`Input`], ran out of bytes or found no image.
    Io(io::Error),
    Refused(DecodeError),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<DecodeError> for Stop {
    fn from(error: DecodeError) -> Self {
        Self::Refused(error)
    }
}

/// Runs `read` over a file and sorts what goes wrong.
fn with_libjpeg<T>(bytes: &[u8], read: impl FnOnce(Input<'_>) -> Result<T, Stop>) -> Result<T, DecodeError> {
    /// What `mozjpeg` puts before the message of libjpeg that it unwinds with.
    const MESSAGE_PREFIX: &str = "libjpeg fatal error: ";

    let ended = Cell::new(false);
    let input = Input { rest: bytes, ended: &ended };
    // Nothing outlives the unwinding but the cell, which holds a plain flag.
    let stop = match catch_unwind(AssertUnwindSafe(|| read(input))) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(Stop::Refused(error))) => return Err(error),
        Ok(Err(Stop::Io(error))) => error.to_string(),
        Err(payload) => {
            match payload.downcast_ref::<String>().and_then(|text| text.strip_prefix(MESSAGE_PREFIX)) {
                Some(message) => message.to_owned(),
                None => resume_unwind(payload),
            }
        }
    };
    if ended.get() {
        return Err(DecodeError::Truncated { format: FORMAT });
    }
    let is_unsupported =
        ["Unsupported", "Sorry", "Maximum supported"].iter().any(|start| stop.starts_with(start));
    let source = stop.into();
    Err(if is_unsupported {
        DecodeError::Unsupported { format: FORMAT, source }
    } else {
        DecodeError::Corrupt { format: FORMAT, source }
    })
}

/// The file's bytes. Asking for more than there are is an error, which ends the decoding: libjpeg itself would fill up
/// with gray and report success.
struct Input<'a> {
    rest: &'a [u8],
    ended: &'a Cell<bool>,
}

impl BufRead for Input<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() {
            self.ended.set(true);
            // Not `UnexpectedEof`: for that the wrapper makes up an end-of-image marker.
            return Err(io::Error::other("the file ends before its image does"));
        }
        Ok(self.rest)
    }

    fn consume(&mut self, num_bytes: usize) {
        self.rest = &self.rest[num_bytes..];
    }
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let num_bytes = self.fill_buf()?.len().min(buffer.len());
        buffer[..num_bytes].copy_from_slice(&self.rest[..num_bytes]);
        self.consume(num_bytes);
        Ok(num_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, RgbImage, decode, encode_jpeg};

    fn noisy_file() -> Vec<u8> {
        let pixels = (0..32 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect();
        encode_jpeg(&RgbImage::new(32, 32, pixels).unwrap(), 90)
    }

    #[test]
    fn a_missing_end_is_truncation() {
        let file = noisy_file();
        let limits = DecodeLimits::default();
        let with_garbage = [&file[..], &[0; 100]].concat();
        assert_eq!(decode(&with_garbage, &limits).unwrap(), decode(&file, &limits).unwrap());
        for num_missing in [1, 2, 50, file.len() / 2, file.len() - 4] {
            let error = decode(&file[..file.len() - num_missing], &limits).unwrap_err();
            assert!(matches!(error, DecodeError::Truncated { .. }), "{num_missing} bytes missing: {error}");
        }
    }

    #[test]
    fn the_end_of_a_thumbnail_does_not_count() {
        let file = encode_jpeg(&RgbImage::new(8, 8, vec![90; 192]).unwrap(), 90);
        let thumbnail = [&[0xff, 0xe1, 0, 8][..], &[0xff, 0xd8, 0xff, 0xd9, 0, 0]].concat();
        let with_thumbnail = [&file[..2], &thumbnail, &file[2..]].concat();
        let limits = DecodeLimits::default();
        assert!(decode(&with_thumbnail, &limits).is_ok());
        assert!(decode(&with_thumbnail[..with_thumbnail.len() - 2], &limits).is_err());
    }

    #[test]
    fn what_libjpeg_says_is_the_cause() {
        let file = noisy_file();
        let frame = file.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        let broken = |offset: usize, value: u8| {
            let mut file = file.clone();
            file[frame + offset] = value;
            decode(&file, &DecodeLimits::default()).unwrap_err()
        };
        let cause = |error: &DecodeError| std::error::Error::source(error).unwrap().to_string();
        let lossless = broken(1, 0xc3);
        assert_eq!(
            (lossless.reason(), cause(&lossless).as_str()),
            ("unsupported-image", "Unsupported JPEG process: SOF type 0xc3")
        );
        let deep = broken(4, 12);
        assert_eq!(
            (deep.reason(), cause(&deep).as_str()),
            ("unsupported-image", "Unsupported JPEG data precision 12")
        );
        let sampling = broken(11, 0x55);
        assert_eq!(
            (sampling.reason(), cause(&sampling).as_str()),
            ("corrupt-image", "Bogus sampling factors")
        );
    }

    #[test]
    fn scan_bombs_are_refused() {
        // The scans need not be readable: they are counted before anything is decoded.
        let file = noisy_file();
        let mut bomb = file[..file.len() - 2].to_vec();
        let frame = bomb.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
        bomb[frame + 5..frame + 9].copy_from_slice(&[0x30, 0, 0x30, 0]); // 12,288 x 12,288
        bomb.extend([0xff, 0xda].repeat(MAX_FREE_SCANS));
        let error = decode(&bomb, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.reason(), "image-too-large");
        assert!(error.to_string().contains("scans"), "{error}");
    }
}
