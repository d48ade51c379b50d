//! Token ids and texts recorded with the public tokenizers. Those are not part of the repository.

use crate::prompts;
use crate::row::{Equal, Place, Row};
use anyhow::Context as _;
use oqvl_text_prep::{ClipTextStyle, ClipTokenizer, SpecialTokens, Tokenizer};
use serde::Deserialize;
use std::path::{Path, PathBuf};

/// One line of `tokenization.jsonl`.
#[derive(Deserialize)]
struct Vector {
    text: String,
    qwen2_5_ids: Vec<i64>,
    qwen2_5_decoded: String,
    /// `tokenizer.json` alone.
    clip_ids: Vec<i64>,
    /// With ftfy, where that makes a difference.
    clip_ids_openai: Option<Vec<i64>>,
}

/// The ids of every recorded text, if the files lie beside the checkout.
pub(crate) fn measure(skip: &mut impl FnMut(String)) -> anyhow::Result<Vec<Row>> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data");
    let path = data.join("tokenization.jsonl");
    if !path.is_file() {
        skip(format!("token ids: {} is not there", path.display()));
        return Ok(Vec::new());
    }
    let lines = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let vectors: Vec<Vector> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let mut rows = qwen(&data, &vectors)?;
    for file in ["tokenizer.json", "bpe_simple_vocab_16e6.txt.gz"] {
        rows.extend(clip(&data.join("tokenizers/clip").join(file), file, &vectors)?);
    }
    Ok(rows)
}

fn qwen(data: &Path, vectors: &[Vector]) -> anyhow::Result<Vec<Row>> {
    let tokenizer = Tokenizer::from_file(data.join("tokenizers/qwen2.5/tokenizer.json"))?;
    let place = Place { architecture: "Qwen2.5 tokenizer", fixture: "tokenization.jsonl".to_owned() };
    let ids = collect(vectors, |vector| Ok(tokenizer.encode(&vector.text)?))?;
    let expected: Vec<_> = vectors.iter().map(|vector| vector.qwen2_5_ids.clone()).collect();
    let texts = collect(vectors, |vector| Ok(tokenizer.decode(&vector.qwen2_5_ids, SpecialTokens::Keep)?))?;
    let expected_texts: Vec<_> = vectors.iter().map(|vector| vector.qwen2_5_decoded.clone()).collect();
    let mut rows = vec![
        place.sequence("-", "texts to ids", Equal::of(&ids, &expected)),
        place.sequence("-", "ids to texts", Equal::of(&texts, &expected_texts)),
    ];
    rows.extend(prompts::rows(&tokenizer)?);
    Ok(rows)
}

fn clip(path: &PathBuf, file: &str, vectors: &[Vector]) -> anyhow::Result<Vec<Row>> {
    let place = Place { architecture: "CLIP tokenizer", fixture: "tokenization.jsonl".to_owned() };
    let mut rows = Vec::new();
    for (style, name) in
        [(ClipTextStyle::HuggingFace, "transformers"), (ClipTextStyle::OpenAi, "openai/CLIP")]
    {
        let tokenizer = ClipTokenizer::from_file(path, style)?;
        let (start, end) = (tokenizer.start_id(), tokenizer.end_id());
        let ids = collect(vectors, |vector| Ok(tokenizer.encode(&vector.text)?))?;
        let expected: Vec<_> = vectors
            .iter()
            .map(|vector| match (style, &vector.clip_ids_openai) {
                (ClipTextStyle::HuggingFace, _) => vector.clip_ids.clone(),
                // This one was recorded with a tokenizer that did not know the end token as a word, and split it;
                // openai/CLIP itself makes the token of it (`SimpleTokenizer.cache`).
                _ if vector.text == "<|endoftext|>" => vec![start, end, end],
                (_, recorded) => recorded.as_ref().unwrap_or(&vector.clip_ids).clone(),
            })
            .collect();
        rows.push(place.sequence("-", &format!("{name} ids, {file}"), Equal::of(&ids, &expected)));
    }
    Ok(rows)
}

fn collect<T>(vectors: &[Vector], one: impl Fn(&Vector) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    vectors.iter().map(|vector| one(vector).with_context(|| format!("{:?}", vector.text))).collect()
}
