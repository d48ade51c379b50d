//! Whole folders of transformers and open_clip, from the bytes of images and captions to the cosine.

use oqvl_clip_filter::{ClipFilter, ClipFilterConfig, ClipFilterReport, METRIC, NamedModel, SCORER};
use oqvl_shard_io::{Sample, SampleKey, ScoreTable, ShardWriter, read_json, write_atomic};
use oqvl_stage::{RunContext, Stage as _};
use oqvl_text_prep::ClipTextStyle;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Cosines are asked to be equal to this.
const TOLERANCE: f64 = 1e-5;

#[derive(Debug, Clone, Deserialize)]
struct Pair {
    image: String,
    caption: String,
    cosine: f64,
}

/// What stands under a folder's name: pairs, or, under `made_with`, versions.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Golden {
    Pairs(Vec<Pair>),
    Version(String),
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// What Python found for `folder`, with captions read in this way.
fn goldens(folder: &str, style: &str) -> Vec<Pair> {
    let file: BTreeMap<String, BTreeMap<String, Golden>> =
        read_json(&fixtures().join("goldens.json")).unwrap();
    match &file[folder][style] {
        Golden::Pairs(pairs) => pairs.clone(),
        Golden::Version(version) => panic!("{folder} {style} is {version}"),
    }
}

fn write_shard(path: &Path, pairs: &[Pair]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut writer = ShardWriter::create(path).unwrap();
    for (index, pair) in pairs.iter().enumerate() {
        let mut sample = Sample::new(SampleKey::new(format!("{index:04}")).unwrap());
        let extension = pair.image.rsplit_once('.').unwrap().1;
        sample.push(extension, std::fs::read(fixtures().join("images").join(&pair.image)).unwrap());
        sample.push("txt", pair.caption.clone().into_bytes());
        writer.push(&sample).unwrap();
    }
    writer.finish().unwrap();
}

fn run(work_dir: &Path, config: &ClipFilterConfig) -> ClipFilterReport {
    let context = RunContext::for_test::<ClipFilter>(work_dir, 7).unwrap();
    ClipFilter::run(config, &context).unwrap()
}

fn scores(work_dir: &Path, shard: &str, column: &str) -> Vec<f64> {
    let table =
        ScoreTable::read(&ScoreTable::sidecar_path(&work_dir.join("clip-filter"), shard, SCORER)).unwrap();
    table.metric(column).unwrap().iter().map(|score| score.unwrap()).collect()
}

fn one(folder: &str, text_style: Option<ClipTextStyle>) -> ClipFilterConfig {
    ClipFilterConfig { text_style, ..ClipFilterConfig::one("shards", fixtures().join(folder)) }
}

fn assert_close(found: &[f64], expected: &[Pair]) {
    assert_eq!(found.len(), expected.len());
    for (found, pair) in found.iter().zip(expected) {
        // Not `>`: a NaN must fail.
        assert!((found - pair.cosine).abs() <= TOLERANCE, "{pair:?}: {found}");
    }
}

fn check(folder: &str, style: &str, text_style: Option<ClipTextStyle>) {
    let dir = tempfile::tempdir().unwrap();
    let expected = goldens(folder, style);
    let (low, high) = expected
        .iter()
        .fold((1f64, -1f64), |(low, high), pair| (low.min(pair.cosine), high.max(pair.cosine)));
    assert!(high - low > 0.1, "{low} to {high} tells nothing apart");
    write_shard(&dir.path().join("shards/00000.tar"), &expected);
    let report = run(dir.path(), &one(folder, text_style));
    assert_eq!(report.tally.kept, expected.len() as u64);
    assert_close(&scores(dir.path(), "00000", METRIC), &expected);
}

#[test]
fn a_folder_of_transformers_gives_its_pipelines_cosines() {
    check("hf_clip", "hugging-face", Some(ClipTextStyle::HuggingFace));
}

/// What is not asked for is how CLIP was trained: with ftfy and HTML references decoded.
#[test]
fn captions_are_cleaned_as_openai_does_it() {
    check("hf_clip", "open-ai", None);
    let [cleaned, plain] = ["open-ai", "hugging-face"].map(|style| goldens("hf_clip", style));
    let differing =
        cleaned.iter().zip(&plain).filter(|(a, b)| (a.cosine - b.cosine).abs() > 10.0 * TOLERANCE);
    assert!(differing.count() >= 4, "the captions must need cleaning");
}

#[test]
fn a_folder_of_open_clip_gives_its_cosines() {
    check("open_clip", "open-clip", None);
}

/// As `timm/vit_base_patch32_clip_224.openai` is: timm's config and weights of the tower alone beside open_clip's pair.
#[test]
fn a_folder_of_timm_and_open_clip_is_open_clips() {
    let dir = tempfile::tempdir().unwrap();
    let both = dir.path().join("both");
    std::fs::create_dir(&both).unwrap();
    for file in std::fs::read_dir(fixtures().join("open_clip")).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), both.join(file.file_name())).unwrap();
    }
    let timm = br#"{"architecture": "vit_base_patch32_clip_224", "num_classes": 8, "pretrained_cfg": {}}"#;
    write_atomic(&both.join("config.json"), timm).unwrap();
    write_atomic(&both.join("pytorch_model.bin"), b"the tower alone").unwrap();
    let expected = goldens("open_clip", "open-clip");
    write_shard(&dir.path().join("shards/00000.tar"), &expected);
    run(dir.path(), &ClipFilterConfig::one("shards", both));
    assert_close(&scores(dir.path(), "00000", METRIC), &expected);
}

#[test]
fn a_siglip_of_transformers_gives_its_pipelines_cosines() {
    check("hf_siglip", "siglip", None);
}

#[test]
fn several_models_in_one_pass_are_each_alone() {
    let dir = tempfile::tempdir().unwrap();
    let expected = goldens("hf_clip", "open-ai");
    write_shard(&dir.path().join("shards/00000.tar"), &expected);
    let named = |name: &str, folder: &str, text_style| NamedModel {
        name: name.to_owned(),
        model: fixtures().join(folder),
        text_style,
    };
    let models = vec![
        named("plain", "hf_clip", Some(ClipTextStyle::HuggingFace)),
        named("open", "open_clip", None),
        named("siglip", "hf_siglip", None),
        named("cleaned", "hf_clip", None),
    ];
    let config = ClipFilterConfig { shards: "shards".into(), model: None, text_style: None, models };
    let report = run(dir.path(), &config);
    let columns: Vec<&str> = report.models.keys().map(String::as_str).collect();
    let expected_columns = ["clip_cleaned_score", "clip_open_score", "clip_plain_score", "clip_siglip_score"];
    assert_eq!(columns, expected_columns);
    for (column, folder, style) in [
        ("clip_plain_score", "hf_clip", "hugging-face"),
        ("clip_cleaned_score", "hf_clip", "open-ai"),
        ("clip_open_score", "open_clip", "open-clip"),
        ("clip_siglip_score", "hf_siglip", "siglip"),
    ] {
        let of_folder = goldens(folder, style);
        // Others have an image more; these images are the first of theirs.
        assert_close(&scores(dir.path(), "00000", column), &of_folder[..expected.len()]);
    }
}

#[test]
fn neither_threads_nor_batch_mates_change_a_score() {
    let pairs = goldens("open_clip", "open-clip");
    let many: Vec<Pair> = pairs.iter().cycle().take(70).cloned().collect();
    let sidecar = |threads: usize| {
        let dir = tempfile::tempdir().unwrap();
        write_shard(&dir.path().join("shards/00000.tar"), &many);
        write_shard(&dir.path().join("shards/00001.tar"), &many[69..]);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run(dir.path(), &one("open_clip", None)));
        (scores(dir.path(), "00000", METRIC), scores(dir.path(), "00001", METRIC))
    };
    let (together, alone) = sidecar(1);
    assert_eq!((together.clone(), alone.clone()), sidecar(3));
    assert!((together[69] - alone[0]).abs() < 1e-6, "{} {}", together[69], alone[0]);
    assert_close(&together, &many);
}

#[test]
fn what_is_wrong_with_a_folder_is_said_before_any_work() {
    let broken = |model: &str, file: &str, from: &str, to: &str| -> String {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("model");
        std::fs::create_dir(&folder).unwrap();
        for entry in std::fs::read_dir(fixtures().join(model)).unwrap() {
            let entry = entry.unwrap();
            std::fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
        }
        if to.is_empty() {
            std::fs::remove_file(folder.join(file)).unwrap();
        } else {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            assert!(text.contains(from), "{text}");
            oqvl_shard_io::write_atomic(&folder.join(file), text.replace(from, to).as_bytes()).unwrap();
        }
        // There are no shards, and nobody gets to miss them.
        let context = RunContext::for_test::<ClipFilter>(dir.path(), 7).unwrap();
        let error = ClipFilter::run(&ClipFilterConfig::one("shards", folder), &context).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            text += &format!(": {cause}");
            source = cause.source();
        }
        text
    };
    for (model, file, from, to, expected) in [
        ("hf_clip", "config.json", "\"quick_gelu\"", "\"relu\"", "unknown variant `relu`"),
        (
            "hf_clip",
            "config.json",
            "\"projection_dim\": 12",
            "\"projection_dim\": 13",
            "visual_projection.weight",
        ),
        ("hf_clip", "preprocessor_config.json", "\"shortest_edge\": 24", "\"shortest_edge\": 32", "`size`"),
        ("hf_siglip", "preprocessor_config.json", "\"resample\": 3", "\"resample\": 2", "`resample` is 2"),
        ("hf_siglip", "config.json", "\"gelu_pytorch_tanh\"", "\"relu\"", "hidden_act"),
        ("hf_clip", "tokenizer.json", "", "", "there is no tokenizer; looked for tokenizer.json"),
        ("hf_clip", "model.safetensors", "", "", "model.safetensors"),
    ] {
        let error = broken(model, file, from, to);
        assert!(error.contains(expected) && error.contains("model"), "{error}");
    }
    let siglip = tempfile::tempdir().unwrap();
    let context = RunContext::for_test::<ClipFilter>(siglip.path(), 7).unwrap();
    let error = ClipFilter::run(&one("hf_siglip", Some(ClipTextStyle::OpenAi)), &context).unwrap_err();
    assert!(error.to_string().contains("`text_style` is for CLIP"), "{error}");
}
