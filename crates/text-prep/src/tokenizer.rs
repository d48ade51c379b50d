//! The tokenizer: a Hugging Face `tokenizer.json` with the special tokens of Open-Qwen2VL.

use std::panic::catch_unwind;
use std::path::Path;

use tokenizers::AddedToken;

use crate::TextError;

/// Padding token of Qwen2.5 (id 151643 there).
pub const PAD_TOKEN: &str = "<|endoftext|>";
/// Opens a chat turn (id 151644 in Qwen2.5).
pub const IM_START_TOKEN: &str = "<|im_start|>";
/// Ends a chat turn and every pre-training document: the EOS token (id 151645 in Qwen2.5).
pub const EOS_TOKEN: &str = "<|im_end|>";
/// Ends a text of an interleaved document; added by Open-Qwen2VL (id 151665 with Qwen2.5).
pub const ENDOFCHUNK_TOKEN: &str = "<|endofchunk|>";
/// Begins every document: the BOS token; made special by Open-Qwen2VL (id 128245 with Qwen2.5, see [`Tokenizer`]).
pub const BOS_TOKEN: &str = "<s>";

/// The tokens the reference makes special at load, in this order, which fixes the ids of new ones.
pub(crate) const ADDED_TOKENS: [&str; 2] = [ENDOFCHUNK_TOKEN, BOS_TOKEN];

/// Whether special tokens (`<|im_end|>`, `<s>`, …) appear in decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// Leave them out: what a reader of an answer wants.
    Skip,
    /// Write them out.
    Keep,
}

/// A byte-level BPE tokenizer with Open-Qwen2VL's special tokens.
///
/// Loading makes `<|endofchunk|>` and `<s>` special tokens, in this order, as the reference does. A token the
/// vocabulary lacks gets the next free id; one it has keeps its id. With the public Qwen2.5 file `<|endofchunk|>` is new
/// and becomes 151665, while `<s>` *is already an ordinary entry of the vocabulary* (merged from `<s` and `>`) and keeps
/// 128245. Hugging Face's Python library gives these same ids (checked with transformers 4.46.3, fast and slow, and
/// 5.23.0), so released weights know `<s>` as 128245.
///
/// Ids are `i64` because [`crate::IMAGE_TOKEN_ID`] and [`crate::IGNORE_INDEX`] live beside them in the same lists.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special: SpecialIds,
    vocab_size: usize,
    digest: String,
}

/// Reads a `tokenizer.json`. The library panics where a `decoder` is not one; that is an error here.
pub(crate) fn parse_tokenizer(bytes: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes))
        .unwrap_or_else(|_| Err("the tokenizers library panicked on it".into()))
}

/// The ids of the special tokens, looked up once.
#[derive(Debug, Clone, Copy)]
struct SpecialIds {
    pad: i64,
    im_start: i64,
    eos: i64,
    endofchunk: i64,
    bos: i64,
}

impl Tokenizer {
    /// Loads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is not a tokenizer, or lacks one of the Qwen special tokens.
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, TextError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TextError::Read { path: path.to_path_buf(), source })?;
        Self::parse(&bytes, &path.display().to_string())
    }

    /// Reads a `tokenizer.json` that is already in memory.
    ///
    /// # Errors
    /// If the bytes are not a tokenizer, or it lacks one of the Qwen special tokens.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, TextError> {
        Self::parse(bytes, "in memory")
    }

    fn parse(bytes: &[u8], origin: &str) -> Result<Self, TextError> {
        let parse_error = |source| TextError::Parse { origin: origin.to_owned(), source };
        let mut inner = parse_tokenizer(bytes).map_err(parse_error)?;
        // Some published files carry the truncation or padding of whoever saved them; length is decided elsewhere.
        inner.with_truncation(None).map_err(parse_error)?;
        inner.with_padding(None);
        inner
            .add_special_tokens(ADDED_TOKENS.map(|token| AddedToken::from(token, true)))
            .map_err(parse_error)?;

        let id_of = |token: &'static str| {
            let missing = || TextError::MissingSpecialToken { origin: origin.to_owned(), token };
            inner.token_to_id(token).map(i64::from).ok_or_else(missing)
        };
        let special = SpecialIds {
            pad: id_of(PAD_TOKEN)?,
            im_start: id_of(IM_START_TOKEN)?,
            eos: id_of(EOS_TOKEN)?,
            endofchunk: id_of(ENDOFCHUNK_TOKEN)?,
            bos: id_of(BOS_TOKEN)?,
        };
        let largest_id = inner.get_vocab(true).into_values().max().unwrap_or(0);
        let digest = blake3::hash(bytes).to_hex().to_string();
        Ok(Self { inner, special, vocab_size: largest_id as usize + 1, digest })
    }

    /// The same tokenizer with one more special token: it keeps its id if the vocabulary has it, and gets the next
    /// free one if not. The digest stays that of the file.
    ///
    /// # Errors
    /// If the underlying tokenizer refuses the token.
    pub fn with_special_token(mut self, token: &str) -> Result<Self, TextError> {
        self.inner
            .add_special_tokens([AddedToken::from(token, true)])
            .map_err(|source| TextError::Parse { origin: "in memory".to_owned(), source })?;
        let id = self.inner.token_to_id(token).map_or(0, |id| id as usize);
        self.vocab_size = self.vocab_size.max(id + 1);
        Ok(self)
    }

    /// A `tokenizer.json` of this tokenizer, its special tokens included; equal tokenizers give equal bytes.
    ///
    /// # Errors
    /// If the underlying tokenizer cannot be written.
    pub fn to_json(&self) -> Result<Vec<u8>, TextError> {
        const PRETTY: bool = true;
        let json = self.inner.to_string(PRETTY);
        json.map(String::into_bytes)
            .map_err(|source| TextError::Parse { origin: "in memory".to_owned(), source })
    }

    /// Ids of `text`, with nothing added around it. Special tokens written out in the text become their ids, as in
    /// the reference (a caption holding `<s>` does inject a BOS).
    ///
    /// # Errors
    /// If the underlying tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, TextError> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|source| TextError::Encode { num_bytes: text.len(), source })?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Text of `ids`. Bytes that are not UTF-8 become U+FFFD. Ids beyond the vocabulary are left out, as Hugging
    /// Face does: a model's embedding may have more rows than the tokenizer has tokens.
    ///
    /// # Errors
    /// If an id is negative (an image placeholder or an ignored label) or larger than any token id can be.
    pub fn decode(&self, ids: &[i64], special_tokens: SpecialTokens) -> Result<String, TextError> {
        let text_ids = ids
            .iter()
            .enumerate()
            .map(|(position, &id)| u32::try_from(id).map_err(|_| TextError::NotATextId { id, position }))
            .collect::<Result<Vec<u32>, _>>()?;
        self.inner
            .decode(&text_ids, special_tokens == SpecialTokens::Skip)
            .map_err(|source| TextError::Decode { num_ids: ids.len(), source })
    }

    /// Id of exactly this token, if the vocabulary has it.
    pub fn token_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// Id of this text if it is a special token, which [`SpecialTokens::Skip`] leaves out.
    pub fn special_token_id(&self, text: &str) -> Option<i64> {
        let is_special = self.inner.get_added_vocabulary().is_special_token(text);
        if is_special { self.token_id(text) } else { None }
    }

    /// Largest id plus one: the number of embedding rows a model of this tokenizer needs at least.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// BLAKE3 of the `tokenizer.json` bytes, in hex: two runs with equal digests tokenize alike.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Id of `<|endoftext|>`, which pads batches.
    pub fn pad_id(&self) -> i64 {
        self.special.pad
    }

    /// Id of `<|im_end|>`, which ends turns and documents.
    pub fn eos_id(&self) -> i64 {
        self.special.eos
    }

    /// Id of `<|im_start|>`.
    pub fn im_start_id(&self) -> i64 {
        self.special.im_start
    }

    /// Id of `<s>`, which begins every document.
    pub fn bos_id(&self) -> i64 {
        self.special.bos
    }

    /// Id of `<|endofchunk|>`, which ends the texts of interleaved documents.
    pub fn endofchunk_id(&self) -> i64 {
        self.special.endofchunk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BpeTrainer;

    fn small_tokenizer() -> Tokenizer {
        let texts = ["a red cube and a red ball", "a blue cube, a blue ball"].map(str::to_owned);
        BpeTrainer::new(300).train(texts.into_iter()).unwrap().tokenizer().unwrap()
    }

    #[test]
    fn encode_then_decode_is_the_identity() {
        let tokenizer = small_tokenizer();
        for text in ["", "\n", " a  red\t cube", "naïve 東京 🙂", "0123", "a\r\n\r\n  b "] {
            let ids = tokenizer.encode(text).unwrap();
            assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip).unwrap(), text);
        }
    }

    #[test]
    fn special_tokens_are_single_ids_and_can_be_skipped() {
        let tokenizer = small_tokenizer();
        let ids = tokenizer.encode("<s>a<|im_end|>").unwrap();
        assert_eq!(ids, [tokenizer.bos_id(), tokenizer.token_id("a").unwrap(), tokenizer.eos_id()]);
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Skip).unwrap(), "a");
        assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), "<s>a<|im_end|>");
        assert_eq!(tokenizer.special_token_id("<|im_end|>"), Some(tokenizer.eos_id()));
        assert_eq!(tokenizer.special_token_id("a"), None);
        assert_eq!(tokenizer.special_token_id("<|im_"), None);
    }

    #[test]
    fn decode_names_the_placeholder_and_leaves_out_unknown_ids() {
        let tokenizer = small_tokenizer();
        let error = tokenizer.decode(&[5, -200], SpecialTokens::Skip).unwrap_err();
        assert_eq!(error.to_string(), "id -200 at position 1 stands for no text");
        assert_eq!(tokenizer.decode(&[1_000_000], SpecialTokens::Skip).unwrap(), "");
        assert!(tokenizer.decode(&[i64::MAX], SpecialTokens::Skip).is_err());
    }

    #[test]
    fn missing_file_and_garbage_are_named() {
        let error = Tokenizer::from_file("no/such/tokenizer.json").unwrap_err();
        assert!(error.to_string().contains("no/such/tokenizer.json"));
        // The second makes the library panic.
        for json in [&b"{}"[..], br#"{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "decoder": {"x": 1}}"#] {
            assert!(matches!(Tokenizer::from_bytes(json), Err(TextError::Parse { .. })));
        }
    }

    #[test]
    fn a_tokenizer_without_the_qwen_tokens_is_refused_by_name() {
        let json = br#"{"version":"1.0","truncation":null,"padding":null,"added_tokens":[],"normalizer":null,
            "pre_tokenizer":null,"post_processor":null,"decoder":null,
            "model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;
        let error = Tokenizer::from_bytes(json).unwrap_err();
        assert_eq!(error.to_string(), "in memory: the tokenizer has no special token `<|endoftext|>`");
    }

    #[test]
    fn one_more_special_token() {
        let tokenizer = small_tokenizer();
        let next = tokenizer.vocab_size() as i64;
        let more = tokenizer.clone().with_special_token("<|pad|>").unwrap();
        assert_eq!(more.encode("a<|pad|>").unwrap()[1..], [next]);
        assert_eq!((more.vocab_size(), more.digest()), (next as usize + 1, tokenizer.digest()));
        let written = Tokenizer::from_bytes(&more.to_json().unwrap()).unwrap();
        assert_eq!(written.encode("a <|pad|>cube").unwrap(), more.encode("a <|pad|>cube").unwrap());
        assert_eq!(written.to_json().unwrap(), more.to_json().unwrap());
        let again = more.with_special_token("<s>").unwrap();
        assert_eq!((again.bos_id(), again.token_id("<s>")), (tokenizer.bos_id(), Some(tokenizer.bos_id())));
    }

    #[test]
    fn digest_follows_the_bytes() {
        let trained = BpeTrainer::new(280).train(std::iter::once("x y".to_owned())).unwrap();
        let tokenizer = trained.tokenizer().unwrap();
        assert_eq!(tokenizer.digest(), blake3::hash(trained.json()).to_hex().as_str());
    }
}
