//! The image entry: `decode`, `decode_on_white`, `probe` and the EXIF tags of any bytes.

use super::{Fixup, Target, seed_files};
use oqvl_image_prep::{
    DecodeLimits, RgbImage, decode, decode_on_white, draft_on_white, encode_jpeg, encode_png, encode_webp,
    exif_orientation, exif_tags, probe, shrink_jpeg,
};

pub(super) const TARGET: Target = Target {
    name: "image",
    run,
    seeds,
    words: &[
        b"\xff\xd8\xff\xe0",
        b"\xff\xda",
        b"\xff\xc0",
        b"\xff\xc2",
        b"\xff\xc4",
        b"\xff\xdb",
        b"\xff\xdd",
        b"\xff\xd9",
        b"Exif\0\0II*\0",
        b"Adobe",
        b"\x89PNG\r\n\x1a\n",
        b"IHDR",
        b"IDAT",
        b"PLTE",
        b"tRNS",
        b"acTL",
        b"IEND",
        b"GIF89a",
        b"RIFF",
        b"WEBPVP8 ",
        b"VP8L",
        b"VP8X",
        b"BM",
        b"II*\0",
        b"MM\0*",
    ],
    fixup: Fixup(mend_png),
    // The limits below, the image itself, and working memory of decoders of up to twice that.
    memory_bound: |length| 32 * length + (64 << 20),
};

/// Small enough that a lying header cannot make an input slow.
const LIMITS: DecodeLimits =
    DecodeLimits { max_width: 4096, max_height: 4096, max_pixels: 1 << 20, max_alloc_bytes: 8 << 20 };

fn run(input: &[u8]) -> String {
    exif_orientation(input);
    exif_tags(input);
    check_matted(input);
    check_quick(input);
    let header = probe(input);
    if let Err(error) = &header {
        assert_ne!(error.reason(), "decoder-panicked", "{error}");
    }
    match decode(input, &LIMITS) {
        Ok(image) => {
            let (format, width, height) = header.expect("what decodes can be probed");
            assert_eq!((image.width(), image.height()), (width, height), "probe and decode disagree");
            assert!(u64::from(width) * u64::from(height) <= LIMITS.max_pixels, "over the limit");
            assert_eq!(
                decode(input, &LIMITS).expect("it did before"),
                image,
                "decoded otherwise the second time"
            );
            let again = decode(&encode_png(&image), &LIMITS).expect("we wrote it");
            assert_eq!(again, image, "a lossless copy differs");
            format!("an image, {format}")
        }
        Err(error) => {
            assert_ne!(error.reason(), "decoder-panicked", "{error}");
            let text: String = error.to_string().chars().take(80).collect();
            format!("{}: {text}", error.reason())
        }
    }
}

/// The downloader's view of the file is of the same size, or an error too.
fn check_matted(input: &[u8]) {
    match decode_on_white(input, &LIMITS) {
        Ok(matted) => {
            let (_, width, height) = probe(input).expect("what decodes can be probed");
            assert_eq!(
                (matted.raster.width(), matted.raster.height()),
                (width, height),
                "the two decoders disagree"
            );
        }
        Err(error) => assert_ne!(error.reason(), "decoder-panicked", "{error}"),
    }
}

/// So are the quick ways to a smaller image, and they give the sizes that were asked for.
fn check_quick(input: &[u8]) {
    let Ok((_, width, height)) = probe(input) else { return };
    let (width, height) = (width.div_ceil(3), height.div_ceil(2));
    match draft_on_white(input, &LIMITS, width, height) {
        Ok(draft) => {
            assert!(draft.raster.width() >= width && draft.raster.height() >= height, "a draft too small")
        }
        Err(error) => assert_ne!(error.reason(), "decoder-panicked", "{error}"),
    }
    let (width, height) = (width * 2, height * 2 - 1);
    match shrink_jpeg(input, &LIMITS, width, height, 90) {
        Ok(None) => {}
        Ok(Some(file)) => {
            let (_, new_width, new_height) = probe(&file).expect("we wrote it");
            assert_eq!((new_width, new_height), (width, height), "another size than asked for");
        }
        Err(error) => assert_ne!(error.reason(), "decoder-panicked", "{error}"),
    }
}

/// Writes the right CRC into every chunk of a PNG file.
fn mend_png(input: &mut [u8]) {
    let mut at = 8;
    while input.starts_with(b"\x89PNG") && at + 12 <= input.len() {
        let length = u32::from_be_bytes(input[at..at + 4].try_into().expect("four bytes")) as usize;
        let Some(end) = length.checked_add(at + 8).filter(|end| *end <= input.len() - 4) else { return };
        let crc = crc32fast::hash(&input[at + 4..end]);
        input[end..end + 4].copy_from_slice(&crc.to_be_bytes());
        at = end + 4;
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let pixels = (0..20 * 14 * 3).map(|i| (i * 31 % 251) as u8).collect();
    let image = RgbImage::new(20, 14, pixels).expect("as many pixels as its sides say");
    let mut seeds = vec![encode_jpeg(&image, 80), encode_png(&image), encode_webp(&image), Vec::new()];
    seeds.extend(seed_files!(
        "image/progressive.jpg",
        "image/cmyk.jpg",
        "image/gray_exif.jpg",
        "image/palette_alpha.png",
        "image/gray16.png",
        "image/animated.gif",
        "image/lossy_alpha.webp",
        "image/animated.webp",
        "image/rle.bmp",
        "image/lzw.tiff",
        "image/deflate16.tiff",
    ));
    seeds
}
