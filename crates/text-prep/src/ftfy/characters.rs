//! The fixes that look at single characters, and the ones of line ends and control characters.

use std::sync::LazyLock;

use icu_normalizer::ComposingNormalizerBorrowed;
use regex::Regex;

use super::charmap::Charmap;

/// C1 control characters, Latin ligatures, character width and curly quotes, in this order: each may give what the
/// next one changes.
pub(super) fn fix_each(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii() {
            fixed.push(character);
            continue;
        }
        let character = windows_1252_of_c1(character);
        match ligature(character) {
            Some(letters) => letters.chars().for_each(|letter| fixed.push(straight_quote(letter))),
            None => push_normal_width(character, &mut fixed),
        }
    }
    fixed
}

/// A C1 control character as what its number is in Windows-1252, as browsers do; any other character unchanged.
pub(crate) fn windows_1252_of_c1(character: char) -> char {
    match character {
        '\u{80}'..='\u{9f}' => Charmap::windows_1252().character(character as u8),
        other => other,
    }
}

fn ligature(character: char) -> Option<&'static str> {
    Some(match character {
        'Ĳ' => "IJ",
        'ĳ' => "ij",
        'ŉ' => "ʼn",
        'Ǳ' => "DZ",
        'ǲ' => "Dz",
        'ǳ' => "dz",
        'Ǆ' => "DŽ",
        'ǅ' => "Dž",
        'ǆ' => "dž",
        'Ǉ' => "LJ",
        'ǈ' => "Lj",
        'ǉ' => "lj",
        'Ǌ' => "NJ",
        'ǋ' => "Nj",
        'ǌ' => "nj",
        'ﬀ' => "ff",
        'ﬁ' => "fi",
        'ﬂ' => "fl",
        'ﬃ' => "ffi",
        'ﬄ' => "ffl",
        'ﬅ' => "ſt",
        'ﬆ' => "st",
        _ => return None,
    })
}

/// Full-width and half-width forms as their compatibility decomposition, and the ideographic space as a blank.
fn push_normal_width(character: char, fixed: &mut String) {
    match character {
        '\u{3000}' => fixed.push(' '),
        '\u{ff01}'..='\u{ffef}' => {
            let form = ComposingNormalizerBorrowed::new_nfkc();
            fixed.push_str(&form.normalize(character.encode_utf8(&mut [0; 4])));
        }
        other => fixed.push(straight_quote(other)),
    }
}

fn straight_quote(character: char) -> char {
    match character {
        'ʼ' | '‘'..='‛' => '\'',
        '“'..='‟' => '"',
        other => other,
    }
}

/// All line ends as `\n`.
pub(super) fn fix_line_breaks(text: &str) -> String {
    text.replace("\r\n", "\n").replace(['\r', '\u{2028}', '\u{2029}', '\u{85}'], "\n")
}

/// Without "ANSI" escapes, such as those for colours.
pub(super) fn remove_terminal_escapes(text: &str) -> String {
    // `\d` are the digits of every script, as in Python.
    static ESCAPE: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"\x1b\[[\d;]*[a-zA-Z]").expect("the pattern is a constant"));
    ESCAPE.replace_all(text, "").into_owned()
}

/// Without control characters that change nothing one sees: ASCII's except white space, the deprecated ones of Arabic,
/// interlinear annotation, the object replacement character and the byte order mark.
pub(super) fn remove_controls(text: &str) -> String {
    let is_removed = |character: char| {
        matches!(
            character,
            '\0'..='\u{8}'
                | '\u{b}'
                | '\u{e}'..='\u{1f}'
                | '\u{7f}'
                | '\u{206a}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffc}'
        )
    };
    text.chars().filter(|&character| !is_removed(character)).collect()
}
