//! The kernels that sum columns against sums in f64.

use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation, Number};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::column_sum::launch::{Element, column_sum, partials_len};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;

/// Elements after the output that no kernel may touch.
const GUARD: usize = 16;

/// An element type of the kernels, with the largest relative error of what is rounded to it.
trait Float: Number + Element {
    const ROUNDING: f64;
    fn narrow(x: f64) -> Self;
    fn wide(self) -> f64;
}

impl Float for f32 {
    const ROUNDING: f64 = 0.0;
    fn narrow(x: f64) -> Self {
        x as f32
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

impl Float for bf16 {
    const ROUNDING: f64 = 1.0 / 256.0;
    fn narrow(x: f64) -> Self {
        Self::from_f64(x)
    }
    fn wide(self) -> f64 {
        self.into()
    }
}

fn random<T: Float>(len: usize, seed: u64) -> Buffer<T> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| T::narrow(rng.random_range(-1.0..1.0))).collect()
}

/// The sums, poisoned or random before, with the guard behind them.
fn run<T: Float, S: Float>(emulation: &Emulation, sizes: Rows, x: &[T], output: Output) -> Vec<S> {
    let mut to = match output {
        Output::Overwrite => Buffer::<S>::poisoned(sizes.cols + GUARD),
        Output::Accumulate => {
            let old = random::<S>(sizes.cols, 2);
            let guard = [S::narrow(f64::NAN); GUARD];
            old.iter().chain(&guard).copied().collect()
        }
    };
    let mut partials = Buffer::<f32>::poisoned(partials_len(sizes).unwrap());
    let outputs = (emulation.write(&mut partials), emulation.write(&mut to[..sizes.cols]));
    column_sum(emulation, sizes, emulation.read(x), outputs.0, outputs.1, output).unwrap();
    to.to_vec()
}

fn check<T: Float, S: Float>(emulation: &Emulation, rows: usize, cols: usize, offset: usize) {
    let sizes = Rows { rows, cols };
    let x = random::<T>(offset + rows * cols, 1);
    let x = &x[offset..];
    for output in [Output::Overwrite, Output::Accumulate] {
        let found = run::<T, S>(emulation, sizes, x, output);
        let mut expected = match output {
            Output::Overwrite => vec![0.0; cols],
            Output::Accumulate => random::<S>(cols, 2).iter().map(|old| old.wide()).collect(),
        };
        for row in x.chunks_exact(cols.max(1)) {
            expected.iter_mut().zip(row).for_each(|(sum, x)| *sum += x.wide());
        }
        for (column, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let error = (found.wide() - expected).abs();
            let bound = S::ROUNDING * expected.abs() + 1e-6 * (1.0 + (rows as f64).sqrt());
            let found = found.wide();
            assert!(error <= bound, "{sizes:?}, {output:?}, column {column}: {found} is not {expected}");
        }
        assert!(found[cols..].iter().all(|x| x.wide().is_nan()), "{sizes:?}: something is written behind");
    }
}

#[test]
fn rows_and_columns_around_what_a_block_takes() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for rows in [0, 1, 7, 8, 9, 31, 32, 33] {
        for cols in [0, 1, 7, 8, 9, 127, 128, 129] {
            check::<f32, f32>(&emulation, rows, cols, 0);
        }
        for cols in [1, 8, 9, 255, 256, 257] {
            check::<bf16, f32>(&emulation, rows, cols, 0);
            check::<bf16, bf16>(&emulation, rows, cols, 0);
        }
    }
    check::<f32, bf16>(&emulation, 5, 9, 0);
    check::<bf16, bf16>(&emulation, 144, 1152, 0);
    check::<bf16, f32>(&emulation, 4096, 16, 0);
    check::<f32, f32>(&emulation, 3, 4096, 0);
    // More than one batch of chunks: 8193 rows are 256 of 64.
    check::<bf16, bf16>(&emulation, 8193, 3, 0);
}

#[test]
fn addresses_that_are_not_aligned() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for offset in [1, 3, 4] {
        check::<f32, f32>(&emulation, 33, 8, offset);
        check::<bf16, bf16>(&emulation, 33, 16, offset);
    }
}

#[test]
fn sizes_that_do_not_fit_are_refused() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let x = random::<f32>(6, 1);
    let refusal = |rows: usize, cols: usize, num_partials: usize, num_sums: usize| {
        let (mut partials, mut sums) =
            (Buffer::<f32>::poisoned(num_partials), Buffer::<f32>::poisoned(num_sums));
        let outputs = (emulation.write(&mut partials), emulation.write(&mut sums));
        let sizes = Rows { rows, cols };
        column_sum(&emulation, sizes, emulation.read(&x), outputs.0, outputs.1, Output::Overwrite)
            .unwrap_err()
            .to_string()
    };
    assert!(refusal(2, 4, 4, 4).contains("x has 6 elements"));
    assert!(refusal(2, 3, 4, 3).contains("4 partial sums"));
    assert!(refusal(2, 3, 3, 4).contains("to 4 sums"));
    assert!(refusal(usize::MAX, 2, 3, 2).contains("go up to"));
}

#[test]
fn the_order_of_blocks_changes_nothing() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let sizes = Rows { rows: 200, cols: 300 };
    let x = random::<bf16>(200 * 300, 1);
    let bits = |emulation: &Emulation| -> Vec<u32> {
        let sums = run::<bf16, f32>(emulation, sizes, &x, Output::Overwrite);
        sums.iter().map(|sum| sum.to_bits()).collect()
    };
    let first = bits(&emulation);
    assert_eq!(first, bits(&emulation.with_order(BlockOrder::Reverse)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn random_sizes(rows in 0usize..100, cols in 0usize..300) {
        if let Some(emulation) = Emulation::from_env().unwrap() {
            check::<f32, f32>(&emulation, rows, cols, 0);
            check::<bf16, bf16>(&emulation, rows, cols, 0);
        }
    }
}
