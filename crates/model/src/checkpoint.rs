//! Checkpoint directories: `config.json`, weights, `tokenizer.json`.

use crate::ModelError;
use crate::params::{Missing, ParamStore, Trainable};
use crate::siglip::{Siglip, SiglipConfig};
use crate::siglip_text::SiglipText;
use crate::vlm::{Vlm, VlmConfig};
use crate::weights::{Network, WEIGHTS_FILE, drop_tied_head, read_weights, weight_files};
use candle_core::{Device, Tensor};
use oqvl_shard_io::{digest_bytes, digest_file, write_atomic};
use oqvl_text_prep::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// The network's shape.
pub const CONFIG_FILE: &str = "config.json";
/// The network's shape in folders of open_clip.
pub(crate) const OPEN_CLIP_CONFIG_FILE: &str = "open_clip_config.json";
/// The tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

/// A vision-language model read from disk.
#[derive(Debug)]
pub struct VlmCheckpoint {
    /// The network.
    pub vlm: Vlm,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Digest of config, weights and tokenizer.
    pub digest: String,
}

impl VlmCheckpoint {
    /// Reads a checkpoint for inference. The weights may come in any form that [`read_weights`] reads, under any names
    /// that [`Network::Vlm`] knows.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the weights do not fit the config.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let config = read_config::<VlmConfig>(dir)?;
        let mut given = Network::Vlm.rename(read_weights(dir, device)?)?;
        if config.text_config.tie_word_embeddings {
            drop_tied_head(&mut given, "language_model.")?;
        }
        let mut store = for_inference(given, device);
        let vlm = Vlm::new(&config, store.root(), device)?;
        store.finish()?;
        Ok(Self { vlm, tokenizer: tokenizer(dir)?, digest: checkpoint_digest(dir)? })
    }
}

/// An image-text pair of towers read from disk.
#[derive(Debug)]
pub struct SiglipCheckpoint {
    /// The network.
    pub siglip: Siglip,
    /// Its config.
    pub config: SiglipConfig,
    /// Its tokenizer.
    pub text: SiglipText,
    /// Digest of config, weights and tokenizer.
    pub digest: String,
}

impl SiglipCheckpoint {
    /// Reads a checkpoint for inference. The weights may come in any form that [`read_weights`] reads, under any names
    /// that [`Network::Siglip`] knows.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the weights do not fit the config.
    pub fn load(dir: &Path, device: &Device) -> Result<Self, ModelError> {
        let config = read_config::<SiglipConfig>(dir)?;
        let mut store = for_inference(Network::Siglip.rename(read_weights(dir, device)?)?, device);
        let siglip = Siglip::new(&config, store.root())?;
        store.finish()?;
        let text = SiglipText::load(dir)?;
        Ok(Self { siglip, config, text, digest: checkpoint_digest(dir)? })
    }

    /// What the text tower reads of a caption.
    ///
    /// # Errors
    /// If the tokenizer refuses the caption.
    pub fn text_ids(&self, caption: &str) -> Result<Vec<i64>, ModelError> {
        self.text.ids(caption, self.config.text_config.max_position_embeddings)
    }
}

fn for_inference(given: BTreeMap<String, Tensor>, device: &Device) -> ParamStore {
    ParamStore::new(given, Missing::Refuse, Trainable::None, device)
}

/// Reads `config.json` of a checkpoint.
///
/// # Errors
/// If it is missing or has other keys than the network's config.
pub fn read_config<C: DeserializeOwned>(dir: &Path) -> Result<C, ModelError> {
    let path = dir.join(CONFIG_FILE);
    oqvl_shard_io::read_json(&path).map_err(|source| ModelError::Read { path, source: Box::new(source) })
}

fn tokenizer(dir: &Path) -> Result<Tokenizer, ModelError> {
    Ok(Tokenizer::from_file(dir.join(TOKENIZER_FILE))?)
}

fn checkpoint_digest(dir: &Path) -> Result<String, ModelError> {
    let weights = weight_files(dir)?;
    let files = std::iter::once(dir.join(CONFIG_FILE)).chain(weights);
    let mut all = String::new();
    for path in files.chain([dir.join(TOKENIZER_FILE)]) {
        let digest =
            digest_file(&path).map_err(|error| ModelError::Read { path, source: Box::new(error) })?;
        all += &digest;
    }
    Ok(digest_bytes(all.as_bytes()))
}

/// Writes a checkpoint directory; the config comes last, so that a directory with one is complete.
///
/// # Errors
/// If a file cannot be written.
pub fn save_checkpoint(
    dir: &Path,
    config: &impl Serialize,
    store: &ParamStore,
    tokenizer_file: &Path,
) -> Result<(), ModelError> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        write_atomic(&path, bytes).map_err(|source| ModelError::Write { path, source })
    };
    std::fs::create_dir_all(dir).map_err(|source| ModelError::Write { path: dir.to_path_buf(), source })?;
    write(WEIGHTS_FILE, &store.to_safetensors()?)?;
    let tokenizer = std::fs::read(tokenizer_file)
        .map_err(|error| ModelError::Read { path: tokenizer_file.to_path_buf(), source: Box::new(error) })?;
    write(TOKENIZER_FILE, &tokenizer)?;
    let config = serde_json::to_vec_pretty(config).map_err(|error| ModelError::Config(error.to_string()))?;
    write(CONFIG_FILE, &config)
}
