//! Image-text similarity: the cosine of the two embeddings of a pair of towers, CLIP's or SigLIP's, for every sample of
//! every shard.
//!
//! [`ClipFilter`] is the stage, [`ClipFilterConfig`] its table; it writes `{shard}.clip.parquet` with [`METRIC`], or with
//! a column for each of several [models](NamedModel), which then share the decoded images.
//!
//! ```
//! use oqvl_clip_filter::{ClipFilter, ClipFilterConfig};
//! use oqvl_stage::{ConfigFile, Stage};
//!
//! let text = "[clip-filter]\nshards = \"data-fetch\"\nmodel = \"bootstrap/siglip\"";
//! let config: ClipFilterConfig = ConfigFile::parse(text)?.stage(ClipFilter::NAME)?;
//! assert_eq!(config, ClipFilterConfig::one("data-fetch", "bootstrap/siglip"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Thresholds and fractions are the mixer's business.

mod config;
mod error;
mod stage;
mod towers;

pub use config::{ClipFilterConfig, NamedModel};
pub use error::ClipFilterError;
pub use stage::{ClipFilter, ClipFilterReport, METRIC, SCORER};
