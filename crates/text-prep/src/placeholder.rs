//! Image placeholders: where an image stands in a text and in a list of ids.

use crate::{TextError, Tokenizer};

/// Stands for one image in a text.
pub const IMAGE_PLACEHOLDER: &str = "<image>";
/// Stands for one image in a list of ids; the model replaces it by the image's embeddings.
/// Source: `IMAGE_TOKEN_INDEX` of LLaVA, which the reference keeps.
pub const IMAGE_TOKEN_ID: i64 = -200;
/// Label of a position the loss does not see. Source: PyTorch's `cross_entropy(ignore_index = -100)`.
pub const IGNORE_INDEX: i64 = -100;

/// Ids of `text`, with [`IMAGE_TOKEN_ID`] for each [`IMAGE_PLACEHOLDER`]: the pieces between placeholders are
/// tokenized one by one and joined.
///
/// A habit of LLaVA is kept because released weights were trained with it: when the text begins with `<s>`, the
/// *first token of every later piece is dropped too*. So in a chat prompt the newline after `<image>` disappears, and
/// where the image ends the message, the `<|im_end|>` after it does.
///
/// # Errors
/// If the tokenizer refuses a piece.
///
/// Source: `tokenizer_image_token`, Open-Qwen2VL `prismatic/util/data_utils.py`.
pub fn tokenize_with_images(tokenizer: &Tokenizer, text: &str) -> Result<Vec<i64>, TextError> {
    let pieces =
        text.split(IMAGE_PLACEHOLDER).map(|piece| tokenizer.encode(piece)).collect::<Result<Vec<_>, _>>()?;

    let begins_with_bos = pieces[0].first() == Some(&tokenizer.bos_id());
    let num_dropped = usize::from(begins_with_bos);
    let mut ids = Vec::with_capacity(pieces.iter().map(Vec::len).sum::<usize>() + pieces.len());
    if begins_with_bos {
        ids.push(tokenizer.bos_id());
    }
    for (piece_idx, piece) in pieces.iter().enumerate() {
        if piece_idx > 0 {
            ids.push(IMAGE_TOKEN_ID);
        }
        ids.extend(piece.iter().skip(num_dropped));
    }
    Ok(ids)
}

/// Length of the sequence the language model sees, once each of the `num_images` one-id placeholders among `num_ids`
/// ids has become `num_image_tokens` embeddings.
///
/// # Panics
/// If there are more images than ids.
pub fn expanded_len(num_ids: usize, num_images: usize, num_image_tokens: usize) -> usize {
    assert!(num_images <= num_ids, "{num_images} placeholders cannot be among {num_ids} ids");
    num_ids - num_images + num_images * num_image_tokens
}

/// How many of the ids fit into `max_len` positions, when a placeholder takes `num_image_tokens`. An image that does not
/// fit whole is left out with all that follows.
pub fn fitting_len(input_ids: &[i64], num_image_tokens: usize, max_len: usize) -> usize {
    let mut len = 0;
    let fits = input_ids.iter().take_while(|id| {
        len += if **id == IMAGE_TOKEN_ID { num_image_tokens } else { 1 };
        len <= max_len
    });
    fits.count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BpeTrainer;
    use proptest::prelude::*;

    fn bytes_only() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    fn check(text: &str, expected: &str) {
        let tokenizer = bytes_only();
        let ids = tokenize_with_images(&tokenizer, text).unwrap();
        let shown = ids
            .split(|&id| id == IMAGE_TOKEN_ID)
            .map(|piece| tokenizer.decode(piece, crate::SpecialTokens::Keep).unwrap())
            .collect::<Vec<_>>()
            .join("[img]");
        assert_eq!(shown, expected, "for {text:?}");
    }

    #[test]
    fn without_bos_nothing_is_dropped() {
        check("", "");
        check("ab", "ab");
        check("<image>", "[img]");
        check("<image>\nab", "[img]\nab");
        check("a<image><image>b", "a[img][img]b");
    }

    #[test]
    fn with_bos_each_later_piece_loses_its_first_token() {
        check("<s>", "<s>");
        check("<s>ab", "<s>ab");
        check("<s>ab<image>\ncd<image>ef", "<s>ab[img]cd[img]f");
        check("<s><image><image>", "<s>[img][img]");
        check("<s>q<image><|im_end|>z", "<s>q[img]z");
        // The rule looks at the first piece only.
        check("<image><s>ab", "[img]<s>ab");
    }

    #[test]
    fn expanded_len_counts_embeddings() {
        assert_eq!(expanded_len(0, 0, 144), 0);
        assert_eq!(expanded_len(5, 0, 144), 5);
        assert_eq!(expanded_len(5, 1, 144), 148);
        assert_eq!(expanded_len(5, 2, 1), 5);
        assert_eq!(expanded_len(1, 1, 729), 729);
    }

    #[test]
    fn what_fits_is_counted_with_embeddings() {
        let ids = [1, IMAGE_TOKEN_ID, 2, IMAGE_TOKEN_ID, 3];
        for (max_len, expected) in [(0, 0), (4, 1), (5, 2), (6, 3), (9, 3), (10, 4), (11, 5), (99, 5)] {
            assert_eq!(fitting_len(&ids, 4, max_len), expected, "{max_len}");
        }
    }

    proptest! {
        #[test]
        fn one_placeholder_id_per_placeholder(pieces in prop::collection::vec("[a-c\n]{0,5}", 1..6)) {
            let ids = tokenize_with_images(&bytes_only(), &pieces.join(IMAGE_PLACEHOLDER)).unwrap();
            let num_placeholders = ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
            prop_assert_eq!(num_placeholders, pieces.len() - 1);
        }
    }
}
