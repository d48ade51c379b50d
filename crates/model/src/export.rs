//! Checkpoints for other tools: folders that transformers loads, and the reference's own layout.
//!
//! Numbers are written as they are, 32-bit floats, so that reading an export here gives the same bits; the same checkpoint
//! gives the same bytes. A folder appears whole or not at all.

mod configs;
mod layout;

#[cfg(test)]
pub(crate) use configs::CHAT_TEMPLATE;

use crate::ModelError;
use crate::checkpoint::{CONFIG_FILE, Contents, TOKENIZER_FILE};
use crate::fine_tuning::TEMPLATE_JSON;
use crate::params::{Missing, ParamStore, Trainable};
use crate::preprocessing::{PREPROCESSOR_FILE, PROCESSOR_FILE};
use crate::vlm::{Vlm, VlmConfig};
use crate::weights::WEIGHTS_FILE;
use candle_core::{DType, Device, Tensor};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::IMAGE_PLACEHOLDER;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

type Result<T> = std::result::Result<T, ModelError>;
type Tensors = BTreeMap<String, Tensor>;

/// What transformers writes into one file at most.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What the reference calls the models that a network was made of. Its `load` builds a network of the shapes that it knows by
/// these names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackboneIds {
    /// `vision_backbone_id`; that of the release, if the shape is.
    pub vision: Option<String>,
    /// `llm_backbone_id`; that of the release, if the shape is.
    pub llm: Option<String>,
}

/// A layout to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExportFormat {
    /// transformers' `LlavaForConditionalGeneration` of SigLIP and Qwen2, with processor, tokenizer and chat template.
    /// It has no pooling, so only a model whose `pooled_grid` is its patch grid can be written so.
    Llava,
    /// The language model alone, transformers' `Qwen2ForCausalLM`.
    Qwen2,
    /// The tensors of the reference's `latest-checkpoint.pt` under their names there, as safetensors: `projector.…`,
    /// `llm_backbone.…` and `vision_backbone.…`, without the outer dict `model`.
    Reference(BackboneIds),
    /// A checkpoint of ours, whatever folders it was put together from.
    Checkpoint,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exported {
    /// Names of the files, sorted.
    pub files: Vec<String>,
    /// Their size altogether.
    pub num_bytes: u64,
}

/// Writes `model` into a new folder `out`; its tensors go into files of up to `max_shard_bytes`, or of one tensor.
///
/// # Errors
/// If `out` is there already, the weights do not fit the config, the layout cannot express the model, or a file cannot be
/// written.
pub fn export(
    model: &Contents<VlmConfig>,
    format: ExportFormat,
    out: &Path,
    max_shard_bytes: u64,
) -> Result<Exported> {
    check_new(out)?;
    let tensors = checked(model)?;
    let mut files = match format {
        ExportFormat::Llava => llava(model, tensors)?,
        ExportFormat::Qwen2 => qwen2(model, tensors)?,
        ExportFormat::Reference(ids) => {
            let config = configs::reference(&model.config, &ids)?;
            Files {
                json: vec![(CONFIG_FILE, config)],
                tensors: layout::reference(tensors)?,
                ..Files::of(model)?
            }
        }
        ExportFormat::Checkpoint => {
            let config = configs::value(&model.config)?;
            Files { json: vec![(CONFIG_FILE, config)], tensors, ..Files::of(model)? }
        }
    };
    write_folder(out, |dir| files.write(dir, max_shard_bytes))
}

/// Checks that there is no such folder yet; [`export`] does, and who asks first learns it before a model is read.
///
/// # Errors
/// [`ModelError::Exists`].
pub fn check_new(out: &Path) -> Result<()> {
    if out.exists() { Err(ModelError::Exists { path: out.to_path_buf() }) } else { Ok(()) }
}

/// The parameters of the network, none missing and none too many.
fn checked(model: &Contents<VlmConfig>) -> Result<Tensors> {
    let mut store = ParamStore::new(model.tensors.clone(), Missing::Refuse, Trainable::None, &Device::Cpu);
    Vlm::new(&model.config, store.root(), &Device::Cpu)?;
    store.finish()?;
    Ok(store.frozen().clone())
}

fn llava(model: &Contents<VlmConfig>, mut tensors: Tensors) -> Result<Files> {
    let (vision, pooled) = (&model.config.vision_config, model.config.pooled_grid);
    if pooled != vision.grid() {
        let grid = vision.grid();
        return Err(ModelError::Layout(format!(
            "this model pools {grid} x {grid} patches to {pooled} x {pooled} tokens, and transformers' LLaVA has no \
             pooling; only a model of {} tokens per image can be written so",
            grid * grid
        )));
    }
    let tokenizer = model.tokenizer()?.with_special_token(IMAGE_PLACEHOLDER)?;
    let image_id = tokenizer.token_id(IMAGE_PLACEHOLDER).unwrap_or_default();
    let mut config = model.config.clone();
    // transformers looks the placeholder up like any token before the image takes its place.
    let rows = tokenizer.vocab_size();
    if rows > config.text_config.vocab_size {
        layout::grow_vocabulary(&mut tensors, rows)?;
        config.text_config.vocab_size = rows;
    }
    let has_head = tensors.keys().any(|name| name.starts_with("vision_tower.vision_model.head."));
    Ok(Files {
        tensors: layout::llava(tensors),
        tokenizer: tokenizer.to_json()?,
        json: vec![
            ("generation_config.json", configs::generation(&tokenizer, Some(image_id))),
            ("tokenizer_config.json", configs::tokenizer(&config.text_config, Some(IMAGE_PLACEHOLDER))),
            (PREPROCESSOR_FILE, configs::image_processor(vision)),
            (PROCESSOR_FILE, configs::processor(vision)),
            (TEMPLATE_JSON, json!({"chat_template": configs::CHAT_TEMPLATE})),
            (CONFIG_FILE, configs::llava(&config, &tokenizer, image_id, has_head)?),
        ],
    })
}

fn qwen2(model: &Contents<VlmConfig>, tensors: Tensors) -> Result<Files> {
    let text = &model.config.text_config;
    let tokenizer = model.tokenizer()?;
    Ok(Files {
        tensors: layout::language_model(tensors),
        tokenizer: tokenizer.to_json()?,
        json: vec![
            ("generation_config.json", configs::generation(&tokenizer, None)),
            ("tokenizer_config.json", configs::tokenizer(text, None)),
            (CONFIG_FILE, configs::qwen2_alone(text, &tokenizer)?),
        ],
    })
}

/// What a folder will hold.
#[derive(Debug, Default)]
struct Files {
    tensors: Tensors,
    /// Bytes of `tokenizer.json`.
    tokenizer: Vec<u8>,
    /// The config comes last.
    json: Vec<(&'static str, Value)>,
}

impl Files {
    /// Nothing but the tokenizer, as it is.
    fn of(model: &Contents<VlmConfig>) -> Result<Self> {
        let path = &model.tokenizer_file;
        let tokenizer = std::fs::read(path)
            .map_err(|error| ModelError::Read { path: path.clone(), source: Box::new(error) })?;
        Ok(Self { tokenizer, ..Self::default() })
    }

    fn write(&mut self, dir: &Path, max_shard_bytes: u64) -> Result<Exported> {
        let mut written = Exported { files: Vec::new(), num_bytes: 0 };
        let mut write = |name: &str, bytes: &[u8]| {
            written.files.push(name.to_owned());
            written.num_bytes += bytes.len() as u64;
            let path = dir.join(name);
            write_atomic(&path, bytes).map_err(|source| ModelError::Write { path, source })
        };
        write_weights(&self.tensors, max_shard_bytes, &mut write)?;
        write(TOKENIZER_FILE, &self.tokenizer)?;
        for (name, value) in &self.json {
            write(name, &pretty(value)?)?;
        }
        written.files.sort();
        Ok(written)
    }
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|error| ModelError::Config(error.to_string()))?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// One file, or shards and their index, named as transformers does it.
fn write_weights(
    tensors: &Tensors,
    max_shard_bytes: u64,
    write: &mut impl FnMut(&str, &[u8]) -> Result<()>,
) -> Result<()> {
    let shards = shards(tensors, max_shard_bytes);
    if let [all] = shards.as_slice() {
        return write(WEIGHTS_FILE, &safetensors(all)?);
    }
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write(&name, &safetensors(shard)?)?;
        weight_map.extend(shard.keys().map(|tensor| (*tensor, name.clone())));
    }
    let total_size: u64 = tensors.values().map(num_bytes).sum();
    let index = json!({"metadata": {"total_size": total_size}, "weight_map": weight_map});
    write("model.safetensors.index.json", &pretty(&index)?)
}

/// Tensors in the order of their names, as many in a file as fit.
fn shards(tensors: &Tensors, max_shard_bytes: u64) -> Vec<BTreeMap<&String, &Tensor>> {
    let mut shards = vec![BTreeMap::new()];
    let mut size = 0;
    for (name, tensor) in tensors {
        let more = num_bytes(tensor);
        if size > 0 && size + more > max_shard_bytes {
            shards.push(BTreeMap::new());
            size = 0;
        }
        size += more;
        shards.last_mut().expect("never empty").insert(name, tensor);
    }
    shards
}

fn num_bytes(tensor: &Tensor) -> u64 {
    (tensor.elem_count() * DType::F32.size_in_bytes()) as u64
}

/// transformers refuses files that do not say which framework they are of.
fn safetensors(tensors: &BTreeMap<&String, &Tensor>) -> Result<Vec<u8>> {
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(tensors.iter().map(|(name, tensor)| (name.as_str(), *tensor)), Some(metadata))
        .map_err(|error| candle_core::Error::wrap(error).into())
}

/// Makes a folder under a temporary name beside its own.
fn write_folder<T>(out: &Path, fill: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |source| ModelError::Write { path, source }
    };
    let unfinished = unfinished_name(out);
    if unfinished.exists() {
        std::fs::remove_dir_all(&unfinished).map_err(failed(&unfinished))?;
    }
    std::fs::create_dir_all(&unfinished).map_err(failed(&unfinished))?;
    match fill(&unfinished) {
        Ok(filled) => {
            std::fs::rename(&unfinished, out).map_err(failed(out))?;
            Ok(filled)
        }
        Err(error) => {
            // What failed is the news; leftovers are removed by the next attempt.
            let _ = std::fs::remove_dir_all(&unfinished);
            Err(error)
        }
    }
}

fn unfinished_name(out: &Path) -> PathBuf {
    let mut name = std::ffi::OsString::from(oqvl_shard_io::TEMPORARY_PREFIX);
    name.push(out.file_name().unwrap_or_default());
    out.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_filled_in_order_and_a_large_tensor_has_its_own() {
        let zeros = |count: usize| Tensor::zeros(count, DType::F32, &Device::Cpu).unwrap();
        let tensors: Tensors = [("a", 1), ("b", 2), ("c", 9), ("d", 1), ("e", 2)]
            .map(|(name, count)| (name.to_owned(), zeros(count)))
            .into();
        let names = |max| {
            let shards = shards(&tensors, max);
            shards
                .iter()
                .map(|shard| shard.keys().map(|name| name.as_str()).collect())
                .collect::<Vec<String>>()
        };
        assert_eq!(names(12), ["ab", "c", "de"]);
        assert_eq!(names(60), ["abcde"]);
        assert_eq!(names(0), ["a", "b", "c", "d", "e"]);
    }
}
