//! Near-duplicates and benchmark images, found by how pictures look.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{Array as _, ArrayRef, BinaryArray, RecordBatch, StructArray};
use arrow_schema::{DataType, Field, Schema};
use base64::Engine as _;
use oqvl_image_prep::{Filter, RgbImage, encode_jpeg, encode_png, resize};
use oqvl_mixer::{
    DecontaminateConfig, DedupKey, Mixer, MixerConfig, MixerReport, NearDuplicateConfig, Select,
};
use oqvl_shard_io::{Sample, SampleKey, ShardReader, ShardWriter, TableWriter, write_atomic};
use oqvl_stage::{RunContext, Stage};

fn picture(seed: u32, width: u32, height: u32) -> RgbImage {
    RgbImage::new(width, height, oqvl_testkit::picture(seed, width, height)).unwrap()
}

fn write_shard(path: &Path, samples: &[(&str, Vec<u8>)]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ShardWriter::create(path).unwrap();
    for (key, image) in samples {
        let mut sample = Sample::new(SampleKey::new(*key).unwrap());
        sample.push("jpg", image.clone());
        sample.push("txt", key.as_bytes().to_vec());
        let _locations = writer.push(&sample).unwrap();
    }
    let _summary = writer.finish().unwrap();
}

fn run(work_dir: &Path, config: &MixerConfig) -> (MixerReport, Vec<String>) {
    // Finished shards of another configuration would be taken for its own.
    let _absent = std::fs::remove_dir_all(work_dir.join("mixer"));
    let run = RunContext::for_test::<Mixer>(work_dir, 7).unwrap();
    let report = Mixer::run(config, &run).unwrap();
    let mut keys = Vec::new();
    for shard in 0..report.output_shards {
        let reader = ShardReader::open(&run.out_dir.join(format!("{shard:08}.tar"))).unwrap();
        keys.extend(reader.map(|sample| sample.unwrap().key.to_string()));
    }
    (report, keys)
}

/// Two shards: pictures 1 to 4, copies of 1 and 3 at other sizes and qualities, and one that is no image.
fn write_pool(dir: &Path) {
    let jpeg = |seed, width, height, quality| encode_jpeg(&picture(seed, width, height), quality);
    let first = [("a1", jpeg(1, 320, 240, 95)), ("b2", jpeg(2, 200, 300, 90)), ("c1", jpeg(1, 160, 120, 60))];
    let smaller = resize(&picture(3, 300, 300), 100, 100, Filter::Bicubic);
    let second = [
        ("d3", encode_png(&picture(3, 300, 300))),
        ("e0", b"no image".to_vec()),
        ("f3", encode_jpeg(&smaller, 80)),
        ("g4", jpeg(4, 128, 128, 90)),
        ("h1", jpeg(1, 320, 240, 95)),
    ];
    write_shard(&dir.join("pool/00000.tar"), &first);
    write_shard(&dir.join("pool/00001.tar"), &second);
}

fn config() -> MixerConfig {
    MixerConfig {
        shards: Some("pool".into()),
        select: Select::All,
        samples_per_shard: 100,
        ..MixerConfig::default()
    }
}

#[test]
fn of_pictures_that_look_the_same_the_first_stays() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let near = MixerConfig { near_duplicates: Some(NearDuplicateConfig { max_distance: 6 }), ..config() };
    let (report, keys) = run(dir.path(), &near);
    assert_eq!(keys, ["a1", "b2", "d3", "e0", "g4"]);
    assert_eq!(report.tally.rejected["near-duplicate"], 3);
    let found = report.near_duplicates.unwrap();
    let matches: Vec<(&str, &str)> = found.matches.iter().map(|it| (&*it.sample, &*it.like)).collect();
    assert_eq!(matches, [("00000/c1", "00000/a1"), ("00001/f3", "00001/d3"), ("00001/h1", "00000/a1")]);
    assert!(found.matches.iter().all(|it| it.distance <= 6) && found.matches[2].distance == 0);
    assert_eq!(found.without_hash, 1);
    // An exact copy is counted as such where that is asked for too.
    let (report, _) = run(dir.path(), &MixerConfig { dedup: vec![DedupKey::Content], ..near });
    assert_eq!(report.tally.rejected["duplicate-content"], 1);
    assert_eq!(report.tally.rejected["near-duplicate"], 2);
    // Without it nothing of the kind happens.
    let (report, keys) = run(dir.path(), &config());
    assert_eq!((keys.len(), report.near_duplicates, report.decontamination), (8, None, None));
}

#[test]
fn benchmark_images_are_found_wherever_they_lie() {
    let base64 = |bytes: &[u8]| base64::engine::general_purpose::STANDARD.encode(bytes);
    let one = encode_jpeg(&picture(1, 240, 180), 85);
    let three = encode_jpeg(&picture(3, 150, 150), 85);
    let check = |write: &dyn Fn(&Path), like: [&str; 2], num_unreadable: u64| {
        let dir = tempfile::tempdir().unwrap();
        write_pool(dir.path());
        let benchmark = dir.path().join("benchmark");
        std::fs::create_dir(&benchmark).unwrap();
        write(&benchmark);
        let decontaminate = DecontaminateConfig { images: vec!["benchmark".into()], max_distance: 6 };
        let (report, keys) = run(dir.path(), &MixerConfig { decontaminate: Some(decontaminate), ..config() });
        assert_eq!(keys, ["b2", "e0", "g4"]);
        assert_eq!(report.tally.rejected["benchmark-image"], 5);
        let found = report.decontamination.unwrap();
        assert_eq!((found.benchmark_images, found.unreadable_images, found.samples), (2, num_unreadable, 5));
        let matches: Vec<(&str, &str)> = found.matches.iter().map(|it| (&*it.sample, &*it.like)).collect();
        let expected = [
            ("00000/a1", like[0]),
            ("00000/c1", like[0]),
            ("00001/d3", like[1]),
            ("00001/f3", like[1]),
            ("00001/h1", like[0]),
        ];
        assert_eq!(matches, expected);
    };
    let files = |dir: &Path| {
        std::fs::create_dir(dir.join("deep")).unwrap();
        write_atomic(&dir.join("one.jpg"), &one).unwrap();
        write_atomic(&dir.join("deep/three.JPG"), &three).unwrap();
        write_atomic(&dir.join("broken.png"), b"nothing").unwrap();
        write_atomic(&dir.join("questions.json"), b"{}").unwrap();
    };
    check(&files, ["one.jpg", "three.JPG"], 1);
    let tar = |dir: &Path| write_shard(&dir.join("x.tar"), &[("p", one.clone()), ("q", three.clone())]);
    check(&tar, ["x.tar/p", "x.tar/q"], 0);
    let tsv = |dir: &Path| {
        // The third row refers to the image of the first, as in MMBench.
        let text =
            format!("index\timage\tanswer\n0\t{}\tA\n1\t{}\tB\n2\t0\tC\n", base64(&one), base64(&three));
        write_atomic(&dir.join("mmbench.tsv"), text.as_bytes()).unwrap();
    };
    check(&tsv, ["mmbench.tsv/0", "mmbench.tsv/1"], 0);
    let lists = |dir: &Path| {
        // Several images of one question, as Python and as JSON writes lists; a list that is cut off.
        let (one, three) = (base64(&one), base64(&three));
        let json = format!("\"[\"\"{}\"\"]\"", three.replace('/', "\\/"));
        let text = format!("index\timage\n0\t['{one}']\n1\t{json}\n2\t['{three}\n3\t[]\n");
        write_atomic(&dir.join("blink.tsv"), text.as_bytes()).unwrap();
    };
    check(&lists, ["blink.tsv/0/0", "blink.tsv/1/0"], 1);
    let both = |dir: &Path| {
        let text = format!("index\timage\n0\t['{}', '{}']\n", base64(&one), base64(&three));
        write_atomic(&dir.join("mantis.tsv"), text.as_bytes()).unwrap();
    };
    check(&both, ["mantis.tsv/0/0", "mantis.tsv/0/1"], 0);
    let parquet = |dir: &Path| {
        // As Hugging Face's `datasets` writes images.
        let bytes: ArrayRef = Arc::new(BinaryArray::from_iter_values([&one, &three]));
        let fields = vec![Arc::new(Field::new("bytes", DataType::Binary, true))];
        let images: ArrayRef = Arc::new(StructArray::new(fields.into(), vec![bytes], None));
        let field = Field::new("image", images.data_type().clone(), true);
        let batch = RecordBatch::try_new(Arc::new(Schema::new(vec![field])), vec![images]).unwrap();
        let mut writer = TableWriter::create(&dir.join("mmmu.parquet"), batch.schema(), &[]).unwrap();
        writer.write(&batch).unwrap();
        writer.finish().unwrap();
    };
    check(&parquet, ["mmmu.parquet/0", "mmmu.parquet/1"], 0);
}

#[test]
fn a_place_without_images_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let decontaminate = DecontaminateConfig { images: vec!["empty".into()], max_distance: 5 };
    let config = MixerConfig { decontaminate: Some(decontaminate), ..config() };
    let run = RunContext::for_test::<Mixer>(dir.path(), 7).unwrap();
    let message = Mixer::run(&config, &run).unwrap_err().to_string();
    assert!(message.contains("empty: no images"), "{message}");
}
