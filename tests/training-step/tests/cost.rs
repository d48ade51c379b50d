//! The counted cost of a step against sizes that are known otherwise.

use oqvl_training_step::{Activations, Cost, Layout, PAPER, PAPER_TOWER, VisionSizes};

#[test]
fn a_step_of_the_paper_computes_what_its_sizes_say() {
    let Cost { counts, .. } = Cost::of_paper(Activations::Saved).unwrap();
    let parameters = Layout::new(&PAPER, 0.1).len();
    // Of Qwen2.5-1.5B, and of the projector.
    assert_eq!(parameters, 1_543_714_304 + 4_131_840);
    // Two for each weight of a layer and row forward, four backward; so the head, on rows with a label alone.
    let of_layers = 6.0 * 4096.0 * 28.0 * (1536.0 * (2048.0 + 1536.0) + 3.0 * 1536.0 * 8960.0);
    let of_head = 6.0 * 746.0 * 151_936.0 * 1536.0;
    let visual = 23.0 * 144.0;
    // The first layer of the projector has no gradient of its input.
    let of_projector = visual * (4.0 * 1152.0 * 1536.0 + 6.0 * 1536.0 * 1536.0);
    assert_eq!(counts["gemm"].cost.operations, of_layers + of_head + of_projector);
    let product = 28.0 * 2.0 * 12.0 * 128.0 * 4096.0 * 4096.0 / 2.0;
    assert_eq!(counts["attention_forward"].cost.operations, 2.0 * product);
    assert_eq!(counts["attention_backward"].cost.operations, 7.0 * product);
    // Four buffers in f32 are read and written, and the weights in bf16.
    assert_eq!(counts["adamw_update"].cost.bytes, 34.0 * parameters as f64);
}

/// Of 26 blocks: 15.22 million weights of products each, and scores of 729 tokens; the patch embedding beside them.
#[test]
fn a_tower_computes_what_its_sizes_say() {
    let plain = VisionSizes { padded_head_dim: 72, padded_intermediate: 4304, ..PAPER_TOWER };
    let [plain, padded] = [plain, PAPER_TOWER].map(|sizes| Cost::of_tower(sizes).unwrap());
    let rows = 23.0 * 729.0;
    let products = |heads: f64, mlp: f64| {
        2.0 * rows * (26.0 * 1152.0 * (4.0 * 16.0 * heads + 2.0 * mlp) + 592.0 * 1152.0)
    };
    assert_eq!(plain.counts["gemm"].cost.operations, products(72.0, 4304.0));
    assert_eq!(padded.counts["gemm"].cost.operations, products(80.0, 4352.0));
    assert_eq!(plain.counts["attention_forward"].cost.operations, 23.0 * 26.0 * 4.0 * 729.0 * 729.0 * 1152.0);
    // What others count of an image is 641.8 GFLOP; theirs is without the columns that fill up its patches.
    let all = plain.counts["gemm"].cost.operations + plain.counts["attention_forward"].cost.operations;
    assert_eq!((all / 23.0 / 1e8).round(), 6418.0);
    assert_eq!((plain.memory_of_work, padded.memory_of_work), (0, 0));
}

#[test]
fn a_step_takes_no_memory_of_the_backend() {
    for activations in [Activations::Saved, Activations::CheapRecomputed] {
        let cost = Cost::of_paper(activations).unwrap();
        assert_eq!(cost.memory_of_work, 0);
        // Weights in bf16, and four buffers in f32; activations beside them.
        let parameters = Layout::new(&PAPER, 0.1).len();
        assert!(cost.memory_bytes > 18 * parameters && cost.memory_bytes < 25 * parameters);
    }
}

#[test]
fn recomputing_costs_passes_over_memory_and_saves_their_results() {
    let [saved, recomputed] =
        [Activations::Saved, Activations::CheapRecomputed].map(|what| Cost::of_paper(what).unwrap());
    // Two norms and one product of each layer but one.
    let bytes = 27 * 4096 * (2 * 1536 + 8960) * 2;
    assert_eq!(saved.memory_bytes - recomputed.memory_bytes, bytes);
    let [before, after] = [&saved, &recomputed].map(|cost| cost.counts["norm_forward"].calls);
    assert_eq!((before, after), (57, 57 + 56));
    assert_eq!(saved.counts["gemm"], recomputed.counts["gemm"]);
}
