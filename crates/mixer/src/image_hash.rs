//! Perceptual hashes: 64 bits that change little when a picture is scaled, recompressed or slightly recoloured.
//!
//! The construction is the usual one of pHash (Zauner 2010, section 3.2.1): grey levels, 32 by 32 by area average, 2-D
//! DCT-II, the 8 by 8 lowest frequencies, each compared with their median. Sums are in double precision in a fixed
//! order, so the same pixels give the same hash everywhere.

use oqvl_image_prep::{DecodeLimits, RgbImage, decode};

/// Side of the scaled picture.
const SIDE: usize = 32;

/// Side of the block of low frequencies.
const LOW: usize = 8;

/// Coefficients below this are rounding errors (grey levels are 0 to 255): a flat picture has no frequencies.
const NOISE: f64 = 1e-6;

/// The hash of an encoded image; none if it cannot be decoded.
pub(crate) fn hash_of_file(bytes: &[u8]) -> Option<u64> {
    decode(bytes, &DecodeLimits::default()).ok().map(|image| image_hash(&image))
}

/// The hash of a picture.
pub(crate) fn image_hash(image: &RgbImage) -> u64 {
    let scaled = scaled_grey(image);
    let low = low_frequencies(&scaled);
    let mut sorted = low;
    sorted.sort_unstable_by(f64::total_cmp);
    let median = f64::midpoint(sorted[LOW * LOW / 2 - 1], sorted[LOW * LOW / 2]);
    low.iter().enumerate().fold(0, |hash, (bit, value)| hash | u64::from(*value > median) << bit)
}

/// Grey levels averaged over the cells of a 32 by 32 grid; a pixel on a border counts for both sides in parts.
fn scaled_grey(image: &RgbImage) -> [f64; SIDE * SIDE] {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let (columns, rows) = (overlaps(width), overlaps(height));
    let mut sums = [0.0; SIDE * SIDE];
    // Row sums first: every pixel is read once.
    let mut row_sums = vec![[0.0; SIDE]; height];
    for (line, sums) in image.pixels().chunks_exact(3 * width).zip(&mut row_sums) {
        let grey = |x: usize| {
            let [red, green, blue] = [0, 1, 2].map(|channel| f64::from(line[3 * x + channel]));
            0.299 * red + 0.587 * green + 0.114 * blue
        };
        for (cell, sum) in columns.iter().zip(sums.iter_mut()) {
            *sum = cell.iter().map(|(x, part)| part * grey(*x)).sum();
        }
    }
    let area = (width as f64 / SIDE as f64) * (height as f64 / SIDE as f64);
    for (v, cell) in rows.iter().enumerate() {
        for u in 0..SIDE {
            let sum: f64 = cell.iter().map(|(y, part)| part * row_sums[*y][u]).sum();
            sums[v * SIDE + u] = sum / area;
        }
    }
    sums
}

/// For each of the 32 cells along a side of `len` pixels: the pixels it covers, and how much of each.
fn overlaps(len: usize) -> Vec<Vec<(usize, f64)>> {
    let edge = |cell: usize| cell as f64 * len as f64 / SIDE as f64;
    let cell = |cell: usize| {
        let (start, end) = (edge(cell), edge(cell + 1));
        let pixels = start as usize..(end.ceil() as usize).min(len);
        let part = |pixel: usize| (end.min(pixel as f64 + 1.0) - start.max(pixel as f64)).max(0.0);
        pixels.map(|pixel| (pixel, part(pixel))).collect()
    };
    (0..SIDE).map(cell).collect()
}

/// The lowest 8 by 8 coefficients of the DCT-II.
fn low_frequencies(pixels: &[f64; SIDE * SIDE]) -> [f64; LOW * LOW] {
    let cosine = |frequency: usize, place: usize| {
        let angle = std::f64::consts::PI * (2 * place + 1) as f64 * frequency as f64 / (2 * SIDE) as f64;
        angle.cos()
    };
    let basis: Vec<[f64; SIDE]> =
        (0..LOW).map(|frequency| std::array::from_fn(|place| cosine(frequency, place))).collect();
    let mut low = [0.0; LOW * LOW];
    let lines: Vec<[f64; LOW]> = pixels
        .chunks_exact(SIDE)
        .map(|line| {
            std::array::from_fn(|u| line.iter().zip(&basis[u]).map(|(pixel, wave)| pixel * wave).sum())
        })
        .collect();
    for v in 0..LOW {
        for u in 0..LOW {
            let value: f64 = lines.iter().zip(&basis[v]).map(|(line, wave)| line[u] * wave).sum();
            low[v * LOW + u] = if value.abs() < NOISE { 0.0 } else { value };
        }
    }
    low
}

#[cfg(test)]
mod tests {
    use oqvl_image_prep::{Filter, encode_jpeg, resize};

    use super::*;

    fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
        RgbImage::new(width, height, oqvl_testkit::picture(seed, width, height)).unwrap()
    }

    #[test]
    fn the_same_picture_stays_close_and_others_do_not() {
        for seed in 0..20 {
            let original = picture(seed, 320, 240);
            let hash = image_hash(&original);
            let variants = [
                resize(&original, 160, 120, Filter::Bicubic),
                resize(&original, 512, 384, Filter::Lanczos),
                decode(&encode_jpeg(&original, 40), &DecodeLimits::default()).unwrap(),
            ];
            for variant in variants {
                let distance = (hash ^ image_hash(&variant)).count_ones();
                assert!(distance <= 6, "seed {seed}: {distance}");
            }
            let other = image_hash(&picture(seed + 1, 320, 240));
            assert!((hash ^ other).count_ones() > 10, "seed {seed}");
        }
    }

    #[test]
    fn flat_and_tiny_pictures_have_hashes() {
        let flat = |level: u8, side: u32| {
            image_hash(&RgbImage::new(side, side, vec![level; (3 * side * side) as usize]).unwrap())
        };
        assert_eq!(flat(90, 50), flat(200, 7), "no frequencies, whatever the level");
        let dot = RgbImage::new(1, 1, vec![1, 2, 3]).unwrap();
        let _hash = image_hash(&dot);
        assert_eq!(hash_of_file(b"no image"), None);
    }

    #[test]
    fn cells_share_out_every_pixel() {
        for len in [1, 5, 31, 32, 33, 100] {
            let mut shares = vec![0.0; len];
            overlaps(len).iter().flatten().for_each(|(pixel, part)| shares[*pixel] += part);
            assert!(shares.iter().all(|share| (share - 1.0_f64).abs() < 1e-9), "{len}: {shares:?}");
        }
    }
}
