//! Which shards are this process's share.

use crate::config_error::ConfigError;
use std::fmt;

/// Slurm sets it in the tasks of a job array.
pub(crate) const ARRAY_TASK_VARIABLE: &str = "SLURM_ARRAY_TASK_ID";

/// A share of the shards of a stage, for job arrays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardRange {
    /// `FIRST..LAST`: shards `first`, `first + 1`, …, `last - 1`.
    Span {
        /// First shard index.
        first: usize,
        /// One past the last shard index.
        last: usize,
    },
    /// Task `task` of `count`: every `count`-th shard, starting at `task` (Slurm job arrays).
    Stride {
        /// Index of the task, from 0.
        task: usize,
        /// Number of tasks.
        count: usize,
    },
}

impl ShardRange {
    /// Parses `FIRST..LAST`.
    ///
    /// # Errors
    /// If the text has another form or the range is empty.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let wrong =
            || ConfigError::flag("--shards", format!("expected FIRST..LAST with FIRST < LAST, got `{text}`"));
        let (first, last) = text.split_once("..").ok_or_else(wrong)?;
        let first: usize = first.trim().parse().map_err(|_| wrong())?;
        let last: usize = last.trim().parse().map_err(|_| wrong())?;
        if first >= last {
            return Err(wrong());
        }
        Ok(Self::Span { first, last })
    }

    /// The share of a Slurm array task, from `SLURM_ARRAY_TASK_ID`, `_MIN` and `_COUNT`.
    ///
    /// # Errors
    /// If the numbers do not fit together.
    pub(crate) fn from_slurm(id: &str, min: &str, count: &str) -> Result<Self, ConfigError> {
        let number = |name: &'static str, text: &str| {
            text.trim()
                .parse::<usize>()
                .map_err(|_| ConfigError::flag(name, format!("not a number: `{text}`")))
        };
        let (id, min) = (number(ARRAY_TASK_VARIABLE, id)?, number("SLURM_ARRAY_TASK_MIN", min)?);
        let count = number("SLURM_ARRAY_TASK_COUNT", count)?;
        let task = id.checked_sub(min).filter(|task| *task < count).ok_or_else(|| {
            let message = format!("{id} is not one of {count} tasks from {min} on");
            ConfigError::flag(ARRAY_TASK_VARIABLE, message)
        })?;
        Ok(Self::Stride { task, count })
    }

    /// The flag or the variable that asks for this share: nobody has typed `--shards` in a job array.
    pub(crate) fn asked_by(self) -> &'static str {
        match self {
            Self::Span { .. } => "--shards",
            Self::Stride { .. } => ARRAY_TASK_VARIABLE,
        }
    }

    /// Whether the shard is in this share.
    #[must_use]
    pub fn owns(&self, shard_idx: usize) -> bool {
        match *self {
            Self::Span { first, last } => (first..last).contains(&shard_idx),
            Self::Stride { task, count } => shard_idx % count == task,
        }
    }
}

impl fmt::Display for ShardRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Span { first, last } => write!(f, "{first}-{last}"),
            Self::Stride { task, count } => write!(f, "{task}-of-{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_half_open() {
        let range = ShardRange::parse("2..4").unwrap();
        assert_eq!((0..6).filter(|idx| range.owns(*idx)).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn wrong_spans_are_refused() {
        for text in ["", "3", "4..4", "5..2", "a..b", "-1..2", "1...3"] {
            assert!(ShardRange::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn slurm_tasks_share_every_shard_once() {
        let tasks: Vec<_> =
            (1..=3).map(|id| ShardRange::from_slurm(&id.to_string(), "1", "3").unwrap()).collect();
        for shard in 0..10 {
            assert_eq!(tasks.iter().filter(|task| task.owns(shard)).count(), 1);
        }
        assert!(ShardRange::from_slurm("4", "1", "3").is_err());
        assert!(ShardRange::from_slurm("0", "1", "3").is_err());
    }
}
