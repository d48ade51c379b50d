//! The flags by which programs that are no stages take a vision-language model.

use crate::config_error::ConfigError;
use clap::Args;

/// A vision-language model and what completes it, as typed: names that [`ModelFinder`](crate::ModelFinder) finds.
#[derive(Debug, Clone, Args)]
pub struct ModelFlags {
    /// Checkpoint: ours, transformers' LLaVA, the MLM-Filter release, or the reference's; a folder, or a model of the hub:
    /// owner/name or owner/name@revision
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    pub model: String,
    /// The SigLIP tower, for a checkpoint that holds none (the reference's); the release's is found by itself
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    pub vision_tower: Option<String>,
    /// The Qwen2 it was made from, for a checkpoint without tokenizer (the reference's); the release's is found by itself
    #[arg(long, value_name = "DIR_OR_HUB_ID")]
    pub language_model: Option<String>,
}

impl ModelFlags {
    /// The flag that names a part of a model: `--vision-tower` for `vision tower`.
    #[must_use]
    pub fn flag(part: &str) -> String {
        format!("--{}", part.replace(' ', "-"))
    }

    /// The error of a model that cannot do without these parts, and why it cannot.
    #[must_use]
    pub fn missing<'a>(parts: impl IntoIterator<Item = &'a str>, why: &str) -> ConfigError {
        let flags: Vec<String> = parts.into_iter().map(Self::flag).collect();
        ConfigError::flag(flags.join(" and "), why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_named_by_flags_that_are_there() {
        let command = ModelFlags::augment_args(clap::Command::new("test"));
        for part in ["vision tower", "language model"] {
            let flag = ModelFlags::flag(part);
            let is_there = command.get_arguments().any(|arg| arg.get_long() == flag.strip_prefix("--"));
            assert!(is_there, "{flag}");
        }
        let error = ModelFlags::missing(["vision tower", "language model"], "a lacks them");
        assert_eq!(error.to_string(), "--vision-tower and --language-model: a lacks them");
    }
}
