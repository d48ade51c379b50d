//! Ten steps on a CPU against PyTorch (`fixtures/make.py`), in f32 and f64.

use oqvl_kernels::backend::{Backend, CpuRef};
use oqvl_training_step::{Activations, Example, Precision, Run};

fn largest_difference(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()), "not all are numbers");
    found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).fold(0.0, f64::max)
}

/// Everything is as close as the bound, tensor by tensor.
fn assert_close(example: &Example, found: &Run, bound: f64) {
    let expected = example.expected();
    let difference = largest_difference(&found.losses, &expected.losses);
    assert!(difference <= bound, "losses: {difference:e}, {:?} and {:?}", found.losses, expected.losses);
    let difference = largest_difference(&found.gradient_norms, &expected.gradient_norms);
    assert!(difference <= bound, "norms of gradients: {difference:e}");
    for (name, range) in example.tensors() {
        let of = |all: &[f64]| all[range.clone()].to_vec();
        let difference = largest_difference(&of(&found.gradients), &of(&expected.gradients));
        assert!(difference <= bound, "gradients of {name}: {difference:e}");
        let difference = largest_difference(&of(&found.parameters), &of(&expected.parameters));
        assert!(difference <= bound, "{name}: {difference:e}");
    }
}

#[test]
fn ten_steps_in_f32_are_those_of_pytorch() {
    let example = Example::load(Precision::F32).unwrap();
    let run = example.run(CpuRef::<f32>::default(), Activations::Saved).unwrap();
    assert!(run.losses[9] < 0.8 * run.losses[1], "it learns: {:?}", run.losses);
    assert_close(&example, &run, 1e-5);
}

#[test]
fn ten_steps_in_f64_are_those_of_pytorch() {
    let example = Example::load(Precision::F64).unwrap();
    let run = example.run(CpuRef::<f64>::default(), Activations::Saved).unwrap();
    // The weight decay of 0.1 is an f32, which is off by 1.5e-9 of it.
    assert_close(&example, &run, 1e-9);
}

fn assert_recomputing_changes_no_bit(backend: impl Backend + Copy) {
    let example = Example::load(Precision::F32).unwrap();
    let saved = example.run(backend, Activations::Saved).unwrap();
    assert_eq!(example.run(backend, Activations::CheapRecomputed).unwrap(), saved);
}

#[test]
fn recomputed_and_saved_activations_give_the_same_bits() {
    assert_recomputing_changes_no_bit(CpuRef::<f32>::default());
    assert_recomputing_changes_no_bit(CpuRef::<f64>::default());
}
