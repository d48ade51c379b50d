//! Repair of text that was decoded wrongly, as Python's ftfy 6.3.1 does it by default.
//!
//! CLIP's tokenizers run it before anything else, so its little acts matter more than its great ones: curly quotes
//! become straight in 3 % of real captions, mojibake is rare.
//!
//! Source: the documentation of ftfy 6.3.1 (Robyn Speer, Apache-2.0) with its data, that is the classes of characters
//! and the sequences its heuristic counts as unlikely. `plsfix`, a port of ftfy, is not used: its last release is of
//! January 2025, and it brings `encoding`, which is unmaintained (RUSTSEC-2021-0153), and the whole of `icu` 1.
//!
//! What cannot be equal, or is not:
//! - Python normalises with its own version of Unicode (3.11 has version 14), this crate with that of `icu_normalizer`.
//!   Texts with characters that are in only one of them may differ in the order of marks, and in lower case.
//!   Of 300,000 random texts and damaged captions none differed otherwise.
//! - A Rust string holds no surrogates, so ftfy's repair of them has nothing to do here.
//! - Text that changes still after [`MAX_PASSES`] passes is left as it is: `&amp;amp;…` nested deeper than that.
//! - Mojibake inside mojibake is followed [`mojibake::MAX_DEPTH`] segments deep; Python stops at its recursion limit.

mod badness;
mod characters;
mod charmap;
mod mojibake;

use std::sync::LazyLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use regex::{Captures, Regex};

pub(crate) use characters::windows_1252_of_c1;

use crate::html::{named_reference, unescape_html};

/// Times a segment is fixed at most. ftfy goes on until nothing changes; each pass undoes one layer, and real text
/// has one or two. Without a bound a text of n nested `&amp;` would take time n².
const MAX_PASSES: usize = 64;
/// Characters of a line that are fixed at once (`max_decode_length`).
const MAX_SEGMENT_CHARS: usize = 1_000_000;

/// Whether HTML references are decoded (`unescape_html` of ftfy, whose default `auto` chooses).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum HtmlReferences {
    Decode,
    /// A `<` was seen, so the text is HTML and means its references.
    Keep,
}

/// `text` as `ftfy.fix_text` of ftfy 6.3.1 gives it with the default options.
///
/// Line by line, until nothing changes: HTML references are decoded (as long as no `<` has been seen), mojibake is
/// decoded, C1 control characters become what they are in Windows-1252, Latin ligatures are taken apart, full-width
/// and half-width characters get their normal width, curly quotes become straight, line ends become `\n`, terminal
/// escapes and control characters go, and the rest is brought to NFC.
///
/// Time is proportional to the length for all but hostile text, memory always. The module's introduction lists
/// where the result can differ from Python's.
pub fn fix_text(text: &str) -> String {
    // What every fix leaves alone, and most captions are.
    if text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b'&') {
        return text.to_owned();
    }
    let mut fixed = String::with_capacity(text.len());
    let mut references = HtmlReferences::Decode;
    for segment in segments(text) {
        // One `<` decides for all that follows, too.
        if segment.contains('<') {
            references = HtmlReferences::Keep;
        }
        fixed.push_str(&fix_segment(segment, references));
    }
    fixed
}

/// Lines with their ends, cut where they are too long.
fn segments(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive('\n').flat_map(|line| {
        let mut rest = line;
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            let end = rest.char_indices().nth(MAX_SEGMENT_CHARS).map_or(rest.len(), |(position, _)| position);
            let (segment, remainder) = rest.split_at(end);
            rest = remainder;
            Some(segment)
        })
    })
}

fn fix_segment(segment: &str, references: HtmlReferences) -> String {
    let mut text = segment.to_owned();
    for _ in 0..MAX_PASSES {
        let before = text.clone();
        if references == HtmlReferences::Decode {
            text = decode_references(&text);
        }
        text = mojibake::fix_encoding(text);
        text = characters::fix_each(&text);
        text = characters::fix_line_breaks(&text);
        text = characters::remove_terminal_escapes(&text);
        text = characters::remove_controls(&text);
        text = ComposingNormalizerBorrowed::new_nfc().normalize(&text).into_owned();
        if text == before {
            break;
        }
    }
    text
}

/// HTML references that nobody writes by accident: with a semicolon, and also in capitals (`&EACUTE;`).
fn decode_references(text: &str) -> String {
    static REFERENCE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new("&#?[0-9A-Za-z]{1,24};").expect("the pattern is a constant"));
    let decode = |found: &Captures<'_>| {
        let reference = &found[0];
        if reference.starts_with("&#") {
            let decoded = unescape_html(reference);
            // The semicolon left over says that not all of it was a number.
            return if decoded.contains(';') { reference.to_owned() } else { decoded };
        }
        named_reference(&reference[1..])
            .map(str::to_owned)
            .or_else(|| capital_reference(reference))
            .unwrap_or_else(|| reference.to_owned())
    };
    REFERENCE.replace_all(text, decode).into_owned()
}

/// The value in capitals of a name that exists only in small letters.
fn capital_reference(reference: &str) -> Option<String> {
    let name = &reference[1..];
    if name.bytes().any(|byte| byte.is_ascii_lowercase()) {
        return None;
    }
    let value = named_reference(&name.to_ascii_lowercase())?;
    // `&LTIMES;` is `<IMES;` to a browser: not ours to read otherwise.
    (unescape_html(reference) == reference).then(|| value.to_uppercase())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Examples of ftfy's documentation.
    #[test]
    fn examples_of_the_documentation() {
        let cases = [
            ("âœ” No problems", "✔ No problems"),
            ("&macr;\\_(ã\u{83}\u{84})_/&macr;", "¯\\_(ツ)_/¯"),
            ("Broken text&hellip; it&#x2019;s ﬂubberiﬁc!", "Broken text… it's flubberific!"),
            ("ＬＯＵＤ　ＮＯＩＳＥＳ", "LOUD NOISES"),
            ("l’humanitÃ©", "l'humanité"),
            ("voilÃ le travail", "voilà le travail"),
            ("(à¸‡'âŒ£')à¸‡", "(ง'⌣')ง"),
            ("The Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.", "The Mona Lisa doesn't have eyebrows."),
            ("P&EACUTE;REZ", "PÉREZ"),
            ("&lt;tag&gt;", "<tag>"),
            ("BUNDESSTRA&SZLIG;E", "BUNDESSTRASSE"),
            ("&ntilde; &Ntilde; &NTILDE; &nTILDE;", "ñ Ñ Ñ &nTILDE;"),
            ("\u{1b}[36;44mI'm blue, da ba dee da ba doo...\u{1b}[0m", "I'm blue, da ba dee da ba doo..."),
            ("ﬂuﬃeﬆ", "fluffiest"),
            ("Ｕﾀｰﾝ", "Uターン"),
        ];
        for (text, expected) in cases {
            assert_eq!(fix_text(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_tag_keeps_references_from_its_line_on() {
        assert_eq!(fix_text("&amp;\n<b>&amp;\n&amp;"), "&\n<b>&amp;\n&amp;");
    }

    #[test]
    fn nesting_beyond_the_bound_is_left() {
        let nested = |depth: usize| format!("&{}", "amp;".repeat(depth));
        assert_eq!(fix_text(&nested(MAX_PASSES - 1)), "&");
        assert_eq!(fix_text(&nested(MAX_PASSES + 10)), nested(10));
    }

    #[test]
    fn long_lines_are_cut() {
        let text = "é".repeat(MAX_SEGMENT_CHARS + 1);
        let lengths: Vec<usize> = segments(&text).map(|segment| segment.chars().count()).collect();
        assert_eq!(lengths, [MAX_SEGMENT_CHARS, 1]);
        assert_eq!(segments("").count(), 0);
        assert_eq!(segments("a\n\nb").collect::<Vec<_>>(), ["a\n", "\n", "b"]);
    }

    proptest! {
        #[test]
        fn any_text_is_taken(text in any::<String>()) {
            prop_assert!(fix_text(&text).len() <= 4 * text.len());
        }

        /// Wrongly decoded text of any kind, several layers deep, with some of it cut away.
        #[test]
        fn any_mojibake_is_taken(
            text in r"[a-zà-ÿœ‘-”一-丐😀-😂 ]{0,24}",
            layers in proptest::collection::vec(0..charmap::NUM_CHARMAPS, 0..5),
            (start, end) in (0..64_usize, 0..400_usize),
        ) {
            let broken = layers.iter().fold(text, |text, &index| charmap::Charmap::all()[index].decode(text.as_bytes()));
            let broken: String = broken.chars().skip(start).take(end).collect();
            prop_assert!(fix_text(&broken).len() <= 4 * broken.len());
        }
    }
}
