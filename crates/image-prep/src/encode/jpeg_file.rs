//! JPEG files as libjpeg-turbo writes them: standard Huffman tables, 4:2:0 colour, JFIF header.

use mozjpeg::{ColorSpace, Compress, qtable};

use crate::shrink_jpeg::Ycbcr420;
use crate::{Layout, RasterRef};

/// `quality` from 1 to 100; sides up to 65,500.
pub(super) fn encode(image: RasterRef<'_>, quality: u8) -> Vec<u8> {
    let colors = match image.layout {
        Layout::Gray => ColorSpace::JCS_GRAYSCALE,
        Layout::Rgb => ColorSpace::JCS_RGB,
    };
    encoder(colors, image.width, image.height, quality)
        .start_compress(Vec::new())
        .and_then(|mut file| {
            file.write_scanlines(image.pixels)?;
            file.finish()
        })
        .expect(WRITTEN)
}

/// As [`encode`]. Planes are padded to whole blocks, two rows of them where brightness has two for one of colour.
pub(super) fn encode_planes(image: &Ycbcr420, quality: u8) -> Vec<u8> {
    let mut encoder = encoder(ColorSpace::JCS_YCbCr, image.width, image.height, quality);
    encoder.set_raw_data_in(true);
    encoder
        .start_compress(Vec::new())
        .and_then(|mut file| {
            let [y, cb, cr] = &image.planes;
            file.write_raw_data(&[&y.samples, &cb.samples, &cr.samples]);
            file.finish()
        })
        .expect(WRITTEN)
}

const WRITTEN: &str = "an image with valid sides is written to memory";

fn encoder(colors: ColorSpace, width: u32, height: u32, quality: u8) -> Compress {
    let mut encoder = Compress::new(colors);
    // Without this it is mozjpeg's own encoder: smaller files for several times the work.
    encoder.set_fastest_defaults();
    encoder.set_size(width as usize, height as usize);
    encoder.set_quality(quality.into());
    if quality < FIRST_QUALITY_OF_BYTES {
        let quality = quality_of_table(quality);
        encoder.set_luma_qtable(&qtable::AnnexK_Luma.scaled(quality, quality));
        encoder.set_chroma_qtable(&qtable::AnnexK_Chroma.scaled(quality, quality));
    }
    encoder
}

/// The lowest quality at which every entry of the quantisation tables fits into a byte. Below, Pillow and OpenCV cut
/// entries at 255, so that any reader understands the file; the wrapper of libjpeg cannot be told to.
const FIRST_QUALITY_OF_BYTES: u8 = 25;

/// What [`qtable::QTable::scaled`] must be told for the table that libjpeg has at `quality` below 50. libjpeg works in
/// whole per cent of the standard table, rounded down; the tiny excess makes that halves still round up in 32-bit
/// floating point, as they do in libjpeg's integers.
fn quality_of_table(quality: u8) -> f32 {
    let percent = 5000 / u32::from(quality);
    5000.0 / (percent as f32 * (1.0 + 1e-6))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The entries of the file's quantisation tables.
    fn tables(file: &[u8]) -> Vec<Vec<u8>> {
        let is_table = |at: &usize| file[*at..].starts_with(&[0xff, 0xdb, 0, 67]);
        (0..file.len()).filter(is_table).map(|at| file[at + 5..at + 69].to_vec()).collect()
    }

    #[test]
    fn low_qualities_have_tables_of_bytes() {
        let pixels = [3; 12];
        let image = RasterRef { width: 2, height: 2, layout: Layout::Rgb, pixels: &pixels };
        // 16, 17 and 99 are entries of the standard tables: the first of each and the last of the second.
        for quality in 1..50 {
            let expected =
                |entry: u32| ((entry * (5000 / u32::from(quality)) + 50) / 100).clamp(1, 255) as u8;
            let found = tables(&encode(image, quality));
            assert_eq!(found.len(), 2, "quality {quality}");
            assert_eq!((found[0][0], found[1][0], found[1][63]), (expected(16), expected(17), expected(99)));
            // The whole second row of the standard luminance table, in zigzag order: 11 12 14 12 10 16 …
            let zigzag = [
                16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35,
                37,
            ];
            assert_eq!(found[0][..24], zigzag.map(expected), "quality {quality}");
        }
    }
}
