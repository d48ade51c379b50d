//! How an image becomes patches, and patches become language-model tokens.

use serde::{Deserialize, Serialize};

use crate::GeometryError;

/// Input size, patch size and pooling of the vision side. The number of tokens per image is derived here and nowhere
/// else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageGeometry {
    /// Side of the square the vision tower reads, in pixels.
    pub image_size: u32,
    /// Side of a patch, in pixels. Pixels that fill no whole patch, right and at the bottom, are not read.
    pub patch_size: u32,
    /// Side of the grid that patches are pooled to before they enter the language model, in cells.
    pub pooled_grid: u32,
}

impl ImageGeometry {
    /// Pre-training on SigLIP SO400M/14-384: 27 x 27 patches pooled to 12 x 12 = 144 tokens.
    /// Source: Open-Qwen2VL, `no-align+avgpool`.
    pub const fn pretrain() -> Self {
        Self { image_size: 384, patch_size: 14, pooled_grid: 12 }
    }

    /// Fine-tuning on SigLIP SO400M/14-384: all 27 x 27 = 729 patches.
    /// Source: Open-Qwen2VL, `full-align+729-avgpool`.
    pub const fn sft() -> Self {
        Self { image_size: 384, patch_size: 14, pooled_grid: 27 }
    }

    /// Whether the three numbers fit together.
    ///
    /// # Errors
    /// If one is 0, a patch is larger than the image, or the pooled grid is finer than the patches.
    pub fn validate(&self) -> Result<(), GeometryError> {
        let Self { image_size, patch_size, pooled_grid } = *self;
        let out_of = |key, expected, found| Err(GeometryError { key, expected, found });
        if !(1..=crate::MAX_SIDE).contains(&image_size) {
            return out_of("image_size", format!("from 1 to {}", crate::MAX_SIDE), image_size);
        }
        if !(1..=image_size).contains(&patch_size) {
            return out_of("patch_size", format!("from 1 to image_size = {image_size}"), patch_size);
        }
        if !(1..=self.grid()).contains(&pooled_grid) {
            return out_of(
                "pooled_grid",
                format!("from 1 to {}, the patches per side", self.grid()),
                pooled_grid,
            );
        }
        Ok(())
    }

    /// Patches per side: `image_size / patch_size`, rounded down.
    pub const fn grid(&self) -> u32 {
        self.image_size / self.patch_size
    }

    /// Patches per image: [`grid`](Self::grid) squared.
    pub const fn num_patches(&self) -> usize {
        (self.grid() as usize).pow(2)
    }

    /// Language-model tokens per image: `pooled_grid` squared.
    pub const fn num_image_tokens(&self) -> usize {
        (self.pooled_grid as usize).pow(2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_numbers() {
        let (pretrain, sft) = (ImageGeometry::pretrain(), ImageGeometry::sft());
        assert_eq!((pretrain.grid(), pretrain.num_patches(), pretrain.num_image_tokens()), (27, 729, 144));
        assert_eq!(sft.num_image_tokens(), 729);
        assert!(pretrain.validate().is_ok() && sft.validate().is_ok());
    }

    #[test]
    fn nonsense_is_named() {
        let check = |image_size, patch_size, pooled_grid, expected: &str| {
            let error = ImageGeometry { image_size, patch_size, pooled_grid }.validate().unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(0, 1, 1, "image_size must be from 1 to 65535, got 0");
        check(48, 0, 1, "patch_size must be from 1 to image_size = 48, got 0");
        check(48, 49, 1, "patch_size must be from 1 to image_size = 48, got 49");
        check(48, 8, 7, "pooled_grid must be from 1 to 6, the patches per side, got 7");
        check(48, 8, 0, "pooled_grid must be from 1 to 6, the patches per side, got 0");
    }
}
