//! Images that may be gray: what a downloaded file is until it is stored again.

use std::fmt;

use crate::{MAX_SIDE, RgbImage, ShapeError};

/// Which samples make a pixel of a [`Raster`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// One byte: brightness.
    Gray,
    /// Three bytes: red, green, blue.
    Rgb,
}

impl Layout {
    /// Bytes per pixel: 1 or 3.
    pub const fn num_channels(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb => 3,
        }
    }
}

/// An image as `height` rows of `width` pixels, gray or RGB, 8 bits per sample.
///
/// The pipeline itself works on [`RgbImage`]; this type exists so that a gray file stays gray from its decoding to its
/// re-encoding, as it does in OpenCV.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Raster {
    width: u32,
    height: u32,
    layout: Layout,
    pixels: Vec<u8>,
}

impl Raster {
    /// An image over `pixels`, row-major, samples of a pixel side by side.
    ///
    /// # Errors
    /// If a side is 0 or over [`MAX_SIDE`], or `pixels` does not hold `width * height * layout.num_channels()` bytes.
    pub fn new(width: u32, height: u32, layout: Layout, pixels: Vec<u8>) -> Result<Self, ShapeError> {
        check_shape(width, height, layout, pixels.len())?;
        Ok(Self { width, height, layout, pixels })
    }

    /// Pixels per row.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Number of rows.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Gray or RGB.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// All bytes, row-major.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, without the image around them.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The same image with three bytes per pixel; gray becomes three equal bytes.
    pub fn into_rgb(self) -> RgbImage {
        let pixels = match self.layout {
            Layout::Gray => gray_to_rgb(&self.pixels),
            Layout::Rgb => self.pixels,
        };
        RgbImage::new(self.width, self.height, pixels).expect("three bytes for each pixel of a valid image")
    }

    /// A `width` by `height` image filled with white, with this image laid over it so that its left upper corner is
    /// at column `left` and row `top`; what stands out is cut off. With negative corners this crops, with positive
    /// ones it pads.
    ///
    /// # Panics
    /// If `width` or `height` is 0 or over [`MAX_SIDE`].
    pub fn place_on_white(&self, width: u32, height: u32, left: i64, top: i64) -> Self {
        let channels = self.layout.num_channels();
        let mut pixels = vec![255; width as usize * height as usize * channels];
        let first = left.clamp(0, width.into());
        let last = (left + i64::from(self.width)).clamp(0, width.into());
        if first < last {
            let num_bytes = (last - first) as usize * channels;
            for y in top.max(0)..(top + i64::from(self.height)).min(height.into()) {
                let from = ((y - top) * i64::from(self.width) + first - left) as usize * channels;
                let to = (y * i64::from(width) + first) as usize * channels;
                pixels[to..to + num_bytes].copy_from_slice(&self.pixels[from..from + num_bytes]);
            }
        }
        Self::new(width, height, self.layout, pixels).unwrap_or_else(|error| panic!("{error}"))
    }
}

impl fmt::Debug for Raster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raster({:?}, {} x {})", self.layout, self.width, self.height)
    }
}

impl From<RgbImage> for Raster {
    fn from(image: RgbImage) -> Self {
        Self {
            width: image.width(),
            height: image.height(),
            layout: Layout::Rgb,
            pixels: image.into_pixels(),
        }
    }
}

/// A borrowed [`Raster`] or [`RgbImage`]: what the encoders take.
#[derive(Clone, Copy)]
pub struct RasterRef<'a> {
    pub(crate) width: u32,
    pub(crate) height: u32,
    pub(crate) layout: Layout,
    pub(crate) pixels: &'a [u8],
}

impl<'a> From<&'a Raster> for RasterRef<'a> {
    fn from(image: &'a Raster) -> Self {
        Self { width: image.width, height: image.height, layout: image.layout, pixels: &image.pixels }
    }
}

impl<'a> From<&'a RgbImage> for RasterRef<'a> {
    fn from(image: &'a RgbImage) -> Self {
        Self { width: image.width(), height: image.height(), layout: Layout::Rgb, pixels: image.pixels() }
    }
}

impl fmt::Debug for RasterRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RasterRef({:?}, {} x {})", self.layout, self.width, self.height)
    }
}

/// Three equal bytes for each byte.
pub(crate) fn gray_to_rgb(gray: &[u8]) -> Vec<u8> {
    let mut rgb = vec![0; gray.len() * 3];
    for (pixel, &level) in rgb.chunks_exact_mut(3).zip(gray) {
        pixel.fill(level);
    }
    rgb
}

/// Whether `num_bytes` are an image of these sides.
pub(crate) fn check_shape(
    width: u32,
    height: u32,
    layout: Layout,
    num_bytes: usize,
) -> Result<(), ShapeError> {
    if !(1..=MAX_SIDE).contains(&width) || !(1..=MAX_SIDE).contains(&height) {
        return Err(ShapeError::Side { width, height });
    }
    let expected = width as usize * height as usize * layout.num_channels();
    if num_bytes != expected {
        return Err(ShapeError::NumBytes { layout, width, height, expected, found: num_bytes });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        assert!(Raster::new(2, 3, Layout::Gray, vec![0; 6]).is_ok());
        assert!(matches!(Raster::new(0, 3, Layout::Gray, vec![]), Err(ShapeError::Side { .. })));
        let error = Raster::new(2, 3, Layout::Gray, vec![0; 18]).unwrap_err();
        assert_eq!(error.to_string(), "a gray image of 2 x 3 pixels needs 6 bytes, got 18");
    }

    #[test]
    fn gray_becomes_three_equal_bytes() {
        let gray = Raster::new(2, 1, Layout::Gray, vec![7, 200]).unwrap();
        assert_eq!(gray.into_rgb().pixels(), [7, 7, 7, 200, 200, 200]);
    }

    #[test]
    fn placing_pads_and_crops() {
        let image = Raster::new(2, 2, Layout::Gray, vec![1, 2, 3, 4]).unwrap();
        assert_eq!(
            image.place_on_white(4, 3, 1, 1).pixels(),
            [255, 255, 255, 255, 255, 1, 2, 255, 255, 3, 4, 255]
        );
        assert_eq!(image.place_on_white(1, 1, -1, -1).pixels(), [4]);
        assert_eq!(image.place_on_white(3, 1, -1, 0).pixels(), [2, 255, 255]);
        for far in [-5, 5] {
            assert_eq!(image.place_on_white(2, 1, far, 0).pixels(), [255, 255]);
            assert_eq!(image.place_on_white(2, 1, 0, far).pixels(), [255, 255]);
        }
        let color = Raster::from(RgbImage::new(1, 1, vec![9, 8, 7]).unwrap());
        assert_eq!(color.place_on_white(2, 1, 1, 0).pixels(), [255, 255, 255, 9, 8, 7]);
    }
}
