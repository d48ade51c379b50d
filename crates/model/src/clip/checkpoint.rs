//! Folders that hold a CLIP: what its network is, its weights, its tokenizer.

use super::{Clip, ClipConfig, ClipTextConfig};
use crate::ModelError;
use crate::checkpoint::{
    Contents, TOKENIZER_FILE, check_config, contents, for_inference, is_of_open_clip, read_config,
};
use crate::preprocessing::clip_preprocessing;
use crate::weights::Network;
use candle_core::Device;
use oqvl_image_prep::{Preprocessing, RgbImage};
use oqvl_text_prep::{ClipTextStyle, ClipTokenizer};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Tokenizers, in the order they are looked for: Hugging Face's, openai/CLIP's own, and what older folders of Hugging
/// Face's have.
const TOKENIZER_FILES: [&str; 3] = [TOKENIZER_FILE, "bpe_simple_vocab_16e6.txt.gz", "merges.txt"];

/// Reads a CLIP of Hugging Face's (`config.json` of a `CLIPModel`) or of open_clip's (`open_clip_config.json`), with its
/// tokenizer: `tokenizer.json`, `bpe_simple_vocab_16e6.txt.gz` or `merges.txt`. Names are [`Clip`]'s.
///
/// # Errors
/// If a file is missing or malformed, or describes something that cannot be computed here, or the folder wants its images
/// made in a way that [`Preprocessing`] cannot tell.
pub fn read_clip(dir: &Path, device: &Device) -> Result<Contents<ClipConfig>, ModelError> {
    Ok(read(dir, device)?.0)
}

/// As [`read_clip`], and how its images are made.
fn read(dir: &Path, device: &Device) -> Result<(Contents<ClipConfig>, Preprocessing), ModelError> {
    let config: ClipConfig = read_config(dir)?;
    check_config(dir, config.validate())?;
    let preprocessing = clip_preprocessing(dir, config.vision_config.image_size)?;
    let tokenizer_file = tokenizer_file(dir)?;
    let mut read = contents(dir, config, Network::Clip, device)?;
    read.replace_tokenizer(tokenizer_file);
    Ok((read, preprocessing))
}

/// CLIP's image-text pair of towers read from disk.
#[derive(Debug)]
pub struct ClipCheckpoint {
    /// The network.
    pub clip: Clip,
    /// Its config.
    pub config: ClipConfig,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
    /// How its images are made: OpenAI's way, but for what the folder says of mean, deviation and resizing.
    pub preprocessing: Preprocessing,
    /// Digest of config, weights and tokenizer.
    pub digest: String,
}

impl ClipCheckpoint {
    /// Whether the folder says that it holds a CLIP: `model_type` is `clip`, or open_clip's config names no tower of timm's,
    /// which is how it describes SigLIP and others.
    ///
    /// # Errors
    /// If its config cannot be read.
    pub fn is_in(dir: &Path) -> Result<bool, ModelError> {
        let config: Value = read_config(dir)?;
        Ok(match config.get("model_cfg") {
            Some(model) => model.pointer("/vision_cfg/timm_model_name").is_none(),
            None => config.get("model_type").is_some_and(|kind| kind == "clip"),
        })
    }

    /// Reads a checkpoint for inference in f32, from any folder that [`read_clip`] reads. OpenAI's own `.pt` files are
    /// TorchScript archives, programs rather than weights: they are refused; the same networks are on the hub in both other
    /// forms.
    ///
    /// `style` is how captions become tokens. Where it is `None`, as the network was trained: open_clip's way if there is
    /// an `open_clip_config.json`, openai/CLIP's if not.
    ///
    /// # Errors
    /// As [`read_clip`], or if the weights do not fit the config, or the tokenizer does not fit the network.
    pub fn load(dir: &Path, style: Option<ClipTextStyle>, device: &Device) -> Result<Self, ModelError> {
        let (mut read, preprocessing) = read(dir, device)?;
        let default_style =
            if is_of_open_clip(dir) { ClipTextStyle::OpenClip } else { ClipTextStyle::OpenAi };
        let tokenizer = ClipTokenizer::from_file(&read.tokenizer_file, style.unwrap_or(default_style))?;
        check_tokenizer(&read.config, &tokenizer)
            .map_err(|what| ModelError::Config(format!("{}: {what}", dir.display())))?;
        let mut store = for_inference(std::mem::take(&mut read.tensors), device);
        let clip = Clip::new(&read.config, store.root())?;
        store.finish()?;
        let digest = read.digest()?;
        Ok(Self { clip, config: read.config, tokenizer, preprocessing, digest })
    }

    /// What the network reads of an image: `(3, image_size, image_size)`.
    #[must_use]
    pub fn pixel_values(&self, image: &RgbImage) -> Vec<f32> {
        self.preprocessing.pixel_values(image)
    }

    /// What the network reads of a caption: ids from the start token to the first end token, as many as its positions at
    /// most. [`ClipTextTower::batch`](super::ClipTextTower::batch) puts several together.
    ///
    /// # Errors
    /// If the tokenizer refuses the caption.
    pub fn text_ids(&self, caption: &str) -> Result<Vec<i64>, ModelError> {
        let mut input = self.tokenizer.input(caption, self.config.text_config.max_position_embeddings)?;
        // No token sees what follows it, so what pads the rest is not needed.
        input.ids.truncate(input.end_position + 1);
        Ok(input.ids)
    }
}

fn tokenizer_file(dir: &Path) -> Result<PathBuf, ModelError> {
    let found = TOKENIZER_FILES.iter().map(|name| dir.join(name)).find(|file| file.is_file());
    let missing =
        || format!("{}: there is no tokenizer; looked for {}", dir.display(), TOKENIZER_FILES.join(", "));
    found.ok_or_else(|| ModelError::Config(missing()))
}

/// A tokenizer of another vocabulary would give scores that mean nothing.
fn check_tokenizer(config: &ClipConfig, tokenizer: &ClipTokenizer) -> Result<(), String> {
    let text = &config.text_config;
    let (start, end) = (tokenizer.start_id(), tokenizer.end_id());
    if text.max_position_embeddings < 2 {
        return Err(
            "text_config: max_position_embeddings must be at least 2, for the two ends of a text".to_owned()
        );
    }
    let vocab_size = text.vocab_size;
    if start.max(end) >= vocab_size as i64 {
        return Err(format!(
            "the tokenizer's ends of a text are {start} and {end}, the network has {vocab_size} tokens"
        ));
    }
    if text.eos_token_id != ClipTextConfig::HIGHEST_ID && i64::from(text.eos_token_id) != end {
        let expected = text.eos_token_id;
        return Err(format!("the tokenizer ends a text with {end}, the network expects {expected}"));
    }
    Ok(())
}
