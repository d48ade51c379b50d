//! Which images are acceptable, and to what size they are brought: arithmetic on widths and heights alone.
//!
//! Source: img2dataset 1.47 `resizer.py` (and albumentations' `SmallestMaxSize`, `LongestMaxSize`,
//! `PadIfNeeded`, `CenterCrop` it calls).

use crate::config::{DataFetchConfig, ResizeMode};
use crate::reject::Reject;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    /// Pixels per row.
    pub(crate) width: u32,
    /// Rows.
    pub(crate) height: u32,
}

impl Size {
    fn shorter(self) -> u32 {
        self.width.min(self.height)
    }

    /// The longer side.
    pub(crate) fn longer(self) -> u32 {
        self.width.max(self.height)
    }

    fn area(self) -> u64 {
        u64::from(self.width) * u64::from(self.height)
    }
}

/// What to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ResizePlan {
    /// Leave its pixels alone.
    Keep,
    /// Scale it.
    Scale(Size),
    /// Scale it to `scaled`, then cut the middle square of side `side` out of it.
    ScaleAndCrop {
        /// Size before the cut.
        scaled: Size,
        /// Side of the square.
        side: u32,
    },
    /// Scale it to `scaled`, then put it into the middle of a white square of side `side`.
    ScaleAndPad {
        /// Size before the padding.
        scaled: Size,
        /// Side of the square.
        side: u32,
    },
}

impl ResizePlan {
    /// The size that an image of size `original` is scaled down to, if it is.
    pub(crate) fn shrunk_from(self, original: Size) -> Option<Size> {
        match self {
            Self::Keep => None,
            Self::Scale(scaled) | Self::ScaleAndCrop { scaled, .. } | Self::ScaleAndPad { scaled, .. } => {
                (scaled.longer() < original.longer()).then_some(scaled)
            }
        }
    }
}

/// Accepts or rejects an image by its original size.
///
/// # Errors
/// [`Reject::ImageTooLarge`], [`Reject::ImageTooSmall`] or [`Reject::AspectRatio`].
pub(crate) fn check_size(original: Size, config: &DataFetchConfig) -> Result<(), Reject> {
    if original.shorter() == 0 {
        return Err(Reject::CorruptImage);
    }
    if original.area() > config.max_decoded_pixels.min(config.max_image_area.unwrap_or(u64::MAX)) {
        return Err(Reject::ImageTooLarge);
    }
    if original.shorter() < config.min_image_size {
        return Err(Reject::ImageTooSmall);
    }
    let aspect_ratio = f64::from(original.longer()) / f64::from(original.shorter());
    if config.max_aspect_ratio.is_some_and(|most| aspect_ratio > most) {
        return Err(Reject::AspectRatio);
    }
    Ok(())
}

/// What to do with an image of size `original`.
///
/// # Errors
/// [`Reject::ImageTooLarge`] if enlarging a long strip would give a side the format cannot hold, or more
/// pixels than `max_decoded_pixels`.
pub(crate) fn plan(original: Size, config: &DataFetchConfig) -> Result<ResizePlan, Reject> {
    let side = config.image_size;
    let reference = match config.resize_mode {
        ResizeMode::No => return Ok(ResizePlan::Keep),
        ResizeMode::KeepRatio | ResizeMode::CenterCrop => original.shorter(),
        ResizeMode::Border | ResizeMode::KeepRatioLargest => original.longer(),
    };
    if config.resize_only_if_bigger && reference <= side {
        return Ok(ResizePlan::Keep);
    }
    let scale = f64::from(side) / f64::from(reference);
    // Python's `round` takes ties to the even neighbour.
    let scaled_side = |length: u32| ((f64::from(length) * scale).round_ties_even() as u32).max(1);
    let scaled = Size { width: scaled_side(original.width), height: scaled_side(original.height) };
    if scaled.longer() > config.encoding().max_side() || scaled.area() > config.max_decoded_pixels {
        return Err(Reject::ImageTooLarge);
    }
    Ok(match config.resize_mode {
        ResizeMode::CenterCrop => ResizePlan::ScaleAndCrop { scaled, side },
        ResizeMode::Border => ResizePlan::ScaleAndPad { scaled, side },
        _ => ResizePlan::Scale(scaled),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(width: u32, height: u32) -> Size {
        Size { width, height }
    }

    fn config(mode: ResizeMode, image_size: u32) -> DataFetchConfig {
        DataFetchConfig { resize_mode: mode, image_size, resize_only_if_bigger: false, ..Default::default() }
    }

    /// Sizes measured on img2dataset 1.47 (albumentations on OpenCV 4.14).
    #[test]
    fn sizes_are_those_of_img2dataset() {
        for (mode, image_size, original, expected) in [
            (ResizeMode::KeepRatio, 512, size(777, 1023), size(512, 674)),
            (ResizeMode::KeepRatio, 512, size(1000, 333), size(1538, 512)),
            (ResizeMode::KeepRatioLargest, 256, size(100, 80), size(256, 205)),
            (ResizeMode::KeepRatioLargest, 256, size(10_000, 1), size(256, 1)),
            // 5 * 0.5 = 2.5 and 7 * 0.5 = 3.5: ties go to the even neighbour.
            (ResizeMode::KeepRatio, 1, size(2, 5), size(1, 2)),
            (ResizeMode::KeepRatio, 1, size(2, 7), size(1, 4)),
        ] {
            assert_eq!(plan(original, &config(mode, image_size)), Ok(ResizePlan::Scale(expected)));
        }
    }

    #[test]
    fn squares_are_cropped_or_padded() {
        let scaled = size(144, 96);
        let crop = ResizePlan::ScaleAndCrop { scaled, side: 96 };
        assert_eq!(plan(size(300, 200), &config(ResizeMode::CenterCrop, 96)), Ok(crop));
        let pad = ResizePlan::ScaleAndPad { scaled: size(96, 64), side: 96 };
        assert_eq!(plan(size(300, 200), &config(ResizeMode::Border, 96)), Ok(pad));
    }

    #[test]
    fn small_images_are_left_alone_if_asked() {
        for (mode, original, is_kept) in [
            (ResizeMode::No, size(900, 900), true),
            (ResizeMode::KeepRatio, size(512, 900), true),
            (ResizeMode::KeepRatio, size(513, 900), false),
            (ResizeMode::CenterCrop, size(512, 900), true),
            (ResizeMode::KeepRatioLargest, size(512, 513), false),
            (ResizeMode::KeepRatioLargest, size(512, 512), true),
            (ResizeMode::Border, size(100, 512), true),
        ] {
            let config = DataFetchConfig { resize_only_if_bigger: true, ..config(mode, 512) };
            assert_eq!(plan(original, &config) == Ok(ResizePlan::Keep), is_kept, "{mode:?} {original:?}");
        }
    }

    #[test]
    fn filters_have_their_reasons() {
        let config = DataFetchConfig {
            min_image_size: 10,
            max_image_area: Some(10_000),
            max_aspect_ratio: Some(4.0),
            ..Default::default()
        };
        for (original, expected) in [
            (size(100, 100), Ok(())),
            (size(10, 40), Ok(())),
            (size(9, 40), Err(Reject::ImageTooSmall)),
            (size(10, 41), Err(Reject::AspectRatio)),
            (size(101, 100), Err(Reject::ImageTooLarge)),
            (size(0, 100), Err(Reject::CorruptImage)),
            (size(u32::MAX, u32::MAX), Err(Reject::ImageTooLarge)),
        ] {
            assert_eq!(check_size(original, &config), expected, "{original:?}");
        }
    }

    #[test]
    fn a_strip_is_not_blown_up_without_limit() {
        assert_eq!(plan(size(1, 129), &config(ResizeMode::KeepRatio, 512)), Err(Reject::ImageTooLarge));
        assert!(plan(size(1, 127), &config(ResizeMode::KeepRatio, 512)).is_ok());
    }

    proptest! {
        #[test]
        fn planned_sizes_are_within_bounds(width in 1_u32..5000, height in 1_u32..5000, side in 1_u32..600) {
            for mode in [ResizeMode::Border, ResizeMode::KeepRatio, ResizeMode::KeepRatioLargest, ResizeMode::CenterCrop] {
                let Ok(plan) = plan(size(width, height), &config(mode, side)) else { continue };
                match plan {
                    ResizePlan::Keep => prop_assert!(false, "nothing is kept when small images are enlarged"),
                    ResizePlan::Scale(scaled) => prop_assert!(scaled.shorter() == side || scaled.longer() == side),
                    ResizePlan::ScaleAndCrop { scaled, side } => prop_assert!(scaled.shorter() == side),
                    ResizePlan::ScaleAndPad { scaled, side } => prop_assert!(scaled.longer() == side && scaled.shorter() >= 1),
                }
            }
        }
    }
}
