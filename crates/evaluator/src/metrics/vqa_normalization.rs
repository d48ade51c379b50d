//! How the VQA scorers write an answer before comparing it.
//!
//! Source: `processPunctuation` and `processDigitArticle` in `vqaEval.py` of GT-Vision-Lab/VQA, which the reference
//! harness copies. The oddities are kept, because published scores contain them: a punctuation mark is judged by the
//! *original* text, a comma between any two digits deletes every mark of the text, and the look-behind that should protect
//! decimal points is mistyped, so a full stop goes away unless a digit follows.

use super::contractions::CONTRACTIONS;

/// Marks that are deleted or become a blank.
const MARKS: [char; 21] = [
    ';', '/', '[', ']', '"', '{', '}', '(', ')', '=', '+', '\\', '_', '-', '>', '<', '@', '`', ',', '?', '!',
];

/// The official script passes a regular-expression flag (value 32) where the number of replacements belongs.
const MAX_FULL_STOPS_REMOVED: usize = 32;

/// Number words, by value.
const NUMBER_WORDS: [(&str, &str); 12] = [
    ("none", "0"),
    ("zero", "0"),
    ("one", "1"),
    ("two", "2"),
    ("three", "3"),
    ("four", "4"),
    ("five", "5"),
    ("six", "6"),
    ("seven", "7"),
    ("eight", "8"),
    ("nine", "9"),
    ("ten", "10"),
];

/// The full pipeline a *prediction* goes through: white space, punctuation, lower case, number words, articles,
/// contractions; words joined by one blank.
///
/// ```
/// use oqvl_evaluator::metrics::normalize_answer;
/// assert_eq!(normalize_answer("The cat's hat"), "cat's hat");
/// assert_eq!(normalize_answer("1,000"), "1000");
/// assert_eq!(normalize_answer("(none)"), "0");
/// ```
pub fn normalize_answer(text: &str) -> String {
    let spaced = text.replace(['\n', '\t'], " ");
    let stripped = strip_punctuation(spaced.trim()).to_lowercase();
    let words: Vec<&str> = stripped
        .split_whitespace()
        .map(|word| lookup(&NUMBER_WORDS, word))
        .filter(|word| !matches!(*word, "a" | "an" | "the"))
        .map(|word| lookup(&CONTRACTIONS, word))
        .collect();
    words.join(" ")
}

/// The punctuation step alone, which is all the reference applies to *ground truths*.
///
/// Each mark is deleted if it stands next to a blank somewhere in `text`, or if `text` has a comma between two digits
/// anywhere; otherwise it becomes a blank. Then full stops that no digit follows are removed, the first 32 of them.
/// Case and resulting blanks are left alone. Digits are ASCII digits.
pub fn strip_punctuation(text: &str) -> String {
    let delete_all = has_comma_between_digits(text);
    let is_deleted: Vec<bool> = MARKS
        .iter()
        .map(|mark| delete_all || text.contains(&format!("{mark} ")) || text.contains(&format!(" {mark}")))
        .collect();
    let mut stripped = String::with_capacity(text.len());
    for character in text.chars() {
        match MARKS.iter().position(|mark| *mark == character) {
            None => stripped.push(character),
            Some(mark_idx) if is_deleted[mark_idx] => {}
            Some(_) => stripped.push(' '),
        }
    }
    remove_full_stops(&stripped)
}

fn has_comma_between_digits(text: &str) -> bool {
    text.as_bytes().windows(3).any(|w| w[0].is_ascii_digit() && w[1] == b',' && w[2].is_ascii_digit())
}

fn remove_full_stops(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    let mut num_removed = 0;
    let mut rest = text.chars().peekable();
    while let Some(character) = rest.next() {
        let before_digit = rest.peek().is_some_and(char::is_ascii_digit);
        if character == '.' && !before_digit && num_removed < MAX_FULL_STOPS_REMOVED {
            num_removed += 1;
        } else {
            kept.push(character);
        }
    }
    kept
}

fn lookup<'a>(table: &[(&str, &'static str)], word: &'a str) -> &'a str {
    table.iter().find(|(key, _)| *key == word).map_or(word, |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        assert_eq!(normalize_answer(text), expected, "of {text:?}");
    }

    #[test]
    fn check_values_of_the_reference() {
        check("don't know", "don't know");
        check("U.S.A.", "usa");
        check("1,000", "1000");
        check("top-left", "top left");
        check("(none)", "0");
        check("www.foo.com", "wwwfoocom");
        check("it's 5.30", "it's 5.30");
        check("the cat's hat", "cat's hat");
        check("dont", "don't");
    }

    #[test]
    fn edges() {
        check("", "");
        check(" \n\t", "");
        check("the", "");
        check(".", "");
        check(".5", ".5");
        check("3.", "3");
        check("a, b", "b");
        check("Ten apples", "10 apples");
        check("somebody'd", "somebodyd");
        check("1,2 a-b", "12 ab"); // The comma between digits deletes the hyphen as well.
    }

    #[test]
    fn only_32_full_stops_go() {
        assert_eq!(strip_punctuation(&".".repeat(40)), ".".repeat(8));
    }

    #[test]
    fn punctuation_step_leaves_case_and_articles() {
        assert_eq!(strip_punctuation("The U.S."), "The US");
        assert_eq!(strip_punctuation("top-left"), "top left");
    }

    /// A second pass changes nothing, except where the first one made a new word of the tables appear.
    #[test]
    fn settles_on_plain_words() {
        for text in ["Red Car", "2 dogs", "dont", "blue/green", "half-past", "6:30"] {
            let once = normalize_answer(text);
            assert_eq!(normalize_answer(&once), once);
        }
    }
}
