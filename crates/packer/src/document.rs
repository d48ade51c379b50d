//! Documents: what is packed, and the rules by which samples become documents.

use oqvl_shard_io::{ImageEncoding, ImageRef, Pack};
use oqvl_text_prep::{IMAGE_TOKEN_ID, TextEnd, Tokenizer, expanded_len};

use crate::{Overlong, PackInput, PackOutput, PackerConfig, Parity};

/// Why a sample is not packed. The name is what `report.json` counts it under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// No member is an image; none of an interleaved document's images is left.
    MissingImage,
    /// The image's header says nothing a decoder understands.
    UndecodableImage,
    /// A side is one pixel long: the reference drops such images, mostly tracking pixels.
    OnePixelImage,
    /// There is no `txt` member.
    MissingCaption,
    /// The `txt` member is not UTF-8.
    CaptionNotUtf8,
    /// There is no `json` member to hold an interleaved document.
    MissingDocument,
    /// The `json` member is not an interleaved document.
    MalformedDocument,
    /// More images than the rules in force allow.
    TooManyImages,
    /// More ids than the rules in force allow.
    TooManyIds,
    /// An earlier sample of the tar has the key; the earlier one's place goes to the later one's content.
    DuplicateKey,
    /// Longer than `seq_len`, and the config says to drop such.
    Overlong,
    /// The tar is damaged from here on; what follows in it is not known. Counted once, under the tar's name.
    DamagedShard,
    /// The tar lacks its end: what is there has been read, what is missing is not known. Counted once, as above.
    UnterminatedShard,
    /// A packed JSON file that is none. Counted once, under the file's name.
    DamagedPack,
}

impl Reject {
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::MissingImage => "missing-image",
            Self::UndecodableImage => "undecodable-image",
            Self::OnePixelImage => "one-pixel-image",
            Self::MissingCaption => "missing-caption",
            Self::CaptionNotUtf8 => "caption-not-utf8",
            Self::MissingDocument => "missing-document",
            Self::MalformedDocument => "malformed-document",
            Self::TooManyImages => "too-many-images",
            Self::TooManyIds => "too-many-ids",
            Self::DuplicateKey => "duplicate-key",
            Self::Overlong => "overlong",
            Self::DamagedShard => "damaged-shard",
            Self::UnterminatedShard => "unterminated-shard",
            Self::DamagedPack => "damaged-pack",
        }
    }
}

/// A byte range of the file a document comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) num_bytes: u64,
    pub(crate) encoding: ImageEncoding,
}

/// One captioned image, or texts and images in turn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Document {
    /// What the pack calls it.
    pub(crate) key: String,
    /// What the tar calls the sample it comes from.
    pub(crate) sample_key: String,
    /// Number of the file it comes from, among the unit's.
    pub(crate) file: u32,
    /// Number of the pack it comes from, where the input is packed.
    pub(crate) pack: u32,
    /// Ids; they and the placeholder fit into 32 bits.
    pub(crate) input_ids: Vec<i32>,
    /// Tokens with the images expanded.
    pub(crate) length: u32,
    /// Its images in the order of their placeholders.
    pub(crate) images: Vec<Place>,
    /// Its `json` member.
    pub(crate) record: Option<Place>,
    /// Its `txt` member.
    pub(crate) caption: Option<Place>,
}

/// What became of a sample.
#[derive(Debug)]
pub(crate) struct Made {
    /// Its name for the report.
    pub(crate) key: String,
    /// The document, or why there is none.
    pub(crate) document: Result<Document, Reject>,
    /// Why images of it were left out while the document stayed.
    pub(crate) skipped_images: Vec<Reject>,
}

/// Where a captioned image's key is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// The member's name in the tar.
    Tar,
    /// `key` in the `json` member, which a resharder leaves stale; the tar's key where there is none.
    Json,
}

/// What becomes of samples of one tar with equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duplicates {
    /// They stay, and are counted.
    Keep,
    /// The later one takes the place of the earlier.
    Replace,
}

/// What becomes of the text in an interleaved document's slot whose image is left out, and of texts beyond the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OrphanTexts {
    /// They stay.
    Keep,
    /// They go.
    Drop,
}

/// How samples become documents. The differences between the reference's two packers, its training and ours are here
/// and in [`crate::PackerConfig`], and nowhere else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Most images of an interleaved document.
    pub(crate) max_images: usize,
    /// Most ids of an interleaved document, without the closing one.
    pub(crate) max_ids: usize,
    /// What ends the texts of an interleaved document with one image.
    pub(crate) single_image_end: TextEnd,
    pub(crate) key_source: KeySource,
    pub(crate) duplicates: Duplicates,
    pub(crate) orphan_texts: OrphanTexts,
    pub(crate) num_image_tokens: usize,
    pub(crate) seq_len: u32,
    pub(crate) overlong: Overlong,
    /// Whether all of an interleaved document's JSON is to be written, so that all of it must be sound.
    pub(crate) copies_record: bool,
}

/// Ten images are too many for the pickle packer and for the training that reads packed JSON.
const REFERENCE_MAX_IMAGES: usize = 9;
/// The pickle packer's longest interleaved document, in ids.
const REFERENCE_MAX_IDS: usize = 6000;

impl Rules {
    /// The rules a config asks for.
    pub(crate) fn new(config: &PackerConfig) -> Self {
        let mut rules = Self {
            max_images: usize::MAX,
            max_ids: usize::MAX,
            single_image_end: TextEnd::EndOfChunk,
            key_source: KeySource::Tar,
            duplicates: Duplicates::Keep,
            orphan_texts: OrphanTexts::Keep,
            num_image_tokens: config.num_image_tokens(),
            seq_len: config.seq_len,
            overlong: config.overlong,
            copies_record: config.output == PackOutput::Json,
        };
        if config.parity != Parity::Off {
            rules.key_source = KeySource::Json;
            rules.duplicates = Duplicates::Replace;
            rules.orphan_texts = OrphanTexts::Drop;
        }
        if config.parity == Parity::Pil {
            (rules.max_images, rules.max_ids) = (REFERENCE_MAX_IMAGES, REFERENCE_MAX_IDS);
        }
        // What training makes of packed JSON, where it is read and, so that lengths come true, where it is written.
        let json_without_parity = config.output == PackOutput::Json && config.parity == Parity::Off;
        if config.input == PackInput::PackedJson || json_without_parity {
            rules.max_images = REFERENCE_MAX_IMAGES;
            rules.single_image_end = TextEnd::Nothing;
            rules.orphan_texts = OrphanTexts::Drop;
        }
        rules
    }

    /// Puts ids and images into a document, unless it is too long.
    pub(crate) fn measured(&self, ids: &[i64], mut document: Document) -> Result<Document, Reject> {
        // Placeholders at the very end were cut, and their images go with them.
        document.images.truncate(ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count());
        if document.images.is_empty() {
            return Err(Reject::MissingImage);
        }
        let length = expanded_len(ids.len(), document.images.len(), self.num_image_tokens);
        // A text of 256 MiB, the most that is read, has fewer tokens than that.
        document.length = u32::try_from(length).map_err(|_| Reject::TooManyIds)?;
        if document.length > self.seq_len && self.overlong == Overlong::Reject {
            return Err(Reject::Overlong);
        }
        let to_i32 = |&id: &i64| i32::try_from(id).expect("the tokenizer has fewer than 2^31 ids");
        document.input_ids = ids.iter().map(to_i32).collect();
        Ok(document)
    }
}

/// The pack of documents, in bin order. `file_names` are the files that the documents count.
pub(crate) fn pack(documents: &[Document], file_names: &[String]) -> Pack {
    let mut pack = Pack::default();
    for document in documents {
        pack.input_ids.extend(document.input_ids.iter().map(|&id| i64::from(id)));
        pack.lengths.push(document.length);
        pack.keys.push(document.key.clone());
        pack.images.extend(document.images.iter().map(|place| ImageRef {
            shard: file_names[document.file as usize].clone(),
            key: document.sample_key.clone(),
            offset: place.offset,
            num_bytes: place.num_bytes,
            encoding: place.encoding,
        }));
    }
    let num_placeholders = pack.input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
    assert_eq!(num_placeholders, pack.images.len(), "a placeholder for each image of {:?}", pack.keys);
    pack
}

/// Makes documents of samples.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DocumentMaker<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    pub(crate) rules: Rules,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    #[test]
    fn a_pack_concatenates_in_bin_order() {
        let document = |key: &str, file, ids: &[i32], length, num_images: u64| Document {
            key: key.to_owned(),
            sample_key: format!("{key}-0"),
            file,
            input_ids: ids.to_vec(),
            length,
            images: (0..num_images).map(|offset| Place { offset, ..Place::default() }).collect(),
            ..Document::default()
        };
        let documents = [document("b", 1, &[1, -200, 2], 11, 1), document("a", 0, &[-200, 3, -200], 19, 2)];
        let pack = pack(&documents, &["0.tar".to_owned(), "1.tar".to_owned()]);
        assert_eq!(
            (&pack.lengths[..], &pack.keys[..]),
            (&[11, 19][..], &["b".to_owned(), "a".to_owned()][..])
        );
        assert_eq!(pack.input_ids, [1, -200, 2, -200, 3, -200]);
        let images: Vec<(&str, &str, u64)> =
            pack.images.iter().map(|image| (&*image.shard, &*image.key, image.offset)).collect();
        assert_eq!(images, [("1.tar", "b-0", 0), ("0.tar", "a-0", 0), ("0.tar", "a-0", 1)]);
        assert_eq!(expanded_len(pack.input_ids.len(), 3, 9), 11 + 19);
    }

    #[test]
    fn rules_of_each_mode() {
        let rules = |change: &dyn Fn(&mut PackerConfig)| {
            let mut config = config(100, 3);
            change(&mut config);
            Rules::new(&config)
        };
        let ours = rules(&|_| {});
        assert_eq!(
            (ours.max_images, ours.key_source, ours.duplicates),
            (usize::MAX, KeySource::Tar, Duplicates::Keep)
        );
        let pil = rules(&|config| config.parity = Parity::Pil);
        assert_eq!((pil.max_images, pil.max_ids, pil.single_image_end), (9, 6000, TextEnd::EndOfChunk));
        assert_eq!((pil.key_source, pil.duplicates), (KeySource::Json, Duplicates::Replace));
        let json = rules(&|config| (config.parity, config.output) = (Parity::Json, PackOutput::Json));
        assert_eq!(
            (json.max_images, json.max_ids, json.single_image_end),
            (usize::MAX, usize::MAX, TextEnd::EndOfChunk)
        );
        for change in [
            (&|config: &mut PackerConfig| config.output = PackOutput::Json) as &dyn Fn(&mut PackerConfig),
            &|config| config.input = PackInput::PackedJson,
        ] {
            let trained = rules(change);
            assert_eq!((trained.max_images, trained.single_image_end), (9, TextEnd::Nothing));
        }
    }
}
