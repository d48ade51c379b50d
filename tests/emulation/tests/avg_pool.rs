//! The kernels of adaptive average pooling against the operation on a CPU, in f64.

use candle_core::{Device, Result, Tensor, Var};
use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation, Number};
use oqvl_kernels::adaptive_avg_pool;
use oqvl_kernels::avg_pool::{Pooling, launch};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Elements after the output that no kernel may touch.
const GUARD: usize = 16;

/// Largest absolute error besides, of sums whose terms cancel.
const SLACK: f64 = 1e-5;

/// An element type of the kernels, and how close its results are: the largest relative error.
trait Float: Number {
    const TOLERANCE: f64;
    fn narrow(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Float for f32 {
    const TOLERANCE: f64 = 1e-6;
    fn narrow(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Float for bf16 {
    /// Half a unit in the last place, and the sum's own error.
    const TOLERANCE: f64 = 1.0 / 256.0 + 1e-6;
    fn narrow(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

/// Random elements, `offset` elements after an aligned address.
fn random<T: Float>(len: usize, offset: usize, seed: u64) -> Buffer<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..offset + len).map(|_| T::narrow(rng.random_range(-1.0..1.0))).collect()
}

fn wide<T: Float>(elements: &[T]) -> Vec<f64> {
    elements.iter().map(|x| x.wide()).collect()
}

/// Every element is there and close, and none after them is written.
#[track_caller]
fn assert_close<T: Float>(found: &[T], expected: &[f64], what: &str) {
    let (found, guard) = found.split_at(expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found.wide() - expected).abs();
        assert!(
            error <= T::TOLERANCE * expected.abs() + SLACK,
            "{what}: element {index}: {} is not {expected}",
            found.wide()
        );
    }
    assert!(guard.iter().all(|x| x.wide().is_nan()), "{what}: something is written after the output");
}

/// The output, and the gradient of the input, of the operation.
fn reference(sizes: Pooling, x: &[f64], dy: &[f64]) -> Result<(Vec<f64>, Vec<f64>)> {
    let Pooling { batch, grid, pooled, channels } = sizes;
    let x = Var::from_vec(x.to_vec(), (batch, grid * grid, channels), &Device::Cpu)?;
    let dy = Tensor::from_vec(dy.to_vec(), (batch, pooled * pooled, channels), &Device::Cpu)?;
    let y = adaptive_avg_pool(&x, pooled)?;
    let gradients = (&y * dy)?.sum_all()?.backward()?;
    let dx = gradients.get(&x).expect("the operation has a gradient");
    Ok((y.flatten_all()?.to_vec1()?, dx.flatten_all()?.to_vec1()?))
}

/// Both directions; inputs and outputs start `offset` elements after an aligned address.
fn check<T: Float + launch::Element>(emulation: &Emulation, sizes: Pooling, offset: usize) {
    let what = format!("{sizes:?}, {} bytes each, {offset} after", size_of::<T>());
    let (num_x, num_y) = (sizes.input_len().unwrap(), sizes.output_len().unwrap());
    let (x, dy) = (random::<T>(num_x, offset, 1), random::<T>(num_y, offset, 2));
    let (x, dy) = (&x[offset..], &dy[offset..]);
    let (expected_y, expected_dx) = reference(sizes, &wide(x), &wide(dy)).unwrap();
    let mut y = Buffer::<T>::poisoned(offset + num_y + GUARD);
    let y = &mut y[offset..];
    launch::forward(emulation, sizes, emulation.read(x), emulation.write(&mut y[..num_y])).expect(&what);
    assert_close(y, &expected_y, &what);
    let mut dx = Buffer::<T>::poisoned(offset + num_x + GUARD);
    let dx = &mut dx[offset..];
    launch::backward(emulation, sizes, emulation.read(dy), emulation.write(&mut dx[..num_x])).expect(&what);
    assert_close(dx, &expected_dx, &what);
}

#[test]
fn grids_and_channels() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for (grid, pooled) in [(1, 1), (1, 4), (2, 3), (5, 1), (3, 3), (12, 4), (9, 7)] {
        for (batch, channels) in [(0, 8), (1, 0), (2, 1), (1, 7), (3, 8), (2, 9)] {
            let sizes = Pooling { batch, grid, pooled, channels };
            check::<f32>(&emulation, sizes, 0);
            check::<bf16>(&emulation, sizes, 0);
        }
    }
}

#[test]
fn the_sizes_of_the_projector() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    check::<bf16>(&emulation, Pooling { batch: 1, grid: 27, pooled: 12, channels: 1152 }, 0);
    check::<f32>(&emulation, Pooling { batch: 2, grid: 27, pooled: 12, channels: 17 }, 0);
    check::<bf16>(&emulation, Pooling { batch: 1, grid: 27, pooled: 27, channels: 72 }, 0);
    check::<bf16>(&emulation, Pooling { batch: 2, grid: 12, pooled: 4, channels: 1152 }, 0);
}

/// What the lanes of a warp take at once is 256 channels of bf16, 128 of f32.
#[test]
fn channels_around_what_a_warp_takes() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for channels in [127, 128, 129, 255, 256, 257, 4096] {
        let sizes = Pooling { batch: 1, grid: 3, pooled: 2, channels };
        check::<f32>(&emulation, sizes, 0);
        check::<bf16>(&emulation, sizes, 0);
    }
}

/// Rows of whole sixteen bytes that do not start at a multiple of them.
#[test]
fn addresses_that_are_not_aligned() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for offset in [1, 3, 4] {
        check::<f32>(&emulation, Pooling { batch: 2, grid: 3, pooled: 2, channels: 8 }, offset);
        check::<bf16>(&emulation, Pooling { batch: 2, grid: 3, pooled: 2, channels: 16 }, offset);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Pooling { batch: 1, grid: 2, pooled: 1, channels: 3 };
    let x = random::<f32>(sizes.input_len().unwrap(), 0, 1);
    let mut y = Buffer::<f32>::poisoned(sizes.output_len().unwrap() + 1);
    let mut refusal = |sizes: Pooling, x: &[f32], num_y: usize| {
        let y = emulation.write(&mut y[..num_y]);
        launch::forward(&emulation, sizes, emulation.read(x), y).unwrap_err().to_string()
    };
    assert!(refusal(sizes, &x[1..], 3).contains("x has 11 elements"));
    assert!(refusal(sizes, &x, 4).contains("y has 4"));
    assert!(refusal(Pooling { grid: 0, ..sizes }, &[], 3).contains("edge of 1 or more"));
    assert!(refusal(Pooling { batch: usize::MAX, ..sizes }, &x, 3).contains("not those of"));
    let long = Pooling { batch: 0, grid: 2, pooled: 1, channels: 3 };
    launch::forward(&emulation, long, emulation.read::<f32>(&[]), emulation.write(&mut [])).unwrap();
}

#[test]
fn the_order_of_blocks_changes_nothing() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Pooling { batch: 3, grid: 5, pooled: 3, channels: 24 };
    let x = random::<bf16>(sizes.input_len().unwrap(), 0, 1);
    let run = |emulation: &Emulation| {
        let mut y = Buffer::<bf16>::poisoned(sizes.output_len().unwrap());
        launch::forward(emulation, sizes, emulation.read(&x), emulation.write(&mut y)).unwrap();
        y.to_vec()
    };
    let first = run(&emulation);
    assert_eq!(first, run(&emulation.with_order(BlockOrder::Shuffled(5))));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_sizes(batch in 0usize..4, grid in 1usize..12, pooled in 1usize..12, channels in 0usize..40) {
        if let Some(emulation) = Emulation::from_env().unwrap() {
            let sizes = Pooling { batch, grid, pooled, channels };
            check::<f32>(&emulation, sizes, 0);
            check::<bf16>(&emulation, sizes, 0);
        }
    }
}
