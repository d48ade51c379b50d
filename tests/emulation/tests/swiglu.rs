//! SwiGLU over fused projections, against the candle operation in f64.

use candle_core::{Device, Tensor, Var};
use half::bf16;
use oqvl_emulation::{Buffer, Emulation};
use oqvl_kernels::Rows;
use oqvl_kernels::swiglu;
use oqvl_kernels::swiglu::launch::{backward, backward_apart, forward, forward_apart};
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64, bound: f32) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-bound..bound))).collect()
}

#[track_caller]
fn assert_rounded(what: &str, found: &[bf16], expected: &Tensor) {
    let expected: Vec<f64> = expected.flatten_all().unwrap().to_vec1().unwrap();
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let error = (found.to_f64() - expected).abs();
        let bound = 1.01 / 256.0 * expected.abs() + 1e-5;
        assert!(error <= bound, "{what}[{index}]: {found} is not {expected}");
    }
}

fn check(on: &Emulation, rows: usize, cols: usize, seed: u64, bound: f32) {
    let sizes = Rows { rows, cols };
    let (gate_up, dh) = (random(2 * rows * cols, seed, bound), random(rows * cols, seed + 1, 1.0));
    let (mut h, mut dgate_up) = (Buffer::poisoned(rows * cols), Buffer::poisoned(2 * rows * cols));
    forward(on, sizes, on.read(&gate_up), on.write(&mut h)).unwrap();
    backward(on, sizes, on.read(&gate_up), on.read(&dh), on.write(&mut dgate_up)).unwrap();
    // Apart, the same bits.
    let half = |first: usize| -> Buffer<bf16> {
        gate_up.chunks(2 * cols.max(1)).flat_map(|row| &row[first..first + cols]).copied().collect()
    };
    let (gate, up) = (half(0), half(cols));
    let [mut h_apart, mut dgate, mut dup] = [(); 3].map(|()| Buffer::poisoned(rows * cols));
    forward_apart(on, on.read(&gate), on.read(&up), on.write(&mut h_apart)).unwrap();
    let gradients = (on.write(&mut dgate), on.write(&mut dup));
    backward_apart(on, (on.read(&gate), on.read(&up)), on.read(&dh), gradients).unwrap();
    assert_eq!(h_apart[..], h[..]);
    for (row, found) in dgate_up.chunks(2 * cols.max(1)).enumerate() {
        let of_row = row * cols..(row + 1) * cols;
        assert_eq!((&found[..cols], &found[cols..]), (&dgate[of_row.clone()], &dup[of_row]));
    }

    let tensor = |values: &Buffer<bf16>, cols: usize| {
        let values: Vec<f64> = values.iter().map(|x| x.to_f64()).collect();
        Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
    };
    let fused = Var::from_tensor(&tensor(&gate_up, 2 * cols)).unwrap();
    let half = |first: usize| fused.narrow(1, first, cols).unwrap().contiguous().unwrap();
    let expected = swiglu(&half(0), &half(cols)).unwrap();
    assert_rounded("h", &h, &expected);
    let loss = (expected * tensor(&dh, cols)).unwrap().sum_all().unwrap();
    assert_rounded("dgate_up", &dgate_up, loss.backward().unwrap().get(&fused).unwrap());
}

#[test]
fn swiglu_of_every_edge_size() {
    let Some(on) = emulation() else { return };
    for (rows, cols) in
        [(0, 8), (1, 8), (3, 0), (1, 2040), (1, 2048), (1, 2056), (5, 176), (4, 8960), (4096, 8)]
    {
        check(&on, rows, cols, 1, 8.0);
    }
}

/// The exponential overflows before the result does.
#[test]
fn swiglu_of_large_numbers() {
    let Some(on) = emulation() else { return };
    check(&on, 2, 64, 1, 1000.0);
}

#[test]
fn swiglu_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |rows: usize, cols: usize, len: usize| {
        let (gate_up, mut h) = (Buffer::poisoned(2 * len), Buffer::poisoned(len));
        forward(&on, Rows { rows, cols }, on.read(&gate_up), on.write(&mut h)).unwrap_err().to_string()
    };
    assert!(refusal(2, 12, 24).contains("multiples of 8"));
    assert!(refusal(2, 16, 31).contains("projection has 62 elements, not 64"));
    assert!(refusal(usize::MAX / 8, 16, 0).contains("swiglu"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn swiglu_of_random_sizes(rows in 0usize..40, units in 0usize..40, seed in 0u64..1000) {
        let Some(on) = emulation() else { return Ok(()) };
        check(&on, rows, units * 8, seed, 8.0);
    }
}
