//! OpenCV's `resize` of 8-bit images, for compatibility with img2dataset; and a faster downscale.
//!
//! Checked against OpenCV 4.14 (`opencv-python-headless` on x86-64), see `tests/opencv_goldens.rs`. Its kernels do not
//! widen when an image shrinks, except `Area`: the others alias, so img2dataset uses them to enlarge only.

mod area;
mod fast;
mod taps;

use serde::{Deserialize, Serialize};

use crate::shrink_jpeg::Plane;
use crate::{MAX_SIDE, Raster};

/// How [`resize_opencv`] weighs source pixels. The names are img2dataset's, with its second names as aliases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Interpolation {
    /// The pixel at the scaled position, rounded down: `INTER_NEAREST`.
    Nearest,
    /// Two by two pixels: `INTER_LINEAR`.
    #[serde(alias = "bilinear")]
    Linear,
    /// Four by four pixels, a = −0.75: `INTER_CUBIC`.
    #[serde(alias = "bicubic")]
    Cubic,
    /// The mean of the covered area, fractions of pixels included: `INTER_AREA`. Enlarging, a kind of `Linear`.
    Area,
    /// Eight by eight pixels: `INTER_LANCZOS4`.
    #[serde(alias = "lanczos4")]
    Lanczos,
    /// Not OpenCV's: the mean of the covered area like `Area`, in integer arithmetic with rounding between the two
    /// directions; within two levels of it, on noise too. Enlarging, the same as `Linear`.
    Fast,
}

/// `image` scaled to `width` by `height`, as `cv2.resize` does it. Equal sizes give a copy.
///
/// # Panics
/// If a side is 0 or over [`MAX_SIDE`].
pub fn resize_opencv(image: &Raster, width: u32, height: u32, interpolation: Interpolation) -> Raster {
    assert!(
        (1..=MAX_SIDE).contains(&width) && (1..=MAX_SIDE).contains(&height),
        "resize of {image:?} to {width} x {height}: sides must be from 1 to {MAX_SIDE}"
    );
    if (width, height) == (image.width(), image.height()) {
        return image.clone();
    }
    let columns = Axis::new(image.width(), width);
    let rows = Axis::new(image.height(), height);
    let shrinks = columns.scale >= 1.0 && rows.scale >= 1.0;
    let is_halving = columns.whole_ratio() == Some(2) && rows.whole_ratio() == Some(2);
    let pixels = match interpolation {
        Interpolation::Nearest => nearest(image, columns, rows),
        Interpolation::Fast if shrinks => fast::resize(image, columns, rows),
        Interpolation::Area if shrinks => area::resize(image, columns, rows),
        Interpolation::Linear if is_halving => area::resize(image, columns, rows),
        Interpolation::Area => taps::resize(image, columns, rows, taps::Kernel::LinearArea),
        Interpolation::Linear | Interpolation::Fast => {
            taps::resize(image, columns, rows, taps::Kernel::Linear)
        }
        Interpolation::Cubic => taps::resize(image, columns, rows, taps::Kernel::Cubic),
        Interpolation::Lanczos => taps::resize(image, columns, rows, taps::Kernel::Lanczos4),
    };
    Raster::new(width, height, image.layout(), pixels).expect("one pixel for each position of checked sides")
}

/// A plane made smaller by [`Interpolation::Fast`], `scales` (across, down) inputs to an output, and padded to whole blocks
/// of eight by eight, two rows of them, by its last column and row.
pub(crate) fn shrink_plane(plane: &Plane, width: u32, height: u32, scales: [f64; 2]) -> Plane {
    let stride = width.next_multiple_of(8) as usize;
    let num_rows = height.next_multiple_of(16) as usize;
    let mut samples = vec![0; stride * num_rows];
    let [columns, rows] = [(plane.width, width, scales[0]), (plane.height, height, scales[1])]
        .map(|(num_inputs, num_outputs, scale)| Axis { scale, ..Axis::new(num_inputs, num_outputs) });
    let source =
        fast::Rows { samples: &plane.samples[..plane.stride * plane.height as usize], stride: plane.stride };
    fast::resize_plane(source, columns, rows, &mut samples, stride);
    let (width_in_bytes, num_bytes) = (width as usize, stride * height as usize);
    for row in samples[..num_bytes].chunks_mut(stride) {
        let last = row[width_in_bytes - 1];
        row[width_in_bytes..].fill(last);
    }
    let (rows, padding) = samples.split_at_mut(num_bytes);
    for row in padding.chunks_mut(stride) {
        row.copy_from_slice(&rows[num_bytes - stride..]);
    }
    Plane { width, height, stride, samples }
}

/// One direction of a resize.
#[derive(Debug, Clone, Copy)]
struct Axis {
    num_inputs: usize,
    num_outputs: usize,
    /// Outputs per input.
    inverse_scale: f64,
    /// Inputs per output, as the inverse of the former: not always the nearest number to the quotient.
    scale: f64,
}

impl Axis {
    fn new(num_inputs: u32, num_outputs: u32) -> Self {
        let inverse_scale = f64::from(num_outputs) / f64::from(num_inputs);
        Self {
            num_inputs: num_inputs as usize,
            num_outputs: num_outputs as usize,
            inverse_scale,
            scale: 1.0 / inverse_scale,
        }
    }

    /// The scale, if it is a whole number.
    fn whole_ratio(self) -> Option<usize> {
        let rounded = self.scale.round_ties_even();
        ((self.scale - rounded).abs() < f64::EPSILON && rounded >= 1.0).then_some(rounded as usize)
    }
}

/// Source: `resizeNN` in OpenCV's `modules/imgproc/src/resize.cpp`.
fn nearest(image: &Raster, columns: Axis, rows: Axis) -> Vec<u8> {
    let input_of = |axis: Axis| {
        move |output: usize| ((output as f64 * (1.0 / axis.inverse_scale)) as usize).min(axis.num_inputs - 1)
    };
    let channels = image.layout().num_channels();
    let offsets: Vec<usize> = (0..columns.num_outputs).map(input_of(columns)).map(|x| x * channels).collect();
    let mut pixels = Vec::with_capacity(columns.num_outputs * rows.num_outputs * channels);
    for y in (0..rows.num_outputs).map(input_of(rows)) {
        let row = &image.pixels()[y * columns.num_inputs * channels..];
        for &offset in &offsets {
            pixels.extend_from_slice(&row[offset..offset + channels]);
        }
    }
    pixels
}

/// The nearest byte, ties to even: `saturate_cast<uchar>` of a `float`.
#[inline(always)]
fn to_byte(value: f32) -> u8 {
    /// Numbers from here to its double have no fraction, so that adding it rounds, as every processor rounds; a call of
    /// `round_ties_even` is not one instruction on all of them.
    const NO_FRACTION: f32 = 8_388_608.0;
    ((value.clamp(0.0, 255.0) + NO_FRACTION).to_bits() & 0xff) as u8
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::Layout;
    use proptest::prelude::*;

    const ALL: [Interpolation; 6] = [
        Interpolation::Nearest,
        Interpolation::Linear,
        Interpolation::Cubic,
        Interpolation::Area,
        Interpolation::Lanczos,
        Interpolation::Fast,
    ];

    fn raster(width: u32, height: u32, layout: Layout, level_of: impl FnMut(u32) -> u8) -> Raster {
        let num_bytes = width * height * layout.num_channels() as u32;
        Raster::new(width, height, layout, (0..num_bytes).map(level_of).collect()).unwrap()
    }

    /// An image of these bytes, as high as they reach and at least `min_height`; they begin anew where they end.
    pub(crate) fn rgb_of(bytes: &[u8], width: u32, min_height: u32) -> Raster {
        let height = (bytes.len() as u32).div_ceil(width * 3).max(min_height);
        let pixels = bytes.iter().copied().cycle().take((width * height * 3) as usize).collect();
        Raster::new(width, height, Layout::Rgb, pixels).unwrap()
    }

    #[test]
    fn equal_sizes_copy() {
        let image = raster(5, 4, Layout::Rgb, |i| (i * 31) as u8);
        for interpolation in ALL {
            assert_eq!(resize_opencv(&image, 5, 4, interpolation), image);
        }
    }

    #[test]
    fn area_is_the_mean() {
        let image = Raster::new(4, 2, Layout::Gray, vec![0, 10, 20, 30, 40, 50, 60, 70]).unwrap();
        for interpolation in [Interpolation::Area, Interpolation::Fast] {
            assert_eq!(resize_opencv(&image, 2, 1, interpolation).pixels(), [25, 45]);
            // Columns have means of 20, 30, 40 and 50; cells are one and a third of them wide: 22.5, 35 and 47.5.
            let thirds = resize_opencv(&image, 3, 1, interpolation);
            assert!(matches!(thirds.pixels(), [22 | 23, 35, 47 | 48]), "{:?}", thirds.pixels());
        }
    }

    #[test]
    fn names_are_those_of_img2dataset() {
        for (name, expected) in [
            ("nearest", Interpolation::Nearest),
            ("linear", Interpolation::Linear),
            ("bilinear", Interpolation::Linear),
            ("cubic", Interpolation::Cubic),
            ("bicubic", Interpolation::Cubic),
            ("area", Interpolation::Area),
            ("lanczos", Interpolation::Lanczos),
            ("lanczos4", Interpolation::Lanczos),
            ("fast", Interpolation::Fast),
        ] {
            let deserializer = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(name);
            assert_eq!(Interpolation::deserialize(deserializer), Ok(expected));
        }
    }

    #[test]
    fn extreme_shapes() {
        for layout in [Layout::Gray, Layout::Rgb] {
            let line = raster(1, 3000, layout, |_| 77);
            let dot = raster(1, 1, layout, |_| 77);
            for interpolation in ALL {
                for (image, width, height) in
                    [(&line, 7, 3), (&line, 1, 1), (&line, 2, 3000), (&dot, 40, 3), (&dot, 1, 2)]
                {
                    let resized = resize_opencv(image, width, height, interpolation);
                    assert!(resized.pixels().iter().all(|&level| level == 77), "{interpolation:?}");
                }
            }
        }
    }

    #[test]
    fn bytes_are_rounded_to_even() {
        for (value, expected) in [
            (-3.0, 0),
            (0.5, 0),
            (0.500_001, 1),
            (1.5, 2),
            (2.5, 2),
            (254.5, 254),
            (254.6, 255),
            (300.0, 255),
        ] {
            assert_eq!(to_byte(value), expected, "{value}");
            assert_eq!(to_byte(value), value.round_ties_even() as u8);
        }
    }

    #[test]
    #[should_panic(expected = "sides must be from 1")]
    fn no_side_may_be_zero() {
        resize_opencv(&raster(1, 1, Layout::Gray, |_| 0), 0, 1, Interpolation::Area);
    }

    proptest! {
        #[test]
        fn a_flat_image_stays_flat(
            level: u8, width in 1u32..40, height in 1u32..40, to_width in 1u32..60, to_height in 1u32..60,
            is_gray: bool,
        ) {
            let layout = if is_gray { Layout::Gray } else { Layout::Rgb };
            let image = raster(width, height, layout, |_| level);
            for interpolation in ALL {
                let resized = resize_opencv(&image, to_width, to_height, interpolation);
                prop_assert!(resized.pixels().iter().all(|&found| found == level), "{:?}", interpolation);
            }
        }

        #[test]
        fn fast_is_close_to_area(
            seed: u64, width in 1u32..60, height in 1u32..60, shrink_width in 1.0f64..9.0, shrink_height in 1.0f64..9.0,
        ) {
            let mut state = seed | 1;
            let image = raster(width, height, Layout::Rgb, |_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            });
            let shrink = |side: u32, by: f64| ((f64::from(side) / by) as u32).max(1);
            let size = (shrink(width, shrink_width), shrink(height, shrink_height));
            let [area, fast] = [Interpolation::Area, Interpolation::Fast]
                .map(|interpolation| resize_opencv(&image, size.0, size.1, interpolation));
            for (exact, quick) in area.pixels().iter().zip(fast.pixels()) {
                prop_assert!(exact.abs_diff(*quick) <= 2, "{} {}", exact, quick);
            }
        }
    }
}
