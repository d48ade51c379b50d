//! Qwen2/2.5: the language model, from embeddings to hidden states and logits.
//!
//! Shape letters: `b` batch, `s` sequence, `h` hidden, `r` label rows.
//!
//! Ours rather than candle-transformers' because that one takes token ids only, always keeps a cache, masks padding
//! but not the future when given a mask, and uses operations without a backward.

use crate::ModelError;
use crate::config::{check_norm_eps, check_rope_theta, check_vocabulary};
use crate::generate::KvCache;
use crate::layers::{Bias, Linear, join_heads, lecun, split_heads};
use crate::params::{Init, ParamBuilder};
use crate::vlm::LossOutput;
use candle_core::{DType, Result, Tensor};
use oqvl_kernels::{Mask, RopeTables, attention, cross_entropy, linear, rms_norm, rope, swiglu};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The keys of Hugging Face's `Qwen2Config` that shape the network; its other keys are passed over, or refused if they
/// would make another network of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Qwen2Config {
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width `h`.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Query heads; divides `hidden_size`.
    pub num_attention_heads: usize,
    /// Key and value heads; divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Number of positions.
    pub max_position_embeddings: usize,
    /// Base of the rotary angles, from 1 to 1e12.
    pub rope_theta: f64,
    /// Epsilon of the norms, from 1e-30 to 1.
    pub rms_norm_eps: f64,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
}

impl Qwen2Config {
    /// Features of one head.
    #[must_use]
    pub fn head_dim(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    pub(crate) fn validate(&self) -> std::result::Result<(), ModelError> {
        let wrong = |what: String| Err(ModelError::Config(format!("language model: {what}")));
        let (heads, kv_heads) = (self.num_attention_heads, self.num_key_value_heads);
        if heads == 0 || !self.hidden_size.is_multiple_of(heads) || !self.head_dim().is_multiple_of(2) {
            return wrong(format!("hidden_size {} is not {heads} heads of even size", self.hidden_size));
        }
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) {
            return wrong(format!(
                "num_key_value_heads {kv_heads} does not divide num_attention_heads {heads}"
            ));
        }
        check_vocabulary("language model", self.vocab_size, self.max_position_embeddings)?;
        check_norm_eps("language model", "rms_norm_eps", self.rms_norm_eps)?;
        check_rope_theta("language model", self.rope_theta)
    }
}

#[derive(Debug)]
struct DecoderLayer {
    input_layernorm: Tensor,
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    post_attention_layernorm: Tensor,
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

/// The next positions of one sequence.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    /// What it has read so far.
    pub(crate) cache: &'a mut KvCache,
    /// Number of positions, at least 1.
    pub(crate) len: usize,
}

/// The language model.
#[derive(Debug)]
pub struct Qwen2 {
    config: Qwen2Config,
    embed_tokens: Tensor,
    layers: Vec<DecoderLayer>,
    norm: Tensor,
    lm_head: Tensor,
    rope: RopeTables,
}

impl Qwen2 {
    /// Takes the parameters of `p`, named as in Hugging Face's checkpoints (`model.…`, `lm_head.weight` if untied).
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &Qwen2Config, mut p: ParamBuilder<'_>) -> std::result::Result<Self, ModelError> {
        config.validate()?;
        let init = lecun(config.hidden_size);
        let table = [config.vocab_size, config.hidden_size];
        let mut model = p.pp("model");
        let embed_tokens = model.pp("embed_tokens").get("weight", &table, init)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            layers.push(DecoderLayer::new(config, model.pp("layers").pp(layer))?);
        }
        let norm = model.pp("norm").get("weight", &[config.hidden_size], Init::Constant(1.0))?;
        let lm_head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => p.pp("lm_head").get("weight", &table, init)?,
        };
        let rope = RopeTables::new(config.head_dim(), config.max_position_embeddings, config.rope_theta);
        Ok(Self { config: config.clone(), embed_tokens, layers, norm, lm_head, rope })
    }

    /// The config it was built from.
    #[must_use]
    pub fn config(&self) -> &Qwen2Config {
        &self.config
    }

    /// Type of its parameters and of what it computes.
    pub(crate) fn dtype(&self) -> DType {
        self.embed_tokens.dtype()
    }

    /// Token embeddings of ids `(s)` (u32): `(s, h)`.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embed_tokens.index_select(ids, 0)
    }

    /// Final hidden states, normalised, of sequences that begin at position 0: `(b, s, h)` to `(b, s, h)`.
    /// Causal; what stands to the right of a position never changes it, so padding on the right needs no mask.
    ///
    /// # Errors
    /// If the sequences are longer than the positions.
    pub fn forward(&self, inputs_embeds: &Tensor) -> Result<Tensor> {
        let mut x = inputs_embeds.clone();
        for layer in &self.layers {
            x = layer.forward(self, &x)?;
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }

    /// Reads on in several sequences, none of which sees another: `inputs_embeds` `(t, h)` holds the next positions of each,
    /// one sequence behind the other. Final hidden states, normalised, `(t, h)`; the caches grow.
    ///
    /// # Errors
    /// If a sequence becomes longer than the positions.
    pub(crate) fn extend(&self, inputs_embeds: &Tensor, parts: &mut [Part<'_>]) -> Result<Tensor> {
        let mut x = inputs_embeds.unsqueeze(0)?;
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            x = layer.extend(self, &x, layer_idx, parts)?;
        }
        parts.iter_mut().for_each(|part| part.cache.advance(part.len));
        rms_norm(&x.squeeze(0)?, &self.norm, self.config.rms_norm_eps)
    }

    /// Next-token loss of text sequences of one length, every position but the first a label.
    ///
    /// # Errors
    /// If the lengths differ, an id is outside the vocabulary, or a sequence is shorter than two tokens.
    pub fn text_loss(&self, sequences: &[&[u32]]) -> std::result::Result<LossOutput, ModelError> {
        let (b, s) = (sequences.len(), sequences.first().map_or(0, |sequence| sequence.len()));
        if s < 2 || sequences.iter().any(|sequence| sequence.len() != s) {
            return Err(ModelError::Config("text sequences must have one length of at least 2".to_owned()));
        }
        let (inputs, targets): (Vec<_>, Vec<_>) =
            sequences.iter().map(|sequence| (&sequence[..s - 1], &sequence[1..])).unzip();
        let h = self.config.hidden_size;
        let ids = Tensor::from_vec(inputs.concat(), b * (s - 1), self.embed_tokens.device())?;
        let hidden = self.forward(&self.embed(&ids)?.reshape((b, s - 1, h))?)?;
        let logits = self.logits(&hidden.reshape((b * (s - 1), h))?)?;
        let loss = cross_entropy(&logits, &targets.concat())?;
        Ok(LossOutput { loss, num_labels: b * (s - 1), num_tokens: b * s })
    }

    /// Logits of chosen hidden states: `(r, h)` to `(r, vocab_size)`.
    ///
    /// # Errors
    /// If the width differs.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        linear(hidden, &self.lm_head, None)
    }
}

impl DecoderLayer {
    fn new(config: &Qwen2Config, mut p: ParamBuilder<'_>) -> Result<Self> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let kv_size = config.num_key_value_heads * config.head_dim();
        let init = lecun(hidden);
        // Branches that add to the residual stream start smaller with depth, as GPT-2's.
        let branch = |fan_in: usize| lecun(2 * config.num_hidden_layers * fan_in);
        let one = Init::Constant(1.0);
        let mut attention = p.pp("self_attn");
        let q_proj = Linear::new(attention.pp("q_proj"), hidden, hidden, Bias::Yes, init)?;
        let k_proj = Linear::new(attention.pp("k_proj"), hidden, kv_size, Bias::Yes, init)?;
        let v_proj = Linear::new(attention.pp("v_proj"), hidden, kv_size, Bias::Yes, init)?;
        let o_proj = Linear::new(attention.pp("o_proj"), hidden, hidden, Bias::No, branch(hidden))?;
        let mut mlp = p.pp("mlp");
        let gate_proj = Linear::new(mlp.pp("gate_proj"), hidden, intermediate, Bias::No, init)?;
        let up_proj = Linear::new(mlp.pp("up_proj"), hidden, intermediate, Bias::No, init)?;
        let down_proj =
            Linear::new(mlp.pp("down_proj"), intermediate, hidden, Bias::No, branch(intermediate))?;
        let input_layernorm = p.pp("input_layernorm").get("weight", &[hidden], one)?;
        let post_attention_layernorm = p.pp("post_attention_layernorm").get("weight", &[hidden], one)?;
        Ok(Self {
            input_layernorm,
            q_proj,
            k_proj,
            v_proj,
            o_proj,
            post_attention_layernorm,
            gate_proj,
            up_proj,
            down_proj,
        })
    }

    /// Queries, keys and values of the normalised input, split into heads, not yet rotated.
    fn project(&self, model: &Qwen2, x: &Tensor) -> Result<(Tensor, Tensor, Tensor)> {
        let config = &model.config;
        let normal = rms_norm(x, &self.input_layernorm, config.rms_norm_eps)?;
        Ok((
            split_heads(&self.q_proj.forward(&normal)?, config.num_attention_heads)?,
            split_heads(&self.k_proj.forward(&normal)?, config.num_key_value_heads)?,
            split_heads(&self.v_proj.forward(&normal)?, config.num_key_value_heads)?,
        ))
    }

    /// Residual connections and MLP around the attention result `(b, heads, s, head_dim)`.
    fn finish(&self, model: &Qwen2, x: &Tensor, mixed: &Tensor) -> Result<Tensor> {
        let x = (x + self.o_proj.forward(&join_heads(mixed)?)?)?;
        let normal = rms_norm(&x, &self.post_attention_layernorm, model.config.rms_norm_eps)?;
        let gated = swiglu(&self.gate_proj.forward(&normal)?, &self.up_proj.forward(&normal)?)?;
        x + self.down_proj.forward(&gated)?
    }

    fn forward(&self, model: &Qwen2, x: &Tensor) -> Result<Tensor> {
        let (q, k, v) = self.project(model, x)?;
        let (q, k) = (rope(&q, &model.rope, 0)?, rope(&k, &model.rope, 0)?);
        self.finish(model, x, &attention(&q, &k, &v, Mask::Causal)?)
    }

    /// [`Qwen2::extend`] in one layer: `(1, t, h)` to `(1, t, h)`.
    fn extend(&self, model: &Qwen2, x: &Tensor, layer_idx: usize, parts: &mut [Part<'_>]) -> Result<Tensor> {
        let (q, k, v) = self.project(model, x)?;
        let mut start = 0;
        let mut mixed = Vec::with_capacity(parts.len());
        for Part { cache, len } in parts {
            let own = |t: &Tensor| t.narrow(2, start, *len)?.contiguous();
            let position = cache.len();
            cache.write(layer_idx, &rope(&own(&k)?, &model.rope, position)?, &own(&v)?)?;
            mixed.push(cache.attend(layer_idx, &rope(&own(&q)?, &model.rope, position)?)?);
            start += *len;
        }
        self.finish(model, x, &Tensor::cat(&mixed, 2)?)
    }
}
