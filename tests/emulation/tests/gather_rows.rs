//! Rows by their numbers, against the reference, bit for bit.

use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation};
use oqvl_kernels::gather_rows::launch::gather_rows;
use oqvl_kernels::gather_rows::reference;
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64) -> Buffer<bf16> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| bf16::from_f32(rng.random_range(-2.0..2.0))).collect()
}

/// Indices of which some are negative.
fn indices(rows: usize, from_rows: usize, seed: u64) -> Buffer<i32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..rows).map(|_| rng.random_range(-2..from_rows as i32)).collect()
}

#[track_caller]
fn check(on: &Emulation, from_rows: usize, rows: usize, cols: usize, seed: u64) {
    let (from, indices) = (random(from_rows * cols, seed), indices(rows, from_rows, seed + 1));
    let mut to = Buffer::poisoned(rows * cols);
    gather_rows(on, cols, on.read(&from), on.read(&indices), on.write(&mut to)).unwrap();
    let wide: Vec<f32> = from.iter().map(|x| x.to_f32()).collect();
    let mut expected = vec![f32::NAN; rows * cols];
    reference(&wide, cols, &indices, &mut expected).unwrap();
    let found: Vec<f32> = to.iter().map(|x| x.to_f32()).collect();
    assert_eq!(found, expected);
}

#[test]
fn gather_rows_of_every_number_of_rows() {
    let Some(on) = emulation() else { return };
    for rows in [0, 1, 7, 8, 9, 63, 64, 65, 4096] {
        check(&on, 5, rows, 16, 1);
        check(&on, rows + 1, 5, 16, 2);
    }
    check(&on, 0, 3, 16, 3);
}

/// Around sixteen bytes, and around the batches of a warp.
#[test]
fn gather_rows_of_every_width() {
    let Some(on) = emulation() else { return };
    for cols in [1, 7, 8, 9, 31, 33, 248, 256, 264, 1016, 1024, 1032, 1152, 1536, 2055, 2056] {
        check(&on, 3, 9, cols, 4);
    }
}

#[test]
fn gather_rows_of_unaligned_rows() {
    let Some(on) = emulation() else { return };
    let (from, indices) = (random(3 * 16 + 1, 5), indices(7, 3, 6));
    let (mut aligned, mut shifted) = (Buffer::poisoned(7 * 16), Buffer::poisoned(7 * 16 + 1));
    let copy = Buffer::from(&from[1..]);
    gather_rows(&on, 16, on.read(&copy), on.read(&indices), on.write(&mut aligned)).unwrap();
    gather_rows(&on, 16, on.read(&from[1..]), on.read(&indices), on.write(&mut shifted[1..])).unwrap();
    assert_eq!((&shifted[1..], shifted[0].to_bits()), (&aligned[..], u16::MAX));
}

/// An index that the host did not check takes the last row.
#[test]
fn gather_rows_stays_within_its_matrix() {
    let Some(on) = emulation() else { return };
    let (from, indices) = (random(3 * 16, 7), [3, i32::MAX, i32::MIN].into_iter().collect::<Buffer<i32>>());
    let mut to = Buffer::poisoned(3 * 16);
    gather_rows(&on, 16, on.read(&from), on.read(&indices), on.write(&mut to)).unwrap();
    assert_eq!((&to[..16], &to[16..32]), (&from[32..], &from[32..]));
    assert!(to[32..].iter().all(|x| x.to_bits() == 0));
    let nothing = Buffer::poisoned(0);
    gather_rows(&on, 16, on.read(&nothing), on.read(&indices), on.write(&mut to)).unwrap();
    assert!(to.iter().all(|x| x.to_bits() == 0));
}

#[test]
fn gather_rows_is_the_same_in_any_order_of_blocks() {
    let (from, indices) = (random(5 * 24, 8), indices(100, 5, 9));
    let orders = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(7)];
    let mut runs = orders.into_iter().filter_map(|order| {
        let on = emulation()?.with_order(order);
        let mut to = Buffer::poisoned(100 * 24);
        gather_rows(&on, 24, on.read(&from), on.read(&indices), on.write(&mut to)).unwrap();
        Some(to.to_vec())
    });
    let Some(first) = runs.next() else { return };
    assert!(runs.all(|run| run == first));
}

#[test]
fn gather_rows_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let refusal = |from: usize, rows: usize, cols: usize, to: usize| {
        let (from, indices, mut to) = (Buffer::poisoned(from), Buffer::poisoned(rows), Buffer::poisoned(to));
        let to = on.write(&mut to);
        gather_rows(&on, cols, on.read(&from), on.read(&indices), to).unwrap_err().to_string()
    };
    assert!(refusal(33, 2, 16, 32).contains("33 elements, which are no rows of 16"));
    assert!(refusal(32, 2, 16, 31).contains("the output has 31 elements"));
    assert!(refusal(0, 2, usize::MAX, 0).contains("rows and columns go up to"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn gather_rows_of_random_sizes(from_rows in 0usize..9, rows in 0usize..40, cols in 1usize..600, seed in 0u64..1000) {
        let Some(on) = emulation() else { return Ok(()) };
        check(&on, from_rows, rows, cols, seed);
    }
}
