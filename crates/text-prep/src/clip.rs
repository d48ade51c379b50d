//! CLIP's text side: cleaning as its tokenizers do it, and ids of a fixed number.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::Path;

use flate2::read::GzDecoder;
use regex::Regex;
use serde_json::{Value, json};
use tokenizers::{Model as _, ModelWrapper};

use crate::TextError;
use crate::ftfy::fix_text;
use crate::html::unescape_html;
use crate::tokenizer::parse_tokenizer;

/// Tokens of every published CLIP text tower (`context_length`).
pub const CLIP_CONTEXT_LENGTH: usize = 77;

/// Begins every text (id 49406 in the public vocabulary).
const START_TOKEN: &str = "<|startoftext|>";
/// Ends every text, and is where the text tower's feature is taken (id 49407 in the public vocabulary).
const END_TOKEN: &str = "<|endoftext|>";
/// What ends a word's last symbol.
const END_OF_WORD: &str = "</w>";
/// Merges of the public vocabulary: 49,152 less 256 bytes and 2 special tokens, as openai/CLIP counts.
const NUM_MERGES: usize = 49_152 - 256 - 2;
/// The unpacked vocabulary has 3.2 MB; what has 20 times as many is none.
const MAX_VOCABULARY_BYTES: u64 = 64 << 20;
/// How text falls into words once the special tokens are cut out (`SimpleTokenizer.pat`): endings after an apostrophe,
/// then runs of letters, single numbers, runs of what is neither.
const CONTRACTIONS: &str = "'s|'t|'re|'ve|'m|'ll|'d";
const LETTERS_AND_NUMBERS: &str = r"[\p{L}]+|[\p{N}]";
/// What neither is. Python's `regex` also leaves U+0345 out when it ignores case (it counts as a form of the letter
/// iota), so that character is lost in the styles that do.
const OTHERS: &str = r"[^\s\p{L}\p{N}]+";
const OTHERS_IGNORING_CASE: &str = r"[^\s\p{L}\p{N}\x{345}]+";

/// Whose text processing to reproduce. All three give the same ids for plain text; a tower scores best with the one
/// it was trained with, which is that of openai/CLIP or `open_clip`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClipTextStyle {
    /// openai/CLIP's `clip.tokenize(.., truncate=True)`: [`clean_clip_text`], then BPE; padded with 0.
    /// `<|startoftext|>` and `<|endoftext|>` written in a text become the tokens.
    OpenAi,
    /// `open_clip.tokenize`: the same but that the two tokens are written `<start_of_text>` and `<end_of_text>`.
    OpenClip,
    /// `transformers`' `CLIPTokenizerFast` (`padding="max_length", truncation=True`): the tokenizer file alone, which
    /// knows NFC, white space and lower case, but neither ftfy nor HTML; padded with the end token. 3.3 % of real
    /// captions get other ids than from the other two.
    HuggingFace,
}

/// A text as a CLIP text tower takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClipInput {
    /// Start token, text, end token, padding: as many as the context is long.
    pub ids: Vec<i64>,
    /// Index of the first end token in `ids`, whose output is the text's feature. openai/CLIP finds it as the largest
    /// id; since the tower is causal, what pads the rest changes nothing.
    pub end_position: usize,
}

/// CLIP's tokenizer, from Hugging Face's `tokenizer.json` or `merges.txt`, or from openai/CLIP's
/// `bpe_simple_vocab_16e6.txt.gz`.
///
/// All of these files hold the same vocabulary; which one is read changes no id, in any [`ClipTextStyle`]. The merges
/// alone say which ids there are, so `vocab.json` is not needed.
///
/// What a letter is, each side takes from its own version of Unicode: of 100,000 random and damaged texts, 78 got other
/// ids than from openai/CLIP or `open_clip` (Python 3.11, `regex` 2026.11.15), all with characters that Unicode 14 does
/// not have.
#[derive(Debug, Clone)]
pub struct ClipTokenizer {
    /// The whole of what Hugging Face does, and the BPE for the other styles.
    inner: tokenizers::Tokenizer,
    style: ClipTextStyle,
    words: Regex,
    /// Symbol of each byte in the vocabulary.
    byte_symbols: Vec<char>,
    start_id: i64,
    end_id: i64,
    digest: String,
}

impl ClipTokenizer {
    /// Reads a `tokenizer.json`, a `merges.txt` or a `bpe_simple_vocab_16e6.txt.gz`; which of them, the content says.
    ///
    /// # Errors
    /// If the file cannot be read, or see [`ClipTokenizer::from_bytes`].
    pub fn from_file(path: impl AsRef<Path>, style: ClipTextStyle) -> Result<Self, TextError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TextError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&bytes, style, &path.display().to_string())
    }

    /// The same for a file that is already in memory.
    ///
    /// # Errors
    /// If the bytes are neither, or lack what CLIP needs: byte-level BPE with `</w>` at the ends of words, a symbol
    /// for each byte in both forms, and the start and end tokens.
    pub fn from_bytes(bytes: &[u8], style: ClipTextStyle) -> Result<Self, TextError> {
        Self::parse(bytes, style, "in memory")
    }

    fn parse(bytes: &[u8], style: ClipTextStyle, origin: &str) -> Result<Self, TextError> {
        let not_clip = |reason: String| TextError::NotClip { origin: origin.to_owned(), reason };
        let parse_error = |source| TextError::Parse { origin: origin.to_owned(), source };
        let merge_list = match bytes {
            [0x1F, 0x8B, ..] => Some(unpack(bytes).map_err(|source| not_clip(source.to_string()))?),
            // What Hugging Face's folders have beside `vocab.json`; no JSON begins so.
            [b'#', ..] => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        };
        let json = match merge_list {
            Some(text) => {
                let json = tokenizer_json(&used_merges(&text).map_err(not_clip)?);
                Cow::Owned(
                    serde_json::to_vec(&json).expect("a JSON value with string keys always serialises"),
                )
            }
            None => Cow::Borrowed(bytes),
        };
        let mut inner = parse_tokenizer(&json).map_err(parse_error)?;
        // Length is decided here, not by whoever saved the file.
        inner.with_truncation(None).map_err(parse_error)?;
        inner.with_padding(None);

        let ModelWrapper::BPE(bpe) = inner.get_model() else {
            return Err(not_clip("its model is not BPE".to_owned()));
        };
        if bpe.end_of_word_suffix.as_deref() != Some(END_OF_WORD) {
            return Err(not_clip(format!("its words do not end with `{END_OF_WORD}`")));
        }
        if bpe.dropout.is_some() {
            return Err(not_clip("its merges are left out by chance (`dropout`)".to_owned()));
        }
        let byte_symbols = byte_symbols();
        for symbol in &byte_symbols {
            for token in [symbol.to_string(), format!("{symbol}{END_OF_WORD}")] {
                if bpe.token_to_id(&token).is_none() {
                    return Err(not_clip(format!("its vocabulary lacks `{token}`")));
                }
            }
        }
        let id_of = |token: &'static str| {
            let missing = || TextError::MissingSpecialToken { origin: origin.to_owned(), token };
            inner.token_to_id(token).map(i64::from).ok_or_else(missing)
        };
        let (start_id, end_id) = (id_of(START_TOKEN)?, id_of(END_TOKEN)?);
        let [start, end] = style.written_tokens().map(regex::escape);
        let words = format!("(?i:{start}|{end}|{CONTRACTIONS})|{LETTERS_AND_NUMBERS}|{OTHERS_IGNORING_CASE}");
        let words = Regex::new(&words).expect("the pattern is a constant");
        let digest = blake3::hash(bytes).to_hex().to_string();
        Ok(Self { inner, style, words, byte_symbols, start_id, end_id, digest })
    }

    /// Ids of `text` with the start and the end token, however many they are.
    ///
    /// # Errors
    /// If the underlying tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TextError> {
        self.encode_at_most(text, usize::MAX)
    }

    /// `text` as `context_length` ids: what is too long is cut and ends with the end token all the same, as
    /// openai/CLIP with `truncate=True`, `open_clip` and `transformers` do it; what is too short is padded with 0, in
    /// the style of Hugging Face with the end token.
    ///
    /// # Errors
    /// If the underlying tokenizer refuses the text.
    ///
    /// # Panics
    /// If `context_length` is less than 2, the number of tokens that every text has.
    pub fn input(&self, text: &str, context_length: usize) -> Result<ClipInput, TextError> {
        assert!(context_length >= 2, "a context of {context_length} has no room for start and end");
        let mut ids = self.encode_at_most(text, context_length)?;
        if ids.len() > context_length {
            ids.truncate(context_length);
            ids[context_length - 1] = self.end_id;
        }
        let end_position = ids.iter().position(|&id| id == self.end_id);
        let end_position = end_position.expect("the last id is the end token");
        let pad_id = match self.style {
            ClipTextStyle::OpenAi | ClipTextStyle::OpenClip => 0,
            ClipTextStyle::HuggingFace => self.end_id,
        };
        ids.resize(context_length, pad_id);
        Ok(ClipInput { ids, end_position })
    }

    /// Ids with the start and the end token; once more than `num_wanted` are there, the rest of the text may be left.
    fn encode_at_most(&self, text: &str, num_wanted: usize) -> Result<Vec<i64>, TextError> {
        let encode_error = |source| TextError::Encode { num_bytes: text.len(), source };
        let mut ids = vec![self.start_id];
        if self.style == ClipTextStyle::HuggingFace {
            let encoding = self.inner.encode_fast(text, false).map_err(encode_error)?;
            ids.extend(encoding.get_ids().iter().map(|&id| i64::from(id)));
        } else {
            let [start, end] = self.style.written_tokens();
            for word in self.words.find_iter(&clean_clip_text(text)).map(|found| found.as_str()) {
                if word == start {
                    ids.push(self.start_id);
                } else if word == end {
                    ids.push(self.end_id);
                } else {
                    let symbols: String =
                        word.bytes().map(|byte| self.byte_symbols[usize::from(byte)]).collect();
                    let tokens = self.inner.get_model().tokenize(&symbols).map_err(encode_error)?;
                    ids.extend(tokens.iter().map(|token| i64::from(token.id)));
                }
                if ids.len() > num_wanted {
                    break;
                }
            }
        }
        ids.push(self.end_id);
        Ok(ids)
    }

    /// Whose text processing this is.
    pub fn style(&self) -> ClipTextStyle {
        self.style
    }

    /// Id of the start token.
    pub fn start_id(&self) -> i64 {
        self.start_id
    }

    /// Id of the end token.
    pub fn end_id(&self) -> i64 {
        self.end_id
    }

    /// BLAKE3 of the file's bytes, in hex: with equal digests and styles, two runs tokenize alike.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

impl ClipTextStyle {
    /// How a text writes the start and the end token, in small letters as the cleaned text.
    fn written_tokens(self) -> [&'static str; 2] {
        match self {
            Self::OpenAi | Self::HuggingFace => [START_TOKEN, END_TOKEN],
            Self::OpenClip => ["<start_of_text>", "<end_of_text>"],
        }
    }
}

/// `text` as openai/CLIP and `open_clip` have it before BPE: [`fix_text`], HTML references decoded twice, white space
/// around it gone and within it one blank, lower case.
///
/// Source: `basic_clean` and `whitespace_clean` in openai/CLIP `clip/simple_tokenizer.py` and open_clip
/// `src/open_clip/tokenizer.py`, with ftfy 6.3.1.
pub fn clean_clip_text(text: &str) -> String {
    let text = unescape_html(&unescape_html(&fix_text(text)));
    // `strip` of Python also takes the separators of ASCII; they cannot come here, for both steps remove them.
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").to_lowercase()
}

fn unpack(gzip: &[u8]) -> std::io::Result<String> {
    let mut text = String::new();
    GzDecoder::new(gzip).take(MAX_VOCABULARY_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// The merges that CLIP uses of openai/CLIP's list: the first line is a comment, and those at the end are left.
fn used_merges(merge_list: &str) -> Result<Vec<(&str, &str)>, String> {
    let merges: Vec<(&str, &str)> = merge_list
        .lines()
        .enumerate()
        .skip(1)
        .take(NUM_MERGES)
        .map(|(index, line)| line.split_once(' ').ok_or_else(|| format!("line {} is no merge", index + 1)))
        .collect::<Result<_, _>>()?;
    if merges.len() < NUM_MERGES {
        return Err(format!("it has {} merges of {NUM_MERGES}", merges.len()));
    }
    Ok(merges)
}

/// Merges as the `tokenizer.json` that Hugging Face made of CLIP's. Ids: 256 bytes, the same at the ends of words,
/// merges, start token, end token.
fn tokenizer_json(merges: &[(&str, &str)]) -> Value {
    let bytes: Vec<String> = symbols_by_id().into_iter().map(|(_, symbol)| symbol.to_string()).collect();
    let tokens = bytes
        .iter()
        .cloned()
        .chain(bytes.iter().map(|symbol| format!("{symbol}{END_OF_WORD}")))
        .chain(merges.iter().map(|(left, right)| format!("{left}{right}")))
        .chain([START_TOKEN, END_TOKEN].map(str::to_owned));
    let vocab: serde_json::Map<String, Value> =
        tokens.zip(0_u32..).map(|(token, id)| (token, Value::from(id))).collect();
    let added = |content: &str, normalized: bool| {
        json!({"id": vocab[content], "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": normalized, "special": true})
    };
    let pattern = format!(r"<\|startoftext\|>|<\|endoftext\|>|{CONTRACTIONS}|{LETTERS_AND_NUMBERS}|{OTHERS}");
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": [added(START_TOKEN, true), added(END_TOKEN, false)],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "NFC"},
            {"type": "Replace", "pattern": {"Regex": r"\s+"}, "content": " "},
            {"type": "Lowercase"},
        ]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Removed", "invert": true},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true},
        ]},
        "post_processor": null,
        "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": END_TOKEN, "continuing_subword_prefix": "",
                  "end_of_word_suffix": END_OF_WORD, "fuse_unk": false, "vocab": vocab, "merges": merges},
    })
}

/// Bytes and their symbols in the order of GPT-2's and CLIP's ids: first the printable bytes, which stand for
/// themselves, then the others, for which characters from U+0100 on stand.
fn symbols_by_id() -> Vec<(u8, char)> {
    let is_printable = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let printable = (0..=u8::MAX).filter(is_printable).map(|byte| (byte, char::from(byte)));
    let others = (0..=u8::MAX).filter(|byte| !is_printable(byte)).zip('\u{100}'..);
    printable.chain(others).collect()
}

fn byte_symbols() -> Vec<char> {
    let mut symbols = symbols_by_id();
    symbols.sort_unstable();
    symbols.into_iter().map(|(_, symbol)| symbol).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MERGES: [(&str, &str); 4] = [("t", "h"), ("th", "e</w>"), ("'", "s</w>"), ("c", "a")];

    fn small_json() -> Vec<u8> {
        serde_json::to_vec(&tokenizer_json(&MERGES)).unwrap()
    }

    fn small(style: ClipTextStyle) -> ClipTokenizer {
        ClipTokenizer::from_bytes(&small_json(), style).unwrap()
    }

    /// Ids by the rule: printable ASCII from `!` on is 0 and up, 256 more at the end of a word, then the merges.
    #[test]
    fn ids_are_bytes_then_merges_then_start_and_end() {
        let at_end = |byte: u8| i64::from(byte - b'!') + 256;
        let within = |byte: u8| i64::from(byte - b'!');
        for style in [ClipTextStyle::OpenAi, ClipTextStyle::OpenClip, ClipTextStyle::HuggingFace] {
            let ids = small(style).encode(" The\n CAT's 42").unwrap();
            let cat = [515, at_end(b't')];
            assert_eq!(ids, [&[516, 513][..], &cat, &[514, at_end(b'4'), at_end(b'2'), 517]].concat());
            assert_eq!(small(style).encode("th").unwrap(), [516, within(b't'), at_end(b'h'), 517]);
        }
    }

    #[test]
    fn styles_differ_in_cleaning_padding_and_written_tokens() {
        let input = |style, text| small(style).input(text, 4).unwrap().ids;
        let straight = [516, 514, 517, 0];
        assert_eq!(input(ClipTextStyle::OpenAi, "&rsquo;S"), straight);
        assert_eq!(input(ClipTextStyle::OpenClip, "’s"), straight);
        assert_eq!(input(ClipTextStyle::HuggingFace, "'S"), [516, 514, 517, 517]);
        assert_ne!(input(ClipTextStyle::HuggingFace, "’s"), [516, 514, 517, 517]);
        assert_eq!(input(ClipTextStyle::OpenAi, "<|endOfText|>"), [516, 517, 517, 0]);
        assert_eq!(input(ClipTextStyle::OpenClip, "<END_of_text>"), [516, 517, 517, 0]);
        assert_ne!(input(ClipTextStyle::OpenClip, "<|endoftext|>"), [516, 517, 517, 0]);
    }

    #[test]
    fn what_clip_cannot_do_without_is_named() {
        let refuse = |change: &dyn Fn(&mut Value)| {
            let mut json = tokenizer_json(&MERGES);
            change(&mut json);
            ClipTokenizer::from_bytes(&serde_json::to_vec(&json).unwrap(), ClipTextStyle::OpenAi)
                .unwrap_err()
                .to_string()
        };
        let no_byte = refuse(&|json| {
            json["model"]["vocab"].as_object_mut().unwrap().remove("#</w>");
        });
        assert_eq!(no_byte, "in memory: not a CLIP tokenizer: its vocabulary lacks `#</w>`");
        let by_chance = refuse(&|json| json["model"]["dropout"] = json!(0.5));
        assert!(by_chance.contains("dropout"), "{by_chance}");
        let no_end = refuse(&|json| {
            json["added_tokens"].as_array_mut().unwrap().pop();
            json["model"]["vocab"].as_object_mut().unwrap().remove(END_TOKEN);
        });
        assert!(no_end.contains(END_TOKEN), "{no_end}");
    }

    proptest! {
        /// The tokens are the cleaned text, byte for byte, without its blanks.
        #[test]
        fn nothing_of_a_text_is_lost(text in any::<String>()) {
            let tokenizer = small(ClipTextStyle::OpenAi);
            let ids = tokenizer.encode(&text).unwrap();
            let bytes: Vec<u8> = ids[1..ids.len() - 1]
                .iter()
                .map(|&id| tokenizer.inner.id_to_token(u32::try_from(id).unwrap()).unwrap())
                .flat_map(|token| token.trim_end_matches(END_OF_WORD).chars().collect::<Vec<_>>())
                .map(|symbol| {
                    let byte = tokenizer.byte_symbols.iter().position(|&known| known == symbol);
                    u8::try_from(byte.unwrap()).unwrap()
                })
                .collect();
            let expected: String =
                clean_clip_text(&text).chars().filter(|&c| !c.is_whitespace() && c != '\u{345}').collect();
            prop_assert_eq!(String::from_utf8(bytes).unwrap(), expected);
        }

        #[test]
        fn a_damaged_file_is_an_error_or_works(
            damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
            cut in any::<proptest::sample::Index>(),
        ) {
            let mut json = small_json();
            for (position, byte) in damage {
                let position = position.index(json.len());
                json[position] = byte;
            }
            for bytes in [&json[..], &json[..cut.index(json.len())]] {
                if let Ok(tokenizer) = ClipTokenizer::from_bytes(bytes, ClipTextStyle::OpenAi) {
                    let _ = tokenizer.input("the cat's &amp; 42", 8);
                }
            }
        }
    }
}
