//! From what a model wrote to the answer it meant.
//!
//! The rules are strict and deterministic: no judge model, no random guess where nothing is found, no substring matches
//! inside words. An answer that cannot be read is `None`, which every metric counts as wrong.

use serde::Serialize;

/// A yes/no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum YesNo {
    /// "yes"
    Yes,
    /// "no"
    No,
}

impl YesNo {
    /// Reads a ground-truth label: `yes` or `no`, in any case.
    pub fn from_label(label: &str) -> Option<Self> {
        match label.trim().to_lowercase().as_str() {
            "yes" => Some(Self::Yes),
            "no" => Some(Self::No),
            _ => None,
        }
    }

    /// `yes` or `no`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
        }
    }
}

/// The first word of `text` that is "yes" or "no", in any case.
///
/// ```
/// use oqvl_evaluator::extraction::{YesNo, extract_yes_no};
/// assert_eq!(extract_yes_no("No, there is none."), Some(YesNo::No));
/// assert_eq!(extract_yes_no("I do not know"), None);
/// ```
pub fn extract_yes_no(text: &str) -> Option<YesNo> {
    words(text).find_map(|word| YesNo::from_label(word.text))
}

/// POPE's own rule: of the text before the first full stop, without commas and split at blanks, any of the words `No`,
/// `not`, `no` means no; everything else, the empty text included, means yes.
///
/// Source: `evaluate.py` of AoiDragon/POPE.
pub fn pope_official_yes_no(text: &str) -> YesNo {
    let sentence = text.split('.').next().unwrap_or_default().replace(',', "");
    let says_no = sentence.split(' ').any(|word| matches!(word, "No" | "not" | "no"));
    if says_no { YesNo::No } else { YesNo::Yes }
}

/// The reference harness's rule for POPE: commas, then full stops are stripped from both ends, the rest is lower-cased
/// and must be exactly `yes` or `no`.
pub fn pope_reference_yes_no(text: &str) -> Option<YesNo> {
    match text.trim_matches(',').trim_matches('.').to_lowercase().as_str() {
        "yes" => Some(YesNo::Yes),
        "no" => Some(YesNo::No),
        _ => None,
    }
}

/// How an option letter was found, strongest evidence first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum LetterRule {
    /// The letter is all there is, but for punctuation: `B`, `b.`, `(B)`.
    WholeAnswer,
    /// The letter follows "answer", "answer is" or "option is": the last such place, where reasoning ends.
    AnswerPhrase,
    /// The text opens with the letter and a delimiter: `B. a cat`, `(B) a cat`, `b: cat`.
    Leading,
    /// The first capital letter that stands alone. An "A" or "I" before a lower-case word is taken for the article or
    /// pronoun it mostly is.
    Standalone,
    /// The text of exactly one option occurs in the answer, at word boundaries and in any case.
    OptionText,
}

/// A letter and the rule that found it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ExtractedLetter {
    /// The letter of one of the options.
    pub letter: char,
    /// The rule that fired.
    pub rule: LetterRule,
}

/// Reads a multiple-choice answer; `options` are `(letter, text)` with capital letters.
///
/// The rules of [`LetterRule`] are tried in their order. Letters that no option has are ignored.
///
/// ```
/// use oqvl_evaluator::extraction::{LetterRule, extract_letter};
/// let options = [('A', "dog".to_owned()), ('B', "cat".to_owned())];
/// let found = extract_letter("It is a cat.", &options).unwrap();
/// assert_eq!((found.letter, found.rule), ('B', LetterRule::OptionText));
/// assert_eq!(extract_letter("none of these", &options), None);
/// ```
pub fn extract_letter(text: &str, options: &[(char, String)]) -> Option<ExtractedLetter> {
    let words: Vec<Word<'_>> = words(text).collect();
    let found = |rule| move |letter| ExtractedLetter { letter, rule };
    whole_answer(&words, options)
        .map(found(LetterRule::WholeAnswer))
        .or_else(|| answer_phrase(&words, options).map(found(LetterRule::AnswerPhrase)))
        .or_else(|| leading(text, &words, options).map(found(LetterRule::Leading)))
        .or_else(|| standalone(text, &words, options).map(found(LetterRule::Standalone)))
        .or_else(|| option_text(text, options).map(found(LetterRule::OptionText)))
}

/// A maximal run of letters and digits (apostrophes inside belong to it), and the byte range it covers.
#[derive(Debug, Clone, Copy)]
struct Word<'a> {
    text: &'a str,
    start: usize,
    end: usize,
}

fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let is_part = |character: char| character.is_alphanumeric() || character == '\'' || character == '’';
    let mut position = 0;
    std::iter::from_fn(move || {
        loop {
            let start = position + text[position..].find(is_part)?;
            let end = text[start..].find(|c| !is_part(c)).map_or(text.len(), |length| start + length);
            position = end;
            let bare = text[start..end].trim_matches(['\'', '’']);
            if !bare.is_empty() {
                let start = start + text[start..end].find(bare).unwrap_or(0);
                return Some(Word { text: bare, start, end: start + bare.len() });
            }
        }
    })
}

/// The option letter that is all of `word`, whatever its case.
fn option_letter(word: &str, options: &[(char, String)]) -> Option<char> {
    let mut characters = word.chars();
    let letter = characters.next()?.to_ascii_uppercase();
    (characters.next().is_none() && options.iter().any(|(option, _)| *option == letter)).then_some(letter)
}

/// As [`option_letter`], but only a capital counts.
fn capital_option_letter(word: &str, options: &[(char, String)]) -> Option<char> {
    option_letter(word, options).filter(|letter| word.starts_with(*letter))
}

fn whole_answer(words: &[Word<'_>], options: &[(char, String)]) -> Option<char> {
    match words {
        [only] => option_letter(only.text, options),
        _ => None,
    }
}

fn answer_phrase(words: &[Word<'_>], options: &[(char, String)]) -> Option<char> {
    let is = |idx: usize, expected: &[&str]| {
        words.get(idx).is_some_and(|word| expected.iter().any(|e| word.text.eq_ignore_ascii_case(e)))
    };
    (0..words.len()).rev().find_map(|idx| {
        let letter_idx = match () {
            () if is(idx, &["answer", "option", "choice"]) && is(idx + 1, &["is"]) => idx + 2,
            () if is(idx, &["answer"]) => idx + 1,
            () => return None,
        };
        capital_option_letter(words.get(letter_idx)?.text, options)
    })
}

fn leading(text: &str, words: &[Word<'_>], options: &[(char, String)]) -> Option<char> {
    let first = words.first()?;
    let letter = option_letter(first.text, options)?;
    let before = text[..first.start].trim_start();
    let after = text[first.end..].chars().next();
    let delimited = matches!(after, Some('.' | ')' | ':' | ']')) || (before == "**" && after == Some('*'));
    delimited.then_some(letter)
}

fn standalone(text: &str, words: &[Word<'_>], options: &[(char, String)]) -> Option<char> {
    words
        .iter()
        .filter(|word| !reads_as_article(text, word))
        .find_map(|word| capital_option_letter(word.text, options))
}

/// Whether `word` is an "A" or "I" directly followed by a blank and a lower-case word.
fn reads_as_article(text: &str, word: &Word<'_>) -> bool {
    let mut after = text[word.end..].chars();
    matches!(word.text, "A" | "I")
        && after.next() == Some(' ')
        && after.next().is_some_and(char::is_lowercase)
}

fn option_text(text: &str, options: &[(char, String)]) -> Option<char> {
    let answer = spaced_words(text);
    let mentioned: Vec<(char, String)> = options
        .iter()
        .map(|(letter, option)| (*letter, spaced_words(option)))
        .filter(|(_, option)| option.len() > 1 && answer.contains(option.as_str()))
        .collect();
    // "red" is no second mention where "dark red" is the one meant.
    let mut outermost = mentioned.iter().filter(|(_, option)| {
        !mentioned.iter().any(|(_, other)| other != option && other.contains(option.as_str()))
    });
    match (outermost.next(), outermost.next()) {
        (Some((letter, _)), None) => Some(*letter),
        _ => None,
    }
}

/// The lower-cased words of `text`, each with a blank on both sides, so that `contains` respects word boundaries.
fn spaced_words(text: &str) -> String {
    let mut spaced = String::from(" ");
    for word in words(text) {
        spaced.push_str(&word.text.to_lowercase());
        spaced.push(' ');
    }
    spaced
}

#[cfg(test)]
mod tests {
    use super::*;

    fn animals() -> Vec<(char, String)> {
        [('A', "dog"), ('B', "cat"), ('C', "bird"), ('D', "fish")].map(|(l, t)| (l, t.to_owned())).to_vec()
    }

    fn check(text: &str, expected: Option<(char, LetterRule)>) {
        let found = extract_letter(text, &animals()).map(|found| (found.letter, found.rule));
        assert_eq!(found, expected, "of {text:?}");
    }

    #[test]
    fn letters() {
        use LetterRule::*;
        check("A", Some(('A', WholeAnswer)));
        check("b", Some(('B', WholeAnswer)));
        check(" (C).\n", Some(('C', WholeAnswer)));
        check("**D**", Some(('D', WholeAnswer)));
        check("'A'", Some(('A', WholeAnswer)));
        check("B. cat", Some(('B', Leading)));
        check("a) dog", Some(('A', Leading)));
        check("(C) bird", Some(('C', Leading)));
        check("The correct answer is **B**. It is large.", Some(('B', AnswerPhrase)));
        check("A: no, B: no. Answer: D", Some(('D', AnswerPhrase)));
        check("the answer is A because a cat sits there", Some(('A', AnswerPhrase)));
        check("The best option is C: bird", Some(('C', AnswerPhrase)));
        check("I would say B, maybe C", Some(('B', Standalone)));
        check("Figure A shows a dog so B", Some(('B', Standalone)));
        check("B", Some(('B', WholeAnswer)));
    }

    #[test]
    fn option_texts() {
        use LetterRule::*;
        check("It is a cat", Some(('B', OptionText)));
        check("A dog is in the picture", Some(('A', OptionText)));
        check("FISH!", Some(('D', OptionText)));
        check("the cat and the dog", None);
        check("catalogue", None);
        let colors = [('A', "red".to_owned()), ('B', "dark red".to_owned()), ('C', String::new())];
        let found = extract_letter("a dark red ball", &colors).unwrap();
        assert_eq!((found.letter, found.rule), ('B', OptionText));
        assert_eq!(extract_letter("a red ball", &colors).unwrap().letter, 'A');
    }

    #[test]
    fn nothing_to_read() {
        for text in
            ["", " \n", "...", "E", "Z", "ABCD", "None of the above", "I cannot determine the answer", "'"]
        {
            check(text, None);
        }
        assert_eq!(extract_letter("A", &[]), None);
    }

    #[test]
    fn words_keep_byte_positions_in_any_script() {
        for text in ["é A", "'B' ’C’", "日本語 D。", "don't"] {
            for word in words(text) {
                assert_eq!(&text[word.start..word.end], word.text);
            }
        }
        assert_eq!(words("don't").count(), 1);
    }

    #[test]
    fn yes_and_no() {
        assert_eq!(extract_yes_no("Yes."), Some(YesNo::Yes));
        assert_eq!(extract_yes_no("The image does not show it. YES"), Some(YesNo::Yes));
        assert_eq!(extract_yes_no("nothing"), None);
        assert_eq!(extract_yes_no(""), None);
        assert_eq!(pope_official_yes_no(""), YesNo::Yes);
        assert_eq!(pope_official_yes_no("NO"), YesNo::Yes);
        assert_eq!(pope_official_yes_no("Yes, no doubt"), YesNo::No);
        assert_eq!(pope_reference_yes_no("No,"), Some(YesNo::No));
        assert_eq!(pope_reference_yes_no("yes, there is"), None);
    }
}
