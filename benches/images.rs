//! One image on its way: decode, resize, normalise, as for the vision tower; and decode, shrink, encode, as in data-fetch.

use criterion::{Criterion, Throughput};
use oqvl_benches::photo;
use oqvl_image_prep::{
    DecodeLimits, Filter, Interpolation, Raster, decode, decode_on_white, encode_jpeg, pixel_values, resize,
    resize_opencv,
};
use std::hint::black_box;

/// A photograph as the web has them, 0.9 megapixels.
const DOWNLOADED: (u32, u32) = (1120, 810);
/// What data-fetch makes of it: the shorter side is 512.
const STORED: (u32, u32) = (708, 512);
/// Side of what SigLIP SO400M reads.
const TOWER: u32 = 384;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let downloaded = photo(DOWNLOADED.0, DOWNLOADED.1);
    let downloaded_file = encode_jpeg(&downloaded, 85);
    let downloaded = Raster::from(downloaded);
    let image = photo(STORED.0, STORED.1);
    let file = encode_jpeg(&image, 95);
    let limits = DecodeLimits::default();

    let mut group = criterion.benchmark_group("image");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decode_jpeg_stored", |bench| {
        bench.iter(|| decode(black_box(&file), &limits).expect("it was encoded just now"));
    });
    for (name, filter) in [("resize_bicubic_384", Filter::Bicubic), ("resize_lanczos_384", Filter::Lanczos)] {
        group.bench_function(name, |bench| bench.iter(|| resize(black_box(&image), TOWER, TOWER, filter)));
    }
    group.bench_function("pixel_values_384", |bench| bench.iter(|| pixel_values(black_box(&image), TOWER)));

    group.bench_function("decode_jpeg_downloaded", |bench| {
        bench
            .iter(|| decode_on_white(black_box(&downloaded_file), &limits).expect("it was encoded just now"));
    });
    for (name, interpolation) in [
        ("shrink_area_512", Interpolation::Area),
        ("shrink_fast_512", Interpolation::Fast),
        ("shrink_cubic_512", Interpolation::Cubic),
    ] {
        group.bench_function(name, |bench| {
            bench.iter(|| resize_opencv(black_box(&downloaded), STORED.0, STORED.1, interpolation));
        });
    }
    let small = Raster::from(photo(442, 320));
    group.bench_function("enlarge_lanczos_512", |bench| {
        bench.iter(|| resize_opencv(black_box(&small), STORED.0, STORED.1, Interpolation::Lanczos));
    });
    group.bench_function("encode_jpeg_95", |bench| bench.iter(|| encode_jpeg(black_box(&image), 95)));
    group.finish();
    criterion.final_summary();
}
