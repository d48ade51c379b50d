//! Writing shards: USTAR bytes that depend on the samples alone.

use std::io::Write;
use std::path::{Path, PathBuf};

use crate::sample::MAX_EXTENSION_BYTES;
use crate::tar_entries::{BLOCK_BYTES, TAR_END, padding_bytes};
use crate::{AtomicFile, Sample, SampleKey, ShardError};

/// Owner and group of every member, as the Python `webdataset` writer sets them.
const OWNER: &str = "bigdata";

/// Read-only for everyone, as the Python `webdataset` writer sets it.
const MODE: u32 = 0o444;

/// Longest name of a USTAR header without a directory part; longer names get a pax header.
const MAX_USTAR_NAME_BYTES: usize = 100;

/// Bytes that are digested and written at once.
const BUFFER_BYTES: usize = 1 << 18;

/// Largest member a USTAR header can describe: eleven octal digits.
const MAX_USTAR_MEMBER_BYTES: u64 = (1 << 33) - 1;

/// Where a member went in the shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberLocation {
    /// The member's extension.
    pub extension: String,
    /// First byte of its content in the tar.
    pub offset: u64,
    /// Bytes of content.
    pub num_bytes: u64,
}

/// What a finished shard holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSummary {
    /// Samples written.
    pub num_samples: u64,
    /// Size of the tar in bytes.
    pub num_bytes: u64,
    /// BLAKE3 digest of the tar, hexadecimal.
    pub digest: String,
}

/// Writes a shard under a temporary name; [`finish`](ShardWriter::finish) gives it its own.
///
/// The bytes are a function of the samples and their order: members are sorted by extension, mode 0444, owner
/// `bigdata`, modification time 0. Dropped before `finish`, it leaves nothing behind.
#[derive(Debug)]
pub struct ShardWriter {
    file: AtomicFile,
    path: PathBuf,
    /// What is not in the file yet. BLAKE3 digests large pieces several times as fast as what a sample consists of.
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
    position: u64,
    num_samples: u64,
}

impl ShardWriter {
    /// Starts the shard that will be called `path`; its directory must exist.
    ///
    /// # Errors
    /// [`ShardError::Io`] if the temporary file cannot be created.
    pub fn create(path: &Path) -> Result<ShardWriter, ShardError> {
        let file = AtomicFile::create(path).map_err(ShardError::io(path))?;
        Ok(ShardWriter {
            file,
            path: path.to_path_buf(),
            buffer: Vec::with_capacity(BUFFER_BYTES),
            hasher: blake3::Hasher::new(),
            position: 0,
            num_samples: 0,
        })
    }

    /// Samples written so far.
    #[must_use]
    pub fn num_samples(&self) -> u64 {
        self.num_samples
    }

    /// Bytes written so far.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.position
    }

    /// Appends a sample and returns where its members went, in the order written (sorted by extension).
    ///
    /// # Errors
    /// [`ShardError::Unwritable`], with nothing written, if the sample has no member, a member twice or an
    /// impossible extension; [`ShardError::Io`] if writing fails.
    pub fn push(&mut self, sample: &Sample) -> Result<Vec<MemberLocation>, ShardError> {
        let members = sample.members.iter();
        self.push_members(
            &sample.key,
            members.map(|it| (it.extension.as_str(), it.data.as_slice())).collect(),
        )
    }

    /// As [`push`](ShardWriter::push), for members that lie elsewhere: extension and content of each.
    ///
    /// # Errors
    /// As [`push`](ShardWriter::push).
    pub fn push_members(
        &mut self,
        key: &SampleKey,
        mut members: Vec<(&str, &[u8])>,
    ) -> Result<Vec<MemberLocation>, ShardError> {
        members.sort_by_key(|(extension, _)| *extension);
        self.check(key, &members)?;
        let mut locations = Vec::with_capacity(members.len());
        for (extension, data) in members {
            let name = format!("{key}.{extension}");
            self.write_file_header(name.as_bytes(), data.len() as u64)?;
            locations.push(MemberLocation {
                extension: extension.to_owned(),
                offset: self.position,
                num_bytes: data.len() as u64,
            });
            self.write_padded(data)?;
        }
        self.num_samples += 1;
        Ok(locations)
    }

    /// Closes the archive, makes it durable and gives it its name.
    ///
    /// # Errors
    /// [`ShardError::Io`] if any of that fails.
    pub fn finish(mut self) -> Result<ShardSummary, ShardError> {
        self.write(&TAR_END)?;
        self.flush()?;
        let ShardWriter { file, path, buffer: _, hasher, position, num_samples } = self;
        file.commit().map_err(ShardError::io(&path))?;
        let digest = hasher.finalize().to_hex().to_string();
        Ok(ShardSummary { num_samples, num_bytes: position, digest })
    }

    fn check(&self, key: &SampleKey, sorted: &[(&str, &[u8])]) -> Result<(), ShardError> {
        let unwritable = |extension: &str, problem| {
            Err(ShardError::Unwritable {
                path: self.path.clone(),
                key: key.to_string(),
                extension: crate::error::printable(extension),
                problem,
            })
        };
        if sorted.is_empty() {
            return unwritable("", "is missing: a sample needs at least one");
        }
        for (index, &(extension, data)) in sorted.iter().enumerate() {
            if extension.is_empty() {
                return unwritable(extension, "has an empty extension");
            }
            if extension.contains('/') || extension.chars().any(char::is_control) {
                return unwritable(extension, "has a slash or a control character in its extension");
            }
            if extension.len() > MAX_EXTENSION_BYTES {
                return unwritable(extension, "has an extension longer than 255 bytes");
            }
            if extension.to_lowercase() != extension {
                return unwritable(extension, "has an extension that is not lower case");
            }
            if index > 0 && sorted[index - 1].0 == extension {
                return unwritable(extension, "occurs twice");
            }
            if data.len() as u64 > MAX_USTAR_MEMBER_BYTES {
                return unwritable(extension, "is larger than 8 GiB");
            }
        }
        Ok(())
    }

    fn write_file_header(&mut self, name: &[u8], num_bytes: u64) -> Result<(), ShardError> {
        if name.len() <= MAX_USTAR_NAME_BYTES {
            return self.write(ustar_header(name, num_bytes, tar::EntryType::Regular).as_bytes());
        }
        let record = pax_path_record(name);
        let pax_header = ustar_header(b"pax-header", record.len() as u64, tar::EntryType::XHeader);
        self.write(pax_header.as_bytes())?;
        self.write_padded(&record)?;
        // Readers without pax see the start of the name.
        let shortened = &name[..MAX_USTAR_NAME_BYTES];
        self.write(ustar_header(shortened, num_bytes, tar::EntryType::Regular).as_bytes())
    }

    fn write_padded(&mut self, data: &[u8]) -> Result<(), ShardError> {
        self.write(data)?;
        self.write(&[0; BLOCK_BYTES as usize][..padding_bytes(data.len() as u64) as usize])
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), ShardError> {
        self.position += bytes.len() as u64;
        while self.buffer.len() + bytes.len() > BUFFER_BYTES {
            let (fitting, rest) = bytes.split_at(BUFFER_BYTES - self.buffer.len());
            self.buffer.extend_from_slice(fitting);
            self.flush()?;
            bytes = rest;
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), ShardError> {
        self.file.write_all(&self.buffer).map_err(ShardError::io(&self.path))?;
        self.hasher.update(&self.buffer);
        self.buffer.clear();
        Ok(())
    }
}

/// A header with the fixed owner, mode and time; `name` is at most 100 bytes.
fn ustar_header(name: &[u8], num_bytes: u64, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    // Not `set_path`: it normalises, and the name must come back byte for byte.
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_entry_type(kind);
    header.set_size(num_bytes);
    header.set_mode(MODE);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_username(OWNER).expect("a USTAR header has room for the owner");
    header.set_groupname(OWNER).expect("a USTAR header has room for the group");
    header.set_cksum();
    header
}

/// The pax record that carries a long name: its own length, in decimal, counts itself.
fn pax_path_record(name: &[u8]) -> Vec<u8> {
    let body_bytes = " path=".len() + name.len() + "\n".len();
    let mut length = body_bytes;
    while length != body_bytes + length.to_string().len() {
        length = body_bytes + length.to_string().len();
    }
    let mut record = length.to_string().into_bytes();
    record.extend_from_slice(b" path=");
    record.extend_from_slice(name);
    record.push(b'\n');
    record
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{ShardFile, ShardReader};

    fn sample(key: &str, members: &[(&str, &[u8])]) -> Sample {
        let mut sample = Sample::new(SampleKey::new(key).unwrap());
        for (extension, data) in members {
            sample.push(extension, data.to_vec());
        }
        sample
    }

    fn write(path: &Path, samples: &[Sample]) -> (ShardSummary, Vec<Vec<MemberLocation>>) {
        let mut writer = ShardWriter::create(path).unwrap();
        let locations = samples.iter().map(|sample| writer.push(sample).unwrap()).collect();
        (writer.finish().unwrap(), locations)
    }

    /// Any key and extensions a sample may have, long enough to need pax headers, with any content.
    fn any_sample() -> impl Strategy<Value = Sample> {
        let key = prop_oneof!["[a-z0-9 _-]{1,12}", "[a-zé\\\\]{90,120}"];
        let members = prop::collection::btree_map(
            prop_oneof!["[a-z0-9]{1,5}", "[a-z]{1,3}\\.[a-z]{1,3}"],
            prop::collection::vec(any::<u8>(), 0..1100),
            1..5,
        );
        (key, members).prop_map(|(key, members)| {
            let mut sample = Sample::new(SampleKey::new(key).unwrap());
            members.into_iter().for_each(|(extension, data)| sample.push(&extension, data));
            sample
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// What is written is read back, at the offsets the writer reported; a second writing gives the same
        /// bytes.
        #[test]
        fn write_then_read_is_identity(mut samples in prop::collection::vec(any_sample(), 0..6)) {
            // Two neighbours with the same key would be read as one sample.
            samples.dedup_by(|a, b| a.key == b.key);
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.tar");
            let (summary, locations) = write(&path, &samples);
            let read: Vec<Sample> = ShardReader::open(&path).unwrap().map(Result::unwrap).collect();
            prop_assert_eq!(read.len() as u64, summary.num_samples);
            let index = ShardFile::open(&path).unwrap();
            for ((sample, written), places) in read.iter().zip(&samples).zip(&locations) {
                prop_assert_eq!(&sample.key, &written.key);
                prop_assert_eq!(sample.members.len(), written.members.len());
                let resumed = ShardReader::open_at(&path, sample.offset).unwrap().next().unwrap().unwrap();
                prop_assert_eq!(&resumed, sample);
                for (member, place) in sample.members.iter().zip(places) {
                    prop_assert_eq!(&member.data, &written.member(&member.extension).unwrap().data);
                    prop_assert_eq!(member.offset, place.offset);
                    prop_assert_eq!(&member.extension, &place.extension);
                    prop_assert_eq!(&index.read(place.offset, place.num_bytes).unwrap(), &member.data);
                }
            }
            prop_assert_eq!(&crate::digest_file(&path).unwrap(), &summary.digest);
            prop_assert_eq!(std::fs::metadata(&path).unwrap().len(), summary.num_bytes);
            let again = dir.path().join("y.tar");
            prop_assert_eq!(write(&again, &samples).0, summary);
        }
    }

    #[test]
    fn layout_is_that_of_the_python_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        write(&path, &[sample("000000007", &[("txt", b"t"), ("jpg", b"j"), ("json", b"{}")])]);
        let mut archive = tar::Archive::new(std::fs::File::open(&path).unwrap());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            let header = entry.header();
            names.push(entry.path().unwrap().to_str().unwrap().to_owned());
            assert_eq!((header.mode().unwrap(), header.mtime().unwrap()), (0o444, 0));
            assert_eq!(header.username().unwrap(), Some("bigdata"));
            assert_eq!(header.groupname().unwrap(), Some("bigdata"));
            assert!(header.entry_type().is_file() && header.as_ustar().is_some());
        }
        assert_eq!(names, ["000000007.jpg", "000000007.json", "000000007.txt"]);
    }

    #[test]
    fn empty_shard_is_a_valid_tar() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let (summary, _) = write(&path, &[]);
        assert_eq!((summary.num_samples, summary.num_bytes), (0, 1024));
        assert!(ShardReader::open(&path).unwrap().next().is_none());
    }

    #[test]
    fn impossible_samples_are_refused_and_leave_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.tar");
        let mut writer = ShardWriter::create(&path).unwrap();
        let mut upper = sample("k", &[("jpg", b"")]);
        upper.members[0].extension = "JPG".into();
        let long = "x".repeat(256);
        for bad in [
            sample("k", &[]),
            sample("k", &[("", b"")]),
            sample("k", &[("a/b", b"")]),
            sample("k", &[("a\n", b"")]),
            sample("k", &[("jpg", b"1"), ("txt", b""), ("jpg", b"2")]),
            sample("k", &[(&long, b"")]),
            upper,
        ] {
            let error = writer.push(&bad).unwrap_err();
            assert!(matches!(&error, ShardError::Unwritable { .. }) && error.to_string().contains("`k`"));
        }
        assert_eq!((writer.num_samples(), writer.num_bytes()), (0, 0));
        drop(writer);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn pax_record_counts_itself() {
        // 98 and 99 digits of payload are where the decimal length grows from two digits to three.
        for name_bytes in [1, 86, 90, 91, 92, 93, 94, 990, 991, 992, 993] {
            let record = pax_path_record(&vec![b'n'; name_bytes]);
            let text = String::from_utf8(record.clone()).unwrap();
            assert_eq!(text.split_once(' ').unwrap().0.parse::<usize>().unwrap(), record.len());
        }
    }
}
