//! Tests of whole worlds.

use crate::benchmark_files::{Conversation, Speaker};
use crate::pair::PairClass;
use crate::records::{Fate, TruthRecord, UrlRecord};
use crate::world_dir::{WorldDir, read_jsonl};
use crate::{MicroWorld, SyntheticConfig, WorldConfig, WorldReport};
use base64::Engine as _;
use oqvl_shard_io::ShardReader;
use oqvl_stage::{RunContext, Stage as _, StageConfig as _};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The default shares at a size for tests.
pub(crate) fn small_config() -> SyntheticConfig {
    SyntheticConfig {
        num_urls: 200,
        mismatched_share: 0.14,
        subtle_share: 0.02,
        vague_share: 0.08,
        boilerplate_share: 0.10,
        near_duplicate_share: 0.02,
        duplicate_share: 0.02,
        fault_share: 0.004,
        num_siglip_pairs: 30,
        num_mlm_filter_pairs: 40,
        num_text_documents: 50,
        num_sft_conversations: 40,
        num_multiple_choice: 40,
        num_yes_no: 40,
        num_open_questions: 20,
    }
}

/// A small world in a directory that lives as long as the first value.
pub(crate) fn small_world(seed: u64) -> (tempfile::TempDir, WorldDir) {
    let dir = tempfile::tempdir().unwrap();
    let (world, _) = make(dir.path(), seed, 2);
    (dir, world)
}

fn make(work_dir: &Path, seed: u64, threads: usize) -> (WorldDir, WorldReport) {
    let config = WorldConfig::Synthetic(small_config());
    config.validate().unwrap();
    let mut run = RunContext::for_test::<MicroWorld>(work_dir, seed).unwrap();
    run.threads = threads;
    let report = MicroWorld::run(&config, &run).unwrap();
    (WorldDir::new(&run.out_dir), report)
}

/// Every file under a directory with its bytes.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.to_path_buf()];
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            pending.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else {
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            found.insert(name, std::fs::read(&path).unwrap());
        }
    }
    found
}

#[test]
fn a_world_is_a_function_of_config_and_seed() {
    let (dir, again, other) =
        (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (world, report) = make(dir.path(), 7, 1);
    let (same_world, same_report) = make(again.path(), 7, 3);
    let (other_world, _) = make(other.path(), 8, 3);
    let (bytes, same, different) =
        (files(&world.path("")), files(&same_world.path("")), files(&other_world.path("")));
    assert_eq!(bytes.keys().collect::<Vec<_>>(), same.keys().collect::<Vec<_>>());
    for (name, content) in &bytes {
        assert!(*content == same[name], "{name} depends on the number of threads");
    }
    assert_eq!(report, same_report);
    assert_ne!(bytes["urls.jsonl"], different["urls.jsonl"]);
    // Making it again over what is there changes nothing.
    make(dir.path(), 7, 2);
    assert!(bytes == files(&world.path("")));
}

#[test]
fn truth_and_urls_agree_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (world, report) = make(dir.path(), 7, 2);
    let urls: Vec<UrlRecord> = read_jsonl(&world.urls()).unwrap();
    let truth: Vec<TruthRecord> = read_jsonl(&world.truth()).unwrap();
    assert_eq!((urls.len(), truth.len(), report.tally.seen), (200, 200, 200));
    for (url, truth) in urls.iter().zip(&truth) {
        assert_eq!((&url.url, &url.uid), (&truth.url, &truth.uid));
        assert!(url.uid.len() == 32 && url.uid.chars().all(|c| c.is_ascii_hexdigit()));
        let clean = truth.pair == PairClass::Clean;
        assert_eq!(truth.scores.image_text_matching > 85, clean);
        assert_eq!(truth.scores.semantic_understanding > 85, clean);
        assert!(clean || truth.near_duplicate_of.is_none() && truth.duplicate_of.is_none());
    }
    let kept =
        truth.iter().filter(|record| record.fault.as_ref().is_none_or(|fault| fault.fate() == Fate::Kept));
    assert_eq!(report.fetchable, kept.count() as u64);
    assert_eq!(report.pairs["clean"] + report.pairs["mismatched"] + report.pairs["subtle"], 164);
    assert_eq!(report.yes_no, BTreeMap::from([("no".to_owned(), 20), ("yes".to_owned(), 20)]));
}

#[test]
fn corpora_are_readable_shards() {
    let (_dir, world) = small_world(7);
    let read = |name: &str| -> Vec<(String, Value)> {
        let samples = ShardReader::open(&world.path(&format!("corpora/{name}/00000.tar"))).unwrap();
        samples
            .map(|sample| {
                let sample = sample.unwrap();
                image::load_from_memory(&sample.image().unwrap().data).unwrap();
                let metadata: Value = sample.metadata().unwrap().unwrap();
                assert_eq!(metadata["key"], sample.key.as_str());
                (sample.caption().unwrap().unwrap().to_owned(), metadata)
            })
            .collect()
    };
    let siglip = read("siglip");
    assert_eq!(siglip.len(), 30);
    assert!(siglip.iter().all(|(caption, metadata)| metadata["caption"] == caption.as_str()));
    let mlm_filter = read("mlm-filter");
    let classes: BTreeSet<_> =
        mlm_filter.iter().map(|(_, metadata)| metadata["pair"].as_str().unwrap()).collect();
    assert_eq!((mlm_filter.len(), classes.len()), (40, PairClass::ALL.len()));
    for (_, metadata) in mlm_filter {
        assert_eq!(metadata["scores"].as_object().unwrap().len(), 4);
    }
    let documents: Vec<Value> = read_jsonl(&world.path("corpora/text.jsonl")).unwrap();
    assert!(documents.len() == 50 && documents.iter().all(|document| document["text"].is_string()));
}

#[test]
fn conversations_have_their_images() {
    let (_dir, world) = small_world(7);
    let conversations: Vec<Conversation> =
        serde_json::from_slice(&std::fs::read(world.path("sft/llava.json")).unwrap()).unwrap();
    assert_eq!(conversations.len(), 40);
    for conversation in &conversations {
        assert_eq!(conversation.conversations[0].from, Speaker::Human);
        if let Some(name) = &conversation.image {
            assert!(image::open(world.path("sft/images").join(name)).is_ok());
        }
    }
    assert_eq!(conversations.iter().filter(|conversation| conversation.image.is_none()).count(), 2);
    let ids: BTreeSet<_> = conversations.iter().map(|conversation| &conversation.id).collect();
    assert_eq!(ids.len(), 40);
}

#[test]
fn benchmarks_have_the_public_layouts() {
    let (_dir, world) = small_world(7);
    let mut table =
        csv::ReaderBuilder::new().delimiter(b'\t').from_path(world.path("eval/multiple_choice.tsv")).unwrap();
    let rows: Vec<BTreeMap<String, String>> = table.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 40);
    for (index, row) in rows.iter().enumerate() {
        assert_eq!(row["index"], index.to_string());
        assert!(["A", "B", "C", "D"].contains(&row["answer"].as_str()));
        let image = base64::engine::general_purpose::STANDARD.decode(&row["image"]).unwrap();
        assert!(image::load_from_memory(&image).is_ok());
    }
    let counts: Vec<_> = (rows.iter().filter(|row| row["category"] == "count"))
        .map(|row| row[row["answer"].as_str()].clone())
        .collect();
    for number in ["1", "2", "3", "4"] {
        let found = counts.iter().filter(|count| *count == number).count();
        assert!((1..=2).contains(&found), "{counts:?}");
    }
    let lines: Vec<Value> = read_jsonl(&world.path("eval/yes_no.jsonl")).unwrap();
    assert_eq!(lines.iter().filter(|line| line["label"] == "yes").count(), 20);
    for line in lines {
        assert_eq!(
            line.as_object().unwrap().keys().collect::<Vec<_>>(),
            ["question_id", "image", "text", "label"]
        );
        assert!(image::open(world.path("eval/images").join(line["image"].as_str().unwrap())).is_ok());
    }
    let read = |name| -> Value { oqvl_shard_io::read_json(&world.path(name)).unwrap() };
    let (questions, annotations) = (read("eval/vqa_questions.json"), read("eval/vqa_annotations.json"));
    let (questions, annotations) =
        (questions["questions"].as_array().unwrap(), annotations["annotations"].as_array().unwrap());
    assert_eq!((questions.len(), annotations.len()), (20, 20));
    for (question, annotation) in questions.iter().zip(annotations) {
        assert_eq!(question["question_id"], annotation["question_id"]);
        assert_eq!(annotation["answers"].as_array().unwrap().len(), 10);
        let name = crate::benchmark_files::vqa_image_name(question["image_id"].as_u64().unwrap());
        assert!(image::open(world.path("eval/images").join(name)).is_ok());
    }
}

#[test]
fn wrong_configs_name_the_key() {
    let check = |key: &str, change: fn(&mut SyntheticConfig)| {
        let mut config = small_config();
        change(&mut config);
        let error = WorldConfig::Synthetic(config).validate().unwrap_err();
        assert_eq!(error.key(), key, "{error}");
    };
    check("num_urls", |config| config.num_urls = 63);
    check("vague_share", |config| config.vague_share = -0.1);
    check("vague_share", |config| config.vague_share = f64::NAN);
    check("duplicate_share", |config| config.duplicate_share = 1.0);
    check("mismatched_share", |config| config.mismatched_share = 0.7);
    check("fault_share", |config| config.fault_share = 0.05);
    check("num_yes_no", |config| config.num_yes_no = 41);
}

/// A directory of six drawn "photos" with captions and questions, two awkward files and some bad records.
fn photos_dir() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    std::fs::create_dir_all(path.join("images/set")).unwrap();
    let write = |name: &str, bytes: &[u8]| oqvl_shard_io::write_atomic(&path.join(name), bytes).unwrap();
    let (mut captions, mut questions) = (String::new(), String::new());
    for number in 0..6 {
        let scene = crate::scene::Scene::generate(1, crate::scene::Split::Web, number);
        let picture = crate::scene::draw(&scene, crate::scene::Canvas::default());
        let file = format!("images/set/{number}.png");
        write(&file, &crate::PictureFormat::Png.encode(&picture));
        let texts = [("en", format!("picture number {number}")), ("de", format!("Bild Nummer {number}"))];
        let texts =
            texts.map(|(lang, text)| serde_json::json!({"text": text, "kind": "title", "lang": lang}));
        captions += &format!("{}\n", serde_json::json!({"file": file, "captions": texts, "bytes": 1}));
        let choices: Vec<String> = (0..4).map(|step| ((number + step) % 6).to_string()).collect();
        for question in [
            serde_json::json!({"benchmark": "mcq", "file": file, "question": "Which number?", "choices": choices,
                "correct_choice_idx": 0, "answer": number.to_string()}),
            serde_json::json!({"benchmark": "tf", "file": file, "question": "True?", "statement": "It is.",
                "choices": ["true", "false"], "answer": "true"}),
            serde_json::json!({"benchmark": "open", "file": file, "question": "what?", "answer": "blue"}),
        ] {
            questions += &format!("{question}\n");
        }
    }
    captions +=
        "not json\n{\"file\":\"../x.png\",\"captions\":[]}\n{\"file\":\"gone.png\",\"captions\":[]}\n";
    write("captions.jsonl", captions.as_bytes());
    questions += "{\"benchmark\":\"open\",\"file\":\"gone.png\",\"question\":\"what?\",\"answer\":\"x\"}\n";
    write("qa.jsonl", questions.as_bytes());
    write("odd.jpg", b"<html>");
    write("empty.jpg", b"");
    write("awkward.tsv", b"file\ttrait\tbytes\nodd.jpg\tHTML, no image\t6\nempty.jpg\tempty\t0\n");
    dir
}

fn make_photos(photos_dir: &Path, work_dir: &Path) -> Result<(WorldDir, WorldReport), crate::WorldError> {
    let config =
        crate::PhotosConfig { photos_dir: photos_dir.to_path_buf(), mismatched_share: 0.25, eval_share: 0.5 };
    let config = WorldConfig::Photos(config);
    config.validate().unwrap();
    assert!(config.inputs()[0].is_absolute());
    let run = RunContext::for_test::<MicroWorld>(work_dir, 7).unwrap();
    let report = MicroWorld::run(&config, &run)?;
    Ok((WorldDir::new(&run.out_dir), report))
}

#[test]
fn photos_become_a_world() {
    let (photos, work_dir) = (photos_dir(), tempfile::tempdir().unwrap());
    let (world, report) = make_photos(photos.path(), work_dir.path()).unwrap();
    assert_eq!(report.tally.kept, 6 * 2 + 2);
    let rejected: Vec<_> = report.tally.rejected.keys().map(String::as_str).collect();
    assert_eq!(
        rejected,
        ["malformed-record", "missing-file", "path-outside-directory", "question-without-image"]
    );
    assert_eq!((report.pairs["mismatched"], report.faults["awkward"]), (3, 2));
    // Half of the six images are held out.
    assert_eq!((report.siglip_pairs, report.sft_conversations), (3, 3));
    assert_eq!(
        (report.multiple_choice["mcq"], report.yes_no["yes"], report.open_questions["open"]),
        (3, 3, 3)
    );

    let truth: Vec<TruthRecord> = read_jsonl(&world.truth()).unwrap();
    let urls: Vec<UrlRecord> = read_jsonl(&world.urls()).unwrap();
    for (url, truth) in urls.iter().zip(&truth).take(12) {
        let number = format!("{}", truth.scene);
        assert_eq!(url.caption.ends_with(&number), truth.pair == PairClass::Clean, "{url:?}");
    }
    assert_eq!(truth[1].duplicate_of.as_ref(), Some(&truth[0].uid));
    assert_eq!(truth[12].fault, Some(crate::Fault::Awkward("HTML, no image".into())));
    let server = crate::WorldServer::start(&world.path(""), 0).unwrap();
    assert_eq!(server.hosts().keys().collect::<Vec<_>>(), ["root.photo-world.test", "set.photo-world.test"]);

    let conversations: Vec<Conversation> = oqvl_shard_io::read_json(&world.path("sft/llava.json")).unwrap();
    let tested: BTreeSet<u64> = (read_jsonl::<Value>(&world.path("eval/yes_no.jsonl")).unwrap().iter())
        .map(|line| line["image"].as_str().unwrap().rsplit(['_', '.']).nth(1).unwrap().parse().unwrap())
        .collect();
    for conversation in &conversations {
        assert_eq!(conversation.conversations.len(), 8);
        let name = conversation.image.as_ref().unwrap();
        assert!(world.path("sft/images").join(name).exists());
        assert!(!tested.iter().any(|number| name.ends_with(&format!("{number}.png"))), "{name} is held out");
    }
}

#[test]
fn photos_that_are_not_there_are_named() {
    let (photos, work_dir) = (photos_dir(), tempfile::tempdir().unwrap());
    std::fs::remove_file(photos.path().join("qa.jsonl")).unwrap();
    let message = make_photos(photos.path(), work_dir.path()).unwrap_err().to_string();
    assert!(message.starts_with("photos_dir: ") && message.contains("qa.jsonl does not exist"), "{message}");
}
