//! RMSNorm and LayerNorm with the addition before them, against the candle operations in f64.

use candle_core::{Device, Tensor, Var};
use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation};
use oqvl_kernels::norm::{
    Backward, Centre, CentreBackward, Forward, Norm, Residual, backward, forward, num_partials, partials_len,
};
use oqvl_kernels::{layer_norm, rms_norm};
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect()
}

/// In f64, where gradients are found.
fn variable(values: &[bf16], dims: &[usize]) -> Var {
    let values: Vec<f64> = values.iter().map(|x| x.to_f64()).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f64> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// Half of the distance between bf16 numbers, relative.
const ROUNDING: f64 = 1.0 / 256.0;

#[track_caller]
fn assert_rounded(what: &str, found: &[bf16], expected: &[f64], absolute: f64) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found.to_f64() - expected).abs();
        assert!(
            error <= 1.01 * ROUNDING * expected.abs() + absolute,
            "{what}[{index}]: {found} is not {expected}"
        );
    }
}

#[derive(Debug, Clone, Copy)]
struct Case {
    rows: usize,
    hidden: usize,
    adds: bool,
    centres: bool,
    seed: u64,
}

/// Everything the kernels write.
#[derive(PartialEq, Debug)]
struct Found {
    sum: Vec<u16>,
    y: Vec<u16>,
    ds: Vec<u16>,
    gains: Vec<u32>,
}

impl Case {
    fn check(self, on: &Emulation) -> Found {
        let Self { rows, hidden, adds, centres, seed } = self;
        let norm = Norm { rows, hidden, eps: 1e-6 };
        let len = rows * hidden;
        let (x, residual, dy, past) =
            (random(len, seed), random(len, seed + 1), random(len, seed + 2), random(len, seed + 3));
        let (weight, bias) = (random(hidden, seed + 4), random(hidden, seed + 5));
        let (mut sum, mut y, mut ds) = (Buffer::poisoned(len), Buffer::poisoned(len), Buffer::poisoned(len));
        let (mut mean, mut inverse) = (Buffer::poisoned(rows), Buffer::poisoned(rows));
        let partials = || Buffer::<f32>::poisoned(partials_len(norm).unwrap());
        let (mut dweight, mut dbias) = (partials(), partials());
        let arguments = Forward {
            x: on.read(&x),
            residual: adds.then(|| Residual { residual: on.read(&residual), sum: on.write(&mut sum) }),
            weight: on.read(&weight),
            centre: centres.then(|| Centre { bias: on.read(&bias), mean: on.write(&mut mean) }),
            y: on.write(&mut y),
            inverse: on.write(&mut inverse),
        };
        forward(on, norm, arguments).unwrap();
        let s = if adds { &sum } else { &x };
        let arguments = Backward {
            s: on.read(s),
            weight: on.read(&weight),
            dy: on.read(&dy),
            dresidual: adds.then(|| on.read(&past)),
            inverse: on.read(&inverse),
            ds: on.write(&mut ds),
            dweight_partials: on.write(&mut dweight),
            centre: centres
                .then(|| CentreBackward { mean: on.read(&mean), dbias_partials: on.write(&mut dbias) }),
        };
        backward(on, norm, arguments).unwrap();

        if adds {
            let expected: Vec<f64> =
                x.iter().zip(residual.iter()).map(|(x, r)| x.to_f64() + r.to_f64()).collect();
            let rounded: Vec<bf16> = expected.iter().map(|sum| bf16::from_f64(*sum)).collect();
            assert_eq!(&sum[..], &rounded[..]);
        } else {
            assert!(sum.iter().all(|x| x.is_nan()), "there was nothing to add");
        }
        let s_values = variable(s, &[rows, hidden]);
        let (gain, shift) = (variable(&weight, &[hidden]), variable(&bias, &[hidden]));
        let expected = if centres {
            layer_norm(&s_values, &gain, &shift, 1e-6).unwrap()
        } else {
            rms_norm(&s_values, &gain, 1e-6).unwrap()
        };
        assert_rounded("y", &y, &values(&expected), 1e-5);
        let loss = (expected * variable(&dy, &[rows, hidden]).as_tensor()).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let mut expected = values(gradients.get(&s_values).unwrap());
        if adds {
            expected.iter_mut().zip(past.iter()).for_each(|(ds, past)| *ds += past.to_f64());
        }
        assert_rounded("ds", &ds, &expected, 1e-5);
        let check_gain = |what: &str, partials: &Buffer<f32>, gain: &Var| {
            let expected = values(gradients.get(gain).unwrap());
            for (channel, expected) in expected.iter().enumerate() {
                let found: f64 = partials.iter().skip(channel).step_by(hidden).map(|x| f64::from(*x)).sum();
                let bound = 1e-5 * (1.0 + rows as f64);
                assert!((found - expected).abs() < bound, "{what}[{channel}]: {found} is not {expected}");
            }
        };
        check_gain("dweight", &dweight, &gain);
        if centres {
            check_gain("dbias", &dbias, &shift);
        }
        assert_eq!(dweight.len(), num_partials(norm) * hidden);
        let bits = |x: &Buffer<bf16>| x.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
        let gains = dweight.iter().chain(dbias.iter()).map(|x| x.to_bits()).collect();
        Found { sum: bits(&sum), y: bits(&y), ds: bits(&ds), gains }
    }
}

const BOTH: [bool; 2] = [false, true];

#[test]
fn norm_of_every_number_of_rows() {
    let Some(on) = emulation() else { return };
    for rows in [0, 1, 7, 8, 9, 31, 32, 33, 70] {
        for (adds, centres) in [(false, false), (true, true)] {
            Case { rows, hidden: 40, adds, centres, seed: 1 }.check(&on);
        }
    }
}

/// Around what each kernel holds, and the widths of the models: Qwen2.5 896, 1536; SigLIP 1152.
#[test]
fn norm_of_every_width() {
    let Some(on) = emulation() else { return };
    for (index, hidden) in [8, 248, 256, 264, 512, 520, 896, 1024, 1032, 1152, 1536, 1544, 2048, 2056, 4096]
        .into_iter()
        .enumerate()
    {
        Case { rows: 3, hidden, adds: index % 2 == 0, centres: BOTH[index / 2 % 2], seed: 7 }.check(&on);
    }
}

#[test]
fn norm_is_the_same_in_any_order_of_blocks() {
    let case = Case { rows: 100, hidden: 264, adds: true, centres: true, seed: 3 };
    let runs: Vec<Found> = [BlockOrder::Forward, BlockOrder::Reverse]
        .into_iter()
        .filter_map(|order| Some(case.check(&emulation()?.with_order(order))))
        .collect();
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]));
}

/// A row that is constant has no deviation: eps alone keeps it finite.
#[test]
fn norm_of_constant_rows() {
    let Some(on) = emulation() else { return };
    let norm = Norm { rows: 2, hidden: 16, eps: 1e-6 };
    let x: Buffer<bf16> = [0.0f32; 16].into_iter().chain([3.0; 16]).map(bf16::from_f32).collect();
    let (weight, bias) = (random(16, 1), random(16, 2));
    let (mut y, mut mean, mut inverse) = (Buffer::poisoned(32), Buffer::poisoned(2), Buffer::poisoned(2));
    let arguments = Forward {
        x: on.read(&x),
        residual: None,
        weight: on.read(&weight),
        centre: Some(Centre { bias: on.read(&bias), mean: on.write(&mut mean) }),
        y: on.write(&mut y),
        inverse: on.write(&mut inverse),
    };
    forward(&on, norm, arguments).unwrap();
    assert_eq!((&y[..16], &y[16..]), (&bias[..], &bias[..]));
    assert_eq!(mean[..], [0.0, 3.0]);
    assert!(inverse.iter().all(|inverse| (inverse - 1000.0).abs() < 0.01), "{inverse:?}");
}

#[test]
fn norm_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |norm: Norm, y_len: usize| {
        let len = norm.rows * norm.hidden;
        let (x, weight) = (Buffer::poisoned(len), Buffer::poisoned(norm.hidden));
        let (mut y, mut inverse) = (Buffer::poisoned(y_len), Buffer::poisoned(norm.rows));
        let arguments = Forward {
            x: on.read(&x),
            residual: None,
            weight: on.read(&weight),
            centre: None,
            y: on.write(&mut y),
            inverse: on.write(&mut inverse),
        };
        forward(&on, norm, arguments).unwrap_err().to_string()
    };
    for (hidden, eps, y_len, expected) in [
        (12, 0.0, 24, "multiples of 8"),
        (0, 0.0, 0, "multiples of 8"),
        (4104, 0.0, 8208, "up to 4096"),
        (16, -1.0, 32, "eps is -1"),
        (16, f64::NAN, 32, "eps is NaN"),
        (16, 0.0, 31, "y has 31 elements, not 32"),
    ] {
        let error = refusal(Norm { rows: 2, hidden, eps }, y_len);
        assert!(error.contains(expected), "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn norm_of_random_sizes(
        rows in 0usize..80,
        hidden in (1usize..80).prop_map(|units| units * 8),
        adds in any::<bool>(),
        centres in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let Some(on) = emulation() else { return Ok(()) };
        Case { rows, hidden, adds, centres, seed }.check(&on);
    }
}
