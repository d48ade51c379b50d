//! The pairs of towers that can score, behind one face.

use crate::ClipFilterError;
use candle_core::{Device, Tensor};
use oqvl_image_prep::Preprocessing;
use oqvl_model::{ClipCheckpoint, ModelError, SiglipCheckpoint};
use oqvl_text_prep::ClipTextStyle;
use std::path::Path;

/// A pair of towers read from disk.
#[derive(Debug)]
pub(crate) enum Towers {
    /// Ours or a published one.
    Siglip(SiglipCheckpoint),
    /// OpenAI's or open_clip's.
    Clip(ClipCheckpoint),
}

impl Towers {
    /// Reads a folder; what it holds, its files say.
    pub(crate) fn load(dir: &Path, style: Option<ClipTextStyle>) -> Result<Self, ClipFilterError> {
        let unusable = |source| ClipFilterError::Load { model: dir.to_path_buf(), source };
        if ClipCheckpoint::is_in(dir).map_err(unusable)? {
            return Ok(Self::Clip(ClipCheckpoint::load(dir, style, &Device::Cpu).map_err(unusable)?));
        }
        match style {
            Some(_) => Err(ClipFilterError::TextStyleOfSiglip { model: dir.to_path_buf() }),
            None => Ok(Self::Siglip(SiglipCheckpoint::load(dir, &Device::Cpu).map_err(unusable)?)),
        }
    }

    pub(crate) fn digest(&self) -> &str {
        match self {
            Self::Siglip(checkpoint) => &checkpoint.digest,
            Self::Clip(checkpoint) => &checkpoint.digest,
        }
    }

    /// What is done to images. Networks that agree in it share the values.
    pub(crate) fn preprocessing(&self) -> Preprocessing {
        match self {
            Self::Siglip(checkpoint) => {
                Preprocessing::siglip(checkpoint.config.vision_config.image_size as u32)
            }
            Self::Clip(checkpoint) => checkpoint.preprocessing,
        }
    }

    /// Token ids of a caption, no more than the network reads.
    pub(crate) fn text_ids(&self, caption: &str) -> Result<Vec<i64>, ClipFilterError> {
        Ok(match self {
            Self::Siglip(checkpoint) => checkpoint.text_ids(caption)?,
            Self::Clip(checkpoint) => checkpoint.text_ids(caption)?,
        })
    }

    /// Cosines of images `(b, 3, size, size)` with as many texts.
    pub(crate) fn cosines(&self, images: &Tensor, texts: &[Vec<i64>]) -> Result<Vec<f64>, ModelError> {
        let (images, texts) = match self {
            Self::Siglip(checkpoint) => {
                let siglip = &checkpoint.siglip;
                (siglip.image_embeds(images)?, siglip.text_embeds(&checkpoint.text_batch(texts)?)?)
            }
            Self::Clip(ClipCheckpoint { clip, .. }) => {
                (clip.image_embeds(images)?, clip.text_embeds(&clip.text.batch(texts)?)?)
            }
        };
        let cosines = (images * texts)?.sum(1)?.to_vec1::<f32>()?;
        Ok(cosines.into_iter().map(f64::from).collect())
    }
}
