//! Answers as numbers.

use oqvl_shard_io::score_in_answer;

/// Scores go from 0 to this: the prompts ask for an integer between 0 and 100.
pub const MAX_SCORE: u32 = 100;

/// The score an answer begins with ([`score_in_answer`]), from 0 to [`MAX_SCORE`]. `None` if it is anything else: a number
/// beyond is no answer to the prompt. The baselines of the mixer, which equal the reference's, take any integer.
#[must_use]
pub fn parse_score(answer: &str) -> Option<u32> {
    score_in_answer(answer, 0.0..=f64::from(MAX_SCORE)).map(|score| score as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_and_their_scores() {
        for (answer, score) in [
            ("85", Some(85)),
            (" 7 ", Some(7)),
            ("90;,", Some(90)),
            ("+12", Some(12)),
            // As Python reads integers.
            ("1_0", Some(10)),
            ("100", Some(100)),
            ("0", Some(0)),
            ("101", None),
            ("-3", None),
            ("8.5", None),
            ("high", None),
        ] {
            assert_eq!(parse_score(answer), score, "{answer:?}");
        }
    }
}
