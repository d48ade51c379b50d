//! One image on its way to the vision tower: decode, resize, normalise.

use criterion::{Criterion, Throughput};
use oqvl_benches::photo;
use oqvl_image_prep::{DecodeLimits, Filter, decode, encode_jpeg, pixel_values, resize};
use std::hint::black_box;

/// Longer side of the images that data-fetch stores, in the common 4:3.
const STORED: (u32, u32) = (512, 384);
/// Side of what SigLIP SO400M reads.
const TOWER: u32 = 384;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let image = photo(STORED.0, STORED.1);
    let file = encode_jpeg(&image, 95);
    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode_jpeg_512", |bench| {
        bench.iter(|| decode(black_box(&file), &DecodeLimits::default()).expect("it was encoded just now"));
    });
    for (name, filter) in [("resize_bicubic_384", Filter::Bicubic), ("resize_lanczos_384", Filter::Lanczos)] {
        group.bench_function(name, |bench| bench.iter(|| resize(black_box(&image), TOWER, TOWER, filter)));
    }
    group.bench_function("pixel_values_384", |bench| bench.iter(|| pixel_values(black_box(&image), TOWER)));
    group.finish();
    criterion.final_summary();
}
