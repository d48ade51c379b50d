//! From logits to the next token.

use super::GenerateConfig;
use crate::ModelError;
use crate::config::check_range;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use std::ops::RangeInclusive;

/// Beyond these logits divided by it are infinite, or all the same.
const TEMPERATURE: RangeInclusive<f64> = 1e-6..=1e6;
/// Beyond these a logit that is penalized is infinite.
pub(super) const REPETITION_PENALTY: RangeInclusive<f64> = 1e-3..=1e3;

/// How a token is chosen from the scores of all.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub enum Sampling {
    /// The most probable one; of several the one with the lowest id.
    #[default]
    Greedy,
    /// Drawn from the distribution that is left after, in this order, `temperature`, `top_k` and `top_p`.
    Random {
        /// Logits are divided by it: from 1e-6 to 1e6; 1 leaves them as they are.
        temperature: f64,
        /// Only the tokens that score as high as the best `top_k`; at least 1.
        top_k: Option<usize>,
        /// Only the most probable tokens, as many as it takes to reach this probability; above 0, at most 1.
        top_p: Option<f64>,
        /// Sequence `i` of a call draws from stream `i` of this seed, whatever the other sequences are.
        seed: u64,
    },
}

impl Sampling {
    /// # Errors
    /// If a number is out of its range.
    pub(super) fn validate(&self) -> Result<(), ModelError> {
        let Self::Random { temperature, top_k, top_p, seed: _ } = *self else { return Ok(()) };
        let wrong = |what: String| Err(ModelError::Generation(what));
        check_range("temperature", temperature, &TEMPERATURE).map_err(ModelError::Generation)?;
        if top_k == Some(0) {
            return wrong("top_k must be at least 1, got 0".to_owned());
        }
        match top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                wrong(format!("top_p must be above 0 and at most 1, got {p}"))
            }
            _ => Ok(()),
        }
    }
}

/// Chooses the tokens of one sequence.
#[derive(Debug)]
pub(super) struct Chooser {
    sampling: Sampling,
    rng: Option<ChaCha8Rng>,
    repetition_penalty: f32,
    /// Ids that occur, sorted; empty if there is no penalty.
    seen: Vec<u32>,
    /// Not chosen before `min_new_tokens` others.
    stop_ids: Vec<u32>,
    min_new_tokens: usize,
    num_chosen: usize,
}

impl Chooser {
    /// For the sequence `stream` of a call, which begins with `prompt_ids`; the ids of images are no tokens.
    pub(super) fn new(config: &GenerateConfig, prompt_ids: &[i64], stream: u64) -> Self {
        let penalty = config.repetition_penalty.map_or(1.0, |penalty| penalty as f32);
        let ids = |ids: &[i64]| ids.iter().filter_map(|id| u32::try_from(*id).ok()).collect::<Vec<_>>();
        let mut seen = if penalty == 1.0 { Vec::new() } else { ids(prompt_ids) };
        seen.sort_unstable();
        seen.dedup();
        let rng = match config.sampling {
            Sampling::Greedy => None,
            Sampling::Random { seed, .. } => {
                let mut rng = ChaCha8Rng::seed_from_u64(seed);
                rng.set_stream(stream);
                Some(rng)
            }
        };
        Self {
            sampling: config.sampling,
            rng,
            repetition_penalty: penalty,
            seen,
            stop_ids: ids(&config.stop_ids),
            min_new_tokens: config.min_new_tokens,
            num_chosen: 0,
        }
    }

    /// The next token by its logits, which are changed on the way. Nothing if they are no numbers.
    pub(super) fn choose(&mut self, logits: &mut [f32]) -> Option<u32> {
        if logits.iter().any(|logit| logit.is_nan()) {
            return None;
        }
        if self.repetition_penalty != 1.0 {
            penalize(logits, &self.seen, self.repetition_penalty);
        }
        if self.num_chosen < self.min_new_tokens {
            for &id in &self.stop_ids {
                logits.get_mut(id as usize).into_iter().for_each(|logit| *logit = f32::NEG_INFINITY);
            }
        }
        let chosen = match (self.sampling, &mut self.rng) {
            (Sampling::Random { temperature, top_k, top_p, seed: _ }, Some(rng)) => {
                let candidates = candidates(logits, temperature as f32, top_k, top_p)?;
                draw(&candidates, rng.random())
            }
            _ => best(logits)?,
        };
        self.num_chosen += 1;
        if self.repetition_penalty != 1.0
            && let Err(place) = self.seen.binary_search(&chosen)
        {
            self.seen.insert(place, chosen);
        }
        Some(chosen)
    }
}

/// Makes ids that occur less probable (`penalty` above 1) or more: positive logits are divided by it, others multiplied.
/// An id counts once however often it occurs.
///
/// Source: Keskar et al., "CTRL", 2019, as in `RepetitionPenaltyLogitsProcessor` of `transformers`.
fn penalize(logits: &mut [f32], seen: &[u32], penalty: f32) {
    for &id in seen {
        if let Some(logit) = logits.get_mut(id as usize) {
            *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
        }
    }
}

/// The highest logit's id, the lowest of several. Nothing if no logit is above minus infinity or one is infinite.
fn best(logits: &[f32]) -> Option<u32> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.1 {
            best = (id as u32, logit);
        }
    }
    best.1.is_finite().then_some(best.0)
}

/// Ids that may be drawn, ascending, each with its probability among them. Nothing if [`best`] finds none.
///
/// Source: `TemperatureLogitsWarper`, `TopKLogitsWarper` and `TopPLogitsWarper` of `transformers`. As there, ids that score
/// the same as the `top_k`-th stay, and at least one id stays under `top_p`; probabilities are computed in f64.
fn candidates(
    logits: &[f32],
    temperature: f32,
    top_k: Option<usize>,
    top_p: Option<f64>,
) -> Option<Vec<(u32, f64)>> {
    let mut kept: Vec<(u32, f32)> =
        logits.iter().enumerate().map(|(id, logit)| (id as u32, logit / temperature)).collect();
    if let Some(k) = top_k.filter(|k| *k < kept.len()) {
        let mut scores: Vec<f32> = kept.iter().map(|(_, logit)| *logit).collect();
        let (_, &mut least, _) = scores.select_nth_unstable_by(k.max(1) - 1, |a, b| b.total_cmp(a));
        kept.retain(|(_, logit)| *logit >= least);
    }
    kept.retain(|(_, logit)| *logit > f32::NEG_INFINITY);
    let max = kept.iter().map(|(_, logit)| *logit).max_by(f32::total_cmp).filter(|max| max.is_finite())?;
    let mut kept: Vec<(u32, f64)> =
        kept.into_iter().map(|(id, logit)| (id, f64::from(logit - max).exp())).collect();
    if let Some(p) = top_p.filter(|p| *p < 1.0) {
        let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
        // From the least probable up; of equals the lower id goes first, as torch sorts them.
        kept.sort_by(|(_, left), (_, right)| left.total_cmp(right));
        let mut below = 0.0;
        let removed = kept.iter().take_while(|(_, weight)| {
            below += weight / total;
            below <= 1.0 - p
        });
        let removed = removed.count().min(kept.len() - 1);
        kept.drain(..removed);
        kept.sort_unstable_by_key(|(id, _)| *id);
    }
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    kept.iter_mut().for_each(|(_, weight)| *weight /= total);
    Some(kept)
}

/// The id at which the probabilities reach `at`, a number from 0 up to 1.
fn draw(candidates: &[(u32, f64)], at: f64) -> u32 {
    let mut reached = 0.0;
    let found = candidates.iter().find(|(_, probability)| {
        reached += probability;
        at < reached
    });
    // Rounding may leave the sum a little below 1.
    found.or(candidates.last()).map_or(0, |(id, _)| *id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::path::Path;

    /// One setting of `transformers`' warpers and what they left of the logits.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Golden {
        logits: Vec<f32>,
        seen: Vec<u32>,
        repetition_penalty: f32,
        temperature: f32,
        top_k: Option<usize>,
        top_p: Option<f64>,
        kept: Vec<u32>,
        probabilities: Vec<f64>,
    }

    #[test]
    fn what_may_be_drawn_is_what_transformers_would_draw_from() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generate/warpers.json");
        let goldens: Vec<Golden> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(goldens.len() > 50);
        for golden in goldens {
            let mut logits = golden.logits.clone();
            penalize(&mut logits, &golden.seen, golden.repetition_penalty);
            let kept = candidates(&logits, golden.temperature, golden.top_k, golden.top_p).unwrap();
            let (ids, probabilities): (Vec<u32>, Vec<f64>) = kept.into_iter().unzip();
            assert_eq!(ids, golden.kept, "{golden:?}");
            for (ours, theirs) in probabilities.iter().zip(&golden.probabilities) {
                assert!((ours - theirs).abs() < 2e-6, "{ours} {theirs}: {golden:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn kept_are_the_most_probable_and_no_more_than_needed(
            logits in prop::collection::vec(-8f32..8.0, 1..40),
            top_k in prop::option::of(1usize..50),
            top_p in prop::option::of(0.01f64..1.0),
            temperature in 0.1f32..3.0,
        ) {
            let all = candidates(&logits, temperature, None, None).unwrap();
            prop_assert_eq!(all.len(), logits.len());
            let kept = candidates(&logits, temperature, top_k, top_p).unwrap();
            prop_assert!(!kept.is_empty());
            prop_assert!((kept.iter().map(|(_, probability)| probability).sum::<f64>() - 1.0).abs() < 1e-9);
            prop_assert!(kept.windows(2).all(|pair| pair[0].0 < pair[1].0));
            prop_assert!(kept.iter().any(|(id, _)| *id == best(&logits).unwrap()));
            let of = |id: u32| all[id as usize].1;
            let least = kept.iter().map(|(id, _)| of(*id)).fold(f64::INFINITY, f64::min);
            let left_out = all.iter().filter(|(id, _)| kept.iter().all(|(kept, _)| kept != id));
            prop_assert!(left_out.clone().all(|(_, probability)| *probability <= least));
            if let (Some(k), None) = (top_k, top_p) {
                // Random logits have no ties.
                prop_assert_eq!(kept.len(), k.min(logits.len()));
            }
            if let (None, Some(p)) = (top_k, top_p) {
                let mass: f64 = kept.iter().map(|(id, _)| of(*id)).sum();
                prop_assert!(mass >= p - 1e-9 || kept.len() == all.len(), "{mass} does not reach {p}");
                prop_assert!(kept.len() == 1 || mass - least < p + 1e-9, "{mass} without {least} reaches {p}");
            }
        }

        #[test]
        fn a_draw_is_from_the_candidates_in_their_proportion(at in 0f64..1.0) {
            let candidates = [(3, 0.25), (5, 0.5), (9, 0.25)];
            let expected = if at < 0.25 { 3 } else if at < 0.75 { 5 } else { 9 };
            prop_assert_eq!(draw(&candidates, at), expected);
        }
    }

    fn random(seed: u64) -> GenerateConfig {
        let sampling = Sampling::Random { temperature: 1.0, top_k: None, top_p: None, seed };
        GenerateConfig { max_new_tokens: 9, sampling, ..GenerateConfig::default() }
    }

    #[test]
    fn draws_follow_seed_and_stream_and_meet_the_probabilities() {
        let logits = [0f32, 1.0, 2.0, f32::NEG_INFINITY];
        let draws = |seed, stream| {
            let mut chooser = Chooser::new(&random(seed), &[], stream);
            (0..4000).map(|_| chooser.choose(&mut logits.clone()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(draws(1, 0), draws(1, 0));
        assert_ne!(draws(1, 0), draws(2, 0));
        assert_ne!(draws(1, 0), draws(1, 1));
        let total: f64 = [0f64, 1.0, 2.0].iter().map(|logit| logit.exp()).sum();
        for (id, logit) in [0f64, 1.0, 2.0].into_iter().enumerate() {
            let share = draws(1, 0).iter().filter(|drawn| **drawn == id as u32).count() as f64 / 4000.0;
            // Five standard deviations.
            assert!((share - logit.exp() / total).abs() < 0.04, "{id}: {share}");
        }
        assert!(!draws(1, 0).contains(&3));
    }

    #[test]
    fn penalties_and_forbidden_ends_move_the_greedy_choice() {
        let config = GenerateConfig {
            max_new_tokens: 9,
            min_new_tokens: 2,
            stop_ids: vec![2],
            repetition_penalty: Some(2.0),
            ..GenerateConfig::default()
        };
        let mut chooser = Chooser::new(&config, &[-200, 1, 99], 0);
        // 2 may not be chosen yet, 1 stands in the prompt; then 0 and 3 have been chosen.
        let choices = [(); 4].map(|()| chooser.choose(&mut [1.1, 1.8, 4.0, 1.0]).unwrap());
        assert_eq!(choices, [0, 3, 2, 2]);
        assert_eq!(best(&[1.0, 3.0, 3.0]), Some(1));
    }

    #[test]
    fn logits_that_are_no_numbers_choose_nothing() {
        for logits in [[f32::NAN, 1.0], [f32::INFINITY, 1.0], [f32::NEG_INFINITY; 2]] {
            for config in [random(1), GenerateConfig::default()] {
                let mut chooser = Chooser::new(&config, &[], 0);
                assert_eq!(chooser.choose(&mut logits.clone()), None, "{logits:?}");
            }
        }
    }
}
