//! Adaptive average pooling on a CPU, in f32 and f64.

use super::Pooling;
use crate::element::{Element, lit};

/// For each of `pooled` outputs along a side, the range `start..end` of the `grid` inputs it is the mean of. Windows cover all
/// inputs and may overlap.
///
/// Source: `adaptive_avg_pool2d` of PyTorch: `floor(i * grid / pooled)` to `ceil((i + 1) * grid / pooled)`.
fn windows(grid: usize, pooled: usize) -> Vec<(usize, usize)> {
    (0..pooled).map(|i| (i * grid / pooled, ((i + 1) * grid).div_ceil(pooled))).collect()
}

/// Calls `visit` with the offsets of an output and of an input that is in its window, and with the window's size.
fn for_each_pair(sizes: Pooling, mut visit: impl FnMut(usize, usize, usize)) {
    let Pooling { batch, grid, pooled, channels } = sizes;
    let windows = windows(grid, pooled);
    let mut output = 0;
    for image in 0..batch {
        for &(top, bottom) in &windows {
            for &(left, right) in &windows {
                for row in top..bottom {
                    for col in left..right {
                        let input = ((image * grid + row) * grid + col) * channels;
                        visit(output, input, (bottom - top) * (right - left));
                    }
                }
                output += channels;
            }
        }
    }
}

/// Writes the means of `x` to `y`.
pub(crate) fn forward<T: Element>(x: &[T], sizes: Pooling, y: &mut [T]) {
    let Pooling { batch, pooled, channels, .. } = sizes;
    y.fill(T::zero());
    let mut window_sizes = vec![0; batch * pooled * pooled];
    for_each_pair(sizes, |output, input, size| {
        let from = &x[input..input + channels];
        y[output..output + channels].iter_mut().zip(from).for_each(|(sum, value)| *sum += *value);
        window_sizes[output / channels.max(1)] = size;
    });
    // After the sum, as PyTorch.
    for (pixel, size) in y.chunks_exact_mut(channels.max(1)).zip(window_sizes) {
        let size = lit::<T>(size as f64);
        pixel.iter_mut().for_each(|sum| *sum /= size);
    }
}

/// Writes the gradient of the inputs to `dx`.
pub(crate) fn backward<T: Element>(dy: &[T], sizes: Pooling, dx: &mut [T]) {
    let channels = sizes.channels;
    dx.fill(T::zero());
    for_each_pair(sizes, |output, input, size| {
        let share = lit::<T>(size as f64).recip();
        let to = dx[input..input + channels].iter_mut();
        to.zip(&dy[output..output + channels]).for_each(|(sum, dy)| *sum += *dy * share);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn twenty_seven_to_twelve() {
        let windows = windows(27, 12);
        let starts: Vec<usize> = windows.iter().map(|window| window.0).collect();
        assert_eq!(starts, [0, 2, 4, 6, 9, 11, 13, 15, 18, 20, 22, 24]);
        assert!(windows.iter().all(|(start, end)| end - start == 3));
    }

    #[test]
    fn edges() {
        assert_eq!(windows(1, 1), [(0, 1)]);
        assert_eq!(windows(5, 1), [(0, 5)]);
        assert_eq!(windows(3, 3), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(windows(2, 3), [(0, 1), (0, 2), (1, 2)]);
    }

    proptest! {
        #[test]
        fn windows_cover_in_order(grid in 1usize..40, pooled in 1usize..40) {
            let windows = windows(grid, pooled);
            prop_assert_eq!((windows[0].0, windows[pooled - 1].1), (0, grid));
            for pair in windows.windows(2) {
                prop_assert!(pair[0].0 <= pair[1].0 && pair[1].0 <= pair[0].1 && pair[0].1 <= pair[1].0 + 1);
            }
        }

        /// What the backward kernel gathers by: the outputs that hold an input are a window of the exchanged sizes.
        #[test]
        fn an_input_is_held_by_a_window_of_outputs(grid in 1usize..40, pooled in 1usize..40) {
            let (outputs, inputs) = (windows(grid, pooled), windows(pooled, grid));
            for (input, (first, end)) in inputs.into_iter().enumerate() {
                let holders = outputs.iter().map(|(start, end)| (*start..*end).contains(&input));
                prop_assert!(holders.enumerate().all(|(output, holds)| holds == (first..end).contains(&output)));
            }
        }
    }
}
