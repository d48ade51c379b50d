//! One sequence that grows: a conversation.

use super::prefix::{Unit, common_prefix, num_positions};
use super::{Answer, AnswerEnd, GenerateConfig, KvCache, Row, TextListener};
use crate::ModelError;
use crate::qwen2::Part;
use crate::vlm::{Prompt, Vlm};
use candle_core::Tensor;
use oqvl_text_prep::Tokenizer;
use std::ops::ControlFlow;

/// Positions read between two looks at whether the caller still wants them.
const PIECE: usize = 128;

/// What happens while an answer is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event<'a> {
    /// The prompt is being read; what the session has read before is not counted.
    Reading {
        /// Positions read.
        done: usize,
        /// Positions to read.
        of: usize,
    },
    /// A piece of the answer; the pieces joined are its text.
    Text(&'a str),
}

/// Answers prompts one after the other and remembers what it has read: of a prompt that begins like the one before, with its
/// answer, only the rest is read. Images are the same if they are shared ([`Prompt::images`]).
#[derive(Debug)]
pub struct Session<'a> {
    vlm: &'a Vlm,
    tokenizer: &'a Tokenizer,
    /// What the cache holds.
    read: Vec<Unit>,
    cache: KvCache,
    num_answers: u64,
}

impl<'a> Session<'a> {
    /// A session that has read nothing.
    #[must_use]
    pub fn new(vlm: &'a Vlm, tokenizer: &'a Tokenizer) -> Self {
        Self { vlm, tokenizer, read: Vec::new(), cache: KvCache::default(), num_answers: 0 }
    }

    /// Answers a prompt, telling `listen` what happens; its `Break` ends the answer. Draws come from stream `i` of the seed
    /// for the `i`-th answer, so that the same question asked again may be answered differently.
    ///
    /// # Errors
    /// As [`Vlm::answer`]; the session has then forgotten what it has read.
    pub fn answer(
        &mut self,
        prompt: &Prompt,
        config: &GenerateConfig,
        stop_strings: &[String],
        mut listen: impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Answer, ModelError> {
        config.validate()?;
        self.vlm.check(std::slice::from_ref(prompt), config.max_new_tokens)?;
        let mut units = Unit::of(prompt);
        // At least the last unit is read: what the network says there begins the answer.
        let num_known = common_prefix(&self.read, &units).min(units.len() - 1);
        let (mut cache, _) = (std::mem::take(&mut self.cache), std::mem::take(&mut self.read));
        cache.truncate(num_positions(&units[..num_known], self.vlm.num_image_tokens()));
        let stream = self.num_answers;
        self.num_answers += 1;

        let Some(hidden) = self.read(&mut cache, &units[num_known..], &mut listen)? else {
            self.remember(units, cache);
            return Ok(Answer { ids: Vec::new(), text: String::new(), end: AnswerEnd::Interrupted });
        };
        let logits = self.vlm.language_model.logits(&hidden)?;
        let mut listener =
            TextListener::new(self.tokenizer, stop_strings, |text: &str| listen(Event::Text(text)));
        let mut rows = [Row::new(config, 0, stream, &prompt.input_ids, cache)];
        self.vlm.write_answers(&mut rows, logits, config, std::slice::from_mut(&mut listener))?;
        let [mut row] = rows;
        let cache = std::mem::take(&mut row.cache);
        let answer = listener.answer(row)?;
        units.extend(answer.ids.iter().map(|id| Unit::Token(*id)));
        self.remember(units, cache);
        Ok(answer)
    }

    /// Reads units; the hidden state of the last position, `(1, h)`, or nothing if the caller wants no more.
    fn read(
        &self,
        cache: &mut KvCache,
        units: &[Unit],
        listen: &mut impl FnMut(Event<'_>) -> ControlFlow<()>,
    ) -> Result<Option<Tensor>, ModelError> {
        let of = num_positions(units, self.vlm.num_image_tokens());
        if listen(Event::Reading { done: 0, of }).is_break() {
            return Ok(None);
        }
        let images = units.iter().filter_map(|unit| match unit {
            Unit::Image(image) => Some(image),
            Unit::Token(_) => None,
        });
        let features = self.vlm.image_features(images)?;
        let embeds = self.vlm.embed_units(&[units], &features)?;
        let mut done = 0;
        loop {
            let len = PIECE.min(of - done);
            let mut parts = [Part { cache: &mut *cache, len }];
            let hidden = self.vlm.language_model.extend(&embeds.narrow(0, done, len)?, &mut parts)?;
            done += len;
            if listen(Event::Reading { done, of }).is_break() {
                return Ok(None);
            }
            if done == of {
                return Ok(Some(hidden.narrow(0, len - 1, 1)?));
            }
        }
    }

    /// Keeps a cache and those of the units that it holds whole: the last token of an answer is never read, and of an
    /// interrupted prompt only a part is.
    fn remember(&mut self, mut units: Vec<Unit>, mut cache: KvCache) {
        let q = self.vlm.num_image_tokens();
        let mut len = 0;
        let held = units.iter().take_while(|unit| {
            len += unit.len(q);
            len <= cache.len()
        });
        let num_held = held.count();
        units.truncate(num_held);
        cache.truncate(num_positions(&units, q));
        (self.read, self.cache) = (units, cache);
    }
}
