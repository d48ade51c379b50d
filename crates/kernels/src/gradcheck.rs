//! Checks of hand-written backwards: central differences in f64.

use candle_core::{Device, Result, Tensor, Var};
use rand::{Rng as _, SeedableRng as _};

/// Step of the central differences.
const STEP: f64 = 1e-5;
/// Largest relative error between a gradient and its central difference.
const TOLERANCE: f64 = 1e-6;

/// A variable of uniform numbers in (-1, 1).
pub(crate) fn random(dims: &[usize], seed: u64) -> Var {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    let data: Vec<f64> = (0..dims.iter().product()).map(|_| rng.random_range(-1.0..1.0)).collect();
    Var::from_tensor(&Tensor::from_vec(data, dims, &Device::Cpu).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Asserts that two f64 tensors agree to a relative tolerance.
pub(crate) fn assert_same(left: &Tensor, right: &Tensor, tolerance: f64) {
    assert_eq!(left.dims(), right.dims());
    for (left, right) in values(left).into_iter().zip(values(right)) {
        assert!((left - right).abs() <= tolerance * (1.0 + right.abs()), "{left} is not {right}");
    }
}

/// Asserts that two ways to compute a tensor give every input the same gradients, to a relative tolerance.
pub(crate) fn assert_same_gradients(inputs: &[Var], left: &Tensor, right: &Tensor, tolerance: f64) {
    let gradients = |output: &Tensor| output.sqr().unwrap().sum_all().unwrap().backward().unwrap();
    let (left, right) = (gradients(left), gradients(right));
    for input in inputs {
        assert_same(left.get(input).unwrap(), right.get(input).unwrap(), tolerance);
    }
}

/// Compares every gradient of a random weighting of `f(inputs)` with its central difference.
pub(crate) fn check_gradients(inputs: &[Var], f: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let as_tensors = |inputs: &[Var]| inputs.iter().map(|var| var.as_tensor().clone()).collect::<Vec<_>>();
    let output = f(&as_tensors(inputs)).unwrap();
    let weights = random(output.dims(), 99).as_detached_tensor();
    let weigh = |output: &Tensor| (output * &weights).unwrap().sum_all().unwrap();
    let grads = weigh(&output).backward().unwrap();
    for (index, input) in inputs.iter().enumerate() {
        let gradient = values(grads.get(input).expect("an operation here never detaches its inputs"));
        let at = values(input);
        for element in 0..at.len() {
            let shifted = |by: f64| {
                let mut moved = at.clone();
                moved[element] += by;
                let mut tensors = as_tensors(inputs);
                tensors[index] = Tensor::from_vec(moved, input.dims(), &Device::Cpu).unwrap();
                weigh(&f(&tensors).unwrap()).to_scalar::<f64>().unwrap()
            };
            let expected = (shifted(STEP) - shifted(-STEP)) / (2.0 * STEP);
            let error = (gradient[element] - expected).abs();
            let what = format!("input {index}, element {element}");
            assert!(
                error <= TOLERANCE * (1.0 + expected.abs()),
                "{what}: {} is not {expected}",
                gradient[element]
            );
        }
    }
}
