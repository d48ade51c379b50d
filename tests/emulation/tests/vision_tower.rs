//! The vision tower by the kernels, in bf16, against the references in f32: the worked example, on the device that is emulated.

use oqvl_emulation::{BlockOrder, Emulation};
use oqvl_kernels::backend::CpuRef;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_training_step::{VisionExample, VisionInput, VisionSizes};

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The norm of the difference as a part of that of what is expected.
fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(found, expected)| found - expected);
    norm(difference) / norm(expected.iter().copied())
}

/// The tower of transformers with both forms of GELU, and one whose heads have SO400M's size. Each as it is, and filled up.
fn cases() -> Vec<(VisionInput, [VisionSizes; 2])> {
    let examples = [Gelu::Exact, Gelu::Tanh].map(|activation| {
        let example = VisionExample::load(activation).unwrap();
        let plain = example.sizes();
        let padded = VisionSizes { padded_head_dim: 32, padded_intermediate: 80, ..plain };
        (example.input().clone(), [plain, padded])
    });
    let plain = VisionSizes {
        hidden: 144,
        layers: 1,
        head_dim: 72,
        padded_head_dim: 72,
        patch_edge: 14,
        ..examples[0].1[0]
    };
    let padded = VisionSizes { padded_head_dim: 80, padded_intermediate: 80, ..plain };
    examples.into_iter().chain([(VisionInput::drawn(&plain, 1).unwrap(), [plain, padded])]).collect()
}

#[test]
fn features_are_those_of_the_references_but_for_rounding() {
    for (input, [plain, padded]) in cases() {
        let expected = input.features(CpuRef::<f32>::default(), plain).unwrap();
        let mut found = Vec::new();
        for sizes in [plain, padded] {
            let Some(emulation) = Emulation::from_env().unwrap() else { return };
            found.push(input.features(emulation, sizes).unwrap());
            let error = relative_error(&found[found.len() - 1], &expected);
            assert!(error < 2e-2, "{sizes:?}: {error:e}");
        }
        let error = relative_error(&found[1], &found[0]);
        assert!(error < 1e-2, "{padded:?}: {error:e}");
    }
}

#[test]
fn the_order_of_blocks_changes_no_bit() {
    for (input, [_, padded]) in cases() {
        let Some(emulation) = Emulation::from_env().unwrap() else { return };
        let shuffled = Emulation::from_env().unwrap().unwrap().with_order(BlockOrder::Shuffled(5));
        let expected = input.features(emulation, padded).unwrap();
        assert_eq!(input.features(shuffled, padded).unwrap(), expected);
    }
}
