//! Answers as numbers.

/// Scores go from 0 to this.
pub const MAX_SCORE: u32 = 100;

/// The score an answer begins with: the first line, without commas, then semicolons, at its ends, as an integer from
/// 0 to [`MAX_SCORE`]. `None` if it is anything else.
///
/// Source: `apply_filter.py` of the reference; a number above 100, which the reference would keep, is not a score.
#[must_use]
pub fn parse_score(answer: &str) -> Option<u32> {
    let first_line = answer.split('\n').next().unwrap_or_default();
    let number = first_line.trim_matches(',').trim_matches(';').trim();
    number.parse().ok().filter(|score| *score <= MAX_SCORE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_their_scores() {
        for (answer, score) in [
            ("85", Some(85)),
            (" 7 ", Some(7)),
            ("5\n", Some(5)),
            ("90,", Some(90)),
            ("90;,", Some(90)),
            ("+12", Some(12)),
            ("100", Some(100)),
            ("0", Some(0)),
            ("101", None),
            ("-3", None),
            ("\n85", None),
            ("8.5", None),
            ("", None),
            ("high", None),
        ] {
            assert_eq!(parse_score(answer), score, "{answer:?}");
        }
    }
}
