//! Documents between reading and packing: in memory while they are few, in a nameless file beyond.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use oqvl_shard_io::ImageEncoding;
use tempfile::SpooledTempFile;

use crate::document::{Document, Place};

/// Bytes of documents held in memory; about a million captioned images.
const MAX_MEMORY_BYTES: usize = 256 << 20;

/// Documents in the order they came. Beside [`MAX_MEMORY_BYTES`] it takes 20 bytes of memory a document.
pub(crate) struct Spool {
    file: SpooledTempFile,
    /// Bytes written.
    end: u64,
    entries: Vec<Entry>,
    lengths: Vec<u32>,
    /// Space for the bytes of one document.
    buffer: Vec<u8>,
}

/// Where a document lies.
#[derive(Debug, Clone, Copy)]
struct Entry {
    offset: u64,
    num_bytes: u32,
    pack: u32,
}

impl Spool {
    /// An empty spool that overflows into `dir`.
    pub(crate) fn new(dir: &Path) -> Self {
        Self::with_memory(dir, MAX_MEMORY_BYTES)
    }

    fn with_memory(dir: &Path, max_bytes: usize) -> Self {
        let file = tempfile::spooled_tempfile_in(max_bytes, dir);
        Self { file, end: 0, entries: Vec::new(), lengths: Vec::new(), buffer: Vec::new() }
    }

    /// Tokens of each document.
    pub(crate) fn lengths(&self) -> &[u32] {
        &self.lengths
    }

    /// The documents that come from the same pack, by number of the pack, in order.
    pub(crate) fn given_bins(&self) -> Vec<Vec<usize>> {
        let mut bins: Vec<Vec<usize>> = Vec::new();
        for (index, entry) in self.entries.iter().enumerate() {
            let pack = entry.pack as usize;
            if bins.len() <= pack {
                bins.resize_with(pack + 1, Vec::new);
            }
            bins[pack].push(index);
        }
        bins.retain(|bin| !bin.is_empty());
        bins
    }

    /// Appends a document.
    pub(crate) fn push(&mut self, document: &Document) -> io::Result<()> {
        let entry = self.write(document)?;
        self.entries.push(entry);
        self.lengths.push(document.length);
        Ok(())
    }

    /// Puts a document in the place of the one at `index`.
    pub(crate) fn replace(&mut self, index: usize, document: &Document) -> io::Result<()> {
        self.entries[index] = self.write(document)?;
        self.lengths[index] = document.length;
        Ok(())
    }

    /// The document at `index`.
    pub(crate) fn read(&mut self, index: usize) -> io::Result<Document> {
        let entry = self.entries[index];
        self.buffer.resize(entry.num_bytes as usize, 0);
        self.file.seek(SeekFrom::Start(entry.offset))?;
        self.file.read_exact(&mut self.buffer)?;
        decode(&self.buffer).ok_or_else(|| io::Error::other("a temporary file changed under our hands"))
    }

    fn write(&mut self, document: &Document) -> io::Result<Entry> {
        self.buffer.clear();
        encode(document, &mut self.buffer);
        self.file.seek(SeekFrom::Start(self.end))?;
        self.file.write_all(&self.buffer)?;
        let num_bytes = u32::try_from(self.buffer.len())
            .map_err(|_| io::Error::other("a document of more than 4 GiB"))?;
        let entry = Entry { offset: self.end, num_bytes, pack: document.pack };
        self.end += u64::from(num_bytes);
        Ok(entry)
    }
}

fn encode(document: &Document, bytes: &mut Vec<u8>) {
    for number in [document.file, document.pack, document.length] {
        bytes.extend(number.to_le_bytes());
    }
    for text in [&document.key, &document.sample_key] {
        put_count(bytes, text.len());
        bytes.extend(text.as_bytes());
    }
    put_count(bytes, document.input_ids.len());
    bytes.extend(document.input_ids.iter().flat_map(|id| id.to_le_bytes()));
    for places in [&document.images[..], document.record.as_slice(), document.caption.as_slice()] {
        put_count(bytes, places.len());
        for place in places {
            bytes.extend(place.offset.to_le_bytes());
            bytes.extend(place.num_bytes.to_le_bytes());
            bytes.push(u8::from(place.encoding == ImageEncoding::JsonBase64));
        }
    }
}

fn put_count(bytes: &mut Vec<u8>, count: usize) {
    bytes.extend((count as u64).to_le_bytes());
}

fn decode(bytes: &[u8]) -> Option<Document> {
    let mut fields = Fields(bytes);
    let (file, pack, length) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (key, sample_key) = (fields.text()?, fields.text()?);
    let num_ids = fields.count()?;
    let ids = fields.take(num_ids.checked_mul(4)?)?.as_chunks().0;
    let input_ids = ids.iter().map(|id| i32::from_le_bytes(*id)).collect();
    let images = fields.places()?;
    let (record, caption) = (fields.places()?.pop(), fields.places()?.pop());
    Some(Document { key, sample_key, file, pack, input_ids, length, images, record, caption })
}

/// Bytes not yet decoded.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, num_bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(num_bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(*self.take(4)?.first_chunk()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(*self.take(8)?.first_chunk()?))
    }

    fn count(&mut self) -> Option<usize> {
        usize::try_from(self.u64()?).ok()
    }

    fn text(&mut self) -> Option<String> {
        let num_bytes = self.count()?;
        String::from_utf8(self.take(num_bytes)?.to_vec()).ok()
    }

    fn places(&mut self) -> Option<Vec<Place>> {
        let count = self.count()?;
        (0..count)
            .map(|_| {
                let (offset, num_bytes) = (self.u64()?, self.u64()?);
                let encoding =
                    if *self.take(1)?.first()? == 0 { ImageEncoding::Raw } else { ImageEncoding::JsonBase64 };
                Some(Place { offset, num_bytes, encoding })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn document(index: u32, num_images: u64, encoding: ImageEncoding) -> Document {
        let place = |offset| Place { offset, num_bytes: u64::MAX - offset, encoding };
        Document {
            key: format!("ключ {index}"),
            sample_key: index.to_string(),
            file: index % 3,
            pack: index / 2,
            input_ids: (-200..).take(index as usize).collect(),
            length: index * 7,
            images: (0..num_images).map(place).collect(),
            record: index.is_multiple_of(2).then(|| place(1)),
            caption: index.is_multiple_of(5).then(|| place(2)),
        }
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(index in 0u32..300, num_images in 0u64..20, raw: bool) {
            let document = document(index, num_images, if raw { ImageEncoding::Raw } else { ImageEncoding::JsonBase64 });
            let mut bytes = Vec::new();
            encode(&document, &mut bytes);
            prop_assert_eq!(decode(&bytes), Some(document));
            prop_assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
        }
    }

    #[test]
    fn memory_or_file_makes_no_difference() {
        let dir = tempfile::tempdir().unwrap();
        for max_bytes in [0, 1000, 1 << 20] {
            let mut spool = Spool::with_memory(dir.path(), max_bytes);
            let documents: Vec<Document> =
                (0..50).map(|index| document(index, 2, ImageEncoding::Raw)).collect();
            documents.iter().for_each(|document| spool.push(document).unwrap());
            let other = document(77, 1, ImageEncoding::JsonBase64);
            spool.replace(3, &other).unwrap();
            for index in (0..50).rev() {
                let expected = if index == 3 { &other } else { &documents[index] };
                assert_eq!(spool.read(index).unwrap(), *expected);
                assert_eq!(spool.lengths()[index], expected.length);
            }
            assert_eq!(spool.given_bins()[..2], [vec![0, 1], vec![2]]);
            assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
        }
    }
}
