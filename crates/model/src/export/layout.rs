//! Names and forms of tensors in the layouts that are written.

use super::Tensors;
use crate::ModelError;
use crate::weights::timm_vision;
use candle_core::{Result, Tensor};

/// Our names and transformers' differ in the projector alone. The names are those of transformers 4, which 5 reads too:
/// what 5 itself writes has no `vision_model.` and is not read by 4.
pub(super) fn llava(tensors: Tensors) -> Tensors {
    let renamed = |name: String| match name.strip_prefix("projector.mlp_projector.") {
        Some(rest) => match rest.split_once('.') {
            Some(("0", rest)) => format!("multi_modal_projector.linear_1.{rest}"),
            Some((_, rest)) => format!("multi_modal_projector.linear_2.{rest}"),
            None => name,
        },
        None => name,
    };
    tensors.into_iter().map(|(name, tensor)| (renamed(name), tensor)).collect()
}

/// The language model alone.
pub(super) fn language_model(tensors: Tensors) -> Tensors {
    let named =
        |(name, tensor): (String, _)| Some((name.strip_prefix("language_model.")?.to_owned(), tensor));
    tensors.into_iter().filter_map(named).collect()
}

/// Source: `get_state_dicts`, Open-Qwen2VL; the head is written even if it is the embedding, as its strict loader wants it.
pub(super) fn reference(tensors: Tensors) -> std::result::Result<Tensors, ModelError> {
    let mut tower = Tensors::new();
    let mut renamed = Tensors::new();
    for (name, tensor) in tensors {
        if let Some(rest) = name.strip_prefix("vision_tower.") {
            tower.insert(rest.to_owned(), tensor);
        } else if let Some(rest) = name.strip_prefix("language_model.") {
            renamed.insert(format!("llm_backbone.llm.{rest}"), tensor);
        } else {
            renamed.insert(name, tensor);
        }
    }
    if let Some(table) = renamed.get("llm_backbone.llm.model.embed_tokens.weight").cloned() {
        renamed.entry("llm_backbone.llm.lm_head.weight".to_owned()).or_insert(table);
    }
    let tower = timm_vision(&tower)?;
    renamed.extend(
        tower.into_iter().map(|(name, tensor)| (format!("vision_backbone.featurizer.{name}"), tensor)),
    );
    Ok(renamed)
}

/// Adds rows of zeros to the embedding, and to the head if it has one of its own.
pub(super) fn grow_vocabulary(tensors: &mut Tensors, rows: usize) -> Result<()> {
    for name in ["language_model.model.embed_tokens.weight", "language_model.lm_head.weight"] {
        if let Some(table) = tensors.get_mut(name) {
            let (have, width) = table.dims2()?;
            let more = Tensor::zeros((rows.saturating_sub(have), width), table.dtype(), table.device())?;
            *table = Tensor::cat(&[&*table, &more], 0)?;
        }
    }
    Ok(())
}
