//! First-fit-decreasing on the lengths of one shard of captioned images.

use criterion::{BenchmarkId, Criterion, Throughput};
use oqvl_benches::Noise;
use oqvl_packer::first_fit_decreasing;
use std::hint::black_box;

/// Tokens of a sequence and of an image in the paper's pre-training.
const CAPACITY: u32 = 4096;
const IMAGE_TOKENS: u32 = 144;

/// Lengths of documents with one image and a caption of 5 to 60 tokens, now and then one of up to 300.
fn lengths(num_documents: usize) -> Vec<u32> {
    let mut random = Noise::seeded(7);
    let caption = |random: &mut Noise| match random.draw() % 20 {
        0 => 60 + random.draw() % 240,
        _ => 5 + random.draw() % 55,
    };
    (0..num_documents).map(|_| IMAGE_TOKENS + caption(&mut random) as u32).collect()
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let mut group = criterion.benchmark_group("first_fit_decreasing");
    for num_documents in [1_000, 10_000, 100_000, 1_000_000] {
        let lengths = lengths(num_documents);
        group.throughput(Throughput::Elements(num_documents as u64));
        group.bench_function(BenchmarkId::from_parameter(num_documents), |bench| {
            bench.iter(|| first_fit_decreasing(black_box(&lengths), CAPACITY));
        });
    }
    group.finish();
    criterion.final_summary();
}
