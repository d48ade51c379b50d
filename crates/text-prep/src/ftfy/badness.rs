//! The heuristic that says whether a text holds mojibake: sequences of characters that wrong decoding makes often and
//! people hardly ever write.

use std::collections::HashMap;
use std::sync::LazyLock;

use regex::Regex;

/// A set of characters.
#[derive(Debug)]
pub(super) struct CharSet {
    /// First and last of each range, in order and apart from each other.
    ranges: Vec<(char, char)>,
}

impl CharSet {
    /// The set that `notation` lists, in which `a-z` is a range.
    pub(super) fn parse(notation: &str) -> Self {
        let mut ranges = Vec::new();
        let mut rest = notation.chars().peekable();
        while let Some(first) = rest.next() {
            let mut last = first;
            if rest.next_if_eq(&'-').is_some() {
                last = rest.next().expect("a range of the constants has an end");
            }
            ranges.push((first, last));
        }
        ranges.sort_unstable();
        // A range may hold characters that are also listed one by one.
        ranges.dedup_by(|next, kept| {
            let overlaps = next.0 <= kept.1;
            if overlaps {
                kept.1 = kept.1.max(next.1);
            }
            overlaps
        });
        Self { ranges }
    }

    pub(super) fn has(&self, character: char) -> bool {
        let num_before = self.ranges.partition_point(|&(first, _)| first <= character);
        num_before > 0 && character <= self.ranges[num_before - 1].1
    }
}

/// Classes of characters, as bits. Source: the categories of `ftfy.badness` 6.3.1.
mod class {
    pub(super) const COMMON: u32 = 1;
    pub(super) const C1: u32 = 1 << 1;
    pub(super) const BAD: u32 = 1 << 2;
    pub(super) const LAW: u32 = 1 << 3;
    pub(super) const CURRENCY: u32 = 1 << 4;
    pub(super) const START: u32 = 1 << 5;
    pub(super) const END: u32 = 1 << 6;
    pub(super) const NUMERIC: u32 = 1 << 7;
    pub(super) const KAOMOJI: u32 = 1 << 8;
    pub(super) const UPPER: u32 = 1 << 9;
    pub(super) const LOWER: u32 = 1 << 10;
    pub(super) const UPPER_COMMON: u32 = 1 << 11;
    pub(super) const LOWER_COMMON: u32 = 1 << 12;
    pub(super) const BOX: u32 = 1 << 13;
    pub(super) const ASCII_UPPER: u32 = 1 << 14;
    pub(super) const ASCII_LOWER: u32 = 1 << 15;
}
use class::{
    ASCII_LOWER, ASCII_UPPER, BAD, BOX, C1, COMMON, CURRENCY, END, KAOMOJI, LAW, LOWER, LOWER_COMMON,
    NUMERIC, START, UPPER, UPPER_COMMON,
};

const ACCENTED: u32 = LOWER | UPPER;
const ASCII_LETTER: u32 = ASCII_LOWER | ASCII_UPPER;

/// Characters of each class. No-break space, soft hyphen, middle dot, acute, dashes, ellipsis and the right single
/// quote are common in good text; accented letters are those whose UTF-8 bytes come from another single-byte reading.
const MEMBERS: [(u32, &str); 16] = [
    (COMMON, "\u{a0}\u{ad}·´–—―…’"),
    (C1, "\u{80}-\u{9f}"),
    (BAD, "¦¤¨¬¯¸ƒˆˇ˘˛˜†‡‰⌐◊\u{fffd}ªº"),
    (LAW, "¶§"),
    (CURRENCY, "¢£¥₧€"),
    (START, "¡«¿©΄΅‘‚“„•‹\u{f8ff}"),
    (END, "®»˝”›™"),
    (NUMERIC, "²³¹±¼½¾×µ÷⁄∂∆∏∑√∞∩∫≈≠≡≤≥№"),
    (KAOMOJI, "Ò-ÖÙ-Üò-öø-üŐŌŪŲ°"),
    (UPPER, "À-ÑØÜÝĂĀĄĆČĎĐĘĚĒĖĞĢİĪĶĹĽŁĻŃŇŅŒŘŚŞŠŢŤŮŰŸŹŻŽҐ"),
    (LOWER, "ßà-ñăąāćčďđęěēėğģįīķĺľłļœŕśşšťüźżžґﬁﬂ"),
    (UPPER_COMMON, "ÞΑ-ΩΆΈΉΊΌΎΏΪΫЁ-Я"),
    (LOWER_COMMON, "α-ωάέήίΰа-џ"),
    (BOX, "│┌┐┘├┤┬┼═-╬▀▄█▌▐░▒▓"),
    (ASCII_UPPER, "A-Z"),
    (ASCII_LOWER, "a-z"),
];

/// What one character of a sequence has to be.
#[derive(Debug, Clone, Copy)]
enum Is {
    /// In one of these classes.
    In(u32),
    /// One of these characters.
    Of(&'static str),
    /// In one of these classes or one of these characters.
    InOrOf(u32, &'static str),
    /// No ASCII letter.
    NotAsciiLetter,
    /// A letter, a number or `_`.
    Word,
    /// White space.
    Blank,
    /// Anything but a line end.
    Any,
}
use Is::{Any, Blank, In, InOrOf, NotAsciiLetter, Of, Word};

/// What stands between the letters of wrongly read Arabic, besides its first bytes.
const ARABIC_SECOND: Is = InOrOf(COMMON | CURRENCY | BAD | NUMERIC | START, " ŸŠ®°µ»");
/// Second characters of wrongly read Cyrillic and Greek.
const ALPHABET_SECOND: u32 = C1 | BAD | START | END | CURRENCY;

/// The unlikely sequences. Source: the expression of `ftfy.badness` 6.3.1.
const UNLIKELY: [&[Is]; 37] = [
    &[In(C1)],
    &[In(BAD | ACCENTED | BOX | START | END | CURRENCY | NUMERIC | LAW), In(BAD)],
    &[In(ASCII_LETTER), In(LOWER_COMMON | UPPER_COMMON), In(BAD)],
    &[In(BAD), In(ACCENTED | BOX | START | END | CURRENCY | NUMERIC | LAW)],
    &[In(LOWER | LOWER_COMMON | BOX | END | CURRENCY | NUMERIC), In(UPPER)],
    &[In(BOX | END | CURRENCY | NUMERIC), In(LOWER)],
    &[In(LOWER | BOX | END), In(CURRENCY)],
    &[Blank, In(UPPER), In(CURRENCY)],
    &[In(UPPER | BOX), In(NUMERIC | LAW)],
    &[In(ACCENTED | BOX | CURRENCY | END), In(START), In(NUMERIC)],
    &[In(ACCENTED | CURRENCY | NUMERIC | BOX | LAW), In(END), In(START)],
    &[In(CURRENCY | NUMERIC | BOX), In(START)],
    &[In(ASCII_LOWER), In(UPPER), In(START | CURRENCY)],
    &[In(BOX), In(KAOMOJI)],
    &[In(ACCENTED | CURRENCY | NUMERIC | START | END | LAW), In(BOX)],
    &[In(BOX), In(END)],
    &[In(ACCENTED), In(START | END), Word],
    // The ligature œ before anything but a plain letter.
    &[Of("Œœ"), NotAsciiLetter],
    // Degrees after a capital letter.
    &[In(UPPER), Of("°")],
    // Two characters of Windows-1252.
    &[Of("ÂÃÎÐ"), InOrOf(START | END, "€œŠš¢£Ÿž\u{a0}\u{ad}®©°·»–—´")],
    &[Of("×"), Of("²³")],
    // Arabic in Windows-1252: the second characters are common, so two of each.
    &[Of("ØÙ"), ARABIC_SECOND, Of("ØÙ"), ARABIC_SECOND],
    // South Asian scripts in Windows-1252.
    &[Of("à"), Of("²µ¹¼½¾")],
    // Mac Roman.
    &[Of("√"), Of("±∂†≠®™´≤≥¥µø")],
    &[Of("≈"), Of("°¢")],
    &[Of("‚"), Of("Ä"), Of("ìîïòôúùû†°¢π")],
    &[Of("‚"), Of("âó"), Of("àä°ê")],
    // General punctuation in Windows-1251.
    &[Of("в"), Of("Ђ")],
    // Latin-1 and Cyrillic in Windows-1251.
    &[Of("ВГРС"), InOrOf(ALPHABET_SECOND, "°µ"), Of("ВГРС")],
    // Windows-1252 in Latin-1 in Windows-1251, beside a Latin letter.
    &[Of("Г"), Of("ў"), Of("В"), Of("Ђ"), Of("В"), Any, InOrOf(ASCII_LETTER, " ")],
    // The no-break space and à, á in Windows-1252.
    &[Of("Ã"), Of("\u{a0}¡")],
    &[In(ASCII_LOWER), Of("ÃÂ"), Of(" ")],
    &[In(ASCII_LOWER), Blank, Of("ÃÂ"), Of(" ")],
    // Â before the character whose second byte it is.
    &[InOrOf(ASCII_LOWER | END, ".,?!"), Of("Â"), InOrOf(START | END, " ")],
    // General punctuation in Windows-1253.
    &[Of("β"), Of("€"), Of("™\u{a0}Ά\u{ad}®°")],
    // Latin-1 and Greek in Windows-1253.
    &[Of("ΒΓΞΟ"), InOrOf(ALPHABET_SECOND, "°"), Of("ΒΓΞΟ")],
    // General punctuation in Windows-1257.
    &[Of("ā"), Of("€")],
];

/// Whether `text` likely holds mojibake (`ftfy.badness.is_bad`).
pub(super) fn looks_bad(text: &str) -> bool {
    let begins_bad = text.starts_with(['Ã', 'Â']) && text[2..].starts_with(' ');
    let characters: Vec<char> = text.chars().collect();
    begins_bad || (0..characters.len()).any(|start| is_unlikely(&characters[start..]))
}

/// Whether an unlikely sequence begins with the first of `characters`.
fn is_unlikely(characters: &[char]) -> bool {
    // The sequences with most ASCII have none but their first two characters.
    if characters.iter().take(3).all(char::is_ascii) {
        return false;
    }
    UNLIKELY.iter().any(|sequence| {
        sequence.len() <= characters.len()
            && sequence.iter().zip(characters).all(|(piece, &character)| piece.fits(character))
    })
}

impl Is {
    fn fits(self, character: char) -> bool {
        match self {
            In(classes) => classes_of(character) & classes != 0,
            Of(list) => list.contains(character),
            InOrOf(classes, list) => classes_of(character) & classes != 0 || list.contains(character),
            NotAsciiLetter => !character.is_ascii_alphabetic(),
            Word => is_word(character),
            // Python also counts the separators of ASCII.
            Blank => character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character),
            Any => character != '\n',
        }
    }
}

fn classes_of(character: char) -> u32 {
    static CLASSES: LazyLock<HashMap<char, u32>> = LazyLock::new(|| {
        let mut classes = HashMap::new();
        for (class, members) in MEMBERS {
            for (first, last) in CharSet::parse(members).ranges {
                for character in first..=last {
                    *classes.entry(character).or_default() |= class;
                }
            }
        }
        classes
    });
    CLASSES.get(&character).copied().unwrap_or(0)
}

/// Python's `\w`: letters and numbers of every kind and `_`, but no marks.
fn is_word(character: char) -> bool {
    static WORD: LazyLock<Regex> =
        LazyLock::new(|| Regex::new(r"^[\p{L}\p{N}_]").expect("the pattern is a constant"));
    WORD.is_match(character.encode_utf8(&mut [0; 4]))
}
