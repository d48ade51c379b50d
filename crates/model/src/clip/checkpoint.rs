//! Folders that hold a CLIP: what its network is, its weights, its tokenizer.

use super::open_clip::OpenClipFolder;
use super::preprocessing::{Preprocessing, Wanted};
use super::{Clip, ClipConfig};
use crate::ModelError;
use crate::checkpoint::{
    CONFIG_FILE, OPEN_CLIP_CONFIG_FILE, TOKENIZER_FILE, digest_of, read_config, read_config_file,
};
use crate::params::{Missing, ParamStore, Trainable};
use crate::weights::{Network, read_weights, weight_files};
use candle_core::Device;
use oqvl_image_prep::{CLIP_MEAN, CLIP_STD, RgbImage, clip_pixel_values};
use oqvl_shard_io::read_json;
use oqvl_text_prep::{ClipTextStyle, ClipTokenizer};
use std::path::{Path, PathBuf};

/// Tokenizers, in the order they are looked for: Hugging Face's, openai/CLIP's own, and what older folders of Hugging
/// Face's have.
const TOKENIZER_FILES: [&str; 3] = [TOKENIZER_FILE, "bpe_simple_vocab_16e6.txt.gz", "merges.txt"];

/// CLIP's image-text pair of towers read from disk.
#[derive(Debug)]
pub struct ClipCheckpoint {
    /// The network.
    pub clip: Clip,
    /// Its config.
    pub config: ClipConfig,
    /// Its tokenizer.
    pub tokenizer: ClipTokenizer,
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
        let open_clip = dir.join(OPEN_CLIP_CONFIG_FILE);
        if !dir.join(CONFIG_FILE).is_file() && open_clip.is_file() {
            let config: serde_json::Value = read_config_file(&open_clip)?;
            return Ok(config.pointer("/model_cfg/vision_cfg/timm_model_name").is_none());
        }
        let config: serde_json::Value = read_config(dir)?;
        Ok(config.get("model_type").is_some_and(|kind| kind == "clip"))
    }

    /// Reads a checkpoint for inference: a folder of Hugging Face's (`config.json` of a `CLIPModel`) or of open_clip's
    /// (`open_clip_config.json`), with weights in any form that [`read_weights`] reads, and `tokenizer.json`,
    /// `bpe_simple_vocab_16e6.txt.gz` or `merges.txt`. OpenAI's own `.pt` files are TorchScript archives, programs rather than weights:
    /// they are refused; the same networks are on the hub in both other forms.
    ///
    /// `style` is how captions become tokens. Where it is `None`, as the network was trained: open_clip's way if there is
    /// an `open_clip_config.json`, openai/CLIP's if not.
    ///
    /// # Errors
    /// If a file is missing or malformed, the weights do not fit the config, the tokenizer does not fit the network, or
    /// the folder wants its images made in another way than [`ClipCheckpoint::pixel_values`] does it.
    pub fn load(dir: &Path, style: Option<ClipTextStyle>, device: &Device) -> Result<Self, ModelError> {
        let open_clip = dir.join(OPEN_CLIP_CONFIG_FILE);
        let is_open_clip = open_clip.is_file();
        let (config_file, config, preprocessing) = if is_open_clip && !dir.join(CONFIG_FILE).is_file() {
            let wrong = |what: String| ModelError::Config(format!("{}: {what}", open_clip.display()));
            let folder: OpenClipFolder = read_config_file(&open_clip)?;
            let config = folder.config().map_err(wrong)?;
            (open_clip.clone(), config, folder.preprocessing())
        } else {
            (dir.join(CONFIG_FILE), read_config(dir)?, hugging_face_preprocessing(dir)?)
        };
        let in_dir = |what: String| ModelError::Config(format!("{}: {what}", dir.display()));
        let image_size = config.vision_config.image_size;
        preprocessing
            .check(Wanted { image_size, mean: CLIP_MEAN, std: CLIP_STD, squash: false })
            .map_err(in_dir)?;

        let default_style = if is_open_clip { ClipTextStyle::OpenClip } else { ClipTextStyle::OpenAi };
        let tokenizer_file = tokenizer_file(dir)?;
        let tokenizer = ClipTokenizer::from_file(&tokenizer_file, style.unwrap_or(default_style))?;
        check_tokenizer(&config, &tokenizer).map_err(in_dir)?;

        let given = Network::Clip.rename(read_weights(dir, device)?)?;
        let mut store = ParamStore::new(given, Missing::Refuse, Trainable::None, device);
        let clip = Clip::new(&config, store.root())?;
        store.finish()?;
        let files = std::iter::once(config_file).chain(weight_files(dir)?).chain([tokenizer_file]);
        Ok(Self { clip, config, tokenizer, digest: digest_of(&files.collect::<Vec<_>>())? })
    }

    /// What the network reads of an image: `(3, image_size, image_size)`, see [`clip_pixel_values`].
    #[must_use]
    pub fn pixel_values(&self, image: &RgbImage) -> Vec<f32> {
        clip_pixel_values(image, self.config.vision_config.image_size as u32)
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

/// Refuses a SigLIP folder of Hugging Face's or open_clip's that wants its images made in another way than
/// [`pixel_values`](oqvl_image_prep::pixel_values) does it.
pub(crate) fn check_siglip_images(dir: &Path, image_size: usize) -> Result<(), ModelError> {
    const HALF: [f32; 3] = [0.5; 3];
    let open_clip = dir.join(OPEN_CLIP_CONFIG_FILE);
    let said = if open_clip.is_file() && !dir.join(CONFIG_FILE).is_file() {
        read_config_file::<OpenClipFolder>(&open_clip)?.preprocessing()
    } else {
        hugging_face_preprocessing(dir)?
    };
    said.check(Wanted { image_size, mean: HALF, std: HALF, squash: true })
        .map_err(|what| ModelError::Config(format!("{}: {what}", dir.display())))
}

/// `preprocessor_config.json` of the folder, or nothing said.
fn hugging_face_preprocessing(dir: &Path) -> Result<Preprocessing, ModelError> {
    let path = dir.join(Preprocessing::HUGGING_FACE_FILE);
    match path.is_file() {
        true => Ok(Preprocessing::of_hugging_face(read_file(&path)?)),
        false => Ok(Preprocessing::default()),
    }
}

fn read_file<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, ModelError> {
    read_json(path).map_err(|source| ModelError::Read { path: path.to_path_buf(), source: Box::new(source) })
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
    if !matches!(text.eos_token_id, 2) && i64::from(text.eos_token_id) != end {
        let expected = text.eos_token_id;
        return Err(format!("the tokenizer ends a text with {end}, the network expects {expected}"));
    }
    Ok(())
}
