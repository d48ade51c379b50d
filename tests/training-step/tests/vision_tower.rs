//! The vision tower on a CPU: against transformers (`fixtures/vision.py`), and filled up against not.

use oqvl_kernels::backend::{Backend, CpuRef};
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_training_step::{VisionExample, VisionInput, VisionSizes, VisionTower};

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

/// The norm of the difference as a part of that of what is expected.
fn relative_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let difference = found.iter().zip(expected).map(|(found, expected)| found - expected);
    norm(difference) / norm(expected.iter().copied())
}

/// The largest difference as a part of the largest of what is expected.
fn largest_error(found: &[f64], expected: &[f64]) -> f64 {
    assert_eq!(found.len(), expected.len());
    assert!(found.iter().all(|value| value.is_finite()), "not all features are numbers");
    let difference = found.iter().zip(expected).map(|(found, expected)| (found - expected).abs());
    difference.fold(0.0, f64::max) / expected.iter().copied().map(f64::abs).fold(0.0, f64::max)
}

/// Heads of SO400M's size in a tower that is narrow otherwise; patches whose rows are filled up from 75 columns to 80.
fn small() -> VisionSizes {
    VisionSizes {
        batch: 2,
        grid: 3,
        patch_edge: 5,
        hidden: 144,
        layers: 2,
        heads: 2,
        head_dim: 72,
        padded_head_dim: 72,
        intermediate: 68,
        padded_intermediate: 68,
        layer_norm_eps: 1e-6,
        activation: Gelu::Exact,
        mean: [0.5, 0.4, 0.3],
        deviation: [0.5, 0.3, 0.2],
    }
}

/// A block of SO400M, and patches of few pixels of it.
fn one_real_block() -> VisionSizes {
    VisionSizes {
        grid: 2,
        patch_edge: 14,
        hidden: 1152,
        layers: 1,
        heads: 16,
        intermediate: 4304,
        padded_intermediate: 4304,
        mean: [0.5; 3],
        deviation: [0.5; 3],
        ..small()
    }
}

fn assert_padding_changes_nothing(
    backend: impl Backend + Copy,
    sizes: VisionSizes,
    padded_intermediate: usize,
    bound: f64,
) {
    let input = VisionInput::drawn(&sizes, 1).unwrap();
    let plain = input.features(backend, sizes).unwrap();
    assert_eq!(plain.len(), sizes.rows() * sizes.hidden);
    let heads = VisionSizes { padded_head_dim: 80, ..sizes };
    let mlp = VisionSizes { padded_intermediate, ..sizes };
    for padded in [heads, mlp, VisionSizes { padded_intermediate, ..heads }] {
        let error = relative_error(&input.features(backend, padded).unwrap(), &plain);
        assert!(error <= bound, "{padded:?}: {error:e}");
    }
}

#[test]
fn a_small_padded_tower_is_the_same_in_f64() {
    assert_padding_changes_nothing(CpuRef::<f64>::default(), small(), 80, 1e-13);
}

#[test]
fn a_small_padded_tower_is_the_same_in_f32() {
    assert_padding_changes_nothing(CpuRef::<f32>::default(), small(), 80, 1e-6);
}

#[test]
fn a_padded_block_of_the_real_size_is_the_same_in_f64() {
    assert_padding_changes_nothing(CpuRef::<f64>::default(), one_real_block(), 4352, 1e-13);
}

#[test]
fn a_padded_block_of_the_real_size_is_the_same_in_f32() {
    assert_padding_changes_nothing(CpuRef::<f32>::default(), one_real_block(), 4352, 1e-6);
}

/// Of what the tests above could not tell: that all that is added is needed, and computed with.
#[test]
fn every_weight_and_every_pixel_counts() {
    let sizes = VisionSizes { padded_head_dim: 80, padded_intermediate: 80, ..small() };
    let input = VisionInput::drawn(&sizes, 1).unwrap();
    let backend = CpuRef::<f64>::default();
    let features = input.features(backend, sizes).unwrap();
    for (name, _) in sizes.tensors().unwrap() {
        // A bias of keys adds the same to all scores of a row, which the softmax does not see.
        if name.ends_with("k_proj.bias") {
            continue;
        }
        let mut changed = input.clone();
        *changed.weights.get_mut(&name).unwrap().last_mut().unwrap() += 1.0;
        let error = relative_error(&changed.features(backend, sizes).unwrap(), &features);
        assert!(error > 1e-4, "{name} changes {error:e}");
    }
    for at in [0, input.pixels.len() - 1] {
        let mut changed = input.clone();
        changed.pixels[at] ^= 0x80;
        let error = relative_error(&changed.features(backend, sizes).unwrap(), &features);
        assert!(error > 1e-4, "pixel {at} changes {error:e}");
    }
}

fn assert_every_state_is_that_of_transformers(backend: impl Backend + Copy, activation: Gelu) {
    let example = VisionExample::load(activation).unwrap();
    for layers in 1..=example.sizes().layers {
        let plain = VisionSizes { layers, ..example.sizes() };
        for sizes in [plain, VisionSizes { padded_head_dim: 32, padded_intermediate: 80, ..plain }] {
            let found = example.input().features(backend, sizes).unwrap();
            let error = largest_error(&found, example.expected(layers));
            assert!(error <= 1e-5, "{sizes:?}: {error:e}");
        }
    }
}

#[test]
fn features_in_f32_are_those_of_transformers() {
    assert_every_state_is_that_of_transformers(CpuRef::<f32>::default(), Gelu::Exact);
    assert_every_state_is_that_of_transformers(CpuRef::<f32>::default(), Gelu::Tanh);
}

#[test]
fn features_in_f64_are_those_of_transformers() {
    assert_every_state_is_that_of_transformers(CpuRef::<f64>::default(), Gelu::Exact);
    assert_every_state_is_that_of_transformers(CpuRef::<f64>::default(), Gelu::Tanh);
}

/// Nothing of one call is left in the next.
#[test]
fn images_have_the_same_features_again_and_alone() {
    let example = VisionExample::load(Gelu::Exact).unwrap();
    let (sizes, input) = (example.sizes(), example.input());
    let backend = CpuRef::<f32>::default();
    let expected = input.features(backend, sizes).unwrap();
    let alone = VisionSizes { batch: 1, ..sizes };
    let mut tower = VisionTower::new(backend, alone).unwrap();
    tower.load(&input.weights).unwrap();
    let images: Vec<&[u8]> = input.pixels.chunks_exact(input.pixels.len() / sizes.batch).collect();
    let expected: Vec<&[f64]> = expected.chunks_exact(expected.len() / sizes.batch).collect();
    for image in [1, 0, 1] {
        tower.forward(images[image]).unwrap();
        let error = largest_error(&tower.features().unwrap(), expected[image]);
        assert!(error < 1e-6, "image {image}: {error:e}");
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let sizes = small();
    let input = VisionInput::drawn(&sizes, 1).unwrap();
    let refusal = |sizes: VisionSizes, input: &VisionInput| {
        input.features(CpuRef::<f32>::default(), sizes).unwrap_err().to_string()
    };
    let fewer = refusal(VisionSizes { padded_head_dim: 64, ..sizes }, &input);
    assert!(fewer.contains("72 channels cannot be filled up to 64"), "{fewer}");
    let odd = refusal(VisionSizes { padded_head_dim: 76, ..sizes }, &input);
    assert!(odd.contains("76 channels of a head are no multiple of 8"), "{odd}");
    let none = refusal(VisionSizes { layers: 0, ..sizes }, &input);
    assert!(none.contains("has no features"), "{none}");
    let more = refusal(VisionSizes { layers: 3, ..sizes }, &input);
    assert!(more.contains("no vision_model.encoder.layers.2.layer_norm1.weight in the checkpoint"), "{more}");
    let other = refusal(VisionSizes { intermediate: 64, ..sizes }, &input);
    assert!(other.contains("mlp.fc1.weight has 9792 elements, not 9216"), "{other}");
    let pixels = refusal(sizes, &VisionInput { pixels: input.pixels[1..].to_vec(), ..input.clone() });
    assert!(pixels.contains("1349 values of pixels, not 1350"), "{pixels}");
}
