//! Damaged and hostile tars: a named error with file, member and byte, never a panic, never a huge allocation.

use std::io::{self, Cursor, Read, Write};
use std::path::Path;

use oqvl_shard_io::{ReadLimits, Sample, ShardError, ShardReader, ShardWriter};
use proptest::prelude::*;

/// One raw tar entry: header (with a correct checksum), content, padding.
fn entry(kind: u8, name: &[u8], data: &[u8]) -> Vec<u8> {
    entry_with(kind, name, data, |_| {})
}

/// The same, after `edit` has changed the header block; the checksum is computed afterwards.
fn entry_with(kind: u8, name: &[u8], data: &[u8], edit: impl FnOnce(&mut [u8; 512])) -> Vec<u8> {
    let mut header = tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.as_mut_bytes()[156] = kind;
    edit(header.as_mut_bytes());
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(data);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    entry(b'0', name.as_bytes(), data)
}

/// Concatenates entries and closes the archive.
fn archive(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = entries.concat();
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

/// Reads everything: the samples before the first error, and that error.
fn read(bytes: &[u8]) -> (Vec<Sample>, Option<ShardError>) {
    read_within(bytes, ReadLimits::default())
}

fn read_within(bytes: &[u8], limits: ReadLimits) -> (Vec<Sample>, Option<ShardError>) {
    let mut samples = Vec::new();
    let mut reader = ShardReader::new(Cursor::new(bytes), "shard.tar", limits);
    while let Some(sample) = reader.next() {
        match sample {
            Ok(sample) => samples.push(sample),
            Err(error) => {
                assert!(reader.next().is_none(), "after an error the reader must end");
                return (samples, Some(error));
            }
        }
    }
    (samples, None)
}

/// `key: extension extension` per sample.
fn shape(samples: &[Sample]) -> Vec<String> {
    let one = |sample: &Sample| {
        let extensions: Vec<&str> = sample.members.iter().map(|m| m.extension.as_str()).collect();
        format!("{}: {}", sample.key, extensions.join(" "))
    };
    samples.iter().map(one).collect()
}

#[track_caller]
fn check_error(bytes: &[u8], expected_samples: &[&str], expected_message: &str) {
    let (samples, error) = read(bytes);
    assert_eq!(shape(&samples), expected_samples);
    let message = error.expect("the shard must be refused").to_string();
    assert!(message.starts_with("shard.tar: ") && message.contains(expected_message), "{message}");
}

#[track_caller]
fn check_samples(bytes: &[u8], expected: &[&str]) {
    let (samples, error) = read(bytes);
    assert!(error.is_none(), "{error:?}");
    assert_eq!(shape(&samples), expected);
}

#[test]
fn members_are_grouped_as_webdataset_does() {
    check_samples(&archive(&[]), &[]);
    check_samples(&archive(&[file("a.jpg", b"1")]), &["a: jpg"]);
    check_samples(
        &archive(&[file("a.jpg", b"1"), file("a.txt", b"2"), file("b.jpg", b"3"), file("a.json", b"4")]),
        &["a: jpg txt", "b: jpg", "a: json"],
    );
    // The key ends at the first dot of the file name; extensions are lower-cased.
    check_samples(&archive(&[file("a.seg.PNG", b""), file("a.JPG", b"")]), &["a: seg.png jpg"]);
    // An extension seen twice starts a new sample, also when only its case differs.
    check_samples(
        &archive(&[file("a.jpg", b""), file("a.JPG", b""), file("a.txt", b"")]),
        &["a: jpg", "a: jpg txt"],
    );
    // Directories group too, and a dot in a directory is not an extension.
    check_samples(
        &archive(&[
            entry(b'5', b"v1.0/", b""),
            file("v1.0/a.jpg", b""),
            file("./v1.0/b.jpg", b""),
            file("v2/b.txt", b""),
        ]),
        &["a: jpg", "b: jpg", "b: txt"],
    );
}

#[test]
fn offsets_point_at_the_data() {
    let bytes = archive(&[file("a.jpg", &[7; 513]), file("a.txt", b"caption")]);
    let (samples, _) = read(&bytes);
    for member in &samples[0].members {
        let start = member.offset as usize;
        assert_eq!(bytes[start..start + member.data.len()], member.data);
    }
    assert_eq!(samples[0].members[1].offset, 512 + 1024 + 512);
}

#[test]
fn a_missing_end_of_archive_is_told_after_all_samples() {
    let whole = [file("a.jpg", &[1; 600]), file("b.jpg", &[2; 700])].concat();
    let place = "ends at byte 3072, after `b.jpg`, without the closing block";
    check_error(&whole, &["a: jpg", "b: jpg"], place);
    assert_eq!(read(&whole).1.unwrap().shard_reason(), "unterminated-shard");
    check_error(b"", &[], "ends at byte 0, after `(start)`, without the closing block");
    // One zero block ends the archive as well, and what follows it is not read.
    check_samples(&[whole.clone(), vec![0; 512], b"rubbish".to_vec()].concat(), &["a: jpg", "b: jpg"]);
    let b_header = 512 + 1024;
    for (cut, samples, member) in [
        (whole.len() - 1, &["a: jpg"][..], "b.jpg"), // in the padding of b
        (b_header + 512 + 1, &["a: jpg"], "b.jpg"),  // in the data of b
        (b_header + 512, &["a: jpg"], "b.jpg"),      // before the data of b
        (b_header + 511, &[], "a.jpg"),              // in the header of b: whether a goes on is unknown
        (b_header - 1, &[], "a.jpg"),                // in the padding of a
        (1, &[], "(start)"),
    ] {
        check_error(&whole[..cut], samples, &format!("truncated at byte {cut}, in or after `{member}`"));
        assert_eq!(read(&whole[..cut]).1.unwrap().shard_reason(), "damaged-shard");
    }
}

#[test]
fn files_that_belong_to_no_sample_are_passed_over() {
    let names =
        ["README", "dir.d/README", "a.", ".jpg", "./._a.jpg", ".DS_Store", "a.jpg", "__index__", "a.txt"];
    let bytes = archive(&names.map(|name| file(name, &[7; 600])));
    check_samples(&bytes, &["a: jpg txt"]);
    let mut reader = ShardReader::new(Cursor::new(&bytes), "shard.tar", ReadLimits::default());
    assert_eq!(reader.by_ref().count(), 1);
    assert_eq!(reader.num_passed_over(), 7);
    // Their content is not read into memory, but it must be there.
    let lying = entry_with(b'0', b"README", b"", |block| block[124..136].copy_from_slice(b"77777777777\0"));
    check_error(&archive(&[file("a.jpg", b"1"), lying]), &[], "truncated");
}

#[test]
fn damaged_headers_are_errors() {
    let mut bad_checksum = archive(&[file("a.jpg", b"x"), file("b.jpg", b"y")]);
    bad_checksum[1024] ^= 1;
    check_error(&bad_checksum, &[], "damaged tar header at byte 1024, after `a.jpg`: the checksum");
    check_error(&[b'x'; 512], &[], "damaged tar header at byte 0");
    let with_size = |field: &[u8; 12]| {
        archive(&[entry_with(b'0', b"a.jpg", b"", |block| block[124..136].copy_from_slice(field))])
    };
    check_error(&with_size(b"-0000000001\0"), &[], "not octal");
    check_error(&with_size(b"0000000000z\0"), &[], "not octal");
    check_error(&with_size(&[0xff; 12]), &[], "negative");
    check_error(&with_size(b"\x80\0\x01\0\0\0\0\0\0\0\0\0"), &[], "64 bits");
}

#[test]
fn a_lying_size_is_an_error_not_an_allocation() {
    let claim = |size: &[u8; 12]| {
        archive(&[entry_with(b'0', b"a.jpg", b"data", |block| block[124..136].copy_from_slice(size))])
    };
    // 8 GiB - 1, and 2^64 - 1 in base 256: above the member limit.
    check_error(&claim(b"77777777777\0"), &[], "sample `a` at byte 0: member size in bytes is 8589934591");
    check_error(&claim(b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff"), &[], "above the limit of 268435456");
    // 200 MiB is within the limit, but the bytes never come.
    check_error(&claim(b"01440000000\0"), &[], "truncated at byte 2048, in or after `a.jpg`");
}

#[test]
fn limits_hold() {
    let limits = ReadLimits { max_member_bytes: 10, max_sample_bytes: 15, max_members_per_sample: 2 };
    let check = |members: &[(&str, usize)], expected: Option<&str>| {
        let entries: Vec<_> = members.iter().map(|(name, size)| file(name, &vec![0; *size])).collect();
        let (_, error) = read_within(&archive(&entries), limits);
        match (error, expected) {
            (None, None) => {}
            (Some(error), Some(part)) => assert!(error.to_string().contains(part), "{error}"),
            (error, _) => panic!("{members:?}: {error:?}, expected {expected:?}"),
        }
    };
    check(&[("a.x", 10), ("a.y", 5), ("b.x", 10), ("b.y", 5)], None);
    check(&[("a.x", 11)], Some("sample `a` at byte 0: member size"));
    check(&[("a.x", 10), ("a.y", 6)], Some("sample `a` at byte 1024: sample size"));
    check(&[("a.x", 1), ("a.y", 1), ("a.z", 1)], Some("sample `a` at byte 2048: number of members is 3"));
}

#[test]
fn hostile_names_are_errors() {
    for (name, problem) in [
        ("../a.jpg", "outside the shard"),
        ("x/../../a.jpg", "outside the shard"),
        ("/etc/a.jpg", "absolute"),
        ("a\n.jpg", "control character"),
        ("a.j\u{7f}g", "control character"),
    ] {
        check_error(&archive(&[file("k.txt", b""), file(name, b"x")]), &[], problem);
    }
    check_error(&archive(&[entry(b'0', b"\xff\xfe.jpg", b"")]), &[], "not utf-8");
}

#[test]
fn links_and_devices_are_errors() {
    for kind in *b"12346SVMNDZ" {
        let bytes = archive(&[file("k.txt", b""), entry(kind, b"a.jpg", b"")]);
        check_error(
            &bytes,
            &[],
            &format!("entry `a.jpg` at byte 512 is not a plain file (tar type `{}`)", kind as char),
        );
    }
}

#[test]
fn long_names_in_both_dialects() {
    let key = "k".repeat(150);
    let name = format!("{key}.jpg");
    let gnu = entry(b'L', b"././@LongLink", format!("{name}\0").as_bytes());
    check_samples(&archive(&[gnu.clone(), file("short.jpg", b"x")]), &[&format!("{key}: jpg")]);
    let pax = |records: &str| entry(b'x', b"PaxHeaders/x", records.as_bytes());
    let length = " path=\n".len() + name.len() + 3;
    let path_record = format!("{length} path={name}\n");
    check_samples(&archive(&[pax(&path_record), file("short.jpg", b"x")]), &[&format!("{key}: jpg")]);
    let long_extension = format!("a.{}", "e".repeat(256));
    let gnu_extension = entry(b'L', b"././@LongLink", long_extension.as_bytes());
    check_error(&archive(&[gnu_extension, file("short.jpg", b"x")]), &[], "longer than 255 bytes");
    // The extension holds for one entry only, and global records are passed over.
    check_samples(
        &archive(&[
            entry(b'g', b"g", b"14 path=z.jpg\n"),
            gnu.clone(),
            file("s.jpg", b""),
            file("t.jpg", b""),
        ]),
        &[&format!("{key}: jpg"), "t: jpg"],
    );
    // A pax size overrides the header's; it must fit the file and the limits like any other.
    check_samples(
        &archive(&[pax("9 size=3\n"), entry_with(b'0', b"a.jpg", b"abc", |b| b[124..136].fill(b'0'))]),
        &["a: jpg"],
    );
    check_error(
        &archive(&[pax("29 size=18446744073709551615\n"), file("a.jpg", b"x")]),
        &[],
        "above the limit",
    );
    for (bad, problem) in [
        (pax("9 size=x\n"), "the pax size is no number"),
        (pax("30 size=118446744073709551615\n"), "the pax size is no number"),
        (pax("999 path=x\n"), "malformed pax record"),
        (pax("rubbish"), "malformed pax record"),
        (pax("22 GNU.sparse.major=1\n"), "sparse"),
        (entry_with(b'x', b"x", b"", |b| b[124..136].copy_from_slice(b"00777777777\0")), "longer than 1 MiB"),
        (entry_with(b'L', b"x", b"", |b| b[124..136].copy_from_slice(b"00777777777\0")), "longer than 4096"),
    ] {
        check_error(&archive(&[bad, file("a.jpg", b"x")]), &[], problem);
    }
    // An extension header without its entry.
    check_error(&archive(&[gnu]), &[], "truncated");
}

#[test]
fn very_many_members_stream() {
    /// An endless supply of the same few entries, closed after `left` bytes.
    struct Repeat {
        entry: Vec<u8>,
        at: usize,
        left: u64,
    }
    impl Read for Repeat {
        fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
            let piece = &self.entry[self.at..];
            let count = piece.len().min(out.len()).min(self.left as usize);
            out[..count].copy_from_slice(&piece[..count]);
            self.at = (self.at + count) % self.entry.len();
            self.left -= count as u64;
            Ok(count)
        }
    }
    let entry = file("a.txt", b"");
    let num_members = 300_000;
    let left = (entry.len() * num_members) as u64;
    let reader = ShardReader::new(Repeat { entry, at: 0, left }, "shard.tar", ReadLimits::default());
    let (samples, ends): (Vec<bool>, Vec<bool>) =
        reader.map(|sample| sample.is_ok()).partition(|is_ok| *is_ok);
    assert_eq!((samples.len(), ends.len()), (num_members, 1), "all samples, then the missing end");
}

#[test]
fn a_failing_reader_is_reported_with_its_place() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is gone"))
        }
    }
    let reader = Cursor::new(file("a.jpg", b"x")).chain(Failing);
    let mut reader = ShardReader::new(reader, "shard.tar", ReadLimits::default());
    let error = reader.next().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "shard.tar: reading failed at byte 1024, in or after `a.jpg`");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the disk is gone");
    assert!(reader.next().is_none());
}

/// A valid shard of three samples, as bytes, one of them with a name long enough for a pax header.
fn valid_shard() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.tar");
    let mut writer = ShardWriter::create(Path::new(&path)).unwrap();
    for key in ["000000000", &"k".repeat(120), "000000002"] {
        let mut sample = Sample::new(key.parse().unwrap());
        sample.push("jpg", vec![0xff; 700]);
        sample.push("json", br#"{"uid": "00000000000000000000000000000000"}"#.to_vec());
        sample.push("txt", b"a caption".to_vec());
        writer.push(&sample).unwrap();
    }
    writer.finish().unwrap();
    std::fs::read(&path).unwrap()
}

/// Every promise that holds for any input: bounded output, an error that names the file.
fn check_robust(bytes: &[u8]) {
    let (samples, error) = read(bytes);
    let data: usize = samples.iter().flat_map(|s| &s.members).map(|m| m.data.len()).sum();
    assert!(data <= bytes.len(), "more data than the file has");
    for member in samples.iter().flat_map(|sample| &sample.members) {
        let start = member.offset as usize;
        assert_eq!(bytes[start..start + member.data.len()], member.data);
    }
    if let Some(error) = error {
        assert!(error.to_string().starts_with("shard.tar: "), "{error}");
    }
}

/// A look that passes over the images sees what a whole reading sees, but for their data.
fn check_look(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
    let outcome = |sample: Result<Sample, ShardError>| sample.map_err(|error| error.to_string());
    let hollowed = |mut sample: Sample| {
        sample.members.iter_mut().filter(|it| it.extension == "jpg").for_each(|it| it.data.clear());
        sample
    };
    let seen = ShardReader::open_without(path, |extension| extension == "jpg").unwrap().map(outcome);
    let read = ShardReader::open(path).unwrap().map(|sample| outcome(sample).map(hollowed));
    assert_eq!(seen.collect::<Vec<_>>(), read.collect::<Vec<_>>());
}

/// Whatever the reader hands out can be written again.
fn check_rewritable(bytes: &[u8]) {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = ShardWriter::create(&dir.path().join("x.tar")).unwrap();
    for sample in read(bytes).0 {
        writer.push(&sample).unwrap();
    }
}

#[test]
fn every_truncation_is_survived() {
    let bytes = valid_shard();
    let dir = tempfile::tempdir().unwrap();
    for end in 0..=bytes.len() {
        check_robust(&bytes[..end]);
        // Around the ends of blocks, and some between: writing files takes longer than reading them.
        if end % 512 < 2 || end % 13 == 0 {
            check_look(&dir.path().join("x.tar"), &bytes[..end]);
        }
    }
}

#[test]
fn a_look_passes_over_images_of_any_size() {
    let dir = tempfile::tempdir().unwrap();
    let image = |name: &str, num_bytes: usize| file(name, &vec![7; num_bytes]);
    let bytes = archive(&[
        image("a.jpg", 100_000),
        file("a.txt", b"a caption"),
        image("b.jpg", 0),
        image("b.png", 20_000),
        image("c.jpg", 5000),
    ]);
    check_look(&dir.path().join("x.tar"), &bytes);
    // Ends in the midst of an image that is passed over by seeking, and at its last byte.
    for end in [50_000, 512 + 100_000, bytes.len() - 1024 - 5000] {
        check_look(&dir.path().join("x.tar"), &bytes[..end]);
    }
}

#[test]
fn every_flipped_byte_is_survived() {
    let mut bytes = valid_shard();
    for index in 0..bytes.len() {
        for flip in [0x01, 0x80, 0xff] {
            bytes[index] ^= flip;
            check_robust(&bytes);
            bytes[index] ^= flip;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Headers whose checksum is right although any of their bytes are not: the checks behind it hold too.
    #[test]
    fn rewritten_headers_are_survived(
        edits in prop::collection::vec((0..512_usize, any::<u8>()), 1..8),
        kind in prop::sample::select(b"0\x005LKxg12S7".to_vec()),
        data in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        let hostile = entry_with(kind, b"a.jpg", &data, |block| {
            edits.iter().for_each(|&(at, byte)| block[at] = byte);
        });
        let bytes = archive(&[file("k.jpg", b"1"), hostile, file("z.jpg", b"2")]);
        check_robust(&bytes);
        check_rewritable(&bytes);
        let dir = tempfile::tempdir().unwrap();
        check_look(&dir.path().join("x.tar"), &bytes);
    }

    #[test]
    fn noise_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        check_robust(&bytes);
    }
}
