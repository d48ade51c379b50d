//! The assembled model: vision tower, projector, language model.
//!
//! Shape letters: `b` batch, `s` multimodal sequence, `q` tokens per image, `h` LLM hidden.

use crate::ModelError;
use crate::params::ParamBuilder;
use crate::projector::AvgPoolProjector;
use crate::qwen2::{Qwen2, Qwen2Config};
use crate::siglip::{SiglipVisionConfig, SiglipVisionTower};
use candle_core::{Device, Tensor};
use oqvl_image_prep::ImageGeometry;
use oqvl_kernels::cross_entropy;
use oqvl_text_prep::{IGNORE_INDEX, IMAGE_TOKEN_ID};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::sync::Arc;

/// `config.json` of a VLM checkpoint; also read from transformers' LLaVA folders and the MLM-Filter release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct VlmConfig {
    /// Vision tower.
    pub vision_config: SiglipVisionConfig,
    /// Language model.
    pub text_config: Qwen2Config,
    /// Edge of the pooled grid: an image becomes `pooled_grid^2` tokens. 12 in pre-training, 27 in fine-tuning.
    pub pooled_grid: usize,
    /// The state of the vision tower that images are, as [`SiglipVisionTower::hidden_state`] counts them;
    /// [`SECOND_TO_LAST`](crate::SECOND_TO_LAST) is the reference's, and what a config that does not say means.
    pub vision_feature_layer: i64,
}

impl VlmConfig {
    /// How an image becomes tokens.
    #[must_use]
    pub fn geometry(&self) -> ImageGeometry {
        ImageGeometry {
            image_size: self.vision_config.image_size as u32,
            patch_size: self.vision_config.patch_size as u32,
            pooled_grid: self.pooled_grid as u32,
        }
    }

    /// Whether it describes a network.
    ///
    /// # Errors
    /// Names the first key that is out of its range.
    pub(crate) fn validate(&self) -> Result<(), ModelError> {
        let (vision, text) = (&self.vision_config, &self.text_config);
        vision.validate()?;
        text.validate()?;
        if self.pooled_grid == 0 || self.pooled_grid > vision.grid() {
            let what = format!(
                "pooled_grid {} is not between 1 and the patch grid {}",
                self.pooled_grid,
                vision.grid()
            );
            return Err(ModelError::Config(what));
        }
        if vision.num_blocks_to(self.vision_feature_layer).is_none() {
            let (layer, layers) = (self.vision_feature_layer, vision.num_hidden_layers);
            return Err(ModelError::Config(format!(
                "vision_feature_layer {layer} of a tower of {layers} layers"
            )));
        }
        Ok(())
    }
}

/// One sequence with its images.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Prompt {
    /// Token ids, -200 where an image goes.
    pub input_ids: Vec<i64>,
    /// Pixel values of the images in order of their placeholders: `3 * image_size * image_size` each, CHW, [-1, 1].
    ///
    /// Prompts that hold the same image hold it in common: it is then encoded once for all of them.
    pub images: Vec<Arc<[f32]>>,
}

/// One sequence to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// Ids and images.
    pub prompt: Prompt,
    /// One label per id; -100 where nothing is to be learnt. Labels at placeholders are ignored.
    pub labels: Vec<i64>,
}

/// Loss of a batch and what it was taken over.
#[derive(Debug)]
pub struct LossOutput {
    /// Mean over the labelled positions of the batch; a scalar with a graph.
    pub loss: Tensor,
    /// Number of labelled positions.
    pub num_labels: usize,
    /// Multimodal length of all sequences, without padding.
    pub num_tokens: usize,
}

/// The vision-language model.
#[derive(Debug)]
pub struct Vlm {
    config: VlmConfig,
    vision_tower: SiglipVisionTower,
    projector: AvgPoolProjector,
    pub(crate) language_model: Qwen2,
    device: Device,
}

/// Embedded sequences, padded on the right with zero vectors.
pub(crate) struct Embedded {
    /// `(b, s, h)`.
    pub(crate) inputs_embeds: Tensor,
    /// Multimodal length of every row.
    pub(crate) lens: Vec<usize>,
}

impl Vlm {
    /// Takes `vision_tower.…`, `projector.…` and `language_model.…` of `p`.
    ///
    /// # Errors
    /// If the config describes no network.
    pub fn new(config: &VlmConfig, mut p: ParamBuilder<'_>, device: &Device) -> Result<Self, ModelError> {
        config.validate()?;
        let (vision, text) = (&config.vision_config, &config.text_config);
        let vision_tower = SiglipVisionTower::new(vision, p.pp("vision_tower"))?;
        let sizes = (vision.hidden_size, text.hidden_size, vision.grid());
        let projector = AvgPoolProjector::new(sizes.0, sizes.1, sizes.2, p.pp("projector"))?;
        let language_model = Qwen2::new(text, p.pp("language_model"))?;
        Ok(Self { config: config.clone(), vision_tower, projector, language_model, device: device.clone() })
    }

    /// The config it was built from.
    #[must_use]
    pub fn config(&self) -> &VlmConfig {
        &self.config
    }

    /// Edge of the square input of the vision tower, pixels.
    #[must_use]
    pub fn image_size(&self) -> u32 {
        self.config.vision_config.image_size as u32
    }

    /// Tokens one image occupies.
    #[must_use]
    pub fn num_image_tokens(&self) -> usize {
        self.config.pooled_grid * self.config.pooled_grid
    }

    /// LLM embeddings of images: pixel values as in [`Prompt::images`] to `(num_images, q, h)`.
    ///
    /// # Errors
    /// If an image has another number of values.
    pub fn encode_images(&self, images: &[&[f32]]) -> Result<Tensor, ModelError> {
        let edge = self.config.vision_config.image_size;
        let pixels = Tensor::from_vec(images.concat(), (images.len(), 3, edge, edge), &self.device)?;
        let patches = self.vision_tower.hidden_state(&pixels, self.config.vision_feature_layer)?;
        self.projector.forward(&patches, self.config.pooled_grid)
    }

    /// Embeds sequences: token embeddings with the images' spliced in at the placeholders.
    pub(crate) fn embed(&self, prompts: &[&Prompt]) -> Result<Embedded, ModelError> {
        let q = self.num_image_tokens();
        let mut token_ids = Vec::new();
        let mut lens = Vec::with_capacity(prompts.len());
        for (row, prompt) in prompts.iter().enumerate() {
            lens.push(self.check_prompt(row, prompt)?);
            token_ids.extend(prompt.input_ids.iter().filter_map(|&id| u32::try_from(id).ok()));
        }
        let num_tokens = token_ids.len();
        let images: Vec<&[f32]> =
            prompts.iter().flat_map(|prompt| prompt.images.iter().map(|image| &**image)).collect();
        let hidden = self.config.text_config.hidden_size;

        // One table holds every row that occurs: tokens, then image rows, then a zero row for the padding.
        let mut rows = Vec::with_capacity(3);
        if num_tokens > 0 {
            rows.push(self.language_model.embed(&Tensor::from_vec(token_ids, num_tokens, &self.device)?)?);
        }
        if !images.is_empty() {
            rows.push(self.encode_images(&images)?.reshape((images.len() * q, hidden))?);
        }
        let padding_row = (num_tokens + images.len() * q) as u32;
        rows.push(Tensor::zeros((1, hidden), self.language_model.dtype(), &self.device)?);
        let table = Tensor::cat(&rows, 0)?;

        let longest = lens.iter().copied().max().unwrap_or(0);
        let (mut next_token, mut next_image) = (0, num_tokens as u32);
        let mut sources = Vec::with_capacity(prompts.len() * longest);
        for (prompt, len) in prompts.iter().zip(&lens) {
            for &id in &prompt.input_ids {
                if id == IMAGE_TOKEN_ID {
                    sources.extend(next_image..next_image + q as u32);
                    next_image += q as u32;
                } else {
                    sources.push(next_token);
                    next_token += 1;
                }
            }
            sources.extend(std::iter::repeat_n(padding_row, longest - len));
        }
        let sources = Tensor::from_vec(sources, prompts.len() * longest, &self.device)?;
        let inputs_embeds = table.index_select(&sources, 0)?.reshape((prompts.len(), longest, hidden))?;
        Ok(Embedded { inputs_embeds, lens })
    }

    /// Checks the sequence `row` of a batch, and tells its multimodal length.
    ///
    /// # Errors
    /// If placeholders and images do not match, an id is outside the vocabulary, or it is longer than the positions.
    pub(crate) fn check_prompt(&self, row: usize, prompt: &Prompt) -> Result<usize, ModelError> {
        let vocab_size = self.config.text_config.vocab_size;
        let (images, mut placeholders) = (prompt.images.len(), 0);
        for &id in &prompt.input_ids {
            match usize::try_from(id) {
                Ok(id) if id < vocab_size => {}
                _ if id == IMAGE_TOKEN_ID => placeholders += 1,
                _ => return Err(ModelError::TokenId { row, id, vocab_size }),
            }
        }
        if placeholders != images {
            return Err(ModelError::ImageCount { row, placeholders, images });
        }
        let len = oqvl_text_prep::expanded_len(prompt.input_ids.len(), images, self.num_image_tokens());
        let max = self.config.text_config.max_position_embeddings;
        if len > max { Err(ModelError::TooLong { row, len, max }) } else { Ok(len) }
    }

    /// Next-token loss, computed on labelled positions only.
    ///
    /// # Errors
    /// If a sequence has ids or images that do not fit, or is too long.
    pub fn loss(&self, examples: &[&Example]) -> Result<LossOutput, ModelError> {
        let prompts: Vec<&Prompt> = examples.iter().map(|example| &example.prompt).collect();
        let embedded = self.embed(&prompts)?;
        let longest = embedded.inputs_embeds.dim(1)?;
        let (mut positions, mut targets) = (Vec::new(), Vec::new());
        for (row, example) in examples.iter().enumerate() {
            let labels = self.expanded_labels(example);
            // The state at position t predicts the token at t + 1.
            for (position, &label) in
                labels.iter().enumerate().skip(1).filter(|(_, label)| **label != IGNORE_INDEX)
            {
                positions.push((row * longest + position - 1) as u32);
                let vocab_size = self.config.text_config.vocab_size;
                targets.push(u32::try_from(label).map_err(|_| ModelError::TokenId {
                    row,
                    id: label,
                    vocab_size,
                })?);
            }
        }
        let hidden = self.language_model.forward(&embedded.inputs_embeds)?;
        let (b, s, h) = hidden.dims3()?;
        let num_labels = targets.len();
        let rows = hidden
            .reshape((b * s, h))?
            .index_select(&Tensor::from_vec(positions, num_labels, &self.device)?, 0)?;
        let loss = cross_entropy(&self.language_model.logits(&rows)?, &targets)?;
        Ok(LossOutput { loss, num_labels, num_tokens: embedded.lens.iter().sum() })
    }

    /// Labels with one ignored label per image token.
    fn expanded_labels(&self, example: &Example) -> Vec<i64> {
        let pairs = example.prompt.input_ids.iter().zip(&example.labels);
        pairs
            .flat_map(|(&id, &label)| match id {
                IMAGE_TOKEN_ID => std::iter::repeat_n(IGNORE_INDEX, self.num_image_tokens()),
                _ => std::iter::repeat_n(label, 1),
            })
            .collect()
    }

    /// The device the model lives on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }
}
