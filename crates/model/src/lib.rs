//! The networks of Open-Qwen2VL on candle, single-device and differentiable end to end.
//!
//! - [`SiglipVisionTower`] and [`Siglip`]: the vision tower, and the image-text pair that clip-filter scores with
//! - [`Clip`]: the other image-text pair, OpenAI's and open_clip's
//! - [`Qwen2`]: the language model
//! - [`AvgPoolProjector`]: patches to image tokens
//! - [`Vlm`]: the three assembled; [`Vlm::loss`] to train, [`Vlm::generate`] and [`Vlm::answer`] to answer in batches,
//!   [`Session`] to converse
//! - [`ParamStore`]: parameters under their checkpoint names, drawn from a seed or read from files
//! - [`read_weights`]: tensors from safetensors and torch files, and [`Network::rename`]: their names here
//! - [`read_vlm`], [`read_vision_tower`], [`read_language_model`], [`read_siglip`], [`read_clip`]: folders of ours and of
//!   others, with `config.json`, weights, `tokenizer.json`; [`VlmCheckpoint`], [`SiglipCheckpoint`], [`ClipCheckpoint`]:
//!   the same, ready to run; [`VlmNames`]: which folders a model is made of, and [`chat_template`]: how it is spoken to
//!
//! ```
//! use candle_core::Device;
//! use oqvl_model::{Example, HiddenAct, ParamStore, Prompt, Qwen2Config, SiglipVisionConfig, Vlm, VlmConfig};
//!
//! let config = VlmConfig {
//!     vision_config: SiglipVisionConfig {
//!         hidden_size: 8, intermediate_size: 16, num_hidden_layers: 2, num_attention_heads: 2,
//!         image_size: 8, patch_size: 4, layer_norm_eps: 1e-6, hidden_act: HiddenAct::Gelu,
//!     },
//!     text_config: Qwen2Config {
//!         vocab_size: 32, hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
//!         num_key_value_heads: 1, max_position_embeddings: 64, rope_theta: 1e4, rms_norm_eps: 1e-6,
//!         tie_word_embeddings: true,
//!     },
//!     pooled_grid: 1,
//!     vision_feature_layer: oqvl_model::SECOND_TO_LAST,
//! };
//! let mut store = ParamStore::seeded(7, &Device::Cpu);
//! let vlm = Vlm::new(&config, store.root(), &Device::Cpu)?;
//! store.finish()?;
//!
//! // An image (placeholder -200) between two tokens; the last token is the one to learn.
//! let prompt = Prompt { input_ids: vec![1, -200, 2], images: vec![vec![0.0; 3 * 8 * 8].into()] };
//! let example = Example { prompt, labels: vec![-100, -100, 2] };
//! let output = vlm.loss(&[&example])?;
//! assert_eq!((output.num_labels, output.num_tokens), (1, 3));
//! let grads = output.loss.backward()?;
//! let projector = &store.vars()["projector.mlp_projector.0.weight"];
//! assert!(grads.get(projector).is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`export()`] writes a model for other tools.
//!
//! This crate knows no rank, no config file of a run and no command line. Training is `oqvl-trainer`.

mod checkpoint;
mod clip;
mod config;
mod encoder;
mod error;
mod export;
mod fine_tuning;
mod generate;
mod layers;
mod named;
mod params;
mod preprocessing;
mod projector;
mod qwen2;
mod siglip;
mod siglip_text;
mod vlm;
mod weights;

pub use checkpoint::{
    CONFIG_FILE, Companions, Contents, SiglipCheckpoint, TOKENIZER_FILE, VlmCheckpoint, read_config,
    read_language_model, read_siglip, read_vision_tower, read_vlm, save_checkpoint,
};
pub use clip::{
    Clip, ClipCheckpoint, ClipConfig, ClipTextConfig, ClipTextTower, ClipVisionConfig, ClipVisionTower,
    read_clip,
};
pub use encoder::HiddenAct;
pub use error::ModelError;
pub use export::{BackboneIds, ExportFormat, Exported, MAX_SHARD_BYTES, check_new, export};
pub use fine_tuning::chat_template;
pub use generate::{
    Answer, AnswerEnd, Event, GenerateConfig, Sampling, Session, TextStream, pad_left_unmasked, single_tokens,
};
pub use named::{Backbone, DefaultBackbone, VlmFolders, VlmNames};
pub use params::{Init, Missing, ParamBuilder, ParamStore, Trainable};
pub use projector::AvgPoolProjector;
pub use qwen2::{Qwen2, Qwen2Config};
pub use siglip::{
    SECOND_TO_LAST, Siglip, SiglipConfig, SiglipTextConfig, SiglipTextTower, SiglipVisionConfig,
    SiglipVisionTower,
};
pub use siglip_text::SiglipText;
pub use vlm::{Example, LossOutput, Prompt, Vlm, VlmConfig};
pub use weights::{
    Network, WEIGHTS_FILE, WeightsError, drop_tied_head, read_safetensors, read_weights, weight_files,
};
