//! Cross-entropy that overwrites its logits, against the candle operation in f64.

use candle_core::{Device, Tensor, Var};
use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation, Mode};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::cross_entropy;
use oqvl_kernels::cross_entropy::launch::{Arguments, Totals, cross_entropy as launch, totals};
use oqvl_kernels::cross_entropy::{Loss, reference};
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

const IGNORE: i32 = -100;

struct Case {
    vocab: usize,
    logits: Buffer<bf16>,
    labels: Buffer<i32>,
    loss: Loss,
    /// On the device.
    scale: Option<f32>,
}

struct Found {
    gradient: Buffer<bf16>,
    stats: Buffer<f32>,
    sums: Buffer<f32>,
    counts: Buffer<i32>,
}

impl Case {
    /// Logits up to `bound`; every fourth row or so has no label.
    fn new(rows: usize, vocab: usize, bound: f32, seed: u64) -> Self {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let logits = (0..rows * vocab).map(|_| bf16::from_f32(rng.random_range(-bound..bound))).collect();
        let mut label = |row: usize| {
            let is_ignored = row > 0 && rng.random_bool(0.25);
            if is_ignored { IGNORE } else { rng.random_range(0..vocab as i32) }
        };
        let labels = (0..rows).map(&mut label).collect();
        let loss = Loss { ignore_index: IGNORE, scale: 0.5, z_loss: 0.0 };
        Self { vocab, logits, labels, loss, scale: None }
    }

    fn rows(&self) -> usize {
        self.labels.len()
    }

    /// In chunks of so many rows, the first of which overwrites the totals.
    fn run(&self, on: &Emulation, chunk: usize) -> Found {
        let mut found = Found {
            gradient: self.logits.clone(),
            stats: Buffer::poisoned(4 * self.rows()),
            sums: Buffer::poisoned(2),
            counts: Buffer::poisoned(2),
        };
        let scale: Option<Buffer<f32>> = self.scale.map(|scale| [scale].into_iter().collect());
        let mut output = Output::Overwrite;
        let mut start = 0;
        while start < self.rows() || output == Output::Overwrite {
            let end = (start + chunk).min(self.rows());
            // Chunks of rows that are not whole sixteen bytes begin anywhere.
            let arguments = Arguments {
                logits: on.write(&mut found.gradient[start * self.vocab..end * self.vocab]),
                labels: on.read(&self.labels[start..end]),
                scale: scale.as_ref().map(|scale| on.read(scale)),
                stats: on.write(&mut found.stats[4 * start..4 * end]),
            };
            launch(on, Rows { rows: end - start, cols: self.vocab }, self.loss, arguments).unwrap();
            let written =
                Totals { sums: on.write(&mut found.sums), counts: on.write(&mut found.counts), output };
            totals(on, on.read(&found.stats[4 * start..4 * end]), written).unwrap();
            (start, output) = (end, Output::Accumulate);
        }
        found
    }

    /// Runs the kernels and compares everything; without z-loss with the candle operation too.
    #[track_caller]
    fn check(&self, on: &Emulation, chunk: usize) {
        let Self { vocab, logits, labels, loss, .. } = self;
        let found = self.run(on, chunk);
        let mut expected: Vec<f64> = logits.iter().map(|x| x.to_f64()).collect();
        let mut stats = vec![f64::NAN; 4 * labels.len()];
        reference::cross_entropy(&mut expected, *vocab, labels, *loss, 1.0, &mut stats).unwrap();
        let mut of_all = reference::Totals::default();
        of_all.add(&stats);
        if loss.z_loss == 0.0 {
            self.assert_candle_agrees(&expected, of_all.loss);
        }
        let by_device = self.scale.map_or(1.0, f64::from);
        for (index, (found, expected)) in found.gradient.iter().zip(&expected).enumerate() {
            let expected = expected * by_device;
            let error = (found.to_f64() - expected).abs();
            let scale = f64::from(loss.scale).abs() * by_device.abs();
            let bound = 1.01 / 256.0 * expected.abs() + 1e-5 * scale.min(expected.abs() + 0.1 * scale);
            assert!(error <= bound, "gradient[{index}]: {found} is not {expected}");
        }
        let close =
            |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 1e-5 * (1.0 + expected.abs());
        assert!(close(found.sums[0], of_all.loss), "{} is not {}", found.sums[0], of_all.loss);
        assert!(close(found.sums[1], of_all.z_loss), "{} is not {}", found.sums[1], of_all.z_loss);
        assert_eq!(found.counts[..], [of_all.labels as i32, of_all.hits as i32]);
        let (mut hits, mut losses) = (0, 0.0);
        for (stats, label) in found.stats.chunks_exact(4).zip(labels.iter()) {
            assert_eq!(stats[2] == 1.0, *label != IGNORE);
            hits += usize::from(stats[3] == 1.0);
            losses += f64::from(stats[0]);
        }
        assert_eq!(hits, of_all.hits);
        assert!(close(found.sums[0], losses));
    }

    /// The operation of candle programs, over the rows that have a label.
    fn assert_candle_agrees(&self, expected: &[f64], loss: f64) {
        let is_labelled = |row: &usize| self.labels[*row] != IGNORE;
        let rows: Vec<usize> = (0..self.rows()).filter(is_labelled).collect();
        let labels: Vec<u32> = rows.iter().map(|row| self.labels[*row] as u32).collect();
        let logits: Vec<f64> = rows
            .iter()
            .flat_map(|row| self.logits[row * self.vocab..(row + 1) * self.vocab].iter().map(|x| x.to_f64()))
            .collect();
        let logits = Tensor::from_vec(logits, (rows.len(), self.vocab), &Device::Cpu).unwrap();
        let logits = Var::from_tensor(&logits).unwrap();
        let mean = cross_entropy(&logits, &labels).unwrap();
        let sum = mean.to_scalar::<f64>().unwrap() * rows.len() as f64;
        assert!((sum - loss).abs() <= 1e-10 * (1.0 + loss), "{sum} is not {loss}");
        let gradients = mean.backward().unwrap();
        let gradient: Vec<f64> = gradients.get(&logits).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        for (index, row) in rows.iter().enumerate() {
            let of_row = &expected[row * self.vocab..(row + 1) * self.vocab];
            for (expected, of_mean) in of_row.iter().zip(&gradient[index * self.vocab..]) {
                let of_sum = of_mean * rows.len() as f64 * f64::from(self.loss.scale);
                assert!((expected - of_sum).abs() <= 1e-12);
            }
        }
    }
}

/// Around the sixteen bytes, the turns of 128 threads, and where 1,024 threads take over.
#[test]
fn cross_entropy_of_every_edge_vocabulary() {
    let Some(on) = emulation() else { return };
    for vocab in [1, 2, 7, 8, 9, 1000, 1023, 1024, 1025, 4095, 4096, 4097, 4104, 8192, 8200] {
        Case::new(3, vocab, 8.0, vocab as u64).check(&on, 3);
    }
}

#[test]
fn cross_entropy_of_the_vocabulary_of_the_model() {
    let Some(on) = emulation() else { return };
    Case::new(1, 151_936, 8.0, 1).check(&on, 1);
    if on.mode() == Mode::Plain {
        Case::new(1, 151_935, 8.0, 2).check(&on, 1);
    }
}

#[test]
fn cross_entropy_of_every_number_of_rows() {
    let Some(on) = emulation() else { return };
    for rows in [0, 1, 31, 32, 33, 255, 256, 257, 4096] {
        Case::new(rows, 16, 4.0, rows as u64).check(&on, rows.max(1));
    }
}

#[test]
fn cross_entropy_in_chunks() {
    let Some(on) = emulation() else { return };
    for (vocab, chunk) in [(24, 7), (9, 7), (1000, 1)] {
        let case = Case::new(20, vocab, 4.0, 3);
        case.check(&on, chunk);
        let (whole, parts) = (case.run(&on, 20), case.run(&on, chunk));
        let bits = |values: &[bf16]| values.iter().map(|x| x.to_bits()).collect::<Vec<u16>>();
        assert_eq!(bits(&whole.gradient), bits(&parts.gradient));
        assert_eq!(whole.stats[..], parts.stats[..]);
    }
}

#[test]
fn cross_entropy_with_z_loss_and_a_scale_of_the_device() {
    let Some(on) = emulation() else { return };
    for vocab in [9, 1000, 5000] {
        let mut case = Case::new(5, vocab, 8.0, 4);
        case.loss.z_loss = 0.01;
        case.check(&on, 5);
        case.scale = Some(1.0 / 746.0);
        case.check(&on, 5);
        case.loss.z_loss = 0.0;
        case.check(&on, 5);
    }
}

/// Rows without a label are zeros whatever they held.
#[test]
fn cross_entropy_of_rows_without_labels() {
    let Some(on) = emulation() else { return };
    for vocab in [9, 1000] {
        let mut case = Case::new(4, vocab, 1.0, 5);
        case.labels.fill(IGNORE);
        case.logits.fill(bf16::NAN);
        let found = case.run(&on, 4);
        assert!(found.gradient.iter().all(|x| x.to_bits() == 0));
        assert_eq!((&found.sums[..], &found.counts[..]), (&[0.0, 0.0][..], &[0, 0][..]));
    }
}

/// Numbers of which the exponential would overflow, ones that mask, and rows of one value.
#[test]
fn cross_entropy_of_huge_logits() {
    let Some(on) = emulation() else { return };
    for vocab in [9, 1000, 5000] {
        Case::new(4, vocab, 1e4, 6).check(&on, 4);
        let mut case = Case::new(3, vocab, 8.0, 7);
        case.labels.copy_from_slice(&[0, 0, vocab as i32 - 1]);
        case.logits[..vocab].fill(bf16::from_f32(-3e38));
        case.logits[0] = bf16::from_f32(3e38);
        // All but the first eight are masked, so that most threads see nothing else.
        case.logits[vocab + 8..2 * vocab].fill(bf16::NEG_INFINITY);
        case.logits[2 * vocab..].fill(bf16::from_f32(2.5));
        let found = case.run(&on, 3);
        assert_eq!(found.stats[..4], [0.0, 0.0, 1.0, 1.0]);
        assert!(found.gradient[..vocab].iter().all(|x| x.to_f32() == 0.0));
        assert!(found.gradient.iter().all(|x| x.is_finite()));
        assert!(found.gradient[vocab + 8..2 * vocab].iter().all(|x| x.to_f32() == 0.0));
        let of_equals = (vocab as f32).ln();
        assert!((found.stats[8] - of_equals).abs() < 1e-5 * of_equals);
    }
}

/// What is not a number must not pass for a loss.
#[test]
fn cross_entropy_of_what_is_no_number() {
    let Some(on) = emulation() else { return };
    for vocab in [9, 1000, 5000] {
        let clean = Case::new(3, vocab, 8.0, 8);
        for (at, value) in [(0, f32::NAN), (vocab - 1, f32::NAN), (3, f32::INFINITY)] {
            let mut case = Case::new(3, vocab, 8.0, 8);
            case.labels.copy_from_slice(&[1, 2, 3]);
            case.logits[vocab + at] = bf16::from_f32(value);
            let found = case.run(&on, 3);
            assert!(found.sums[0].is_nan() && found.stats[4].is_nan());
            assert!(found.gradient[vocab..2 * vocab].iter().all(|x| x.is_nan()));
            assert!([0, 8].into_iter().all(|row| found.stats[row].is_finite()));
            assert!(found.gradient[2 * vocab..].iter().all(|x| x.is_finite()));
        }
        for label in [vocab as i32, -1, i32::MIN, i32::MAX] {
            let mut case = Case { labels: clean.labels.clone(), logits: clean.logits.clone(), ..clean };
            case.labels[1] = label;
            let found = case.run(&on, 3);
            assert!(found.sums[0].is_nan() && found.stats[0].is_finite());
            assert!(found.gradient[vocab..2 * vocab].iter().all(|x| x.is_nan()));
        }
        let mut case = clean;
        case.logits[..vocab].fill(bf16::NEG_INFINITY);
        assert!(case.run(&on, 3).sums[0].is_nan());
    }
}

/// Labels among equal logits: the first of the largest is the hit, wherever its thread is.
#[test]
fn cross_entropy_counts_the_first_of_the_largest() {
    let Some(on) = emulation() else { return };
    for vocab in [9, 1000, 5000] {
        let mut case = Case::new(4, vocab, 1.0, 9);
        let last = vocab - 1;
        for (row, (label, largest)) in
            [(2, [2, 2]), (last, [2, last]), (2, [2, last]), (0, [1, 1])].into_iter().enumerate()
        {
            case.labels[row] = label as i32;
            largest.into_iter().for_each(|at| case.logits[row * vocab + at] = bf16::from_f32(2.0));
        }
        let found = case.run(&on, 4);
        let hits: Vec<f32> = found.stats.chunks_exact(4).map(|stats| stats[3]).collect();
        assert_eq!((&hits[..], found.counts[1]), (&[1.0, 0.0, 1.0, 0.0][..], 2));
        case.check(&on, 4);
    }
}

#[test]
fn cross_entropy_is_deterministic() {
    let case = Case::new(300, 40, 8.0, 10);
    let runs = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(7)];
    let mut runs = runs.into_iter().filter_map(|order| {
        let found = case.run(&emulation()?.with_order(order), 300);
        let gradient: Vec<u16> = found.gradient.iter().map(|x| x.to_bits()).collect();
        let sums: Vec<u32> = found.stats.iter().chain(found.sums.iter()).map(|x| x.to_bits()).collect();
        Some((gradient, sums, found.counts.to_vec()))
    });
    let Some(first) = runs.next() else { return };
    assert!(runs.all(|run| run == first));
}

#[test]
fn cross_entropy_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |rows: usize, vocab: usize, lens: [usize; 4]| {
        let (mut logits, labels) = (Buffer::poisoned(lens[0]), Buffer::poisoned(lens[1]));
        let (scale, mut stats) = (Buffer::poisoned(lens[2]), Buffer::poisoned(lens[3]));
        let arguments = Arguments {
            logits: on.write(&mut logits),
            labels: on.read(&labels),
            scale: Some(on.read(&scale)),
            stats: on.write(&mut stats),
        };
        let loss = Loss { ignore_index: IGNORE, scale: 1.0, z_loss: 0.0 };
        launch(&on, Rows { rows, cols: vocab }, loss, arguments).unwrap_err().to_string()
    };
    assert!(refusal(2, 5, [9, 2, 1, 8]).contains("the logits have 9 elements"));
    assert!(refusal(2, 5, [10, 3, 1, 8]).contains("3 labels and 8 stats"));
    assert!(refusal(2, 5, [10, 2, 1, 2]).contains("2 labels and 2 stats"));
    assert!(refusal(2, 5, [10, 2, 2, 8]).contains("the scale is 2 numbers"));
    assert!(refusal(2, 0, [0, 2, 1, 8]).contains("2 rows of no logits"));
    assert!(refusal(1 << 31, 0, [0, 2, 1, 8]).contains("rows and columns go up to"));
    let (mut sums, mut counts) = (Buffer::poisoned(2), Buffer::poisoned(2));
    let stats = Buffer::poisoned(9);
    let mut refusal = |stats: &[f32]| {
        let output = Output::Overwrite;
        let written = Totals { sums: on.write(&mut sums), counts: on.write(&mut counts), output };
        totals(&on, on.read(stats), written).unwrap_err().to_string()
    };
    assert!(refusal(&stats).contains("[9, 2, 2] elements"));
    assert!(refusal(&stats[1..]).contains("not a multiple of 16"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn cross_entropy_of_random_sizes(
        rows in 0usize..20,
        vocab in 1usize..3000,
        chunk in 1usize..20,
        z_loss in 0f32..0.1,
        seed in 0u64..1000,
    ) {
        let Some(on) = emulation() else { return Ok(()) };
        let mut case = Case::new(rows, vocab, 8.0, seed);
        case.check(&on, chunk);
        case.loss.z_loss = z_loss;
        case.check(&on, chunk);
    }
}
