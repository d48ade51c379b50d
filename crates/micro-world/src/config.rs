//! The `[micro-world]` table.

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the world comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "source", rename_all = "kebab-case")]
pub enum WorldConfig {
    /// Drawn scenes.
    Synthetic(SyntheticConfig),
    /// Real images from a directory.
    Photos(PhotosConfig),
}

/// Sizes and shares of the synthetic world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SyntheticConfig {
    /// URLs in the web pool. At least 64 if `fault_share` is not 0, so that every fault comes twice.
    pub num_urls: usize,
    /// Share of the URLs whose caption is of another scene.
    pub mismatched_share: f64,
    /// Share of the URLs whose caption has one attribute wrong.
    pub subtle_share: f64,
    /// Share of the URLs with a vague caption.
    pub vague_share: f64,
    /// Share of the URLs with boilerplate for a caption.
    pub boilerplate_share: f64,
    /// Share of the URLs that show the scene of another URL again, moved a little, encoded and captioned
    /// anew.
    pub near_duplicate_share: f64,
    /// Share of the URLs that serve the bytes of another URL. What all these shares leave is clean.
    pub duplicate_share: f64,
    /// Share of the URLs that each of the other twelve faults gets, on top of whatever the pair is.
    pub fault_share: f64,
    /// Clean pairs for the SigLIP stand-in.
    pub num_siglip_pairs: usize,
    /// Scored pairs of every class for the MLM-Filter stand-in.
    pub num_mlm_filter_pairs: usize,
    /// Text documents for the language model stand-in.
    pub num_text_documents: usize,
    /// Conversations for visual instruction tuning.
    pub num_sft_conversations: usize,
    /// Held-out questions with four options.
    pub num_multiple_choice: usize,
    /// Held-out questions whose answer is yes or no; even, so that the two balance.
    pub num_yes_no: usize,
    /// Held-out questions with an open answer of a word or two.
    pub num_open_questions: usize,
}

impl SyntheticConfig {
    /// Number of faults that get `fault_share` each: all but the duplicates.
    const NUM_FAULTS: usize = crate::records::Fault::SYNTHETIC.len() - 1;
    /// The fewest URLs among which twice every fault finds room beside the duplicates.
    const MIN_URLS_WITH_FAULTS: usize = 64;

    /// How many URLs each of the twelve faults gets: its share, but at least two.
    pub(crate) fn urls_per_fault(&self) -> usize {
        if self.fault_share == 0.0 { 0 } else { share_of(self.num_urls, self.fault_share).max(2) }
    }

    fn shares(&self) -> [(&'static str, f64); 7] {
        [
            ("mismatched_share", self.mismatched_share),
            ("subtle_share", self.subtle_share),
            ("vague_share", self.vague_share),
            ("boilerplate_share", self.boilerplate_share),
            ("near_duplicate_share", self.near_duplicate_share),
            ("duplicate_share", self.duplicate_share),
            ("fault_share", self.fault_share),
        ]
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for (key, share) in self.shares() {
            if !(0.0..1.0).contains(&share) {
                return Err(ConfigError::new(key, format!("must be from 0 to below 1, got {share}")));
            }
        }
        let not_clean: f64 = self.shares()[..6].iter().map(|(_, share)| share).sum();
        if not_clean > 0.8 {
            let message = format!(
                "the six shares of pairs and duplicates must leave 0.2 for clean pairs, sum {not_clean}"
            );
            return Err(ConfigError::new("mismatched_share", message));
        }
        if Self::NUM_FAULTS as f64 * self.fault_share > 0.5 {
            let message =
                format!("{} faults get it, together at most half of the URLs: 0.04", Self::NUM_FAULTS);
            return Err(ConfigError::new("fault_share", message));
        }
        if self.fault_share > 0.0 && self.num_urls < Self::MIN_URLS_WITH_FAULTS {
            let message = format!(
                "must be at least {} with fault_share above 0, got {}",
                Self::MIN_URLS_WITH_FAULTS,
                self.num_urls
            );
            return Err(ConfigError::new("num_urls", message));
        }
        if self.num_yes_no % 2 == 1 {
            let message = format!("must be even, so that yes and no balance, got {}", self.num_yes_no);
            return Err(ConfigError::new("num_yes_no", message));
        }
        Ok(())
    }
}

/// `share` of `count`, rounded.
pub(crate) fn share_of(count: usize, share: f64) -> usize {
    (count as f64 * share).round() as usize
}

/// Which part of a directory of real images becomes a world.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhotosConfig {
    /// The directory with `captions.jsonl`, `qa.jsonl` and `awkward.tsv`; relative to the current directory.
    pub photos_dir: PathBuf,
    /// Share of the (image, caption) rows that get the caption of another image.
    pub mismatched_share: f64,
    /// Share of the images whose questions are held out for the benchmarks.
    pub eval_share: f64,
}

impl PhotosConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        for (key, share) in [("mismatched_share", self.mismatched_share), ("eval_share", self.eval_share)] {
            if !(0.0..1.0).contains(&share) {
                return Err(ConfigError::new(key, format!("must be from 0 to below 1, got {share}")));
            }
        }
        if self.photos_dir.as_os_str().is_empty() {
            return Err(ConfigError::new("photos_dir", "must name a directory, got an empty path"));
        }
        Ok(())
    }

    /// [`photos_dir`](Self::photos_dir), absolute.
    pub(crate) fn absolute_photos_dir(&self) -> PathBuf {
        std::path::absolute(&self.photos_dir).unwrap_or_else(|_| self.photos_dir.clone())
    }
}

impl StageConfig for WorldConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        match self {
            WorldConfig::Synthetic(config) => config.validate(),
            WorldConfig::Photos(config) => config.validate(),
        }
    }

    fn inputs(&self) -> Vec<PathBuf> {
        match self {
            WorldConfig::Synthetic(_) => Vec::new(),
            // A directory that is not there is left to the stage, whose error names the key.
            WorldConfig::Photos(config) => {
                Some(config.absolute_photos_dir()).into_iter().filter(|dir| dir.exists()).collect()
            }
        }
    }
}
