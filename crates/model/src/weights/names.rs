//! What tensors are called elsewhere, and what they are called here. The tables are the whole of it.
//!
//! Our names are those of Hugging Face's `SiglipModel`, `CLIPModel` and `Qwen2ForCausalLM`, below `vision_tower.`, `projector.` and
//! `language_model.` in a VLM. A name no rule knows stays as it is, so that [`ParamStore::finish`] lists it.
//!
//! [`ParamStore::finish`]: crate::ParamStore::finish

use crate::ModelError;
use candle_core::{DType, Result, Tensor};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

/// The networks whose tensors have other names elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// [`SiglipVisionTower`](crate::SiglipVisionTower) alone; the tensors of the text tower and of the loss are left out.
    SiglipVision,
    /// [`Siglip`](crate::Siglip), both towers.
    Siglip,
    /// [`Clip`](crate::Clip), both towers.
    Clip,
    /// [`Qwen2`](crate::Qwen2).
    Qwen2,
    /// [`Vlm`](crate::Vlm).
    Vlm,
}

/// A part of a network: names that start with `from` start with `to` here, and what follows obeys the rules.
struct Part {
    from: &'static str,
    to: &'static str,
    rules: &'static [&'static [Rule]],
}

/// In names, `#` stands for a number and a `*` at the end for whatever follows, on both sides.
struct Rule {
    from: &'static str,
    to: &'static str,
    then: Then,
}

/// What else becomes of a tensor.
#[derive(Clone, Copy)]
enum Then {
    /// Nothing.
    Keep,
    /// It is left out.
    Drop,
    /// `(1, a, b)` becomes `(a, b)`.
    DropFirst,
    /// A scalar becomes a vector of one element.
    Vector,
    /// A vector of one element becomes a scalar.
    Scalar,
    /// `(a, b)` becomes `(b, a)`.
    Transpose,
    /// Its rows are this many equal blocks, one for each name that stands for `{}`.
    Split(&'static [&'static str]),
    /// It is this block of the rows of a tensor that several make up.
    Block(usize),
}

const fn keep(from: &'static str, to: &'static str) -> Rule {
    Rule { from, to, then: Then::Keep }
}

const fn leave_out(from: &'static str) -> Rule {
    Rule { from, to: "", then: Then::Drop }
}

const fn then(from: &'static str, to: &'static str, then: Then) -> Rule {
    Rule { from, to, then }
}

const QKV: Then = Then::Split(&["q_proj", "k_proj", "v_proj"]);

/// timm's `VisionTransformer` with attention pooling.
///
/// Source: timm `models/vision_transformer.py` and `layers/attention_pool.py` (`kv` is keys, then values).
static TIMM_VISION: &[Rule] = &[
    then("pos_embed", "vision_model.embeddings.position_embedding.weight", Then::DropFirst),
    keep("patch_embed.proj.*", "vision_model.embeddings.patch_embedding.*"),
    keep("blocks.#.norm1.*", "vision_model.encoder.layers.#.layer_norm1.*"),
    then("blocks.#.attn.qkv.*", "vision_model.encoder.layers.#.self_attn.{}.*", QKV),
    keep("blocks.#.attn.proj.*", "vision_model.encoder.layers.#.self_attn.out_proj.*"),
    keep("blocks.#.norm2.*", "vision_model.encoder.layers.#.layer_norm2.*"),
    keep("blocks.#.mlp.*", "vision_model.encoder.layers.#.mlp.*"),
    keep("norm.*", "vision_model.post_layernorm.*"),
    keep("attn_pool.latent", "vision_model.head.probe"),
    then("attn_pool.q.weight", "vision_model.head.attention.in_proj_weight", Then::Block(0)),
    then("attn_pool.kv.weight", "vision_model.head.attention.in_proj_weight", Then::Block(1)),
    then("attn_pool.q.bias", "vision_model.head.attention.in_proj_bias", Then::Block(0)),
    then("attn_pool.kv.bias", "vision_model.head.attention.in_proj_bias", Then::Block(1)),
    keep("attn_pool.proj.*", "vision_model.head.attention.out_proj.*"),
    keep("attn_pool.norm.*", "vision_model.head.layernorm.*"),
    keep("attn_pool.mlp.*", "vision_model.head.mlp.*"),
];

/// The text tower of openai/CLIP and of open_clip, for CLIP and SigLIP alike.
///
/// Source: open_clip `transformer.py`, `TextTransformer`.
static OPEN_CLIP_TEXT: &[Rule] = &[
    keep("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    keep("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    keep("transformer.resblocks.#.ln_1.*", "text_model.encoder.layers.#.layer_norm1.*"),
    then(
        "transformer.resblocks.#.attn.in_proj_weight",
        "text_model.encoder.layers.#.self_attn.{}.weight",
        QKV,
    ),
    then("transformer.resblocks.#.attn.in_proj_bias", "text_model.encoder.layers.#.self_attn.{}.bias", QKV),
    keep("transformer.resblocks.#.attn.out_proj.*", "text_model.encoder.layers.#.self_attn.out_proj.*"),
    keep("transformer.resblocks.#.ln_2.*", "text_model.encoder.layers.#.layer_norm2.*"),
    keep("transformer.resblocks.#.mlp.c_fc.*", "text_model.encoder.layers.#.mlp.fc1.*"),
    keep("transformer.resblocks.#.mlp.c_proj.*", "text_model.encoder.layers.#.mlp.fc2.*"),
    keep("ln_final.*", "text_model.final_layer_norm.*"),
];

/// What follows the text tower in open_clip's SigLIP.
static SIGLIP_TEXT_HEAD: &[Rule] = &[keep("text_projection.*", "text_model.head.*")];

/// The vision tower of openai/CLIP and of open_clip.
///
/// Source: `VisionTransformer` in openai/CLIP `clip/model.py`; our names: `convert_clip_original_pytorch_to_hf.py` of
/// transformers.
static OPENAI_VISION: &[Rule] = &[
    keep("class_embedding", "vision_model.embeddings.class_embedding"),
    keep("conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    keep("positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    keep("ln_pre.*", "vision_model.pre_layrnorm.*"),
    keep("transformer.resblocks.#.ln_1.*", "vision_model.encoder.layers.#.layer_norm1.*"),
    then(
        "transformer.resblocks.#.attn.in_proj_weight",
        "vision_model.encoder.layers.#.self_attn.{}.weight",
        QKV,
    ),
    then("transformer.resblocks.#.attn.in_proj_bias", "vision_model.encoder.layers.#.self_attn.{}.bias", QKV),
    keep("transformer.resblocks.#.attn.out_proj.*", "vision_model.encoder.layers.#.self_attn.out_proj.*"),
    keep("transformer.resblocks.#.ln_2.*", "vision_model.encoder.layers.#.layer_norm2.*"),
    keep("transformer.resblocks.#.mlp.c_fc.*", "vision_model.encoder.layers.#.mlp.fc1.*"),
    keep("transformer.resblocks.#.mlp.c_proj.*", "vision_model.encoder.layers.#.mlp.fc2.*"),
    keep("ln_post.*", "vision_model.post_layernorm.*"),
    then("proj", "visual_projection.weight", Then::Transpose),
];

/// What else is in CLIP; OpenAI's archives hold three sizes as tensors.
static OPENAI_REST: &[Rule] = &[
    then("text_projection", "text_projection.weight", Then::Transpose),
    then("logit_scale", "logit_scale", Then::Scalar),
    leave_out("input_resolution"),
    leave_out("context_length"),
    leave_out("vocab_size"),
];

/// Tensors of Hugging Face's SigLIP and CLIP that are counted out, not learnt; the rest has our names.
static POSITION_IDS: &[Rule] =
    &[leave_out("vision_model.embeddings.position_ids"), leave_out("text_model.embeddings.position_ids")];

/// `SiglipVisionModel` as transformers 5 saves it, alone or within LLaVA: without the prefix it has had before.
static TRANSFORMERS_5_VISION: &[Rule] = &[
    keep("embeddings.*", "vision_model.embeddings.*"),
    keep("encoder.*", "vision_model.encoder.*"),
    keep("post_layernorm.*", "vision_model.post_layernorm.*"),
    keep("head.*", "vision_model.head.*"),
];

/// LLaVA's projector.
static LLAVA_PROJECTOR: &[Rule] =
    &[keep("linear_1.*", "mlp_projector.0.*"), keep("linear_2.*", "mlp_projector.2.*")];

/// The sigmoid loss: scalars in open_clip.
static SIGLIP_LOSS: &[Rule] =
    &[then("logit_scale", "logit_scale", Then::Vector), then("logit_bias", "logit_bias", Then::Vector)];

/// What else is in a file of both towers.
static NOT_VISION: &[Rule] =
    &[leave_out("text.*"), leave_out("text_model.*"), leave_out("logit_scale"), leave_out("logit_bias")];

/// Rotary tables, which older versions of transformers saved.
static QWEN2_EXTRA: &[Rule] =
    &[leave_out("model.layers.#.self_attn.rotary_emb.inv_freq"), leave_out("model.rotary_emb.inv_freq")];

static SIGLIP_VISION_PARTS: &[Part] = &[
    Part { from: "visual.trunk.", to: "", rules: &[TIMM_VISION] },
    Part { from: "", to: "", rules: &[POSITION_IDS, NOT_VISION, TIMM_VISION, TRANSFORMERS_5_VISION] },
];

static SIGLIP_PARTS: &[Part] = &[
    Part { from: "visual.trunk.", to: "", rules: &[TIMM_VISION] },
    Part { from: "text.", to: "", rules: &[OPEN_CLIP_TEXT, SIGLIP_TEXT_HEAD] },
    Part { from: "", to: "", rules: &[POSITION_IDS, SIGLIP_LOSS] },
];

/// open_clip's models have `text.` in front where the text tower is not OpenAI's own class, and `module.` where several
/// devices trained them.
static CLIP_PARTS: &[Part] = &[
    Part { from: "module.visual.", to: "", rules: &[OPENAI_VISION] },
    Part { from: "module.text.", to: "", rules: &[OPEN_CLIP_TEXT, OPENAI_REST] },
    Part { from: "module.", to: "", rules: &[OPEN_CLIP_TEXT, OPENAI_REST] },
    Part { from: "visual.", to: "", rules: &[OPENAI_VISION] },
    Part { from: "text.", to: "", rules: &[OPEN_CLIP_TEXT, OPENAI_REST] },
    Part { from: "", to: "", rules: &[POSITION_IDS, OPEN_CLIP_TEXT, OPENAI_REST] },
];

static QWEN2_PARTS: &[Part] = &[Part { from: "", to: "", rules: &[QWEN2_EXTRA] }];

/// First the layout of the released `latest-checkpoint.pt`, and the same without its outer dict; then transformers' LLaVA as
/// it is in memory, on disk, and with the names of a `llava_qwen`; last our own.
///
/// Source: `conversion_mapping.py` of transformers 5; `llava_arch.py` and `siglip_encoder.py` of LLaVA.
static VLM_PARTS: &[Part] = &[
    Part { from: "model.projector.", to: "projector.", rules: &[] },
    Part { from: "model.llm_backbone.llm.", to: "language_model.", rules: &[QWEN2_EXTRA] },
    Part { from: "model.vision_backbone.featurizer.", to: "vision_tower.", rules: &[TIMM_VISION] },
    Part { from: "llm_backbone.llm.", to: "language_model.", rules: &[QWEN2_EXTRA] },
    Part { from: "vision_backbone.featurizer.", to: "vision_tower.", rules: &[TIMM_VISION] },
    Part { from: "model.language_model.", to: "language_model.model.", rules: &[] },
    Part { from: "model.multi_modal_projector.", to: "projector.", rules: &[LLAVA_PROJECTOR] },
    Part { from: "multi_modal_projector.", to: "projector.", rules: &[LLAVA_PROJECTOR] },
    Part { from: "model.mm_projector.", to: "projector.", rules: &[] },
    Part { from: "model.vision_tower.vision_tower.", to: "vision_tower.", rules: HUGGING_FACE_VISION },
    Part { from: "model.vision_tower.", to: "vision_tower.", rules: HUGGING_FACE_VISION },
    Part { from: "model.", to: "language_model.model.", rules: &[] },
    Part { from: "lm_head.", to: "language_model.lm_head.", rules: &[] },
    Part { from: "language_model.", to: "language_model.", rules: &[QWEN2_EXTRA] },
    Part { from: "vision_tower.", to: "vision_tower.", rules: HUGGING_FACE_VISION },
];

static HUGGING_FACE_VISION: &[&[Rule]] = &[POSITION_IDS, TRANSFORMERS_5_VISION];

impl Network {
    fn parts(self) -> &'static [Part] {
        match self {
            Self::SiglipVision => SIGLIP_VISION_PARTS,
            Self::Siglip => SIGLIP_PARTS,
            Self::Clip => CLIP_PARTS,
            Self::Qwen2 => QWEN2_PARTS,
            Self::Vlm => VLM_PARTS,
        }
    }

    /// Gives tensors the names they have here, whichever of the known layouts they come in.
    ///
    /// Known are Hugging Face's SigLIP, CLIP, Qwen2 and LLaVA of the two; CLIP as openai/CLIP and open_clip have it; timm's
    /// SigLIP vision tower (bare, or as `visual.trunk.` of an open_clip file, whose text tower is known too); the MLM-Filter
    /// release; and the reference's checkpoints (`model.{projector,llm_backbone,vision_backbone}.…`). Fused `qkv` matrices
    /// are cut into three.
    ///
    /// # Errors
    /// Lists every tensor that cannot be cut as its rule says, and every name that two tensors would have.
    pub fn rename(
        self,
        tensors: BTreeMap<String, Tensor>,
    ) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
        let mut renamed = Renamed::default();
        for (name, tensor) in tensors {
            let (prefix, rest, rules) = part_of(self.parts(), &name);
            let rule = rules.iter().flat_map(|table| table.iter()).find_map(|rule| {
                let found = find(rule.from, rest)?;
                Some((format!("{prefix}{}", fill(rule.to, found)), rule.then))
            });
            let (to, then) = rule.unwrap_or_else(|| (format!("{prefix}{rest}"), Then::Keep));
            renamed.add(&name, to, tensor, then)?;
        }
        renamed.finish()
    }
}

/// A SigLIP vision tower under timm's names: the rules of [`Network::SiglipVision`] backwards.
///
/// # Errors
/// If a part of a fused matrix is missing.
pub(crate) fn timm_vision(
    tensors: &BTreeMap<String, Tensor>,
) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
    let mut renamed = BTreeMap::new();
    for rule in TIMM_VISION {
        let parts: &[&str] = if let Then::Split(names) = rule.then { names } else { &[] };
        let ours = |part: &str| rule.to.replace("{}", part);
        let first = ours(parts.first().unwrap_or(&""));
        for (name, tensor) in tensors {
            let Some(found) = find(&first, name) else { continue };
            let theirs = match rule.then {
                Then::DropFirst => tensor.unsqueeze(0)?,
                Then::Split(_) => {
                    let rows: std::result::Result<Vec<&Tensor>, ModelError> =
                        parts.iter().map(|part| required(tensors, &fill(&ours(part), found))).collect();
                    Tensor::cat(&rows?, 0)?
                }
                // Queries are the first third of the rows, keys and values the others.
                Then::Block(index) => {
                    let third = tensor.dim(0)? / 3;
                    let (start, rows) = if index == 0 { (0, third) } else { (third, 2 * third) };
                    tensor.narrow(0, start, rows)?.contiguous()?
                }
                _ => tensor.clone(),
            };
            renamed.insert(fill(rule.from, found), theirs);
        }
    }
    Ok(renamed)
}

fn required<'t>(
    tensors: &'t BTreeMap<String, Tensor>,
    name: &str,
) -> std::result::Result<&'t Tensor, ModelError> {
    tensors.get(name).ok_or_else(|| ModelError::Weights { problems: vec![format!("`{name}` is missing")] })
}

/// The prefix a name gets, what follows its own, and the rules for that.
fn part_of<'n>(parts: &'static [Part], name: &'n str) -> (&'static str, &'n str, &'static [&'static [Rule]]) {
    let found = parts.iter().find_map(|part| Some((part, name.strip_prefix(part.from)?)));
    found.map_or(("", name, &[]), |(part, rest)| (part.to, rest, part.rules))
}

/// The number and the rest of a name that fits the pattern.
fn find<'n>(pattern: &str, name: &'n str) -> Option<(&'n str, &'n str)> {
    let (mut number, mut rest) = ("", name);
    let mut pieces = pattern.split('.').peekable();
    while let Some(piece) = pieces.next() {
        if piece == "*" {
            return (!rest.is_empty()).then_some((number, rest));
        }
        let (head, tail) = match pieces.peek() {
            Some(_) => rest.split_once('.')?,
            None => (rest, ""),
        };
        match piece {
            "#" if !head.is_empty() && head.bytes().all(|byte| byte.is_ascii_digit()) => number = head,
            _ if piece == head => {}
            _ => return None,
        }
        rest = tail;
    }
    Some((number, ""))
}

fn fill(pattern: &str, (number, rest): (&str, &str)) -> String {
    pattern.replace('#', number).replace('*', rest)
}

/// Tensors under their new names, and what was wrong.
#[derive(Default)]
struct Renamed {
    tensors: BTreeMap<String, Tensor>,
    blocks: BTreeMap<String, BTreeMap<usize, Tensor>>,
    problems: Vec<String>,
}

impl Renamed {
    fn add(&mut self, from: &str, to: String, tensor: Tensor, then: Then) -> Result<()> {
        match then {
            Then::Drop => {}
            Then::Keep => self.insert(from, to, tensor),
            Then::DropFirst if tensor.rank() > 1 && tensor.dim(0)? == 1 => {
                self.insert(from, to, tensor.squeeze(0)?);
            }
            Then::Vector if tensor.rank() == 0 => self.insert(from, to, tensor.reshape(1)?),
            Then::Scalar if tensor.dims() == [1] => self.insert(from, to, tensor.reshape(())?),
            Then::Transpose if tensor.rank() == 2 => self.insert(from, to, tensor.t()?.contiguous()?),
            // In another shape already: whether it fits is for the network to say.
            Then::DropFirst | Then::Vector | Then::Scalar | Then::Transpose => self.insert(from, to, tensor),
            Then::Split(names) => {
                let rows = tensor.dims().first().copied().unwrap_or(0);
                if rows == 0 || !rows.is_multiple_of(names.len()) {
                    let problem =
                        format!("`{from}` is {:?}, expected {} blocks of rows", tensor.dims(), names.len());
                    self.problems.push(problem);
                    return Ok(());
                }
                let block = rows / names.len();
                for (index, name) in names.iter().enumerate() {
                    let part = tensor.narrow(0, index * block, block)?.force_contiguous()?;
                    self.insert(from, to.replace("{}", name), part);
                }
            }
            Then::Block(index) => {
                if self.blocks.entry(to.clone()).or_default().insert(index, tensor).is_some() {
                    self.problems.push(format!("`{to}` is there twice, once as `{from}`"));
                }
            }
        }
        Ok(())
    }

    fn insert(&mut self, from: &str, to: String, tensor: Tensor) {
        match self.tensors.entry(to) {
            Entry::Vacant(place) => drop(place.insert(tensor)),
            Entry::Occupied(place) => {
                self.problems.push(format!("`{}` is there twice, once as `{from}`", place.key()));
            }
        }
    }

    fn finish(mut self) -> std::result::Result<BTreeMap<String, Tensor>, ModelError> {
        for (to, blocks) in std::mem::take(&mut self.blocks) {
            let blocks: Vec<&Tensor> = blocks.values().collect();
            match Tensor::cat(&blocks, 0) {
                Ok(whole) => self.insert("blocks of its rows", to, whole),
                Err(_) => {
                    let shapes: Vec<&[usize]> = blocks.iter().map(|block| block.dims()).collect();
                    self.problems.push(format!("`{to}` cannot be put together from {shapes:?}"));
                }
            }
        }
        match self.problems {
            problems if problems.is_empty() => Ok(self.tensors),
            problems => Err(ModelError::Weights { problems }),
        }
    }
}

/// Leaves out the output head of a language model that is tied to its embedding. `prefix` is what stands before
/// `lm_head.weight` and `model.embed_tokens.weight`: nothing, or `language_model.`.
///
/// # Errors
/// If the head differs from the embedding in any bit: such a model is not tied, and its head would be lost.
pub fn drop_tied_head(
    tensors: &mut BTreeMap<String, Tensor>,
    prefix: &str,
) -> std::result::Result<(), ModelError> {
    let (head_name, table_name) =
        (format!("{prefix}lm_head.weight"), format!("{prefix}model.embed_tokens.weight"));
    let (Some(head), Some(table)) = (tensors.get(&head_name), tensors.get(&table_name)) else {
        return Ok(());
    };
    if !are_equal(head, table)? {
        let problem =
            format!("`{head_name}` differs from `{table_name}`, but the config says that they are one");
        return Err(ModelError::Weights { problems: vec![problem] });
    }
    tensors.remove(&head_name);
    Ok(())
}

fn are_equal(a: &Tensor, b: &Tensor) -> Result<bool> {
    if a.dims() != b.dims() {
        return Ok(false);
    }
    /// A part at a time: these are the largest tensors of a model.
    const CHUNK: usize = 1 << 20;
    let (a, b) = (a.flatten_all()?, b.flatten_all()?);
    let count = a.elem_count();
    for start in (0..count).step_by(CHUNK) {
        let bits = |tensor: &Tensor| -> Result<Vec<u32>> {
            let part = tensor.narrow(0, start, CHUNK.min(count - start))?.to_dtype(DType::F32)?;
            Ok(part.to_vec1::<f32>()?.into_iter().map(f32::to_bits).collect())
        };
        if bits(&a)? != bits(&b)? {
            return Ok(false);
        }
    }
    Ok(true)
}
