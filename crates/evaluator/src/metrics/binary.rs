//! The yes/no metrics of POPE.

use crate::extraction::YesNo;

/// Confusion counts of a yes/no benchmark; "yes" is the positive class.
///
/// An answer that is neither counts as not-yes: it lands in `true_negative` or `false_negative`. Whether it also counts
/// as *correct* on a "no" question differs between scorers, so accuracy is counted apart, in `correct`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BinaryCounts {
    /// Label yes, answer yes.
    pub true_positive: u64,
    /// Label no, answer yes.
    pub false_positive: u64,
    /// Label no, answer not yes.
    pub true_negative: u64,
    /// Label yes, answer not yes.
    pub false_negative: u64,
    /// Answers equal to their label.
    pub correct: u64,
}

impl BinaryCounts {
    /// Counts one question. `answer` is `None` where neither yes nor no was said.
    pub fn add(&mut self, label: YesNo, answer: Option<YesNo>) {
        let slot = match (label, answer == Some(YesNo::Yes)) {
            (YesNo::Yes, true) => &mut self.true_positive,
            (YesNo::Yes, false) => &mut self.false_negative,
            (YesNo::No, true) => &mut self.false_positive,
            (YesNo::No, false) => &mut self.true_negative,
        };
        *slot += 1;
        self.correct += u64::from(answer == Some(label));
    }

    /// Number of questions counted.
    pub fn num(&self) -> u64 {
        self.true_positive + self.false_positive + self.true_negative + self.false_negative
    }

    /// Share of answers equal to their label.
    pub fn accuracy(&self) -> f64 {
        ratio(self.correct, self.num())
    }

    /// Of the answers "yes", the share that is right; 0 if nothing was answered "yes".
    pub fn precision(&self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_positive)
    }

    /// Of the questions whose label is yes, the share answered "yes"; 0 if there is none.
    pub fn recall(&self) -> f64 {
        ratio(self.true_positive, self.true_positive + self.false_negative)
    }

    /// Harmonic mean of precision and recall; 0 where both are 0.
    pub fn f1(&self) -> f64 {
        ratio(2 * self.true_positive, 2 * self.true_positive + self.false_positive + self.false_negative)
    }

    /// Share of all answers that are "yes": 0.5 on a balanced set means no bias.
    pub fn yes_ratio(&self) -> f64 {
        ratio(self.true_positive + self.false_positive, self.num())
    }
}

/// `part / whole`, 0 for an empty whole (the official script divides by zero there).
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn empty_counts_are_zero_not_nan() {
        let counts = BinaryCounts::default();
        for value in [counts.accuracy(), counts.precision(), counts.recall(), counts.f1(), counts.yes_ratio()]
        {
            assert_eq!(value, 0.0);
        }
    }

    /// The adversarial split of LLaVA-1.5-13B as scored by POPE's official script.
    #[test]
    fn published_split_is_reproduced() {
        let counts = BinaryCounts {
            true_positive: 1182,
            false_positive: 117,
            true_negative: 1383,
            false_negative: 318,
            correct: 1182 + 1383,
        };
        assert_eq!(counts.num(), 3000);
        assert!((counts.accuracy() - 0.855).abs() < 1e-12);
        assert!((counts.precision() - 0.909_930_715_935_334_9).abs() < 1e-12);
        assert!((counts.recall() - 0.788).abs() < 1e-12);
        assert!((counts.f1() - 0.844_587_352_625_937_9).abs() < 1e-12);
        assert!((counts.yes_ratio() - 0.433).abs() < 1e-12);
    }

    #[test]
    fn an_unclear_answer_is_wrong_and_not_yes() {
        let mut counts = BinaryCounts::default();
        counts.add(YesNo::Yes, None);
        counts.add(YesNo::No, None);
        counts.add(YesNo::No, Some(YesNo::No));
        counts.add(YesNo::Yes, Some(YesNo::Yes));
        counts.add(YesNo::No, Some(YesNo::Yes));
        assert_eq!(counts.num(), 5);
        assert_eq!((counts.true_positive, counts.false_positive), (1, 1));
        assert_eq!((counts.true_negative, counts.false_negative), (2, 1));
        assert_eq!(counts.accuracy(), 0.4);
    }
}
