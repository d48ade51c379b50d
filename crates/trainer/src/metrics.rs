//! `metrics.jsonl`: one line per optimizer step; a function of data, config and seed alone.

use crate::TrainError;
use oqvl_shard_io::write_atomic;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// File name in the output directory.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// One optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct StepMetrics {
    /// Step, from 1.
    pub step: u64,
    /// Mean over the micro-batches of the mean loss over their labelled tokens, nats.
    pub loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Labelled tokens.
    pub num_labels: u64,
    /// Multimodal tokens, without padding.
    pub num_tokens: u64,
}

/// Appends steps to `metrics.jsonl`.
#[derive(Debug)]
pub(crate) struct MetricsLog {
    path: PathBuf,
    file: File,
    /// All steps so far.
    pub(crate) steps: Vec<StepMetrics>,
}

impl MetricsLog {
    /// Opens the log of a run that resumes after `step` steps: later lines, and a torn last one, are dropped.
    pub(crate) fn open(out_dir: &Path, step: u64) -> Result<Self, TrainError> {
        let path = out_dir.join(METRICS_FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(TrainError::io(&path)(error)),
        };
        let parsed =
            text.lines().map_while(|line| Some((line, serde_json::from_str::<StepMetrics>(line).ok()?)));
        // The text of a line is kept as it is: a number read and written again may differ in its last digit.
        let (lines, steps): (Vec<&str>, Vec<_>) =
            parsed.take_while(|(_, metrics)| metrics.step <= step).unzip();
        let kept: String = lines.iter().map(|line| format!("{line}\n")).collect();
        write_atomic(&path, kept.as_bytes()).map_err(TrainError::io(&path))?;
        let file = File::options().append(true).open(&path).map_err(TrainError::io(&path))?;
        Ok(Self { path, file, steps })
    }

    pub(crate) fn push(&mut self, metrics: StepMetrics) -> Result<(), TrainError> {
        self.file.write_all(line(&metrics).as_bytes()).map_err(TrainError::io(&self.path))?;
        self.steps.push(metrics);
        Ok(())
    }

    /// Lines up to here survive a power cut; called before a state that relies on them.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io(&self.path))
    }
}

fn line(metrics: &StepMetrics) -> String {
    serde_json::to_string(metrics).expect("numbers and nothing else") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_drops_later_and_torn_lines() {
        let dir = tempfile::tempdir().unwrap();
        let step = |step| StepMetrics {
            step,
            loss: 0.1 + step as f64,
            learning_rate: 1e-3,
            grad_norm: 1.0,
            num_labels: 3,
            num_tokens: 4,
        };
        let mut log = MetricsLog::open(dir.path(), 0).unwrap();
        (1..=4).for_each(|index| log.push(step(index)).unwrap());
        log.file.write_all(b"{\"step\":5,").unwrap();
        let log = MetricsLog::open(dir.path(), 2).unwrap();
        assert_eq!(log.steps, [step(1), step(2)]);
        assert_eq!(std::fs::read_to_string(&log.path).unwrap().lines().count(), 2);
    }
}
