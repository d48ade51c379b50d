//! Resizing, normalising and decoding against recorded results of Pillow: `fixtures/pillow_goldens.txt`, whose header
//! names the script and the versions. Equality is exact.

use oqvl_image_prep::{DecodeLimits, Filter, RgbImage, decode, pixel_values, probe, resize};

fn golden_lines(kind: &str) -> Vec<Vec<&'static str>> {
    let lines = include_str!("fixtures/pillow_goldens.txt").lines();
    let lines: Vec<Vec<&str>> =
        lines.map(|line| line.split(' ').collect()).filter(|f: &Vec<&str>| f[0] == kind).collect();
    assert!(!lines.is_empty(), "no `{kind}` lines");
    lines
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

fn rgb(width: &str, height: &str, hex: &str) -> RgbImage {
    RgbImage::new(width.parse().unwrap(), height.parse().unwrap(), bytes(hex)).unwrap()
}

#[test]
fn resize_is_bit_exact() {
    for fields in golden_lines("resize") {
        let [_, filter, width, height, to_width, to_height, source, resized] = fields[..] else { panic!() };
        let filter = match filter {
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("unknown filter {other}"),
        };
        let source = rgb(width, height, source);
        let expected = rgb(to_width, to_height, resized);
        let found = resize(&source, expected.width(), expected.height(), filter);
        assert_eq!(found.pixels(), expected.pixels(), "{filter:?}: {source:?} to {expected:?}");
    }
}

#[test]
fn pixel_values_are_bit_exact() {
    let values = bytes(golden_lines("pixel-values")[0][1]);
    let expected: Vec<f32> =
        values.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let levels = RgbImage::new(16, 16, (0..=255).flat_map(|level| [level; 3]).collect()).unwrap();
    assert_eq!(pixel_values(&levels, 16), [&expected[..], &expected, &expected].concat());
}

#[test]
fn decoding_is_convert_rgb() {
    for fields in golden_lines("decode") {
        let [_, name, file, width, height, expected] = fields[..] else { panic!() };
        let (file, expected) = (bytes(file), rgb(width, height, expected));
        let found = decode(&file, &DecodeLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!((found.width(), found.height()), (expected.width(), expected.height()), "{name}");
        assert_eq!(found.pixels(), expected.pixels(), "{name}");
        let (_, probed_width, probed_height) = probe(&file).unwrap();
        assert_eq!((probed_width, probed_height), (found.width(), found.height()), "{name}");
    }
}
