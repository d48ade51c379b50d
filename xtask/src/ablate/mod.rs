//! `cargo xtask ablate`: what each idea of the paper buys, in runs of equal compute over three seeds.
//!
//! Equal compute means an equal number of positions through the language model: every arm takes the same number of
//! optimizer steps and, in each, about the same number of positions, padding included. What an arm makes of its
//! positions is the point of the comparison: padding instead of text, or many positions per image instead of few.
//!
//! The stages before the mixer do not depend on the arm. They are taken from the work directory of the config (which
//! is brought up to date first) by symbolic links; each arm and seed has a work directory of its own below
//! `work/ablate/`, so that the command can be killed and run again like any other.

mod arms;
mod table;

use crate::config::RunConfig;
use crate::reproduce::{Request, bring_up_to_date};
use crate::stages::{EVALUATOR, MLM_FILTER, PACKER, StageName, TRAINER};
use crate::{cargo, interrupt, json_file};
use anyhow::Context;
use arms::{ARMS, Arm, SEEDS, SHARED_SETS};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Where the table goes.
const DOCUMENT: &str = "docs/ablations.md";

/// Arguments of `cargo xtask ablate`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The config file [default: configs/micro.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The work directory whose data and filters are shared [default: `work/` and the name in the config]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
}

/// What one run measured.
#[derive(Debug, Clone, Serialize)]
struct Measurement {
    arm: &'static str,
    seed: u64,
    /// Accuracy by benchmark.
    eval: BTreeMap<String, f64>,
    /// Tokens of pre-training that were not padding.
    num_tokens: u64,
    /// Such tokens per second of pre-training.
    tokens_per_second: f64,
    /// Image-text pairs per second of pre-training.
    pairs_per_second: f64,
    /// Mean loss over the last tenth of pre-training.
    last_loss: f64,
}

impl Measurement {
    /// Wall clock of the pre-training steps.
    fn seconds(&self) -> f64 {
        self.num_tokens as f64 / self.tokens_per_second
    }
}

/// Runs the command.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    interrupt::listen()?;
    let path = args.config.clone().unwrap_or_else(|| cargo::below_root("configs/micro.toml"));
    let config = RunConfig::read(&path, &[])?;
    cargo::build_stages(&config.stages)?;
    let shared =
        args.work_dir.clone().unwrap_or_else(|| cargo::below_root(Path::new("work").join(&config.name)));
    bring_up_to_date(Request::resolve(config, shared.clone(), None, Some(MLM_FILTER))?)?;

    let ablations = cargo::below_root("work/ablate");
    let mut measurements = Vec::new();
    for (number, (arm, seed)) in ARMS.iter().flat_map(|arm| SEEDS.map(|seed| (arm, seed))).enumerate() {
        println!("\n== {}, seed {seed} ({} of {})", arm.name, number + 1, ARMS.len() * SEEDS.len());
        let work_dir = ablations.join(format!("{}-{seed}", arm.name));
        let config = arm_config(&path, arm, seed)?;
        link_shared_stages(&shared, &work_dir)?;
        bring_up_to_date(Request::resolve(config, work_dir.clone(), None, None)?)?;
        let measurement = match measure(arm, seed, &work_dir)? {
            Some(measurement) => measurement,
            // Killed after the last step, so that nobody knows how fast it was: once more.
            None => {
                let config = arm_config(&path, arm, seed)?;
                bring_up_to_date(Request::resolve(config, work_dir.clone(), Some(TRAINER), None)?)?;
                measure(arm, seed, &work_dir)?.context("pre-training does not say how fast it was")?
            }
        };
        measurements.push(measurement);
    }
    json_file::write(&ablations.join("ablations.json"), &measurements)?;
    let document = cargo::workspace_root().join(DOCUMENT);
    json_file::write_bytes(&document, table::document(&measurements, &machine()).as_bytes())?;
    println!("\nablations: {}", cargo::below_root(DOCUMENT).display());
    Ok(())
}

/// The config of one run: the stages from the mixer to the evaluator, with the arm's overrides on top.
fn arm_config(path: &Path, arm: &Arm, seed: u64) -> anyhow::Result<RunConfig> {
    let mut sets: Vec<String> = SHARED_SETS.iter().chain(arm.sets).map(|set| (*set).to_owned()).collect();
    sets.push(format!("seed={seed}"));
    let mut config = RunConfig::read(path, &sets)?;
    let own = MLM_FILTER.position() + 1..=EVALUATOR.position();
    config.stages.retain(|stage| own.contains(&stage.position()));
    Ok(config)
}

/// Puts links to the outputs of the stages before the mixer into a work directory.
fn link_shared_stages(shared: &Path, work_dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(work_dir).with_context(|| work_dir.display().to_string())?;
    let shared = fs::canonicalize(shared).with_context(|| shared.display().to_string())?;
    for stage in crate::stages::STAGES.into_iter().filter(|stage| stage.position() <= MLM_FILTER.position()) {
        let (target, link) = (shared.join(stage.as_str()), work_dir.join(stage.as_str()));
        if !target.is_dir() || fs::read_link(&link).is_ok_and(|present| present == target) {
            continue;
        }
        if link.is_symlink() {
            fs::remove_file(&link).with_context(|| link.display().to_string())?;
        }
        std::os::unix::fs::symlink(&target, &link).with_context(|| link.display().to_string())?;
    }
    Ok(())
}

/// What a finished run measured; `None` if its pre-training cannot say how fast it was.
fn measure(arm: &Arm, seed: u64, work_dir: &Path) -> anyhow::Result<Option<Measurement>> {
    #[derive(Deserialize)]
    struct Scored {
        accuracy: f64,
    }
    #[derive(Deserialize)]
    struct Training {
        num_tokens: u64,
        last_loss: f64,
        tokens_per_second: Option<f64>,
    }
    #[derive(Deserialize)]
    struct Packing {
        kept: u64,
        num_tokens: u64,
    }
    let packing: Packing = json_file::read(&output(work_dir, PACKER, "report.json"))?;
    let results: BTreeMap<String, Scored> = json_file::read(&output(work_dir, EVALUATOR, "results.json"))?;
    let training: Training = json_file::read(&output(work_dir, TRAINER, "report.json"))?;
    Ok(training.tokens_per_second.map(|tokens_per_second| Measurement {
        arm: arm.name,
        seed,
        eval: results.into_iter().map(|(name, result)| (name, result.accuracy)).collect(),
        num_tokens: training.num_tokens,
        tokens_per_second,
        pairs_per_second: tokens_per_second * packing.kept as f64 / packing.num_tokens as f64,
        last_loss: training.last_loss,
    }))
}

fn output(work_dir: &Path, stage: StageName, file: &str) -> PathBuf {
    work_dir.join(stage.as_str()).join(file)
}

/// The machine the numbers were measured on, as far as the system tells.
fn machine() -> String {
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = processors.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    let model = model.map_or("an unknown processor", |(_, name)| name.trim());
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let commit = cargo::commit().unwrap_or_else(|| "unknown".to_owned());
    format!("{threads} threads of {model}, commit {commit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_comparison_names_its_arms_and_every_override_a_stage() {
        let names: Vec<_> = ARMS.iter().map(|arm| arm.name).collect();
        for comparison in arms::COMPARISONS {
            assert!(
                names.contains(&comparison.with) && names.contains(&comparison.without),
                "{}",
                comparison.idea
            );
        }
        for set in ARMS.iter().flat_map(|arm| arm.sets).chain(&SHARED_SETS) {
            let stage = set.split('.').next().and_then(StageName::find);
            assert!(stage.is_some_and(|stage| stage.position() > MLM_FILTER.position()), "{set}");
        }
    }

    #[test]
    fn links_follow_the_shared_directory() {
        let root = std::env::temp_dir().join(format!("oqvl-xtask-links-{}", std::process::id()));
        let (first, second, arm) = (root.join("first"), root.join("second"), root.join("arm"));
        for shared in [&first, &second] {
            fs::create_dir_all(shared.join("data-fetch")).unwrap();
        }
        for shared in [&first, &first, &second] {
            link_shared_stages(shared, &arm).unwrap();
            let target = fs::canonicalize(shared.join("data-fetch")).unwrap();
            assert_eq!(fs::canonicalize(arm.join("data-fetch")).unwrap(), target);
        }
        assert!(!arm.join("mixer").exists());
        fs::remove_dir_all(root).unwrap();
    }
}
