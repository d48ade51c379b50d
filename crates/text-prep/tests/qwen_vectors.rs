//! The public Qwen2.5 tokenizer's special tokens. Its files are not part of the repository: without them the
//! tests say so and pass. Recorded texts and prompts are compared by `oqvl-parity`.

mod shared;

use oqvl_text_prep::Tokenizer;
use shared::shared_data;

/// `<s>` is an ordinary entry of the Qwen2.5 vocabulary; making it special does not change its id.
const BOS: i64 = 128_245;

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
