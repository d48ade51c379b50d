//! Units of several shards, packed JSON both ways, and what goes wrong on disks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oqvl_image_prep::{RgbImage, encode_png};
use oqvl_packer::{
    AcrossShards, Overlong, PackAlgorithm, PackInput, PackOutput, Packer, PackerConfig, PackerError,
    PackerReport, Parity,
};
use oqvl_shard_io::{
    ImageFiles, Pack, Sample, SampleKey, ShardWriter, read_json, read_pack_tar, read_plan, write_atomic,
};
use oqvl_stage::{RunContext, ShardRange, Stage};
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::BpeTrainer;
use serde_json::{Value, json};

fn config() -> PackerConfig {
    PackerConfig {
        shards: "mixer".into(),
        input: PackInput::Captions,
        tokenizer: "tokenizer.json".into(),
        seq_len: 60,
        pooled_grid: 3,
        parity: Parity::Off,
        algorithm: PackAlgorithm::FirstFitDecreasing,
        pack_across_shards: AcrossShards::Count(1),
        overlong: Overlong::Keep,
        output: PackOutput::Plan,
    }
}

/// A work directory with five shards of 0 to 12 captions, and a tokenizer with a token per byte.
fn work_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let trained = BpeTrainer::new(300).train(std::iter::empty()).unwrap();
    write_atomic(&dir.path().join("tokenizer.json"), trained.json()).unwrap();
    for shard in 0..5_usize {
        let pairs: Vec<(String, String)> = (0..3 * shard)
            .map(|index| (format!("{shard}-{index}"), "x".repeat(1 + (index * 7 + shard * 5) % 23)))
            .collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, caption)| (&**key, &**caption)).collect();
        let _ = tiny_shard(&dir.path().join("mixer"), &format!("{shard:08}"), &pairs);
    }
    dir
}

fn context(dir: &Path) -> RunContext {
    RunContext::for_test::<Packer>(dir, 7).unwrap()
}

fn pack(dir: &Path, config: &PackerConfig) -> PackerReport {
    Packer::run(config, &context(dir)).unwrap()
}

/// Names and contents of the packer's files, also those in directories.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![dir.join("packer")];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else {
                files.insert(path.strip_prefix(dir).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn plan(dir: &Path, unit: usize) -> Vec<Pack> {
    read_plan(&dir.join(format!("packer/{unit:08}.plan.parquet"))).unwrap().1
}

#[test]
fn packing_across_shards_loses_nothing_and_saves_packs() {
    let dir = work_dir();
    let alone = pack(dir.path(), &config());
    assert_eq!((alone.num_packs_by_shard, alone.efficiency_by_shard), (alone.num_packs, alone.efficiency));
    let mut keys: Vec<String> =
        (0..5).flat_map(|unit| plan(dir.path(), unit)).flat_map(|pack| pack.keys).collect();
    keys.sort();
    assert_eq!(keys.len(), 30);

    for (across, num_units) in
        [(AcrossShards::Count(2), 3), (AcrossShards::Count(9), 1), (AcrossShards::All, 1)]
    {
        let dir = work_dir();
        let together = pack(dir.path(), &PackerConfig { pack_across_shards: across, ..config() });
        assert_eq!((together.num_shards, together.num_packs_by_shard), (5, alone.num_packs));
        assert!(together.num_packs <= alone.num_packs && together.efficiency >= alone.efficiency);
        assert_eq!((together.efficiency_by_shard, together.num_tokens), (alone.efficiency, alone.num_tokens));
        let packs: Vec<Pack> = (0..num_units).flat_map(|unit| plan(dir.path(), unit)).collect();
        let mut found: Vec<String> = packs.iter().flat_map(|pack| pack.keys.clone()).collect();
        found.sort();
        assert_eq!(found, keys);
        let shards = |pack: &Pack| pack.images.iter().map(|image| image.shard.clone()).collect::<Vec<_>>();
        assert!(packs.iter().any(|pack| shards(pack).windows(2).any(|pair| pair[0] != pair[1])));
        let images = ImageFiles::new(dir.path().join("mixer"));
        for (key, image) in packs.iter().flat_map(|pack| pack.keys.iter().zip(&pack.images)) {
            assert!(image.shard == format!("{:0>8}.tar", &key[..1]) && image.key == *key);
            oqvl_image_prep::probe(&images.image(image).unwrap().unwrap()).unwrap();
        }
        if across == AcrossShards::All {
            assert!(together.num_packs < alone.num_packs, "{} packs", together.num_packs);
        }
    }
}

#[test]
fn threads_shares_and_stops_change_nothing_across_shards() {
    for output in [PackOutput::Plan, PackOutput::Tar, PackOutput::Json] {
        let config = PackerConfig { pack_across_shards: AcrossShards::Count(2), output, ..config() };
        let dir = work_dir();
        let report = pack(dir.path(), &config);
        let whole = files(dir.path());
        for num_threads in [1, 2, 7] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
            let dir = work_dir();
            assert_eq!(pool.install(|| pack(dir.path(), &config)), report);
            assert!(files(dir.path()) == whole, "{num_threads} threads");
        }
        let dir = work_dir();
        let mut run = context(dir.path());
        for (first, num_shards) in [(2, 1), (0, 2), (1, 2)] {
            run.shards = Some(ShardRange::Span { first, last: first + 1 });
            assert_eq!(Packer::run(&config, &run).unwrap().num_shards, num_shards, "shares are of units");
        }
        assert_eq!(pack(dir.path(), &config), report);
        assert!(files(dir.path()) == whole);
        // A run that was stopped before the marker of a unit, and one whose marker is of another version.
        std::fs::remove_file(run.out_dir.join("00000001_stats.json")).unwrap();
        write_atomic(&run.out_dir.join("00000002_stats.json"), b"{\"len\": []}").unwrap();
        if output == PackOutput::Json {
            write_atomic(&run.out_dir.join("1/of-the-stopped-run_packed.json"), b"{}").unwrap();
        }
        assert_eq!(pack(dir.path(), &config), report);
        assert!(files(dir.path()) == whole);
        // Output that is lost, file by file, comes back.
        for lost in whole.keys() {
            std::fs::remove_file(dir.path().join(lost)).unwrap();
            assert_eq!(pack(dir.path(), &config), report);
            assert!(files(dir.path()) == whole, "without {}", lost.display());
        }
    }
}

/// An interleaved tar whose images are those of the captioned tar number 4.
fn write_interleaved(dir: &Path) {
    let images: Vec<Vec<u8>> = oqvl_shard_io::ShardReader::open(&dir.join("mixer/00000004.tar"))
        .unwrap()
        .map(|sample| sample.unwrap().image().unwrap().data.clone())
        .collect();
    std::fs::create_dir(dir.join("obelics")).unwrap();
    let mut writer = ShardWriter::create(&dir.join("obelics/00000000.tar")).unwrap();
    for index in 0..4_usize {
        let (mut info, mut texts) = (Vec::new(), Vec::new());
        for image in &images[3 * index..][..index] {
            info.extend([json!({ "image_base64": STANDARD.encode(image) }), Value::Null]);
            texts.extend([Value::Null, Value::from(format!("text {index}"))]);
        }
        let mut sample = Sample::new(SampleKey::new(format!("doc{index}")).unwrap());
        let document = json!({ "image_info": info, "texts": texts, "key": "its own", "more": "Größe" });
        sample.push("json", serde_json::to_vec(&document).unwrap());
        writer.push(&sample).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn documents_of_several_images_go_through_every_output() {
    let interleaved = PackerConfig { shards: "obelics".into(), input: PackInput::Interleaved, ..config() };
    let dir = work_dir();
    write_interleaved(dir.path());
    let report = pack(dir.path(), &interleaved);
    assert_eq!((report.tally.kept, &report.tally.rejected["missing-image"]), (3, &1));
    assert_eq!(
        (report.contents.num_images, &report.contents.documents_by_images[..]),
        (6, &[0, 1, 1, 1][..])
    );
    assert_eq!(report.contents.image_tokens, 6 * 9);
    let packs = plan(dir.path(), 0);
    let images: Vec<Vec<u8>> = {
        let files = ImageFiles::new(dir.path().join("obelics"));
        packs.iter().flat_map(|pack| &pack.images).map(|image| files.image(image).unwrap().unwrap()).collect()
    };

    let dir = work_dir();
    write_interleaved(dir.path());
    assert_eq!(pack(dir.path(), &PackerConfig { output: PackOutput::Tar, ..interleaved.clone() }), report);
    let read = read_pack_tar(&dir.path().join("packer/00000000.tar")).unwrap().map(|pack| pack.unwrap().1);
    let (from_tar, tar_images): (Vec<Pack>, Vec<Vec<Vec<u8>>>) = read.unzip();
    assert_eq!((from_tar, tar_images.concat()), (packs, images));
}

#[test]
fn packed_json_written_by_default_is_what_training_will_read() {
    for (shards, input) in [("mixer", PackInput::Captions), ("obelics", PackInput::Interleaved)] {
        let dir = work_dir();
        write_interleaved(dir.path());
        let export = PackerConfig { shards: shards.into(), input, output: PackOutput::Json, ..config() };
        let exported = pack(dir.path(), &export);
        std::fs::rename(dir.path().join("packer"), dir.path().join("packed")).unwrap();
        if input == PackInput::Captions {
            // The images are the bytes of the tar, and `uid` came along.
            let pack: Value = read_json(&files_under(&dir.path().join("packed/4"))[0]).unwrap();
            let entry = &pack["data"][0];
            let sample = oqvl_shard_io::ShardReader::open(&dir.path().join("mixer/00000004.tar"))
                .unwrap()
                .map(Result::unwrap)
                .find(|sample| entry["key"] == sample.key.as_str())
                .unwrap();
            let base64 = entry["image_info"][0]["image_base64"].as_str().unwrap();
            assert_eq!(STANDARD.decode(base64).unwrap(), sample.image().unwrap().data);
            assert_eq!(entry["uid"], oqvl_testkit::tiny_uid(sample.key.as_str()));
            assert_eq!(entry["texts"], json!([null, sample.caption().unwrap().unwrap()]));
        } else {
            let pack: Value = read_json(&files_under(&dir.path().join("packed/0"))[0]).unwrap();
            assert_eq!(
                (&pack["data"][0]["more"], &pack["data"][0]["key"]),
                (&json!("Größe"), &json!("doc3"))
            );
        }

        let import = PackerConfig {
            shards: "packed".into(),
            input: PackInput::PackedJson,
            algorithm: PackAlgorithm::AsGiven,
            ..config()
        };
        let imported = pack(dir.path(), &import);
        // The same packs, told apart by their documents; their lengths were true.
        let mut lengths: BTreeMap<Vec<String>, Vec<u32>> = BTreeMap::new();
        for unit in 0..imported.num_shards as usize {
            lengths.extend(plan(dir.path(), unit).into_iter().map(|pack| (pack.keys, pack.lengths)));
        }
        assert_eq!(lengths.len() as u64, exported.num_packs);
        assert_eq!((imported.num_tokens, imported.tally.kept), (exported.num_tokens, exported.tally.kept));
        assert_eq!(imported.contents.length_histogram, exported.contents.length_histogram);
        for file in files_under(&dir.path().join("packed")) {
            let Ok(pack) = read_json::<Value>(&file) else { continue };
            let Some(data) = pack["data"].as_array() else { continue };
            let keys: Vec<String> =
                data.iter().map(|entry| entry["key"].as_str().unwrap().to_owned()).collect();
            assert_eq!(json!(lengths[&keys]), pack["lengths"]);
        }

        // Packed anew, across all directories, into tars.
        std::fs::remove_dir_all(dir.path().join("packer")).unwrap();
        let anew = PackerConfig {
            algorithm: PackAlgorithm::FirstFitDecreasing,
            pack_across_shards: AcrossShards::All,
            output: PackOutput::Tar,
            ..import
        };
        let anew = pack(dir.path(), &anew);
        assert!(anew.num_packs <= imported.num_packs && anew.num_tokens == imported.num_tokens);
        for pack in read_pack_tar(&dir.path().join("packer/00000000.tar")).unwrap() {
            let (_, (_, images)) = pack.unwrap();
            assert!(images.iter().all(|image| oqvl_image_prep::probe(image).is_ok()));
        }
    }
}

/// Files in a directory and in those inside it, by name.
fn files_under(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_under(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

#[test]
fn damaged_packed_files_are_counted() {
    let dir = work_dir();
    for (name, content) in [
        ("10/b_packed.json", &b"{\"data\": [{\"texts\": [nul"[..]),
        ("10/a_packed.json", b"{\"data\": [{\"image_info\": 3}], \"lengths\": []}"),
        ("9/x_packed.json", b"{\"data\": [], \"lengths\": []}"),
        ("9/y_packed.json", b"{\"data\": [{\"texts\": [], \"image_info\": []}], \"lengths\": [3]}"),
        ("9/stats.json", b"not read"),
    ] {
        let path = dir.path().join("packed").join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(&path, content).unwrap();
    }
    let import = PackerConfig {
        shards: "packed".into(),
        input: PackInput::PackedJson,
        algorithm: PackAlgorithm::AsGiven,
        ..config()
    };
    let report = pack(dir.path(), &import);
    let rejects: Vec<(&str, &str)> =
        report.tally.rejects.iter().map(|reject| (&*reject.key, &*reject.reason)).collect();
    let expected = [
        ("9/y_packed.json:0", "missing-image"),
        ("10/a_packed.json", "damaged-pack"),
        ("10/b_packed.json", "damaged-pack"),
    ];
    assert_eq!((&rejects[..], report.num_packs, report.num_shards), (&expected[..], 0, 2));

    let error =
        Packer::run(&PackerConfig { shards: "mixer".into(), ..import }, &context(dir.path())).unwrap_err();
    assert!(matches!(error, PackerError::Config(_)), "{error}");
    assert!(error.to_string().starts_with("shards: "), "{error}");
}

#[test]
fn packed_json_has_the_uid_of_a_sample_whose_json_python_wrote() {
    let dir = work_dir();
    std::fs::create_dir(dir.path().join("nan")).unwrap();
    let mut writer = ShardWriter::create(&dir.path().join("nan/00000000.tar")).unwrap();
    let image = encode_png(&RgbImage::new(2, 2, vec![7; 12]).unwrap());
    let mut sample = Sample::new(SampleKey::new("a").unwrap());
    sample.push("json", br#"{"uid": "u", "similarity": NaN}"#.to_vec());
    sample.push("png", image);
    sample.push("txt", b"a caption".to_vec());
    let _locations = writer.push(&sample).unwrap();
    let _summary = writer.finish().unwrap();
    let _report =
        pack(dir.path(), &PackerConfig { shards: "nan".into(), output: PackOutput::Json, ..config() });
    let packed: Value = read_json(&files_under(&dir.path().join("packer/0"))[0]).unwrap();
    assert_eq!(packed["data"][0]["uid"], "u");
}

#[test]
fn packed_json_is_found_through_links_and_once() {
    let dir = work_dir();
    let pack_of = |key: &str| format!("{{\"data\": [{{\"key\": \"{key}\"}}], \"lengths\": [1]}}");
    for name in ["disk/9/a_packed.json", "disk/10/b_packed.json", "packed/obelics/1/c_packed.json"] {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        write_atomic(&path, pack_of(&name[name.len() - 13..][..1]).as_bytes()).unwrap();
    }
    let link = |to: &str, from: &str| {
        std::os::unix::fs::symlink(dir.path().join(to), dir.path().join(from)).unwrap();
    };
    link("disk", "packed/datacomp");
    link("packed", "disk/10/back-up");
    let import = PackerConfig {
        shards: "packed".into(),
        input: PackInput::PackedJson,
        algorithm: PackAlgorithm::AsGiven,
        ..config()
    };
    let rejects = pack(dir.path(), &import).tally.rejects;
    assert_eq!(rejects.iter().map(|reject| &*reject.key).collect::<Vec<_>>(), ["a", "b", "c"]);
}
