//! Checkpoint directories, ours and those of others: `config.json`, weights, `tokenizer.json`.

use crate::ModelError;
use crate::config::{ReferenceConfig, check_sizes, leaves_tower_open};
use crate::named::Backbone;
use crate::params::{Missing, ParamStore, Trainable};
use crate::preprocessing::check_images;
use crate::qwen2::Qwen2Config;
use crate::siglip::{Siglip, SiglipConfig, SiglipVisionConfig};
use crate::siglip_text::SiglipText;
use crate::vlm::{Vlm, VlmConfig};
use crate::weights::{Network, WEIGHTS_FILE, drop_tied_head, read_weights, weight_files};
use candle_core::{DType, Device, Tensor};
use oqvl_shard_io::{digest_bytes, digest_file, read_json, write_atomic};
use oqvl_text_prep::Tokenizer;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The network's shape.
pub const CONFIG_FILE: &str = "config.json";
/// The network's shape in folders of open_clip.
const OPEN_CLIP_CONFIG_FILE: &str = "open_clip_config.json";
/// The tokenizer.
pub const TOKENIZER_FILE: &str = "tokenizer.json";

type Result<T> = std::result::Result<T, ModelError>;
type Tensors = BTreeMap<String, Tensor>;

/// What a folder holds: the shape of a network, and its parameters under the names they have here, floats as f32.
#[derive(Debug)]
pub struct Contents<C> {
    /// Shape.
    pub config: C,
    /// Parameters; whether they fit is for [`ParamStore::finish`] to say.
    pub tensors: BTreeMap<String, Tensor>,
    /// The tokenizer that belongs to it, if it is one for texts.
    pub tokenizer_file: PathBuf,
    /// All files that were read, the tokenizer last.
    files: Vec<PathBuf>,
}

/// Folders that complete a checkpoint which leaves its tower, its tokenizer or the shape of its parts to others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Companions<'a> {
    /// A folder that [`read_vision_tower`] reads.
    pub vision_tower: Option<&'a Path>,
    /// A folder with the `config.json` and the `tokenizer.json` of a Qwen2; its weights are not read.
    pub language_model: Option<&'a Path>,
}

/// Reads a SigLIP vision tower: from the folder of a tower or a pair of Hugging Face's, timm's or open_clip's, or from
/// ours. Names are [`SiglipVisionTower`](crate::SiglipVisionTower)'s.
///
/// Which GELU it computes is as the folder says: Hugging Face's tanh, the exact one in timm's and open_clip's of the first
/// SigLIP.
///
/// # Errors
/// If a file is missing or malformed, or describes something that cannot be computed here.
pub fn read_vision_tower(dir: &Path, device: &Device) -> Result<Contents<SiglipVisionConfig>> {
    contents(dir, vision_tower_config(dir)?, Network::SiglipVision, device)
}

/// Reads a SigLIP pair of Hugging Face's, open_clip's or ours. Names are [`Siglip`]'s.
///
/// # Errors
/// As [`read_vision_tower`], or if the folder wants its images made in another way than
/// [`pixel_values`](oqvl_image_prep::pixel_values) does it.
pub fn read_siglip(dir: &Path, device: &Device) -> Result<Contents<SiglipConfig>> {
    let config: SiglipConfig = read_config(dir)?;
    check_config(dir, config.validate())?;
    check_images(dir, config.vision_config.image_size)?;
    contents(dir, config, Network::Siglip, device)
}

/// Reads a language model: a `Qwen2ForCausalLM` of Hugging Face's, or ours. Names are [`Qwen2`](crate::Qwen2)'s.
///
/// # Errors
/// As [`read_vision_tower`], or if the head differs from the embedding that it is said to be.
pub fn read_language_model(dir: &Path, device: &Device) -> Result<Contents<Qwen2Config>> {
    let mut read = contents(dir, language_model_config(dir)?, Network::Qwen2, device)?;
    if read.config.tie_word_embeddings {
        drop_tied_head(&mut read.tensors, "")?;
    }
    Ok(read)
}

/// Reads a vision-language model: ours, transformers' LLaVA of SigLIP and Qwen2, the MLM-Filter release (`llava_qwen`),
/// or a checkpoint of the reference (`config.json` and `checkpoints/latest-checkpoint.pt`). Names are [`Vlm`]'s.
///
/// The reference's folders hold projector and language model; the vision tower, the shape of the language model and its
/// tokenizer come from `companions`. The tower then computes the exact GELU, as the reference does, whatever its folder
/// says. In all others a companion stands in for what the folder itself does not hold.
///
/// # Errors
/// As [`read_language_model`], or if a companion is needed that is not given, or the folder wants its images made in
/// another way than [`pixel_values`](oqvl_image_prep::pixel_values) does it.
pub fn read_vlm(dir: &Path, companions: &Companions<'_>, device: &Device) -> Result<Contents<VlmConfig>> {
    let VlmShape { config, is_of_reference } = vlm_shape(dir, companions)?;
    let mut read = contents(dir, config, Network::Vlm, device)?;
    if let Some(language_model) = companions.language_model
        && (is_of_reference || !read.tokenizer_file.is_file())
    {
        if is_of_reference {
            read.files.insert(1, language_model.join(CONFIG_FILE));
        }
        read.replace_tokenizer(language_model.join(TOKENIZER_FILE));
    }
    if !read.tensors.keys().any(|name| name.starts_with("vision_tower."))
        && let Some(vision_tower) = companions.vision_tower
    {
        let tower = read_vision_tower(vision_tower, device)?;
        let named = |(name, tensor)| (format!("vision_tower.{name}"), tensor);
        read.tensors.extend(tower.tensors.into_iter().map(named));
        let own_files = tower.files.into_iter().filter(|file| *file != tower.tokenizer_file);
        read.files.splice(read.files.len() - 1..read.files.len() - 1, own_files);
    }
    if read.config.text_config.tie_word_embeddings {
        drop_tied_head(&mut read.tensors, "language_model.")?;
    }
    Ok(read)
}

/// The shape of a vision-language model.
#[derive(Debug)]
pub(crate) struct VlmShape {
    config: VlmConfig,
    /// Whether its folder is a checkpoint of the reference, which leaves much of this to its companions.
    is_of_reference: bool,
}

/// The shape of a vision-language model whose images are made as here; weights are not looked at.
pub(crate) fn vlm_shape(dir: &Path, companions: &Companions<'_>) -> Result<VlmShape> {
    let config: Value = read_config(dir)?;
    if let Some(reference) = reference_in(dir, &config)? {
        let config = reference_config(dir, &reference, companions)?;
        return Ok(VlmShape { config, is_of_reference: true });
    }
    let config: VlmConfig = from_config(dir, whole_config(config, companions)?)?;
    check_config(dir, config.validate())?;
    check_images(dir, config.vision_config.image_size)?;
    Ok(VlmShape { config, is_of_reference: false })
}

/// The config of a checkpoint of the reference; nothing if the folder is another's.
pub(crate) fn reference(dir: &Path) -> Result<Option<ReferenceConfig>> {
    reference_in(dir, &read_config(dir)?)
}

/// As [`reference`], of the folder's config.
fn reference_in(dir: &Path, config: &Value) -> Result<Option<ReferenceConfig>> {
    ReferenceConfig::is_in(config).then(|| from_config(dir, config.clone())).transpose()
}

/// The shape of the vision tower of a folder that [`read_vision_tower`] reads.
fn vision_tower_config(dir: &Path) -> Result<SiglipVisionConfig> {
    let config: SiglipVisionConfig = read_config(dir)?;
    check_config(dir, config.validate())?;
    Ok(config)
}

/// The shape of the language model of a folder that [`read_language_model`] reads.
fn language_model_config(dir: &Path) -> Result<Qwen2Config> {
    let config: Qwen2Config = read_config(dir)?;
    check_config(dir, config.validate())?;
    Ok(config)
}

/// The shape of a `llava_qwen`'s tower is that of a model on the hub, or of the companion.
fn whole_config(mut config: Value, companions: &Companions<'_>) -> Result<Value> {
    if let (Some(tower), Some(keys)) = (companions.vision_tower, config.as_object_mut())
        && leaves_tower_open(keys)
    {
        let tower = serde_json::to_value(vision_tower_config(tower)?);
        let tower = tower.map_err(|error| ModelError::Config(error.to_string()))?;
        keys.insert("vision_config".to_owned(), tower);
    }
    Ok(config)
}

fn reference_config(
    dir: &Path,
    reference: &ReferenceConfig,
    companions: &Companions<'_>,
) -> Result<VlmConfig> {
    let (Some(vision_tower), Some(language_model)) = (companions.vision_tower, companions.language_model)
    else {
        let mut missing = Vec::new();
        if companions.vision_tower.is_none() {
            missing.push((Backbone::VisionTower, reference.vision_backbone.clone()));
        }
        if companions.language_model.is_none() {
            missing.push((Backbone::LanguageModel, reference.llm_backbone.clone()));
        }
        return Err(ModelError::Incomplete { path: dir.to_path_buf(), missing });
    };
    let mut vision_config = vision_tower_config(vision_tower)?;
    vision_config.hidden_act = ReferenceConfig::HIDDEN_ACT;
    let config = VlmConfig {
        vision_config,
        text_config: language_model_config(language_model)?,
        pooled_grid: reference.pooled_grid,
        vision_feature_layer: crate::SECOND_TO_LAST,
    };
    check_config(dir, config.validate())?;
    Ok(config)
}

/// Reads the weights that belong to a config.
pub(crate) fn contents<C>(dir: &Path, config: C, network: Network, device: &Device) -> Result<Contents<C>> {
    let tensors = network.rename(read_weights(dir, device)?)?;
    let tokenizer_file = dir.join(TOKENIZER_FILE);
    let mut files = vec![config_file(dir).into_path()];
    files.extend(weight_files(dir)?);
    files.push(tokenizer_file.clone());
    Ok(Contents { config, tensors, tokenizer_file, files })
}

impl<C> Contents<C> {
    pub(crate) fn replace_tokenizer(&mut self, file: PathBuf) {
        self.files.pop();
        self.files.push(file.clone());
        self.tokenizer_file = file;
    }

    /// The tokenizer, if it is a language model's; those of image-text pairs are read by their checkpoints.
    ///
    /// # Errors
    /// If it is missing or malformed.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_file(&self.tokenizer_file)?)
    }

    /// Digest of config, weights and tokenizer.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn digest(&self) -> Result<String> {
        digest_of(&self.files)
    }
}

/// Digest of several files together, in this order.
fn digest_of(files: &[PathBuf]) -> Result<String> {
    let mut all = String::new();
    for path in files {
        all += &digest_file(path).map_err(|error| unreadable(path, error))?;
    }
    Ok(digest_bytes(all.as_bytes()))
}

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
    /// Reads a checkpoint for inference in f32, from any folder that [`read_vlm`] reads and that is whole.
    ///
    /// # Errors
    /// As [`load_with`](Self::load_with).
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        Self::load_with(dir, &Companions::default(), DType::F32, device)
    }

    /// As [`load`](Self::load), with folders that complete it, and in `dtype`: f32, or bf16, which takes half the memory
    /// and gives other late digits. Weights are converted, whatever they are in the files.
    ///
    /// # Errors
    /// If a file is missing or malformed, the weights do not fit the config, or `dtype` is neither of the two.
    pub fn load_with(dir: &Path, companions: &Companions<'_>, dtype: DType, device: &Device) -> Result<Self> {
        if !matches!(dtype, DType::F32 | DType::BF16) {
            return Err(ModelError::Dtype(dtype.as_str()));
        }
        let mut read = read_vlm(dir, companions, device)?;
        let mut store = for_inference(std::mem::take(&mut read.tensors), device).with_dtype(dtype);
        let vlm = Vlm::new(&read.config, store.root(), device)?;
        store.finish()?;
        Ok(Self { vlm, tokenizer: read.tokenizer()?, digest: read.digest()? })
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
    /// Reads a checkpoint for inference in f32, from any folder that [`read_siglip`] reads.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the weights do not fit the config.
    pub fn load(dir: &Path, device: &Device) -> Result<Self> {
        let mut read = read_siglip(dir, device)?;
        let mut store = for_inference(std::mem::take(&mut read.tensors), device);
        let siglip = Siglip::new(&read.config, store.root())?;
        store.finish()?;
        let (text, digest) = (SiglipText::load(dir)?, read.digest()?);
        Ok(Self { siglip, config: read.config, text, digest })
    }

    /// What the text tower reads of a caption: as many ids as it has positions.
    ///
    /// # Errors
    /// If the tokenizer refuses the caption.
    pub fn text_ids(&self, caption: &str) -> Result<Vec<i64>> {
        self.text.ids(caption, self.config.text_config.max_position_embeddings)
    }

    /// What [`text_ids`](Self::text_ids) has made of `b` captions, as the text tower takes it: `(b, s)` u32.
    ///
    /// # Errors
    /// If the tensor cannot be made.
    pub fn text_batch(&self, texts: &[Vec<i64>]) -> Result<Tensor> {
        Ok(self.siglip.text_batch(texts, self.text.pad_id())?)
    }
}

pub(crate) fn for_inference(given: Tensors, device: &Device) -> ParamStore {
    ParamStore::new(given, Missing::Refuse, Trainable::None, device)
}

/// Reads `config.json` of a checkpoint, or `open_clip_config.json` if there is only that.
///
/// # Errors
/// If it is missing or has other keys than the network's config, or sizes that no network has.
pub fn read_config<C: DeserializeOwned>(dir: &Path) -> Result<C> {
    let path = config_file(dir).into_path();
    let config: Value = oqvl_shard_io::read_json(&path).map_err(|error| unreadable(&path, error))?;
    check_sizes(&config).map_err(|problem| unreadable(&path, problem))?;
    from_config(dir, config)
}

/// What the config of a folder describes.
fn from_config<C: DeserializeOwned>(dir: &Path, config: Value) -> Result<C> {
    serde_json::from_value(config).map_err(|error| unreadable(&config_file(dir).into_path(), error))
}

/// Tells which file has what is out of its range, where there may be several folders.
pub(crate) fn check_config(dir: &Path, validated: Result<()>) -> Result<()> {
    validated.map_err(|error| unreadable(&config_file(dir).into_path(), error))
}

/// The file of a folder that describes its network.
#[derive(Debug)]
pub(crate) enum ConfigFile {
    /// `config.json`, ours, Hugging Face's, timm's or the reference's.
    Usual(PathBuf),
    /// `open_clip_config.json`, where it is the only one or the other is timm's, of a part: the folder may be of two
    /// libraries.
    OpenClip(PathBuf),
}

impl ConfigFile {
    fn into_path(self) -> PathBuf {
        match self {
            Self::Usual(path) | Self::OpenClip(path) => path,
        }
    }
}

pub(crate) fn config_file(dir: &Path) -> ConfigFile {
    let (usual, open_clip) = (dir.join(CONFIG_FILE), dir.join(OPEN_CLIP_CONFIG_FILE));
    match open_clip.is_file() && (!usual.is_file() || is_of_timm(&usual)) {
        true => ConfigFile::OpenClip(open_clip),
        false => ConfigFile::Usual(usual),
    }
}

/// Whether a `config.json` is timm's, of the tower alone. What cannot be read is told by whoever reads it in earnest.
fn is_of_timm(config: &Path) -> bool {
    let config: Value = read_json(config).unwrap_or_default();
    config.get("architecture").is_some() && config.get("model_type").is_none()
}

/// Whether open_clip has made the folder, alone or for both libraries: then captions are read as it does it.
pub(crate) fn is_of_open_clip(dir: &Path) -> bool {
    dir.join(OPEN_CLIP_CONFIG_FILE).is_file()
}

pub(crate) fn unreadable(
    path: &Path,
    error: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> ModelError {
    ModelError::Read { path: path.to_path_buf(), source: error.into() }
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
) -> Result<()> {
    let write = |name: &str, bytes: &[u8]| {
        let path = dir.join(name);
        write_atomic(&path, bytes).map_err(|source| ModelError::Write { path, source })
    };
    std::fs::create_dir_all(dir).map_err(|source| ModelError::Write { path: dir.to_path_buf(), source })?;
    write(WEIGHTS_FILE, &store.to_safetensors()?)?;
    let tokenizer = std::fs::read(tokenizer_file).map_err(|error| unreadable(tokenizer_file, error))?;
    write(TOKENIZER_FILE, &tokenizer)?;
    let config = serde_json::to_vec_pretty(config).map_err(|error| ModelError::Config(error.to_string()))?;
    write(CONFIG_FILE, &config)
}
