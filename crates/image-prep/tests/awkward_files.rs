//! Odd and broken files collected from public repositories, with what Pillow makes of them. They are not part of this
//! repository: without them the test says so and passes.

use std::path::PathBuf;

use oqvl_image_prep::{DecodeLimits, decode, exif_orientation, probe};

/// Formats that Pillow reads and this crate leaves alone.
const NOT_OURS: [&str; 3] = ["AVIF", "ICO", "JPEG2000"];

/// Broken files the list calls fine, because it was made with Pillow's tolerance for truncated files switched on: the
/// damage of the first ends the deflate stream (Pillow's default says "broken data stream"), the scan of the second is
/// noise from the first row on (every decoder makes other garbage of it).
const REFUSED_BY_DEFAULT: [&str; 1] = ["awkward/derived_bad_idat_crc.png"];
const NO_COMPARABLE_PIXELS: [&str; 1] = ["awkward/pillow_hopper_bad_exif.jpg"];

/// The limit under which the list was made: its bombs are far above, its photographs far below.
const LIMITS: DecodeLimits =
    DecodeLimits { max_width: 65_535, max_height: 65_535, max_pixels: 400_000_000, max_alloc_bytes: 1 << 30 };

#[test]
fn awkward_files_decode_as_in_pillow_or_fail_by_name() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let list = data.join("awkward.tsv");
    if !list.exists() {
        eprintln!("skipped: {} is not there", list.display());
        return;
    }
    let mut reader = csv::ReaderBuilder::new().delimiter(b'\t').from_path(list).unwrap();
    let headers = reader.headers().unwrap().clone();
    let mut failures = Vec::new();
    for record in reader.records() {
        let record = record.unwrap();
        let field =
            |name: &str| record.get(headers.iter().position(|header| header == name).unwrap()).unwrap();
        let bytes = std::fs::read(data.join(field("file"))).unwrap();
        if let Err(difference) = check(&bytes, &field) {
            failures.push(format!("{} ({}): {difference}", field("file"), field("trait")));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn check<'a>(bytes: &[u8], field: &impl Fn(&str) -> &'a str) -> Result<(), String> {
    let decoded = decode(bytes, &LIMITS);
    if field("pillow") != "ok" || REFUSED_BY_DEFAULT.contains(&field("file")) {
        return match decoded {
            Ok(image) => Err(format!("decodes to {image:?}, Pillow says {}", field("pillow"))),
            Err(error) if error.reason() == "decoder-panicked" => Err(error.to_string()),
            Err(_) => Ok(()),
        };
    }
    if NOT_OURS.contains(&field("true_format")) {
        let reason = decoded.err().map(|error| error.reason());
        return if reason == Some("unknown-format") { Ok(()) } else { Err(format!("got {reason:?}")) };
    }

    let image = decoded.map_err(|error| format!("{error}: {:?}", std::error::Error::source(&error)))?;
    let size = (image.width().to_string(), image.height().to_string());
    if (size.0.as_str(), size.1.as_str()) != (field("width"), field("height")) {
        return Err(format!("decodes to {image:?}, not {} x {}", field("width"), field("height")));
    }
    if probe(bytes).map_err(|error| error.to_string())?
        != (probe(bytes).unwrap().0, image.width(), image.height())
    {
        return Err("probe disagrees with decode".to_owned());
    }
    let orientation = exif_orientation(bytes).unwrap_or(1).to_string();
    if !field("exif_orientation").is_empty()
        && !field("exif_orientation").starts_with("exif error")
        && orientation != field("exif_orientation")
    {
        return Err(format!("orientation {orientation}, not {}", field("exif_orientation")));
    }
    if !field("mean_rgb").is_empty() && !NO_COMPARABLE_PIXELS.contains(&field("file")) {
        let expected: Vec<f64> = field("mean_rgb").split(' ').map(|mean| mean.parse().unwrap()).collect();
        let num_pixels = f64::from(image.width()) * f64::from(image.height());
        for (channel, expected) in expected.into_iter().enumerate() {
            let sum: u64 =
                image.pixels().iter().skip(channel).step_by(3).map(|&level| u64::from(level)).sum();
            let mean = sum as f64 / num_pixels;
            if (mean - expected).abs() > 0.6 {
                return Err(format!("mean of channel {channel} is {mean:.1}, not {expected}"));
            }
        }
    }
    Ok(())
}
