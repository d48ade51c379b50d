//! A whole training step, against that of PyTorch in f32: the worked example of `oqvl-training-step`.

use crate::check::{Check, Errors};
use oqvl_kernels::backend::Backend;
use oqvl_training_step::{Activations, BeyondBf16, Example, Precision, Run};

pub(crate) const OP: &str = "training_step";

/// Runs the example `runs` times with all activations saved and once with the cheap ones recomputed, each on what `backend` makes.
pub(crate) fn check<B: Backend>(backend: impl Fn() -> B, runs: usize) -> anyhow::Result<Vec<Check>> {
    let example = Example::load(Precision::F32)?;
    let found = example.run(backend(), Activations::Saved)?;
    let mut differences = Vec::new();
    for _ in 1..runs {
        if example.run(backend(), Activations::Saved)?.bits() != found.bits() && differences.is_empty() {
            differences.push("other bits in another run");
        }
    }
    if example.run(backend(), Activations::CheapRecomputed)?.bits() != found.bits() {
        differences.push("other bits with recomputed activations");
    }
    Ok(judge(&example, &found, &differences))
}

/// Holds each result against its bound. `differences`: to the other runs.
fn judge(example: &Example, found: &Run, differences: &[&str]) -> Vec<Check> {
    let expected = example.expected();
    let BeyondBf16 { losses, gradient_norms, gradients, parameters } = example.beyond_bf16(found);
    let results = [
        ("losses", &found.losses, &expected.losses, losses),
        ("gradient norms", &found.gradient_norms, &expected.gradient_norms, gradient_norms),
        ("gradients", &found.gradients, &expected.gradients, gradients),
        ("parameters", &found.parameters, &expected.parameters, parameters),
    ];
    let checks = results.into_iter().map(|(result, found, expected, mut notes)| {
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
