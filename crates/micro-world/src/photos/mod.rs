//! The world of real images: the same files as the synthetic one, made from a directory of pictures with
//! captions and questions.
//!
//! The directory holds `captions.jsonl` (one image per line, with its captions), `qa.jsonl` (one question per
//! line) and `awkward.tsv` (odd and broken files); paths in them are relative to the directory. A share of
//! the images is held out: their questions make the benchmarks, and neither corpora nor conversations have
//! anything of them. Every image is in the web pool, as benchmark images are on the real web.

mod conversations;
mod corpora;
mod questions;
mod source;
mod web;

use crate::config::PhotosConfig;
use crate::error::WorldError;
use crate::report::WorldReport;
use crate::world_dir::WorldDir;
use oqvl_stage::RunContext;
use source::PhotoSet;

/// Writes the whole world into the stage's output directory.
pub(crate) fn write(config: &PhotosConfig, run: &RunContext) -> Result<WorldReport, WorldError> {
    let world = WorldDir::new(&run.out_dir);
    let mut report = WorldReport::default();
    let photos =
        PhotoSet::load(&config.absolute_photos_dir(), config.eval_share, run.seed, &mut report.tally)?;
    web::write(config, run, &world, &photos, &mut report)?;
    corpora::write(run, &world, &photos, &mut report)?;
    conversations::write(run, &world, &photos, &mut report)?;
    questions::write(run, &world, &photos, &mut report)?;
    report.tally.assert_balanced();
    Ok(report)
}
