//! The pre-training stage: packs in, base checkpoint out.

use crate::TrainError;
use crate::config::TrainerConfig;
use crate::pack_data::PackData;
use crate::sampler::ShuffledSampler;
use crate::training_loop::{Task, TrainingReport, train, train_once};
use candle_core::{Device, Tensor};
use oqvl_model::{
    Companions, Example, LossOutput, Missing, ParamStore, SECOND_TO_LAST, TOKENIZER_FILE, Trainable, Vlm,
    VlmConfig, read_language_model, read_vision_tower, read_vlm, save_checkpoint,
};
use oqvl_stage::{RunContext, Stage};
use oqvl_text_prep::Tokenizer;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Directory of the finished model below a training stage's output.
pub const CHECKPOINT_DIR: &str = "checkpoint";

/// Pre-training of projector and language model on packed sequences.
#[derive(Debug)]
pub struct Trainer;

/// `report.json` of the stage.
#[derive(Debug, Serialize)]
pub struct TrainerReport {
    /// Packs read.
    pub num_packs: usize,
    /// Images that could not be decoded and were trained on as blank ones, among those this process read.
    pub num_undecodable_images: usize,
    /// The loop.
    #[serde(flatten)]
    pub training: TrainingReport,
}

/// A VLM put together from the folders of a vision tower and of a language model, as [`read_vision_tower`] and
/// [`read_language_model`] read them; the projector is drawn from `seed`. The tower is frozen.
///
/// # Errors
/// If a checkpoint cannot be read or does not fit its config.
pub fn assemble(
    vision_tower: &Path,
    language_model: &Path,
    pooled_grid: usize,
    seed: u64,
) -> Result<(Vlm, ParamStore), TrainError> {
    let device = Device::Cpu;
    let (vision, text) =
        (read_vision_tower(vision_tower, &device)?, read_language_model(language_model, &device)?);
    let config = VlmConfig {
        vision_config: vision.config,
        text_config: text.config,
        pooled_grid,
        vision_feature_layer: SECOND_TO_LAST,
    };
    let mut given: BTreeMap<String, Tensor> = BTreeMap::new();
    for (part, tensors) in [("vision_tower", vision.tensors), ("language_model", text.tensors)] {
        given.extend(tensors.into_iter().map(|(name, tensor)| (format!("{part}.{name}"), tensor)));
    }
    let missing = Missing::Draw { seed, prefixes: vec!["projector.".to_owned()] };
    let mut store = ParamStore::new(given, missing, trainable_but_tower(), &device);
    let vlm = Vlm::new(&config, store.root(), &device)?;
    store.finish()?;
    Ok((vlm, store))
}

/// Reads a VLM, as [`read_vlm`] does, for further training at another number of image tokens; the tower is frozen.
///
/// # Errors
/// If the checkpoint cannot be read or does not fit its config.
pub fn reopen(checkpoint: &Path, pooled_grid: usize) -> Result<(Vlm, ParamStore), TrainError> {
    let device = Device::Cpu;
    let read = read_vlm(checkpoint, &Companions::default(), &device)?;
    let config = VlmConfig { pooled_grid, ..read.config };
    let mut store = ParamStore::new(read.tensors, Missing::Refuse, trainable_but_tower(), &device);
    let vlm = Vlm::new(&config, store.root(), &device)?;
    store.finish()?;
    Ok((vlm, store))
}

fn trainable_but_tower() -> Trainable {
    Trainable::Prefixes(vec!["projector.".to_owned(), "language_model.".to_owned()])
}

/// Next-token prediction on packs.
struct PackTask<'a> {
    vlm: &'a Vlm,
    data: &'a PackData,
}

impl Task for PackTask<'_> {
    fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
        let examples: Result<Vec<Example>, _> =
            indices.iter().map(|&index| self.data.example(index)).collect();
        Ok(self.vlm.loss(&examples?.iter().collect::<Vec<_>>())?)
    }
}

impl Stage for Trainer {
    const NAME: &'static str = "trainer";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    type Config = TrainerConfig;
    type Report = TrainerReport;
    type Error = TrainError;

    fn run(config: &TrainerConfig, run: &RunContext) -> Result<TrainerReport, TrainError> {
        let (vision_tower, language_model) =
            (run.resolve(&config.vision_tower), run.resolve(&config.language_model));
        let (vlm, store) = assemble(&vision_tower, &language_model, config.pooled_grid, run.seed)?;
        let packs = run.resolve(&config.packs);
        let tokenizer_file = language_model.join(TOKENIZER_FILE);
        let tokenizer = Tokenizer::from_file(&tokenizer_file).map_err(oqvl_model::ModelError::from)?;
        let data = PackData::open(&packs, &run.work_dir, vlm.image_size(), tokenizer.pad_id())?;
        check_packs(&data, &vlm, &tokenizer, &packs)?;

        let sampler = ShuffledSampler {
            num_examples: data.len(),
            global_batch_size: config.training.global_batch_size,
            seed: run.seed,
        };
        let task = PackTask { vlm: &vlm, data: &data };
        let checkpoint = run.out_dir.join(CHECKPOINT_DIR);
        let training = train_once(&run.out_dir, &checkpoint, || {
            let report = train(&config.training, &store, &task, &sampler, run, &run.out_dir)?;
            save_checkpoint(&checkpoint, vlm.config(), &store, &tokenizer_file)?;
            Ok::<_, TrainError>(report)
        })?;
        Ok(TrainerReport {
            num_packs: data.len(),
            num_undecodable_images: data.num_undecodable_images(),
            training,
        })
    }
}

/// Packs made with another tokenizer or another number of image tokens would train nonsense without a word.
fn check_packs(data: &PackData, vlm: &Vlm, tokenizer: &Tokenizer, packs: &Path) -> Result<(), TrainError> {
    let mismatch = |found: String, expected: String| TrainError::PackMismatch {
        path: packs.to_path_buf(),
        found,
        expected,
    };
    let (packed, ours) = (data.info.num_image_tokens as usize, vlm.num_image_tokens());
    if packed != ours {
        return Err(mismatch(format!("{packed} tokens per image"), format!("{ours}")));
    }
    let (seq_len, max) = (data.info.seq_len as usize, vlm.config().text_config.max_position_embeddings);
    if seq_len > max {
        let found = format!("sequences of up to {seq_len} tokens");
        return Err(mismatch(found, format!("at most {max}, the model's max_position_embeddings")));
    }
    let (max_id, num_rows) = (data.max_id(), vlm.config().text_config.vocab_size);
    if usize::try_from(max_id).is_ok_and(|id| id >= num_rows) {
        return Err(mismatch(format!("token ids up to {max_id}"), format!("{num_rows} rows of embeddings")));
    }
    if data.info.tokenizer_digest != tokenizer.digest() {
        return Err(mismatch(
            "another tokenizer".to_owned(),
            "that of the language model's checkpoint".to_owned(),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_model::HiddenAct;
    use std::path::PathBuf;

    /// Folders as transformers saved them.
    fn folder(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/fixtures/folders").join(name)
    }

    #[test]
    fn training_starts_from_folders_of_transformers() {
        let (vlm, store) = assemble(&folder("tower"), &folder("qwen2"), 2, 7).unwrap();
        assert_eq!(vlm.config().vision_config.hidden_act, HiddenAct::GeluPytorchTanh);
        assert_eq!((vlm.config().pooled_grid, vlm.config().vision_feature_layer), (2, SECOND_TO_LAST));
        assert!(store.frozen().keys().all(|name| name.starts_with("vision_tower.")));
        // As they are in the file, less the prefix of release 4 and with it.
        let saved =
            oqvl_model::read_safetensors(&folder("tower").join("model.safetensors"), &Device::Cpu).unwrap();
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let name = "encoder.layers.2.mlp.fc1.weight";
        let ours = &store.frozen()[&format!("vision_tower.vision_model.{name}")];
        assert_eq!(values(ours), values(&saved[name]));
        assert!(store.vars().contains_key("language_model.lm_head.weight"));

        // A model of all tokens goes on with fewer.
        let (vlm, _) = reopen(&folder("llava"), 2).unwrap();
        assert_eq!(vlm.num_image_tokens(), 4);
    }
}
