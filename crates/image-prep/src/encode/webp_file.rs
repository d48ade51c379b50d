//! WebP files, written by libwebp.

use std::borrow::Cow;

use crate::raster::gray_to_rgb;
use crate::{Layout, RasterRef};

/// `quality` from 0 to 100; sides up to 16,383.
pub(super) fn encode_lossy(image: RasterRef<'_>, quality: u8) -> Vec<u8> {
    with_encoder(image, |encoder| encoder.encode(quality.into()))
}

/// Sides up to 16,383.
pub(super) fn encode_lossless(image: RasterRef<'_>) -> Vec<u8> {
    with_encoder(image, |encoder| encoder.encode_lossless())
}

fn with_encoder(image: RasterRef<'_>, encode: impl FnOnce(webp::Encoder<'_>) -> webp::WebPMemory) -> Vec<u8> {
    let pixels: Cow<'_, [u8]> = match image.layout {
        Layout::Gray => gray_to_rgb(image.pixels).into(),
        Layout::Rgb => image.pixels.into(),
    };
    encode(webp::Encoder::from_rgb(&pixels, image.width, image.height)).to_vec()
}
