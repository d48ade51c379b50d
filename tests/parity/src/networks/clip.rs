//! CLIP of transformers and of open_clip.

use super::{Outputs, store};
use crate::fixture::Fixture;
use candle_core::DType;
use oqvl_model::{Clip, ClipConfig, Missing, Network};

pub(super) fn outputs(fixture: &Fixture, dtype: DType) -> anyhow::Result<Outputs> {
    let mut store = store(fixture.weights(Network::Clip)?, Missing::Refuse, dtype);
    let clip = Clip::new(&fixture.config::<ClipConfig>()?, store.root())?;
    store.finish()?;
    let pixels = fixture.golden("pixel_values")?.to_dtype(dtype)?;
    let ids = fixture.golden("input_ids")?.to_dtype(DType::U32)?;
    let (images, texts) = (clip.image_embeds(&pixels)?, clip.text_embeds(&ids)?);
    Ok(vec![
        ("hidden_states", clip.vision.hidden_states(&pixels)?),
        ("image_pooled", clip.vision.pooled(&pixels)?),
        ("image_features", clip.image_features(&pixels)?),
        ("text_pooled", clip.text.pooled(&ids)?),
        ("text_features", clip.text_features(&ids)?),
        ("logits_per_image", clip.logits_per_image(&images, &texts)?),
        ("image_embeds", images),
        ("text_embeds", texts),
    ])
}
