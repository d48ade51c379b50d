//! The head over label rows as the sequence of launches that it is on a device, against the whole of it on a CPU.

use half::bf16;
use oqvl_emulation::{Buffer, Emulation};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::cross_entropy::Loss;
use oqvl_kernels::cross_entropy::launch::{Arguments, Totals, cross_entropy, totals};
use oqvl_kernels::gather_rows::launch::gather_rows;
use oqvl_kernels::label_head::{Gradients, Head, HeadSizes, LabelRows, label_head};
use rand::{Rng as _, SeedableRng as _};

const IGNORE: i32 = -100;
const HIDDEN: usize = 64;

fn random(len: usize, seed: u64, bound: f32) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-bound..bound))).collect()
}

fn widen(values: &[bf16]) -> Vec<f64> {
    values.iter().map(|x| x.to_f64()).collect()
}

/// `sum of left[i, k] right[k, j]` at row `i` and column `j`, in f32: what cuBLASLt computes on a device.
fn product(
    (rows, cols, terms): (usize, usize, usize),
    term: impl Fn(usize, usize, usize) -> f32,
) -> Vec<f32> {
    let mut sums = Vec::with_capacity(rows * cols);
    for row in 0..rows {
        for column in 0..cols {
            sums.push((0..terms).map(|k| term(row, column, k)).sum());
        }
    }
    sums
}

/// Asserts that the norm of the difference is a small part of the norm.
#[track_caller]
fn assert_close(what: &str, found: impl Iterator<Item = f64>, expected: &[f64], part: f64) {
    let (mut error, mut norm, mut count) = (0.0, 0.0, 0);
    for (found, expected) in found.zip(expected) {
        error += (found - expected).powi(2);
        norm += expected.powi(2);
        count += 1;
    }
    assert_eq!(count, expected.len());
    assert!(error.sqrt() <= part * norm.sqrt(), "{what}: {error} of {norm}");
}

fn check(on: &Emulation, rows: usize, vocab: usize, chunk_rows: usize, share: f64) {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(rows as u64);
    let labels: Vec<i32> = (0..rows)
        .map(|_| if rng.random_bool(share) { rng.random_range(0..vocab as i32) } else { IGNORE })
        .collect();
    let loss = Loss { ignore_index: IGNORE, scale: 1.0 / 32.0, z_loss: 1e-4 };
    let (states, weight) = (random(rows * HIDDEN, 1, 1.0), random(vocab * HIDDEN, 2, 0.5));
    let labelled = LabelRows::new(&labels, IGNORE);
    let count = labelled.labels().len();

    // All that it needs, which is what it says that it needs.
    let [indices, places, of_rows] =
        [labelled.rows(), labelled.places(), labelled.labels()].map(Buffer::from);
    let (mut gathered, mut dgathered) = (Buffer::poisoned(count * HIDDEN), Buffer::poisoned(count * HIDDEN));
    let mut logits = Buffer::<bf16>::poisoned(count.min(chunk_rows) * vocab);
    let (mut stats, mut sums, mut counts) =
        (Buffer::poisoned(4 * count), Buffer::poisoned(2), Buffer::poisoned(2));
    let sizes = HeadSizes { rows, label_rows: count, hidden: HIDDEN, vocab, chunk_rows };
    let numbers = indices.len() + places.len() + of_rows.len() + stats.len() + sums.len() + counts.len();
    let halves = gathered.len() + dgathered.len() + logits.len();
    assert_eq!(sizes.bytes().unwrap(), 4 * numbers + 2 * halves);

    let mut dstates = Buffer::poisoned(states.len());
    let mut dweight = vec![0f32; weight.len()];
    gather_rows(on, HIDDEN, on.read(&states), on.read(&indices), on.write(&mut gathered)).unwrap();
    for start in (0..count).step_by(chunk_rows) {
        let rows = chunk_rows.min(count - start);
        let of_chunk = start * HIDDEN..(start + rows) * HIDDEN;
        let chunk = &gathered[of_chunk.clone()];
        let logits = &mut logits[..rows * vocab];
        let products = product((rows, vocab, HIDDEN), |row, token, k| {
            chunk[row * HIDDEN + k].to_f32() * weight[token * HIDDEN + k].to_f32()
        });
        logits.iter_mut().zip(products).for_each(|(to, product)| *to = bf16::from_f32(product));
        let arguments = Arguments {
            logits: on.write(logits),
            labels: on.read(&of_rows[start..start + rows]),
            scale: None,
            stats: on.write(&mut stats[4 * start..4 * (start + rows)]),
        };
        cross_entropy(on, Rows { rows, cols: vocab }, loss, arguments).unwrap();
        let products = product((rows, HIDDEN, vocab), |row, column, token| {
            logits[row * vocab + token].to_f32() * weight[token * HIDDEN + column].to_f32()
        });
        let to = dgathered[of_chunk].iter_mut();
        to.zip(products).for_each(|(to, product)| *to = bf16::from_f32(product));
        let products = product((vocab, HIDDEN, rows), |token, column, row| {
            logits[row * vocab + token].to_f32() * chunk[row * HIDDEN + column].to_f32()
        });
        dweight.iter_mut().zip(products).for_each(|(to, product)| *to += product);
    }
    let output = Output::Overwrite;
    let of_all = Totals { sums: on.write(&mut sums), counts: on.write(&mut counts), output };
    totals(on, on.read(&stats), of_all).unwrap();
    gather_rows(on, HIDDEN, on.read(&dgathered), on.read(&places), on.write(&mut dstates)).unwrap();

    let (states, weight) = (widen(&states), widen(&weight));
    let (mut expected_states, mut expected_weight) = (vec![f64::NAN; states.len()], vec![0.0; weight.len()]);
    let gradients = Gradients { states: &mut expected_states, weight: &mut expected_weight };
    let head = Head { states: &states, weight: &weight, hidden: HIDDEN, labels: &labels };
    let expected = label_head(head, loss, chunk_rows, gradients).unwrap();
    for (found, expected) in [(sums[0], expected.loss), (sums[1], expected.z_loss)] {
        assert!((f64::from(found) - expected).abs() <= 2e-3 * expected, "{found} is not {expected}");
    }
    assert_eq!(counts[0] as usize, expected.labels);
    assert_close("dstates", dstates.iter().map(|x| x.to_f64()), &expected_states, 0.01);
    assert_close("dweight", dweight.iter().map(|x| f64::from(*x)), &expected_weight, 0.01);
    for (row, label) in labels.iter().enumerate() {
        let is_zero = dstates[row * HIDDEN..(row + 1) * HIDDEN].iter().all(|x| x.to_bits() == 0);
        assert_eq!(is_zero, *label == IGNORE, "row {row}");
    }
}

#[test]
fn label_head_by_its_launches() {
    let Some(on) = Emulation::from_env().unwrap() else { return };
    for (rows, vocab, chunk_rows, share) in
        [(40, 100, 7, 0.2), (9, 1000, 100, 0.5), (20, 203, 8, 1.0), (5, 96, 2, 0.0), (0, 96, 2, 1.0)]
    {
        check(&on, rows, vocab, chunk_rows, share);
    }
}
