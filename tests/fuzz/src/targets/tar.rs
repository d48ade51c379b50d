//! Shards: `ShardReader` over any bytes.

use super::{Fixup, Target, scratch, seed_files};
use oqvl_shard_io::{ReadLimits, Sample, SampleKey, ShardReader, ShardWriter};
use std::io::Read;
use std::path::Path;

pub(super) const TARGET: Target = Target {
    name: "tar",
    run,
    seeds,
    words: &[
        b"ustar\x0000",
        b"ustar  \0",
        b"././@LongLink\0",
        b"PaxHeaders/x",
        b"path=",
        b"size=",
        b"14 path=z.jpg\n",
        b"9 size=3\n",
        b"GNU.sparse.major=1",
        b".jpg\0",
        b".JSON\0",
        b".txt\0",
        b"../",
        b"/",
        b"00000000017\0",
        b"77777777777\0",
        b"\x80\0\0\0\0\0\0\0\0\0\x01\0",
        b"L",
        b"x",
        b"g",
        b"5",
    ],
    fixup: Fixup(mend_checksums),
    // Every byte is held once in a sample and once in the copy this target makes of it, growing in steps of two.
    memory_bound: |length| 8 * length + (4 << 20),
};

/// Small enough that a lying header cannot make an input slow, large enough to let every seed through.
const LIMITS: ReadLimits =
    ReadLimits { max_member_bytes: 1 << 20, max_sample_bytes: 2 << 20, max_members_per_sample: 64 };

fn run(input: &[u8]) -> String {
    let (samples, outcome) = read(input);
    check_contents(input, &samples);
    assert_eq!(read(Trickle { input, turn: 0 }), (samples.clone(), outcome.clone()), "depends on the pieces");
    check_prefix(input, &samples, &outcome);
    check_round_trip(&samples);
    format!("{} samples, {outcome}", if samples.is_empty() { "no" } else { "some" })
}

/// The samples up to the end or to the first error, and how it ended.
fn read(input: impl Read) -> (Vec<Sample>, String) {
    let mut samples = Vec::new();
    let mut reader = ShardReader::new(input, "x.tar", LIMITS);
    loop {
        match reader.next() {
            Some(Ok(sample)) => samples.push(sample),
            Some(Err(error)) => {
                assert!(reader.next().is_none(), "goes on after an error");
                // What stands between backquotes is the input's.
                let text = error.to_string();
                let kind: String = text.split('`').step_by(2).collect();
                return (samples, kind);
            }
            None => return (samples, "whole".to_owned()),
        }
    }
}

/// Members hold what stands at their place.
fn check_contents(input: &[u8], samples: &[Sample]) {
    let mut num_bytes = 0;
    for member in samples.iter().flat_map(|sample| &sample.members) {
        let start = member.offset as usize;
        assert_eq!(input.get(start..start + member.data.len()), Some(&member.data[..]), "another content");
        num_bytes += member.data.len();
    }
    assert!(num_bytes <= input.len(), "more data than the file has");
    for sample in samples {
        assert!(!sample.members.is_empty(), "an empty sample");
        let extensions: std::collections::BTreeSet<_> = sample.members.iter().map(|m| &m.extension).collect();
        assert_eq!(extensions.len(), sample.members.len(), "an extension twice in a sample");
    }
}

/// A file that was cut gives the same samples as far as it goes; only the last may be shorter.
fn check_prefix(input: &[u8], samples: &[Sample], outcome: &str) {
    let (cut, _) = read(&input[..input.len() / 2]);
    let Some((last, before)) = cut.split_last() else { return };
    assert_eq!(Some(before), samples.get(..before.len()), "a cut file begins with other samples");
    let Some(whole) = samples.get(before.len()) else {
        // Before damage nobody knows whether the sample went on; where a file just ends, it is handed out.
        assert_ne!(outcome, "whole", "a cut file has a sample more");
        return;
    };
    assert_eq!((&last.key, last.offset), (&whole.key, whole.offset));
    assert_eq!(last.members, whole.members[..last.members.len()], "the last sample of a cut file is another");
}

/// What was read can be written, and is then read as it was.
fn check_round_trip(samples: &[Sample]) {
    // Directories tell samples of one key apart; they are not kept.
    if samples.windows(2).any(|pair| pair[0].key == pair[1].key) {
        return;
    }
    let dir = scratch();
    let path = dir.path().join("x.tar");
    write(&path, samples);
    let again: Vec<Sample> =
        ShardReader::open(&path).expect("it was just written").map(|s| s.expect("we wrote it")).collect();
    let content = |sample: &Sample| {
        let mut members: Vec<_> =
            sample.members.iter().map(|m| (m.extension.clone(), m.data.clone())).collect();
        members.sort();
        (sample.key.clone(), members)
    };
    assert!(again.iter().map(content).eq(samples.iter().map(content)), "written samples are read otherwise");
}

fn write(path: &Path, samples: &[Sample]) {
    let mut writer = ShardWriter::create(path).expect("a temporary file can be made");
    for sample in samples {
        writer.push(sample).expect("what was read can be written");
    }
    writer.finish().expect("a temporary file can be written");
}

/// Gives its bytes in pieces of 1 to 700.
struct Trickle<'a> {
    input: &'a [u8],
    turn: usize,
}

impl Read for Trickle<'_> {
    fn read(&mut self, out: &mut [u8]) -> std::io::Result<usize> {
        const PIECES: [usize; 5] = [1, 512, 7, 700, 64];
        let count = PIECES[self.turn % PIECES.len()].min(out.len()).min(self.input.len());
        self.turn += 1;
        let (now, later) = self.input.split_at(count);
        out[..count].copy_from_slice(now);
        self.input = later;
        Ok(count)
    }
}

/// Writes the right checksum into every block that could be a header.
fn mend_checksums(input: &mut [u8]) {
    for block in input.chunks_exact_mut(512) {
        // Contents are left alone: a header has a name and ends in zeros.
        if block[0] == 0 || block[500..].iter().any(|&byte| byte != 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = scratch();
    let path = dir.path().join("x.tar");
    let samples = ["000000000", &"k".repeat(120), "ключ"].map(|key| {
        let mut sample = Sample::new(SampleKey::new(key).expect("a good key"));
        sample.push("jpg", vec![0xff; 700]);
        sample.push("json", br#"{"uid": "00000000000000000000000000000000"}"#.to_vec());
        sample.push("txt", b"a caption".to_vec());
        sample
    });
    write(&path, &samples);
    let written = std::fs::read(&path).expect("it was just written");
    let mut seeds = vec![written, Vec::new(), vec![0; 1024]];
    seeds.extend(seed_files!("tar/webdataset.tar", "tar/gnu.tar", "tar/pax.tar", "tar/v7.tar"));
    seeds
}
