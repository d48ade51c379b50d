//! What the golden tests share: reading lines, digests, and the images that the scripts make too.

use std::path::{Path, PathBuf};

use oqvl_image_prep::{Layout, Raster};
use sha2::{Digest as _, Sha256};

/// The fields of the lines of one kind.
pub(crate) fn lines<'a>(goldens: &'a str, kind: &str) -> Vec<Vec<&'a str>> {
    let fields = goldens.lines().map(|line| line.split(' ').collect());
    let found: Vec<Vec<&str>> = fields.filter(|fields: &Vec<&str>| fields[0] == kind).collect();
    assert!(!found.is_empty(), "no `{kind}` lines");
    found.into_iter().map(|fields| fields[1..].to_vec()).collect()
}

/// The first 16 hexadecimal digits of the SHA-256.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A field that is a number.
pub(crate) fn number(field: &str) -> u32 {
    field.parse().unwrap()
}

/// A field that is a number of channels.
pub(crate) fn layout(channels: &str) -> Layout {
    match channels {
        "1" => Layout::Gray,
        "3" => Layout::Rgb,
        other => panic!("{other} channels"),
    }
}

/// Bytes from a hash of their place, as `fixtures/patterns.py` makes them.
pub(crate) fn pattern(name: &str, width: u32, height: u32, layout: Layout) -> Raster {
    let channels = layout.num_channels() as u64;
    let noise = |place: u64| {
        let mixed = (place + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed >> 56
    };
    let (columns, rows) = (u64::from(width), u64::from(height));
    let pixels = (0..columns * rows * channels).map(|place| match name {
        "noise" => noise(place) as u8,
        "edges" => {
            if noise(place) < 128 {
                0
            } else {
                255
            }
        }
        "soft" => {
            let pixel = place / channels;
            ((pixel % columns) * 200 / columns + (pixel / columns) * 40 / rows + noise(place) % 16) as u8
        }
        other => panic!("unknown pattern {other}"),
    });
    Raster::new(width, height, layout, pixels.collect()).unwrap()
}

/// Fails with all differences.
pub(crate) fn report(what: &str, num_cases: usize, differences: &[String]) {
    let num_different = differences.len();
    assert!(
        differences.is_empty(),
        "{what}: {num_different} of {num_cases} differ:\n{}",
        differences.join("\n")
    );
}

/// The folder of real images; `None`, and a word about it, if it is not there.
pub(crate) fn shared_data() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    if !root.is_dir() {
        eprintln!("skipped: {} is not there", root.display());
        return None;
    }
    Some(root)
}
