//! The JSON files beside exported weights.

use super::{BackboneIds, Result};
use crate::ModelError;
use crate::config::ReferenceConfig;
use crate::named::Backbone;
use crate::preprocessing::BICUBIC;
use crate::qwen2::Qwen2Config;
use crate::siglip::{SECOND_TO_LAST, SiglipVisionConfig};
use crate::vlm::VlmConfig;
use oqvl_image_prep::{SIGLIP_MEAN, SIGLIP_STD};
use oqvl_text_prep::{BOS_TOKEN, EOS_TOKEN, IMAGE_PLACEHOLDER, PAD_TOKEN, Tokenizer};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// [`ChatTemplate::Reference`](oqvl_text_prep::ChatTemplate::Reference) in Jinja. What the first turn loses after an image,
/// its newline or the end of the turn, is left out there and only there.
pub(crate) const CHAT_TEMPLATE: &str = include_str!("chat_template.jinja");

pub(super) fn value(config: &impl Serialize) -> Result<Value> {
    serde_json::to_value(config).map_err(|error| ModelError::Config(error.to_string()))
}

/// Our keys, which are Hugging Face's, and those it wants besides.
fn with(config: &impl Serialize, more: Value) -> Result<Value> {
    let mut keys = value(config)?;
    if let (Value::Object(keys), Value::Object(more)) = (&mut keys, more) {
        keys.extend(more);
    }
    Ok(keys)
}

fn qwen2(config: &Qwen2Config, tokenizer: &Tokenizer) -> Result<Value> {
    let more = json!({
        "model_type": "qwen2",
        "hidden_act": "silu",
        "attention_dropout": 0.0,
        "use_sliding_window": false,
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "pad_token_id": tokenizer.pad_id(),
    });
    with(config, more)
}

pub(super) fn qwen2_alone(config: &Qwen2Config, tokenizer: &Tokenizer) -> Result<Value> {
    let more = json!({"architectures": ["Qwen2ForCausalLM"], "torch_dtype": "float32", "use_cache": true});
    with(&qwen2(config, tokenizer)?, more)
}

fn siglip(config: &SiglipVisionConfig, has_head: bool) -> Result<Value> {
    let more = json!({
        "model_type": "siglip_vision_model",
        "num_channels": 3,
        "attention_dropout": 0.0,
        "vision_use_head": has_head,
    });
    with(config, more)
}

/// Which GELU the tower computes is said in `vision_config`, its own; the projector's is the exact one.
pub(super) fn llava(
    config: &VlmConfig,
    tokenizer: &Tokenizer,
    image_id: i64,
    has_head: bool,
) -> Result<Value> {
    Ok(json!({
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "torch_dtype": "float32",
        "image_token_index": image_id,
        "image_seq_length": config.pooled_grid * config.pooled_grid,
        "vision_feature_layer": config.vision_feature_layer,
        "vision_feature_select_strategy": "full",
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "tie_word_embeddings": config.text_config.tie_word_embeddings,
        "vision_config": siglip(&config.vision_config, has_head)?,
        "text_config": qwen2(&config.text_config, tokenizer)?,
    }))
}

/// Greedy, as the reference answers; a placeholder is never an answer.
pub(super) fn generation(tokenizer: &Tokenizer, image_id: Option<i64>) -> Value {
    let mut config = json!({
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": tokenizer.eos_id(),
        "pad_token_id": tokenizer.pad_id(),
        "do_sample": false,
    });
    if let Some(image_id) = image_id {
        config["suppress_tokens"] = json!([image_id]);
    }
    config
}

/// The class that takes `tokenizer.json` as it is, in transformers 4 and 5.
pub(super) fn tokenizer(config: &Qwen2Config, image_token: Option<&str>) -> Value {
    let mut keys = Map::new();
    let mut set = |key: &str, value: Value| drop(keys.insert(key.to_owned(), value));
    set("tokenizer_class", json!("PreTrainedTokenizerFast"));
    set("bos_token", json!(BOS_TOKEN));
    set("eos_token", json!(EOS_TOKEN));
    set("pad_token", json!(PAD_TOKEN));
    set("clean_up_tokenization_spaces", json!(false));
    set("model_max_length", json!(config.max_position_embeddings));
    set("padding_side", json!("left"));
    if let Some(token) = image_token {
        set("image_token", json!(token));
        set("processor_class", json!("LlavaProcessor"));
    }
    Value::Object(keys)
}

/// [`pixel_values`](oqvl_image_prep::pixel_values) in words: any picture becomes a square, whatever its shape, the
/// reference's `resize-naive`.
pub(super) fn image_processor(vision: &SiglipVisionConfig) -> Value {
    json!({
        "image_processor_type": "SiglipImageProcessor",
        "processor_class": "LlavaProcessor",
        "do_convert_rgb": true,
        "do_resize": true,
        "size": {"height": vision.image_size, "width": vision.image_size},
        "resample": BICUBIC,
        "do_rescale": true,
        "rescale_factor": 1.0 / 255.0,
        "do_normalize": true,
        "image_mean": SIGLIP_MEAN,
        "image_std": SIGLIP_STD,
    })
}

/// With these, a placeholder becomes as many tokens as there are patches.
pub(super) fn processor(vision: &SiglipVisionConfig) -> Value {
    json!({
        "processor_class": "LlavaProcessor",
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": "full",
        "num_additional_image_tokens": 0,
        "image_token": IMAGE_PLACEHOLDER,
    })
}

/// As much of the reference's `config.json` as its `load` reads.
pub(super) fn reference(config: &VlmConfig, ids: &BackboneIds) -> Result<Value> {
    let wrong = |what: String| Err(ModelError::Layout(format!("the reference computes {what}")));
    let (act, layer) = (config.vision_config.hidden_act, config.vision_feature_layer);
    if act != ReferenceConfig::HIDDEN_ACT {
        return wrong(format!("{:?} in its tower, this model {act:?}", ReferenceConfig::HIDDEN_ACT));
    }
    if layer != SECOND_TO_LAST {
        return wrong(format!("images from layer {SECOND_TO_LAST} of its tower, this model from {layer}"));
    }
    let (vision_backbone_id, llm_backbone_id) = backbones(config, ids)?;
    Ok(json!({
        "model": {
            "model_id": "Open-Qwen2VL",
            "vision_backbone_id": vision_backbone_id,
            "image_resize_strategy": "resize-naive",
            "llm_backbone_id": llm_backbone_id,
            "llm_max_length": LLM_MAX_LENGTH.min(config.text_config.max_position_embeddings),
            "arch_specifier": format!("full-align+{}-avgpool", config.pooled_grid * config.pooled_grid),
        },
        "mount_path": "Qwen",
    }))
}

/// Positions that the release was trained with.
const LLM_MAX_LENGTH: usize = 4096;

/// What the reference calls the two backbones: as given, or as it calls those of the release, if they have their shapes.
fn backbones(config: &VlmConfig, ids: &BackboneIds) -> Result<(String, String)> {
    let language_model = Qwen2Config {
        // How far positions may go shapes nothing.
        max_position_embeddings: config.text_config.max_position_embeddings,
        ..ReferenceConfig::released_language_model()
    };
    let id = |given: &Option<String>, is_released, released: &'static str, backbone| match given {
        Some(id) => Ok(id.clone()),
        None if is_released => Ok(released.to_owned()),
        None => Err(ModelError::NoBackboneId { backbone, released }),
    };
    let is_released = config.vision_config == ReferenceConfig::released_tower();
    let vision = id(&ids.vision, is_released, ReferenceConfig::VISION_BACKBONE, Backbone::VisionTower)?;
    let is_released = config.text_config == language_model;
    let llm = id(&ids.llm, is_released, ReferenceConfig::LLM_BACKBONE, Backbone::LanguageModel)?;
    Ok((vision, llm))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_release_are_for_its_shapes_alone() {
        let mut config = VlmConfig {
            vision_config: ReferenceConfig::released_tower(),
            text_config: ReferenceConfig::released_language_model(),
            pooled_grid: 27,
            vision_feature_layer: SECOND_TO_LAST,
        };
        let none = BackboneIds::default();
        let written = reference(&config, &none).unwrap();
        let model = json!({
            "model_id": "Open-Qwen2VL", "vision_backbone_id": "siglip-vit-so400m-384px",
            "image_resize_strategy": "resize-naive", "llm_backbone_id": "qwen2.5-1.5b-instruct",
            "llm_max_length": 4096, "arch_specifier": "full-align+729-avgpool",
        });
        assert_eq!(written, json!({"model": model, "mount_path": "Qwen"}));
        config.text_config.num_hidden_layers = 36;
        let error = reference(&config, &none).unwrap_err().to_string();
        assert!(error.contains("the language model has not the shape of qwen2.5-1.5b-instruct"), "{error}");
        let ids = BackboneIds { vision: None, llm: Some("qwen2.5-3b-instruct".to_owned()) };
        assert_eq!(reference(&config, &ids).unwrap()["model"]["llm_backbone_id"], "qwen2.5-3b-instruct");
        config.vision_config.image_size = 224;
        let error = reference(&config, &ids).unwrap_err().to_string();
        assert!(error.contains("the vision tower has not the shape of siglip-vit-so400m-384px"), "{error}");
    }
}
