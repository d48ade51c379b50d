//! The stage `micro-world`.

use crate::config::WorldConfig;
use crate::error::WorldError;
use crate::report::WorldReport;
use crate::{photos, synthetic};
use oqvl_stage::{RunContext, Stage};

/// Makes the world that the pipeline fetches, learns from and is tested on.
#[derive(Debug)]
pub struct MicroWorld;

impl Stage for MicroWorld {
    const NAME: &'static str = "micro-world";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Config = WorldConfig;
    type Report = WorldReport;
    type Error = WorldError;

    fn run(config: &WorldConfig, run: &RunContext) -> Result<WorldReport, WorldError> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(run.threads).build()?;
        pool.install(|| match config {
            WorldConfig::Synthetic(config) => synthetic::write(config, run),
            WorldConfig::Photos(config) => photos::write(config, run),
        })
    }
}
