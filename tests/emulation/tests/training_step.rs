//! A whole training step by the kernels, in bf16, against PyTorch in float32: the worked example, on the device that is emulated.

use oqvl_emulation::{BlockOrder, Emulation, Mode};
use oqvl_training_step::{Activations, BeyondBf16, Example, Precision, Run};

/// Fewer steps where every access is checked.
fn num_steps(emulation: &Emulation) -> usize {
    if emulation.mode() == Mode::Plain { 10 } else { 1 }
}

fn run(example: &Example, emulation: Emulation, activations: Activations) -> Run {
    let steps = num_steps(&emulation);
    example.run_steps(emulation, activations, steps).unwrap()
}

#[test]
fn steps_are_those_of_pytorch_but_for_rounding() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let example = Example::load(Precision::F32).unwrap();
    let steps = num_steps(&emulation);
    let found = run(&example, emulation, Activations::Saved);
    assert_eq!((found.losses.len(), found.gradient_norms.len()), (steps, steps));
    assert_eq!(example.beyond_bf16(&found), BeyondBf16::default());
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
