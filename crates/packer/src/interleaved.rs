//! Interleaved documents: texts and images in turn, in one JSON object.
//!
//! Two layouts are read. The reference's, for OBELICS and MMC4 alike, has parallel lists: `image_info`, whose entries are
//! null or objects with `image_base64`, and `texts`, null where an image stands. MMC4's own has `text_list`, the
//! sentences, and `image_info`, whose `matched_text_index` says which sentence an image belongs to; the image goes before
//! that sentence (images without one go first), and the sentences between two images are one text, joined by a blank.
//! The images of MMC4 are published as URLs; their bytes are expected in `image_base64`, where converters put them.
//!
//! Images stay where they are: a document knows the byte ranges of their base64.
//!
//! Source: `preprocess_obelics_interleaved` of Open-Qwen2VL; the field list in the README of `allenai/mmc4`.

use std::borrow::Cow;

use oqvl_image_prep::probe;
use oqvl_shard_io::{ImageEncoding, Sample};
use oqvl_text_prep::{InterleavedItem, TextEnd, TextError, interleaved_document};
use serde::Deserialize;
use serde_json::Value;

use crate::caption::place;
use crate::document::{Document, DocumentMaker, Made, OrphanTexts, Place, Reject};
use crate::json_text::{JsonText, Places};

/// The fields of both layouts; others are passed over.
#[derive(Debug, Deserialize)]
pub(crate) struct RawDocument<'a> {
    #[serde(borrow, default)]
    image_info: Option<Vec<Option<RawImage<'a>>>>,
    #[serde(borrow, default)]
    texts: Option<Vec<Option<JsonText<'a>>>>,
    #[serde(borrow, default)]
    text_list: Option<Vec<JsonText<'a>>>,
    #[serde(default)]
    key: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct RawImage<'a> {
    #[serde(borrow, default)]
    image_base64: Option<JsonText<'a>>,
    #[serde(default)]
    matched_text_index: Option<i64>,
}

/// A place of the reading order: an image, a text, both or neither.
#[derive(Debug)]
struct Slot<'a> {
    image: Option<SlotImage<'a>>,
    text: Option<Cow<'a, str>>,
}

#[derive(Debug)]
enum SlotImage<'a> {
    Base64(JsonText<'a>),
    /// An entry that does not bring its bytes.
    WithoutBytes,
}

impl<'a> RawDocument<'a> {
    /// The document's own name, if it has one.
    pub(crate) fn key(&self) -> Option<&str> {
        self.key.as_ref()?.as_str()
    }

    /// Its slots in reading order, or `None` if it has neither layout.
    fn slots(self, orphan_texts: OrphanTexts) -> Option<Vec<Slot<'a>>> {
        let images = self.image_info?;
        match (self.texts, self.text_list) {
            (Some(texts), _) => parallel_slots(images, texts, orphan_texts),
            (None, Some(sentences)) => Some(mmc4_slots(images, sentences)),
            (None, None) => None,
        }
    }
}

/// The reference's layout: one slot per index. Lists of different length are no document to the reference where texts are
/// missing; texts beyond the images it does not see.
fn parallel_slots<'a>(
    images: Vec<Option<RawImage<'a>>>,
    texts: Vec<Option<JsonText<'a>>>,
    orphan_texts: OrphanTexts,
) -> Option<Vec<Slot<'a>>> {
    if orphan_texts == OrphanTexts::Drop && texts.len() < images.len() {
        return None;
    }
    let num_slots = match orphan_texts {
        OrphanTexts::Keep => images.len().max(texts.len()),
        OrphanTexts::Drop => images.len(),
    };
    let mut images = images.into_iter();
    let mut texts = texts.into_iter();
    let slot = |_| Slot {
        image: images.next().flatten().map(SlotImage::new),
        text: texts.next().flatten().map(|text| text.0),
    };
    Some((0..num_slots).map(slot).collect())
}

/// MMC4's own layout.
fn mmc4_slots<'a>(images: Vec<Option<RawImage<'a>>>, sentences: Vec<JsonText<'a>>) -> Vec<Slot<'a>> {
    let mut images: Vec<(usize, RawImage<'a>)> = images
        .into_iter()
        .flatten()
        .map(|image| {
            let index = image.matched_text_index.and_then(|index| usize::try_from(index).ok());
            (index.filter(|&index| index < sentences.len()).unwrap_or(0), image)
        })
        .collect();
    images.sort_by_key(|(index, _)| *index); // stable: images of one sentence keep their order
    let mut images = images.into_iter().peekable();
    let mut slots: Vec<Slot<'a>> = Vec::new();
    for (index, sentence) in sentences.into_iter().enumerate() {
        while let Some((_, image)) = images.next_if(|(sentence, _)| *sentence == index) {
            slots.push(Slot { image: Some(SlotImage::new(image)), text: None });
        }
        match slots.last_mut() {
            Some(Slot { image: None, text: Some(text) }) => {
                let text = text.to_mut();
                text.push(' ');
                text.push_str(&sentence.0);
            }
            _ => slots.push(Slot { image: None, text: Some(sentence.0) }),
        }
    }
    // A document without sentences still has its images.
    slots.extend(images.map(|(_, image)| Slot { image: Some(SlotImage::new(image)), text: None }));
    slots
}

impl<'a> SlotImage<'a> {
    fn new(image: RawImage<'a>) -> Self {
        image.image_base64.map_or(Self::WithoutBytes, Self::Base64)
    }
}

impl DocumentMaker<'_> {
    /// The document of a sample with an interleaved `json` member. `file` is the number of its tar.
    pub(crate) fn interleaved(&self, sample: &Sample, file: u32) -> Result<Made, TextError> {
        let key = sample.key.to_string();
        let rejected = |reject| {
            Ok(Made { key: sample.key.to_string(), document: Err(reject), skipped_images: Vec::new() })
        };
        let Some(member) = sample.member("json") else { return rejected(Reject::MissingDocument) };
        let Ok(raw) = serde_json::from_slice(&member.data) else {
            return rejected(Reject::MalformedDocument);
        };
        if self.rules.copies_record && serde_json::from_slice::<Value>(&member.data).is_err() {
            return rejected(Reject::MalformedDocument);
        }
        let origin = Document {
            key: key.clone(),
            sample_key: key,
            file,
            record: Some(place(member)),
            ..Document::default()
        };
        self.interleaved_from(raw, &member.data, member.offset, origin)
    }

    /// The document of an object that was read from `json`, which begins `offset` bytes into its file. `origin` says
    /// what it is called and where it comes from.
    pub(crate) fn interleaved_from(
        &self,
        raw: RawDocument<'_>,
        json: &[u8],
        offset: u64,
        mut origin: Document,
    ) -> Result<Made, TextError> {
        let mut made = Made {
            key: origin.key.clone(),
            document: Err(Reject::MalformedDocument),
            skipped_images: Vec::new(),
        };
        let Some(slots) = raw.slots(self.rules.orphan_texts) else { return Ok(made) };
        let mut items = Vec::with_capacity(slots.len());
        let mut places = Places::new(json);
        for Slot { image, text } in slots {
            match image.map(|image| image.place(&mut places)) {
                Some(Ok(place)) => {
                    origin.images.push(Place { offset: offset + place.offset, ..place });
                    items.push(InterleavedItem::Image);
                }
                Some(Err(reject)) => {
                    made.skipped_images.push(reject);
                    // Without bytes the slot is a text's, to the reference too.
                    if reject != Reject::MissingImage && self.rules.orphan_texts == OrphanTexts::Drop {
                        continue;
                    }
                }
                None => {}
            }
            items.extend(text.map(|text| InterleavedItem::Text(text.into_owned())));
        }
        made.document = self.tokenized(&items, origin)?;
        Ok(made)
    }

    fn tokenized(
        &self,
        items: &[InterleavedItem],
        origin: Document,
    ) -> Result<Result<Document, Reject>, TextError> {
        let num_images = origin.images.len();
        if num_images == 0 {
            return Ok(Err(Reject::MissingImage));
        }
        if num_images > self.rules.max_images {
            return Ok(Err(Reject::TooManyImages));
        }
        let text_end = if num_images == 1 { self.rules.single_image_end } else { TextEnd::EndOfChunk };
        let ids = interleaved_document(self.tokenizer, items, text_end)?;
        // The reference counts before it closes the document.
        if ids.len() - 1 > self.rules.max_ids {
            return Ok(Err(Reject::TooManyIds));
        }
        Ok(self.rules.measured(&ids, origin))
    }
}

impl SlotImage<'_> {
    /// Where the image lies, or why it is left out.
    fn place(self, places: &mut Places<'_>) -> Result<Place, Reject> {
        let Self::Base64(text) = self else { return Err(Reject::MissingImage) };
        let place = places.find(&text).ok_or(Reject::UndecodableImage)?;
        let bytes = ImageEncoding::JsonBase64.decode(text.0.into_owned().into_bytes());
        match probe(&bytes.ok_or(Reject::UndecodableImage)?) {
            Err(_) => Err(Reject::UndecodableImage),
            Ok((_, width, height)) if width == 1 || height == 1 => Err(Reject::OnePixelImage),
            Ok(_) => Ok(place),
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use oqvl_image_prep::{RgbImage, encode_png};
    use oqvl_shard_io::SampleKey;
    use oqvl_text_prep::{BpeTrainer, SpecialTokens, Tokenizer};
    use serde_json::json;

    use super::*;
    use crate::config::tests::config;
    use crate::document::Rules;
    use crate::{Overlong, PackOutput, PackerConfig, Parity};

    fn image(width: u32) -> Value {
        // Pixels without a pattern: base64 of any length has slashes then.
        let pixels = (0..width * 2 * 3).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let png = encode_png(&RgbImage::new(width, 2, pixels).unwrap());
        json!({ "image_base64": STANDARD.encode(png) })
    }

    fn tokenizer() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    fn make(json: &str, config: &PackerConfig) -> Made {
        let tokenizer = tokenizer();
        let mut sample = Sample::new(SampleKey::new("k").unwrap());
        sample.push("json", json.as_bytes().to_vec());
        DocumentMaker { tokenizer: &tokenizer, rules: Rules::new(config) }.interleaved(&sample, 5).unwrap()
    }

    /// The document's text, with `[img]` for images, and the widths of the images at the places it names.
    fn shown(json: &str, document: &Document) -> (String, Vec<u32>) {
        let ids: Vec<i64> = document.input_ids.iter().map(|&id| i64::from(id)).collect();
        let pieces = ids.split(|&id| id == -200);
        let text: Vec<String> =
            pieces.map(|ids| tokenizer().decode(ids, SpecialTokens::Keep).unwrap()).collect();
        let width = |place: &Place| {
            let bytes = json.as_bytes()[place.offset as usize..][..place.num_bytes as usize].to_vec();
            probe(&place.encoding.decode(bytes).unwrap()).unwrap().1
        };
        let text = text.join("[img]").replace("<|endofchunk|>", "|");
        (text, document.images.iter().map(width).collect())
    }

    fn check(json: &str, config: &PackerConfig, expected: &str, widths: &[u32]) {
        let document = make(json, config).document.unwrap();
        assert_eq!(shown(json, &document), (expected.to_owned(), widths.to_vec()), "{json:.200}");
        assert_eq!(document.length as usize, document.input_ids.len() + 8 * widths.len());
        assert_eq!((document.key.as_str(), document.file), ("k", 5));
        assert_eq!(document.record.unwrap().num_bytes, json.len() as u64);
    }

    fn check_reject(json: &str, config: &PackerConfig, expected: Reject) {
        assert_eq!(make(json, config).document.map(|document| document.key), Err(expected), "{json:.200}");
    }

    #[test]
    fn the_layout_of_the_reference() {
        let ours = config(4096, 3);
        let document = json!({
            "image_info": [null, image(2), null, image(3)], "texts": ["one", null, "t<image>wo", null], "other": {"a": [1]},
        });
        let expected = "<s>one|[img]\nt<image-placeholder>wo|[img]\n<|im_end|>";
        check(&document.to_string(), &ours, expected, &[2, 3]);
        // Indented, as Python may have written it.
        check(&serde_json::to_string_pretty(&document).unwrap(), &ours, expected, &[2, 3]);
    }

    #[test]
    fn escaped_base64_is_found() {
        let ours = config(4096, 3);
        let plain = json!({ "image_info": [image(200), image(3)], "texts": [null, null] }).to_string();
        assert!(plain.matches('/').count() > 1, "the test needs slashes");
        let escaped = plain.replace('/', "\\/");
        check(&escaped, &ours, "<s>[img]\n[img]\n<|im_end|>", &[200, 3]);
        let mut lines = json!({ "image_info": [image(200), image(3)], "texts": [null, null] });
        let base64 = lines["image_info"][0]["image_base64"].as_str().unwrap().to_owned();
        lines["image_info"][0]["image_base64"] = format!("{}\n{}", &base64[..76], &base64[76..]).into();
        check(&lines.to_string(), &ours, "<s>[img]\n[img]\n<|im_end|>", &[200, 3]);
    }

    #[test]
    fn searching_ends() {
        // Base64 with an escape that JSON does not need is not found.
        let odd = format!("\"\\u0041{}\"", "A".repeat(900));
        let images = vec![format!("{{\"image_base64\":{odd}}}"); 500].join(",");
        let json = format!("{{\"image_info\":[{images}],\"texts\":[]}}");
        let made = make(&json, &config(4096, 3));
        assert_eq!((made.document, made.skipped_images.len()), (Err(Reject::MissingImage), 500));
    }

    #[test]
    fn the_layout_of_mmc4() {
        let ours = config(4096, 3);
        let matched = |width, index: i64| {
            let mut image = image(width);
            image["matched_text_index"] = index.into();
            image["image_name"] = "x.jpg".into();
            image
        };
        let document = json!({
            "image_info": [matched(4, 2), matched(2, 0), matched(3, 2)],
            "text_list": ["One.", "Two.", "Three.", "Four."], "similarity_matrix": [[0.5]], "url": "http://x",
        });
        let expected = "<s>[img]\nOne. Two.|[img]\n[img]\nThree. Four.|<|im_end|>";
        check(&document.to_string(), &ours, expected, &[2, 4, 3]);
        // An index that points nowhere counts as the first; no sentence at all leaves the images.
        let document = json!({ "image_info": [matched(4, 9), matched(2, -1)], "text_list": ["One."] });
        check(&document.to_string(), &ours, "<s>[img]\n[img]\nOne.|<|im_end|>", &[4, 2]);
        let document = json!({ "image_info": [matched(4, 0)], "text_list": [] });
        check(&document.to_string(), &ours, "<s>[img]\n<|im_end|>", &[4]);
        // As published, with URLs and no bytes.
        let document = json!({ "image_info": [{"raw_url": "http://x", "matched_text_index": 0}], "text_list": ["One."] });
        check_reject(&document.to_string(), &ours, Reject::MissingImage);
    }

    #[test]
    fn images_that_are_none_leave_the_document() {
        let ours = config(4096, 3);
        let parity = PackerConfig { parity: Parity::Pil, ..config(4096, 3) };
        let document = json!({
            "image_info": [image(1), {"image_base64": "bm90IGFuIGltYWdl"}, {"url": "x"}, image(2), {"image_base64": "?"}],
            "texts": [null, "beside", null, null, null, "beyond"],
        })
        .to_string();
        check(&document, &ours, "<s>beside|[img]\nbeyond|<|im_end|>", &[2]);
        check(&document, &parity, "<s>[img]\n<|im_end|>", &[2]);
        let reasons: Vec<&str> =
            make(&document, &ours).skipped_images.into_iter().map(Reject::reason).collect();
        assert_eq!(reasons, ["one-pixel-image", "undecodable-image", "missing-image", "undecodable-image"]);
    }

    #[test]
    fn what_is_no_document() {
        let ours = config(4096, 3);
        let parity = PackerConfig { parity: Parity::Json, ..config(4096, 3) };
        for json in
            ["", "[]", "{}", "{\"texts\": []}", "{\"image_info\": 3, \"texts\": []}", "{\"image_info\": []}"]
        {
            check_reject(json, &ours, Reject::MalformedDocument);
        }
        check_reject(r#"{"image_info": [], "texts": []}"#, &ours, Reject::MissingImage);
        // Half a character in a field that packing does not need, but that is written with the rest.
        let half = format!(r#"{{"image_info": [{}], "texts": [null], "title": "\ud83d"}}"#, image(2));
        check(&half, &ours, "<s>[img]\n<|im_end|>", &[2]);
        check_reject(
            &half,
            &PackerConfig { output: PackOutput::Json, ..ours.clone() },
            Reject::MalformedDocument,
        );
        check_reject(r#"{"image_info": [null], "texts": ["a"]}"#, &ours, Reject::MissingImage);
        // The reference stops where a text is missing; by default it counts as null.
        let short = json!({ "image_info": [image(2), image(2)], "texts": [null] }).to_string();
        check(&short, &ours, "<s>[img]\n[img]\n<|im_end|>", &[2, 2]);
        check_reject(&short, &parity, Reject::MalformedDocument);
        let empty = Sample::new(SampleKey::new("k").unwrap());
        let tokenizer = tokenizer();
        let maker = DocumentMaker { tokenizer: &tokenizer, rules: Rules::new(&ours) };
        assert_eq!(maker.interleaved(&empty, 0).unwrap().document, Err(Reject::MissingDocument));
    }

    #[test]
    fn limits_of_parity_and_of_the_default() {
        let ours = config(200, 3);
        let pil = PackerConfig { parity: Parity::Pil, ..config(200, 3) };
        let many = |count: usize| {
            let images: Vec<Value> = (0..count).map(|_| image(2)).collect();
            json!({ "image_info": images, "texts": vec![Value::Null; count] }).to_string()
        };
        assert_eq!(make(&many(12), &ours).document.unwrap().images.len(), 12);
        assert_eq!(make(&many(9), &pil).document.unwrap().images.len(), 9);
        check_reject(&many(10), &pil, Reject::TooManyImages);
        assert!(make(&many(10), &PackerConfig { parity: Parity::Json, ..ours.clone() }).document.is_ok());
        check_reject(
            &many(10),
            &PackerConfig { output: PackOutput::Json, ..ours.clone() },
            Reject::TooManyImages,
        );
        check_reject(
            &many(30),
            &PackerConfig { overlong: Overlong::Reject, ..ours.clone() },
            Reject::Overlong,
        );

        // <s>, image, newline, text, <|endofchunk|>: 6000 ids pass, 6001 do not; the closing id does not count.
        let long = |letters: usize| {
            json!({ "image_info": [image(2), null], "texts": [null, "x".repeat(letters)] }).to_string()
        };
        assert_eq!(make(&long(5996), &pil).document.unwrap().input_ids.len(), 6001);
        check_reject(&long(5997), &pil, Reject::TooManyIds);
        assert!(make(&long(5997), &ours).document.is_ok());
    }

    #[test]
    fn an_image_that_is_cut_off_at_the_end_goes_with_its_placeholder() {
        // A text that begins with <s> makes the newline after the last image disappear.
        let document =
            json!({ "image_info": [null, image(2), null, image(3)], "texts": ["<s>a", null, "bc", null] });
        check(&document.to_string(), &config(4096, 3), "<s>a|[img]bc|<|im_end|>", &[2]);
        let document = json!({ "image_info": [null, image(2)], "texts": ["<s>a", null] });
        check_reject(&document.to_string(), &config(4096, 3), Reject::MissingImage);
    }

    #[test]
    fn one_image_has_no_end_of_chunk_where_training_reads_json() {
        let one = json!({ "image_info": [image(2), null], "texts": [null, "a"] }).to_string();
        let two = json!({ "image_info": [image(2), null, image(2)], "texts": [null, "a", null] }).to_string();
        let json = PackerConfig { output: PackOutput::Json, ..config(4096, 3) };
        check(&one, &config(4096, 3), "<s>[img]\na|<|im_end|>", &[2]);
        check(&one, &json, "<s>[img]\na<|im_end|>", &[2]);
        check(&two, &json, "<s>[img]\na|[img]\n<|im_end|>", &[2, 2]);
        // Training passes over the slot of an image one pixel wide, whatever else stands in it.
        let tracked = json!({ "image_info": [image(1), image(2)], "texts": ["a", null] }).to_string();
        check(&tracked, &config(4096, 3), "<s>a|[img]\n<|im_end|>", &[2]);
        check(&tracked, &json, "<s>[img]\n<|im_end|>", &[2]);
        check(&one, &PackerConfig { parity: Parity::Json, ..json }, "<s>[img]\na|<|im_end|>", &[2]);
    }
}
