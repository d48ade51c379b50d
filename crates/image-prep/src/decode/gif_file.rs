//! GIF files. Read with the `gif` crate itself, because what is shown where the first frame leaves the canvas uncovered
//! (a palette colour, to Pillow another one than to OpenCV) needs the palette.

use gif::{ColorOutput, DecodeOptions, Decoder, DecodingError, Frame, MemoryLimit};

use super::{Channels, DecodeLimits, Reader, Samples, Size, truncated_or_corrupt};
use crate::{DecodeError, ImageFormat};

const FORMAT: ImageFormat = ImageFormat::Gif;

pub(super) fn probe(bytes: &[u8]) -> Result<Size, DecodeError> {
    let mut decoder = open(bytes)?;
    let screen = screen_size(&decoder);
    let frame = first_frame(&mut decoder)?;
    Ok(canvas_size(screen, &frame))
}

pub(super) fn decode(bytes: &[u8], limits: &DecodeLimits, reader: Reader) -> Result<Samples, DecodeError> {
    let mut decoder = open(bytes)?;
    let screen = screen_size(&decoder);
    limits.check(FORMAT, screen, 1)?;
    let frame = first_frame(&mut decoder)?;
    let size = canvas_size(screen, &frame);
    let channels = if frame.transparent.is_some() { Channels::Rgba } else { Channels::Rgb };
    limits.check(FORMAT, size, if frame.transparent.is_some() { 4 } else { 3 })?;

    let mut frame_indices = vec![0; usize::from(frame.width) * usize::from(frame.height)];
    decoder.read_into_buffer(&mut frame_indices).map_err(to_decode_error)?;
    let palette = frame.palette.as_deref().or(decoder.global_palette()).unwrap_or_default();

    // Pillow fills the canvas with the transparent index, or 0, and draws the first frame over it; OpenCV fills it with
    // the background colour.
    let uncovered = match reader {
        Reader::Pillow => frame.transparent.unwrap_or(0),
        Reader::OpenCv => {
            frame.transparent.or_else(|| decoder.bg_color().and_then(|idx| idx.try_into().ok())).unwrap_or(0)
        }
    };
    let width = size.width as usize;
    let mut indices = vec![uncovered; width * size.height as usize];
    let frame_width = usize::from(frame.width);
    if frame_width > 0 {
        let rows = indices.chunks_exact_mut(width).skip(usize::from(frame.top));
        for (row, frame_row) in rows.zip(frame_indices.chunks_exact(frame_width)) {
            row[usize::from(frame.left)..][..frame_width].copy_from_slice(frame_row);
        }
    }
    let colors: [[u8; 3]; 256] = std::array::from_fn(|idx| color(palette, idx as u8));
    let samples = match frame.transparent {
        None => indices.iter().flat_map(|&idx| colors[usize::from(idx)]).collect(),
        Some(transparent) => indices
            .iter()
            .flat_map(|&idx| {
                let [red, green, blue] = colors[usize::from(idx)];
                [red, green, blue, if idx == transparent { 0 } else { 255 }]
            })
            .collect(),
    };
    Ok(Samples { size, channels, samples })
}

/// The palette's colour; an index beyond it is a shade of gray, which is what Pillow's palettes are before they are
/// filled.
fn color(palette: &[u8], index: u8) -> [u8; 3] {
    match palette.get(usize::from(index) * 3..).and_then(|rest| rest.first_chunk()) {
        Some(&color) => color,
        None => [index; 3],
    }
}

fn open(bytes: &[u8]) -> Result<Decoder<&[u8]>, DecodeError> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    // Pixels go to our own buffer, whose size is checked; the decoder's own memory is small.
    options.set_memory_limit(MemoryLimit::Unlimited);
    options.read_info(bytes).map_err(to_decode_error)
}

fn screen_size(decoder: &Decoder<&[u8]>) -> Size {
    Size { width: decoder.width().into(), height: decoder.height().into() }
}

fn first_frame(decoder: &mut Decoder<&[u8]>) -> Result<Frame<'static>, DecodeError> {
    let frame = decoder.next_frame_info().map_err(to_decode_error)?;
    frame.cloned().ok_or(DecodeError::Truncated { format: FORMAT })
}

/// A first frame that sticks out makes the canvas larger, as in Pillow.
fn canvas_size(screen: Size, frame: &Frame<'_>) -> Size {
    let right = u32::from(frame.left) + u32::from(frame.width);
    let bottom = u32::from(frame.top) + u32::from(frame.height);
    Size { width: screen.width.max(right), height: screen.height.max(bottom) }
}

fn to_decode_error(error: DecodingError) -> DecodeError {
    truncated_or_corrupt(FORMAT, error)
}
