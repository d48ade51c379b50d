//! The score in the text MLM-Filter wrote.

/// Reads the score off a model's answer as the reference does: what stands before the first newline, without commas and
/// then semicolons at its ends, as an integer; none if it is not one.
///
/// An integer is what Python's `int` takes, but for digits other than ASCII: blanks around it, a sign, single
/// underscores between digits.
pub(crate) fn parse(answer: &str) -> Option<f64> {
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
    digits.replace('_', "").parse::<f64>().ok().map(|value| sign * value)
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
            assert_eq!(parse(answer), expected, "{answer:?}");
        }
    }
}
