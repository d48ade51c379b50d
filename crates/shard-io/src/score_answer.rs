//! Scores in the answers of a language model.

use std::ops::RangeBounds;

/// The score an answer begins with: what stands before the first newline, without commas and then semicolons at its ends,
/// as an integer within `accepted`. `None` if it is anything else.
///
/// An integer is what Python's `int` takes, but for digits other than ASCII: blanks around it, a sign, single underscores
/// between digits. The prompts of MLM-Filter ask for 0 to 100; the reference takes any integer.
///
/// Source: `apply_filter.py` of the reference.
///
/// ```
/// use oqvl_shard_io::score_in_answer;
/// assert_eq!(score_in_answer("120\nA fine caption", ..), Some(120.0));
/// assert_eq!(score_in_answer("120\nA fine caption", 0.0..=100.0), None);
/// ```
#[must_use]
pub fn score_in_answer(answer: &str, accepted: impl RangeBounds<f64>) -> Option<f64> {
    let line = answer.split('\n').next().unwrap_or_default();
    let number = line.trim_matches(',').trim_matches(';').trim();
    let (sign, digits) = match number.strip_prefix('-') {
        Some(digits) => (-1.0, digits),
        None => (1.0, number.strip_prefix('+').unwrap_or(number)),
    };
    let parts_are_digits =
        digits.split('_').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if !parts_are_digits {
        return None;
    }
    let score = sign * digits.replace('_', "").parse::<f64>().ok()?;
    accepted.contains(&score).then_some(score)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_the_reference_reads_them() {
        for (answer, expected) in [
            ("85", Some(85.0)),
            ("85\nbecause", Some(85.0)),
            ("5\n", Some(5.0)),
            (" 85 ", Some(85.0)),
            ("85,", Some(85.0)),
            ("85;,", Some(85.0)),
            (",;85", Some(85.0)),
            // Commas are stripped before semicolons, so this comma stays.
            ("85,;", None),
            ("+7", Some(7.0)),
            ("-7", Some(-7.0)),
            ("101", Some(101.0)),
            ("1_0", Some(10.0)),
            ("1__0", None),
            ("_1", None),
            ("", None),
            ("\n85", None),
            ("85.", None),
            ("85.0", None),
            ("1e2", None),
            ("- 7", None),
            ("inf", None),
            ("eighty", None),
        ] {
            assert_eq!(score_in_answer(answer, ..), expected, "{answer:?}");
        }
    }

    #[test]
    fn a_range_has_both_its_ends() {
        let read = |answer: &str| score_in_answer(answer, 0.0..=100.0);
        assert_eq!((read("0"), read("-0"), read("100")), (Some(0.0), Some(0.0), Some(100.0)));
        assert_eq!((read("101"), read("-1"), read("1_0")), (None, None, Some(10.0)));
    }
}
