//! CLIP: vision tower, text tower, and the pair that scores an image against a text.
//!
//! Shape letters: `b` batch, `n` patches, `s` text positions, `v` hidden size, `p` size of the shared space.
//!
//! Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; parameters are
//! named as in Hugging Face's `CLIPModel`; [`Network::Clip`](crate::Network::Clip) knows the names of openai/CLIP and
//! open_clip. The blocks are those that SigLIP has here, with both GELUs and both dtypes, rather than a second set from
//! `candle-transformers`.

mod checkpoint;
mod config;

pub use checkpoint::{ClipCheckpoint, read_clip};
pub use config::{ClipConfig, ClipTextConfig, ClipVisionConfig};

use crate::ModelError;
use crate::encoder::{
    BlockSizes, EncoderLayer, PatchEmbedding, PatchSizes, TextBody, TextSizes, encoder, run,
};
use crate::layers::{Bias, LayerNorm, Linear, lecun, normalize};
use crate::params::{Init, ParamBuilder};
use candle_core::Tensor;
use oqvl_kernels::{Mask, linear};

type Result<T> = std::result::Result<T, ModelError>;

/// The vision tower, a ViT with a class token.
#[derive(Debug)]
pub struct ClipVisionTower {
    class_embedding: Tensor,
    patch_embedding: PatchEmbedding,
    position_embedding: Tensor,
    pre_layernorm: LayerNorm,
    layers: Vec<EncoderLayer>,
    post_layernorm: LayerNorm,
}

impl ClipVisionTower {
    /// Takes the parameters below `vision_model.` of `p`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &ClipVisionConfig, mut p: ParamBuilder<'_>) -> Result<Self> {
        config.validate()?;
        let mut p = p.pp("vision_model");
        let (hidden, eps) = (config.hidden_size, config.layer_norm_eps);
        let mut embeddings = p.pp("embeddings");
        let class_embedding = embeddings.get("class_embedding", &[hidden], lecun(hidden))?;
        let patches = PatchSizes { hidden, image_size: config.image_size, patch_size: config.patch_size };
        let patch_embedding = PatchEmbedding::new(embeddings.pp("patch_embedding"), patches, Bias::No)?;
        let positions = [1 + config.grid().pow(2), hidden];
        let position_embedding =
            embeddings.pp("position_embedding").get("weight", &positions, lecun(hidden))?;
        let sizes = BlockSizes {
            hidden,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps,
            act: config.hidden_act,
            mask: Mask::Full,
        };
        Ok(Self {
            class_embedding,
            patch_embedding,
            position_embedding,
            // Misspelt in every checkpoint of Hugging Face's.
            pre_layernorm: LayerNorm::new(p.pp("pre_layrnorm"), hidden, eps)?,
            layers: encoder(p.pp("encoder"), config.num_hidden_layers, sizes)?,
            post_layernorm: LayerNorm::new(p.pp("post_layernorm"), hidden, eps)?,
        })
    }

    /// All blocks, without the final norm: `(b, 3, image_size, image_size)` to `(b, 1 + n, v)`, the class token first,
    /// then the patches row by row. What Hugging Face calls `last_hidden_state`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn hidden_states(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let patches = self.patch_embedding.forward(pixel_values)?;
        let (b, _, hidden) = patches.dims3()?;
        let class = self.class_embedding.reshape((1, 1, hidden))?.expand((b, 1, hidden))?;
        let x = Tensor::cat(&[&class.contiguous()?, &patches], 1)?.broadcast_add(&self.position_embedding)?;
        Ok(run(&self.layers, self.pre_layernorm.forward(&x)?)?)
    }

    /// One vector per image, `(b, v)`: the class token after all blocks and the final norm.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn pooled(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let class = self.hidden_states(pixel_values)?.narrow(1, 0, 1)?.squeeze(1)?;
        Ok(self.post_layernorm.forward(&class)?)
    }
}

/// Where the feature of a text is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndOfText {
    /// At the first of the highest ids. OpenAI's rule; in its vocabulary the highest id, 49407, ends a text.
    HighestId,
    /// At the first place of this id, so that a vocabulary may grow beyond it.
    Id(u32),
}

impl EndOfText {
    /// `eos_token_id` of Hugging Face's text config. Until July 2023 it was 2 in every config, which is no end at all
    /// and has meant OpenAI's rule ever since.
    ///
    /// Source: `CLIPTextTransformer.forward` and pull request 24773 of transformers.
    fn from_config(eos_token_id: u32) -> Self {
        match eos_token_id {
            ClipTextConfig::HIGHEST_ID => Self::HighestId,
            id => Self::Id(id),
        }
    }

    fn position(self, ids: &[u32]) -> Option<usize> {
        match self {
            // `max_by_key` gives the last of equals.
            Self::HighestId => (0..ids.len()).rev().max_by_key(|&at| ids[at]),
            Self::Id(end) => ids.iter().position(|&id| id == end),
        }
    }
}

/// The text tower, a transformer in which a token sees what precedes it.
#[derive(Debug)]
pub struct ClipTextTower {
    body: TextBody,
    end_of_text: EndOfText,
}

impl ClipTextTower {
    /// Takes the parameters below `text_model.` of `p`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &ClipTextConfig, mut p: ParamBuilder<'_>) -> Result<Self> {
        config.validate()?;
        let text = TextSizes {
            vocab: config.vocab_size,
            positions: config.max_position_embeddings,
            num_layers: config.num_hidden_layers,
        };
        let block = BlockSizes {
            hidden: config.hidden_size,
            intermediate: config.intermediate_size,
            num_heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            act: config.hidden_act,
            mask: Mask::Causal,
        };
        Ok(Self {
            body: TextBody::new(p.pp("text_model"), text, block)?,
            end_of_text: EndOfText::from_config(config.eos_token_id),
        })
    }

    /// Token ids as the tower takes them, `(b, s)` u32: texts that are too long lose what precedes their last token, as
    /// `clip.tokenize(truncate=True)` and Hugging Face's tokenizer do it, and shorter ones are followed by zeros.
    ///
    /// `s` is the length of the longest text, not that of the positions: no token sees what follows it, so pads change
    /// nothing but the time it takes.
    ///
    /// # Errors
    /// If an id is outside the vocabulary.
    pub fn batch(&self, texts: &[Vec<i64>]) -> Result<Tensor> {
        let (max, vocab_size) = (self.body.max_positions()?, self.body.vocab_size()?);
        let width = texts.iter().map(Vec::len).max().unwrap_or(0).min(max);
        let mut ids = Vec::with_capacity(texts.len() * width);
        for (row, text) in texts.iter().enumerate() {
            let (head, last) = text.split_at(text.len().saturating_sub(1));
            let kept = head.iter().take(max - 1).chain(last);
            for &id in kept.chain(std::iter::repeat(&0)).take(width) {
                match u32::try_from(id) {
                    Ok(known) if (known as usize) < vocab_size => ids.push(known),
                    _ => return Err(ModelError::TokenId { row, id, vocab_size }),
                }
            }
        }
        Ok(Tensor::from_vec(ids, (texts.len(), width), self.body.device())?)
    }

    /// `(b, s)` token ids (u32) to one vector per text, `(b, v)`: the token that ends the text, after all blocks and the
    /// final norm.
    ///
    /// # Errors
    /// If a row is longer than the positions, or nothing in it ends the text.
    pub fn pooled(&self, input_ids: &Tensor) -> Result<Tensor> {
        let (b, s) = input_ids.dims2()?;
        let max = self.body.max_positions()?;
        if s > max {
            return Err(ModelError::TooLong { row: 0, len: s, max });
        }
        let mut ends = Vec::with_capacity(b);
        for (row, ids) in input_ids.to_vec2::<u32>()?.iter().enumerate() {
            let end = self.end_of_text.position(ids).ok_or(ModelError::NoEndOfText { row })?;
            ends.push((row * s + end) as u32);
        }
        let x = self.body.forward(input_ids)?;
        let hidden = x.dim(2)?;
        let ends = Tensor::from_vec(ends, b, x.device())?;
        // The norm goes row by row, so it is only needed where the feature is.
        Ok(self.body.final_layer_norm.forward(&x.reshape((b * s, hidden))?.index_select(&ends, 0)?)?)
    }
}

/// Image and text tower, the two projections into one space, and the temperature.
#[derive(Debug)]
pub struct Clip {
    /// Vision half.
    pub vision: ClipVisionTower,
    /// Text half.
    pub text: ClipTextTower,
    visual_projection: Linear,
    text_projection: Linear,
    logit_scale: Tensor,
}

impl Clip {
    /// Builds both towers, named as Hugging Face's `CLIPModel`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &ClipConfig, mut p: ParamBuilder<'_>) -> Result<Self> {
        let mut projection = |name: &str, hidden| {
            Linear::new(p.pp(name), hidden, config.projection_dim, Bias::No, lecun(hidden))
        };
        let visual_projection = projection("visual_projection", config.vision_config.hidden_size)?;
        let text_projection = projection("text_projection", config.text_config.hidden_size)?;
        Ok(Self {
            vision: ClipVisionTower::new(&config.vision_config, p.reborrow())?,
            text: ClipTextTower::new(&config.text_config, p.reborrow())?,
            visual_projection,
            text_projection,
            // Starting value of the paper: temperature 0.07.
            logit_scale: p.get("logit_scale", &[], Init::Constant(0.07f64.recip().ln()))?,
        })
    }

    /// Images in the shared space, of any length: `(b, 3, image_size, image_size)` to `(b, p)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn image_features(&self, pixel_values: &Tensor) -> Result<Tensor> {
        Ok(self.visual_projection.forward(&self.vision.pooled(pixel_values)?)?)
    }

    /// Texts in the shared space, of any length: what [`ClipTextTower::batch`] gives to `(b, p)`.
    ///
    /// # Errors
    /// As [`ClipTextTower::pooled`].
    pub fn text_features(&self, input_ids: &Tensor) -> Result<Tensor> {
        Ok(self.text_projection.forward(&self.text.pooled(input_ids)?)?)
    }

    /// Unit vectors of images, `(b, p)`.
    ///
    /// # Errors
    /// If the shape does not fit.
    pub fn image_embeds(&self, pixel_values: &Tensor) -> Result<Tensor> {
        Ok(normalize(&self.image_features(pixel_values)?)?)
    }

    /// Unit vectors of texts, `(b, p)`.
    ///
    /// # Errors
    /// As [`ClipTextTower::pooled`].
    pub fn text_embeds(&self, input_ids: &Tensor) -> Result<Tensor> {
        Ok(normalize(&self.text_features(input_ids)?)?)
    }

    /// Scaled cosines of every image with every text: unit vectors `(i, p)` and `(t, p)` to `(i, t)`.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn logits_per_image(&self, image_embeds: &Tensor, text_embeds: &Tensor) -> Result<Tensor> {
        Ok(linear(image_embeds, text_embeds, None)?.broadcast_mul(&self.logit_scale.exp()?)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_ends_at_the_first_end() {
        let ids = [7, 3, 9, 4, 9, 0];
        assert_eq!(EndOfText::from_config(2), EndOfText::HighestId);
        assert_eq!(EndOfText::HighestId.position(&ids), Some(2));
        assert_eq!(EndOfText::from_config(4).position(&ids), Some(3));
        assert_eq!(EndOfText::from_config(9).position(&ids), Some(2));
        assert_eq!(EndOfText::from_config(5).position(&ids), None);
        assert_eq!(EndOfText::HighestId.position(&[]), None);
    }
}
