//! Pre-training documents: one captioned image, or text and images in turn.

use crate::{
    IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID, TextError, Tokenizer, tokenize_with_images,
    tokenizer::ENDOFCHUNK_TOKEN,
};

/// What a literal `<image>` in web text becomes, so that only real images have placeholders.
pub const ESCAPED_PLACEHOLDER: &str = "<image-placeholder>";

/// One part of an interleaved document, in reading order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InterleavedItem {
    /// An image stands here.
    Image,
    /// A text stands here.
    Text(String),
}

/// Ids of a captioned image: `<s>`, the image placeholder, `"\n" + caption`, `<|im_end|>`.
///
/// Newline and caption are tokenized together. An empty caption is a document like any other. Nothing is cut: a
/// caption may be longer than a training sequence.
///
/// # Errors
/// If the tokenizer refuses the caption.
///
/// Source: `preprocess_caption`, Open-Qwen2VL `mm_sequence_packing/sequence_packing_image_to_pil.py`.
pub fn caption_document(tokenizer: &Tokenizer, caption: &str) -> Result<Vec<i64>, TextError> {
    let text = format!("{IMAGE_PLACEHOLDER}\n{}", escape(caption));
    let ids = tokenize_with_images(tokenizer, &text)?;
    Ok(enclose(tokenizer, ids))
}

/// What follows each text of an interleaved document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextEnd {
    /// `<|endofchunk|>`.
    EndOfChunk,
    /// Nothing: what the reference's training makes of a packed JSON document that has one image.
    Nothing,
}

/// Ids of an interleaved document: images are `<image>\n`, texts end as `text_end` says, `<s>` and `<|im_end|>` go
/// around the whole.
///
/// Placeholders that end the document, with no text after them, are cut, as in the reference; so count the
/// [`IMAGE_TOKEN_ID`]s to know how many images remain. How many images or ids a document may have is for the caller.
///
/// # Errors
/// If the tokenizer refuses a text.
///
/// Source: `preprocess_obelics_interleaved`, Open-Qwen2VL `mm_sequence_packing/sequence_packing_image_to_pil.py`.
pub fn interleaved_document(
    tokenizer: &Tokenizer,
    items: &[InterleavedItem],
    text_end: TextEnd,
) -> Result<Vec<i64>, TextError> {
    let end = match text_end {
        TextEnd::EndOfChunk => ENDOFCHUNK_TOKEN,
        TextEnd::Nothing => "",
    };
    let text = items
        .iter()
        .map(|item| match item {
            InterleavedItem::Image => format!("{IMAGE_PLACEHOLDER}\n"),
            InterleavedItem::Text(text) => format!("{}{end}", escape(text)),
        })
        .collect::<String>();
    let mut ids = tokenize_with_images(tokenizer, &text)?;
    while ids.last() == Some(&IMAGE_TOKEN_ID) {
        ids.pop();
    }
    Ok(enclose(tokenizer, ids))
}

fn escape(text: &str) -> String {
    text.replace(IMAGE_PLACEHOLDER, ESCAPED_PLACEHOLDER)
}

/// Puts BOS before and EOS after, unless the text brought its own.
fn enclose(tokenizer: &Tokenizer, mut ids: Vec<i64>) -> Vec<i64> {
    if ids.first() != Some(&tokenizer.bos_id()) {
        ids.insert(0, tokenizer.bos_id());
    }
    if ids.last() != Some(&tokenizer.eos_id()) {
        ids.push(tokenizer.eos_id());
    }
    ids
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::BpeTrainer;

    fn bytes_only() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    /// `<s>`, the image, then the ids of `rest`.
    fn expected(tokenizer: &Tokenizer, rest: &str) -> Vec<i64> {
        let mut ids = vec![tokenizer.bos_id(), IMAGE_TOKEN_ID];
        ids.extend(tokenizer.encode(rest).unwrap());
        ids
    }

    fn interleaved(tokenizer: &Tokenizer, items: &[InterleavedItem]) -> Vec<i64> {
        interleaved_document(tokenizer, items, TextEnd::EndOfChunk).unwrap()
    }

    #[test]
    fn caption_documents() {
        let tokenizer = bytes_only();
        let check = |caption: &str, rest: &str| {
            assert_eq!(caption_document(&tokenizer, caption).unwrap(), expected(&tokenizer, rest));
        };
        check("a cat", "\na cat<|im_end|>");
        check("", "\n<|im_end|>");
        check("see <image> here", "\nsee <image-placeholder> here<|im_end|>");
        // No second end where the caption brings one; no trick with a BOS inside, since the first piece is empty.
        check("cat<|im_end|>", "\ncat<|im_end|>");
        check("<s>cat", "\n<s>cat<|im_end|>");
    }

    #[test]
    fn interleaved_documents() {
        use InterleavedItem::{Image, Text};
        let tokenizer = bytes_only();
        let text = |text: &str| Text(text.to_owned());
        let ids = interleaved(&tokenizer, &[Image, text("one"), text("a <image>")]);
        assert_eq!(
            ids,
            expected(&tokenizer, "\none<|endofchunk|>a <image-placeholder><|endofchunk|><|im_end|>")
        );

        // Without ends, a text and its image are a caption.
        let items = [Image, text("a cat")];
        let ids = interleaved_document(&tokenizer, &items, TextEnd::Nothing).unwrap();
        assert_eq!(ids, caption_document(&tokenizer, "a cat").unwrap());

        let no_items = interleaved(&tokenizer, &[]);
        assert_eq!(no_items, [tokenizer.bos_id(), tokenizer.eos_id()]);
    }

    #[test]
    fn trailing_placeholders_are_cut() {
        use InterleavedItem::{Image, Text};
        let tokenizer = bytes_only();
        // A text that begins with <s> makes the newline after each later image disappear, so the last ids are -200.
        let items = [Text("<s>one".to_owned()), Image, Image];
        let ids = interleaved(&tokenizer, &items);
        assert_eq!(ids, tokenizer.encode("<s>one<|endofchunk|><|im_end|>").unwrap());
        // Otherwise the newline keeps them.
        let ids = interleaved(&tokenizer, &items[1..]);
        assert_eq!(ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count(), 2);
    }
}
