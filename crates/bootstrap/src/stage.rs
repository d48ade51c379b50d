//! The stage: one model after another, each skipped when its checkpoint is there.

use crate::BootstrapError;
use crate::config::{BootstrapConfig, TokenizerSource};
use crate::corpus::{PairCorpus, read_texts};
use crate::language_model::train_language_model;
use crate::mlm_filter::train_mlm_filter;
use crate::siglip::train_siglip;
use oqvl_model::TOKENIZER_FILE;
use oqvl_shard_io::write_atomic;
use oqvl_stage::{RunContext, Stage};
use oqvl_text_prep::{BpeTrainer, Tokenizer};
use oqvl_trainer::{TrainingReport, train_once};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Training of the micro stand-ins.
#[derive(Debug)]
pub struct Bootstrap;

/// `report.json` of the stage.
#[derive(Debug, Serialize)]
pub struct BootstrapReport {
    /// Entries of the tokenizer.
    pub vocab_size: usize,
    /// Pairs that could not be used.
    pub num_rejected_pairs: u64,
    /// What each training said of itself, by model.
    pub models: BTreeMap<String, TrainingReport>,
}

impl Stage for Bootstrap {
    const NAME: &'static str = "bootstrap";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Config = BootstrapConfig;
    type Report = BootstrapReport;
    type Error = BootstrapError;

    fn run(config: &BootstrapConfig, run: &RunContext) -> Result<BootstrapReport, BootstrapError> {
        let text_path = run.resolve(&config.text);
        let texts = read_texts(&text_path)?;
        let tokenizer_file = make_tokenizer(&config.tokenizer, &texts, &run.out_dir)?;
        let tokenizer = Tokenizer::from_file(&tokenizer_file)?;
        let image_size = config.siglip.image_size;
        let pairs = PairCorpus::read(&run.resolve(&config.pairs), image_size, &[])?;
        let metrics = &config.mlm_filter.metrics;
        let scored = PairCorpus::read(&run.resolve(&config.scored_pairs), image_size, metrics)?;

        let dir = |name: &str| run.out_dir.join(name);
        let mut models = BTreeMap::new();
        once("siglip", run, &mut models, |dir| {
            train_siglip(&config.siglip, &pairs, &tokenizer, &tokenizer_file, run, dir)
        })?;
        let with_file = (&tokenizer, tokenizer_file.as_path());
        once("language-model", run, &mut models, |dir| {
            train_language_model(&config.language_model, &texts, with_file, &text_path, run, dir)
        })?;
        once("mlm-filter", run, &mut models, |out_dir| {
            let parts = (dir("siglip"), dir("language-model"));
            let parts = (parts.0.as_path(), parts.1.as_path());
            train_mlm_filter(&config.mlm_filter, (&pairs, &scored), parts, with_file, run, out_dir)
        })?;
        let num_rejected_pairs = pairs.num_rejected + scored.num_rejected;
        Ok(BootstrapReport { vocab_size: tokenizer.vocab_size(), num_rejected_pairs, models })
    }
}

/// Trains one model unless it is there from an interrupted run.
fn once(
    name: &str,
    run: &RunContext,
    models: &mut BTreeMap<String, TrainingReport>,
    train: impl FnOnce(&Path) -> Result<TrainingReport, BootstrapError>,
) -> Result<(), BootstrapError> {
    let dir = run.out_dir.join(name);
    let report = train_once(&dir, &dir, || {
        tracing::info!("training {name}");
        let report = train(&dir)?;
        tracing::info!("{name}: loss {:.3} -> {:.3}", report.first_loss, report.last_loss);
        Ok::<_, BootstrapError>(report)
    })?;
    models.insert(name.to_owned(), report);
    Ok(())
}

fn make_tokenizer(
    source: &TokenizerSource,
    texts: &[String],
    out_dir: &Path,
) -> Result<PathBuf, BootstrapError> {
    let file = out_dir.join("tokenizer").join(TOKENIZER_FILE);
    if file.exists() {
        return Ok(file);
    }
    let bytes = match source {
        TokenizerSource::Train { vocab_size } => {
            BpeTrainer::new(*vocab_size).train(texts.iter().cloned())?.json().to_vec()
        }
        TokenizerSource::File { path } => std::fs::read(path).map_err(BootstrapError::io(path))?,
    };
    std::fs::create_dir_all(out_dir.join("tokenizer")).map_err(BootstrapError::io(out_dir))?;
    write_atomic(&file, &bytes).map_err(BootstrapError::io(&file))?;
    Ok(file)
}
