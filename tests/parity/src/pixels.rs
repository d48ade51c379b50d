//! What the vision towers read, against Pillow and open_clip's transform.

use crate::fixture::root;
use crate::row::{Equal, Place, Row};
use anyhow::Context as _;
use candle_core::Device;
use oqvl_image_prep::{DecodeLimits, clip_pixel_values, decode, pixel_values};
use oqvl_model::read_safetensors;

/// The pictures of `pixels/`, bit for bit.
pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let dir = root().join("pixels");
    let mut rows = Vec::new();
    for (name, golden) in read_safetensors(&dir.join("golden.safetensors"), &Device::Cpu)? {
        let (transform, picture) = name.split_once('.').context("goldens are named transform.picture")?;
        let path = dir.join(format!("{picture}.png"));
        let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
        let image = decode(&bytes, &DecodeLimits::default())?;
        let edge = golden.dim(1)? as u32;
        let found = match transform {
            "siglip" => pixel_values(&image, edge),
            "clip" => clip_pixel_values(&image, edge),
            other => anyhow::bail!("no transform `{other}`"),
        };
        let expected: Vec<f32> = golden.flatten_all()?.to_vec1()?;
        let place = Place { architecture: "image transform", fixture: format!("pixels/{picture}") };
        rows.push(place.sequence("f32", &format!("{transform} pixel values"), Equal::of(&found, &expected)));
    }
    Ok(rows)
}
