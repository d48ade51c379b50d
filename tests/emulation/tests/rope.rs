//! Bias and rotation of fused queries, keys and values, against the candle operation in f64.

use candle_core::{Device, Tensor, Var};
use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation};
use oqvl_kernels::column_sum::launch::{BiasGradient, partials_len};
use oqvl_kernels::rope::launch::{Angles, Qkv, backward, forward};
use oqvl_kernels::rope::{positions, reference};
use oqvl_kernels::{CuSeqlens, Output, RopeTables, rope};
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

/// Half of the distance between bf16 numbers, relative.
const ROUNDING: f64 = 1.0 / 256.0;

fn random(len: usize, seed: u64) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect()
}

fn widen(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

#[track_caller]
fn assert_rounded(what: &str, found: &[bf16], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (found.to_f64() - expected).abs();
        // The tables are rounded to f32.
        let bound = 1.01 * ROUNDING * expected.abs() + 1e-6;
        assert!(error <= bound, "{what}[{index}]: {found} is not {expected}");
    }
}

struct Case {
    sizes: Qkv,
    positions: Buffer<i32>,
    tables: RopeTables,
    qkv: Buffer<bf16>,
    bias: Option<Buffer<bf16>>,
    dy: Buffer<bf16>,
}

struct Found {
    y: Buffer<bf16>,
    dqkv: Buffer<bf16>,
    /// With `bias` alone.
    dbias: Buffer<f32>,
}

impl Case {
    fn new(heads: (usize, usize), head_dim: usize, lengths: &[i32], has_bias: bool, seed: u64) -> Self {
        let mut boundaries = vec![0];
        for len in lengths {
            boundaries.push(boundaries[boundaries.len() - 1] + len);
        }
        let positions: Buffer<i32> = positions(&CuSeqlens::new(boundaries).unwrap()).into_iter().collect();
        let rows = positions.len();
        let sizes = Qkv { rows, num_heads: heads.0, num_kv_heads: heads.1, head_dim };
        let cols = sizes.sizes().unwrap().cols;
        let longest = lengths.iter().copied().max().unwrap_or(0).max(1) as usize;
        Self {
            sizes,
            positions,
            tables: RopeTables::new(head_dim, longest, 1e6),
            qkv: random(rows * cols, seed),
            bias: has_bias.then(|| random(cols, seed + 1)),
            dy: random(rows * cols, seed + 2),
        }
    }

    fn run(&self, on: &Emulation) -> Found {
        let matrix = self.sizes.sizes().unwrap();
        let (cos, sin) = self.tables.cos_sin();
        let (cos, sin): (Buffer<f32>, Buffer<f32>) = (cos.into_iter().collect(), sin.into_iter().collect());
        let angles =
            || Angles { positions: on.read(&self.positions), cos: on.read(&cos), sin: on.read(&sin) };
        let mut found = Found {
            y: self.qkv.clone(),
            dqkv: self.dy.clone(),
            dbias: Buffer::poisoned(if self.bias.is_some() { matrix.cols } else { 0 }),
        };
        let bias = self.bias.as_ref().map(|bias| on.read(bias));
        forward(on, self.sizes, on.write(&mut found.y), bias, angles()).unwrap();
        let mut partials = Buffer::<f32>::poisoned(partials_len(matrix).unwrap());
        let gradient = self.bias.is_some().then(|| BiasGradient {
            partials: on.write(&mut partials),
            dbias: on.write(&mut found.dbias),
            output: Output::Overwrite,
        });
        backward(on, self.sizes, on.write(&mut found.dqkv), angles(), gradient).unwrap();
        found
    }

    /// Runs the kernels and compares everything with the reference, and that with the operation of candle programs.
    #[track_caller]
    fn check(&self, on: &Emulation) {
        let Self { sizes, positions, tables, qkv, bias, dy } = self;
        let found = self.run(on);
        let bias = bias.as_ref().map(|bias| widen(bias));
        let (mut y, mut dqkv) = (widen(qkv), widen(dy));
        let (cos, sin) = tables.cos_sin();
        let angles = reference::Angles { positions, cos: &cos, sin: &sin };
        reference::forward(*sizes, &mut y, bias.as_deref(), angles).unwrap();
        reference::backward(*sizes, &mut dqkv, angles).unwrap();
        let cols = sizes.sizes().unwrap().cols;
        let mut dbias = vec![0.0; cols];
        dqkv.iter().enumerate().for_each(|(index, dqkv)| dbias[index % cols] += dqkv);
        assert_rounded("y", &found.y, &y);
        assert_rounded("dqkv", &found.dqkv, &dqkv);
        for (index, found) in found.dbias.iter().enumerate() {
            let error = (f64::from(*found) - dbias[index]).abs();
            assert!(
                error < 1e-5 * (1.0 + sizes.rows as f64),
                "dbias[{index}]: {found} is not {}",
                dbias[index]
            );
        }
        self.assert_candle_agrees(bias.as_deref(), (&y, &dqkv, &dbias));
    }

    /// With a row for each batch entry, since positions restart.
    fn assert_candle_agrees(&self, bias: Option<&[f64]>, (y, dqkv, dbias): (&[f64], &[f64], &[f64])) {
        let Qkv { rows, num_heads, num_kv_heads, head_dim } = self.sizes;
        let heads = num_heads + 2 * num_kv_heads;
        let cols = heads * head_dim;
        // A dozen tensors for each row.
        if cols == 0 || !(1..=100).contains(&rows) {
            return;
        }
        let tensor = |values: &[f64]| Tensor::from_slice(values, (values.len() / cols, cols), &Device::Cpu);
        let qkv = Var::from_tensor(&tensor(&widen(&self.qkv)).unwrap()).unwrap();
        let bias = Var::from_tensor(&tensor(bias.unwrap_or(&vec![0.0; cols])).unwrap()).unwrap();
        let added = qkv.broadcast_add(&bias).unwrap();
        let mut all = Vec::new();
        for (row, position) in self.positions.iter().enumerate() {
            let of_row = added.narrow(0, row, 1).unwrap().reshape((1, heads, 1, head_dim)).unwrap();
            let rotated = of_row.narrow(1, 0, num_heads + num_kv_heads).unwrap();
            let rotated = rope(&rotated, &self.tables, *position as usize).unwrap();
            let values = of_row.narrow(1, num_heads + num_kv_heads, num_kv_heads).unwrap();
            all.push(Tensor::cat(&[rotated, values], 1).unwrap().reshape((1, cols)).unwrap());
        }
        let expected = Tensor::cat(&all, 0).unwrap();
        let loss = (&expected * tensor(&widen(&self.dy)).unwrap()).unwrap().sum_all().unwrap();
        let gradients = loss.backward().unwrap();
        let pairs =
            [(y, &expected), (dqkv, gradients.get(&qkv).unwrap()), (dbias, gradients.get(&bias).unwrap())];
        for (found, expected) in pairs {
            let expected: Vec<f64> = expected.flatten_all().unwrap().to_vec1().unwrap();
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                assert!(
                    (found - expected).abs() <= 1e-12 * (1.0 + expected.abs()),
                    "{found} is not {expected}"
                );
            }
        }
    }
}

#[test]
fn rope_of_every_number_of_rows() {
    let Some(on) = emulation() else { return };
    for rows in [0, 1, 7, 8, 9, 31, 32, 33, 65] {
        Case::new((3, 1), 16, &[rows], true, 1).check(&on);
        Case::new((3, 1), 16, &[rows], false, 1).check(&on);
    }
}

/// A pack of the pre-training, and more rows than there are chunks of 32 for.
#[test]
fn rope_of_many_rows() {
    let Some(on) = emulation() else { return };
    Case::new((1, 1), 8, &[1000, 3096], true, 1).check(&on);
    Case::new((1, 1), 4, &[8193], true, 2).check(&on);
}

/// Halves that are whole sixteen bytes, and ones that are not.
#[test]
fn rope_of_every_head_dim() {
    let Some(on) = emulation() else { return };
    for head_dim in [2, 6, 14, 16, 18, 32, 64, 72, 80, 128, 256] {
        Case::new((3, 1), head_dim, &[4, 5], true, head_dim as u64).check(&on);
    }
}

/// Qwen2.5-1.5B and -0.5B, as many units as a block has and one more, and heads of one kind alone.
#[test]
fn rope_of_any_heads() {
    let Some(on) = emulation() else { return };
    for (heads, kv_heads, head_dim) in [
        (12, 2, 128),
        (14, 2, 64),
        (2, 1, 128),
        (3, 1, 128),
        (30, 1, 16),
        (31, 1, 16),
        (5, 0, 16),
        (0, 2, 16),
    ] {
        for has_bias in [true, false] {
            Case::new((heads, kv_heads), head_dim, &[6, 3], has_bias, 2).check(&on);
        }
    }
}

#[test]
fn rope_restarts_with_every_sequence() {
    let Some(on) = emulation() else { return };
    for lengths in [&[][..], &[0], &[1, 0, 30, 0, 13, 1], &[5, 5, 5]] {
        Case::new((2, 1), 16, lengths, true, 3).check(&on);
    }
    let case = Case::new((2, 1), 16, &[5, 5], false, 4);
    assert_eq!(case.positions[..], [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]);
}

/// Matrices that begin anywhere.
#[test]
fn rope_of_unaligned_rows() {
    let Some(on) = emulation() else { return };
    let case = Case::new((2, 1), 16, &[6], true, 5);
    let (cos, sin) = case.tables.cos_sin();
    let (cos, sin): (Buffer<f32>, Buffer<f32>) = (cos.into_iter().collect(), sin.into_iter().collect());
    let mut shifted = Buffer::poisoned(case.qkv.len() + 1);
    shifted[1..].copy_from_slice(&case.qkv);
    let angles = Angles { positions: on.read(&case.positions), cos: on.read(&cos), sin: on.read(&sin) };
    let bias = case.bias.as_ref().map(|bias| on.read(bias));
    forward(&on, case.sizes, on.write(&mut shifted[1..]), bias, angles).unwrap();
    let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
    assert_eq!(bits(&shifted[1..]), bits(&case.run(&on).y));
    assert_eq!(shifted[0].to_bits(), u16::MAX);
}

/// The gradient of a bias goes on from micro-batch to micro-batch, and may be of bf16.
#[test]
fn rope_accumulates_the_gradient_of_the_bias() {
    let Some(on) = emulation() else { return };
    let case = Case::new((2, 1), 16, &[40], true, 6);
    let matrix = case.sizes.sizes().unwrap();
    let (cos, sin) = case.tables.cos_sin();
    let (cos, sin): (Buffer<f32>, Buffer<f32>) = (cos.into_iter().collect(), sin.into_iter().collect());
    let angles = || Angles { positions: on.read(&case.positions), cos: on.read(&cos), sin: on.read(&sin) };
    let expected = case.run(&on);
    let (mut dqkv, mut dbias) = (case.dy.clone(), Buffer::<f32>::from(&vec![0.5; matrix.cols][..]));
    let mut partials = Buffer::poisoned(partials_len(matrix).unwrap());
    let gradient = BiasGradient {
        partials: on.write(&mut partials),
        dbias: on.write(&mut dbias),
        output: Output::Accumulate,
    };
    backward(&on, case.sizes, on.write(&mut dqkv), angles(), Some(gradient)).unwrap();
    dbias.iter().zip(expected.dbias.iter()).for_each(|(found, sum)| assert_eq!(*found, 0.5 + sum));
    let (mut dqkv, mut dbias) = (case.dy.clone(), Buffer::<bf16>::poisoned(matrix.cols));
    let gradient = BiasGradient {
        partials: on.write(&mut partials),
        dbias: on.write(&mut dbias),
        output: Output::Overwrite,
    };
    backward(&on, case.sizes, on.write(&mut dqkv), angles(), Some(gradient)).unwrap();
    dbias.iter().zip(expected.dbias.iter()).for_each(|(found, sum)| assert_eq!(*found, bf16::from_f32(*sum)));
}

/// Forward and back is where one came from.
#[test]
fn rope_is_undone_by_its_backward() {
    let Some(on) = emulation() else { return };
    let mut case = Case::new((12, 2), 128, &[70], false, 7);
    case.dy = case.run(&on).y;
    let found = case.run(&on).dqkv;
    for (index, (found, expected)) in found.iter().zip(case.qkv.iter()).enumerate() {
        // A pair mixes, and so does its rounding; |x| is up to 2.
        let error = (found.to_f32() - expected.to_f32()).abs();
        assert!(error <= 3.0 / 128.0, "[{index}]: {found} is not {expected}");
    }
}

#[test]
fn rope_is_deterministic() {
    let case = Case::new((4, 2), 32, &[100, 150], true, 8);
    let runs = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(7)];
    let mut runs = runs.into_iter().filter_map(|order| {
        let found = case.run(&emulation()?.with_order(order));
        let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
        let dbias: Vec<u32> = found.dbias.iter().map(|x| x.to_bits()).collect();
        Some((bits(&found.y), bits(&found.dqkv), dbias))
    });
    let Some(first) = runs.next() else { return };
    assert!(runs.all(|run| run == first));
}

/// Positions on the device that the host did not check take the nearest that there is an angle for.
#[test]
fn rope_stays_within_its_tables() {
    let Some(on) = emulation() else { return };
    let mut case = Case::new((2, 1), 16, &[4], true, 9);
    case.positions.copy_from_slice(&[-1, 4, i32::MIN, i32::MAX]);
    let found = case.run(&on);
    case.positions.copy_from_slice(&[0, 3, 0, 3]);
    let expected = case.run(&on);
    assert_eq!((&found.y[..], &found.dqkv[..]), (&expected.y[..], &expected.dqkv[..]));
}

#[test]
fn rope_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let sizes = Qkv { rows: 2, num_heads: 2, num_kv_heads: 1, head_dim: 4 };
    let refusal = |sizes: Qkv, [qkv, bias, positions, cos, sin]: [usize; 5]| {
        let (mut qkv, bias) = (Buffer::poisoned(qkv), Buffer::poisoned(bias));
        let (positions, cos, sin) =
            (Buffer::poisoned(positions), Buffer::poisoned(cos), Buffer::poisoned(sin));
        let angles = Angles { positions: on.read(&positions), cos: on.read(&cos), sin: on.read(&sin) };
        let bias = Some(on.read(&bias));
        forward(&on, sizes, on.write(&mut qkv), bias, angles).unwrap_err().to_string()
    };
    let lens = [32, 16, 2, 6, 6];
    assert!(refusal(sizes, [31, 16, 2, 6, 6]).contains("the matrix has 31 elements"));
    assert!(refusal(sizes, [32, 15, 2, 6, 6]).contains("the bias has 15 elements"));
    assert!(refusal(sizes, [32, 16, 3, 6, 6]).contains("there are 3 positions"));
    assert!(refusal(sizes, [32, 16, 2, 6, 4]).contains("[6, 4] elements, not 2"));
    assert!(refusal(sizes, [32, 16, 2, 5, 5]).contains("[5, 5] elements, not 2"));
    assert!(refusal(sizes, [32, 16, 2, 0, 0]).contains("tables of 0 positions"));
    assert!(refusal(Qkv { head_dim: 3, ..sizes }, [24, 12, 2, 6, 6]).contains("head_dim is 3"));
    assert!(refusal(Qkv { num_heads: usize::MAX, ..sizes }, lens).contains("not those of"));
    let (mut dqkv, mut partials, mut dbias) =
        (Buffer::poisoned(32), Buffer::poisoned(15), Buffer::<f32>::poisoned(16));
    let (positions, table) = (Buffer::poisoned(2), Buffer::poisoned(6));
    let angles = Angles { positions: on.read(&positions), cos: on.read(&table), sin: on.read(&table) };
    let gradient = BiasGradient {
        partials: on.write(&mut partials),
        dbias: on.write(&mut dbias),
        output: Output::Overwrite,
    };
    let error = backward(&on, sizes, on.write(&mut dqkv), angles, Some(gradient)).unwrap_err().to_string();
    assert!(error.contains("15 partial sums"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn rope_of_random_sizes(
        heads in (0usize..8, 0usize..4),
        half in 1usize..50,
        lengths in proptest::collection::vec(0i32..25, 0..4),
        has_bias in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let Some(on) = emulation() else { return Ok(()) };
        Case::new(heads, 2 * half, &lengths, has_bias, seed).check(&on);
    }
}
