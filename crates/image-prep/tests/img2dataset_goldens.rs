//! Blurred faces and EXIF texts against img2dataset's own: `fixtures/img2dataset_goldens.txt` and
//! `fixtures/shared_exif_goldens.txt`, whose headers name the script and the versions.

mod goldens;

use goldens::{digest, layout, lines, number, pattern, report, shared_data};
use oqvl_image_prep::{NormalizedBox, blur_boxes, exif_tags};

const GENERATED: &str = include_str!("fixtures/img2dataset_goldens.txt");
const SHARED: &str = include_str!("fixtures/shared_exif_goldens.txt");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect()
}

/// Which bytes of a result are recorded, as `places` of the script.
fn places(num_bytes: usize) -> Vec<usize> {
    const NUM_SAMPLES: usize = 300;
    if num_bytes <= NUM_SAMPLES {
        return (0..num_bytes).collect();
    }
    (1..=NUM_SAMPLES as u64)
        .map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % num_bytes as u64) as usize)
        .collect()
}

#[test]
fn faces_are_blurred_within_one_level() {
    let cases = lines(GENERATED, "blur");
    let num_cases = cases.len();
    let (mut num_bytes, mut num_off_by_one) = (0, 0);
    let mut differences = Vec::new();
    for fields in cases {
        let image = pattern(fields[1], number(fields[2]), number(fields[3]), layout(fields[0]));
        let boxes: Vec<NormalizedBox> = fields[4]
            .split(';')
            .map(|sides| {
                let sides: Vec<f64> = sides.split(',').map(|side| side.parse().unwrap()).collect();
                sides.try_into().unwrap()
            })
            .collect();
        let blurred = blur_boxes(&image, &boxes);
        let expected = bytes(fields[5]);
        let offs: Vec<u8> = places(blurred.pixels().len())
            .into_iter()
            .zip(&expected)
            .map(|(place, expected)| blurred.pixels()[place].abs_diff(*expected))
            .collect();
        num_bytes += offs.len();
        num_off_by_one += offs.iter().filter(|&&off| off == 1).count();
        let largest = offs.iter().max().unwrap();
        if *largest > 1 {
            differences.push(format!("{}: off by {largest}", fields[..5].join(" ")));
        }
    }
    report("blur", num_cases, &differences);
    // Rounding of sums; measured: see the message when it fails.
    assert!(num_off_by_one * 50 < num_bytes, "{num_off_by_one} of {num_bytes} bytes are off by one");
}

/// The digest of the tags' lines, as the script makes it.
fn exif_digest(file: &[u8]) -> String {
    let Some(tags) = exif_tags(file) else { return "null".to_owned() };
    let lines: String = tags.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
    digest(lines.as_bytes())
}

#[test]
fn exif_texts_are_those_of_exifread() {
    let cases = lines(GENERATED, "exif-block");
    let num_cases = cases.len();
    let mut differences = Vec::new();
    for fields in cases {
        let block = bytes(fields[0]);
        if exif_digest(&block) != fields[1] {
            differences.push(format!("{} {}: {:?}", fields[0], fields[1], exif_tags(&block)));
        }
    }
    report("EXIF blocks", num_cases, &differences);
}

#[test]
fn exif_texts_of_real_files_are_those_of_exifread() {
    let Some(root) = shared_data() else { return };
    let cases = lines(SHARED, "exif");
    let num_cases = cases.len();
    let mut differences = Vec::new();
    for fields in cases {
        let file = std::fs::read(root.join(fields[0])).unwrap();
        if exif_digest(&file) != fields[2] {
            differences.push(format!(
                "{} {} tags {}: {:?}",
                fields[0],
                fields[1],
                fields[2],
                exif_tags(&file)
            ));
        }
    }
    report("EXIF of files", num_cases, &differences);
}
