//! Text: captions as the text towers want them, and the files of tokenizers.

use super::{Fixup, Target};
use oqvl_text_prep::{
    BpeTrainer, CLIP_CONTEXT_LENGTH, ClipTextStyle, ClipTokenizer, SpecialTokens, TextError, Tokenizer,
    clean_clip_text, fix_text, unescape_html,
};
use std::sync::OnceLock;

/// Any caption, mended and cleaned.
pub(super) const CAPTIONS: Target = Target {
    name: "caption",
    run: run_caption,
    seeds: || {
        [
            "a photo of two dogs",
            "La Mona Lisa doesnÃƒÂ¢Ã¢â€šÂ¬Ã¢â€žÂ¢t have eyebrows.",
            "&amp;lt;b&amp;gt; &#128512; &NotEqualTilde; &#x110000; &frac12",
            "\u{1b}[31mred\u{1b}[0m ﬁn \u{2028}ｆｕｌｌ “curly” \u{feff}\u{0}",
            "vis-Ã\u{a0}-vis, \u{fffd}, â€œquoteâ€\u{9d}",
        ]
        .map(|text| text.as_bytes().to_vec())
        .to_vec()
    },
    words: &[
        b"&amp;",
        b"&lt;",
        b"&#x",
        b"&#",
        b";",
        "Ã".as_bytes(),
        "â€".as_bytes(),
        "Â\u{a0}".as_bytes(),
        "\u{fffd}".as_bytes(),
        b"\x1b[0m",
        "\u{85}".as_bytes(),
        b"<|endoftext|>",
        "\u{130}".as_bytes(),
        "\u{fb01}".as_bytes(),
    ],
    fixup: Fixup(|_| {}),
    // Copies of the text and of its pieces; an entity's name is longer than what it stands for.
    memory_bound: |length| 4096 * length + (16 << 20),
};

/// Any file as a tokenizer, and as CLIP's.
pub(super) const TOKENIZERS: Target = Target {
    name: "tokenizer",
    run: run_tokenizer,
    seeds: || vec![trained().to_vec(), b"#version: 0.2\ni n\nt h\na n</w>\n".to_vec()],
    words: &[
        br#""type":"BPE""#,
        br#""type":"ByteLevel""#,
        br#""type":"Split","pattern":{"Regex":"\\s+"}"#,
        br#""normalizer":null"#,
        br#""pre_tokenizer":null"#,
        br#""vocab":{"#,
        br#""merges":["#,
        br#""special":true"#,
        br#""id":4294967295"#,
        br#""<|endoftext|>""#,
        br#""<|im_end|>""#,
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b"\x1f\x8b",
    ],
    fixup: Fixup(|_| {}),
    memory_bound: |length| 4096 * length + (64 << 20),
};

fn run_caption(input: &[u8]) -> String {
    let text = String::from_utf8_lossy(input);
    let (fixed, plain) = (fix_text(&text), unescape_html(&text));
    let clean = clean_clip_text(&text);
    assert!(clean.trim() == clean && !clean.contains("  "), "whitespace is left in {clean:?}");
    let mark = |is_so: bool, what: &'static str| if is_so { what } else { "" };
    format!(
        "{}{}{}{}",
        mark(fixed != text, "fixed "),
        mark(plain != text, "unescaped "),
        mark(clean.is_ascii(), "ASCII "),
        mark(clean.len() < text.len(), "shorter")
    )
}

pub(super) fn trained() -> &'static [u8] {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    FILE.get_or_init(|| {
        let texts = ["a red cube on a table", "two red cubes", "a table"].map(str::to_owned);
        let trained = BpeTrainer::new(300).train(texts.into_iter()).expect("three texts are enough");
        trained.json().to_vec()
    })
}

fn run_tokenizer(input: &[u8]) -> String {
    const TEXT: &str = "a red cube <|im_end|> é 漢 2024";
    let ours = match Tokenizer::from_bytes(input) {
        Ok(tokenizer) => match tokenizer.encode(TEXT) {
            Ok(ids) => {
                assert!(ids.iter().all(|id| (0..tokenizer.vocab_size() as i64).contains(id)), "{ids:?}");
                match tokenizer.decode(&ids, SpecialTokens::Keep) {
                    Ok(_) => "a tokenizer".to_owned(),
                    Err(error) => format!("does not decode: {}", kind(&error)),
                }
            }
            Err(error) => format!("does not encode: {}", kind(&error)),
        },
        Err(error) => kind(&error),
    };
    let clip = match ClipTokenizer::from_bytes(input, ClipTextStyle::OpenClip) {
        Ok(tokenizer) => match tokenizer.input(TEXT, CLIP_CONTEXT_LENGTH) {
            Ok(clip) => {
                assert!(clip.ids.len() == CLIP_CONTEXT_LENGTH && clip.end_position < CLIP_CONTEXT_LENGTH);
                "CLIP's".to_owned()
            }
            Err(error) => format!("does not encode: {}", kind(&error)),
        },
        Err(error) => kind(&error),
    };
    format!("{ours}; {clip}")
}

/// The kind of an error, without what the file says.
fn kind(error: &TextError) -> String {
    match error {
        TextError::Parse { source, .. } => {
            let reason = source.to_string();
            reason.chars().filter(|it| it.is_ascii_alphabetic() || *it == ' ').take(16).collect()
        }
        TextError::MissingSpecialToken { token, .. } => format!("without {token}"),
        TextError::NotClip { reason, .. } => {
            reason.chars().filter(|it| !it.is_ascii_digit()).take(30).collect()
        }
        other => format!("{other:?}").chars().take_while(|it| it.is_ascii_alphanumeric()).collect(),
    }
}
