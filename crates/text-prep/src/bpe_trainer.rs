//! Learning a tokenizer like Qwen2.5's from text.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{OffsetReferential, OffsetType, PreTokenizer as _};

use crate::bpe_merges::{MergeLearner, Pair};
use crate::tokenizer::{ADDED_TOKENS, EOS_TOKEN, IM_START_TOKEN, PAD_TOKEN};
use crate::{TextError, Tokenizer};

/// How Qwen2.5 cuts text into words: digits one by one, words with the blank before them, runs of signs.
/// Source: `pre_tokenizer` of the published Qwen2.5 `tokenizer.json`.
const QWEN_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// Words that evaluation needs as single tokens, because it compares the probabilities of one token each.
/// (Letters and digits are single tokens anyway.) Source: the start-up check of the reference's `PrismaticVLM`.
pub const DEFAULT_MUST_INCLUDE: [&str; 4] = ["True", "False", "Yes", "No"];

/// A pair must occur this often to be merged: what occurs once is no pattern.
pub const DEFAULT_MIN_FREQUENCY: u64 = 2;

/// The special tokens in the order of their ids, after all others.
const SPECIAL_TOKENS: [&str; 5] = [PAD_TOKEN, IM_START_TOKEN, EOS_TOKEN, ADDED_TOKENS[0], ADDED_TOKENS[1]];

/// Learns a byte-level BPE tokenizer with Qwen2.5's normalizer, pre-tokenizer and special tokens.
///
/// Ids: 256 bytes, then merges, then `<|endoftext|>`, `<|im_start|>`, `<|im_end|>`, `<|endofchunk|>`, `<s>`. The same
/// texts give the same bytes, in whatever order they come and on any machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpeTrainer {
    /// Number of tokens, special ones included. Fewer come out when the texts hold too few repeated pairs.
    pub vocab_size: usize,
    /// How often a pair must occur to be merged.
    pub min_frequency: u64,
    /// Words that must be single tokens.
    pub must_include: Vec<String>,
}

/// What [`BpeTrainer::train`] learned: the bytes of a `tokenizer.json`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrainedTokenizer {
    json: Vec<u8>,
}

impl TrainedTokenizer {
    /// The `tokenizer.json`, to be written where it is wanted; every Hugging Face library reads it.
    pub fn json(&self) -> &[u8] {
        &self.json
    }

    /// The tokenizer itself, as [`Tokenizer::from_file`] would load it.
    ///
    /// # Errors
    /// Only if the JSON is not a tokenizer, which would be a bug here.
    pub fn tokenizer(&self) -> Result<Tokenizer, TextError> {
        Tokenizer::from_bytes(&self.json)
    }
}

impl BpeTrainer {
    /// A trainer for `vocab_size` tokens with [`DEFAULT_MIN_FREQUENCY`] and [`DEFAULT_MUST_INCLUDE`].
    pub fn new(vocab_size: usize) -> Self {
        let must_include = DEFAULT_MUST_INCLUDE.map(str::to_owned).to_vec();
        Self { vocab_size, min_frequency: DEFAULT_MIN_FREQUENCY, must_include }
    }

    /// Learns from `texts`. Memory grows with the number of different words, not with the length of the text.
    ///
    /// # Errors
    /// If `vocab_size` cannot hold bytes, special tokens and required words, or a required word is not one word to
    /// the pre-tokenizer.
    pub fn train(&self, texts: impl Iterator<Item = String>) -> Result<TrainedTokenizer, TextError> {
        let alphabet = byte_alphabet();
        let splitter = WordSplitter::new(&alphabet)?;
        let required = self
            .must_include
            .iter()
            .map(|word| splitter.one_word(word))
            .collect::<Result<Vec<String>, _>>()?;

        // Each required word may cost a merge per character but the first.
        let num_reserved: usize = required.iter().map(|word| word.chars().count().saturating_sub(1)).sum();
        let minimum = alphabet.len() + SPECIAL_TOKENS.len() + num_reserved;
        if self.vocab_size < minimum {
            return Err(TextError::VocabTooSmall { vocab_size: self.vocab_size, minimum });
        }

        let mut counts = BTreeMap::<String, u64>::new();
        for text in texts {
            for word in splitter.words(&text)? {
                *counts.entry(word).or_default() += 1;
            }
        }
        let num_required = required.len();
        let words: Vec<_> = required.into_iter().map(|word| (word, 0)).chain(counts).collect();

        let max_tokens = self.vocab_size - SPECIAL_TOKENS.len();
        let mut learner = MergeLearner::new(&alphabet, &words);
        learner.learn(max_tokens - num_reserved, self.min_frequency);
        for word_idx in 0..num_required {
            learner.force_one_token(word_idx);
        }
        learner.learn(max_tokens, self.min_frequency);
        let (tokens, merges) = learner.into_parts();
        Ok(TrainedTokenizer { json: to_bytes(&tokenizer_json(&tokens, &merges)) })
    }
}

/// The 256 characters that stand for bytes in byte-level BPE, in code point order, which is also Qwen2.5's id order.
fn byte_alphabet() -> Vec<char> {
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    alphabet
}

/// Cuts text into byte-level words exactly as the finished tokenizer will.
struct WordSplitter {
    tokenizer: tokenizers::Tokenizer,
}

impl WordSplitter {
    fn new(alphabet: &[char]) -> Result<Self, TextError> {
        let tokens: Vec<String> = alphabet.iter().map(char::to_string).collect();
        let tokenizer = tokenizers::Tokenizer::from_bytes(to_bytes(&tokenizer_json(&tokens, &[])))
            .map_err(|source| TextError::Parse { origin: "in memory".to_owned(), source })?;
        Ok(Self { tokenizer })
    }

    /// The words of `text`; special tokens written out in it are not words.
    fn words(&self, text: &str) -> Result<Vec<String>, TextError> {
        let normalizer = self.tokenizer.get_normalizer();
        let mut pieces = self.tokenizer.get_added_vocabulary().extract_and_normalize(normalizer, text);
        self.tokenizer
            .get_pre_tokenizer()
            .expect("the JSON of this module names a pre-tokenizer")
            .pre_tokenize(&mut pieces)
            .map_err(|source| TextError::Encode { num_bytes: text.len(), source })?;
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(splits
            .into_iter()
            .filter(|(word, _, special)| special.is_none() && !word.is_empty())
            .map(|(word, _, _)| word.to_owned())
            .collect())
    }

    fn one_word(&self, word: &str) -> Result<String, TextError> {
        let mut pieces = self.words(word)?;
        match pieces.pop() {
            Some(only) if pieces.is_empty() => Ok(only),
            last => {
                let num_pieces = pieces.len() + usize::from(last.is_some());
                Err(TextError::NotOneWord { word: word.to_owned(), num_pieces })
            }
        }
    }
}

/// A `tokenizer.json` with the members of the published Qwen2.5 file, in its order.
fn tokenizer_json(tokens: &[String], merges: &[Pair]) -> Value {
    let vocab: serde_json::Map<String, Value> =
        tokens.iter().zip(0u32..).map(|(token, id)| (token.clone(), Value::from(id))).collect();
    let merges: Vec<[&str; 2]> = merges
        .iter()
        .map(|&(left, right)| [tokens[left as usize].as_str(), tokens[right as usize].as_str()])
        .collect();
    let added_tokens: Vec<Value> = SPECIAL_TOKENS
        .iter()
        .zip(tokens.len()..)
        .map(|(content, id)| {
            json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split =
        json!({"type": "Split", "pattern": {"Regex": QWEN_SPLIT}, "behavior": "Isolated", "invert": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added_tokens,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                  "vocab": vocab, "merges": merges},
    })
}

fn to_bytes(json: &Value) -> Vec<u8> {
    serde_json::to_vec_pretty(json).expect("a JSON value with string keys always serialises")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SpecialTokens;
    use proptest::prelude::*;

    const TEXTS: [&str; 4] = [
        "The large red cube is left of the small blue ball.",
        "Is the red cube large? Yes. Is the ball red? No, it is blue.",
        "There are 12 cubes and 7 balls; the cubes are red, the balls are blue.",
        "<|im_start|>The <s> ball isn't red<|im_end|>",
    ];

    fn train(vocab_size: usize, texts: &[&str]) -> TrainedTokenizer {
        BpeTrainer::new(vocab_size).train(texts.iter().map(|text| text.to_string())).unwrap()
    }

    #[test]
    fn ids_are_bytes_merges_special_tokens() {
        let tokenizer = train(290, &TEXTS).tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), 290);
        assert_eq!(tokenizer.encode("!\"").unwrap(), [0, 1]); // as in Qwen2.5
        let special = [
            tokenizer.pad_id(),
            tokenizer.im_start_id(),
            tokenizer.eos_id(),
            tokenizer.endofchunk_id(),
            tokenizer.bos_id(),
        ];
        assert_eq!(special, [285, 286, 287, 288, 289]);
    }

    #[test]
    fn required_words_letters_and_digits_are_single_tokens() {
        for vocab_size in [271, 290, 400] {
            let tokenizer = train(vocab_size, &TEXTS).tokenizer().unwrap();
            let singles = ('A'..='Z').chain('0'..='9').map(String::from);
            for word in singles.chain(DEFAULT_MUST_INCLUDE.map(str::to_owned)) {
                let ids = tokenizer.encode(&word).unwrap();
                assert_eq!(ids.len(), 1, "{word} with {vocab_size} tokens");
                assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), word);
            }
            assert_eq!(tokenizer.encode("12").unwrap().len(), 2);
        }
    }

    #[test]
    fn frequent_words_become_single_tokens() {
        let tokenizer = train(400, &TEXTS).tokenizer().unwrap();
        assert_eq!(tokenizer.encode(" red cube").unwrap().len(), 2);
    }

    #[test]
    fn the_order_of_texts_does_not_matter() {
        let mut reversed = TEXTS;
        reversed.reverse();
        assert_eq!(train(330, &TEXTS), train(330, &reversed));
    }

    /// Bytes recorded once: another process, machine or version of a dependency must not change them.
    #[test]
    fn the_bytes_are_the_recorded_ones() {
        let digest = blake3::hash(train(290, &TEXTS).json()).to_hex();
        assert_eq!(digest.as_str(), "d3bf31089e517039318256c0f9abcb674eb2ae5a8a9ab6a5b264bafb2ffb695c");
    }

    #[test]
    fn nothing_to_learn_from_still_makes_a_tokenizer() {
        let tokenizer = train(1000, &[]).tokenizer().unwrap();
        assert_eq!(tokenizer.vocab_size(), 271);
        assert_eq!(tokenizer.encode("abc").unwrap().len(), 3);
    }

    #[test]
    fn impossible_requests_are_named() {
        let error = BpeTrainer::new(270).train(std::iter::empty()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "vocab_size is 270, but bytes, special tokens and required words need at least 271"
        );
        for (word, num_pieces) in [("two words", 2), ("", 0), ("42", 2), ("<s>", 0)] {
            let trainer = BpeTrainer { must_include: vec![word.to_owned()], ..BpeTrainer::new(400) };
            let error = trainer.train(std::iter::empty()).unwrap_err();
            assert!(
                matches!(error, TextError::NotOneWord { num_pieces: n, .. } if n == num_pieces),
                "{word:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_any_tokenizer(texts in prop::collection::vec(".{0,20}", 0..4), text in "\\PC{0,20}") {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let tokenizer = train(300, &texts).tokenizer().unwrap();
            let ids = tokenizer.encode(&text).unwrap();
            let normalized: String = {
                let mut normalized = tokenizers::NormalizedString::from(text.as_str());
                tokenizers::Normalizer::normalize(&tokenizers::normalizers::NFC, &mut normalized).unwrap();
                normalized.get().to_owned()
            };
            prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), normalized);
        }
    }
}
