//! `config.json` files as other tools write them, read as shapes of our networks.
//!
//! Every key is accounted for: it shapes the network, or may only have the one value that is computed here, or is known
//! to say nothing about what is computed. A key that nobody knows is an error.

mod keys;
mod qwen2;
mod siglip;
mod sizes;
mod vlm;

pub(crate) use keys::{Keys, remove_unread};
pub(crate) use sizes::check_sizes;
pub(crate) use vlm::{ReferenceConfig, leaves_tower_open};
