//! Sums, casts and fills: bit by bit.

use half::bf16;
use oqvl_emulation::{Buffer, Emulation};
use oqvl_kernels::elementwise::{add, add_assign, fill, narrow, widen};
use rand::{Rng as _, SeedableRng as _};

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn random(len: usize, seed: u64) -> Buffer<f32> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn rounded(values: &[f32]) -> Buffer<bf16> {
    values.iter().map(|x| bf16::from_f32(*x)).collect()
}

/// Around what a thread and a block take.
const LENS: [usize; 14] = [0, 1, 3, 4, 5, 7, 8, 9, 15, 2047, 2048, 2049, 4096, 5000];

#[test]
fn elementwise_sums_round_once() {
    let Some(on) = emulation() else { return };
    for len in LENS {
        let (left, right) = (rounded(&random(len, 1)), rounded(&random(len, 2)));
        let mut to = Buffer::poisoned(len);
        add(&on, on.read(&left), on.read(&right), on.write(&mut to)).unwrap();
        for ((to, left), right) in to.iter().zip(left.iter()).zip(right.iter()) {
            assert_eq!(to.to_bits(), bf16::from_f32(left.to_f32() + right.to_f32()).to_bits());
        }
        let mut in_place = left.clone();
        add_assign(&on, on.read(&right), on.write(&mut in_place)).unwrap();
        assert_eq!(in_place[..], to[..]);
    }
}

#[test]
fn elementwise_casts_are_those_of_half() {
    let Some(on) = emulation() else { return };
    for len in LENS {
        let wide = random(len, 3);
        let (mut narrowed, mut widened) = (Buffer::poisoned(len), Buffer::poisoned(len));
        narrow(&on, on.read(&wide), on.write(&mut narrowed)).unwrap();
        assert_eq!(narrowed[..], rounded(&wide)[..]);
        widen(&on, on.read(&narrowed), on.write(&mut widened)).unwrap();
        assert!(widened.iter().zip(narrowed.iter()).all(|(wide, narrow)| *wide == narrow.to_f32()));
    }
}

#[test]
fn elementwise_fills_every_number() {
    let Some(on) = emulation() else { return };
    for len in LENS {
        let mut to = Buffer::poisoned(len);
        fill(&on, on.write(&mut to), -1.5).unwrap();
        assert!(to.iter().all(|x| *x == -1.5));
    }
}

#[test]
fn elementwise_refuses_other_lengths() {
    let Some(on) = emulation() else { return };
    let (left, right, mut to) = (Buffer::poisoned(8), Buffer::poisoned(9), Buffer::poisoned(8));
    let error = add(&on, on.read(&left), on.read(&right), on.write(&mut to)).unwrap_err().to_string();
    assert!(error.contains("buffers of 8, 9 and 8 elements"), "{error}");
    // Half a vector from where vectors begin.
    let error = add_assign(&on, on.read(&left[4..]), on.write(&mut to[4..])).unwrap_err().to_string();
    assert!(error.contains("not a multiple of 16 bytes"), "{error}");
}
