//! Blurring of faces, as img2dataset does it for DataComp.

use std::f64::consts::TAU;

use crate::Raster;

/// A box in parts of an image's sides: left, top, right, bottom, each from 0 to 1.
pub type NormalizedBox = [f64; 4];

/// `image` with every box, grown by a tenth of its longer side, blurred; edges of the blurred areas are blended. Without
/// boxes it is a copy.
///
/// The kernel's size follows the longest side of all boxes: `2 ceil(side / 10) + 1` pixels. Numbers that are not finite
/// or outside 0 to 1 are cut to that range.
///
/// Source: `BoundingBoxBlurrer` of img2dataset 1.47 (albumentations before 2.0), whose results this matches within one
/// level; img2dataset up to 1.45 blurred about four times as wide. Work grows with the area to blur and not with the
/// kernel: wide kernels are summed from a few cosines, each of which slides over the image.
pub fn blur_boxes(image: &Raster, boxes: &[NormalizedBox]) -> Raster {
    let (width, height) = (image.width() as usize, image.height() as usize);
    let mut longest = 0;
    let areas: Vec<Area> = boxes
        .iter()
        .map(|normalized| {
            let [left, top, right, bottom] = [(0, width), (1, height), (2, width), (3, height)]
                .map(|(side, len)| (normalized[side].clamp(0.0, 1.0) * len as f64) as i64);
            let longer = (right - left).max(bottom - top);
            longest = longest.max(longer);
            let margin = 0.1 * longer as f64;
            // The last column and row are never reached, as in the original.
            let cut = |edge: f64, len: usize| (edge as i64).clamp(0, len as i64 - 1) as usize;
            Area {
                left: cut(left as f64 - margin, width),
                top: cut(top as f64 - margin, height),
                right: cut(right as f64 + margin, width),
                bottom: cut(bottom as f64 + margin, height),
            }
        })
        .filter(|area| area.left < area.right && area.top < area.bottom)
        .collect();
    let radius = ((0.1 * longest as f64).ceil() as usize).max(1);
    let mut blurred = image.clone().into_pixels();
    blend(image, &areas, &Kernel::new(radius), &mut blurred);
    Raster::new(image.width(), image.height(), image.layout(), blurred)
        .expect("the pixels are as many as before")
}

/// Pixels from `left` and `top` on, up to and without `right` and `bottom`.
#[derive(Debug, Clone, Copy)]
struct Area {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

/// Replaces the pixels that the blurred mask of `areas` touches by the mix of sharp and blurred that it asks for.
fn blend(image: &Raster, areas: &[Area], kernel: &Kernel, target: &mut [u8]) {
    let channels = image.layout().num_channels();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let radius = kernel.radius;
    let Some(bounds) = areas.iter().copied().reduce(|a, b| Area {
        left: a.left.min(b.left),
        top: a.top.min(b.top),
        right: a.right.max(b.right),
        bottom: a.bottom.max(b.bottom),
    }) else {
        return;
    };
    // What the blurred mask reaches, and the columns that are read for that.
    let columns = bounds.left.saturating_sub(radius)..(bounds.right + radius).min(width);
    let rows = bounds.top.saturating_sub(radius)..(bounds.bottom + radius).min(height);
    let read = columns.start.saturating_sub(radius)..(columns.end + radius).min(width);

    let mut mask = vec![0u8; width * height];
    for area in areas {
        for row in mask.chunks_exact_mut(width).take(area.bottom).skip(area.top) {
            row[area.left..area.right].fill(255);
        }
    }
    let window = |channels: usize| read.start * channels..read.end * channels;
    let mut image_columns =
        Columns::new(image.pixels(), width * channels, window(channels), rows.start, kernel);
    let mut mask_columns = Columns::new(&mask, width, window(1), rows.start, kernel);
    let mut blurred = vec![0.0; columns.len() * channels];
    let mut blurred_mask = vec![0.0; columns.len()];
    for y in rows {
        let outputs = columns.start - read.start..columns.end - read.start;
        // Left and right of the columns read, the image is mirrored only where it ends there.
        blur_row(image_columns.next_row(), channels, outputs.clone(), kernel, &mut blurred);
        blur_row(mask_columns.next_row(), 1, outputs, kernel, &mut blurred_mask);
        let row = &mut target[(y * width + columns.start) * channels..][..columns.len() * channels];
        for ((pixel, blurred), share) in
            row.chunks_exact_mut(channels).zip(blurred.chunks_exact(channels)).zip(&blurred_mask)
        {
            let share = (share / 255.0).clamp(0.0, 1.0);
            for (level, blurred) in pixel.iter_mut().zip(blurred) {
                // Cut off and not rounded, as in the original; the tiny excess keeps whole numbers whole.
                *level = (f64::from(*level) * (1.0 - share) + blurred * share + 1e-4) as u8;
            }
        }
    }
}

/// A Gaussian, cut off at `radius` on both sides.
struct Kernel {
    radius: usize,
    form: Form,
}

enum Form {
    /// Weights from the middle outwards, `radius + 1` of them.
    Weights(Vec<f64>),
    /// The sum of these cosines over a window of `2 radius + 1`.
    Cosines(Vec<Cosine>),
}

/// `amplitude * cos(tau * frequency * distance)`.
#[derive(Debug, Clone, Copy)]
struct Cosine {
    amplitude: f64,
    frequency: f64,
    /// `2 cos(tau * frequency)`.
    step: f64,
    /// The cosine at the window's edge.
    edge: f64,
}

/// Wider kernels are taken apart into cosines.
const MAX_DIRECT_RADIUS: usize = 24;
/// Of as many cosines. The next would add less than a ten-thousandth.
const NUM_COSINES: usize = 10;

impl Kernel {
    fn new(radius: usize) -> Self {
        let weights = gaussian(radius);
        if radius <= MAX_DIRECT_RADIUS {
            return Self { radius, form: Form::Weights(weights) };
        }
        let window_len = (2 * radius + 1) as f64;
        let cosines = (0..NUM_COSINES)
            .map(|idx| {
                let frequency = idx as f64 / window_len;
                let at = |distance: usize| (TAU * frequency * distance as f64).cos();
                let sum: f64 = (1..=radius).map(|distance| 2.0 * weights[distance] * at(distance)).sum();
                let amplitude = (weights[0] + sum) / window_len * if idx == 0 { 1.0 } else { 2.0 };
                Cosine { amplitude, frequency, step: 2.0 * at(1), edge: at(radius) }
            })
            .collect();
        Self { radius, form: Form::Cosines(cosines) }
    }
}

/// OpenCV's Gaussian of `2 radius + 1` pixels whose width follows from its size, from the middle outwards.
///
/// Source: `getGaussianKernel` in OpenCV's `modules/imgproc/src/smooth.dispatch.cpp`.
fn gaussian(radius: usize) -> Vec<f64> {
    match radius {
        0 => return vec![1.0],
        1 => return vec![0.5, 0.25],
        2 => return vec![0.375, 0.25, 0.0625],
        3 => return vec![0.28125, 0.21875, 0.109375, 0.03125],
        4 => return vec![0.234375, 0.19921875, 0.1171875, 0.05078125, 0.015625],
        _ => {}
    }
    let sigma = 0.3 * (radius as f64 - 1.0) + 0.8;
    let mut weights: Vec<f64> =
        (0..=radius).map(|distance| (-0.5 * (distance as f64 / sigma).powi(2)).exp()).collect();
    let sum = 2.0 * weights.iter().sum::<f64>() - weights[0];
    for weight in &mut weights {
        *weight /= sum;
    }
    weights
}

/// `index` mirrored into `0..len`, without repeating the outermost pixel: `BORDER_REFLECT_101`.
fn mirror(index: i64, len: usize) -> usize {
    if len == 1 {
        return 0;
    }
    let period = 2 * (len as i64 - 1);
    let index = index.rem_euclid(period);
    index.min(period - index) as usize
}

/// Blurs columns, a row of results at a time.
struct Columns<'a> {
    pixels: &'a [u8],
    row_len: usize,
    /// Which bytes of each row are blurred.
    window: std::ops::Range<usize>,
    kernel: &'a Kernel,
    y: i64,
    /// For each cosine, its sum at the row before and at this one.
    sums: Vec<[Vec<f64>; 2]>,
    row: Vec<f64>,
}

impl<'a> Columns<'a> {
    fn new(
        pixels: &'a [u8],
        row_len: usize,
        window: std::ops::Range<usize>,
        first_row: usize,
        kernel: &'a Kernel,
    ) -> Self {
        let row = vec![0.0; window.len()];
        let mut columns =
            Self { pixels, row_len, window, kernel, y: first_row as i64, sums: Vec::new(), row };
        if let Form::Cosines(cosines) = &kernel.form {
            columns.sums = cosines
                .iter()
                .map(|cosine| [columns.y - 1, columns.y].map(|y| columns.sum_at(y, cosine)))
                .collect();
        }
        columns
    }

    /// The row that stands at `y`, mirrored at the image's edges.
    fn source(&self, y: i64) -> &'a [u8] {
        let y = mirror(y, self.pixels.len() / self.row_len);
        &self.pixels[y * self.row_len..][self.window.clone()]
    }

    fn sum_at(&self, y: i64, cosine: &Cosine) -> Vec<f64> {
        let radius = self.kernel.radius as i64;
        let mut sums = vec![0.0; self.window.len()];
        for distance in -radius..=radius {
            let weight = (TAU * cosine.frequency * distance as f64).cos();
            for (sum, &level) in sums.iter_mut().zip(self.source(y + distance)) {
                *sum += weight * f64::from(level);
            }
        }
        sums
    }

    fn next_row(&mut self) -> &[f64] {
        let (y, radius) = (self.y, self.kernel.radius as i64);
        self.y += 1;
        let mut row = std::mem::take(&mut self.row);
        row.fill(0.0);
        match &self.kernel.form {
            Form::Weights(weights) => {
                for distance in -radius..=radius {
                    let weight = weights[distance.unsigned_abs() as usize];
                    for (sum, &level) in row.iter_mut().zip(self.source(y + distance)) {
                        *sum += weight * f64::from(level);
                    }
                }
            }
            Form::Cosines(cosines) => {
                let [entering, inside, oldest, leaving] =
                    [y + radius + 1, y + radius, y - radius, y - radius - 1].map(|y| self.source(y));
                let change: Vec<f64> = (0..row.len())
                    .map(|idx| {
                        let at = |row: &[u8]| f64::from(row[idx]);
                        at(entering) - at(inside) - at(oldest) + at(leaving)
                    })
                    .collect();
                for (cosine, [before, now]) in cosines.iter().zip(&mut self.sums) {
                    for (((sum, before), now), change) in
                        row.iter_mut().zip(&mut *before).zip(&*now).zip(&change)
                    {
                        *sum += cosine.amplitude * now;
                        *before = cosine.step * now - *before + cosine.edge * change;
                    }
                    std::mem::swap(before, now);
                }
            }
        }
        self.row = row;
        &self.row
    }
}

/// Blurs the pixels `outputs` of a row.
fn blur_row(
    row: &[f64],
    channels: usize,
    outputs: std::ops::Range<usize>,
    kernel: &Kernel,
    blurred: &mut [f64],
) {
    let width = row.len() / channels;
    let radius = kernel.radius as i64;
    blurred.fill(0.0);
    for channel in 0..channels {
        let at = |x: i64| row[mirror(x, width) * channels + channel];
        let target = blurred.iter_mut().skip(channel).step_by(channels).zip(outputs.clone());
        match &kernel.form {
            Form::Weights(weights) => {
                for (value, x) in target {
                    let x = x as i64;
                    let pairs = (1..=radius)
                        .map(|distance| weights[distance as usize] * (at(x - distance) + at(x + distance)));
                    *value = weights[0] * at(x) + pairs.sum::<f64>();
                }
            }
            Form::Cosines(cosines) => {
                let first = outputs.start as i64;
                let sum_at = |x: i64, cosine: &Cosine| -> f64 {
                    (-radius..=radius)
                        .map(|distance| (TAU * cosine.frequency * distance as f64).cos() * at(x + distance))
                        .sum()
                };
                let mut sums: Vec<[f64; 2]> =
                    cosines.iter().map(|cosine| [first - 1, first].map(|x| sum_at(x, cosine))).collect();
                for (value, x) in target {
                    let x = x as i64;
                    let change = at(x + radius + 1) - at(x + radius) - at(x - radius) + at(x - radius - 1);
                    for (cosine, [before, now]) in cosines.iter().zip(&mut sums) {
                        *value += cosine.amplitude * *now;
                        let next = cosine.step * *now - *before + cosine.edge * change;
                        (*before, *now) = (*now, next);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Layout;

    fn noise(width: u32, height: u32, layout: Layout) -> Raster {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let pixels = (0..width as usize * height as usize * layout.num_channels())
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        Raster::new(width, height, layout, pixels).unwrap()
    }

    #[test]
    fn nothing_to_blur_changes_nothing() {
        let image = noise(30, 20, Layout::Rgb);
        assert_eq!(blur_boxes(&image, &[]), image);
        for nothing in [[0.5, 0.5, 0.5, 0.5], [0.9, 0.9, 0.1, 0.1], [f64::NAN; 4], [7.0, 7.0, 8.0, 8.0]] {
            assert_eq!(blur_boxes(&image, &[nothing]), image, "{nothing:?}");
        }
    }

    #[test]
    fn only_the_surroundings_of_a_box_change() {
        let image = noise(100, 80, Layout::Rgb);
        let blurred = blur_boxes(&image, &[[0.4, 0.4, 0.6, 0.6]]);
        assert_ne!(blurred, image);
        let (before, after) = (image.into_rgb(), blurred.into_rgb());
        for (x, y) in [(0, 0), (30, 40), (70, 40), (50, 20), (50, 60), (99, 79)] {
            assert_eq!(before.pixel(x, y), after.pixel(x, y), "({x}, {y})");
        }
        let spread = |image: &crate::RgbImage| {
            let levels: Vec<i32> = (42..58).map(|x| image.pixel(x, 40)[0].into()).collect();
            levels.iter().max().unwrap() - levels.iter().min().unwrap()
        };
        assert!(spread(&after) * 2 < spread(&before), "{} {}", spread(&after), spread(&before));
    }

    #[test]
    fn flat_areas_stay_flat() {
        for radius_of in [0.1, 0.5, 1.0] {
            for level in [0, 1, 127, 254, 255] {
                let image = Raster::new(600, 300, Layout::Gray, vec![level; 180_000]).unwrap();
                let blurred = blur_boxes(&image, &[[0.0, 0.0, radius_of, radius_of]]);
                assert!(blurred.pixels().iter().all(|&found| found == level), "{level}");
            }
        }
    }

    /// The blend with a kernel of given form, for comparison.
    fn blended(image: &Raster, kernel: &Kernel) -> Vec<u8> {
        let area = Area { left: 20, top: 10, right: 150, bottom: 80 };
        let mut target = image.pixels().to_vec();
        blend(image, &[area], kernel, &mut target);
        target
    }

    #[test]
    fn cosines_equal_the_weights() {
        let image = noise(200, 90, Layout::Rgb);
        for radius in [25, 40, 77, 120] {
            let direct = Kernel { radius, form: Form::Weights(gaussian(radius)) };
            let largest = blended(&image, &direct)
                .iter()
                .zip(blended(&image, &Kernel::new(radius)))
                .map(|(exact, quick)| exact.abs_diff(quick))
                .max();
            assert!(largest <= Some(1), "radius {radius}: {largest:?}");
        }
    }

    #[test]
    fn thin_images_are_mirrored_as_often_as_needed() {
        for (width, height) in [(1, 400), (400, 1), (2, 300), (1, 1)] {
            let blurred = blur_boxes(&noise(width, height, Layout::Gray), &[[0.0, 0.0, 1.0, 1.0]]);
            assert_eq!((blurred.width(), blurred.height()), (width, height));
        }
    }

    #[test]
    fn mirrored_indices() {
        let mirrored: Vec<usize> = (-5..9).map(|index| mirror(index, 4)).collect();
        assert_eq!(mirrored, [1, 2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1, 2]);
        assert_eq!(mirror(-7, 1), 0);
    }
}
