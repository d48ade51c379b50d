//! The loop: choose a seed, change it, run it, keep it if it did something new.

use crate::memory::Watermark;
use crate::mutate::mutate;
use crate::targets::Target;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Kept inputs beyond the seeds; the oldest make room.
const MAX_KEPT: usize = 2000;

/// An input that breaks a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The input.
    pub input: Vec<u8>,
    /// Which promise, and how.
    pub problem: String,
}

/// Runs one input: its outcome, or what it breaks.
///
/// # Errors
/// The broken promise, in words.
pub fn run_once(target: &Target, input: &[u8]) -> Result<String, String> {
    let watermark = Watermark::set();
    let outcome = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (allowed, taken) = ((target.memory_bound)(input.len()), watermark.bytes());
    match outcome {
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            Err(format!("panicked: {}", text.unwrap_or_default()))
        }
        Ok(_) if taken > allowed => Err(format!(
            "took {taken} bytes of memory for {} bytes of input, allowed are {allowed}",
            input.len()
        )),
        Ok(outcome) => Ok(without_numbers(&outcome)),
    }
}

/// Outcomes differ in kind, not in the numbers of one input.
fn without_numbers(outcome: &str) -> String {
    let mut text = String::with_capacity(outcome.len());
    for character in outcome.chars() {
        let shown = if character.is_ascii_digit() { '#' } else { character };
        if shown != '#' || !text.ends_with('#') {
            text.push(shown);
        }
    }
    text
}

/// Inputs for one target, one after the other.
#[derive(Debug)]
pub struct Campaign {
    target: &'static Target,
    random: ChaCha8Rng,
    seeds: Vec<Vec<u8>>,
    kept: Vec<Vec<u8>>,
    outcomes: BTreeSet<String>,
    num_inputs: u64,
    input: Vec<u8>,
}

impl Campaign {
    /// A campaign over the target's seeds.
    #[must_use]
    pub fn new(target: &'static Target, seed: u64) -> Self {
        Self {
            target,
            random: ChaCha8Rng::seed_from_u64(seed),
            seeds: (target.seeds)(),
            kept: Vec::new(),
            outcomes: BTreeSet::new(),
            num_inputs: 0,
            input: Vec::new(),
        }
    }

    /// Makes the next input; it can be looked at before it is [run](Campaign::run).
    pub fn next_input(&mut self) -> &[u8] {
        let index = usize::try_from(self.num_inputs).unwrap_or(usize::MAX);
        self.num_inputs += 1;
        if let Some(seed) = self.seeds.get(index) {
            // First of all the seeds as they are.
            self.input.clone_from(seed);
            return &self.input;
        }
        let random = &mut self.random;
        // What was kept for its outcome is chosen as often as the seeds.
        let pool = if self.kept.is_empty() || random.random() { &self.seeds } else { &self.kept };
        self.input.clone_from(&pool[random.random_range(0..pool.len())]);
        let other = &self.seeds[random.random_range(0..self.seeds.len())];
        mutate(&mut self.input, other, self.target.words, random);
        // Half of the inputs get their checksums mended, so that the checks behind them are reached.
        if random.random() {
            (self.target.fixup.0)(&mut self.input);
        }
        &self.input
    }

    /// Runs the input that [`next_input`](Campaign::next_input) made.
    pub fn run(&mut self) -> Option<Finding> {
        match run_once(self.target, &self.input) {
            Err(problem) => Some(Finding { input: self.input.clone(), problem }),
            Ok(outcome) => {
                if self.outcomes.insert(outcome) {
                    if self.kept.len() == MAX_KEPT {
                        self.kept.remove(0);
                    }
                    self.kept.push(self.input.clone());
                }
                None
            }
        }
    }

    /// Makes an input and runs it.
    pub fn step(&mut self) -> Option<Finding> {
        self.next_input();
        self.run()
    }

    /// Inputs made so far.
    #[must_use]
    pub fn num_inputs(&self) -> u64 {
        self.num_inputs
    }

    /// Different outcomes so far.
    #[must_use]
    pub fn num_outcomes(&self) -> usize {
        self.outcomes.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::targets::{Fixup, TARGETS};

    /// Inputs per target in the short form; a second or two each.
    const NUM_INPUTS: u64 = 3000;

    #[test]
    fn no_target_breaks_a_promise() {
        for target in &TARGETS {
            let mut campaign = Campaign::new(target, 7);
            while campaign.num_inputs() < NUM_INPUTS {
                if let Some(Finding { input, problem }) = campaign.step() {
                    let number = campaign.num_inputs();
                    panic!("{}, input {number} of {} bytes: {problem}", target.name, input.len());
                }
            }
            assert!(campaign.num_outcomes() >= 8, "{}: {:?}", target.name, campaign.outcomes);
        }
    }

    static BROKEN: Target = Target {
        name: "broken",
        run: |input| {
            assert!(!input.contains(&b'!'), "an exclamation mark");
            drop(vec![0_u8; input.iter().filter(|byte| **byte == b'm').count() << 20]);
            String::new()
        },
        seeds: || vec![b"a fine seed".to_vec()],
        words: &[b"!", b"m"],
        fixup: Fixup(|_| {}),
        memory_bound: |_| 1 << 19,
    };

    #[test]
    fn panics_and_greed_are_findings() {
        assert!(run_once(&BROKEN, b"!").unwrap_err().contains("an exclamation mark"));
        assert!(run_once(&BROKEN, b"mm").unwrap_err().contains("bytes of memory"));
        let mut campaign = Campaign::new(&BROKEN, 1);
        let found = (0..1000).find_map(|_| campaign.step()).expect("a few of these break a promise");
        let mut again = Campaign::new(&BROKEN, 1);
        assert_eq!((0..1000).find_map(|_| again.step()), Some(found), "a campaign repeats");
    }

    #[test]
    fn outcomes_have_no_numbers() {
        assert_eq!(without_numbers("at byte 512 of 7 in `a1b`"), "at byte # of # in `a#b`");
    }
}
