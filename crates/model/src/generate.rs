//! Generation: greedy and sampled, in batches and in conversations; scores of the next token.
//!
//! Sequences of a batch are read one behind the other as one long row: no padding is computed, every sequence has its own
//! cache and sees no other. What several prompts begin with is read once, and an image of several prompts is encoded once.

mod choose;
mod kv_cache;
mod prefix;
mod session;
mod text_stream;

pub use choose::Sampling;
pub(crate) use kv_cache::KvCache;
pub use session::{Event, Session};
pub use text_stream::TextStream;

use crate::ModelError;
use crate::config::check_range;
use crate::qwen2::Part;
use crate::vlm::{Prompt, Vlm};
use candle_core::{DType, Tensor};
use choose::{Chooser, REPETITION_PENALTY};
use oqvl_text_prep::{TextError, Tokenizer};
use prefix::{Segment, Unit, num_positions, plan};
use rayon::prelude::*;
use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Sequences that go through the network together. A constant, so that results never depend on the caller's batches.
const CHUNK: usize = 16;

/// Images that go through the vision tower together.
const IMAGE_CHUNK: usize = 4;

/// Positions that are read at once, if one segment does not have more: bounds the memory of activations.
const READ_POSITIONS: usize = 1024;

/// New tokens that a cache has room for from the start; for more it grows.
const EXPECTED_NEW_TOKENS: usize = 256;

/// How to generate.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GenerateConfig {
    /// Stop after this many tokens. The default, 0, makes none: there is no number that suits everyone.
    pub max_new_tokens: usize,
    /// No stop id before this many tokens. (`min_length` of `transformers` counts the prompt too: the 1 the reference
    /// passes forbids nothing.)
    pub min_new_tokens: usize,
    /// Stop at one of these; it is not part of the result.
    pub stop_ids: Vec<i64>,
    /// Makes tokens of the prompt and of the answer so far less probable (above 1) or more (below); from 0.001 to 1000. It
    /// comes before everything else. Source: Keskar et al., "CTRL", 2019.
    pub repetition_penalty: Option<f64>,
    /// How the next token is chosen.
    pub sampling: Sampling,
}

impl GenerateConfig {
    /// Checks the ranges of all numbers.
    ///
    /// # Errors
    /// Names the first that is out of its range.
    pub fn validate(&self) -> Result<(), ModelError> {
        if let Some(penalty) = self.repetition_penalty {
            check_range("repetition_penalty", penalty, &REPETITION_PENALTY)
                .map_err(ModelError::Generation)?;
        }
        self.sampling.validate()
    }
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// A stop id was chosen.
    StopId,
    /// A stop string came.
    StopString,
    /// It has as many tokens as it may have.
    MaxNewTokens,
    /// The caller did not want to hear more.
    Interrupted,
}

/// What a model said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The chosen ids, without the stop id; those of a stop string are among them.
    pub ids: Vec<i64>,
    /// Their text, special tokens left out, up to the stop string; not stripped.
    pub text: String,
    /// Why it ended there.
    pub end: AnswerEnd,
}

/// Token ids for probabilities over texts, one for each.
///
/// # Errors
/// If a text is not exactly one token.
pub fn single_tokens(tokenizer: &Tokenizer, texts: &[String]) -> Result<Vec<i64>, ModelError> {
    let id = |text: &String| match tokenizer.encode(text)?.as_slice() {
        [id] => Ok(*id),
        ids => Err(ModelError::Generation(format!(
            "`{text}` is {} tokens, a probability can be told of single tokens only",
            ids.len()
        ))),
    };
    texts.iter().map(id).collect()
}

/// Puts `pad_id` in front of all prompts but the longest until they are as long, as tokens like others: the network
/// attends to them and the positions of the prompt begin after them.
///
/// This is what a batch is in the reference's MLM-Filter script, which pads on the left and passes no mask, so that
/// scores depend on the batch. Nothing else wants it: generation here needs no padding.
///
/// Source: `mlm_filter_scoring_single_image_v2.py`, `pad_sequence`.
pub fn pad_left_unmasked(batch: &mut [Prompt], pad_id: i64) {
    let longest = batch.iter().map(|prompt| prompt.input_ids.len()).max().unwrap_or(0);
    for prompt in batch {
        let missing = longest - prompt.input_ids.len();
        prompt.input_ids.splice(0..0, std::iter::repeat_n(pad_id, missing));
    }
}

impl Vlm {
    /// Continues every prompt. Returns the new ids of each, without prompt and stop id.
    ///
    /// A row's result does not depend on its neighbours beyond the rounding of sums. Chunks of rows run in parallel.
    ///
    /// # Errors
    /// If a prompt is empty or does not fit the model, also with `max_new_tokens` more tokens, the config is out of
    /// range, or the network gives no numbers.
    pub fn generate(&self, prompts: &[Prompt], config: &GenerateConfig) -> Result<Vec<Vec<i64>>, ModelError> {
        let rows = self.run(prompts, config, &mut vec![(); prompts.len()])?;
        Ok(rows.into_iter().map(|row| row.ids).collect())
    }

    /// As [`generate`](Self::generate), with texts that may end at one of `stop_strings`.
    ///
    /// # Errors
    /// As `generate`, and if the tokenizer fails.
    pub fn answer(
        &self,
        tokenizer: &Tokenizer,
        prompts: &[Prompt],
        config: &GenerateConfig,
        stop_strings: &[String],
    ) -> Result<Vec<Answer>, ModelError> {
        let listener = |_| TextListener::new(tokenizer, stop_strings, |_: &str| ControlFlow::Continue(()));
        let mut listeners: Vec<_> = prompts.iter().map(listener).collect();
        let rows = self.run(prompts, config, &mut listeners)?;
        listeners.into_iter().zip(rows).map(|(listener, row)| listener.answer(row)).collect()
    }

    /// Logits of the token after each prompt: one vector of `vocab_size` per prompt.
    ///
    /// # Errors
    /// If a prompt does not fit the model, or the network gives no numbers.
    pub fn next_token_logits(&self, prompts: &[Prompt]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.check(prompts, 1)?;
        let features = self.image_features(prompts.iter().flat_map(|prompt| &prompt.images))?;
        let chunks: Result<Vec<_>, ModelError> = prompts
            .par_chunks(CHUNK)
            .map(|chunk| {
                let (_, logits) = self.read_prompts(chunk, &features, 0)?;
                Ok(logits.to_dtype(DType::F32)?.to_vec2::<f32>()?)
            })
            .collect();
        let logits: Vec<Vec<f32>> = chunks?.into_iter().flatten().collect();
        match logits.iter().position(|logits| logits.iter().any(|logit| logit.is_nan())) {
            Some(row) => Err(ModelError::NotFinite { row }),
            None => Ok(logits),
        }
    }

    /// How probable each of `ids` is as the token after each prompt, among these ids alone: one number per id, in their
    /// order, which add up to 1. An id given twice has its share twice.
    ///
    /// # Errors
    /// If a prompt does not fit the model, there is no id, or one is outside the vocabulary.
    ///
    /// Source: `generate_batch(return_string_probabilities=..)`, Open-Qwen2VL `prismatic/models/vlms/prismatic.py`; the
    /// softmax over the whole vocabulary there cancels out.
    pub fn next_token_probabilities(
        &self,
        prompts: &[Prompt],
        ids: &[i64],
    ) -> Result<Vec<Vec<f64>>, ModelError> {
        let vocab_size = self.config().text_config.vocab_size;
        let index = |id: &i64| usize::try_from(*id).ok().filter(|id| *id < vocab_size);
        let Some(indices) = ids.iter().map(index).collect::<Option<Vec<_>>>().filter(|ids| !ids.is_empty())
        else {
            let what = format!("probabilities are asked of the ids {ids:?}, the vocabulary has {vocab_size}");
            return Err(ModelError::Generation(what));
        };
        let probabilities = |(row, logits): (usize, Vec<f32>)| {
            let chosen: Vec<f64> = indices.iter().map(|index| f64::from(logits[*index])).collect();
            let max = chosen.iter().copied().max_by(f64::total_cmp).filter(|max| max.is_finite());
            let max = max.ok_or(ModelError::NotFinite { row })?;
            let weights: Vec<f64> = chosen.iter().map(|logit| (logit - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            Ok(weights.into_iter().map(|weight| weight / total).collect())
        };
        self.next_token_logits(prompts)?.into_iter().enumerate().map(probabilities).collect()
    }

    /// Generates with a listener for every prompt.
    fn run<L: Listener + Send>(
        &self,
        prompts: &[Prompt],
        config: &GenerateConfig,
        listeners: &mut [L],
    ) -> Result<Vec<Row>, ModelError> {
        config.validate()?;
        self.check(prompts, config.max_new_tokens)?;
        let features = self.image_features(prompts.iter().flat_map(|prompt| &prompt.images))?;
        let chunks: Result<Vec<Vec<Row>>, ModelError> = prompts
            .par_chunks(CHUNK)
            .zip(listeners.par_chunks_mut(CHUNK))
            .enumerate()
            .map(|(chunk_idx, (chunk, listeners))| {
                let (caches, logits) = self.read_prompts(chunk, &features, config.max_new_tokens)?;
                let rows = caches.into_iter().zip(chunk).enumerate().map(|(row_idx, (cache, prompt))| {
                    let row = chunk_idx * CHUNK + row_idx;
                    Row::new(config, row, row as u64, &prompt.input_ids, cache)
                });
                let mut rows: Vec<Row> = rows.collect();
                self.write_answers(&mut rows, logits, config, listeners)?;
                rows.iter_mut().for_each(|row| row.cache = KvCache::default());
                Ok(rows)
            })
            .collect();
        Ok(chunks?.into_iter().flatten().collect())
    }

    /// Checks that prompts are not empty and fit the model with `max_new_tokens` more.
    fn check(&self, prompts: &[Prompt], max_new_tokens: usize) -> Result<(), ModelError> {
        let max = self.config().text_config.max_position_embeddings;
        for (row, prompt) in prompts.iter().enumerate() {
            let len = self.check_prompt(row, prompt)?;
            if len == 0 {
                return Err(ModelError::Generation(format!("sequence {row} is empty")));
            }
            // The last new token is not read.
            let len = len + max_new_tokens.saturating_sub(1);
            if len > max {
                return Err(ModelError::TooLong { row, len, max });
            }
        }
        Ok(())
    }

    /// The embeddings of all images `(q, h)`, each computed once, by the address of its pixels.
    fn image_features<'a>(
        &self,
        images: impl Iterator<Item = &'a Arc<[f32]>>,
    ) -> Result<Features, ModelError> {
        let mut known = HashSet::new();
        // In the order of their first use: groups, and with them roundings, are those of the last call with the same images.
        let images: Vec<_> = images.filter(|image| known.insert(address(image))).collect();
        let chunks: Result<Vec<_>, ModelError> = images
            .par_chunks(IMAGE_CHUNK)
            .map(|chunk| {
                let features =
                    self.encode_images(&chunk.iter().map(|image| &***image).collect::<Vec<_>>())?;
                let feature = |(at, image): (usize, &&Arc<[f32]>)| Ok((address(image), features.get(at)?));
                chunk.iter().enumerate().map(feature).collect::<Result<Vec<_>, ModelError>>()
            })
            .collect();
        Ok(chunks?.into_iter().flatten().collect())
    }

    /// Embeddings of runs of units, one behind the other: `(t, h)`.
    fn embed_units(&self, runs: &[&[Unit]], features: &Features) -> Result<Tensor, ModelError> {
        let mut pieces = Vec::new();
        let mut tokens: Vec<u32> = Vec::new();
        let embed = |tokens: &mut Vec<u32>| -> Result<Option<Tensor>, ModelError> {
            let tokens = std::mem::take(tokens);
            if tokens.is_empty() {
                return Ok(None);
            }
            let num_tokens = tokens.len();
            Ok(Some(self.language_model.embed(&Tensor::from_vec(tokens, num_tokens, self.device())?)?))
        };
        for unit in runs.iter().copied().flatten() {
            match unit {
                Unit::Token(id) => tokens.push(*id as u32),
                Unit::Image(image) => {
                    pieces.extend(embed(&mut tokens)?);
                    pieces.push(features[&address(image)].clone());
                }
            }
        }
        pieces.extend(embed(&mut tokens)?);
        Ok(Tensor::cat(&pieces, 0)?)
    }

    /// Reads checked prompts, what they share once. Returns a cache with room for `max_new_tokens` more for each, and the
    /// logits of the token after each, `(b, vocab_size)`.
    fn read_prompts(
        &self,
        prompts: &[Prompt],
        features: &Features,
        max_new_tokens: usize,
    ) -> Result<(Vec<KvCache>, Tensor), ModelError> {
        let q = self.num_image_tokens();
        let units: Vec<Vec<Unit>> = prompts.iter().map(Unit::of).collect();
        let segments = plan(&units, q);
        let mut caches: Vec<Option<KvCache>> = segments.iter().map(|_| None).collect();
        let mut last_hidden: Vec<Option<Tensor>> = prompts.iter().map(|_| None).collect();
        let mut previous = Vec::new();
        for generation in generations(&segments) {
            for group in groups(&generation, |at| num_positions(segments[at].units(&units), q)) {
                let mut group_caches = Vec::with_capacity(group.len());
                for &at in &group {
                    let segment = &segments[at];
                    let end = num_positions(&units[segment.row][..segment.end], q);
                    let room =
                        end + if segment.is_last { max_new_tokens.min(EXPECTED_NEW_TOKENS) } else { 0 };
                    group_caches.push(match segment.parent.and_then(|parent| caches[parent].as_ref()) {
                        Some(parent) => parent.fork(room)?,
                        None => KvCache::with_room(room),
                    });
                }
                let runs: Vec<&[Unit]> = group.iter().map(|&at| segments[at].units(&units)).collect();
                let lens: Vec<usize> = runs.iter().map(|run| num_positions(run, q)).collect();
                let mut parts: Vec<Part<'_>> =
                    group_caches.iter_mut().zip(&lens).map(|(cache, &len)| Part { cache, len }).collect();
                let hidden = self.language_model.extend(&self.embed_units(&runs, features)?, &mut parts)?;
                let mut end = 0;
                for ((&at, cache), len) in group.iter().zip(group_caches).zip(lens) {
                    end += len;
                    if segments[at].is_last {
                        last_hidden[segments[at].row] = Some(hidden.narrow(0, end - 1, 1)?);
                    }
                    caches[at] = Some(cache);
                }
            }
            // What has been forked by all who go on from it is not needed any more.
            for at in std::mem::replace(&mut previous, generation) {
                caches[at].take_if(|_| !segments[at].is_last);
            }
        }
        let logits = self
            .language_model
            .logits(&Tensor::cat(&last_hidden.into_iter().flatten().collect::<Vec<_>>(), 0)?)?;
        let mut by_row: Vec<(usize, KvCache)> = segments
            .iter()
            .zip(caches)
            .filter(|(segment, _)| segment.is_last)
            .filter_map(|(segment, cache)| Some((segment.row, cache?)))
            .collect();
        by_row.sort_unstable_by_key(|(row, _)| *row);
        Ok((by_row.into_iter().map(|(_, cache)| cache).collect(), logits))
    }

    /// Writes the answers of rows whose prompts have been read, from the logits of their first tokens.
    fn write_answers<L: Listener>(
        &self,
        rows: &mut [Row],
        mut logits: Tensor,
        config: &GenerateConfig,
        listeners: &mut [L],
    ) -> Result<(), ModelError> {
        let mut running: Vec<usize> = (0..rows.len()).collect();
        loop {
            let scores = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
            let mut next = Vec::with_capacity(running.len());
            let mut still_running = Vec::with_capacity(running.len());
            for (at, mut scores) in running.into_iter().zip(scores) {
                if let Some(id) = rows[at].step(&mut scores, config, &mut listeners[at])? {
                    still_running.push(at);
                    next.push(id);
                }
            }
            if next.is_empty() {
                return Ok(());
            }
            running = still_running;
            let num_rows = next.len();
            let embeds = self.language_model.embed(&Tensor::from_vec(next, num_rows, self.device())?)?;
            let running_rows = rows.iter_mut().filter(|row| row.end.is_none());
            let mut parts: Vec<Part<'_>> =
                running_rows.map(|row| Part { cache: &mut row.cache, len: 1 }).collect();
            logits = self.language_model.logits(&self.language_model.extend(&embeds, &mut parts)?)?;
        }
    }
}

/// Embeddings of images by the address of their pixels.
type Features = HashMap<usize, Tensor>;

/// What makes an image the same as another: where it lies.
fn address(image: &Arc<[f32]>) -> usize {
    image.as_ptr().addr()
}

/// The indices of segments by the number of segments before them.
fn generations(segments: &[Segment]) -> Vec<Vec<usize>> {
    let mut depths: Vec<usize> = Vec::with_capacity(segments.len());
    let mut generations: Vec<Vec<usize>> = Vec::new();
    for (at, segment) in segments.iter().enumerate() {
        let depth = segment.parent.map_or(0, |parent| depths[parent] + 1);
        depths.push(depth);
        generations.resize_with(generations.len().max(depth + 1), Vec::new);
        generations[depth].push(at);
    }
    generations
}

/// Neighbours of at most [`READ_POSITIONS`] positions in all, or alone.
fn groups(segments: &[usize], num_positions: impl Fn(usize) -> usize) -> Vec<Vec<usize>> {
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut sum = 0;
    for &at in segments {
        let len = num_positions(at);
        match groups.last_mut() {
            Some(group) if sum + len <= READ_POSITIONS => {
                group.push(at);
                sum += len;
            }
            _ => {
                groups.push(vec![at]);
                sum = len;
            }
        }
    }
    groups
}

/// Hears every token as it is chosen.
trait Listener {
    /// Takes a token; or ends the answer after it.
    fn token(&mut self, id: i64) -> ControlFlow<AnswerEnd>;
}

impl Listener for () {
    fn token(&mut self, _id: i64) -> ControlFlow<AnswerEnd> {
        ControlFlow::Continue(())
    }
}

/// Makes text of the tokens and passes it on.
struct TextListener<'a, F> {
    stream: TextStream<'a>,
    text: String,
    error: Option<TextError>,
    show: F,
}

impl<'a, F: FnMut(&str) -> ControlFlow<()>> TextListener<'a, F> {
    fn new(tokenizer: &'a Tokenizer, stop_strings: &[String], show: F) -> Self {
        let stream = TextStream::new(tokenizer, stop_strings);
        Self { stream, text: String::new(), error: None, show }
    }

    fn take(&mut self, piece: Result<String, TextError>) -> ControlFlow<()> {
        match piece {
            Ok(piece) if piece.is_empty() => ControlFlow::Continue(()),
            Ok(piece) => {
                self.text += &piece;
                (self.show)(&piece)
            }
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// The answer of a row that has ended.
    fn answer(mut self, row: Row) -> Result<Answer, ModelError> {
        let rest = self.stream.finish();
        // Nothing is left to be stopped.
        let _ = self.take(rest);
        if let Some(error) = self.error {
            return Err(error.into());
        }
        let end = row.end.unwrap_or(AnswerEnd::MaxNewTokens);
        Ok(Answer { ids: row.ids, text: self.text, end })
    }
}

impl<F: FnMut(&str) -> ControlFlow<()>> Listener for TextListener<'_, F> {
    fn token(&mut self, id: i64) -> ControlFlow<AnswerEnd> {
        let piece = self.stream.push(id);
        let wanted = self.take(piece);
        if self.stream.has_stopped() {
            return ControlFlow::Break(AnswerEnd::StopString);
        }
        match wanted {
            ControlFlow::Continue(()) => ControlFlow::Continue(()),
            ControlFlow::Break(()) => ControlFlow::Break(AnswerEnd::Interrupted),
        }
    }
}

/// A sequence whose answer is being written.
#[derive(Debug)]
struct Row {
    /// Index in the caller's batch.
    row: usize,
    cache: KvCache,
    chooser: Chooser,
    ids: Vec<i64>,
    end: Option<AnswerEnd>,
}

impl Row {
    /// `stream` is the stream it draws from.
    fn new(config: &GenerateConfig, row: usize, stream: u64, prompt_ids: &[i64], cache: KvCache) -> Self {
        let end = (config.max_new_tokens == 0).then_some(AnswerEnd::MaxNewTokens);
        Self { row, cache, chooser: Chooser::new(config, prompt_ids, stream), ids: Vec::new(), end }
    }

    /// Chooses a token; returns it if the network is to read it.
    fn step(
        &mut self,
        scores: &mut [f32],
        config: &GenerateConfig,
        listener: &mut impl Listener,
    ) -> Result<Option<u32>, ModelError> {
        if self.end.is_some() {
            return Ok(None);
        }
        let chosen = self.chooser.choose(scores).ok_or(ModelError::NotFinite { row: self.row })?;
        let id = i64::from(chosen);
        if config.stop_ids.contains(&id) {
            self.end = Some(AnswerEnd::StopId);
            return Ok(None);
        }
        self.ids.push(id);
        self.end = match listener.token(id) {
            ControlFlow::Break(end) => Some(end),
            ControlFlow::Continue(()) => {
                (self.ids.len() == config.max_new_tokens).then_some(AnswerEnd::MaxNewTokens)
            }
        };
        Ok(self.end.is_none().then_some(chosen))
    }
}
