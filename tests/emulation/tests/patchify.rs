//! Patches of images, against the reference in f64.

use half::bf16;
use oqvl_emulation::{Buffer, Emulation};
use oqvl_kernels::patchify::{Patches, patchify, reference};
use proptest::prelude::*;
use rand::SeedableRng as _;

fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

fn check(on: &Emulation, batch: usize, grid_rows: usize, grid_cols: usize, edge: usize) {
    let sizes = Patches {
        batch,
        grid_rows,
        grid_cols,
        edge,
        mean: [0.48, 0.46, 0.41],
        deviation: [0.27, 0.26, 0.28],
    };
    let mut pixels = Buffer::<u8>::poisoned(batch * grid_rows * grid_cols * edge * edge * 3);
    rand_chacha::ChaCha8Rng::seed_from_u64(1).fill_bytes(&mut pixels);
    let len = sizes.num_patches().unwrap() * sizes.cols().unwrap();
    let (mut rows, mut expected) = (Buffer::<bf16>::poisoned(len), vec![f64::NAN; len]);
    patchify(on, &sizes, on.read(&pixels), on.write(&mut rows)).unwrap();
    reference(&sizes, &pixels, &mut expected).unwrap();
    for (index, (found, expected)) in rows.iter().zip(&expected).enumerate() {
        let error = (found.to_f64() - expected).abs();
        assert!(error <= expected.abs() / 255.0 + 1e-6, "[{index}]: {found} is not {expected}");
    }
}

#[test]
fn patchify_of_every_edge_size() {
    let Some(on) = emulation() else { return };
    for (batch, grid_rows, grid_cols, edge) in [
        (0, 2, 2, 2),
        (1, 0, 2, 2),
        (1, 1, 1, 0),
        (1, 1, 1, 1),
        (2, 2, 3, 2),
        (1, 3, 1, 14),
        (1, 27, 27, 14),
        (1, 64, 64, 1),
    ] {
        check(&on, batch, grid_rows, grid_cols, edge);
    }
}

#[test]
fn patchify_refuses_what_does_not_fit() {
    let Some(on) = emulation() else { return };
    let sizes =
        Patches { batch: 1, grid_rows: 2, grid_cols: 2, edge: 2, mean: [0.5; 3], deviation: [0.5; 3] };
    let refusal = |sizes: &Patches, pixels: usize, len: usize| {
        let (pixels, mut rows) = (Buffer::<u8>::poisoned(pixels), Buffer::poisoned(len));
        patchify(&on, sizes, on.read(&pixels), on.write(&mut rows)).unwrap_err().to_string()
    };
    assert!(refusal(&sizes, 47, 64).contains("47 pixel values"));
    assert!(refusal(&sizes, 48, 63).contains("to 63 elements"));
    assert!(refusal(&Patches { deviation: [0.5, 0.0, 0.5], ..sizes }, 48, 64).contains("normalise nothing"));
    assert!(refusal(&Patches { mean: [f64::NAN; 3], ..sizes }, 48, 64).contains("normalise nothing"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn patchify_of_random_sizes(batch in 0usize..3, rows in 1usize..6, cols in 1usize..6, edge in 1usize..9) {
        let Some(on) = emulation() else { return Ok(()) };
        check(&on, batch, rows, cols, edge);
    }
}
