//! Prompts of the reference, id by id, with the public tokenizer of Qwen2.5.

use crate::row::{Equal, Place, Row};
use oqvl_text_prep::{
    ChatTemplate, IMAGE_TOKEN_ID, Role, TextError, Tokenizer, Turn, caption_document, tokenize_with_images,
};

/// `<s>`, an ordinary entry of the vocabulary that the reference makes special.
const BOS: i64 = 128_245;
const IM_START: i64 = 151_644;
const IM_END: i64 = 151_645;
/// `\n`.
const NEWLINE: i64 = 198;

/// Worked examples of splitting at images, of documents and of the chat template. The newline after an image is lost in
/// them where the text begins with `<s>`, and the end of the turn where the image ends it.
///
/// Source: `Qwen2PromptBuilder` and `tokenizer_image_token` of Open-Qwen2VL.
pub(crate) fn rows(tokenizer: &Tokenizer) -> anyhow::Result<Vec<Row>> {
    let text = |text: &str| tokenizer.encode(text);
    let place = Place { architecture: "Open-Qwen2VL prompts", fixture: "worked examples".to_owned() };
    let row = |what: &str, found: Vec<i64>, expected: &[&[i64]]| {
        place.sequence("-", what, Equal::of(&found, &expected.concat()))
    };
    let opening = [
        &[BOS, IM_START][..],
        &text("system\nYou are a helpful assistant.")?,
        &[IM_END, NEWLINE, IM_START],
        &text("user\n")?,
    ]
    .concat();
    let answering = [&[IM_END], text("assistant\n")?.as_slice()].concat();
    let image = [IMAGE_TOKEN_ID];

    let conversation = ["<image>\nWhat is it?", " a cat\n", "Sure?", ""];
    let turns: Vec<Turn> = conversation
        .iter()
        .enumerate()
        .map(|(at, text)| Turn::new(if at % 2 == 0 { Role::Human } else { Role::Assistant }, *text))
        .collect();
    let example = ChatTemplate::Reference.sft_example(tokenizer, &turns)?;
    let human = [&opening, &image[..], &text("What is it?")?, &answering].concat();
    let answer = [text("a cat")?.as_slice(), &[IM_END, NEWLINE]].concat();
    let again = [&[IM_START], text("user\nSure?")?.as_slice(), &answering].concat();
    let blank = [text(" ")?.as_slice(), &[IM_END, NEWLINE]].concat();
    let hidden = |len: usize| vec![oqvl_text_prep::IGNORE_INDEX; len];
    let prompt = |question: &str| -> Result<Vec<i64>, TextError> {
        ChatTemplate::Reference.generation_prompt(tokenizer, question)
    };
    Ok(vec![
        row(
            "split at <image>",
            tokenize_with_images(tokenizer, "<image>\nDescribe the image.")?,
            &[&image, &text("\nDescribe the image.")?],
        ),
        row(
            "split at <image> after <s>",
            tokenize_with_images(tokenizer, "<s>a<image>\nb<image>c")?,
            &[&[BOS], &text("a")?, &image, &text("b")?, &image],
        ),
        row(
            "caption document",
            caption_document(tokenizer, "Hello world")?,
            &[&[BOS, IMAGE_TOKEN_ID, NEWLINE], &text("Hello world")?, &[IM_END]],
        ),
        row("first turn", prompt("<image>\nWhat is it?")?, &[&human]),
        row(
            "image at the end",
            prompt("Look:\n<image>")?,
            &[&opening, &text("Look:\n")?, &image, &answering[1..]],
        ),
        row("conversation", example.input_ids, &[&human, &answer, &again, &blank]),
        row(
            "labels of a conversation",
            example.labels,
            &[&hidden(human.len()), &answer, &hidden(again.len()), &blank],
        ),
    ])
}
