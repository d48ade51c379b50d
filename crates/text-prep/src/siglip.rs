//! SigLIP's text side: what is left of a caption, and ids of a fixed number.

use std::path::Path;

use crate::TextError;
use crate::ftfy::fix_text;
use crate::html::unescape_html;
use crate::tokenizer::parse_tokenizer;

/// Ends every text, and pads it (id 1 in the public vocabulary).
const END_TOKEN: &str = "</s>";

/// Whose text processing to reproduce before SentencePiece. They give the same for plain captions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiglipTextStyle {
    /// `transformers`' `SiglipTokenizer`: lower case, no punctuation of ASCII, single blanks.
    HuggingFace,
    /// `open_clip`'s `canonicalize`: ftfy and HTML references first, and an underscore is a blank.
    OpenClip,
}

/// SigLIP's tokenizer, from a `tokenizer.json`: a SentencePiece vocabulary behind [`clean_siglip_text`].
///
/// `spiece.model`, the other form of the same vocabulary, is not read: `tokenizer.json` lies beside it in the public
/// folders, and `transformers` can write one of it.
#[derive(Debug, Clone)]
pub struct SiglipTokenizer {
    inner: tokenizers::Tokenizer,
    style: SiglipTextStyle,
    end_id: i64,
    digest: String,
}

impl SiglipTokenizer {
    /// Reads a `tokenizer.json`.
    ///
    /// # Errors
    /// If the file cannot be read, is no tokenizer, or has no `</s>`, as those of SigLIP 2 (another network) have none.
    pub fn from_file(path: impl AsRef<Path>, style: SiglipTextStyle) -> Result<Self, TextError> {
        let path = path.as_ref();
        let bytes =
            std::fs::read(path).map_err(|source| TextError::Read { path: path.to_path_buf(), source })?;
        let origin = path.display().to_string();
        let parse_error = |source| TextError::Parse { origin: origin.clone(), source };
        let mut inner = parse_tokenizer(&bytes).map_err(parse_error)?;
        // Length is decided here, not by whoever saved the file.
        inner.with_truncation(None).map_err(parse_error)?;
        inner.with_padding(None);
        let missing = || TextError::MissingSpecialToken { origin: origin.clone(), token: END_TOKEN };
        let end_id = inner.token_to_id(END_TOKEN).map(i64::from).ok_or_else(missing)?;
        Ok(Self { inner, style, end_id, digest: blake3::hash(&bytes).to_hex().to_string() })
    }

    /// `text` as `context_length` ids: what is too long is cut and ends with the end token all the same, what is too
    /// short is padded with it. SigLIP attends its padding, so it is part of the text.
    ///
    /// # Errors
    /// If the underlying tokenizer refuses the text.
    ///
    /// # Panics
    /// If `context_length` is 0.
    ///
    /// Source: `SiglipTokenizer` of transformers with `padding="max_length", truncation=True`.
    pub fn input(&self, text: &str, context_length: usize) -> Result<Vec<i64>, TextError> {
        assert!(context_length > 0, "a text has an end, so a context of 0 is none");
        let encode_error = |source| TextError::Encode { num_bytes: text.len(), source };
        // Whether the file adds the end itself differs between files.
        let encoding =
            self.inner.encode_fast(clean_siglip_text(text, self.style), false).map_err(encode_error)?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).take(context_length - 1);
        let mut ids: Vec<i64> = ids.collect();
        ids.resize(context_length, self.end_id);
        Ok(ids)
    }

    /// The id that ends a text and fills the rest of its positions.
    pub fn pad_id(&self) -> i64 {
        self.end_id
    }

    /// Largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// BLAKE3 of the file's bytes, in hex.
    pub fn digest(&self) -> &str {
        &self.digest
    }
}

/// `text` as SigLIP has it before SentencePiece: lower case, without the punctuation of ASCII, and with one blank where
/// there was white space.
///
/// Source: `SiglipTokenizer.canonicalize_text` of transformers 5, and `canonicalize_text` behind `basic_clean` in
/// open_clip `src/open_clip/tokenizer.py`; both have it of Google's `big_vision`.
#[must_use]
pub fn clean_siglip_text(text: &str, style: SiglipTextStyle) -> String {
    let mut text = match style {
        SiglipTextStyle::HuggingFace => text.to_lowercase(),
        SiglipTextStyle::OpenClip => {
            unescape_html(&unescape_html(&fix_text(text))).replace('_', " ").to_lowercase()
        }
    };
    text.retain(|c| !c.is_ascii_punctuation());
    // Python's white space has four separators of ASCII that Unicode's has not.
    let words = text.split(|c: char| c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c));
    words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of `SiglipTokenizer.canonicalize_text` (transformers 5.23) and `_clean_canonicalize` (open_clip 3.3).
    #[test]
    fn cleaning_is_that_of_each_library() {
        for (text, hugging_face, open_clip) in GOLDENS {
            assert_eq!(clean_siglip_text(text, SiglipTextStyle::HuggingFace), hugging_face, "{text:?}");
            assert_eq!(clean_siglip_text(text, SiglipTextStyle::OpenClip), open_clip, "{text:?}");
        }
    }

    const GOLDENS: [(&str, &str, &str); 6] = [
        ("A photo of a  CAT, isn't it?", "a photo of a cat isnt it", "a photo of a cat isnt it"),
        ("snake_case (and) [brackets]\n", "snakecase and brackets", "snake case and brackets"),
        ("\u{1C}curly ’quotes’ — stay\u{A0}here ", "curly ’quotes’ — stay here", "curly quotes — stay here"),
        ("ΟΔΟΣ İ", "οδος i\u{307}", "οδος i\u{307}"),
        ("$!?", "", ""),
        ("cafÃ© &amp;lt;b&amp;gt; déjà", "cafã© ampltbampgt déjà", "café b déjà"),
    ];
}
