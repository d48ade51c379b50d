//! The table `[report]`.

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What the report speaks about. Parts whose stage is not listed, and measurements whose truth is not given, are
/// left out of the page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportConfig {
    /// The stages to report on, in running order; each must have finished in the work directory.
    pub stages: Vec<String>,
    /// What is known about every URL (`micro-world/truth.jsonl`); without it the filters are not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truth: Option<PathBuf>,
    /// The uids that passed the CLIP filter, as the mixer wrote them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_subset: Option<PathBuf>,
    /// The uids that passed MLM-Filter, as the mixer wrote them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlm_subset: Option<PathBuf>,
    /// The uids that went into the mix in the end, as the mixer wrote them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<PathBuf>,
}

impl StageConfig for ReportConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.stages.is_empty() {
            return Err(ConfigError::new("stages", "must name at least one stage"));
        }
        for (position, stage) in self.stages.iter().enumerate() {
            if stage == "report" {
                return Err(ConfigError::new("stages", "the report cannot report on itself"));
            }
            if self.stages[..position].contains(stage) {
                return Err(ConfigError::new("stages", format!("`{stage}` is listed twice")));
            }
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<PathBuf> {
        let files = [&self.truth, &self.clip_subset, &self.mlm_subset, &self.selected];
        self.stages.iter().map(PathBuf::from).chain(files.into_iter().flatten().cloned()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(stages: &[&str]) -> ReportConfig {
        let stages = stages.iter().map(|stage| (*stage).to_owned()).collect();
        let truth = Some("micro-world/truth.jsonl".into());
        ReportConfig { stages, truth, clip_subset: None, mlm_subset: None, selected: None }
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        assert!(config(&["mixer", "packer"]).validate().is_ok());
        for stages in [&[][..], &["mixer", "mixer"], &["mixer", "report"]] {
            assert_eq!(config(stages).validate().unwrap_err().key(), "stages");
        }
    }

    #[test]
    fn everything_named_is_waited_for() {
        let expected: Vec<PathBuf> = vec!["mixer".into(), "micro-world/truth.jsonl".into()];
        assert_eq!(config(&["mixer"]).inputs(), expected);
    }
}
