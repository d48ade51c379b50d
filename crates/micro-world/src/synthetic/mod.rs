//! The synthetic world: drawn scenes, true and false captions, faulty URLs, corpora, conversations and
//! benchmarks.

mod benchmarks;
mod corpora;
mod pool;
mod sft;
mod text;
mod web;

use crate::config::SyntheticConfig;
use crate::error::WorldError;
use crate::report::WorldReport;
use crate::world_dir::WorldDir;
use oqvl_stage::RunContext;

/// Images drawn between two looks at the interrupt flag.
const CHUNK: usize = 512;

/// Writes the whole world into the stage's output directory. What was there is written again: everything is a
/// function of the config and the seed.
pub(crate) fn write(config: &SyntheticConfig, run: &RunContext) -> Result<WorldReport, WorldError> {
    let world = WorldDir::new(&run.out_dir);
    let mut report = WorldReport::default();
    let num_drawn = config.num_urls
        + config.num_siglip_pairs
        + config.num_mlm_filter_pairs
        + config.num_sft_conversations
        + config.num_multiple_choice
        + config.num_yes_no
        + config.num_open_questions;
    let progress = run.progress(num_drawn as u64, "images");
    web::write(config, run, &world, &progress, &mut report)?;
    corpora::write(config, run, &world, &progress, &mut report)?;
    text::write(config, run, &world, &mut report)?;
    sft::write(config, run, &world, &progress, &mut report)?;
    benchmarks::write(config, run, &world, &progress, &mut report)?;
    progress.finish();
    report.tally.assert_balanced();
    Ok(report)
}

/// Start of a range of 2^48 scene indices, so that things of one split never draw the same scene.
const fn region(number: u64) -> u64 {
    number << 48
}

/// The first fit among the scenes of the `k`-th group of 2^16 indices of a region.
fn find_scene<T>(region: u64, k: usize, fits: impl FnMut(u64) -> Option<T>) -> T {
    let first = region + ((k as u64) << 16);
    let mut indices = first..first + (1 << 16);
    indices.find_map(fits).expect("every kind of question fits more than one scene in ten")
}
