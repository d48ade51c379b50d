//! The one pixel layout of the pipeline: 8-bit RGB, rows from the top, pixels from the left.

use std::fmt;

use crate::raster::check_shape;
use crate::{Layout, ShapeError};

/// Longest side of an [`RgbImage`]: what a JPEG file can hold.
pub const MAX_SIDE: u32 = 65_535;

/// An image as `height` rows of `width` pixels of red, green and blue bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RgbImage {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl RgbImage {
    /// An image over `pixels`, row-major RGB.
    ///
    /// # Errors
    /// If a side is 0 or over [`MAX_SIDE`], or `pixels` does not hold `width * height * 3` bytes.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, ShapeError> {
        check_shape(width, height, Layout::Rgb, pixels.len())?;
        Ok(Self { width, height, pixels })
    }

    /// Pixels per row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// All bytes, row-major RGB, `width * height * 3` of them.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, without the image around them.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// Red, green and blue of the pixel in column `x` and row `y`.
    ///
    /// # Panics
    /// If the pixel is outside the image.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        assert!(x < self.width && y < self.height, "no pixel ({x}, {y}) in {self:?}");
        let offset = (y as usize * self.width as usize + x as usize) * 3;
        [self.pixels[offset], self.pixels[offset + 1], self.pixels[offset + 2]]
    }
}

impl fmt::Debug for RgbImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RgbImage({} x {})", self.width, self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        assert!(RgbImage::new(1, 1, vec![0; 3]).is_ok());
        assert!(matches!(RgbImage::new(0, 1, vec![]), Err(ShapeError::Side { .. })));
        assert!(matches!(RgbImage::new(1, 65_536, vec![]), Err(ShapeError::Side { .. })));
        let error = RgbImage::new(2, 3, vec![0; 17]).unwrap_err();
        assert_eq!(error.to_string(), "an RGB image of 2 x 3 pixels needs 18 bytes, got 17");
    }

    #[test]
    fn pixels_are_row_major() {
        let image = RgbImage::new(3, 2, (0..18).collect()).unwrap();
        assert_eq!(image.pixel(2, 0), [6, 7, 8]);
        assert_eq!(image.pixel(0, 1), [9, 10, 11]);
    }
}
