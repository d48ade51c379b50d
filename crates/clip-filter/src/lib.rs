//! Image-text similarity: the cosine of the two embeddings of a SigLIP pair, for every sample of every shard.
//!
//! [`ClipFilter`] is the stage, [`ClipFilterConfig`] its table; it writes `{shard}.clip.parquet` with [`METRIC`].
//!
//! ```
//! use oqvl_clip_filter::{ClipFilter, ClipFilterConfig};
//! use oqvl_stage::{ConfigFile, Stage};
//!
//! let text = "[clip-filter]\nshards = \"data-fetch\"\nmodel = \"bootstrap/siglip\"";
//! let config: ClipFilterConfig = ConfigFile::parse(text)?.stage(ClipFilter::NAME)?;
//! assert_eq!(config.shards.to_str(), Some("data-fetch"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Thresholds and fractions are the mixer's business.

mod config;
mod error;
mod stage;

pub use config::ClipFilterConfig;
pub use error::ClipFilterError;
pub use stage::{ClipFilter, ClipFilterReport, METRIC, SCORER};
