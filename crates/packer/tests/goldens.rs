//! Parity with the reference's procedure: bins, ids and lengths against `fixtures/packing_goldens.json`.
//!
//! Recorded by `fixtures/packing_goldens.py` (seed 20251116) from `benches/peers/packing_reference.py`, with the
//! `tokenizers` and `pillow` releases that stand in the file. The samples are generated and stand there too; they are
//! tokenized with a tiny tokenizer that is beside them, and with the public Qwen2.5 one where that is at hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oqvl_image_prep::{RgbImage, encode_png, probe};
use oqvl_packer::{
    AcrossShards, Overlong, PackAlgorithm, PackInput, PackOutput, Packer, PackerConfig, PackerReport, Parity,
};
use oqvl_shard_io::{
    ImageFiles, ImageShrink, Pack, PackInfo, Sample, SampleKey, ShardWriter, read_json, read_plan,
};
use oqvl_stage::{RunContext, Stage};
use oqvl_testkit::shared_data;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Goldens {
    captions: Vec<CaptionSample>,
    interleaved: Vec<InterleavedSample>,
    expected: BTreeMap<String, BTreeMap<String, Expected>>,
}

#[derive(Deserialize)]
struct CaptionSample {
    tar_key: String,
    key: String,
    caption: Text,
    size: [u32; 2],
}

#[derive(Deserialize)]
struct InterleavedSample {
    key: String,
    slots: Vec<Slot>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Slot {
    Image([u32; 2]),
    Text(Text),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Whole(String),
    Repeated(String, usize),
}

impl Text {
    fn text(&self) -> String {
        match self {
            Self::Whole(text) => text.clone(),
            Self::Repeated(text, times) => text.repeat(*times),
        }
    }
}

/// What the procedure recorded for one set of samples.
#[derive(Deserialize)]
struct Expected {
    ids: BTreeMap<String, Brief>,
    lengths: BTreeMap<String, u32>,
    bins: Vec<Vec<String>>,
    len: Vec<u64>,
    pad_id: Option<i64>,
    packed: Option<Vec<Value>>,
    trained: Option<Vec<Brief>>,
}

/// Few ids, or the number and hash of many.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
enum Brief {
    Ids(Vec<i64>),
    Hash(usize, String),
}

fn brief(ids: &[i64]) -> Brief {
    if ids.len() <= 40 {
        return Brief::Ids(ids.to_vec());
    }
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let fnv = bytes
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    Brief::Hash(ids.len(), format!("{fnv:016x}"))
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn png(size: [u32; 2]) -> Vec<u8> {
    let [width, height] = size;
    encode_png(&RgbImage::new(width, height, vec![7; (width * height * 3) as usize]).unwrap())
}

/// The tars of the samples, in `captions/` and `interleaved/`.
fn write_tars(dir: &Path, goldens: &Goldens) {
    let writer = |name: &str| {
        std::fs::create_dir_all(dir.join(name)).unwrap();
        ShardWriter::create(&dir.join(name).join("00000000.tar")).unwrap()
    };
    let mut captions = writer("captions");
    for CaptionSample { tar_key, key, caption, size } in &goldens.captions {
        let mut sample = Sample::new(SampleKey::new(tar_key.clone()).unwrap());
        let info = json!({ "uid": format!("uid-{tar_key}"), "key": key });
        sample.push("json", serde_json::to_vec(&info).unwrap());
        sample.push("png", png(*size));
        sample.push("txt", caption.text().into_bytes());
        captions.push(&sample).unwrap();
    }
    captions.finish().unwrap();
    let mut interleaved = writer("interleaved");
    for InterleavedSample { key, slots } in &goldens.interleaved {
        let image = |slot: &Slot| match slot {
            Slot::Image(size) => json!({ "image_base64": STANDARD.encode(png(*size)), "rank": 1 }),
            Slot::Text(_) => Value::Null,
        };
        let text = |slot: &Slot| match slot {
            Slot::Image(_) => Value::Null,
            Slot::Text(text) => text.text().into(),
        };
        let images: Vec<Value> = slots.iter().map(image).collect();
        let texts: Vec<Value> = slots.iter().map(text).collect();
        let mut sample = Sample::new(SampleKey::new(key.clone()).unwrap());
        let document = json!({ "image_info": images, "texts": texts, "source": "golden" });
        sample.push("json", serde_json::to_vec(&document).unwrap());
        interleaved.push(&sample).unwrap();
    }
    interleaved.finish().unwrap();
}

fn config(shards: &str, tokenizer: &Path) -> PackerConfig {
    PackerConfig {
        shards: shards.into(),
        input: if shards == "captions" { PackInput::Captions } else { PackInput::Interleaved },
        tokenizer: tokenizer.to_path_buf(),
        seq_len: 4096,
        pooled_grid: 12,
        parity: Parity::Pil,
        algorithm: PackAlgorithm::FirstFitDecreasing,
        pack_across_shards: AcrossShards::Count(1),
        overlong: Overlong::Keep,
        output: PackOutput::Plan,
    }
}

/// Runs the packer in a work directory with the tars; the output is in the directory that comes last.
fn run(goldens: &Goldens, config: &PackerConfig) -> (tempfile::TempDir, PackerReport, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    write_tars(dir.path(), goldens);
    let run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
    let report = Packer::run(config, &run).unwrap();
    let out_dir = run.out_dir;
    (dir, report, out_dir)
}

/// Every set of samples, with every tokenizer that is at hand.
fn for_each_set(mut check: impl FnMut(&Goldens, &str, Parity, &Path, &Expected)) {
    let goldens: Goldens = read_json(&fixture("packing_goldens.json")).unwrap();
    let shared = shared_data().map(|dir| dir.join("tokenizers/qwen2.5/tokenizer.json"));
    let tokenizers = [("tiny", Some(fixture("tiny_tokenizer.json"))), ("qwen2.5", shared)];
    let mut num_sets = 0;
    for (name, tokenizer) in tokenizers {
        let Some(tokenizer) = tokenizer else { continue };
        for (set, expected) in &goldens.expected[name] {
            let (shards, variant) = set.split_once('-').unwrap();
            let parity = if variant == "pil" { Parity::Pil } else { Parity::Json };
            check(&goldens, shards, parity, &tokenizer, expected);
            num_sets += 1;
        }
    }
    assert!(num_sets >= 4);
}

/// The ids of each document of a pack, without what fills it up.
fn documents(info: &PackInfo, pack: &Pack) -> Vec<(String, Vec<i64>)> {
    let mut rest = &pack.input_ids[..];
    let mut found = Vec::new();
    for (key, &length) in pack.keys.iter().zip(&pack.lengths) {
        let mut tokens = 0;
        let num_ids = rest.iter().take_while(|&&id| {
            let fits = tokens < length;
            tokens += if id == -200 { info.num_image_tokens } else { 1 };
            fits
        });
        let (document, others) = rest.split_at(num_ids.count());
        found.push((key.clone(), document.to_vec()));
        rest = others;
    }
    found
}

#[test]
fn bins_ids_and_lengths_are_the_procedures() {
    for_each_set(|goldens, shards, parity, tokenizer, expected| {
        let (_dir, report, out_dir) = run(goldens, &PackerConfig { parity, ..config(shards, tokenizer) });
        let (info, packs) = read_plan(&out_dir.join("00000000.plan.parquet")).unwrap();
        let bins: Vec<Vec<String>> = packs.iter().map(|pack| pack.keys.clone()).collect();
        assert_eq!(bins, expected.bins);
        let mut num_documents = 0;
        for pack in &packs {
            for ((key, ids), length) in documents(&info, pack).iter().zip(&pack.lengths) {
                assert_eq!(brief(ids), expected.ids[key], "{key}");
                assert_eq!(*length, expected.lengths[key], "{key}");
                num_documents += 1;
            }
            let num_ids: usize = documents(&info, pack).iter().map(|(_, ids)| ids.len()).sum();
            let padding = &pack.input_ids[num_ids..];
            match expected.pad_id {
                Some(pad_id) => {
                    assert_eq!(pack.input_ids.len(), num_ids.max(4096));
                    assert!(padding.iter().all(|&id| id == pad_id));
                }
                None => assert!(padding.is_empty()),
            }
        }
        assert_eq!((num_documents, report.tally.kept), (expected.ids.len(), expected.ids.len() as u64));
        let stats: Value = read_json(&out_dir.join("00000000_stats.json")).unwrap();
        assert_eq!(stats["len"], json!(expected.len));
        let shrink = if parity == Parity::Pil { ImageShrink::Reference } else { ImageShrink::None };
        assert_eq!(info.image_shrink, shrink);
        if shards == "captions" {
            assert_eq!(
                (report.tally.rejected["one-pixel-image"], report.tally.rejected["duplicate-key"]),
                (2, 2)
            );
        }
    });
}

#[test]
fn drops_are_counted_with_their_reasons() {
    for_each_set(|goldens, shards, parity, tokenizer, _| {
        if shards != "interleaved" {
            return;
        }
        let (_dir, report, _) = run(goldens, &PackerConfig { parity, ..config(shards, tokenizer) });
        let reasons: BTreeMap<&str, &str> =
            report.tally.rejects.iter().map(|reject| (&*reject.key, &*reject.reason)).collect();
        assert_eq!((reasons["no-image"], reasons["thin-image-only"]), ("missing-image", "missing-image"));
        assert_eq!(reasons.get("ten-images").copied(), (parity == Parity::Pil).then_some("too-many-images"));
        assert!(!reasons.contains_key("nine-images") && !reasons.contains_key("ten-images-one-thin"));
        assert_eq!(report.skipped_images, BTreeMap::from([("one-pixel-image".to_owned(), 3)]));
        if parity == Parity::Pil {
            assert_eq!(reasons["too-many-ids"], "too-many-ids");
        }

        // By default nothing but documents without an image is dropped.
        let ours = PackerConfig { parity: Parity::Off, ..config(shards, tokenizer) };
        let (_dir, report, _) = run(goldens, &ours);
        assert_eq!(report.tally.rejected.keys().collect::<Vec<_>>(), ["missing-image"]);
        let tidy = PackerConfig { overlong: Overlong::Reject, ..ours };
        let (_dir, report, _) = run(goldens, &tidy);
        assert_eq!(report.num_overlong_packs, 0);
        assert!(report.tally.rejected["overlong"] > 0);
    });
}

/// A packed file as the fixture records it: images as a mark, texts as their number of characters.
fn outlined(mut pack: Value) -> Value {
    for entry in pack["data"].as_array_mut().unwrap() {
        for slot in entry["image_info"].as_array_mut().unwrap() {
            if !slot.is_null() {
                slot["image_base64"] = "…".into();
            }
        }
        for text in entry["texts"].as_array_mut().unwrap() {
            if let Some(characters) = text.as_str().map(|text| text.chars().count()) {
                *text = characters.into();
            }
        }
    }
    pack
}

fn packed_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn packed_json_is_written_as_the_reference_writes_it() {
    for_each_set(|goldens, shards, parity, tokenizer, expected| {
        let (Some(packed), Parity::Json) = (&expected.packed, parity) else { return };
        let config = PackerConfig { parity, output: PackOutput::Json, ..config(shards, tokenizer) };
        let (_dir, _, out_dir) = run(goldens, &config);
        let stats: Value = read_json(&out_dir.join("0_stats.json")).unwrap();
        assert_eq!(stats, json!({ "len": expected.len }));
        let files = packed_files(&out_dir.join("0"));
        let by_text = |packs: Vec<Value>| {
            // With the order of keys, which equality of values does not see.
            let mut texts: Vec<String> = packs.iter().map(Value::to_string).collect();
            texts.sort();
            texts
        };
        let written = files.iter().map(|file| outlined(read_json(file).unwrap())).collect();
        assert_eq!(by_text(written), by_text(packed.clone()));
        for file in files {
            let name = file.file_name().unwrap().to_str().unwrap().strip_suffix("_packed.json").unwrap();
            assert!(name.len() == 32 && name.bytes().all(|byte| byte.is_ascii_hexdigit()), "{name}");
        }
    });
}

#[test]
fn packed_json_is_read_as_the_references_training_reads_it() {
    for_each_set(|goldens, shards, parity, tokenizer, expected| {
        let (Some(trained), Parity::Json) = (&expected.trained, parity) else { return };
        let export = PackerConfig { parity, output: PackOutput::Json, ..config(shards, tokenizer) };
        let (dir, _, out_dir) = run(goldens, &export);
        std::fs::rename(&out_dir, dir.path().join("packed")).unwrap();

        let run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
        let import = PackerConfig {
            shards: "packed".into(),
            input: PackInput::PackedJson,
            parity: Parity::Off,
            algorithm: PackAlgorithm::AsGiven,
            ..config(shards, tokenizer)
        };
        let report = Packer::run(&import, &run).unwrap();
        let (info, packs) = read_plan(&run.out_dir.join("00000000.plan.parquet")).unwrap();
        let mut found: Vec<Brief> = packs.iter().map(|pack| brief(&pack.input_ids)).collect();
        let mut wanted: Vec<Brief> =
            trained.iter().filter(|ids| **ids != Brief::Ids(vec![])).cloned().collect();
        found.sort();
        wanted.sort();
        assert_eq!(found, wanted);
        assert_eq!((info.images_dir.as_str(), report.num_shards), ("packed", 1));

        // The references lead into the files.
        let files = ImageFiles::new(dir.path().join("packed"));
        for image in packs.iter().flat_map(|pack| &pack.images) {
            let (_, width, height) = probe(&files.image(image).unwrap().unwrap()).unwrap();
            assert!(width > 1 && height > 1);
        }
        if shards == "interleaved" {
            assert_eq!(report.tally.rejected["too-many-images"], 1, "training drops what this packer keeps");
        }
    });
}
