//! Rules on captions alone.

use std::collections::HashSet;
use std::path::Path;

use oqvl_stage::RunContext;
use serde::Deserialize;

use super::asset::{problem, read_text, required};
use crate::MixerError;
use crate::baseline_config::BaselineAssets;

/// Characters of a caption that are looked up among the junk captions.
const LOOKED_UP_CHARS: usize = 1000;

/// Endings of file names that are no words.
const IMAGE_ENDINGS: [&str; 4] = [".jpeg", ".jpg", ".png", ".gif"];

/// Roman numerals that are no words; single letters are too short anyway.
const NUMERALS: [&str; 7] = ["ii", "iii", "iv", "vi", "vii", "viii", "ix"];

/// Whether a caption has more than one word, as fastText counts them, and more than five characters: the caption filter
/// of `image_based`, but for the language.
pub(super) fn is_described(caption: &str) -> bool {
    fasttext::FastText::tokenize(caption).len() > 1 && caption.chars().nth(5).is_some()
}

/// The lists behind the caption rules of `reward_quality_score` and `dfn_clip_score`; they are the user's to supply.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CaptionLists {
    /// Frequent captions that say nothing, in lower case.
    junk_captions: HashSet<String>,
    /// Captions rejected as a whole, in lower case.
    rejected_captions: HashSet<String>,
    /// Beginnings that are cut off, at most one of them, the first that fits.
    prefixes: Vec<String>,
    /// The same for endings.
    suffixes: Vec<String>,
}

impl CaptionLists {
    pub(super) fn open(assets: &BaselineAssets, run: &RunContext) -> Result<CaptionLists, MixerError> {
        CaptionLists::read(&required(assets.caption_lists.as_ref(), run))
    }

    fn read(path: &Path) -> Result<CaptionLists, MixerError> {
        serde_json::from_str(&read_text(path)?).map_err(|error| problem(path, &error.to_string()))
    }

    /// Whether the caption is no junk and has at least one sane token.
    pub(super) fn accept(&self, caption: &str) -> bool {
        let caption = caption.to_lowercase();
        let start: String = caption.chars().take(LOOKED_UP_CHARS).collect();
        !self.junk_captions.contains(&start)
            && !self.rejected_captions.contains(&caption)
            && self.tokens(&caption).any(is_sane)
    }

    fn tokens<'a>(&self, caption: &'a str) -> impl Iterator<Item = &'a str> {
        let mut rest = caption;
        if let Some(shorter) = IMAGE_ENDINGS.iter().find_map(|ending| rest.strip_suffix(ending)) {
            rest = shorter;
        }
        if let Some(shorter) = self.prefixes.iter().find_map(|prefix| rest.strip_prefix(prefix.as_str())) {
            rest = shorter;
        }
        if let Some(shorter) = self.suffixes.iter().find_map(|suffix| rest.strip_suffix(suffix.as_str())) {
            rest = shorter;
        }
        rest.split(|c: char| c.is_whitespace() || matches!(c, '-' | '_' | '.' | ','))
    }
}

/// Whether a token looks like a word rather than a number, a numeral or a code.
fn is_sane(token: &str) -> bool {
    let num_chars = token.chars().count();
    let num_letters = token.chars().filter(char::is_ascii_lowercase).count();
    let num_others = num_chars - num_letters;
    let kinds: Vec<bool> = token
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        .map(|c| c.is_ascii_digit())
        .collect();
    let num_alternations = kinds.windows(2).filter(|pair| pair[0] != pair[1]).count();
    let is_numeral = NUMERALS.contains(&token);
    num_chars > 1
        && !is_numeral
        && num_letters > 1
        && !(num_letters <= 2 && num_others >= 3)
        && !(num_chars >= 4 && num_alternations >= 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sane_tokens_are_words() {
        for token in ["cat", "no", "iphone4", "xi", "café", "4th"] {
            assert!(is_sane(token), "{token}");
        }
        for token in ["", "a", "12", "1a", "ii", "viii", "ix", "ab123", "a1b2", "x9y8z", "日本"] {
            assert!(!is_sane(token), "{token}");
        }
    }

    #[test]
    fn junk_is_cut_off_before_tokens_are_looked_at() {
        let lists: CaptionLists = serde_json::from_str(
            r#"{"junk_captions": ["click here"], "rejected_captions": ["image"], "prefixes": ["img", "dsc"],
                "suffixes": ["copy"]}"#,
        )
        .unwrap();
        for caption in ["A red fox", "IMG_0042 fox.jpg", "dsc-fox", "images"] {
            assert!(lists.accept(caption), "{caption}");
        }
        for caption in ["", "Click here", "image", "IMG_0042.JPG", "dsc_001copy", "12 345", "ii"] {
            assert!(!lists.accept(caption), "{caption}");
        }
        assert!(serde_json::from_str::<CaptionLists>(r#"{"junk": []}"#).is_err());
    }

    #[test]
    fn described_is_two_words_and_six_characters() {
        for (caption, expected) in [("a dog", false), ("a doge", true), ("adogs!", false), ("", false)] {
            assert_eq!(is_described(caption), expected, "{caption}");
        }
    }
}
