//! PNG files.

use png::{BitDepth, ColorType, Compression, DeflateCompression, Encoder, Filter};

use crate::{Layout, RasterRef};

/// `level` from 0 to 9.
pub(super) fn encode(image: RasterRef<'_>, level: u8) -> Vec<u8> {
    let mut file = Vec::new();
    let mut encoder = Encoder::new(&mut file, image.width, image.height);
    encoder.set_depth(BitDepth::Eight);
    encoder.set_color(match image.layout {
        Layout::Gray => ColorType::Grayscale,
        Layout::Rgb => ColorType::Rgb,
    });
    encoder.set_compression(Compression::Balanced);
    encoder.set_deflate_compression(match level {
        0 => DeflateCompression::NoCompression,
        level => DeflateCompression::Level(level),
    });
    // Trying all filters for each row costs more than low levels are meant to.
    encoder.set_filter(if level < 4 { Filter::Sub } else { Filter::Adaptive });
    let written = encoder.write_header().and_then(|mut writer| {
        writer.write_image_data(image.pixels)?;
        writer.finish()
    });
    written.expect("an image with valid sides is written to memory");
    file
}
