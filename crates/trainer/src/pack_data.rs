//! Packs as training examples: ids from plans, images from the shards they point into; or both from pack tars.

use crate::{ImageLoader, TrainError};
use oqvl_model::{Example, Prompt};
use oqvl_shard_io::{
    ImageFiles, Pack, PackInfo, ShardError, index_pack_tar, list_plans, list_shards, read_plan,
};
use oqvl_text_prep::{IGNORE_INDEX, IMAGE_TOKEN_ID, fitting_len};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What a directory's packs are stored as.
#[derive(Debug, Clone, Copy)]
enum Container {
    Plan,
    Tar,
}

/// The files that hold the packs of `dir`, in name order. Plans win: the shards they point into may lie beside them.
fn pack_files(dir: &Path) -> Result<(Vec<PathBuf>, Container), TrainError> {
    let plans = list_plans(dir)?;
    if !plans.is_empty() {
        return Ok((plans, Container::Plan));
    }
    match list_shards(dir) {
        Err(ShardError::NoShards { .. }) => Ok((Vec::new(), Container::Tar)),
        tars => Ok((tars?, Container::Tar)),
    }
}

/// All packs of a directory.
#[derive(Debug)]
pub struct PackData {
    /// What the packs were made for.
    pub info: PackInfo,
    packs: Vec<Pack>,
    files: ImageFiles,
    images: ImageLoader,
}

impl PackData {
    /// Reads all plans of `dir`, or all pack tars where there are no plans, in name order; `work_dir` is where the
    /// plans' `images_dir` starts. Images are decoded when they are asked for, to `image_size`. `pad_id` is taken out
    /// of the sequences wherever it stands: the reference finds its padding by this id, so a genuine `<|endoftext|>`
    /// in a text is lost there too.
    ///
    /// # Errors
    /// If there are no packs, they do not agree with each other, or a shard they point into cannot be opened.
    pub fn open(dir: &Path, work_dir: &Path, image_size: u32, pad_id: i64) -> Result<Self, TrainError> {
        let (files, container) = pack_files(dir)?;
        let (mut all_info, mut packs): (Option<PackInfo>, Vec<Pack>) = (None, Vec::new());
        for path in files {
            let read = match container {
                Container::Plan => Some(read_plan(&path)?),
                Container::Tar => index_pack_tar(&path)?,
            };
            // A shard of which the packer kept nothing.
            let Some((info, more)) = read else { continue };
            packs.extend(more);
            match &all_info {
                None => all_info = Some(info),
                Some(first) if *first == info => {}
                Some(first) => {
                    let (found, expected) = (format!("{info:?}"), format!("{first:?} in other files"));
                    return Err(TrainError::PackMismatch { path, found, expected });
                }
            }
        }
        let Some(info) = all_info.filter(|_| !packs.is_empty()) else {
            return Err(TrainError::NoData {
                path: dir.to_path_buf(),
                what: "no packs: neither *.plan.parquet nor *.tar; run the packer first",
            });
        };
        let images_dir = match container {
            Container::Plan => work_dir.join(&info.images_dir),
            Container::Tar => dir.to_path_buf(),
        };
        // Better now than after days of training.
        let shards: BTreeSet<&str> =
            packs.iter().flat_map(|pack| &pack.images).map(|image| &*image.shard).collect();
        for path in shards.into_iter().map(|shard| images_dir.join(shard)) {
            std::fs::metadata(&path).map_err(TrainError::io(&path))?;
        }
        packs.iter_mut().for_each(|pack| pack.input_ids.retain(|id| *id != pad_id));
        let images = ImageLoader::new(image_size).with_shrink(info.image_shrink);
        Ok(Self { info, packs, files: ImageFiles::new(images_dir), images })
    }

    /// Number of packs.
    #[must_use]
    pub fn len(&self) -> usize {
        self.packs.len()
    }

    /// Whether there are none; `open` refuses that.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.packs.is_empty()
    }

    /// The largest token id of any pack: parity with the reference pads with an id the tokenizer does not have.
    #[must_use]
    pub fn max_id(&self) -> i64 {
        self.packs.iter().flat_map(|pack| &pack.input_ids).copied().max().unwrap_or_default()
    }

    /// Images so far that were no images; blank ones took their places.
    #[must_use]
    pub fn num_undecodable_images(&self) -> usize {
        self.images.num_undecodable()
    }

    /// One pack with its images decoded, cut to the `seq_len` it was packed for: an overlong document that the packer
    /// kept stands alone in its pack. Labels are the ids, except at images; nothing else is masked and documents see
    /// each other, as in the reference.
    ///
    /// # Errors
    /// If a shard cannot be read.
    pub fn example(&self, index: usize) -> Result<Example, TrainError> {
        let pack = &self.packs[index];
        let (seq_len, num_image_tokens) = (self.info.seq_len as usize, self.info.num_image_tokens as usize);
        let input_ids = &pack.input_ids[..fitting_len(&pack.input_ids, num_image_tokens, seq_len)];
        let num_images = input_ids.iter().filter(|&&id| id == IMAGE_TOKEN_ID).count();
        let mut images = Vec::with_capacity(num_images);
        for image in &pack.images[..num_images] {
            let name = format!("{}, sample {}", self.files.path(image).display(), image.key);
            // What is no base64 is no image either.
            let bytes = self.files.image(image)?.unwrap_or_default();
            images.push(self.images.load(&name, &bytes).into());
        }
        let labels =
            input_ids.iter().map(|&id| if id == IMAGE_TOKEN_ID { IGNORE_INDEX } else { id }).collect();
        Ok(Example { prompt: Prompt { input_ids: input_ids.to_vec(), images }, labels })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_image_prep::{RgbImage, encode_png};
    use oqvl_shard_io::{ImageEncoding, ImageRef, ImageShrink, write_atomic, write_pack_tar, write_plan};
    use oqvl_testkit::tiny_shard;

    const PAD: i64 = 9;

    fn base64(bytes: &[u8]) -> String {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(bytes)
    }

    fn info() -> PackInfo {
        PackInfo {
            seq_len: 8,
            num_image_tokens: 2,
            tokenizer_digest: "t".to_owned(),
            images_dir: "mixer".to_owned(),
            image_shrink: ImageShrink::None,
        }
    }

    /// One pack of one captioned image, which lies in `mixer/00000000.tar`.
    fn pack(work_dir: &Path) -> (Pack, Vec<u8>) {
        let written = tiny_shard(&work_dir.join("mixer"), "00000000", &[("a", "a red cube")]);
        let sample = oqvl_shard_io::ShardReader::open(&written).unwrap().next().unwrap().unwrap();
        let member = sample.image().unwrap();
        let image = ImageRef {
            shard: "00000000.tar".to_owned(),
            key: "a".to_owned(),
            offset: member.offset,
            num_bytes: member.data.len() as u64,
            encoding: ImageEncoding::Raw,
        };
        let input_ids = vec![1, IMAGE_TOKEN_ID, PAD, 2, 3];
        (
            Pack { input_ids, lengths: vec![6], keys: vec!["a".to_owned()], images: vec![image] },
            member.data.clone(),
        )
    }

    #[test]
    fn plans_and_tars_give_the_same_examples_without_padding_ids() {
        let dir = tempfile::tempdir().unwrap();
        let (pack, image) = pack(dir.path());
        let (plans, tars) = (dir.path().join("plans"), dir.path().join("tars"));
        std::fs::create_dir(&plans).unwrap();
        std::fs::create_dir(&tars).unwrap();
        write_plan(&plans.join("0.plan.parquet"), &info(), std::slice::from_ref(&pack)).unwrap();
        write_pack_tar(&tars.join("0.tar"), &info(), [(pack, vec![image])]).unwrap();
        write_pack_tar(&tars.join("1.tar"), &info(), []).unwrap();
        let open = |packs: &Path| PackData::open(packs, dir.path(), 4, PAD).unwrap();
        let example = open(&plans).example(0).unwrap();
        assert_eq!(example.prompt.input_ids, [1, IMAGE_TOKEN_ID, 2, 3]);
        assert_eq!(example.labels, [1, IGNORE_INDEX, 2, 3]);
        assert_eq!(example.prompt.images[0].len(), 3 * 4 * 4);
        assert_eq!(open(&tars).example(0).unwrap(), example);
    }

    #[test]
    fn several_images_of_a_document_come_in_order_from_wherever_they_lie() {
        let dir = tempfile::tempdir().unwrap();
        let shade = |level: u8| encode_png(&RgbImage::new(4, 4, vec![level; 4 * 4 * 3]).unwrap());
        // Two files: one holds an image as it is, the other two as base64.
        std::fs::create_dir_all(dir.path().join("mixer/7")).unwrap();
        let raw = shade(255);
        write_atomic(&dir.path().join("mixer/raw"), &raw).unwrap();
        let texts = ["AAAA".to_owned(), base64(&shade(0)), base64(&shade(51)).replace('/', "\\/")];
        write_atomic(&dir.path().join("mixer/7/x.json"), texts.concat().as_bytes()).unwrap();
        let image = |shard: &str, offset: usize, num_bytes: usize, encoding| ImageRef {
            shard: shard.to_owned(),
            key: "k".to_owned(),
            offset: offset as u64,
            num_bytes: num_bytes as u64,
            encoding,
        };
        let images = vec![
            image("7/x.json", 4, texts[1].len(), ImageEncoding::JsonBase64),
            image("raw", 0, raw.len(), ImageEncoding::Raw),
            image("7/x.json", 4 + texts[1].len(), texts[2].len(), ImageEncoding::JsonBase64),
        ];
        let input_ids = vec![1, IMAGE_TOKEN_ID, 2, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 3];
        let pack = Pack { input_ids, lengths: vec![9], keys: vec!["k".to_owned()], images };
        let plans = dir.path().join("plans");
        std::fs::create_dir(&plans).unwrap();
        write_plan(
            &plans.join("0.plan.parquet"),
            &PackInfo { seq_len: 9, ..info() },
            std::slice::from_ref(&pack),
        )
        .unwrap();
        let open = || PackData::open(&plans, dir.path(), 4, PAD).unwrap();
        let example = open().example(0).unwrap();
        assert_eq!(open().max_id(), 3);
        let tenths: Vec<f32> =
            example.prompt.images.iter().map(|values| (values[0] * 10.0).round()).collect();
        assert_eq!(tenths, [-10.0, 10.0, -6.0]);
        assert_eq!(example.labels, [1, IGNORE_INDEX, 2, IGNORE_INDEX, IGNORE_INDEX, 3]);

        // A window that ends inside a document keeps the images that fit whole, and theirs alone.
        write_plan(
            &plans.join("0.plan.parquet"),
            &PackInfo { seq_len: 7, ..info() },
            std::slice::from_ref(&pack),
        )
        .unwrap();
        let example = open().example(0).unwrap();
        assert_eq!((example.prompt.input_ids.len(), example.prompt.images.len()), (4, 2));

        std::fs::remove_file(dir.path().join("mixer/raw")).unwrap();
        let error = PackData::open(&plans, dir.path(), 4, PAD).unwrap_err().to_string();
        assert!(error.contains("mixer/raw"), "{error}");
    }

    #[test]
    fn broken_pixels_give_a_blank_image_and_are_counted() {
        let dir = tempfile::tempdir().unwrap();
        let (pack, _) = pack(dir.path());
        let tars = dir.path().join("tars");
        std::fs::create_dir(&tars).unwrap();
        let png = encode_png(&RgbImage::new(40, 40, vec![200; 40 * 40 * 3]).unwrap());
        write_pack_tar(&tars.join("0.tar"), &info(), [(pack, vec![png[..png.len() - 30].to_vec()])]).unwrap();
        let data = PackData::open(&tars, dir.path(), 4, PAD).unwrap();
        for _ in 0..2 {
            assert_eq!(data.example(0).unwrap().prompt.images, [vec![0.0; 3 * 4 * 4].into()]);
        }
        assert_eq!(data.num_undecodable_images(), 1);
    }

    #[test]
    fn a_directory_without_packs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = PackData::open(dir.path(), dir.path(), 4, PAD).unwrap_err().to_string();
        assert!(error.contains("run the packer first"), "{error}");
    }
}
