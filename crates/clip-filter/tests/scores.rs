//! The stage on a shard with bad samples in it, against cosines taken one pair at a time.

use candle_core::{Device, Tensor};
use oqvl_clip_filter::{ClipFilter, ClipFilterConfig, METRIC, SCORER};
use oqvl_image_prep::{decode, pixel_values};
use oqvl_model::{
    HiddenAct, ParamStore, Siglip, SiglipCheckpoint, SiglipConfig, SiglipTextConfig, SiglipVisionConfig,
    TOKENIZER_FILE, save_checkpoint,
};
use oqvl_shard_io::{Sample, SampleKey, ScoreTable, ShardReader, ShardWriter, write_atomic};
use oqvl_stage::{RunContext, Stage as _};
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::{BpeTrainer, Tokenizer};
use std::path::Path;

/// A pair of towers drawn from a seed.
fn save_towers(dir: &Path) {
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
    let text_config = SiglipTextConfig {
        vocab_size: Tokenizer::from_file(&tokenizer_file).unwrap().vocab_size(),
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 1,
        num_attention_heads: 2,
        max_position_embeddings: 6,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::Gelu,
    };
    let config = SiglipConfig { vision_config, text_config };
    let mut store = ParamStore::seeded(3, &Device::Cpu);
    Siglip::new(&config, store.root()).unwrap();
    save_checkpoint(dir, &config, &store, &tokenizer_file).unwrap();
}

/// Copies a shard and puts bad samples between its good ones.
fn with_bad_samples(from: &Path, to: &Path) {
    let mut writer = ShardWriter::create(to).unwrap();
    for (index, sample) in ShardReader::open(from).unwrap().enumerate() {
        let sample = sample.unwrap();
        let key = |name: &str| SampleKey::new(format!("{index}{name}")).unwrap();
        let image = sample.image().unwrap();
        let mut broken = Sample::new(key("broken"));
        broken.push("jpg", image.data[..image.data.len() / 2].to_vec());
        broken.push("txt", b"half".to_vec());
        let mut blind = Sample::new(key("blind"));
        blind.push("txt", b"no image".to_vec());
        let mut mute = Sample::new(key("mute"));
        mute.push(&image.extension, image.data.clone());
        for sample in [&broken, &sample, &blind, &mute] {
            writer.push(sample).unwrap();
        }
    }
    writer.finish().unwrap();
}

fn run(work_dir: &Path) -> (oqvl_clip_filter::ClipFilterReport, ScoreTable) {
    let context = RunContext::for_test::<ClipFilter>(work_dir, 7).unwrap();
    let config = ClipFilterConfig::one("shards", "towers");
    let report = ClipFilter::run(&config, &context).unwrap();
    let table = ScoreTable::read(&ScoreTable::sidecar_path(&context.out_dir, "00000", SCORER)).unwrap();
    (report, table)
}

#[test]
fn every_sample_has_its_cosine_or_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    save_towers(&dir.path().join("towers"));
    let captions: Vec<String> = (0..40).map(|index| format!("{index} cats, long cut")).collect();
    let keys: Vec<String> = (0..40).map(|index| format!("good{index:02}")).collect();
    let samples: Vec<_> = keys.iter().zip(&captions).map(|(k, c)| (k.as_str(), c.as_str())).collect();
    let good = tiny_shard(&dir.path().join("good"), "00000", &samples);
    std::fs::create_dir(dir.path().join("shards")).unwrap();
    with_bad_samples(&good, &dir.path().join("shards/00000.tar"));

    let (report, table) = run(dir.path());
    assert_eq!((report.tally.seen, report.tally.kept), (160, 40));
    let reasons: Vec<_> =
        report.tally.rejected.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
    assert_eq!(reasons, [("missing-caption", 40), ("missing-image", 40), ("truncated-image", 40)]);

    let checkpoint = SiglipCheckpoint::load(&dir.path().join("towers"), &Device::Cpu).unwrap();
    assert_eq!(table.model_digest, checkpoint.digest);
    let scores = table.metric(METRIC).unwrap();
    for sample in ShardReader::open(&good).unwrap() {
        let sample = sample.unwrap();
        let row = table.keys.iter().position(|key| key == sample.key.as_str()).unwrap();
        let image = decode(&sample.image().unwrap().data, &Default::default()).unwrap();
        let pixels = Tensor::from_vec(pixel_values(&image, 8), (1, 3, 8, 8), &Device::Cpu).unwrap();
        let ids = checkpoint.text_ids(sample.caption().unwrap().unwrap()).unwrap();
        let siglip = &checkpoint.siglip;
        let texts = siglip.text_embeds(&siglip.text_batch(&[ids], 0).unwrap());
        let product = (siglip.image_embeds(&pixels).unwrap() * texts.unwrap()).unwrap();
        let expected = f64::from(product.sum_all().unwrap().to_scalar::<f32>().unwrap());
        assert!((scores[row].unwrap() - expected).abs() < 1e-5, "{}: {expected}", sample.key);
    }
    assert_eq!(scores.iter().filter(|score| score.is_none()).count(), 120);

    // A second run leaves a sidecar that is there alone, whatever it says, and counts what it says.
    let path = ScoreTable::sidecar_path(&dir.path().join("clip-filter"), "00000", SCORER);
    let mut marked = table;
    marked.metrics[0].1[1] = Some(0.5);
    marked.write(&path).unwrap();
    let (again, found) = run(dir.path());
    assert_eq!((again.tally, found.metric(METRIC).unwrap()[1]), (report.tally, Some(0.5)));
}
