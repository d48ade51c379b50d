//! The text of an answer as its tokens come.

use oqvl_text_prep::{SpecialTokens, TextError, Tokenizer};

/// How the decoder writes bytes that are no text, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Ids that are kept to decode the next one with, while the end of their text may be half a character.
const MAX_PENDING: usize = 8;

/// Turns ids into text piece by piece. The pieces joined are the text of all ids, special tokens left out, up to the
/// first stop string. A character is given out whole, and what may become a stop string is held back. A stop string that
/// is a special token ends the text where that token comes, which has no text of its own.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    stop_strings: Vec<String>,
    /// Special tokens among the stop strings.
    stop_ids: Vec<i64>,
    /// Ids whose text may end in half a character.
    pending: Vec<i64>,
    /// Bytes of the text of `pending` that have been taken.
    num_taken: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    has_stopped: bool,
}

impl<'a> TextStream<'a> {
    /// A stream that ends before the first of `stop_strings`; empty ones are none.
    #[must_use]
    pub fn new(tokenizer: &'a Tokenizer, stop_strings: &[String]) -> Self {
        let stop_strings: Vec<String> =
            stop_strings.iter().filter(|text| !text.is_empty()).cloned().collect();
        let stop_ids = stop_strings.iter().filter_map(|text| tokenizer.special_token_id(text)).collect();
        Self {
            tokenizer,
            stop_strings,
            stop_ids,
            pending: Vec::new(),
            num_taken: 0,
            held: String::new(),
            has_stopped: false,
        }
    }

    /// Whether a stop string has come: nothing more will be given out.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.has_stopped
    }

    /// Takes one more id and gives out what is certain now.
    ///
    /// # Errors
    /// If the id stands for no text (an image placeholder).
    pub fn push(&mut self, id: i64) -> Result<String, TextError> {
        if self.has_stopped {
            return Ok(String::new());
        }
        if self.stop_ids.contains(&id) {
            let shown = self.finish()?;
            self.has_stopped = true;
            return Ok(shown);
        }
        self.pending.push(id);
        let text = self.tokenizer.decode(&self.pending, SpecialTokens::Skip)?;
        // An unfinished character is one replacement at the end, however many of its bytes are there.
        let settled = text.strip_suffix(REPLACEMENT).unwrap_or(&text);
        let piece = settled.get(self.num_taken..).unwrap_or_default().to_owned();
        if settled.len() == text.len() {
            self.pending.clear();
            self.num_taken = 0;
        } else {
            self.num_taken = settled.len();
            if self.pending.len() > MAX_PENDING {
                self.shorten(&text)?;
            }
        }
        Ok(self.take(&piece))
    }

    /// Gives out what was held back, half characters as U+FFFD: no more ids come.
    ///
    /// # Errors
    /// If the tokenizer refuses the last ids.
    pub fn finish(&mut self) -> Result<String, TextError> {
        let text = self.tokenizer.decode(&self.pending, SpecialTokens::Skip)?;
        let piece = text.get(self.num_taken..).unwrap_or_default().to_owned();
        self.pending.clear();
        self.num_taken = 0;
        let mut shown = self.take(&piece);
        if !self.has_stopped {
            shown += &std::mem::take(&mut self.held);
        }
        Ok(shown)
    }

    /// Drops the ids that the unfinished character at the end of `text`, of three bytes at most, has no part in.
    fn shorten(&mut self, text: &str) -> Result<(), TextError> {
        let decode = |ids: &[i64]| self.tokenizer.decode(ids, SpecialTokens::Skip);
        for cut in (1..self.pending.len()).rev() {
            let (before, after) = self.pending.split_at(cut);
            // Bytes that belong together would decode otherwise when taken apart.
            let (before, after) = (decode(before)?, decode(after)?);
            if !after.is_empty() && text.len() == before.len() + after.len() && text.starts_with(&before) {
                self.num_taken = self.num_taken.saturating_sub(before.len());
                self.pending.drain(..cut);
                return Ok(());
            }
        }
        Ok(())
    }

    /// Adds settled text, and gives out what no stop string can begin in.
    fn take(&mut self, piece: &str) -> String {
        self.held += piece;
        let stop = self.stop_strings.iter().filter_map(|stop| self.held.find(stop.as_str())).min();
        if let Some(stop) = stop {
            self.has_stopped = true;
            let mut shown = std::mem::take(&mut self.held);
            shown.truncate(stop);
            return shown;
        }
        let may_begin = |at: &usize| {
            let rest = &self.held[*at..];
            self.stop_strings.iter().any(|stop| stop.starts_with(rest))
        };
        let longest = self.stop_strings.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest);
        let places = self.held.char_indices().map(|(at, _)| at).filter(|at| *at >= first);
        let certain = places.into_iter().find(may_begin).unwrap_or(self.held.len());
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_text_prep::BpeTrainer;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    /// One token a byte, but for a few pairs.
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let texts = ["ab ab ab", "\nHuman: \nHuman: "].map(str::to_owned);
        BpeTrainer::new(300).train(texts.into_iter()).unwrap().tokenizer().unwrap()
    });

    /// The pieces of a text's tokens, and whether a stop string ended them.
    fn pieces(ids: &[i64], stops: &[&str]) -> (Vec<String>, bool) {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        let mut stream = TextStream::new(&TOKENIZER, &stops);
        let mut pieces: Vec<String> = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        pieces.push(stream.finish().unwrap());
        (pieces, stream.has_stopped())
    }

    #[test]
    fn characters_are_given_out_whole() {
        let ids = TOKENIZER.encode("é🙂!").unwrap();
        assert_eq!(ids.len(), 7, "one token a byte");
        assert_eq!(pieces(&ids, &[]).0, ["", "é", "", "", "", "🙂", "!", ""]);
        // Cut in the middle: what there is of the character is shown at the end only.
        assert_eq!(pieces(&ids[..4], &[]).0, ["", "é", "", "", "\u{fffd}"]);
    }

    #[test]
    fn a_stop_string_ends_the_text_and_its_beginning_is_never_shown() {
        let ids = TOKENIZER.encode("yes\nHuman: no").unwrap();
        let (shown, stopped) = pieces(&ids, &["\nHuman:", "STOP"]);
        assert_eq!((shown.concat().as_str(), stopped), ("yes", true));
        // What turns out to be something else is shown after all, late or at the end.
        for (text, stop) in [("yes\nHumbug", "\nHuman:"), ("yes\nHum", "\nHuman:"), ("aaab", "aac")] {
            let (shown, stopped) = pieces(&TOKENIZER.encode(text).unwrap(), &[stop, ""]);
            assert_eq!((shown.concat().as_str(), stopped), (text, false));
        }
        // The earlier of two counts, also within one token.
        let (shown, _) = pieces(&TOKENIZER.encode("x ab!").unwrap(), &["b!", "ab"]);
        assert_eq!(shown.concat(), "x ");
    }

    #[test]
    fn a_special_token_can_be_a_stop() {
        let ids = TOKENIZER.encode("yes\nHum<|endoftext|>no<|im_end|>").unwrap();
        // What was held back as the beginning of another stop is shown.
        let (shown, stopped) = pieces(&ids, &["\nHuman:", "<|endoftext|>"]);
        assert_eq!((shown.concat().as_str(), stopped), ("yes\nHum", true));
        let (shown, stopped) = pieces(&ids, &["<|im_start|>", "<|endof"]);
        assert_eq!((shown.concat().as_str(), stopped), ("yes\nHumno", false));
    }

    #[test]
    fn endless_rubbish_is_given_out_as_it_comes() {
        // The first byte of a character of four, again and again, each of which ends the one before.
        let lead = TOKENIZER.encode("🙂").unwrap()[0];
        let ids = vec![lead; 2000];
        let mut stream = TextStream::new(&TOKENIZER, &[]);
        let mut shown = String::new();
        for id in &ids {
            shown += &stream.push(*id).unwrap();
            assert!(stream.pending.len() <= MAX_PENDING + 1);
        }
        assert_eq!(shown.chars().count(), 1999);
        shown += &stream.finish().unwrap();
        assert_eq!(shown, TOKENIZER.decode(&ids, SpecialTokens::Skip).unwrap());
    }

    proptest! {
        #[test]
        fn the_pieces_joined_are_the_whole(
            ids in prop::collection::vec(0i64..300, 0..60),
            emoji in prop::collection::vec("[a-c🙂é\n]{0,4}", 0..6),
        ) {
            let mut ids = ids;
            ids.extend(TOKENIZER.encode(&emoji.concat()).unwrap());
            let whole = TOKENIZER.decode(&ids, SpecialTokens::Skip).unwrap();
            prop_assert_eq!(pieces(&ids, &[]).0.concat(), whole);
        }

        #[test]
        fn what_is_shown_is_the_text_before_the_first_stop(
            text in "[ab🙂]{0,20}", stops in prop::collection::vec("[ab🙂]{1,4}", 0..3),
        ) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let end = stops.iter().filter_map(|stop| text.find(stop)).min();
            let (shown, stopped) = pieces(&TOKENIZER.encode(&text).unwrap(), &stops);
            // Of two stops that overlap the one that is complete first may end the text, so compare with that.
            let reached = (0..=text.len()).filter(|at| text.is_char_boundary(*at));
            let first_complete = reached.map(|at| &text[..at]).find(|part| stops.iter().any(|stop| part.ends_with(stop)));
            prop_assert_eq!(stopped, end.is_some());
            match first_complete {
                None => prop_assert_eq!(shown.concat(), text),
                Some(part) => prop_assert!(part.starts_with(&shown.concat())),
            }
        }
    }
}
