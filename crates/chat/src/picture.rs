//! Image files.

use crate::ChatError;
use oqvl_image_prep::{DecodeLimits, RgbImage, decode, pixel_values};
use std::path::Path;
use std::sync::Arc;

/// Reads an image file.
pub(crate) fn read(path: &Path) -> Result<RgbImage, ChatError> {
    let bytes =
        std::fs::read(path).map_err(|source| ChatError::ReadImage { path: path.to_path_buf(), source })?;
    decode(&bytes, &DecodeLimits::default())
        .map_err(|source| ChatError::Image { path: path.to_path_buf(), source })
}

/// What a model of this image size sees of it.
pub(crate) fn pixels(image: &RgbImage, image_size: u32) -> Arc<[f32]> {
    pixel_values(image, image_size).into()
}
