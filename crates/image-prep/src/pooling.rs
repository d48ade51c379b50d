//! The windows of adaptive average pooling, along one side.

/// For each of `pooled` outputs, the range `start..end` of the `grid` inputs it is the mean of. Windows cover all
/// inputs and may overlap by one.
///
/// # Panics
/// If `pooled` is 0 or more than `grid`.
///
/// Source: `adaptive_avg_pool2d` of PyTorch: `floor(i * grid / pooled)` to `ceil((i + 1) * grid / pooled)`.
pub fn pooling_windows(grid: usize, pooled: usize) -> Vec<(usize, usize)> {
    assert!((1..=grid).contains(&pooled), "cannot pool {grid} cells to {pooled}");
    (0..pooled).map(|i| (i * grid / pooled, ((i + 1) * grid).div_ceil(pooled))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn twenty_seven_to_twelve() {
        let windows = pooling_windows(27, 12);
        let starts: Vec<usize> = windows.iter().map(|window| window.0).collect();
        assert_eq!(starts, [0, 2, 4, 6, 9, 11, 13, 15, 18, 20, 22, 24]);
        assert!(windows.iter().all(|(start, end)| end - start == 3));
    }

    #[test]
    fn edges() {
        assert_eq!(pooling_windows(1, 1), [(0, 1)]);
        assert_eq!(pooling_windows(5, 1), [(0, 5)]);
        assert_eq!(pooling_windows(3, 3), [(0, 1), (1, 2), (2, 3)]);
    }

    proptest! {
        #[test]
        fn windows_cover_in_order(grid in 1usize..40, fraction in 0.0f64..1.0) {
            let pooled = 1 + (fraction * grid as f64) as usize;
            prop_assume!(pooled <= grid);
            let windows = pooling_windows(grid, pooled);
            prop_assert_eq!((windows[0].0, windows[pooled - 1].1), (0, grid));
            for pair in windows.windows(2) {
                prop_assert!(pair[0].0 < pair[1].0 && pair[1].0 <= pair[0].1 && pair[0].1 <= pair[1].0 + 1);
            }
        }
    }
}
