//! Documents: captioned images as ids, and bins of them as packs.

use oqvl_image_prep::probe;
use oqvl_shard_io::{ImageRef, Pack, Sample};
use oqvl_text_prep::{IMAGE_TOKEN_ID, TextError, Tokenizer, caption_document, expanded_len};

use crate::{Overlong, PackerConfig};

/// Why a sample is not packed. The name is what `report.json` counts it under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// No member is an image.
    MissingImage,
    /// The image's header says nothing a decoder understands.
    UndecodableImage,
    /// A side is one pixel long: the reference drops such images, mostly tracking pixels.
    OnePixelImage,
    /// There is no `txt` member.
    MissingCaption,
    /// The `txt` member is not UTF-8.
    CaptionNotUtf8,
    /// Longer than `seq_len`, and the config says to drop such.
    Overlong,
    /// The tar is damaged from here on; what follows in it is not known. Counted once, under the tar's name.
    DamagedShard,
}

impl Reject {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::MissingImage => "missing-image",
            Self::UndecodableImage => "undecodable-image",
            Self::OnePixelImage => "one-pixel-image",
            Self::MissingCaption => "missing-caption",
            Self::CaptionNotUtf8 => "caption-not-utf8",
            Self::Overlong => "overlong",
            Self::DamagedShard => "damaged-shard",
        }
    }
}

/// One captioned image.
#[derive(Debug, Clone)]
pub(crate) struct Document {
    input_ids: Vec<i64>,
    /// Tokens with the image expanded.
    pub(crate) length: u32,
    image: ImageRef,
}

impl Document {
    /// The document of a sample of the tar called `shard`, or why there is none.
    pub(crate) fn new(
        sample: &Sample,
        shard: &str,
        tokenizer: &Tokenizer,
        config: &PackerConfig,
    ) -> Result<Result<Self, Reject>, TextError> {
        let Some(image) = sample.image() else { return Ok(Err(Reject::MissingImage)) };
        match probe(&image.data) {
            Err(_) => return Ok(Err(Reject::UndecodableImage)),
            Ok((_, width, height)) if width == 1 || height == 1 => return Ok(Err(Reject::OnePixelImage)),
            Ok(_) => {}
        }
        let caption = match sample.caption() {
            Ok(Some(caption)) => caption,
            Ok(None) => return Ok(Err(Reject::MissingCaption)),
            Err(_) => return Ok(Err(Reject::CaptionNotUtf8)),
        };
        let input_ids = caption_document(tokenizer, caption)?;
        let length = expanded_len(input_ids.len(), 1, config.num_image_tokens());
        let length =
            u32::try_from(length).expect("a caption within the read limits has fewer than 2^32 tokens");
        if length > config.seq_len && config.overlong == Overlong::Reject {
            return Ok(Err(Reject::Overlong));
        }
        let image = ImageRef {
            shard: shard.to_owned(),
            key: sample.key.to_string(),
            offset: image.offset,
            num_bytes: image.data.len() as u64,
        };
        Ok(Ok(Self { input_ids, length, image }))
    }
}

/// The pack of the documents at `bin`, in bin order.
pub(crate) fn pack(documents: &[Document], bin: &[usize]) -> Pack {
    let mut pack = Pack::default();
    for document in bin.iter().map(|&index| &documents[index]) {
        pack.input_ids.extend(&document.input_ids);
        pack.lengths.push(document.length);
        pack.keys.push(document.image.key.clone());
        pack.images.push(document.image.clone());
    }
    let num_placeholders = pack.input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
    assert_eq!(num_placeholders, pack.images.len(), "a placeholder for each image of {:?}", pack.keys);
    pack
}

#[cfg(test)]
mod tests {
    use oqvl_image_prep::{RgbImage, encode_png};
    use oqvl_shard_io::SampleKey;
    use oqvl_text_prep::BpeTrainer;

    use super::*;
    use crate::config::tests::config;

    fn bytes_only() -> Tokenizer {
        BpeTrainer::new(300).train(std::iter::empty()).unwrap().tokenizer().unwrap()
    }

    fn sample(members: &[(&str, &[u8])]) -> Sample {
        let mut sample = Sample::new(SampleKey::new("k").unwrap());
        for (extension, data) in members {
            sample.push(extension, data.to_vec());
        }
        sample
    }

    fn png(width: u32, height: u32) -> Vec<u8> {
        encode_png(&RgbImage::new(width, height, vec![7; (width * height * 3) as usize]).unwrap())
    }

    fn check(members: &[(&str, &[u8])], expected: Result<u32, Reject>) {
        let config = PackerConfig { overlong: Overlong::Reject, ..config(24, 3) };
        let document = Document::new(&sample(members), "0.tar", &bytes_only(), &config).unwrap();
        assert_eq!(document.map(|document| document.length), expected);
    }

    #[test]
    fn admission() {
        let good = png(2, 2);
        check(&[("png", &good), ("txt", b"a cat")], Ok(9 + 3 + 5));
        check(&[("png", &good), ("txt", b"")], Ok(9 + 3)); // kept, as in the reference
        check(&[("png", &good), ("txt", b"exactly full")], Ok(24));
        check(&[("png", &good), ("txt", b"one too many!")], Err(Reject::Overlong));
        check(&[("txt", b"a cat")], Err(Reject::MissingImage));
        check(&[("jpg", b"<html>"), ("txt", b"a cat")], Err(Reject::UndecodableImage));
        check(&[("jpg", b""), ("txt", b"a cat")], Err(Reject::UndecodableImage));
        check(&[("jpg", &good[..20]), ("txt", b"a cat")], Err(Reject::UndecodableImage));
        check(&[("png", &png(1, 9)), ("txt", b"a cat")], Err(Reject::OnePixelImage));
        check(&[("png", &png(9, 1)), ("txt", b"a cat")], Err(Reject::OnePixelImage));
        check(&[("png", &good)], Err(Reject::MissingCaption));
        check(&[("png", &good), ("txt", b"\xff")], Err(Reject::CaptionNotUtf8));
    }

    #[test]
    fn a_pack_concatenates_in_bin_order() {
        let (tokenizer, config) = (bytes_only(), config(100, 3));
        let documents: Vec<Document> = ["one", "three"]
            .map(|caption| sample(&[("png", &png(3, 2)), ("txt", caption.as_bytes())]))
            .iter()
            .map(|sample| Document::new(sample, "0.tar", &tokenizer, &config).unwrap().unwrap())
            .collect();
        let pack = pack(&documents, &[1, 0]);
        assert_eq!(pack.lengths, [17, 15]);
        let ids = [caption_document(&tokenizer, "three"), caption_document(&tokenizer, "one")];
        assert_eq!(pack.input_ids, ids.map(Result::unwrap).concat());
        assert_eq!(expanded_len(pack.input_ids.len(), 2, 9), 17 + 15);
    }
}
