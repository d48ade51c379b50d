//! The reference's packed JSON: `{tar}/{name}_packed.json`, a file per pack.
//!
//! A file is `{"data": [document, …], "lengths": […]}`; a document has the `image_info` and `texts` of an interleaved one,
//! and a `key`. What is read is what the reference's training reads: texts are tokenized anew, `lengths` do not matter.
//!
//! Source: `sequence_packing_image_to_json.py` and `PreTrainDataset` of Open-Qwen2VL.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use oqvl_image_prep::{DecodeLimits, decode, encode_jpeg};
use oqvl_shard_io::{ImageFiles, ImageRef, digest_bytes, from_python_json, write_json_atomic};
use oqvl_stage::ConfigError;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::document::{Document, DocumentMaker, Made, Place, Reject};
use crate::interleaved::RawDocument;
use crate::{PackerError, Parity};

/// How the names of packed files end. The reference's training finds them by the last eleven characters.
const SUFFIX: &str = "packed.json";
/// Largest file that is read; the reference's have a few MiB.
const MAX_FILE_BYTES: u64 = 1 << 30;
/// Quality of the JPEG files that the reference makes of captioned images (Pillow's default).
const REFERENCE_JPEG_QUALITY: u8 = 75;

/// The packed files under `dir`, grouped by the directory they lie in: each group stands for a tar. Paths are relative to
/// `dir`, directories with the same parent come by the number that is their name and then by name, files by name. Links are
/// followed; a directory that is met again by one is passed over.
pub(crate) fn list_packed_json(dir: &Path) -> Result<Vec<Vec<PathBuf>>, PackerError> {
    let mut groups = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    let mut met = BTreeSet::new();
    while let Some(relative) = waiting.pop() {
        let path = dir.join(&relative);
        let failed = |source| PackerError::Io { path: path.clone(), source };
        if !met.insert(path.canonicalize().map_err(failed)?) {
            continue;
        }
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let child = relative.join(entry.file_name());
            let name = entry.file_name().to_string_lossy().into_owned();
            // The reference's training has its corpora linked into one directory.
            if dir.join(&child).is_dir() {
                waiting.push(child);
            } else if name.ends_with(SUFFIX) && !name.starts_with('.') {
                files.push(child);
            }
        }
        if !files.is_empty() {
            files.sort();
            groups.push((relative, files));
        }
    }
    if groups.is_empty() {
        let message = format!("{}: no `*{SUFFIX}` in this directory or below", dir.display());
        return Err(ConfigError::new("shards", message).into());
    }
    groups.sort_by_cached_key(|(directory, _)| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        let number = name.parse::<u64>().unwrap_or(u64::MAX);
        (directory.parent().map(Path::to_path_buf), number, directory.clone())
    });
    Ok(groups.into_iter().map(|(_, files)| files).collect())
}

/// One file.
#[derive(Deserialize)]
struct PackedFile<'a> {
    #[serde(borrow)]
    data: Vec<RawDocument<'a>>,
}

impl DocumentMaker<'_> {
    /// The documents of a packed file. `name` is what it is called in reports, `file` its number among the unit's.
    ///
    /// # Errors
    /// If it cannot be read, or the tokenizer refuses a text. A file that is no packed JSON is a reject.
    pub(crate) fn packed(&self, path: &Path, name: &str, file: u32) -> Result<Vec<Made>, PackerError> {
        let failed = |source| PackerError::Io { path: path.to_path_buf(), source };
        let damaged = || {
            let document = Err(Reject::DamagedPack);
            Ok(vec![Made { key: name.to_owned(), document, skipped_images: Vec::new() }])
        };
        if std::fs::metadata(path).map_err(failed)?.len() > MAX_FILE_BYTES {
            tracing::warn!("{}: larger than {MAX_FILE_BYTES} bytes, left out", path.display());
            return damaged();
        }
        let json = std::fs::read(path).map_err(failed)?;
        let parsed: PackedFile<'_> = match serde_json::from_slice(&json) {
            Ok(parsed) => parsed,
            Err(error) => {
                tracing::warn!("{}: not a packed JSON file, left out: {error}", path.display());
                return damaged();
            }
        };
        let make = |(index, raw): (usize, RawDocument<'_>)| {
            let key = raw.key().map_or_else(|| format!("{name}:{index}"), str::to_owned);
            let origin = Document {
                key: key.clone(),
                sample_key: key.clone(),
                file,
                pack: file,
                ..Document::default()
            };
            self.interleaved_from(raw, &json, 0, origin).map_err(|source| PackerError::Caption {
                path: path.to_path_buf(),
                key,
                source,
            })
        };
        parsed.data.into_iter().enumerate().map(make).collect()
    }
}

/// A file, as it is written.
#[derive(Serialize)]
struct PackedRecord {
    data: Vec<Value>,
    lengths: Vec<u32>,
}

/// The reference's marker of a directory of packs, beside it.
fn reference_stats(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_owned();
    name.push("_stats.json");
    dir.with_file_name(name)
}

/// The packs in the directory of a unit and the reference's marker.
pub(crate) fn packed_json_files(dir: &Path) -> Result<Vec<PathBuf>, PackerError> {
    let failed = |source| PackerError::Io { path: dir.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(SUFFIX) && !name.starts_with('.') {
            files.push(path);
        }
    }
    files.sort();
    files.push(reference_stats(dir));
    Ok(files)
}

/// Whether the directory of a unit has this many packs, and the reference's marker is there.
pub(crate) fn packed_json_is_whole(dir: &Path, num_packs: usize) -> Result<bool, PackerError> {
    Ok(reference_stats(dir).exists() && packed_json_files(dir)?.len() == num_packs + 1)
}

/// Writes the packs of a unit as packed JSON.
#[derive(Debug)]
pub(crate) struct PackedJsonWriter<'a> {
    files: &'a ImageFiles,
    file_names: &'a [String],
    parity: Parity,
    dir: PathBuf,
    unit: usize,
    num_packs: usize,
}

impl<'a> PackedJsonWriter<'a> {
    /// Starts the directory of unit number `unit`; what an unfinished run left there goes.
    pub(crate) fn create(
        out_dir: &Path,
        unit: usize,
        files: &'a ImageFiles,
        file_names: &'a [String],
        parity: Parity,
    ) -> Result<Self, PackerError> {
        let dir = out_dir.join(unit.to_string());
        let failed = |source| PackerError::Io { path: dir.clone(), source };
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::create_dir_all(&dir).map_err(failed)?;
        Ok(Self { files, file_names, parity, dir, unit, num_packs: 0 })
    }

    /// Writes the pack of these documents. Its name is a digest of the numbers of unit and pack, in the place of the
    /// reference's random one: the same run writes the same files.
    pub(crate) fn push(&mut self, documents: &[Document]) -> Result<(), PackerError> {
        let digest = digest_bytes(format!("{}/{}", self.unit, self.num_packs).as_bytes());
        self.num_packs += 1;
        let record = PackedRecord {
            data: documents.iter().map(|document| self.entry(document)).collect::<Result<_, _>>()?,
            lengths: documents.iter().map(|document| document.length).collect(),
        };
        Ok(write_json_atomic(&self.dir.join(format!("{}_{SUFFIX}", &digest[..32])), &record)?)
    }

    /// The reference's `{tar}_stats.json`: total lengths alone.
    pub(crate) fn write_stats(&self, len: &[u64]) -> Result<(), PackerError> {
        Ok(write_json_atomic(&reference_stats(&self.dir), &json!({ "len": len }))?)
    }

    fn entry(&self, document: &Document) -> Result<Value, PackerError> {
        let mut entry = match document.caption {
            Some(caption) => self.caption_entry(document, caption)?,
            None => match self.json_of(document)? {
                Some(Value::Object(entry)) => entry,
                _ => Map::new(),
            },
        };
        entry.insert("key".to_owned(), document.key.clone().into());
        entry.insert("length".to_owned(), document.length.into());
        Ok(entry.into())
    }

    /// A captioned image as the reference stores it: a document of an image and a text. `uid` is there where the sample
    /// has one.
    fn caption_entry(&self, document: &Document, caption: Place) -> Result<Map<String, Value>, PackerError> {
        let name = &self.file_names[document.file as usize];
        let caption = self.files.read(name, caption.offset, caption.num_bytes)?;
        let image = match document.images.first() {
            Some(place) => self.image(document, name, place)?,
            None => Vec::new(),
        };
        let mut entry = Map::new();
        entry.insert("image_info".to_owned(), json!([{ "image_base64": STANDARD.encode(image) }, null]));
        entry.insert("texts".to_owned(), json!([null, String::from_utf8_lossy(&caption)]));
        entry.insert("key".to_owned(), document.key.clone().into());
        if let Some(uid) = self.json_of(document)?.as_ref().and_then(|json| json.get("uid")) {
            entry.insert("uid".to_owned(), uid.clone());
        }
        Ok(entry)
    }

    /// The file of a captioned image: its bytes, or for parity a new JPEG file. An image that cannot be decoded, at which
    /// the reference stops, stays as it is.
    fn image(&self, document: &Document, name: &str, place: &Place) -> Result<Vec<u8>, PackerError> {
        let reference = ImageRef {
            shard: name.to_owned(),
            key: document.sample_key.clone(),
            offset: place.offset,
            num_bytes: place.num_bytes,
            encoding: place.encoding,
        };
        let bytes = self.files.image(&reference)?.unwrap_or_default();
        if self.parity == Parity::Off {
            return Ok(bytes);
        }
        match decode(&bytes, &DecodeLimits::default()) {
            Ok(image) => Ok(encode_jpeg(&image, REFERENCE_JPEG_QUALITY)),
            Err(error) => {
                tracing::warn!("{name}, sample {}: copied as it is: {error}", document.sample_key);
                Ok(bytes)
            }
        }
    }

    fn json_of(&self, document: &Document) -> Result<Option<Value>, PackerError> {
        let Some(record) = document.record else { return Ok(None) };
        let name = &self.file_names[document.file as usize];
        let bytes = self.files.read(name, record.offset, record.num_bytes)?;
        // img2dataset writes NaN, which would cost a sample its uid.
        Ok(from_python_json(&bytes).ok())
    }
}
