//! Vision-language models as transformers, the MLM-Filter release and the reference describe them.

use super::Keys;
use super::siglip::hub_tower;
use crate::encoder::HiddenAct;
use crate::qwen2::Qwen2Config;
use crate::siglip::{SECOND_TO_LAST, SiglipVisionConfig};
use crate::vlm::VlmConfig;
use oqvl_image_prep::ImageGeometry;
use serde::Deserialize;
use serde_json::{Map, Value};

impl TryFrom<Map<String, Value>> for VlmConfig {
    type Error = String;

    /// Ours, transformers' `LlavaConfig`, or the `llava_qwen` of the MLM-Filter release.
    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let mut keys = Keys::new(keys);
        let config = match keys.take::<String>("model_type")?.as_deref() {
            None => ours(&mut keys)?,
            Some("llava") => llava(&mut keys)?,
            Some("llava_qwen") => llava_qwen(&mut keys)?,
            Some(other) => {
                return Err(format!("`model_type` is {other:?}, known are \"llava\" and \"llava_qwen\""));
            }
        };
        keys.finish()?;
        Ok(config)
    }
}

fn ours(keys: &mut Keys) -> Result<VlmConfig, String> {
    Ok(VlmConfig {
        vision_config: tower(keys)?,
        text_config: language_model(keys)?,
        pooled_grid: keys.require("pooled_grid")?,
        vision_feature_layer: keys.take("vision_feature_layer")?.unwrap_or(SECOND_TO_LAST),
    })
}

fn tower(keys: &mut Keys) -> Result<SiglipVisionConfig, String> {
    let table = keys.table("vision_config")?;
    table.try_into().map_err(|error: String| format!("vision_config: {error}"))
}

fn language_model(keys: &mut Keys) -> Result<Qwen2Config, String> {
    let table = keys.table("text_config")?;
    table.try_into().map_err(|error: String| format!("text_config: {error}"))
}

/// Every patch goes through the projector: our network whose grid is not pooled.
///
/// Source: transformers `models/llava/{configuration,modeling}_llava.py`.
fn llava(keys: &mut Keys) -> Result<VlmConfig, String> {
    // The defaults of these two are those of LLaVA 1.5, whose tower is CLIP.
    let vision_model: Option<&Value> = keys.peek("vision_config").and_then(|tower| tower.get("model_type"));
    if vision_model.is_none_or(|model| model != "siglip_vision_model") {
        return Err("vision_config: `model_type` must be \"siglip_vision_model\"".to_owned());
    }
    let text_model: Option<&Value> = keys.peek("text_config").and_then(|text| text.get("model_type"));
    if text_model.is_none_or(|model| model != "qwen2") {
        return Err("text_config: `model_type` must be \"qwen2\"".to_owned());
    }
    let vision_config = tower(keys)?;
    let mut text_config = language_model(keys)?;
    // Transformers 5 says it at the top, 4 within.
    text_config.tie_word_embeddings |= keys.take("tie_word_embeddings")?.unwrap_or(false);
    keys.only("projector_hidden_act", "gelu")?;
    keys.only("multimodal_projector_bias", true)?;
    let strategy: Option<String> = keys.take("vision_feature_select_strategy")?;
    if strategy.as_deref() != Some("full") {
        return Err(format!(
            "`vision_feature_select_strategy` is {strategy:?}, only \"full\" can be computed here: the other drops the \
             first patch"
        ));
    }
    let vision_feature_layer = keys.take("vision_feature_layer")?.unwrap_or(SECOND_TO_LAST);
    // Which id stands for an image: in a prompt of ours it is the placeholder.
    // Transformers before 4.41 repeat the size of the vocabulary, as it was before the placeholder.
    let ids = [
        "image_token_index",
        "image_token_id",
        "image_seq_length",
        "ignore_index",
        "eos_token_id",
        "vocab_size",
    ];
    keys.pass_over(&ids);
    Ok(VlmConfig { pooled_grid: vision_config.grid(), vision_config, text_config, vision_feature_layer })
}

/// Keys of LLaVA's training scripts that say nothing about the network; how images are cut is the reader's business.
const LLAVA_SCRIPT: &[&str] = &[
    "freeze_mm_mlp_adapter",
    "freeze_mm_vision_resampler",
    "image_aspect_ratio",
    "image_crop_resolution",
    "image_grid_pinpoints",
    "image_split_resolution",
    "mm_hidden_size",
    "mm_projector_lr",
    "mm_tunable_parts",
    "mm_use_im_patch_token",
    "mm_vision_tower_lr",
    "pretraining_tp",
    "tokenizer_model_max_length",
    "tokenizer_padding_side",
    "tune_mm_mlp_adapter",
    "tune_mm_vision_resampler",
    "unfreeze_mm_vision_tower",
    "vision_tower_pretrained",
];

/// Tokens of an image along one edge where a config of the reference or of MLM-Filter gives no number.
const AAPOOL_GRID: usize = ImageGeometry::pretrain().pooled_grid as usize;

/// The keys of a `Qwen2Config`, and what the projector and the tower are.
fn llava_qwen(keys: &mut Keys) -> Result<VlmConfig, String> {
    let tower: String = match keys.take("mm_vision_tower")? {
        Some(tower) => tower,
        None => keys.require("vision_tower")?,
    };
    let vision_config = match keys.take::<Map<String, Value>>("vision_config")? {
        // Put there by the reader of the folder, from the tower's own.
        Some(config) => config.try_into().map_err(|error: String| format!("vision_config: {error}"))?,
        None => hub_tower(&tower).ok_or_else(|| {
            format!(
                "`mm_vision_tower` is {tower:?}, whose shape is not known here: give the folder of the vision tower too"
            )
        })?,
    };
    keys.only("mm_projector_type", "aapool_mlp")?;
    keys.only("mm_vision_select_feature", "patch")?;
    keys.only("mm_patch_merge_type", "flat")?;
    keys.only("mm_use_im_start_end", false)?;
    keys.only("mm_resampler_type", Value::Null)?;
    keys.only("use_mm_proj", true)?;
    let vision_feature_layer = keys.take("mm_vision_select_layer")?.unwrap_or(SECOND_TO_LAST);
    let num_tokens = keys.take("mm_num_image_tokens")?.unwrap_or(AAPOOL_GRID * AAPOOL_GRID);
    let pooled_grid = grid_of(num_tokens)
        .ok_or_else(|| format!("`mm_num_image_tokens` is {num_tokens}, which is not a square"))?;
    let text_config = Qwen2Config::take_from(keys)?;
    keys.pass_over(LLAVA_SCRIPT);
    Ok(VlmConfig { vision_config, text_config, pooled_grid, vision_feature_layer })
}

/// Whether a config is a `llava_qwen`'s whose tower has a name that says nothing here.
pub(crate) fn leaves_tower_open(config: &Map<String, Value>) -> bool {
    let tower = config.get("mm_vision_tower").or_else(|| config.get("vision_tower")).and_then(Value::as_str);
    config.get("model_type").is_some_and(|kind| kind == "llava_qwen") && tower.and_then(hub_tower).is_none()
}

/// What the reference's `config.json` says about the network: next to nothing, the rest is in the code and in the folders
/// of the two models it names.
///
/// The file is the dump of a training run, of which the reference reads six keys again. All others say how the run went and
/// cannot change the network, so that they may be any.
///
/// Source: `load`, Open-Qwen2VL `prismatic/models/load.py`; `ModelConfig`, `prismatic/conf/models.py`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub(crate) struct ReferenceConfig {
    pub(crate) pooled_grid: usize,
    /// As the reference names them.
    pub(crate) vision_backbone: String,
    pub(crate) llm_backbone: String,
}

impl ReferenceConfig {
    /// Whether the file is the reference's.
    pub(crate) fn is_in(config: &Value) -> bool {
        config.pointer("/model/arch_specifier").is_some()
    }

    /// The tower of the release, as the reference names it.
    pub(crate) const VISION_BACKBONE: &str = "siglip-vit-so400m-384px";
    /// Its language model.
    pub(crate) const LLM_BACKBONE: &str = "qwen2.5-1.5b-instruct";

    /// The model of the Hugging Face hub that the reference takes a backbone of the release from; there are none of others.
    ///
    /// Source: where timm's `vit_so400m_patch14_siglip_384` has its weights from, and `{mount_path}/Qwen2.5-1.5B-Instruct`
    /// with the `mount_path` of the release, as the reference's `load` puts it together.
    pub(crate) fn hub_id(backbone: &str) -> Option<&'static str> {
        match backbone {
            Self::VISION_BACKBONE => Some("timm/ViT-SO400M-14-SigLIP-384"),
            Self::LLM_BACKBONE => Some("Qwen/Qwen2.5-1.5B-Instruct"),
            _ => None,
        }
    }

    /// The tower of the release.
    pub(crate) fn released_tower() -> SiglipVisionConfig {
        let tower = hub_tower("google/siglip-so400m-patch14-384").expect("a size and a patch that are known");
        SiglipVisionConfig { hidden_act: Self::HIDDEN_ACT, ..tower }
    }

    /// The language model of the release.
    ///
    /// Source: `config.json`, Qwen/Qwen2.5-1.5B-Instruct.
    pub(crate) fn released_language_model() -> Qwen2Config {
        Qwen2Config {
            vocab_size: 151_936,
            hidden_size: 1536,
            intermediate_size: 8960,
            num_hidden_layers: 28,
            num_attention_heads: 12,
            num_key_value_heads: 2,
            max_position_embeddings: 32_768,
            rope_theta: 1e6,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        }
    }

    /// The reference's activation, whoever's folder the weights of the tower come from: timm's for this architecture.
    pub(crate) const HIDDEN_ACT: HiddenAct = HiddenAct::Gelu;
}

impl TryFrom<Map<String, Value>> for ReferenceConfig {
    type Error = String;

    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let model = Keys::new(Keys::new(keys).table("model")?);
        reference_model(model).map_err(|error| format!("model: {error}"))
    }
}

fn reference_model(mut keys: Keys) -> Result<ReferenceConfig, String> {
    keys.only("image_resize_strategy", "resize-naive")?;
    let arch: String = keys.require("arch_specifier")?;
    Ok(ReferenceConfig {
        pooled_grid: pooled_grid(&arch)?,
        vision_backbone: keys.require("vision_backbone_id")?,
        llm_backbone: keys.require("llm_backbone_id")?,
    })
}

/// `full-align+729-avgpool`: the part behind the last plus; 144 tokens where it names no number.
///
/// Source: `PrismaticVLM.__init__`, Open-Qwen2VL `prismatic/models/vlms/prismatic.py`.
fn pooled_grid(arch_specifier: &str) -> Result<usize, String> {
    let unknown = || format!("`arch_specifier` is {arch_specifier:?}, only `avgpool` can be computed here");
    let last = arch_specifier.rsplit('+').next().unwrap_or_default();
    let num_tokens = match last.strip_suffix("avgpool").ok_or_else(unknown)? {
        "" => AAPOOL_GRID * AAPOOL_GRID,
        number => number.strip_suffix('-').and_then(|number| number.parse().ok()).ok_or_else(unknown)?,
    };
    grid_of(num_tokens)
        .ok_or_else(|| format!("`arch_specifier` is {arch_specifier:?}, but {num_tokens} is not a square"))
}

/// Tokens along one edge of so many in all; none if they are no square.
fn grid_of(num_tokens: usize) -> Option<usize> {
    let grid = usize::isqrt(num_tokens);
    (grid * grid == num_tokens && grid > 0).then_some(grid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(config: Value) -> Result<VlmConfig, String> {
        serde_json::from_value(config).map_err(|error| error.to_string())
    }

    fn llava() -> Value {
        json!({
            "architectures": ["LlavaForConditionalGeneration"], "dtype": "float32", "image_seq_length": 576,
            "image_token_index": 59, "model_type": "llava", "multimodal_projector_bias": true,
            "projector_hidden_act": "gelu", "tie_word_embeddings": true, "transformers_version": "5.23.0",
            "vocab_size": 59, "_commit_hash": null, "text_config": {"model_type": "qwen2", "hidden_size": 16, "num_attention_heads": 2},
            "vision_config": {"model_type": "siglip_vision_model", "image_size": 14, "patch_size": 4, "hidden_act": "gelu"},
            "vision_feature_layer": -2, "vision_feature_select_strategy": "full",
        })
    }

    #[test]
    fn llava_is_the_network_that_does_not_pool() {
        let config = read(llava()).unwrap();
        assert_eq!((config.pooled_grid, config.vision_feature_layer), (3, -2));
        assert_eq!(config.vision_config.hidden_act, HiddenAct::Gelu);
        assert!(config.text_config.tie_word_embeddings);
        assert_eq!(read(serde_json::to_value(&config).unwrap()).unwrap(), config);
        for (pointer, key, value, expected) in [
            ("", "vision_feature_select_strategy", json!("default"), "`vision_feature_select_strategy` is"),
            ("", "vision_feature_layer", json!([-2, 3]), "`vision_feature_layer` cannot be [-2,3]"),
            ("", "projector_hidden_act", json!("gelu_pytorch_tanh"), "`projector_hidden_act` is"),
            ("", "spatial_merge_size", json!(2), "unknown key `spatial_merge_size`"),
            ("", "model_type", json!("llava_next"), "`model_type` is \"llava_next\", known are"),
            (
                "/vision_config",
                "model_type",
                json!("clip_vision_model"),
                "vision_config: `model_type` must be",
            ),
            ("/text_config", "model_type", json!("llama"), "text_config: `model_type` must be"),
        ] {
            let mut other = llava();
            other.pointer_mut(pointer).unwrap()[key] = value;
            let error = read(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn llava_qwen_takes_the_last_layer_and_144_tokens() {
        let config = json!({
            "architectures": ["LlavaQwenForCausalLM"], "model_type": "llava_qwen", "hidden_size": 1536,
            "intermediate_size": 8960, "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
            "rope_theta": 1e6, "tie_word_embeddings": true, "vocab_size": 151_665, "use_sliding_window": false,
            "mm_vision_tower": "google/siglip-so400m-patch14-384", "mm_projector_type": "aapool_mlp",
            "mm_vision_select_layer": -1, "mm_vision_select_feature": "patch", "mm_hidden_size": 1152,
            "mm_use_im_start_end": false, "mm_use_im_patch_token": false, "image_aspect_ratio": "pad",
            "mm_num_image_tokens": 144, "tokenizer_model_max_length": 4096, "use_mm_proj": true,
            "mm_projector_lr": null,
        });
        let read_config = read(config.clone()).unwrap();
        assert_eq!((read_config.pooled_grid, read_config.vision_feature_layer), (12, -1));
        assert_eq!(read_config.vision_config.hidden_act, HiddenAct::GeluPytorchTanh);
        assert_eq!((read_config.vision_config.grid(), read_config.text_config.vocab_size), (27, 151_665));
        let mut other = config.clone();
        other["mm_num_image_tokens"] = json!(729);
        assert_eq!(read(other).unwrap().pooled_grid, 27);
        for (key, value, expected) in [
            (
                "mm_projector_type",
                json!("mlp2x_gelu"),
                "`mm_projector_type` is \"mlp2x_gelu\", only \"aapool_mlp\"",
            ),
            (
                "mm_vision_tower",
                json!("./tower"),
                "`mm_vision_tower` is \"./tower\", whose shape is not known here",
            ),
            (
                "mm_patch_merge_type",
                json!("spatial_unpad"),
                "`mm_patch_merge_type` is \"spatial_unpad\", only",
            ),
            ("mm_num_image_tokens", json!(145), "`mm_num_image_tokens` is 145, which is not a square"),
            ("mm_new_idea", json!(1), "unknown key `mm_new_idea`"),
        ] {
            let mut other = config.clone();
            other[key] = value;
            let error = read(other).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[test]
    fn the_reference_names_the_number_of_tokens() {
        for (arch, grid) in [("no-align+avgpool", 12), ("full-align+729-avgpool", 27), ("144-avgpool", 12)] {
            assert_eq!(pooled_grid(arch), Ok(grid));
        }
        for arch in ["no-align+gelu-mlp", "x-avgpool", "full-align+145-avgpool", "0-avgpool", ""] {
            assert!(pooled_grid(arch).is_err(), "{arch}");
        }
        let config = json!({
            "dataset": {"type": "pretrain", "dataset_id": "pretrain"}, "mount_path": "Qwen", "run_id": "x", "seed": 7,
            "pretrained_checkpoint": null, "run_root_dir": "checkpoints", "stage": "pretrain", "wandb_entity": null,
            "trackers": ["jsonl", "wandb"], "wandb_project": "mmpretrain",
            "model": {
                "type": "one-stage+7b", "model_id": "x", "arch_specifier": "no-align+avgpool", "llm_max_length": 4096,
                "vision_backbone_id": "siglip-vit-so400m-384px", "llm_backbone_id": "qwen2.5-1.5b-instruct",
                "image_resize_strategy": "resize-naive", "align_epochs": 1, "pretrain_max_steps": null,
                "finetune_train_strategy": "fsdp-full-shard", "enable_gradient_checkpointing": true,
                "enable_mixed_precision_training": true, "reduce_in_full_precision": false,
            },
        });
        let read = |config: Value| {
            serde_json::from_value::<ReferenceConfig>(config).map_err(|error| error.to_string())
        };
        assert!(ReferenceConfig::is_in(&config) && !ReferenceConfig::is_in(&json!({"model": "x"})));
        assert_eq!(read(config.clone()).unwrap().pooled_grid, 12);
        let mut other = config.clone();
        other["model"]["image_resize_strategy"] = json!("letterbox");
        let error = read(other).unwrap_err();
        assert!(error.starts_with("model: `image_resize_strategy` is \"letterbox\", only"), "{error}");
    }
}
