//! The stage on a shard with bad samples in it, against answers asked for one at a time.

mod small_model;

use candle_core::Device;
use oqvl_image_prep::{decode, pixel_values};
use oqvl_mlm_filter::{
    ImageShape, Metric, MlmFilter, MlmFilterConfig, Mode, PromptStyle, SCORER, parse_score,
};
use oqvl_model::{GenerateConfig, Prompt, VlmCheckpoint};
use oqvl_shard_io::{Sample, SampleKey, ScoreTable, ShardReader, ShardWriter};
use oqvl_stage::{RunContext, Stage as _};
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::SpecialTokens;
use small_model::save_model;
use std::collections::BTreeMap;

const METRICS: [Metric; 2] = [Metric::ImageTextMatching, Metric::SemanticUnderstanding];
const POSITIONS: usize = 128;

/// Asks the metrics of a model that nobody has taught.
fn config() -> MlmFilterConfig {
    MlmFilterConfig {
        shards: "shards".into(),
        model: "model".into(),
        vision_tower: None,
        language_model: None,
        prompt: PromptStyle::Brief,
        metrics: METRICS.to_vec(),
        mode: Mode::Corrected,
        image: ImageShape::Squash,
        max_new_tokens: Some(3),
        batch_size: None,
        expected: false,
    }
}

#[test]
fn every_sample_has_its_answers_or_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    let captions: Vec<String> = (0..20).map(|index| format!("{index} <image> cats")).collect();
    let keys: Vec<String> = (0..20).map(|index| format!("good{index:02}")).collect();
    let samples: Vec<_> = keys.iter().zip(&captions).map(|(k, c)| (k.as_str(), c.as_str())).collect();
    let good = tiny_shard(&dir.path().join("good"), "00000", &samples);

    std::fs::create_dir(dir.path().join("shards")).unwrap();
    let mut writer = ShardWriter::create(&dir.path().join("shards/00000.tar")).unwrap();
    for (index, sample) in ShardReader::open(&good).unwrap().enumerate() {
        let sample = sample.unwrap();
        let mut long = Sample::new(SampleKey::new(format!("{index}long")).unwrap());
        long.push("jpg", sample.image().unwrap().data.clone());
        long.push("txt", vec![b'x'; 300]);
        let mut blind = Sample::new(SampleKey::new(format!("{index}blind")).unwrap());
        blind.push("txt", b"no image".to_vec());
        for sample in [&blind, &sample, &long] {
            writer.push(sample).unwrap();
        }
    }
    writer.finish().unwrap();

    let config = config();
    let run = RunContext::for_test::<MlmFilter>(dir.path(), 7).unwrap();
    let report = MlmFilter::run(&config, &run).unwrap();
    assert_eq!((report.tally.seen, report.tally.kept), (60, 20));
    let reasons: Vec<_> =
        report.tally.rejected.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(reasons, [("caption-too-long", 20), ("missing-image", 20)]);

    let table = ScoreTable::read(&ScoreTable::sidecar_path(&run.out_dir, "00000", SCORER)).unwrap();
    let checkpoint = VlmCheckpoint::load(&dir.path().join("model"), &Device::Cpu).unwrap();
    let tokenizer = &checkpoint.tokenizer;
    let mut unparsable = 0;
    for sample in ShardReader::open(&good).unwrap() {
        let sample = sample.unwrap();
        let row = table.keys.iter().position(|key| key == sample.key.as_str()).unwrap();
        let image = decode(&sample.image().unwrap().data, &Default::default()).unwrap();
        let caption = sample.caption().unwrap().unwrap();
        for metric in METRICS {
            let input_ids = PromptStyle::Brief.input_ids(tokenizer, metric, caption).unwrap();
            let prompt = Prompt { input_ids, images: vec![pixel_values(&image, 8).into()] };
            let stop_ids = vec![tokenizer.eos_id(), tokenizer.pad_id()];
            let generation = GenerateConfig { max_new_tokens: 3, stop_ids, ..GenerateConfig::default() };
            let ids = checkpoint.vlm.generate(&[prompt], &generation).unwrap().remove(0);
            let text = tokenizer.decode(&ids, SpecialTokens::Skip).unwrap();
            let score = table.metric(&format!("{}_score", metric.name())).unwrap()[row];
            assert_eq!(score, parse_score(&text).map(f64::from), "{}", sample.key);
            unparsable += u64::from(score.is_none());
            let column = format!("{}_text", metric.name());
            let texts = &table.texts.iter().find(|(name, _)| *name == column).unwrap().1;
            assert_eq!(texts[row].as_deref(), Some(text.as_str()), "{}", sample.key);
        }
    }
    // A model that nobody has taught says all sorts of things.
    assert_eq!(report.unparsable.values().sum::<u64>(), unparsable);
    assert!(unparsable > 0 && report.unparsable.len() == 2, "{:?}", report.unparsable);
}

#[test]
fn expected_scores_have_room_at_the_edge_of_the_context() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    let captions: Vec<String> = (0..POSITIONS).map(|len| "x".repeat(len + 1)).collect();
    let keys: Vec<String> = (0..captions.len()).map(|index| format!("{index:03}")).collect();
    let samples: Vec<_> = keys.iter().zip(&captions).map(|(k, c)| (k.as_str(), c.as_str())).collect();
    std::fs::create_dir(dir.path().join("shards")).unwrap();
    let _ = tiny_shard(&dir.path().join("shards"), "00000", &samples);
    let kept = |expected| {
        let config = MlmFilterConfig { max_new_tokens: Some(1), expected, ..config() };
        let run = RunContext::for_test::<MlmFilter>(dir.path(), 7).unwrap();
        let tally = MlmFilter::run(&config, &run).unwrap().tally;
        std::fs::remove_dir_all(&run.out_dir).unwrap();
        tally.kept
    };
    let kept_without = kept(false);
    assert!(kept_without > 0 && kept_without < POSITIONS as u64, "{kept_without}");
    // `10` is a token longer than the answer.
    assert_eq!(kept(true), kept_without - 1);
}
