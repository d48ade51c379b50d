//! Soft accuracy over several annotators (VQAv2, OK-VQA).

use super::vqa_normalization::{normalize_answer, strip_punctuation};

/// Annotators that must agree with an answer for full credit.
const FULL_CREDIT_ANNOTATORS: f64 = 3.0;

/// Which scorer's habits to follow; the formula is the same, the text cleaning is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VqaRule {
    /// Prediction and ground truths go through [`normalize_answer`]; the headline rule here, and lmms-eval's.
    Normalized,
    /// GT-Vision-Lab's `vqaEval.py`: as `Normalized`, but where all annotators agree (white space at the ends
    /// aside) nothing is normalised and the comparison is case-sensitive.
    Official,
    /// Open-Qwen2VL's harness: the prediction is normalised, ground truths get [`strip_punctuation`] only.
    Reference,
}

/// Credit of one question, in `0..=1`: the mean over annotators of `min(1, matches among the others / 3)`.
///
/// With ten annotators, an answer given by 1, 2, 3 or at least 4 of them earns 0.3, 0.6, 0.9 or 1.0. "The others" are
/// told apart by position; the official script compares whole records, which is the same as long as each carries its
/// `answer_id`. No annotator means no credit.
///
/// ```
/// use oqvl_evaluator::metrics::{VqaRule, soft_accuracy};
/// let annotators: Vec<String> = ["red"; 2].iter().chain(&["blue"; 8]).map(|a| a.to_string()).collect();
/// assert!((soft_accuracy("Red.", &annotators, VqaRule::Normalized) - 0.6).abs() < 1e-12);
/// ```
pub fn soft_accuracy(prediction: &str, annotators: &[String], rule: VqaRule) -> f64 {
    let prediction = if rule == VqaRule::Official && all_agree(annotators) {
        trim_lines(prediction)
    } else {
        normalize_answer(prediction)
    };
    let matches: Vec<bool> = match rule {
        VqaRule::Official if all_agree(annotators) => {
            annotators.iter().map(|answer| trim_lines(answer) == prediction).collect()
        }
        VqaRule::Normalized | VqaRule::Official => {
            annotators.iter().map(|answer| normalize_answer(answer) == prediction).collect()
        }
        VqaRule::Reference => {
            annotators.iter().map(|answer| strip_punctuation(answer) == prediction).collect()
        }
    };
    credit(&matches)
}

/// Whether all annotators gave the same answer, white space at its ends aside.
fn all_agree(annotators: &[String]) -> bool {
    annotators.windows(2).all(|pair| trim_lines(&pair[0]) == trim_lines(&pair[1]))
}

/// `text` on one line, without white space at its ends.
fn trim_lines(text: &str) -> String {
    text.replace(['\n', '\t'], " ").trim().to_owned()
}

/// The formula alone; `matches[i]` says whether annotator `i` gave the predicted answer.
fn credit(matches: &[bool]) -> f64 {
    if matches.is_empty() {
        return 0.0;
    }
    let total = matches.iter().filter(|matched| **matched).count();
    let sum: f64 = matches
        .iter()
        .map(|matched| ((total - usize::from(*matched)) as f64 / FULL_CREDIT_ANNOTATORS).min(1.0))
        .sum();
    sum / matches.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotators(answers: &[(&str, usize)]) -> Vec<String> {
        answers.iter().flat_map(|(answer, num)| std::iter::repeat_n((*answer).to_owned(), *num)).collect()
    }

    #[test]
    fn credit_by_number_of_agreeing_annotators() {
        for (num, expected) in [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)] {
            let answers = annotators(&[("cat", num), ("dog", 10 - num)]);
            let credit = soft_accuracy("cat", &answers, VqaRule::Normalized);
            assert!((credit - expected).abs() < 1e-12, "{num} of 10: {credit}");
        }
    }

    #[test]
    fn few_annotators() {
        assert_eq!(soft_accuracy("cat", &[], VqaRule::Official), 0.0);
        // One annotator has no others who could agree.
        assert_eq!(soft_accuracy("cat", &annotators(&[("cat", 1)]), VqaRule::Normalized), 0.0);
    }

    #[test]
    fn rules_differ_where_they_should() {
        let unanimous = annotators(&[("Two cats", 10)]);
        assert_eq!(soft_accuracy("two cats", &unanimous, VqaRule::Normalized), 1.0);
        assert_eq!(soft_accuracy("two cats", &unanimous, VqaRule::Official), 0.0);
        assert_eq!(soft_accuracy(" Two cats\n", &unanimous, VqaRule::Official), 1.0);
        assert_eq!(soft_accuracy("two cats", &unanimous, VqaRule::Reference), 0.0);
        let spaced = annotators(&[("Two cats", 5), (" Two cats", 5)]);
        assert_eq!(soft_accuracy("two cats", &spaced, VqaRule::Official), 0.0);
        let mixed = annotators(&[("The cat", 9), ("dog", 1)]);
        assert_eq!(soft_accuracy("cat", &mixed, VqaRule::Official), 1.0);
        assert_eq!(soft_accuracy("cat", &mixed, VqaRule::Reference), 0.0);
    }
}
