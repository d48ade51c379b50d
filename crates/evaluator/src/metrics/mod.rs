//! What turns judged answers into numbers: one metric per module, none of them knows a file format or a model.

mod accuracy;
mod binary;
mod contractions;
mod vqa_accuracy;
mod vqa_normalization;

pub use accuracy::{Proportion, wilson_interval};
pub use binary::BinaryCounts;
pub use vqa_accuracy::{VqaRule, soft_accuracy};
pub use vqa_normalization::{normalize_answer, strip_punctuation};
