//! uid subsets: `UidSubset::read` on any file.

use super::{Fixup, Target, scratch, seed_files, with_file};
use oqvl_shard_io::{ShardError, Uid, UidSubset};

pub(super) const TARGET: Target = Target {
    name: "npy",
    run,
    seeds,
    words: &[
        b"\x93NUMPY\x01\x00\x76\x00",
        b"\x93NUMPY\x02\x00\x76\x00\x00\x00",
        b"{'descr': [('f0', '<u8'), ('f1', '<u8')], 'fortran_order': False, 'shape': (2,), }",
        b"'shape': (",
        b"(1, 2)",
        b"(18446744073709551615,)",
        b"True",
        b"<i8",
        b"|V16",
        b"\n",
    ],
    fixup: Fixup(|_| {}),
    memory_bound: |length| 8 * length + (1 << 20),
};

fn run(input: &[u8]) -> String {
    with_file(input, |path| match UidSubset::read(path) {
        Ok(subset) => {
            assert!(subset.len() * 16 <= input.len(), "more uids than the file has");
            let uids: Vec<Uid> = subset.iter().collect();
            assert!(uids.windows(2).all(|pair| pair[0] < pair[1]), "not sorted, or twice");
            let dir = scratch();
            let again = dir.path().join("x.npy");
            subset.write(&again).expect("a temporary file can be written");
            assert_eq!(
                UidSubset::read(&again).expect("we wrote it"),
                subset,
                "written uids are read otherwise"
            );
            format!("{} uids", if subset.is_empty() { "no" } else { "some" })
        }
        Err(ShardError::Npy { problem, .. }) => problem,
        Err(other) => panic!("a damaged file is reported as {other:?}"),
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let dir = scratch();
    let path = dir.path().join("x.npy");
    let subset: UidSubset = (0..5).map(|n| Uid::from_halves(n / 2, n * 1000)).collect();
    subset.write(&path).expect("a temporary file can be written");
    let written = std::fs::read(&path).expect("it was just written");
    let bare = written[written.len() - 80..].to_vec();
    let mut seeds = vec![written, bare, Vec::new()];
    seeds.extend(seed_files!("npy/sorted.npy", "npy/version2.npy", "npy/other_dtype.npy"));
    seeds
}
