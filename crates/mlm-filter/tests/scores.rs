//! The stage on a shard with bad samples in it, against answers asked for one at a time.

use candle_core::Device;
use oqvl_image_prep::{decode, pixel_values};
use oqvl_mlm_filter::{
    ImageShape, Metric, MlmFilter, MlmFilterConfig, Mode, PromptStyle, SCORER, parse_score,
};
use oqvl_model::{
    GenerateConfig, HiddenAct, ParamStore, Prompt, Qwen2Config, SECOND_TO_LAST, SiglipVisionConfig,
    TOKENIZER_FILE, Vlm, VlmCheckpoint, VlmConfig, save_checkpoint,
};
use oqvl_shard_io::{Sample, SampleKey, ScoreTable, ShardReader, ShardWriter, write_atomic};
use oqvl_stage::{RunContext, Stage as _};
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::{BpeTrainer, SpecialTokens, Tokenizer};
use std::path::Path;

const METRICS: [Metric; 2] = [Metric::ImageTextMatching, Metric::SemanticUnderstanding];

/// A model drawn from a seed.
fn save_model(dir: &Path) {
    let tokenizer = BpeTrainer::new(300).train(std::iter::empty()).unwrap();
    let tokenizer_file = dir.join(TOKENIZER_FILE);
    std::fs::create_dir_all(dir).unwrap();
    write_atomic(&tokenizer_file, tokenizer.json()).unwrap();
    let vision_config = SiglipVisionConfig {
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::Gelu,
    };
    let text_config = Qwen2Config {
        vocab_size: Tokenizer::from_file(&tokenizer_file).unwrap().vocab_size(),
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        num_key_value_heads: 1,
        max_position_embeddings: 128,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: true,
    };
    let config =
        VlmConfig { vision_config, text_config, pooled_grid: 2, vision_feature_layer: SECOND_TO_LAST };
    let mut store = ParamStore::seeded(4, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    save_checkpoint(dir, &config, &store, &tokenizer_file).unwrap();
}

#[test]
fn every_sample_has_its_answers_or_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"));
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

    let config = MlmFilterConfig {
        shards: "shards".into(),
        model: "model".into(),
        prompt: PromptStyle::Brief,
        metrics: METRICS.to_vec(),
        mode: Mode::Corrected,
        image: ImageShape::Squash,
        max_new_tokens: Some(3),
        batch_size: None,
        expected: false,
    };
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
