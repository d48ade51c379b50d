//! SigLIP: timm's vision tower, transformers' pair.

use super::{Outputs, store};
use crate::fixture::Fixture;
use candle_core::DType;
use oqvl_model::{Missing, Network, Siglip, SiglipConfig, SiglipVisionConfig, SiglipVisionTower};

pub(super) fn vision(fixture: &Fixture, dtype: DType) -> anyhow::Result<Outputs> {
    let mut store = store(fixture.weights(Network::SiglipVision)?, Missing::Refuse, dtype);
    let tower = SiglipVisionTower::new(&fixture.config::<SiglipVisionConfig>()?, store.root())?;
    store.finish()?;
    let pixels = fixture.golden("pixel_values")?.to_dtype(dtype)?;
    Ok(vec![("patch_features", tower.patch_features(&pixels)?), ("image_pooled", tower.pooled(&pixels)?)])
}

pub(super) fn pair(fixture: &Fixture, dtype: DType) -> anyhow::Result<Outputs> {
    let mut store = store(fixture.weights(Network::Siglip)?, Missing::Refuse, dtype);
    let siglip = Siglip::new(&fixture.config::<SiglipConfig>()?, store.root())?;
    store.finish()?;
    let pixels = fixture.golden("pixel_values")?.to_dtype(dtype)?;
    let ids = fixture.golden("input_ids")?.to_dtype(DType::U32)?;
    let mut outputs = vec![
        ("patch_features", siglip.vision.patch_features(&pixels)?),
        ("image_pooled", siglip.vision.pooled(&pixels)?),
        ("image_embeds", siglip.image_embeds(&pixels)?),
        ("text_pooled", siglip.text.pooled(&ids)?),
        ("text_embeds", siglip.text_embeds(&ids)?),
    ];
    if dtype == DType::F32 {
        outputs.push(("loss", siglip.loss(&pixels, &ids)?.reshape(1)?));
    }
    Ok(outputs)
}
