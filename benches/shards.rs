//! A shard of images: written, read in a stream, read at random.

use criterion::{Criterion, Throughput};
use oqvl_benches::{Noise, photo};
use oqvl_image_prep::encode_jpeg;
use oqvl_shard_io::{Sample, SampleKey, ShardFile, ShardReader, ShardWriter};
use std::hint::black_box;
use std::path::Path;

/// Samples in the shard; a real one has up to 10 000, which only makes it longer.
const NUM_SAMPLES: usize = 256;

/// Samples with one stored image, a caption and img2dataset-like metadata each.
fn samples() -> Vec<Sample> {
    let image = encode_jpeg(&photo(512, 384), 95);
    let sample = |number: usize| {
        let mut sample = Sample::new(SampleKey::new(format!("{number:09}")).expect("digits are a key"));
        sample.push("jpg", image.clone());
        sample.push("txt", b"a small red square above a large blue circle".to_vec());
        sample.push(
            "json",
            format!(r#"{{"key": "{number:09}", "status": "success", "width": 512}}"#).into_bytes(),
        );
        sample
    };
    (0..NUM_SAMPLES).map(sample).collect()
}

/// Writes the shard; says where each image lies.
fn write(path: &Path, samples: &[Sample]) -> Vec<(u64, u64)> {
    let mut writer = ShardWriter::create(path).expect("the temporary directory can be written");
    let mut images = Vec::with_capacity(samples.len());
    for sample in samples {
        let members = writer.push(sample).expect("the temporary directory can be written");
        images.extend(
            members.iter().filter(|member| member.extension == "jpg").map(|m| (m.offset, m.num_bytes)),
        );
    }
    writer.finish().expect("the temporary directory can be written");
    images
}

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    let directory = tempfile::tempdir().expect("there is a temporary directory");
    let path = directory.path().join("00000.tar");
    let samples = samples();
    let images = write(&path, &samples);
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Bytes(std::fs::metadata(&path).expect("it was written just now").len()));
    group
        .bench_function("write", |bench| bench.iter(|| write(&directory.path().join("again.tar"), &samples)));
    group.bench_function("read_stream", |bench| {
        bench.iter(|| {
            ShardReader::open(&path)
                .expect("it is there")
                .map(|s| s.expect("it is whole").members.len())
                .sum::<usize>()
        });
    });
    let index = ShardFile::open(&path).expect("it is there");
    let mut random = Noise::seeded(7);
    group.throughput(Throughput::Elements(1));
    group.bench_function("read_one_image", |bench| {
        bench.iter(|| {
            let (offset, num_bytes) = images[random.draw() as usize % images.len()];
            black_box(index.read(offset, num_bytes).expect("it is inside the shard"))
        });
    });
    group.finish();
    criterion.final_summary();
}
