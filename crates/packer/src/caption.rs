//! Captioned images as documents.

use oqvl_image_prep::probe;
use oqvl_shard_io::{Member, Sample};
use oqvl_text_prep::{TextError, caption_document};

use crate::document::{Document, DocumentMaker, KeySource, Made, Place, Reject};

impl DocumentMaker<'_> {
    /// The document of a sample with an image and a `txt` member. `file` is the number of its tar.
    ///
    /// The image is looked at, not decoded: one whose header is fine and whose pixels are broken passes.
    pub(crate) fn captioned(&self, sample: &Sample, file: u32) -> Result<Made, TextError> {
        let document = self.try_captioned(sample, file)?;
        Ok(Made { key: sample.key.to_string(), document, skipped_images: Vec::new() })
    }

    fn try_captioned(&self, sample: &Sample, file: u32) -> Result<Result<Document, Reject>, TextError> {
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
        let ids = caption_document(self.tokenizer, caption)?;
        let document = Document {
            key: self.key(sample),
            sample_key: sample.key.to_string(),
            file,
            images: vec![place(image)],
            record: sample.member("json").map(place),
            caption: sample.member("txt").map(place),
            ..Document::default()
        };
        Ok(self.rules.measured(&ids, document))
    }

    fn key(&self, sample: &Sample) -> String {
        let from_json = || {
            let metadata: serde_json::Value = sample.metadata().ok()??;
            Some(metadata.get("key")?.as_str()?.to_owned())
        };
        let json_key = if self.rules.key_source == KeySource::Json { from_json() } else { None };
        json_key.unwrap_or_else(|| sample.key.to_string())
    }
}

/// Where a member lies.
pub(crate) fn place(member: &Member) -> Place {
    Place { offset: member.offset, num_bytes: member.data.len() as u64, ..Place::default() }
}

#[cfg(test)]
mod tests {
    use oqvl_image_prep::{RgbImage, encode_png};
    use oqvl_shard_io::SampleKey;
    use oqvl_text_prep::{BpeTrainer, Tokenizer};

    use super::*;
    use crate::config::tests::config;
    use crate::document::Rules;
    use crate::{Overlong, PackerConfig, Parity};

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

    fn document(members: &[(&str, &[u8])], config: &PackerConfig) -> Result<Document, Reject> {
        let tokenizer = bytes_only();
        let maker = DocumentMaker { tokenizer: &tokenizer, rules: Rules::new(config) };
        maker.captioned(&sample(members), 0).unwrap().document
    }

    fn check(members: &[(&str, &[u8])], expected: Result<u32, Reject>) {
        let config = PackerConfig { overlong: Overlong::Reject, ..config(24, 3) };
        assert_eq!(document(members, &config).map(|document| document.length), expected);
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
    fn parity_knows_a_sample_by_the_key_in_its_json() {
        let good = png(2, 2);
        let parity = PackerConfig { parity: Parity::Pil, ..config(40, 3) };
        for (json, expected) in [
            (&br#"{"key": "000000007"}"#[..], "000000007"),
            (b"{}", "k"),
            (br#"{"key": 7}"#, "k"),
            (b"no", "k"),
        ] {
            let members: [(&str, &[u8]); 3] = [("png", &good), ("txt", b"a"), ("json", json)];
            assert_eq!(document(&members, &parity).unwrap().key, expected);
            assert_eq!(document(&members, &config(40, 3)).unwrap().key, "k");
        }
    }
}
