//! Shards against the Python `webdataset` library itself: it reads ours, we read its.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use oqvl_shard_io::{Sample, SampleKey, ShardReader, ShardWriter};
use oqvl_testkit::{PythonVenv, python_venv, tiny_shard};
use oqvl_tests::{scratch_dir, workspace_root};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The version that img2dataset and the DataComp tools were made with, and the newest one that was tried.
const VERSIONS: [&str; 2] = ["webdataset==0.2.31", "webdataset==1.0.2"];

fn library(version: &str) -> Option<PythonVenv> {
    python_venv("webdataset", &[version, "numpy<3"])
}

fn script(name: &str) -> std::path::PathBuf {
    workspace_root().join("tests/python").join(name)
}

/// What the library reads from a shard: for each sample its key, its members, and the whole line.
fn read_by_library(venv: &PythonVenv, shard: &Path) -> Vec<(String, BTreeMap<String, Vec<u8>>, Value)> {
    let output = venv.run(&script("read_shard.py"), &[shard.to_str().unwrap()]);
    let sample = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let members = line["members"].as_object().unwrap();
        let bytes = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap()).unwrap();
        let members = members.iter().map(|(name, value)| (name.clone(), bytes(value))).collect();
        (line["key"].as_str().unwrap().to_owned(), members, line)
    };
    output.lines().map(sample).collect()
}

fn members(sample: &Sample) -> BTreeMap<String, Vec<u8>> {
    sample.members.iter().map(|member| (member.extension.clone(), member.data.to_vec())).collect()
}

/// Extensions and contents of a sample's members.
type Parts<'a> = &'a [(&'a str, &'a [u8])];

/// Keys of a shard's samples, and of each sample its members in base64 by extension, as the scripts print them.
type PrintedShard = Vec<(String, BTreeMap<String, String>)>;

#[test]
fn the_library_reads_our_shards() {
    for version in VERSIONS {
        let Some(venv) = library(version) else { return };
        let dir = scratch_dir("webdataset-reads");
        let shard = dir.join("odd.tar");
        let mut writer = ShardWriter::create(&shard).unwrap();
        let long = "l".repeat(200);
        let odd: [(&str, Parts); 6] = [
            (
                "000000000",
                &[("jpg", b"\xff\xd8\xff"), ("json", b"{\"uid\": \"u\", \"n\": [1, null]}"), ("txt", b"one")],
            ),
            ("000000001", &[("jpg", b""), ("json", b"{}"), ("txt", b"")]),
            ("0123456789abcdef0123456789abcdef-0", &[("txt", "größer als ASCII \u{1f600}".as_bytes())]),
            ("000000003", &[("seg.png", b"1"), ("png", b"2"), ("txt", b"two dots")]),
            (&long, &[("txt", b"a name too long for a plain header")]),
            ("schlüssel mit leerzeichen", &[("txt", &[b'x'; 1024])]),
        ];
        for (key, parts) in odd {
            let mut sample = Sample::new(SampleKey::new(key).unwrap());
            parts.iter().for_each(|(extension, data)| sample.push(extension, data.to_vec()));
            writer.push(&sample).unwrap();
        }
        writer.finish().unwrap();
        let found = read_by_library(&venv, &shard);
        assert_eq!(found.len(), odd.len(), "{version}");
        for ((key, read, line), (expected, parts)) in found.iter().zip(odd) {
            assert_eq!(key, expected, "{version}");
            let parts: BTreeMap<_, _> =
                parts.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())).collect();
            assert_eq!(*read, parts, "{version}: {key}");
            let text = parts.get("txt").map(|text| String::from_utf8(text.clone()).unwrap());
            assert_eq!(line["txt"].as_str().map(str::to_owned), text, "{version}: {key}");
        }
        assert_eq!(found[0].2["json"], serde_json::json!({"uid": "u", "n": [1, null]}));

        // And one as the stages write them, with real images.
        let pairs = [("000000000", "a red square"), ("000000001", ""), ("000000002", "zwei Bäume")];
        let shard = tiny_shard(&dir, "00000", &pairs);
        let ours: Vec<Sample> = ShardReader::open(&shard).unwrap().map(Result::unwrap).collect();
        let theirs = read_by_library(&venv, &shard);
        assert_eq!(ours.len(), theirs.len());
        for (ours, (key, theirs, line)) in ours.iter().zip(&theirs) {
            assert_eq!((ours.key.as_str(), &members(ours)), (key.as_str(), theirs));
            let metadata: Option<Value> = ours.metadata().unwrap();
            assert_eq!(metadata.as_ref(), Some(&line["json"]));
        }
    }
}

#[test]
fn we_read_the_librarys_shards() {
    for version in VERSIONS {
        let Some(venv) = library(version) else { return };
        let dir = scratch_dir("webdataset-writes");
        let output = venv.run(&script("write_shard.py"), &[dir.to_str().unwrap()]);
        let shards: BTreeMap<String, PrintedShard> = serde_json::from_str(&output).unwrap();
        assert_eq!(shards.len(), 3);
        for (name, expected) in shards {
            let samples: Vec<Sample> =
                ShardReader::open(&dir.join(&name)).unwrap().map(Result::unwrap).collect();
            assert_eq!(samples.len(), expected.len(), "{version}: {name}");
            for (sample, (key, encoded)) in samples.iter().zip(expected) {
                // The library's key has the directory in front; a sample's key here is its file's.
                let file = key.rsplit('/').next().unwrap();
                assert_eq!(sample.key.as_str(), file, "{version}: {name}");
                let decoded: BTreeMap<String, Vec<u8>> = encoded
                    .into_iter()
                    .map(|(extension, text)| (extension, BASE64_STANDARD.decode(text).unwrap()))
                    .collect();
                assert_eq!(members(sample), decoded, "{version}: {name}: {key}");
            }
        }
    }
}
