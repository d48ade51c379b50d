//! MLM-Filter: a vision-language model reads image and caption and says how good they are together, 0 to 100.
//!
//! - [`Metric`]: the four questions; [`PromptStyle`]: their wording
//! - [`parse_score`]: the answer as a number
//! - [`MlmFilter`]: the stage; writes `{shard}.mlm.parquet` with `{metric}_score` and the raw answers
//! - [`Mode`]: whether it is right or as the reference's script; [`ImageShape`]: what becomes of images that are not square
//!
//! ```
//! use oqvl_mlm_filter::{Metric, PromptStyle, parse_score};
//!
//! let prompt = PromptStyle::Reference.text(Metric::ImageTextMatching, "a red square");
//! assert!(prompt.contains("<image>\nText Caption: a red square\n\nPlease evaluate"));
//! assert!(prompt.ends_with("<|im_start|>assistant\n "));
//! assert_eq!(parse_score("85\nThe caption"), Some(85));
//! assert_eq!(parse_score("high"), None);
//! ```
//!
//! Which scores are good enough is the mixer's business.

mod config;
mod error;
mod expected;
mod image;
mod prompt;
mod score;
mod stage;

pub use config::{ImageShape, MlmFilterConfig, Mode};
pub use error::MlmFilterError;
pub use prompt::{Metric, PromptStyle};
pub use score::{MAX_SCORE, parse_score};
pub use stage::{MlmFilter, MlmFilterReport, SCORER};
