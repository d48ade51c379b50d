//! A whole training step by the kernels, in bf16, against PyTorch in float32: the worked example, on the device that is emulated.

use oqvl_emulation::{BlockOrder, Emulation, Mode};
use oqvl_training_step::{Activations, Example, Precision, Run};

/// Fewer steps where every access is checked.
fn num_steps(emulation: &Emulation) -> usize {
    if emulation.mode() == Mode::Plain { 10 } else { 1 }
}

fn run(example: &Example, emulation: Emulation, activations: Activations) -> Run {
    let steps = num_steps(&emulation);
    example.run_steps(emulation, activations, steps).unwrap()
}

fn norm(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|value| value * value).sum::<f64>().sqrt()
}

/// As close as rounding to bf16 allows: to 3 % of the tensor, and for tensors whose gradients all but cancel, as those of the biases
/// of keys, to a small part of all of them.
#[track_caller]
fn assert_close(what: &str, found: &[f64], expected: &[f64], of_all: f64) {
    assert_eq!(found.len(), expected.len());
    let error = norm(found.iter().zip(expected).map(|(found, expected)| found - expected));
    let bound = 3e-2 * norm(expected.iter().copied()) + 1e-4 * of_all;
    assert!(error < bound, "{what}: {error:e} is not below {bound:e}");
}

#[test]
fn steps_are_those_of_pytorch_but_for_rounding() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let example = Example::load(Precision::F32).unwrap();
    let (steps, expected) = (num_steps(&emulation), example.expected());
    let found = run(&example, emulation, Activations::Saved);
    for (step, (found, expected)) in found.losses.iter().zip(&expected.losses).enumerate() {
        assert!((found - expected).abs() < 2e-2, "loss of step {step}: {found} is not {expected}");
    }
    for (found, expected) in found.gradient_norms.iter().zip(&expected.gradient_norms) {
        assert!((found / expected - 1.0).abs() < 2e-2, "norm {found} is not {expected}");
    }
    for (name, range) in example.tensors() {
        let of_tensor = |all: &[f64]| all[range.clone()].to_vec();
        let gradients = (of_tensor(&found.gradients), of_tensor(&expected.gradients));
        assert_close(&format!("gradients of {name}"), &gradients.0, &gradients.1, expected.gradient_norms[0]);
    }
    if steps == 10 {
        // Of the way that parameters went, not of where they are.
        let way = |parameters: &[f64]| -> Vec<f64> {
            parameters.iter().zip(example.initial()).map(|(parameter, initial)| parameter - initial).collect()
        };
        let (found, expected) = (way(&found.parameters), way(&expected.parameters));
        let error = norm(found.iter().zip(&expected).map(|(found, expected)| found - expected));
        let len = norm(expected);
        assert!(
            error < 0.1 * len,
            "parameters are {error:e} from where they should be, {len:e} from the start"
        );
    }
}

#[test]
fn recomputed_and_saved_activations_give_the_same_bits() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let example = Example::load(Precision::F32).unwrap();
    let saved = run(&example, emulation, Activations::Saved);
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let emulation = emulation.with_order(BlockOrder::Shuffled(5));
    assert!(run(&example, emulation, Activations::CheapRecomputed).bits() == saved.bits());
}
