//! What parity with the reference's script does to scores, and the corrected mode does not.

mod small_model;

use candle_core::{DType, Device, Tensor};
use oqvl_mlm_filter::{
    ImageShape, Metric, MlmFilter, MlmFilterConfig, MlmFilterReport, Mode, PromptStyle, SCORER,
};
use oqvl_shard_io::ScoreTable;
use oqvl_stage::{RunContext, Stage as _};
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::Tokenizer;
use small_model::{HIDDEN, save_model};
use std::collections::BTreeMap;
use std::path::Path;

const METRIC: Metric = Metric::SemanticUnderstanding;
const POSITIONS: usize = 4096;

/// Weights that say `100` over and over: the blocks add nothing, so that the next token follows from the last alone.
fn says_100(tokenizer: &Tokenizer, vocab_size: usize) -> BTreeMap<String, Tensor> {
    let id = |text: &str| tokenizer.encode(text).unwrap().pop().unwrap() as usize;
    let (mut embedding, mut head) = (vec![0f32; vocab_size * HIDDEN], vec![0f32; vocab_size * HIDDEN]);
    for (last, axis, next) in [(" ", 0, "1"), ("1", 1, "0"), ("0", 2, "0")] {
        embedding[id(last) * HIDDEN + axis] = 1.0;
        head[id(next) * HIDDEN + axis] = 1.0;
    }
    let matrix = |values: Vec<f32>| Tensor::from_vec(values, (vocab_size, HIDDEN), &Device::Cpu).unwrap();
    let zeros = || Tensor::zeros((HIDDEN, HIDDEN), DType::F32, &Device::Cpu).unwrap();
    BTreeMap::from([
        ("language_model.model.embed_tokens.weight".to_owned(), matrix(embedding)),
        ("language_model.lm_head.weight".to_owned(), matrix(head)),
        ("language_model.model.layers.0.self_attn.o_proj.weight".to_owned(), zeros()),
        ("language_model.model.layers.0.mlp.down_proj.weight".to_owned(), zeros()),
    ])
}

fn config(mode: Mode) -> MlmFilterConfig {
    MlmFilterConfig {
        shards: "shards".into(),
        model: "model".into(),
        vision_tower: None,
        language_model: None,
        prompt: PromptStyle::Reference,
        metrics: vec![METRIC],
        mode,
        image: ImageShape::Squash,
        max_new_tokens: None,
        batch_size: None,
        expected: true,
    }
}

/// Report and sidecar of the shard with these captions.
fn run(dir: &Path, captions: &[&str], config: &MlmFilterConfig) -> (MlmFilterReport, ScoreTable) {
    let work_dir = tempfile::tempdir().unwrap();
    let keys: Vec<String> = (0..captions.len()).map(|index| format!("{index:04}")).collect();
    let samples: Vec<_> = keys.iter().zip(captions).map(|(key, caption)| (key.as_str(), *caption)).collect();
    std::fs::create_dir(work_dir.path().join("shards")).unwrap();
    let _ = tiny_shard(&work_dir.path().join("shards"), "00000", &samples);
    let context = RunContext::for_test::<MlmFilter>(work_dir.path(), 7).unwrap();
    let config = MlmFilterConfig { model: dir.join("model"), ..config.clone() };
    let report = MlmFilter::run(&config, &context).unwrap();
    let table = ScoreTable::read(&ScoreTable::sidecar_path(&context.out_dir, "00000", SCORER)).unwrap();
    (report, table)
}

fn column<'a>(table: &'a ScoreTable, ending: &str) -> &'a [Option<f64>] {
    table.metric(&format!("{}_{ending}", METRIC.name())).unwrap()
}

fn answer(table: &ScoreTable, row: usize) -> &str {
    let name = format!("{}_text", METRIC.name());
    table.texts.iter().find(|(column, _)| *column == name).unwrap().1[row].as_deref().unwrap()
}

#[test]
fn a_hundred_is_a_hundred_and_in_parity_ten() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, says_100);
    let (report, table) = run(dir.path(), &["a cat"], &config(Mode::Corrected));
    assert_eq!((answer(&table, 0), column(&table, "score")[0]), ("100", Some(100.0)));
    assert_eq!(report.unparsable[METRIC.name()], 0);
    let (_, parity) = run(dir.path(), &["a cat"], &config(Mode::Parity));
    assert_eq!((answer(&parity, 0), column(&parity, "score")[0]), ("10", Some(10.0)));
}

#[test]
fn only_in_parity_a_score_depends_on_its_batch_mates() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    let long = "a much longer caption about something else ".repeat(5);
    let differences = |mode| {
        let (_, alone) = run(dir.path(), &["a cat"], &config(mode));
        let (_, together) = run(dir.path(), &["a cat", &long], &config(mode));
        if mode == Mode::Corrected {
            assert_eq!(answer(&alone, 0), answer(&together, 0));
        }
        (column(&alone, "expected")[0].unwrap() - column(&together, "expected")[0].unwrap()).abs()
    };
    assert!(differences(Mode::Corrected) < 1e-4, "{}", differences(Mode::Corrected));
    assert!(differences(Mode::Parity) > 1e-2, "{}", differences(Mode::Parity));
    // A batch of one has no mates.
    let one = MlmFilterConfig { batch_size: Some(1), ..config(Mode::Parity) };
    let (_, alone) = run(dir.path(), &["a cat"], &one);
    let (_, together) = run(dir.path(), &["a cat", &long], &one);
    assert_eq!(column(&alone, "expected")[0], column(&together, "expected")[0]);
    let (_, corrected) = run(dir.path(), &["a cat"], &config(Mode::Corrected));
    let difference = column(&alone, "expected")[0].unwrap() - column(&corrected, "expected")[0].unwrap();
    assert!(difference.abs() < 1e-4, "{difference}");
}

#[test]
fn long_captions_and_placeholders_are_refused_or_as_in_the_reference() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    // The model has room for 4096 tokens; the question alone has some 2100 bytes, each a token here.
    let long = "x".repeat(3000);
    let captions = ["an <image> of a cat", long.as_str(), "a cat"];
    let reasons = |mode| -> Vec<(String, u64)> {
        run(dir.path(), &captions, &config(mode)).0.tally.rejected.into_iter().collect()
    };
    assert_eq!(reasons(Mode::Corrected), [("caption-too-long".to_owned(), 1)]);
    // Cut, and asked all the same.
    assert_eq!(reasons(Mode::Parity), [("placeholder-in-caption".to_owned(), 1)]);
}

#[test]
fn padding_to_a_square_is_another_question() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    let score = |image| {
        let config = MlmFilterConfig { image, ..config(Mode::Corrected) };
        column(&run(dir.path(), &["a cat"], &config).1, "expected")[0].unwrap()
    };
    assert_ne!(score(ImageShape::Squash), score(ImageShape::Pad));
}

#[test]
fn threads_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    save_model(&dir.path().join("model"), POSITIONS, |_, _| BTreeMap::new());
    let captions: Vec<String> = (0..20).map(|index| "cat ".repeat(index + 1)).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    for mode in [Mode::Corrected, Mode::Parity] {
        let tables = [1, 3].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| run(dir.path(), &captions, &config(mode)).1)
        });
        assert_eq!(column(&tables[0], "expected"), column(&tables[1], "expected"), "{mode:?}");
    }
}
