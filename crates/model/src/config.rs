//! `config.json` files as other tools write them, read as shapes of our networks.
//!
//! Every key is accounted for: it shapes the network, or may only have the one value that is computed here, or is known
//! to say nothing about what is computed. A key that nobody knows is an error.

mod clip;
mod keys;
mod qwen2;
mod ranges;
mod siglip;
mod sizes;
mod vlm;

pub(crate) use keys::Keys;
pub(crate) use ranges::{
    check_heads, check_norm_eps, check_patches, check_range, check_rope_theta, check_vocabulary,
};
pub(crate) use sizes::check_sizes;
pub(crate) use vlm::{ReferenceConfig, leaves_tower_open};

use serde_json::{Map, Value};

/// `model_cfg` of an `open_clip_config.json`. What is beside it says how images are made, which is read by
/// [`check_images`](crate::preprocessing::check_images).
fn open_clip_model(mut keys: Keys) -> Result<Keys, String> {
    let model: Map<String, Value> = keys.table("model_cfg")?;
    keys.pass_over(&["preprocess_cfg"]);
    keys.finish()?;
    Ok(Keys::new(model))
}
