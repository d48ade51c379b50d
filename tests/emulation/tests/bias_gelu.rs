//! The kernels of bias and both forms of GELU against the operations on a CPU, in f64.

use candle_core::{Device, Result, Tensor, Var};
use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation, Number};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::bias_gelu::{Gelu, bias_gelu, bias_gelu_tanh, launch};
use oqvl_kernels::column_sum::launch::{BiasGradient, Element, partials_len};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

const KINDS: [Gelu; 2] = [Gelu::Exact, Gelu::Tanh];
/// Elements after the output that no kernel may touch.
const GUARD: usize = 16;
/// Half a unit in the last place of bf16.
const ROUNDING: f64 = 1.0 / 256.0;

fn random(len: usize, bound: f64, seed: u64) -> Buffer<bf16> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f64(rng.random_range(-bound..bound))).collect()
}

fn wide(elements: &[bf16]) -> Vec<f64> {
    elements.iter().map(|x| x.to_f64()).collect()
}

/// Every element is there and close, and none after them is written.
#[track_caller]
fn assert_close(found: &[bf16], expected: &[f64], slack: f64, what: &str) {
    let (found, guard) = found.split_at(expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found.to_f64() - expected).abs();
        assert!(
            error <= ROUNDING * expected.abs() + slack,
            "{what}: element {index}: {found} is not {expected}"
        );
    }
    assert!(guard.iter().all(|x| x.is_nan()), "{what}: something is written after the output");
}

/// `y`, `dx` and `dbias` of the operation.
fn reference(kind: Gelu, sizes: Rows, x: &[f64], bias: &[f64], dy: &[f64]) -> Result<[Vec<f64>; 3]> {
    let Rows { rows, cols } = sizes;
    let x = Var::from_vec(x.to_vec(), (rows, cols), &Device::Cpu)?;
    let bias = Var::from_vec(bias.to_vec(), cols, &Device::Cpu)?;
    let y = match kind {
        Gelu::Exact => bias_gelu(&x, &bias)?,
        Gelu::Tanh => bias_gelu_tanh(&x, &bias)?,
    };
    let dy = Tensor::from_vec(dy.to_vec(), (rows, cols), &Device::Cpu)?;
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let gradient =
        |of: &Var| gradients.get(of).expect("the operation has gradients").flatten_all()?.to_vec1();
    Ok([y.flatten_all()?.to_vec1()?, gradient(&x)?, gradient(&bias)?])
}

/// `dx` with the guard behind it; `dbias` goes to a slice of its length.
fn backward_to<S: Element + Number>(
    emulation: &Emulation,
    kind: Gelu,
    sizes: Rows,
    [x, bias, dy]: [&[bf16]; 3],
    dbias: &mut [S],
    output: Output,
) -> Vec<bf16> {
    let mut dx = Buffer::<bf16>::poisoned(x.len() + GUARD);
    let mut partials = Buffer::<f32>::poisoned(partials_len(sizes).unwrap());
    let inputs = (emulation.read(x), emulation.read(bias), emulation.read(dy));
    let to = emulation.write(&mut dx[..x.len()]);
    let (partials, dbias) = (emulation.write(&mut partials), emulation.write(dbias));
    launch::backward(emulation, sizes, kind, inputs, to, BiasGradient { partials, dbias, output }).unwrap();
    dx.to_vec()
}

/// `dx` and `dbias`, each with the guard behind it.
fn backward(emulation: &Emulation, kind: Gelu, sizes: Rows, inputs: [&[bf16]; 3]) -> [Vec<bf16>; 2] {
    let mut dbias = Buffer::<bf16>::poisoned(sizes.cols + GUARD);
    let dx = backward_to(emulation, kind, sizes, inputs, &mut dbias[..sizes.cols], Output::Overwrite);
    [dx, dbias.to_vec()]
}

/// Inputs start `offset` elements after an aligned address.
fn check(emulation: &Emulation, rows: usize, cols: usize, offset: usize) {
    let sizes = Rows { rows, cols };
    let (x, bias) = (random(offset + rows * cols, 4.0, 1), random(offset + cols, 1.0, 2));
    let dy = random(offset + rows * cols, 1.0, 3);
    let [x, bias, dy] = [&x, &bias, &dy].map(|buffer| &buffer[offset..]);
    for kind in KINDS {
        let what = format!("{kind:?}, {sizes:?}, {offset} elements after");
        let [y, dx, dbias] = reference(kind, sizes, &wide(x), &wide(bias), &wide(dy)).unwrap();
        let mut found = Buffer::<bf16>::poisoned(x.len() + GUARD);
        let to = emulation.write(&mut found[..x.len()]);
        launch::forward(emulation, sizes, kind, emulation.read(x), emulation.read(bias), to).expect(&what);
        assert_close(&found, &y, 1e-6, &what);
        let [found_dx, found_dbias] = backward(emulation, kind, sizes, [x, bias, dy]);
        assert_close(&found_dx, &dx, 1e-6, &what);
        assert_close(&found_dbias, &dbias, 1e-6 * (1.0 + rows as f64), &what);
    }
}

#[test]
fn rows_and_columns_around_what_a_block_takes() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for rows in [0, 1, 7, 8, 9, 31, 32, 33] {
        for cols in [0, 1, 7, 8, 9, 255, 256, 257] {
            check(&emulation, rows, cols, 0);
        }
    }
    check(&emulation, 144, 1152, 0);
    check(&emulation, 4096, 9, 0);
    check(&emulation, 3, 4096, 0);
    check(&emulation, 8193, 2, 0);
}

#[test]
fn addresses_that_are_not_aligned() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for offset in [1, 4] {
        check(&emulation, 33, 16, offset);
    }
}

/// Far from 0 the function is 0 or the input, and its slope 0 or 1.
#[test]
fn large_inputs() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Rows { rows: 1, cols: 4 };
    let (zeros, ones) = ([bf16::ZERO; 4], [bf16::ONE; 4]);
    for kind in KINDS {
        for [small, large] in [[50.0, 1e18], [1e30, 3e38]] {
            let x: Buffer<bf16> = [-large, -small, small, large].map(bf16::from_f64).into_iter().collect();
            let mut y = Buffer::<bf16>::poisoned(4);
            let to = emulation.write(&mut y);
            launch::forward(&emulation, sizes, kind, emulation.read(&x), emulation.read(&zeros), to).unwrap();
            assert_eq!(y[..], [bf16::ZERO, bf16::ZERO, x[2], x[3]]);
            let [dx, dbias] = backward(&emulation, kind, sizes, [&x, &zeros, &ones]);
            assert_eq!(dx[..4], [bf16::ZERO, bf16::ZERO, bf16::ONE, bf16::ONE]);
            assert_eq!(dbias[..4], dx[..4]);
        }
    }
}

/// Between what is near 0 and what is far from it, every bf16 of either sign.
#[test]
fn inputs_of_every_size() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let x: Buffer<bf16> = (0..=0x7f7f).flat_map(|bits| [bits, bits | 0x8000]).map(bf16::from_bits).collect();
    let (zeros, ones) = ([bf16::ZERO], vec![bf16::ONE; x.len()]);
    let sizes = Rows { rows: x.len(), cols: 1 };
    for kind in KINDS {
        let [y, dx, _] = reference(kind, sizes, &wide(&x), &[0.0], &wide(&ones)).unwrap();
        let mut found = Buffer::<bf16>::poisoned(x.len() + GUARD);
        let to = emulation.write(&mut found[..x.len()]);
        launch::forward(&emulation, sizes, kind, emulation.read(&x), emulation.read(&zeros), to).unwrap();
        assert_close(&found, &y, 1e-6, &format!("{kind:?}"));
        let [found, _] = backward(&emulation, kind, sizes, [&x, &zeros, &ones]);
        assert_close(&found, &dx, 1e-6, &format!("{kind:?}, slope"));
    }
}

/// One NaN goes where it counts, and nowhere else.
#[test]
fn what_is_not_a_number_stays_none() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Rows { rows: 2, cols: 3 };
    let mut x = random(6, 4.0, 1);
    x[4] = bf16::NAN;
    let (zeros, ones) = ([bf16::ZERO; 3], [bf16::ONE; 6]);
    for kind in KINDS {
        let mut y = Buffer::<bf16>::poisoned(6);
        let to = emulation.write(&mut y);
        launch::forward(&emulation, sizes, kind, emulation.read(&x), emulation.read(&zeros), to).unwrap();
        let [dx, dbias] = backward(&emulation, kind, sizes, [&x, &zeros, &ones]);
        let are_nan = |values: &[bf16]| values.iter().map(|x| x.is_nan()).collect::<Vec<_>>();
        assert_eq!(are_nan(&y), [false, false, false, false, true, false], "{kind:?}");
        assert_eq!(are_nan(&dx[..6]), are_nan(&y), "{kind:?}");
        assert_eq!(are_nan(&dbias[..3]), [false, true, false], "{kind:?}");
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let x = random(6, 1.0, 1);
    let refusal = |rows: usize, cols: usize, num_bias: usize, num_y: usize| {
        let mut y = Buffer::<bf16>::poisoned(num_y);
        let (x, bias) = (emulation.read(&x), emulation.read(&x[..num_bias]));
        let y = emulation.write(&mut y);
        launch::forward(&emulation, Rows { rows, cols }, Gelu::Tanh, x, bias, y).unwrap_err().to_string()
    };
    assert!(refusal(2, 4, 4, 8).contains("not those of"));
    assert!(refusal(2, 3, 2, 6).contains("the bias 2"));
    assert!(refusal(2, 3, 3, 5).contains("[6, 5] elements"));
    assert!(refusal(usize::MAX, 3, 3, 6).contains("go up to"));
}

/// The gradient of a bias goes on from micro-batch to micro-batch in f32.
#[test]
fn the_gradient_of_the_bias_is_added_to_what_is_there() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let all_sizes = [(1, 1), (40, 9), (33, 256), (0, 3), (8193, 2)];
    for (kind, (rows, cols)) in KINDS.into_iter().flat_map(|kind| all_sizes.map(|sizes| (kind, sizes))) {
        let sizes = Rows { rows, cols };
        let (x, bias, dy) = (random(rows * cols, 4.0, 1), random(cols, 1.0, 2), random(rows * cols, 1.0, 3));
        let inputs: [&[bf16]; 3] = [&x, &bias, &dy];
        let mut sum = Buffer::<f32>::poisoned(cols);
        let dx = backward_to(&emulation, kind, sizes, inputs, &mut sum, Output::Overwrite);
        let [_, _, expected] = reference(kind, sizes, &wide(&x), &wide(&bias), &wide(&dy)).unwrap();
        for (found, expected) in sum.iter().zip(&expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error <= 1e-6 * (1.0 + rows as f64), "{sizes:?}: {found} is not {expected}");
        }
        let mut added = Buffer::<f32>::poisoned(cols + GUARD);
        added[..cols].fill(0.5);
        let same_dx = backward_to(&emulation, kind, sizes, inputs, &mut added[..cols], Output::Accumulate);
        assert!(added[cols..].iter().all(|x| x.is_nan()), "{sizes:?}: something is written after the output");
        added.iter().zip(sum.iter()).for_each(|(found, sum)| assert_eq!(*found, 0.5 + sum, "{sizes:?}"));
        assert_eq!(dx[..rows * cols], same_dx[..rows * cols]);
        let [_, rounded] = backward(&emulation, kind, sizes, inputs);
        rounded.iter().zip(sum.iter()).for_each(|(found, sum)| assert_eq!(*found, bf16::from_f32(*sum)));
    }
}

#[test]
fn the_order_of_blocks_changes_nothing() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Rows { rows: 100, cols: 300 };
    let (x, bias, dy) = (random(30_000, 3.0, 1), random(300, 1.0, 2), random(30_000, 1.0, 3));
    let bits = |emulation: &Emulation| {
        KINDS.map(|kind| {
            backward(emulation, kind, sizes, [&x, &bias, &dy])
                .map(|x| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
        })
    };
    let first = bits(&emulation);
    assert_eq!(first, bits(&emulation.with_order(BlockOrder::Shuffled(9))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_sizes(rows in 0usize..100, cols in 0usize..300) {
        if let Some(emulation) = Emulation::from_env().unwrap() {
            check(&emulation, rows, cols, 0);
        }
    }
}
