//! CLIP's image transform against what open_clip's, with torchvision and Pillow, makes of the same images:
//! `fixtures/clip_transform_goldens.txt`, whose header names the versions. Equality is exact.

use oqvl_image_prep::{RgbImage, clip_pixel_values};

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

#[test]
fn pixel_values_are_bit_exact() {
    let lines = include_str!("fixtures/clip_transform_goldens.txt").lines();
    let mut num_images = 0;
    for line in lines.filter(|line| !line.starts_with('#')) {
        let fields: Vec<&str> = line.split(' ').collect();
        let ["clip", width, height, size, source, values] = fields[..] else { panic!("{line}") };
        let image = RgbImage::new(width.parse().unwrap(), height.parse().unwrap(), bytes(source)).unwrap();
        let expected: Vec<f32> =
            bytes(values).as_chunks().0.iter().map(|&four| f32::from_le_bytes(four)).collect();
        assert_eq!(clip_pixel_values(&image, size.parse().unwrap()), expected, "{image:?} to {size}");
        num_images += 1;
    }
    assert!(num_images >= 19);
}
