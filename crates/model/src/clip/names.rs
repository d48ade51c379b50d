//! Names of parameters in other people's CLIP checkpoints.

use crate::ModelError;
use candle_core::Tensor;
use std::collections::BTreeMap;

/// Tensors of a CLIP checkpoint under the names of Hugging Face's `CLIPModel`, which [`crate::Clip`] takes.
///
/// Understood, and told apart by their names:
/// - Hugging Face's own; the `position_ids` that transformers before 4.31 saved are dropped.
/// - openai/CLIP's and open_clip's, with open_clip's `module.` (distributed training) and `text.` (custom text towers) in
///   front or not. The fused input projections of attention are cut in three, the projections into the shared space
///   transposed; the sizes that OpenAI's archives hold as tensors are dropped.
///
/// Values and dtypes stay as they are.
///
/// # Errors
/// Lists every name that belongs to no part of such a network, and every fused projection that cannot be cut.
///
/// Source: `clip/model.py` of openai/CLIP, `src/open_clip/model.py`, and `convert_clip_original_pytorch_to_hf.py` of
/// transformers.
pub fn hugging_face_clip_names(
    tensors: BTreeMap<String, Tensor>,
) -> Result<BTreeMap<String, Tensor>, ModelError> {
    let is_original = tensors.keys().any(|name| bare(name).starts_with("visual."));
    let (mut renamed, mut problems) = (BTreeMap::new(), Vec::new());
    for (name, tensor) in tensors {
        if !is_original {
            if !name.ends_with(".embeddings.position_ids") {
                renamed.insert(name, tensor);
            }
            continue;
        }
        match place(bare(&name)) {
            Some(Place::Nowhere) => {}
            Some(Place::At(to)) => {
                renamed.insert(to, tensor);
            }
            Some(Place::Scalar(to)) if tensor.elem_count() == 1 => {
                renamed.insert(to, tensor.reshape(())?);
            }
            Some(Place::Transposed(to)) if tensor.rank() == 2 => {
                renamed.insert(to, tensor.t()?.contiguous()?);
            }
            Some(Place::CutInThree { block, kind }) if tensor.dim(0).is_ok_and(|rows| rows % 3 == 0) => {
                let rows = tensor.dim(0)? / 3;
                for (part, letter) in ["q", "k", "v"].into_iter().enumerate() {
                    let to = format!("{block}.self_attn.{letter}_proj.{kind}");
                    renamed.insert(to, tensor.narrow(0, part * rows, rows)?.contiguous()?);
                }
            }
            Some(_) => problems.push(format!("`{name}` cannot be {:?}", tensor.dims())),
            None => problems.push(format!("`{name}` is not in the network")),
        }
    }
    if problems.is_empty() { Ok(renamed) } else { Err(ModelError::Weights { problems }) }
}

/// A name without what open_clip puts in front.
fn bare(name: &str) -> &str {
    let name = name.strip_prefix("module.").unwrap_or(name);
    name.strip_prefix("text.").unwrap_or(name)
}

/// Where a tensor of openai/CLIP goes.
enum Place {
    At(String),
    Scalar(String),
    Transposed(String),
    CutInThree { block: String, kind: String },
    Nowhere,
}

fn place(name: &str) -> Option<Place> {
    /// Whole names.
    const NAMES: [(&str, &str); 5] = [
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    ];
    /// Names without `.weight` or `.bias`.
    const NORMS: [(&str, &str); 3] = [
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("ln_final", "text_model.final_layer_norm"),
    ];
    /// Likewise, within a block.
    const IN_BLOCK: [(&str, &str); 5] = [
        ("attn.out_proj", "self_attn.out_proj"),
        ("ln_1", "layer_norm1"),
        ("ln_2", "layer_norm2"),
        ("mlp.c_fc", "mlp.fc1"),
        ("mlp.c_proj", "mlp.fc2"),
    ];
    let find = |names: &[(&str, &'static str)], name: &str| {
        names.iter().find(|(from, _)| *from == name).map(|(_, to)| *to)
    };
    match name {
        "visual.proj" => return Some(Place::Transposed("visual_projection.weight".to_owned())),
        "text_projection" => return Some(Place::Transposed("text_projection.weight".to_owned())),
        "logit_scale" => return Some(Place::Scalar("logit_scale".to_owned())),
        "input_resolution" | "context_length" | "vocab_size" => return Some(Place::Nowhere),
        _ => {}
    }
    if let Some(to) = find(&NAMES, name) {
        return Some(Place::At(to.to_owned()));
    }
    let towers =
        [("visual.transformer.resblocks.", "vision_model"), ("transformer.resblocks.", "text_model")];
    for (prefix, tower) in towers {
        let Some((layer, rest)) = name.strip_prefix(prefix).and_then(|rest| rest.split_once('.')) else {
            continue;
        };
        let block = format!("{tower}.encoder.layers.{layer}");
        if let Some(kind @ ("weight" | "bias")) = rest.strip_prefix("attn.in_proj_") {
            return Some(Place::CutInThree { block, kind: kind.to_owned() });
        }
        let (part, kind) = rest.rsplit_once('.')?;
        return find(&IN_BLOCK, part).map(|to| Place::At(format!("{block}.{to}.{kind}")));
    }
    let (part, kind) = name.rsplit_once('.')?;
    find(&NORMS, part).map(|to| Place::At(format!("{to}.{kind}")))
}
