//! A whole training step, against that of PyTorch in f32: the worked example of `oqvl-training-step`.

use crate::check::{Check, Errors};
use oqvl_kernels::backend::Backend;
use oqvl_training_step::{Activations, Example, Precision, Run};

pub(crate) const OP: &str = "training_step";

/// How far losses and parameters may be from those of PyTorch in f32, by the rounding to bf16. As for all of these, the kernels'
/// own source in emulation keeps within them; `tests/emulation/tests/training_step.rs` has the same.
const MAX_ERROR: f64 = 2e-2;
/// What gradient norms may be off by, as a share.
const MAX_OF_NORM: f64 = 2e-2;
/// What the gradient of a tensor may be off by, as a share of it.
const MAX_OF_TENSOR: f64 = 3e-2;
/// And as a share of all gradients, where those of a tensor all but cancel, as of the biases of keys.
const MAX_OF_ALL: f64 = 1e-4;

/// Runs the example `runs` times with all activations saved and once with the cheap ones recomputed, each on what `backend` makes.
pub(crate) fn check<B: Backend>(backend: impl Fn() -> B, runs: usize) -> anyhow::Result<Vec<Check>> {
    let example = Example::load(Precision::F32)?;
    let found = example.run(backend(), Activations::Saved)?;
    let mut differences = Vec::new();
    for _ in 1..runs {
        if example.run(backend(), Activations::Saved)? != found && differences.is_empty() {
            differences.push("other bits in another run");
        }
    }
    if example.run(backend(), Activations::CheapRecomputed)? != found {
        differences.push("other bits with recomputed activations");
    }
    Ok(judge(&example, &found, &differences))
}

/// Holds each result against its bound. `differences`: to the other runs.
fn judge(example: &Example, found: &Run, differences: &[&str]) -> Vec<Check> {
    let expected = example.expected();
    let largest = |found: &[f64], expected: &[f64]| Errors::new(found, expected).max;
    let mut notes = [const { Vec::new() }; 4];
    let [losses, norms, gradients, parameters] = &mut notes;
    if largest(&found.losses, &expected.losses) >= MAX_ERROR {
        losses.push(format!("a loss is off by {MAX_ERROR} or more"));
    }
    let shares: Vec<f64> = found
        .gradient_norms
        .iter()
        .zip(&expected.gradient_norms)
        .map(|(found, expected)| found / expected)
        .collect();
    if largest(&shares, &vec![1.0; expected.gradient_norms.len()]) >= MAX_OF_NORM {
        norms.push(format!("a norm is off by a share of {MAX_OF_NORM} or more"));
    }
    let all = expected.gradient_norms[0];
    for (name, range) in example.tensors() {
        let (found, expected) = (&found.gradients[range.clone()], &expected.gradients[range]);
        let length = expected.iter().map(|value| value * value).sum::<f64>().sqrt();
        let Errors { relative, .. } = Errors::new(found, expected);
        let scale = if length == 0.0 { (expected.len() as f64).sqrt() } else { length };
        // Not a number is not below it.
        let is_close = relative * scale < MAX_OF_TENSOR * length + MAX_OF_ALL * all;
        if !is_close {
            gradients.push(format!("the gradient of {name} is off by {relative:.1e}"));
        }
    }
    if largest(&found.parameters, &expected.parameters) >= MAX_ERROR {
        parameters.push(format!("a parameter is off by {MAX_ERROR} or more"));
    }
    let results = [
        ("losses", &found.losses, &expected.losses),
        ("gradient norms", &found.gradient_norms, &expected.gradient_norms),
        ("gradients", &found.gradients, &expected.gradients),
        ("parameters", &found.parameters, &expected.parameters),
    ];
    let checks = results.into_iter().zip(notes).map(|((result, found, expected), mut notes)| {
        notes.extend(differences.iter().map(|difference| (*difference).to_owned()));
        Check {
            op: OP.to_owned(),
            case: format!(
                "{} steps of a small network, against PyTorch in f32",
                example.expected().losses.len()
            ),
            result: result.to_owned(),
            errors: Some(Errors::new(found, expected)),
            pytorch: None,
            deterministic: differences.is_empty(),
            same_through_candle: None,
            passed: notes.is_empty(),
            note: notes.join("; "),
        }
    });
    checks.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_step_passes_in_emulation() {
        let emulation = || oqvl_emulation::Emulation::new(oqvl_emulation::Mode::Plain).unwrap();
        if emulation().is_none() {
            return;
        }
        for check in check(|| emulation().expect("there was one"), 1).unwrap() {
            assert!(check.passed, "{check:?}");
        }
    }

    #[test]
    fn what_is_beyond_a_bound_is_named() {
        let example = Example::load(Precision::F32).unwrap();
        let mut found = example.expected().clone();
        assert!(judge(&example, &found, &[]).iter().all(|check| check.passed));
        found.losses[3] += 0.03;
        found.gradient_norms[1] *= 1.03;
        found.parameters[5] = f64::NAN;
        let (name, range) = example.tensors().swap_remove(2);
        found.gradients[range].iter_mut().for_each(|value| *value *= 1.2);
        let notes: Vec<String> =
            judge(&example, &found, &["other bits"]).into_iter().map(|check| check.note).collect();
        assert_eq!(
            notes,
            [
                "a loss is off by 0.02 or more; other bits",
                "a norm is off by a share of 0.02 or more; other bits",
                &format!("the gradient of {name} is off by 2.0e-1; other bits"),
                "a parameter is off by 0.02 or more; other bits",
            ]
        );
    }
}
