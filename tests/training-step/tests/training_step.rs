//! Ten steps on a CPU against PyTorch (`fixtures/make.py`), in f32 and f64.

use oqvl_kernels::CuSeqlens;
use oqvl_kernels::backend::{Backend, CpuRef};
use oqvl_training_step::{Activations, Example, Pack, Precision, Run, Sizes};

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
    let recomputed = example.run(backend, Activations::CheapRecomputed).unwrap();
    assert!(recomputed.bits() == saved.bits(), "{recomputed:?} is not {saved:?}");
}

#[test]
fn recomputed_and_saved_activations_give_the_same_bits() {
    assert_recomputing_changes_no_bit(CpuRef::<f32>::default());
    assert_recomputing_changes_no_bit(CpuRef::<f64>::default());
}

/// Documents without images, with these labels.
fn pack(sizes: &Sizes, labels: &[i32]) -> anyhow::Result<Pack> {
    let sources = (0..sizes.rows).map(|row| (row * 7 % sizes.vocab) as i32).collect();
    let vision = vec![0.5; sizes.images * sizes.grid * sizes.grid * sizes.vision];
    Pack::new(sizes, sources, labels, CuSeqlens::new(vec![0, 1, sizes.rows as i32])?, vision)
}

#[test]
fn a_pack_without_labels_or_images_has_a_gradient_of_zeros() {
    let example = Example::load(Precision::F32).unwrap();
    let sizes = example.sizes();
    let mut training = example.training(CpuRef::<f32>::default(), Activations::Saved).unwrap();
    let nothing = pack(&sizes, &vec![-1; sizes.rows]).unwrap();
    training.load(&nothing).unwrap();
    training.forward(&nothing).unwrap();
    training.backward(&nothing).unwrap();
    assert!(training.gradients().unwrap().iter().all(|gradient| *gradient == 0.0));
    training.update(0.0).unwrap();
    let report = training.report().unwrap();
    assert_eq!((report.loss, report.accuracy, report.gradient_norm, report.skipped), (0.0, 0.0, 0.0, false));
    // Then all rows have one, in more chunks than before.
    let labels: Vec<i32> = (0..sizes.rows as i32).collect();
    let report = training.step(&pack(&sizes, &labels).unwrap(), 0.0).unwrap();
    assert!(report.loss > 3.0 && report.gradient_norm > 0.0, "{report:?}");
}

#[test]
fn what_does_not_fit_is_refused() {
    let sizes = Example::load(Precision::F32).unwrap().sizes();
    let refusal = |sizes: Sizes, labels: &[i32]| match pack(&sizes, labels) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let labels = vec![0; sizes.rows];
    assert!(refusal(sizes, &labels[1..]).contains("not 48"));
    assert!(refusal(sizes, &vec![sizes.vocab as i32; sizes.rows]).contains("not in the vocabulary of 96"));
    assert!(refusal(Sizes { layers: 0, ..sizes }, &labels).contains("a size is 0"));
    assert!(refusal(Sizes { hidden: usize::MAX, ..sizes }, &labels).contains("sizes go up to"));
    assert!(refusal(Sizes { positions: 46, ..sizes }, &labels).contains("position 46"));
}
