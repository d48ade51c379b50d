//! The mean of the score under the model's own distribution.

use crate::MlmFilterError;
use crate::score::MAX_SCORE;
use oqvl_model::{Prompt, Vlm, single_tokens};
use oqvl_text_prep::Tokenizer;

/// Prompts whose logits are in memory at a time: 192 rows of Qwen's vocabulary are 115 MB.
const PROMPTS_AT_ONCE: usize = 16;
/// What is asked of the model about one prompt: the token after it, after each first digit, and after `10`.
const NUM_QUESTIONS: usize = 12;
/// Tokens of the longest question after the prompt: those of `10`.
pub(crate) const MAX_ADDED_TOKENS: usize = 2;

/// Reads numbers off the distribution of the next token.
#[derive(Debug)]
pub(crate) struct Expectation {
    /// Token ids of the ten digits.
    digits: Vec<i64>,
}

impl Expectation {
    /// # Errors
    /// If a digit is not one token.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Result<Self, MlmFilterError> {
        let texts: Vec<String> = (0..10).map(|digit| digit.to_string()).collect();
        Ok(Self { digits: single_tokens(tokenizer, &texts)? })
    }

    /// The mean score of every prompt, or none where no digit can follow.
    ///
    /// The numbers are those of answers that begin with a digit, read as long as the number stays at most 100; nothing is
    /// read after a first 0. All digits are tokens of their own, so this is exact: see [`mean`].
    pub(crate) fn scores(&self, vlm: &Vlm, prompts: &[Prompt]) -> Result<Vec<Option<f64>>, MlmFilterError> {
        let mut scores = Vec::with_capacity(prompts.len());
        for prompts in prompts.chunks(PROMPTS_AT_ONCE) {
            let questions: Vec<Prompt> = prompts.iter().flat_map(|prompt| self.questions(prompt)).collect();
            let answers: Vec<[f64; 10]> = vlm
                .next_token_logits(&questions)?
                .iter()
                .map(|logits| self.digit_probabilities(logits))
                .collect();
            scores.extend(answers.chunks_exact(NUM_QUESTIONS).map(mean));
        }
        Ok(scores)
    }

    /// The prompt alone, with each digit, and with `10`. All begin alike, so the model reads the prompt once.
    fn questions(&self, prompt: &Prompt) -> impl Iterator<Item = Prompt> {
        let followed_by = |ids: &[i64]| {
            let mut prompt = prompt.clone();
            prompt.input_ids.extend(ids);
            prompt
        };
        let mut questions = vec![followed_by(&[])];
        questions.extend(self.digits.iter().map(|&digit| followed_by(&[digit])));
        questions.push(followed_by(&[self.digits[1], self.digits[0]]));
        questions.into_iter()
    }

    /// How probable each digit is among all tokens.
    fn digit_probabilities(&self, logits: &[f32]) -> [f64; 10] {
        let max = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let total: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        std::array::from_fn(|digit| {
            let logit = usize::try_from(self.digits[digit]).ok().and_then(|id| logits.get(id));
            logit.map_or(0.0, |&logit| (f64::from(logit) - max).exp() / total)
        })
    }
}

/// The mean of the numbers 0 to 100 by the probabilities of the digits after nothing, after each first digit, and after 10.
///
/// A number of one digit is one that no digit follows; 10 is one that no 0 follows, which makes it 100.
fn mean(answers: &[[f64; 10]]) -> Option<f64> {
    let (first, second, after_ten) = (answers[0], &answers[1..11], answers[11]);
    let (mut total, mut sum) = (0.0, 0.0);
    let mut add = |number: usize, probability: f64| {
        total += probability;
        sum += probability * number as f64;
    };
    add(0, first[0]);
    for digit in 1..10 {
        add(digit, first[digit] * (1.0 - second[digit].iter().sum::<f64>()).max(0.0));
        for (next, probability) in second[digit].iter().enumerate() {
            let (number, both) = (10 * digit + next, first[digit] * probability);
            let hundred = if number == 10 { after_ten[0] } else { 0.0 };
            add(number, both * (1.0 - hundred));
            add(MAX_SCORE as usize, both * hundred);
        }
    }
    (total > 0.0).then(|| sum / total).filter(|mean| mean.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(set: &[(usize, usize, f64)]) -> Vec<[f64; 10]> {
        let mut answers = vec![[0.0; 10]; NUM_QUESTIONS];
        for &(question, digit, probability) in set {
            answers[question][digit] = probability;
        }
        answers
    }

    #[test]
    fn means_by_hand() {
        // 85 or 95, with nothing else.
        let sure = answers(&[(0, 8, 0.5), (0, 9, 0.5), (9, 5, 1.0), (10, 5, 1.0)]);
        assert_eq!(mean(&sure), Some(90.0));
        // 7 alone, though a word is more probable than a number.
        assert_eq!(mean(&answers(&[(0, 7, 0.1)])), Some(7.0));
        // 1, 10 and 100: 1 is followed by 0 half the time, and that by 0 again.
        let ones = answers(&[(0, 1, 1.0), (2, 0, 0.5), (11, 0, 0.5)]);
        assert_eq!(mean(&ones), Some(0.5 + 2.5 + 25.0));
        // 0 is 0 whatever would follow; 11 followed by 0 is 11.
        assert_eq!(mean(&answers(&[(0, 0, 1.0), (1, 7, 1.0)])), Some(0.0));
        assert_eq!(mean(&answers(&[])), None);
    }
}
