//! Thousands of images against what Pillow and OpenCV made of them: `fixtures/image_goldens.txt` and
//! `fixtures/shared_goldens.txt`, whose headers name the script and the versions. The second lists the real images of the
//! shared data folder, which is not part of this repository: without it those tests say so and pass.

mod goldens;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use goldens::{digest, layout, lines, number, pattern, report, shared_data};
use oqvl_image_prep::{
    DecodeError, DecodeLimits, Encoding, Filter, ImageFormat, Interpolation, JPEG_SIMD, Layout, Raster,
    decode, decode_on_white, draft_on_white, encode, encode_jpeg, probe, resize, resize_opencv, shrink_jpeg,
};

const GENERATED: &str = include_str!("fixtures/image_goldens.txt");
const SHARED: &str = include_str!("fixtures/shared_goldens.txt");

/// The limit of the list of awkward files: its bombs are far above, its photographs far below.
const LIMITS: DecodeLimits =
    DecodeLimits { max_width: 65_535, max_height: 65_535, max_pixels: 400_000_000, max_alloc_bytes: 1 << 30 };

/// Damaged files whose coefficients are beyond their range. libjpeg's vector code cuts the sums off at their ends, its plain
/// code lets them wrap around, so that they look otherwise where it was built without SIMD.
const NEED_SIMD: [&str; 2] = ["noise-in-scan.jpg", "awkward/pillow_hopper_bad_exif.jpg"];

/// Whether this build cannot decode the file as Pillow's and OpenCV's wheels do, and a word about it.
fn needs_simd(name: &str) -> bool {
    let is_skipped = !JPEG_SIMD && NEED_SIMD.contains(&name);
    if is_skipped {
        eprintln!("skipped: {name}, because libjpeg was built without SIMD");
    }
    is_skipped
}

/// Where the files of a list lie; `None`, and a word about it, if they are not there.
fn root_of(goldens: &str) -> Option<PathBuf> {
    if goldens == GENERATED {
        return Some(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg"));
    }
    shared_data()
}

fn check_pillow_decode(goldens: &str, except: &[&str]) {
    let Some(root) = root_of(goldens) else { return };
    let mut differences = Vec::new();
    let decoded = lines(goldens, "pillow-decode");
    let resized: BTreeMap<&str, &str> =
        lines(goldens, "pillow-384").iter().map(|fields| (fields[0], fields[1])).collect();
    let num_cases = decoded.len();
    for fields in decoded {
        let name = fields[0];
        let found = decode(&std::fs::read(root.join(name)).unwrap(), &LIMITS);
        let difference = match (&fields[1..], &found) {
            (["error"], Err(_)) => None,
            ([width, height, expected], Ok(image)) => {
                let size = (image.width(), image.height());
                let small = resize(image, 384, 384, Filter::Bicubic);
                (size != (number(width), number(height)) || digest(image.pixels()) != *expected)
                    .then(|| format!("{image:?} has other pixels than {width} x {height} {expected}"))
                    .or_else(|| (digest(small.pixels()) != resized[name]).then(|| "resized".to_owned()))
            }
            (expected, found) => Some(format!("{expected:?}, {found:?}")),
        };
        let difference = difference.filter(|_| !except.contains(&name) && !needs_simd(name));
        differences.extend(difference.map(|text| format!("{name}: {text}")));
    }
    report("decode as Pillow", num_cases, &differences);
}

fn check_opencv_decode(goldens: &str) {
    let Some(root) = root_of(goldens) else { return };
    let mut differences = Vec::new();
    let decoded = lines(goldens, "opencv-decode");
    let num_cases = decoded.len();
    for fields in decoded {
        let name = fields[0];
        let file = std::fs::read(root.join(name)).unwrap();
        let found = decode_on_white(&file, &LIMITS).map(|image| image.raster);
        let difference = match (&fields[1..], &found) {
            (["error"], Err(_)) => None,
            ([channels, width, height, expected], Ok(raster)) => {
                let same = (raster.layout(), raster.width(), raster.height())
                    == (layout(channels), number(width), number(height))
                    && digest(raster.pixels()) == *expected;
                (!same).then(|| format!("{raster:?} is not {channels} {width} x {height} {expected}"))
            }
            (expected, found) => Some(format!("{expected:?}, {found:?}")),
        };
        differences.extend(difference.filter(|_| !needs_simd(name)).map(|text| format!("{name}: {text}")));
    }
    report("decode as OpenCV", num_cases, &differences);
}

#[test]
fn jpeg_files_decode_as_in_pillow() {
    check_pillow_decode(GENERATED, &[]);
}

#[test]
fn jpeg_files_decode_as_in_opencv() {
    check_opencv_decode(GENERATED);
}

#[test]
fn real_files_decode_and_resize_as_in_pillow() {
    // 16-bit gray, which Pillow cuts off at 255: it is white but for its darkest levels.
    check_pillow_decode(SHARED, &["awkward/image-rs_basi0g16.png"]);
}

#[test]
fn real_files_decode_as_in_opencv() {
    check_opencv_decode(SHARED);
}

/// What decodes can be probed, with the same size; what fails does so by a reason.
#[test]
fn probing_agrees_with_decoding() {
    for goldens in [GENERATED, SHARED] {
        let Some(root) = root_of(goldens) else { continue };
        for fields in lines(goldens, "pillow-decode") {
            let file = std::fs::read(root.join(fields[0])).unwrap();
            match decode(&file, &LIMITS) {
                Ok(image) => {
                    let (_, width, height) = probe(&file).unwrap();
                    assert_eq!((width, height), (image.width(), image.height()), "{}", fields[0]);
                }
                Err(error) => {
                    assert!(!matches!(error, DecodeError::DecoderPanicked { .. }), "{}", fields[0]);
                    let on_white = decode_on_white(&file, &LIMITS).unwrap_err();
                    assert_eq!(error.reason(), on_white.reason(), "{}", fields[0]);
                }
            }
        }
    }
}

#[test]
fn resize_equals_pillow() {
    let cases = lines(GENERATED, "pillow-resize");
    let num_cases = cases.len();
    assert!(num_cases >= 2000);
    let mut differences = Vec::new();
    for fields in cases {
        let filter = match fields[0] {
            "box" => Filter::Box,
            "bilinear" => Filter::Bilinear,
            "bicubic" => Filter::Bicubic,
            "lanczos" => Filter::Lanczos,
            other => panic!("unknown filter {other}"),
        };
        let source = pattern(fields[1], number(fields[2]), number(fields[3]), Layout::Rgb).into_rgb();
        let resized = resize(&source, number(fields[4]), number(fields[5]), filter);
        if digest(resized.pixels()) != fields[6] {
            differences.push(fields.join(" "));
        }
    }
    report("resize as Pillow", num_cases, &differences);
}

#[test]
fn resize_equals_opencv() {
    let cases = lines(GENERATED, "opencv-resize");
    let num_cases = cases.len();
    let mut differences = Vec::new();
    for fields in cases {
        let interpolation = match fields[0] {
            "nearest" => Interpolation::Nearest,
            "linear" => Interpolation::Linear,
            "cubic" => Interpolation::Cubic,
            "area" => Interpolation::Area,
            "lanczos" => Interpolation::Lanczos,
            other => panic!("unknown interpolation {other}"),
        };
        let source = pattern(fields[2], number(fields[3]), number(fields[4]), layout(fields[1]));
        let resized = resize_opencv(&source, number(fields[5]), number(fields[6]), interpolation);
        if digest(resized.pixels()) != fields[7] {
            differences.push(fields.join(" "));
        }
    }
    report("resize as OpenCV", num_cases, &differences);
}

fn check_encode(kind: &str, encoding_of: fn(u8) -> Encoding, bytes_of: fn(&[u8]) -> Vec<u8>) {
    let cases = lines(GENERATED, kind);
    let num_cases = cases.len();
    let mut differences = Vec::new();
    for fields in cases {
        let image = pattern(fields[2], number(fields[3]), number(fields[4]), layout(fields[1]));
        let file = encode(&image, encoding_of(fields[0].parse().unwrap())).unwrap();
        if digest(&bytes_of(&file)) != fields[5] {
            differences.push(fields.join(" "));
        }
    }
    report(kind, num_cases, &differences);
}

#[test]
fn jpeg_files_are_those_of_pillow() {
    check_encode("pillow-jpeg", |quality| Encoding::Jpeg { quality }, <[u8]>::to_vec);
}

#[test]
fn jpeg_files_are_those_of_opencv() {
    check_encode("opencv-jpeg", |quality| Encoding::Jpeg { quality }, <[u8]>::to_vec);
}

#[test]
fn webp_files_show_what_those_of_opencv_show() {
    check_encode(
        "opencv-webp",
        |quality| Encoding::WebpLossy { quality },
        |file| decode(file, &LIMITS).unwrap().into_pixels(),
    );
}

/// The quality that images are stored at where they are compared as stored.
const QUALITY: u8 = 95;

/// Peak signal-to-noise ratio in decibels.
fn psnr(found: &Raster, expected: &Raster) -> f64 {
    assert_eq!((found.width(), found.height()), (expected.width(), expected.height()));
    let squares =
        found.pixels().iter().zip(expected.pixels()).map(|(a, b)| f64::from(a.abs_diff(*b)).powi(2));
    let mean = squares.sum::<f64>() / found.pixels().len() as f64;
    10.0 * (255.0 * 255.0 / mean.max(1e-9)).log10()
}

/// The pixels of a file that can be read.
fn decoded(file: &[u8]) -> Raster {
    decode_on_white(file, &LIMITS).unwrap().raster
}

#[test]
fn quick_downscales_of_photographs_look_the_same() {
    let Some(root) = shared_data() else { return };
    // Of the drafts those that libjpeg makes smaller, and those that it only decodes more cheaply.
    let [mut of_planes, mut of_halves, mut of_wholes] = [(); 3].map(|()| Vec::new());
    for fields in lines(SHARED, "pillow-decode").iter().step_by(2) {
        let file = std::fs::read(root.join(fields[0])).unwrap();
        let Ok(original) = decode_on_white(&file, &LIMITS) else { continue };
        if original.raster.layout() != Layout::Rgb || ImageFormat::sniff(&file) != Some(ImageFormat::Jpeg) {
            continue;
        }
        // As it came, and as most of the web's JPEG files are sampled.
        for file in [&file, &encode_jpeg(&original.raster, 90)] {
            let exact = decoded(file);
            for per_cent in [30, 45, 55, 80] {
                let [width, height] =
                    [exact.width(), exact.height()].map(|side| (side * per_cent).div_ceil(100));
                let area = resize_opencv(&exact, width, height, Interpolation::Area);
                let expected = decoded(&encode_jpeg(&area, QUALITY));
                if let Some(shrunk) = shrink_jpeg(file, &LIMITS, width, height, QUALITY).unwrap() {
                    of_planes.push(psnr(&decoded(&shrunk), &expected));
                }
                let draft = draft_on_white(file, &LIMITS, width, height).unwrap().raster;
                let quick = resize_opencv(&draft, width, height, Interpolation::Fast);
                let is_half = draft.width() < exact.width();
                let drafts = if is_half { &mut of_halves } else { &mut of_wholes };
                drafts.push(psnr(&decoded(&encode_jpeg(&quick, QUALITY)), &expected));
            }
        }
    }
    for (way, found, least_mean, least) in [
        ("by planes", of_planes, 40.0, 34.0),
        ("from parts", of_halves, 33.0, 25.0),
        ("from cheap wholes", of_wholes, 40.0, 36.0),
    ] {
        let mean = found.iter().sum::<f64>() / found.len() as f64;
        let worst = found.iter().copied().fold(f64::INFINITY, f64::min);
        assert!(found.len() > 50 && mean > least_mean && worst > least, "{way}: mean {mean}, worst {worst}");
    }
}
