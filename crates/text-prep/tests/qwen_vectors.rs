//! The public Qwen2.5 tokenizer against recorded ids. The files are not part of the repository: without them the
//! tests say so and pass.

mod shared;

use oqvl_text_prep::{
    ChatTemplate, IMAGE_TOKEN_ID, SpecialTokens, Tokenizer, caption_document, expanded_len,
};
use serde::Deserialize;
use shared::shared_data;

/// `<s>` is an ordinary entry of the Qwen2.5 vocabulary; making it special does not change its id.
const BOS: i64 = 128_245;

/// One line of `tokenization.jsonl`.
#[derive(Deserialize)]
struct Vector {
    text: String,
    qwen2_5_ids: Vec<i64>,
    qwen2_5_decoded: String,
}

fn qwen() -> Option<Tokenizer> {
    Some(Tokenizer::from_file(shared_data("tokenizers/qwen2.5/tokenizer.json")?).unwrap())
}

#[test]
fn special_ids_are_the_references() {
    let Some(tokenizer) = qwen() else { return };
    assert_eq!(tokenizer.pad_id(), 151_643);
    assert_eq!(tokenizer.im_start_id(), 151_644);
    assert_eq!(tokenizer.eos_id(), 151_645);
    assert_eq!(tokenizer.endofchunk_id(), 151_665);
    assert_eq!(tokenizer.bos_id(), BOS);
    assert_eq!(tokenizer.vocab_size(), 151_666);
    // Recorded with transformers 4.46.3 after `add_special_tokens(["<|endofchunk|>", "<s>"])`.
    assert_eq!(tokenizer.encode("<s>hi<|endofchunk|>").unwrap(), [BOS, 6023, 151_665]);
    assert_eq!(tokenizer.encode("a <s> b </s>").unwrap(), [64, 220, BOS, 293, 690, 82, 29]);
    for word in ('A'..='Z').map(String::from).chain(["True", "False", "Yes", "No"].map(str::to_owned)) {
        assert_eq!(tokenizer.encode(&word).unwrap().len(), 1, "{word}");
    }
}

#[test]
fn recorded_ids_and_texts() {
    let (Some(tokenizer), Some(path)) = (qwen(), shared_data("tokenization.jsonl")) else { return };
    let lines = std::fs::read_to_string(path).unwrap();
    let vectors: Vec<Vector> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert!(vectors.len() >= 200);
    for vector in vectors {
        assert_eq!(tokenizer.encode(&vector.text).unwrap(), vector.qwen2_5_ids, "{:?}", vector.text);
        let decoded = tokenizer.decode(&vector.qwen2_5_ids, SpecialTokens::Keep).unwrap();
        assert_eq!(decoded, vector.qwen2_5_decoded);
    }
}

#[test]
fn caption_and_chat_ids() {
    let Some(tokenizer) = qwen() else { return };
    let hello = tokenizer.encode("Hello world").unwrap();
    let document = caption_document(&tokenizer, "Hello world").unwrap();
    assert_eq!(document, [&[BOS, IMAGE_TOKEN_ID, 198], &hello[..], &[151_645]].concat());
    // 147 = BOS, newline, EOS and 144 image tokens.
    assert_eq!(expanded_len(document.len(), 1, 144), hello.len() + 147);

    let prompt = ChatTemplate::Reference.generation_prompt(&tokenizer, "<image>\nWhat is it?").unwrap();
    let encode = |text: &str| tokenizer.encode(text).unwrap();
    let expected = [
        vec![BOS, 151_644],
        encode("system\nYou are a helpful assistant."),
        vec![151_645, 198, 151_644],
        encode("user\n"),
        vec![IMAGE_TOKEN_ID],
        encode("What is it?"),
        vec![151_645],
        encode("assistant\n"),
    ];
    assert_eq!(prompt, expected.concat());
}
