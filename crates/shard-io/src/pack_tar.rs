//! Pack tars: packs as self-contained samples, for stores that only stream.
//!
//! Pack number `n` of the file is the sample `{n:08}`: its `json` member holds [`PackInfo`] and [`Pack`], and
//! `0000.jpg`, `0001.png`, … are the encoded images in the order of their placeholders.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::parquet_table::table_error;
use crate::{
    ImageEncoding, Member, Pack, PackInfo, ReadLimits, Sample, SampleKey, ShardError, ShardReader,
    ShardSummary, ShardWriter,
};

/// A pack and the encoded bytes of its images, in the order of [`Pack::images`].
pub type PackWithImages = (Pack, Vec<Vec<u8>>);

/// Most images a pack tar can name: four decimal digits.
const MAX_IMAGES: usize = 10_000;

/// A pack of many images is larger than an image-text pair.
const LIMITS: ReadLimits = ReadLimits {
    max_member_bytes: 256 << 20,
    max_sample_bytes: 4 << 30,
    max_members_per_sample: MAX_IMAGES + 1,
};

/// The `json` member.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct PackRecord {
    info: PackInfo,
    pack: Pack,
}

/// Writes packs with their images into one tar, atomically.
///
/// # Errors
/// [`ShardError::Table`] if a pack's images and image bytes differ in number, or its keys and lengths do;
/// otherwise as [`ShardWriter`].
pub fn write_pack_tar(
    path: &Path,
    info: &PackInfo,
    packs: impl IntoIterator<Item = PackWithImages>,
) -> Result<ShardSummary, ShardError> {
    let mut writer = ShardWriter::create(path)?;
    for (index, (pack, images)) in packs.into_iter().enumerate() {
        writer.push(&encode(path, info, index, pack, images)?)?;
    }
    writer.finish()
}

/// Opens a pack tar written by [`write_pack_tar`]; the packs come one at a time.
///
/// # Errors
/// [`ShardError::Io`] if it cannot be opened. What else is wrong comes with the pack it concerns.
pub fn read_pack_tar(path: &Path) -> Result<PackTarReader, ShardError> {
    let file = File::open(path).map_err(ShardError::io(path))?;
    let shard = ShardReader::new(BufReader::with_capacity(1 << 16, file), path, LIMITS);
    Ok(PackTarReader { shard, path: path.to_path_buf() })
}

/// The packs of a tar, each with the [`PackInfo`] it was written under and its image bytes.
#[derive(Debug)]
pub struct PackTarReader {
    shard: ShardReader<BufReader<File>>,
    path: PathBuf,
}

impl Iterator for PackTarReader {
    type Item = Result<(PackInfo, PackWithImages), ShardError>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.shard.next()?.and_then(|sample| decode(&self.path, sample)))
    }
}

/// The packs of a tar with references into the tar itself: what [`crate::read_plan`] gives for a plan, with the tar's
/// own directory in place of `images_dir`; `None` if the tar has no packs. Reads the tar once, a pack at a time, and
/// keeps no image.
///
/// # Errors
/// If the tar cannot be read to its end, or its packs were made under different [`PackInfo`]s.
pub fn index_pack_tar(path: &Path) -> Result<Option<(PackInfo, Vec<Pack>)>, ShardError> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (mut common, mut packs) = (None, Vec::new());
    for sample in read_pack_tar(path)?.shard {
        let (PackRecord { info, mut pack }, images) = take_apart(path, sample?)?;
        if common.get_or_insert_with(|| info.clone()) != &info {
            return Err(table_error(
                path,
                "json",
                format!("pack {} was made for another `info`", packs.len()),
            ));
        }
        for (reference, member) in pack.images.iter_mut().zip(&images) {
            reference.shard.clone_from(&file_name);
            (reference.offset, reference.num_bytes) = (member.offset, member.data.len() as u64);
            reference.encoding = ImageEncoding::Raw;
        }
        packs.push(pack);
    }
    Ok(common.map(|info| (info, packs)))
}

fn encode(
    path: &Path,
    info: &PackInfo,
    index: usize,
    pack: Pack,
    images: Vec<Vec<u8>>,
) -> Result<Sample, ShardError> {
    check(path, &pack, images.len())?;
    let mut sample = Sample::new(SampleKey::new(format!("{index:08}"))?);
    for (image_index, bytes) in images.into_iter().enumerate() {
        sample.push(&format!("{image_index:04}.{}", image_extension(&bytes)), bytes);
    }
    let record = PackRecord { info: info.clone(), pack };
    let json = serde_json::to_vec(&record)
        .map_err(|source| ShardError::Json { path: path.to_path_buf(), source })?;
    sample.push("json", json);
    Ok(sample)
}

fn decode(path: &Path, sample: Sample) -> Result<(PackInfo, PackWithImages), ShardError> {
    let (PackRecord { info, pack }, images) = take_apart(path, sample)?;
    Ok((info, (pack, images.into_iter().map(|member| member.data).collect())))
}

/// The record of a sample, and the members of its images in the order of their placeholders.
fn take_apart(path: &Path, sample: Sample) -> Result<(PackRecord, Vec<Member>), ShardError> {
    let record: PackRecord = sample
        .metadata()?
        .ok_or_else(|| table_error(path, "json", format!("sample `{}` has no such member", sample.key)))?;
    let mut images: Vec<_> = sample.members.into_iter().filter(|member| member.extension != "json").collect();
    // `0000.…` sorts as its number does.
    images.sort_by(|a, b| a.extension.cmp(&b.extension));
    check(path, &record.pack, images.len())?;
    Ok((record, images))
}

fn check(path: &Path, pack: &Pack, num_images: usize) -> Result<(), ShardError> {
    if let Some(problem) = pack.problem() {
        return Err(table_error(path, "keys", problem));
    }
    if pack.images.len() != num_images || num_images > MAX_IMAGES {
        let problem = format!("{num_images} image members for {} images", pack.images.len());
        return Err(table_error(path, "images", problem));
    }
    Ok(())
}

/// The customary extension of an encoded image, by its first bytes; `bin` for an unknown encoding.
fn image_extension(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xff, 0xd8, ..] => "jpg",
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => "webp",
        [b'G', b'I', b'F', b'8', ..] => "gif",
        [b'B', b'M', ..] => "bmp",
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => "tiff",
        _ => "bin",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ShardFile;
    use crate::pack::tests::{info, pack};

    #[test]
    fn write_then_read_is_identity() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        // 300 images: more than an image-text pair may have members.
        for counts in [&[][..], &[0], &[1, 0, 3], &[300]] {
            let packs: Vec<PackWithImages> = counts
                .iter()
                .map(|&count| (pack(count), (0..count).map(|image| vec![image as u8; image % 5]).collect()))
                .collect();
            let summary = write_pack_tar(&path, &info(), packs.clone()).unwrap();
            let read: Vec<_> = read_pack_tar(&path).unwrap().map(Result::unwrap).collect();
            assert!(read.iter().all(|(read_info, _)| *read_info == info()));
            assert_eq!(read.into_iter().map(|(_, pack)| pack).collect::<Vec<_>>(), packs);
            assert_eq!(write_pack_tar(&path, &info(), packs).unwrap(), summary);
        }
    }

    #[test]
    fn an_index_leads_to_the_images_in_the_tar() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let images = |count: usize| (0..count).map(|image| vec![image as u8; 3 + image]).collect::<Vec<_>>();
        let packs: Vec<PackWithImages> = [2, 0, 1].map(|count| (pack(count), images(count))).into();
        write_pack_tar(&path, &info(), packs.clone()).unwrap();
        let (indexed_info, indexed) = index_pack_tar(&path).unwrap().unwrap();
        assert_eq!(indexed_info, info());
        let file = ShardFile::open(&path).unwrap();
        for (indexed, (pack, images)) in indexed.iter().zip(&packs) {
            assert_eq!((&indexed.input_ids, &indexed.keys), (&pack.input_ids, &pack.keys));
            for (reference, bytes) in indexed.images.iter().zip(images) {
                assert_eq!((reference.shard.as_str(), reference.encoding), ("x.tar", ImageEncoding::Raw));
                assert_eq!(file.read(reference.offset, reference.num_bytes).unwrap(), *bytes);
            }
        }
        write_pack_tar(&path, &info(), []).unwrap();
        assert_eq!(index_pack_tar(&path).unwrap(), None);
    }

    #[test]
    fn members_are_named_by_number_and_kind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let images =
            vec![vec![0xff, 0xd8, 0xff], b"\x89PNG\r\n".to_vec(), b"RIFF1234WEBP".to_vec(), b"?".to_vec()];
        write_pack_tar(&path, &info(), [(pack(4), images)]).unwrap();
        let sample = ShardReader::open(&path).unwrap().next().unwrap().unwrap();
        assert_eq!(sample.key.as_str(), "00000000");
        let names: Vec<&str> = sample.members.iter().map(|member| member.extension.as_str()).collect();
        assert_eq!(names, ["0000.jpg", "0001.png", "0002.webp", "0003.bin", "json"]);
    }

    #[test]
    fn images_and_references_must_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        assert!(matches!(write_pack_tar(&path, &info(), [(pack(1), vec![])]), Err(ShardError::Table { .. })));
        assert!(!path.exists());
        let mut writer = ShardWriter::create(&path).unwrap();
        let mut sample = Sample::new(SampleKey::new("00000000").unwrap());
        sample.push("0000.jpg", vec![]);
        writer.push(&sample).unwrap();
        writer.finish().unwrap();
        assert!(matches!(read_pack_tar(&path).unwrap().next(), Some(Err(ShardError::Table { .. }))));
    }
}
