//! Answers against those of transformers' `generate`, in batches, in conversations, with and without what is shared.

use candle_core::{Device, Tensor};
use oqvl_model::{
    AnswerEnd, Event, GenerateConfig, Missing, ModelError, ParamStore, Prompt, Sampling, Session, Trainable,
    Vlm, VlmConfig, pad_left_unmasked, read_safetensors, single_tokens,
};
use oqvl_text_prep::{BpeTrainer, IMAGE_TOKEN_ID as IMG, SpecialTokens, Tokenizer};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const IMAGE_SIZE: usize = 8;

fn vlm_config(text_config: &Value, pooled_grid: usize) -> VlmConfig {
    let vision_config = json!({
        "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
        "image_size": IMAGE_SIZE, "patch_size": 2, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
    });
    let config =
        json!({ "vision_config": vision_config, "text_config": text_config, "pooled_grid": pooled_grid });
    serde_json::from_value(config).unwrap()
}

/// A network with the given tensors and the others drawn.
fn network(config: &VlmConfig, given: BTreeMap<String, Tensor>, seed: u64) -> Vlm {
    let missing = Missing::Draw { seed, prefixes: vec![String::new()] };
    let mut store = ParamStore::new(given, missing, Trainable::None, &Device::Cpu);
    let vlm = Vlm::new(config, store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    vlm
}

/// Shapes with grouped queries and without, tied and not, of odd sizes.
const SHAPES: [(usize, usize, usize, bool); 4] =
    [(12, 2, 1, true), (12, 2, 2, false), (30, 5, 1, false), (36, 6, 3, true)];

fn drawn((hidden, heads, kv_heads, tied): (usize, usize, usize, bool), vocab_size: usize) -> Vlm {
    let text_config = json!({
        "vocab_size": vocab_size, "hidden_size": hidden, "intermediate_size": 19, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "max_position_embeddings": 1500,
        "rope_theta": 1e4, "rms_norm_eps": 1e-6, "tie_word_embeddings": tied,
    });
    network(&vlm_config(&text_config, 3), BTreeMap::new(), 5)
}

fn image(number: usize) -> Arc<[f32]> {
    (0..3 * IMAGE_SIZE * IMAGE_SIZE).map(|at| ((at * (number + 3)) as f32 * 0.37).sin()).collect()
}

fn prompt(input_ids: &[i64], images: &[&Arc<[f32]>]) -> Prompt {
    Prompt { input_ids: input_ids.to_vec(), images: images.iter().map(|image| Arc::clone(image)).collect() }
}

/// Prompts of several lengths; some begin alike, with images they share.
fn prompts() -> Vec<Prompt> {
    let images = [image(0), image(1)];
    let system: Vec<i64> = (1..12).collect();
    let long: Vec<i64> = (0..1100).map(|at| at * 7 % 17).collect();
    let ids = |tail: &[i64]| [&system, tail].concat();
    vec![
        prompt(&[1, IMG, 2, 3], &[&images[0]]),
        prompt(&ids(&[IMG, 5, 6]), &[&images[0]]),
        prompt(&ids(&[IMG, 5, 7]), &[&images[0]]),
        prompt(&ids(&[IMG, 8]), &[&images[1]]),
        prompt(&ids(&[IMG, 8]), &[&images[1]]),
        prompt(&ids(&[]), &[]),
        prompt(&[16], &[]),
        prompt(&ids(&[IMG, 5, IMG, 6]), &[&images[0], &images[1]]),
        prompt(&long, &[]),
        prompt(&[&long[..1090], &[3, 3]].concat(), &[]),
    ]
}

/// The same prompts, none of which shares an image with another.
fn apart(prompts: &[Prompt]) -> Vec<Prompt> {
    let copy = |prompt: &Prompt| Prompt {
        input_ids: prompt.input_ids.clone(),
        images: prompt.images.iter().map(|image| image.to_vec().into()).collect(),
    };
    prompts.iter().map(copy).collect()
}

fn greedy(max_new_tokens: usize) -> GenerateConfig {
    GenerateConfig { max_new_tokens, ..GenerateConfig::default() }
}

fn close(left: &[f32], right: &[f32]) -> bool {
    left.len() == right.len() && left.iter().zip(right).all(|(a, b)| (a - b).abs() <= 2e-5 * (1.0 + b.abs()))
}

#[derive(Debug, Deserialize)]
struct Kind {
    max_new_tokens: usize,
    #[serde(default)]
    min_new_tokens: usize,
    repetition_penalty: Option<f64>,
    eos_token_id: Option<i64>,
    answers: Vec<Vec<i64>>,
}

#[derive(Debug, Deserialize)]
struct Golden {
    prompts: Vec<Vec<i64>>,
    kinds: Vec<Kind>,
}

#[test]
fn answers_are_those_of_transformers() {
    for name in ["gqa_tied", "mha_untied"] {
        let dir: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/generate").join(name);
        let read = |file: &str| std::fs::read(dir.join(file)).unwrap();
        let golden: Golden = serde_json::from_slice(&read("answers.json")).unwrap();
        let config = vlm_config(&serde_json::from_slice(&read("config.json")).unwrap(), 1);
        let weights = read_safetensors(&dir.join("model.safetensors"), &Device::Cpu).unwrap();
        let named = weights.into_iter().map(|(name, tensor)| (format!("language_model.{name}"), tensor));
        let vlm = network(&config, named.collect(), 1);
        let prompts: Vec<Prompt> = golden.prompts.iter().map(|ids| prompt(ids, &[])).collect();
        assert_eq!(golden.kinds.len(), 6);
        for kind in golden.kinds {
            let config = GenerateConfig {
                max_new_tokens: kind.max_new_tokens,
                min_new_tokens: kind.min_new_tokens,
                stop_ids: kind.eos_token_id.into_iter().collect(),
                repetition_penalty: kind.repetition_penalty,
                sampling: Sampling::Greedy,
            };
            assert_eq!(vlm.generate(&prompts, &config).unwrap(), kind.answers, "{name} {config:?}");
            for (prompt, answer) in prompts.iter().zip(&kind.answers) {
                let alone = vlm.generate(std::slice::from_ref(prompt), &config).unwrap();
                assert_eq!(&alone[0], answer, "{name} {config:?}");
            }
        }
    }
}

#[test]
fn neither_company_nor_what_is_shared_nor_the_cache_changes_an_answer() {
    for shape in SHAPES {
        let vlm = drawn(shape, 17);
        let prompts = prompts();
        let (logits, answers) =
            (vlm.next_token_logits(&prompts).unwrap(), vlm.generate(&prompts, &greedy(9)).unwrap());
        assert_eq!(vlm.generate(&apart(&prompts), &greedy(9)).unwrap(), answers);
        for (row, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
            let alone = vlm.next_token_logits(std::slice::from_ref(prompt)).unwrap();
            assert!(close(&alone[0], &logits[row]), "{shape:?} {row}");
            assert_eq!(&vlm.generate(std::slice::from_ref(prompt), &greedy(9)).unwrap()[0], answer);
            // Without a cache: everything is read anew for every token.
            let mut so_far = prompt.clone();
            for id in answer {
                let logits = vlm.next_token_logits(std::slice::from_ref(&so_far)).unwrap().remove(0);
                let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                assert_eq!(best as i64, *id, "{shape:?} {row}");
                so_far.input_ids.push(*id);
            }
        }
        assert_eq!(answers[3], answers[4]);
        // Answers that are all alike would prove little.
        assert!(answers.iter().any(|answer| answer != &answers[0]), "{answers:?}");
        // Another image, another answer: it is seen in what is shared.
        assert!(!close(&logits[2], &logits[3]));
    }
}

#[test]
fn draws_depend_on_the_seed_and_the_row_and_not_on_the_company() {
    let vlm = drawn(SHAPES[3], 17);
    let random = |seed, top_k| {
        let sampling = Sampling::Random { temperature: 1.5, top_k, top_p: Some(0.95), seed };
        GenerateConfig { sampling, ..greedy(12) }
    };
    let prompts = prompts();
    let answers = vlm.generate(&prompts, &random(1, None)).unwrap();
    assert_eq!(vlm.generate(&prompts, &random(1, None)).unwrap(), answers);
    assert_ne!(vlm.generate(&prompts, &random(2, None)).unwrap(), answers);
    // Rows 3 and 4 ask the same and draw for themselves.
    assert_ne!(answers[3], answers[4]);
    let mut others = prompts.clone();
    others.iter_mut().take(7).for_each(|prompt| prompt.input_ids.push(2));
    assert_eq!(vlm.generate(&others, &random(1, None)).unwrap()[7..], answers[7..]);
    // One candidate leaves no choice.
    assert_eq!(
        vlm.generate(&prompts, &random(1, Some(1))).unwrap(),
        vlm.generate(&prompts, &greedy(12)).unwrap()
    );
}

#[test]
fn probabilities_are_the_renormalised_softmax() {
    let vlm = drawn(SHAPES[1], 17);
    let ids = [3, 11, 5];
    let rows = vlm.next_token_probabilities(&prompts(), &ids).unwrap();
    for (row, logits) in rows.iter().zip(vlm.next_token_logits(&prompts()).unwrap()) {
        let all: Vec<f64> = logits.iter().map(|logit| f64::from(*logit).exp()).collect();
        let softmax = |id: i64| all[id as usize] / all.iter().sum::<f64>();
        let picked: f64 = ids.iter().map(|id| softmax(*id)).sum();
        for (probability, id) in row.iter().zip(ids) {
            assert!((probability - softmax(id) / picked).abs() < 1e-9);
        }
        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-12);
    }
    for wrong in [&[][..], &[17], &[-1]] {
        assert!(matches!(vlm.next_token_probabilities(&prompts(), wrong), Err(ModelError::Generation(_))));
    }
    let tokenizer = tokenizer();
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(single_tokens(&tokenizer, &texts(&["A", "b"])).unwrap().len(), 2);
    let error = single_tokens(&tokenizer, &texts(&["A", "AB"])).unwrap_err().to_string();
    assert!(error.contains("`AB` is 2 tokens"), "{error}");
}

#[test]
fn unmasked_padding_is_tokens_in_front() {
    let pad = 9;
    let mut batch = vec![prompt(&[1, 2, 3], &[]), prompt(&[4], &[]), prompt(&[1, IMG], &[&image(0)])];
    let unpadded = batch.clone();
    pad_left_unmasked(&mut batch, pad);
    let expected = [vec![1, 2, 3], vec![pad, pad, 4], vec![pad, 1, IMG]];
    assert_eq!(batch.iter().map(|prompt| prompt.input_ids.clone()).collect::<Vec<_>>(), expected);
    let vlm = drawn(SHAPES[0], 17);
    let (padded, alone) = (vlm.next_token_logits(&batch).unwrap(), vlm.next_token_logits(&unpadded).unwrap());
    assert!(close(&padded[0], &alone[0]) && !close(&padded[1], &alone[1]));
    assert!(close(&padded[1], &vlm.next_token_logits(&[prompt(&[pad, pad, 4], &[])]).unwrap()[0]));
}

fn tokenizer() -> Tokenizer {
    BpeTrainer::new(280).train(std::iter::empty()).unwrap().tokenizer().unwrap()
}

/// A network that says tokens of the tokenizer.
fn speaker() -> (Vlm, Tokenizer) {
    let tokenizer = tokenizer();
    (drawn(SHAPES[3], tokenizer.vocab_size()), tokenizer)
}

#[test]
fn texts_end_before_stop_strings() {
    let (vlm, tokenizer) = speaker();
    let prompts = prompts();
    let whole = vlm.answer(&tokenizer, &prompts, &greedy(30), &[]).unwrap();
    for (answer, ids) in whole.iter().zip(vlm.generate(&prompts, &greedy(30)).unwrap()) {
        assert_eq!((&answer.ids, answer.end), (&ids, AnswerEnd::MaxNewTokens));
        assert_eq!(answer.text, tokenizer.decode(&ids, SpecialTokens::Skip).unwrap());
    }
    // A stop string of several tokens, from the middle of an answer.
    let letters: Vec<char> = whole[0].text.chars().collect();
    let stop: String = letters[10..13].iter().collect();
    let stops = [stop.clone(), "not among them".to_owned()];
    for (answer, whole) in vlm.answer(&tokenizer, &prompts, &greedy(30), &stops).unwrap().iter().zip(&whole) {
        match whole.text.find(&stop) {
            Some(at) => {
                assert_eq!((answer.text.as_str(), answer.end), (&whole.text[..at], AnswerEnd::StopString));
                assert!(answer.ids.len() < whole.ids.len(), "it goes on behind the stop string");
            }
            None => assert_eq!(answer, whole),
        }
    }
    let stop_ids = vec![whole[0].ids[4]];
    let first = whole[0].ids.iter().position(|id| *id == stop_ids[0]).unwrap();
    let config = GenerateConfig { stop_ids, ..greedy(30) };
    let stopped = vlm.answer(&tokenizer, &prompts[..1], &config, &[]).unwrap().remove(0);
    assert_eq!((stopped.ids.as_slice(), stopped.end), (&whole[0].ids[..first], AnswerEnd::StopId));
}

#[test]
fn a_session_answers_as_a_batch_does_and_reads_only_what_is_new() {
    let (vlm, tokenizer) = speaker();
    let picture = image(3);
    let mut session = Session::new(&vlm, &tokenizer);
    // 300 tokens and an image of nine: several pieces.
    let mut ids: Vec<i64> = (0..300).map(|at| at % 250).collect();
    ids.push(IMG);
    let mut expected_to_read = [309, 6, 3].into_iter();
    for turn in 0..3 {
        let prompt = prompt(&ids, &[&picture]);
        let alone = vlm.answer(&tokenizer, std::slice::from_ref(&prompt), &greedy(8), &[]).unwrap().remove(0);
        let (mut shown, mut to_read) = (String::new(), 0);
        let answer = session.answer(&prompt, &greedy(8), &[], |event| {
            match event {
                Event::Reading { of, .. } => to_read = of,
                Event::Text(text) => shown += text,
            }
            ControlFlow::Continue(())
        });
        let answer = answer.unwrap();
        assert_eq!(answer, alone, "turn {turn}");
        assert_eq!(shown, answer.text);
        assert_eq!(to_read, expected_to_read.next().unwrap(), "turn {turn}");
        match turn {
            // The answer's last token has not been read.
            0 => ids.extend(answer.ids.iter().chain(&[1, 2, 3, 4, 5])),
            // The end of the question is another.
            _ => ids.splice(ids.len() - 3.., [7, 8, 9]).for_each(drop),
        }
    }
}

#[test]
fn an_answer_may_be_interrupted_at_any_time() {
    let (vlm, tokenizer) = speaker();
    let long = prompt(&(0..400).map(|at| at % 250).collect::<Vec<_>>(), &[]);
    let whole = vlm.answer(&tokenizer, std::slice::from_ref(&long), &greedy(12), &[]).unwrap().remove(0);
    let num_events = 4 + 1 + whole.text.chars().count();
    for patience in 1..num_events {
        let mut session = Session::new(&vlm, &tokenizer);
        let mut heard = 0;
        let answer = session.answer(&long, &greedy(12), &[], |_| {
            heard += 1;
            if heard == patience { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let answer = answer.unwrap();
        if answer.end == AnswerEnd::Interrupted {
            // The bytes of half a character are shown as one that stands for them.
            let text = answer.text.trim_end_matches('\u{fffd}');
            assert!(whole.ids.starts_with(&answer.ids) && whole.text.starts_with(text), "{patience}");
        }
        // The session goes on from whatever has been read.
        let again = session.answer(&long, &greedy(12), &[], |_| ControlFlow::Continue(())).unwrap();
        assert_eq!(again, whole, "{patience}");
    }
}

#[test]
fn what_cannot_be_generated_is_named() {
    let vlm = drawn(SHAPES[0], 17);
    let fails =
        |prompt: Prompt, config: &GenerateConfig| vlm.generate(&[prompt], config).unwrap_err().to_string();
    assert_eq!(fails(prompt(&[], &[]), &greedy(1)), "generation: sequence 0 is empty");
    assert_eq!(
        fails(prompt(&[1; 1000], &[]), &greedy(502)),
        "sequence 0 is 1501 tokens long, the model takes 1500"
    );
    assert_eq!(vlm.generate(&[prompt(&[1], &[])], &greedy(0)).unwrap(), [Vec::<i64>::new()]);
    assert!(vlm.generate(&[], &greedy(3)).unwrap().is_empty());
    let random = |temperature, top_k, top_p| GenerateConfig {
        sampling: Sampling::Random { temperature, top_k, top_p, seed: 1 },
        ..greedy(1)
    };
    let penalty = |penalty| GenerateConfig { repetition_penalty: Some(penalty), ..greedy(1) };
    for (config, what) in [
        (random(0.0, None, None), "temperature must be from 1e-6 to 1000000.0, got 0.0"),
        (random(1e-40, None, None), "temperature must be from 1e-6 to 1000000.0, got 1e-40"),
        (random(1e300, None, None), "temperature"),
        (random(f64::NAN, None, None), "temperature"),
        (random(1.0, Some(0), None), "top_k must be at least 1"),
        (random(1.0, None, Some(0.0)), "top_p must be above 0 and at most 1, got 0"),
        (random(1.0, None, Some(1.5)), "top_p"),
        (penalty(0.0), "repetition_penalty must be from 0.001 to 1000.0, got 0.0"),
        (penalty(1e-40), "repetition_penalty"),
    ] {
        let error = fails(prompt(&[1], &[]), &config);
        assert!(error.contains(what), "{error}");
    }
    let mut weights = BTreeMap::new();
    let nan = Tensor::full(f32::NAN, 12, &Device::Cpu).unwrap();
    weights.insert("language_model.model.norm.weight".to_owned(), nan);
    let broken = network(vlm.config(), weights, 5);
    let error = broken.generate(&[prompt(&[1], &[])], &greedy(1)).unwrap_err();
    assert!(matches!(error, ModelError::NotFinite { row: 0 }), "{error}");
}
