//! Files of `torch.save`: a zip archive with one pickle and one file per storage.
//!
//! ```text
//! {stem}/data.pkl      what there is, as a pickle
//! {stem}/byteorder     "little" (from torch 2.1 on)
//! {stem}/data/{key}    the numbers of one storage
//! ```
//!
//! Everything is stored, not compressed, as torch writes it; a compressed entry is an error, so an archive cannot hold
//! more than its own length. The checksum of every entry that is used is checked.

use super::WeightsError;
use super::elements::Elements;
use super::error::shown;
use super::pickle::{self, Pickled, Storage, View};
use candle_core::{Device, Tensor};
use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use zip::{CompressionMethod, ZipArchive};

/// Longest pickle that is read.
const MAX_PICKLE_BYTES: u64 = 1 << 26;
/// Tensors that share a storage may together be this many times as large: a weight under two names costs nothing, but
/// a file whose tensors all repeat one storage must not fill the memory.
const MAX_SHARING: usize = 4;
/// How a zip archive starts.
const ZIP_START: &[u8] = b"PK\x03\x04";
/// How a file from before torch 1.6 starts: a pickle of the number `0x1950a86a20f9469cfc6c`.
const LEGACY_START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";

type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// All tensors of a file, their names joined by dots.
pub(super) fn read(
    mut file: impl Read + Seek,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, AnyError> {
    check_start(&mut file)?;
    let mut archive = Archive::open(file)?;
    let pickle = archive.read_pickle()?;
    let Pickled { storages, views, tensors: names } = pickle::read(&pickle)?;

    // Names by view, equal views as one, by storage: one storage is in memory at a time.
    let mut names_of: BTreeMap<&View, Vec<String>> = BTreeMap::new();
    for (name, view) in names {
        names_of.entry(&views[view]).or_default().push(name);
    }
    let mut tensors = BTreeMap::new();
    let mut rest = names_of.into_iter().peekable();
    while let Some((view, names)) = rest.next() {
        let mut group = vec![(view, names)];
        while let Some(next) = rest.next_if(|(next, _)| next.storage == view.storage) {
            group.push(next);
        }
        let storage = &storages[view.storage];
        check_sharing(storage, &group)?;
        let mut elements = archive.read_storage(storage)?;
        let num_views = group.len();
        for (index, (view, names)) in group.into_iter().enumerate() {
            let part = take_view(&mut elements, view, index + 1 == num_views);
            let tensor = part.into_tensor(&view.shape, device)?;
            for name in names {
                if tensors.contains_key(&name) {
                    let problem = "is in the file twice".to_owned();
                    return Err(WeightsError::Tensor { name: shown(&name), problem }.into());
                }
                tensors.insert(name, tensor.clone());
            }
        }
    }
    Ok(tensors)
}

fn check_start(file: &mut (impl Read + Seek)) -> Result<(), WeightsError> {
    let mut start = Vec::new();
    file.by_ref().take(LEGACY_START.len() as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    if start == LEGACY_START {
        return Err(WeightsError::LegacyTorch);
    }
    if !start.starts_with(ZIP_START) {
        return Err(WeightsError::NotTorch);
    }
    Ok(())
}

fn check_sharing(storage: &Storage, group: &[(&View, Vec<String>)]) -> Result<(), WeightsError> {
    let total = group.iter().fold(0_usize, |total, (view, _)| total.saturating_add(view.count()));
    if total <= storage.count.saturating_mul(MAX_SHARING) {
        return Ok(());
    }
    let name = shown(group[0].1.first().map_or("", String::as_str));
    let problem = format!(
        "tensors of {total} elements share a storage of {}; at most {MAX_SHARING} times as many are read",
        storage.count
    );
    Err(WeightsError::Tensor { name, problem })
}

/// The numbers of one tensor, rows first; the last tensor of a storage takes all of it where it is all of it.
fn take_view(elements: &mut Elements, view: &View, is_last: bool) -> Elements {
    let count = match elements {
        Elements::Floats(values) => values.len(),
        Elements::Integers(values) => values.len(),
    };
    if is_last && view.count() == count && view.is_contiguous() {
        return std::mem::replace(elements, Elements::Integers(Vec::new()));
    }
    match elements {
        Elements::Floats(values) => Elements::Floats(gather(values, view)),
        Elements::Integers(values) => Elements::Integers(gather(values, view)),
    }
}

/// The pickle's reader has checked that every index is inside.
fn gather<T: Copy>(values: &[T], view: &View) -> Vec<T> {
    let count = view.count();
    if view.is_contiguous() && count > 0 {
        return values[view.offset..view.offset + count].to_vec();
    }
    let mut gathered = Vec::with_capacity(count);
    let mut index = vec![0; view.shape.len()];
    let mut at = view.offset;
    for _ in 0..count {
        gathered.push(values[at]);
        // The next index, last dimension first, as an odometer counts.
        for (place, (size, stride)) in index.iter_mut().zip(view.shape.iter().zip(&view.strides)).rev() {
            *place += 1;
            if *place < *size {
                at += stride;
                break;
            }
            at -= stride * (size - 1);
            *place = 0;
        }
    }
    gathered
}

/// The zip archive around a pickle and its storages.
struct Archive<F> {
    zip: ZipArchive<BufReader<F>>,
    /// Name of the folder everything lies in.
    stem: String,
}

impl<F: Read + Seek> Archive<F> {
    fn open(file: F) -> Result<Self, WeightsError> {
        let mut file = BufReader::with_capacity(1 << 16, file);
        let file_bytes = file.seek(SeekFrom::End(0))?;
        let zip = ZipArchive::new(file).map_err(|error| wrong(error.to_string()))?;
        if zip.has_duplicate_names() {
            return Err(wrong("has two entries of the same name".to_owned()));
        }
        // Told first, because a program's archive has compressed entries too.
        if zip.file_names_raw().any(|name| name.ends_with(b"/constants.pkl")) {
            return Err(WeightsError::TorchScript);
        }
        let mut total = 0_u64;
        let mut stems = Vec::new();
        for index in 0..zip.len() {
            let entry = zip.by_index_data(index).map_err(|error| wrong(error.to_string()))?;
            let name = String::from_utf8_lossy(entry.name_raw()).into_owned();
            if entry.compression() != CompressionMethod::Stored
                || entry.encrypted()
                || entry.size() != entry.compressed_size()
            {
                let problem =
                    format!("`{}` is compressed or encrypted; torch stores it as it is", shown(&name));
                return Err(wrong(problem));
            }
            total = total.saturating_add(entry.size());
            stems.extend(name.strip_suffix("/data.pkl").map(str::to_owned));
        }
        if total > file_bytes {
            return Err(wrong(format!("lists {total} bytes in a file of {file_bytes}")));
        }
        stems.retain(|stem| !stem.contains('/'));
        let stem = match stems.as_slice() {
            [stem] => stem.clone(),
            [] => return Err(wrong("has no data.pkl, so it is no file of torch.save".to_owned())),
            _ => return Err(wrong("has several data.pkl".to_owned())),
        };
        let mut archive = Self { zip, stem };
        archive.check_byte_order()?;
        Ok(archive)
    }

    fn check_byte_order(&mut self) -> Result<(), WeightsError> {
        const BYTE_ORDER: &str = "byteorder";
        const LONGEST_BYTE_ORDER: u64 = 16;
        if self.zip.index_for_name(&format!("{}/{BYTE_ORDER}", self.stem)).is_some() {
            let order = self.read_entry(BYTE_ORDER, |reader, size| {
                let mut order = Vec::new();
                reader.take(size.min(LONGEST_BYTE_ORDER)).read_to_end(&mut order)?;
                Ok(order)
            })?;
            if order != b"little" {
                let order = shown(&String::from_utf8_lossy(&order));
                return Err(wrong(format!("byte order `{order}`, only `little` is read")));
            }
        }
        Ok(())
    }

    fn read_pickle(&mut self) -> Result<Vec<u8>, WeightsError> {
        self.read_entry("data.pkl", |reader, size| {
            if size > MAX_PICKLE_BYTES {
                return Err(wrong(format!("data.pkl of {size} bytes, at most {MAX_PICKLE_BYTES} are read")));
            }
            let mut pickle = Vec::new();
            reader.read_to_end(&mut pickle)?;
            Ok(pickle)
        })
    }

    fn read_storage(&mut self, storage: &Storage) -> Result<Elements, WeightsError> {
        self.read_entry(&format!("data/{}", storage.key), |reader, size| {
            // Before any memory is taken: the pickle may claim what it likes.
            if storage.count.checked_mul(storage.element.num_bytes()).map(|bytes| bytes as u64) != Some(size)
            {
                let (count, element) = (storage.count, storage.element);
                return Err(wrong(format!("has {size} bytes, which is not {count} times {element:?}")));
            }
            Ok(Elements::read(reader, storage.element, storage.count)?)
        })
    }

    /// Reads an entry, of which `read` is told the size, and checks its checksum.
    fn read_entry<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut dyn Read, u64) -> Result<T, WeightsError>,
    ) -> Result<T, WeightsError> {
        let path = format!("{}/{name}", self.stem);
        let named = |problem: &dyn std::fmt::Display| wrong(format!("`{}`: {problem}", shown(&path)));
        let mut entry = self.zip.by_name(&path).map_err(|error| named(&error))?;
        let size = entry.size();
        let value = read(&mut entry, size).map_err(|error| named(&error))?;
        // The checksum is looked at where the entry ends.
        match entry.read(&mut [0]) {
            Ok(0) => Ok(value),
            Ok(_) => Err(named(&"goes on after its end")),
            Err(error) => Err(named(&error)),
        }
    }
}

fn wrong(problem: String) -> WeightsError {
    WeightsError::Archive { problem }
}
