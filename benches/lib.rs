//! What the benches measure on: seeded data with the sizes and the statistics of the real thing.
//!
//! Run one with `cargo bench --package oqvl-benches --bench images`. A number that is quoted anywhere comes with the
//! machine and the commit it was measured on.
//!
//! ```
//! let photo = oqvl_benches::photo(64, 48);
//! assert_eq!((photo.width(), photo.height()), (64, 48));
//! assert_eq!(photo, oqvl_benches::photo(64, 48));
//! ```

use oqvl_image_prep::RgbImage;

/// An image that compresses like a photograph: smooth shading with fine grain.
///
/// # Panics
/// If a side is zero.
#[must_use]
pub fn photo(width: u32, height: u32) -> RgbImage {
    let mut grain = Noise::seeded(u64::from(width) << 32 | u64::from(height));
    let mut pixels = Vec::with_capacity(width as usize * height as usize * 3);
    for y in 0..height {
        for x in 0..width {
            let (across, down) = (f64::from(x) / f64::from(width), f64::from(y) / f64::from(height));
            let shades = [across, down, (across * 9.0).sin() * (down * 7.0).cos() * 0.5 + 0.5];
            pixels.extend(shades.map(|shade| (shade * 230.0) as u8 + (grain.draw() % 25) as u8));
        }
    }
    RgbImage::new(width, height, pixels).expect("three bytes were pushed for every pixel")
}

/// A stream of seeded random numbers (SplitMix64).
#[derive(Debug, Clone)]
pub struct Noise {
    state: u64,
}

impl Noise {
    /// The stream of a seed.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number, evenly distributed over all 64 bits.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grain_is_fine_and_the_shading_smooth() {
        let photo = photo(100, 3);
        let red = |x| i32::from(photo.pixel(x, 0)[0]);
        assert!((red(99) - red(0)) > 150);
        assert!((1..100).all(|x| (red(x) - red(x - 1)).abs() < 30));
        assert_eq!(super::photo(1, 1).pixels().len(), 3);
    }
}
