//! What every stage binary shares: config, flags, progress, shard ranges, manifest, exit codes.
//!
//! A stage is a library type that implements [`Stage`]; its `main.rs` is one call of [`main`]. The runtime reads
//! the stage's table of a TOML file, validates it before the first byte of data is read, skips the stage when its
//! inputs and config have not changed, prepares `<work_dir>/<stage name>/`, runs it, and writes `report.json` and
//! last of all `manifest.json`.
//!
//! Nouns: [`Stage`] (what to implement), [`StageConfig`] (its table), [`RunContext`] (what it gets to run with),
//! [`Tally`] (kept and rejected samples), [`Progress`] (bar or log line), [`ShardRange`] (this process's share),
//! [`stream`] (the only source of randomness), [`score_shards`] (the loop of every filter).
//!
//! ```
//! use std::path::PathBuf;
//! use oqvl_stage::{ConfigError, Interrupted, RunContext, Stage, StageConfig, Tally};
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! #[serde(deny_unknown_fields)]
//! struct CountConfig { up_to: u64 }
//!
//! impl StageConfig for CountConfig {
//!     fn validate(&self) -> Result<(), ConfigError> {
//!         if self.up_to == 0 { return Err(ConfigError::new("up_to", "must be at least 1, got 0")); }
//!         Ok(())
//!     }
//!     fn inputs(&self) -> Vec<PathBuf> { Vec::new() }
//! }
//!
//! struct Count;
//!
//! impl Stage for Count {
//!     const NAME: &'static str = "count";
//!     const VERSION: &'static str = env!("CARGO_PKG_VERSION");
//!     type Config = CountConfig;
//!     type Report = Tally;
//!     type Error = Interrupted;
//!     fn run(config: &CountConfig, run: &RunContext) -> Result<Tally, Interrupted> {
//!         let mut tally = Tally::default();
//!         let progress = run.progress(config.up_to, "numbers");
//!         for number in 0..config.up_to {
//!             run.check_interrupt()?;
//!             if number % 2 == 0 { tally.keep() } else { tally.reject(number.to_string(), "odd") }
//!             progress.inc(1);
//!         }
//!         progress.finish();
//!         tally.assert_balanced();
//!         Ok(tally)
//!     }
//! }
//!
//! let work_dir = tempfile::tempdir()?;
//! // A binary says `oqvl_stage::main::<Count>()`; a library user runs the stage by hand:
//! let run = RunContext::for_test::<Count>(work_dir.path(), 7)?;
//! let tally = Count::run(&CountConfig { up_to: 5 }, &run)?;
//! assert_eq!((tally.seen, tally.kept, tally.rejected["odd"]), (5, 3, 2));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Stages read and write local files. Inputs that lie in object stores are copied below the work directory before a run,
//! and `stores.upload_to` copies finished output to one; both are the runtime's work, and a stage that wants its files
//! sent as they are finished says so by [`RunContext::publish`]. Programs that are no stages are run by [`run_program`], take
//! the names of models by [`ModelFlags`], and find them, here or on the Hugging Face hub, by [`ModelFinder`].
//!
//! What a stage does with its data is its own business; formats on disk belong to `oqvl-shard-io`.

mod cli;
mod config;
mod config_error;
mod context;
mod error;
mod exit;
mod fingerprint;
mod hub_model;
mod logging;
mod model_flags;
mod out_dir;
mod process_env;
mod progress;
mod publisher;
mod random;
mod remote_inputs;
mod replaced;
mod runtime;
mod scoring;
mod shard_range;
mod spelling;
mod stores;
mod tally;
mod voice;

pub use config::ConfigFile;
pub use config_error::ConfigError;
pub use context::RunContext;
pub use error::{Interrupted, StageError};
pub use exit::{ProgramError, run_program, with_causes};
pub use hub_model::ModelFinder;
pub use model_flags::ModelFlags;
pub use progress::Progress;
pub use random::{Rng, stream};
pub use runtime::main;
pub use scoring::{SampleScorer, SampleScores, Scored, ScorerInfo, score_shards};
pub use shard_range::ShardRange;
pub use tally::{RejectedSample, Tally};
pub use voice::tell;

use serde::{Serialize, de::DeserializeOwned};
use std::path::{Path, PathBuf};

/// One stage of the pipeline.
pub trait Stage {
    /// Name in the CLI, in logs, in the manifest, of the config table and of the output directory.
    const NAME: &'static str;
    /// Version of the stage's crate: `env!("CARGO_PKG_VERSION")`.
    const VERSION: &'static str;
    /// The version that is part of the fingerprint. A stage whose output is dear says here which version of its format it
    /// writes, so that a new program alone does not make old output worthless.
    const OUTPUT_VERSION: &'static str = Self::VERSION;
    /// Whether the output depends on the seed, which is then part of the fingerprint.
    const SEEDED: bool = true;
    /// Whether the stage calls [`RunContext::begin`] when it has found the request sound. Then a wrong one costs nothing of
    /// what the request before it has left; otherwise that is removed before the stage runs.
    const CHECKS_FIRST: bool = false;
    /// Whether several processes may share the work by `--shards` or as a Slurm array.
    const SHARDED: bool = false;
    /// Its table in `configs/*.toml`.
    type Config: StageConfig;
    /// What it says of itself when it is done; written to `report.json`.
    type Report: Serialize;
    /// Printed with its causes when the run fails.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs the stage. Bad data is counted in the report; an `Err` means that the run failed.
    ///
    /// # Errors
    /// Whatever the stage cannot go on after. [`Interrupted`] anywhere in the chain of sources is reported as such.
    fn run(config: &Self::Config, run: &RunContext) -> Result<Self::Report, Self::Error>;

    /// Asked before finished output is called up to date, which it is whatever the
    /// [keys without effect](StageConfig::keys_without_effect) are: one of them may be a limit that the report does not keep.
    /// By default there is none.
    ///
    /// # Errors
    /// If this config would have failed the run that left `report`.
    fn check_report(config: &Self::Config, report: &serde_json::Value) -> Result<(), Self::Error> {
        let _ = (config, report);
        Ok(())
    }

    /// What a dry run looks for in inputs that are there: mistakes in the request that the config alone does not show, such
    /// as a query for a column the input does not have. Nothing below [`out_dir`](RunContext::out_dir), which may not be
    /// there, may change. By default nothing is looked for.
    ///
    /// # Errors
    /// The first mistake.
    fn check(config: &Self::Config, run: &RunContext) -> Result<(), Self::Error> {
        let _ = (config, run);
        Ok(())
    }
}

/// The config table of a stage: everything a run depends on besides its inputs and the seed.
pub trait StageConfig: DeserializeOwned + Serialize {
    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first key that cannot be right, with what it must be.
    fn validate(&self) -> Result<(), ConfigError>;

    /// Files and directories the stage reads. Relative paths are under the work directory; the path of another
    /// stage's output (or of something inside it) makes this stage wait for that one. A path may be a pattern with
    /// wildcards, or an address (`s3://…`, `gs://…`, `https://…`, `hf://datasets/…`), which the runtime copies below the
    /// work directory first, or a model of the hub (`hf://owner/name`), which it copies into the hub's cache;
    /// [`RunContext::resolve`] then says where.
    fn inputs(&self) -> Vec<PathBuf>;

    /// Whether a file of a remote directory is wanted; `name` is its path below the address `input`. By default all are.
    fn wants_file(&self, input: &Path, name: &str) -> bool {
        let _ = (input, name);
        true
    }

    /// Keys that say how the work is done and not what comes out of it, such as waiting times: they are not part of the
    /// fingerprint, so that a change of them leaves finished output as it is.
    fn keys_without_effect(&self) -> &'static [&'static str] {
        &[]
    }

    /// What becomes of the output of an earlier run.
    fn earlier_output(&self) -> EarlierOutput {
        EarlierOutput::Complete
    }

    /// Asked before the output of another request in `out_dir` is discarded because the config or an input has changed. By
    /// default it may be.
    ///
    /// # Errors
    /// If it took too long to make to go unasked: what is there, and what to do about it.
    fn check_discard(&self, out_dir: &Path) -> Result<(), ConfigError> {
        let _ = out_dir;
        Ok(())
    }

    /// Whether the stage has something to do even where its output is finished.
    fn revisits_finished_output(&self) -> bool {
        false
    }
}

/// What becomes of the output of an earlier run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EarlierOutput {
    /// Output of the same request stays and is completed; output of another one is discarded, if
    /// [`check_discard`](StageConfig::check_discard) agrees.
    #[default]
    Complete,
    /// All of it is discarded.
    Discard,
    /// All of it stays; the stage adds to it. The stage itself tells the requests apart, by
    /// [`fingerprint`](RunContext::fingerprint).
    Extend,
}
