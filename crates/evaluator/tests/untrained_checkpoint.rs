//! The whole stage with a real, if untrained, checkpoint: what it answers is noise, but always the same noise.

use std::path::Path;

use candle_core::Device;
use oqvl_evaluator::{Evaluator, EvaluatorConfig, EvaluatorReport};
use oqvl_image_prep::{RgbImage, encode_png};
use oqvl_model::{
    HiddenAct, ParamStore, Qwen2Config, SECOND_TO_LAST, SiglipVisionConfig, Vlm, VlmConfig, save_checkpoint,
};
use oqvl_shard_io::write_atomic;
use oqvl_stage::{RunContext, Stage};
use oqvl_text_prep::BpeTrainer;

const NUM_QUESTIONS: u8 = 5;

/// A checkpoint of a few thousand parameters, and questions about images of different grays; the last is too long.
fn write_world(work_dir: &Path) {
    let texts = ["Answer the question using a single word or phrase.", "is it gray?", "yes", "no"];
    let tokenizer = BpeTrainer::new(320).train(texts.iter().map(|text| (*text).to_owned())).unwrap();
    write_atomic(&work_dir.join("tokenizer.json"), tokenizer.json()).unwrap();
    let config = VlmConfig {
        vision_config: SiglipVisionConfig {
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            layer_norm_eps: 1e-6,
            hidden_act: HiddenAct::Gelu,
        },
        text_config: Qwen2Config {
            vocab_size: tokenizer.tokenizer().unwrap().vocab_size(),
            hidden_size: 8,
            intermediate_size: 16,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 256,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        },
        pooled_grid: 2,
        vision_feature_layer: SECOND_TO_LAST,
    };
    let mut store = ParamStore::seeded(7, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    save_checkpoint(&work_dir.join("checkpoint"), &config, &store, &work_dir.join("tokenizer.json")).unwrap();

    std::fs::create_dir(work_dir.join("images")).unwrap();
    let mut lines = String::new();
    for id in 0..=NUM_QUESTIONS {
        let image = RgbImage::new(9, 7, vec![id * 40; 9 * 7 * 3]).unwrap();
        write_atomic(&work_dir.join(format!("images/{id}.png")), &encode_png(&image)).unwrap();
        let question = if id == NUM_QUESTIONS { "is it? ".repeat(100) } else { format!("is it gray? {id}") };
        let line = serde_json::json!({"question_id": id, "image": format!("{id}.png"), "text": question, "label": "no"});
        lines += &format!("{line}\n");
    }
    write_atomic(&work_dir.join("questions.jsonl"), lines.as_bytes()).unwrap();
}

fn evaluate(prompt_style: &str, batch_size: usize) -> (EvaluatorReport, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    write_world(dir.path());
    let config: EvaluatorConfig = serde_json::from_value(serde_json::json!({
        "model": "checkpoint", "prompt_style": prompt_style, "batch_size": batch_size, "max_new_tokens": 6,
        "benchmark": [
            {"name": "shown", "kind": "pope", "file": "questions.jsonl", "images": "images"},
            {"name": "blank", "kind": "pope", "file": "questions.jsonl", "images": "images", "image": "blank"},
        ],
    }))
    .unwrap();
    let run = RunContext::for_test::<Evaluator>(dir.path(), 7).unwrap();
    let report = Evaluator::run(&config, &run).unwrap();
    let predictions = std::fs::read(run.out_dir.join("shown/predictions.jsonl")).unwrap();
    (report, predictions)
}

#[test]
fn answers_do_not_depend_on_the_batch() {
    for prompt_style in ["chat", "reference"] {
        let (report, one_by_one) = evaluate(prompt_style, 1);
        assert_eq!(report.results["shown"].overall.num, u64::from(NUM_QUESTIONS));
        assert_eq!(report.tally.rejected["prompt-too-long"], 2);
        for batch_size in [2, 6] {
            let (batched, predictions) = evaluate(prompt_style, batch_size);
            assert_eq!(
                String::from_utf8(predictions).unwrap(),
                String::from_utf8(one_by_one.clone()).unwrap()
            );
            assert_eq!(batched.results, report.results);
            assert_eq!(batched.model_digest, report.model_digest);
        }
    }
}

#[test]
fn prompt_styles_ask_different_things() {
    let prompt = |style| {
        let (_, predictions) = evaluate(style, 6);
        let first = predictions.split(|byte| *byte == b'\n').next().unwrap();
        let line: serde_json::Value = serde_json::from_slice(first).unwrap();
        line["prompt"].as_str().unwrap().to_owned()
    };
    assert!(prompt("chat").ends_with("single word or phrase."));
    assert!(prompt("reference").ends_with("single word or phrase.\nAnswer:"));
}
