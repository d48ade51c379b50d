//! Weights: `read_weights` on any file of torch, on any pickle in a sound archive, and on any safetensors file.

use super::{Fixup, Target, scratch};
use candle_core::{DType, Device};
use oqvl_model::{ModelError, WeightsError, read_weights};
use std::collections::BTreeSet;

/// Files that the tests of `oqvl-model` read too.
macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        vec![$(
            include_bytes!(concat!("../../../../crates/model/tests/fixtures/weights/", $name)).to_vec()
        ),*]
    };
}

/// Whole archives.
pub(super) const TORCH: Target = Target {
    name: "torch",
    run: |input| run("x.pt", input),
    seeds: || {
        let mut seeds = fixtures!["protocol2.pt", "protocol4.pt", "legacy.pt", "script.pt"];
        seeds.push(stored(&[("x/data.pkl", PICKLE), ("x/byteorder", b"little"), ("x/data/0", &[7; 96])]));
        seeds
    },
    words: &[
        b"PK\x01\x02",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"data.pkl",
        b"data/0",
        b"byteorder",
    ],
    fixup: Fixup(mend_checksums),
    memory_bound,
};

/// The pickle alone, with two storages beside it.
pub(super) const PICKLES: Target = Target {
    name: "pickle",
    run: |input| {
        let entries = [("x/data.pkl", input), ("x/data/0", &[7; 96][..]), ("x/data/1", &[7; 24])];
        run("x.pt", &stored(&entries))
    },
    seeds: || {
        vec![PICKLE.to_vec(), b"\x80\x02}q\x00.".to_vec(), b"\x80\x04\x95\x02\0\0\0\0\0\0\0}\x94.".to_vec()]
    },
    words: &[
        b"ctorch._utils\n_rebuild_tensor_v2\n",
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch\nHalfStorage\n",
        b"ctorch\nLongStorage\n",
        b"ccollections\nOrderedDict\n)R",
        b"cos\nsystem\n",
        b"\x8c\x05torch\x8c\x0cFloatStorage\x93",
        b"X\x01\0\0\0a",
        b"X\x07\0\0\0storage",
        b"h\x00",
        b"q\x00",
        b"\x94",
        b"}(",
        b"](",
        b"u",
        b"e",
        b"t",
        b"tQ",
        b"tR",
        b"\x85",
        b"\x86",
        b"\x8a\x08\0\0\0\0\0\0\0\x80",
        b"J\xff\xff\xff\xff",
        b".",
    ],
    fixup: Fixup(|_| {}),
    memory_bound,
};

/// A file with a JSON header.
pub(super) const SAFETENSORS: Target = Target {
    name: "safetensors",
    run: |input| run("x.safetensors", input),
    seeds: || fixtures!["dtypes.safetensors", "dtypes.expected.safetensors"],
    words: &[
        br#""dtype":"F16""#,
        br#""dtype":"F4""#,
        br#""shape":[2,3]"#,
        b"[0,0]",
        br#""data_offsets":[0,8]"#,
        b"18446744073709551615",
        br#""__metadata__":{"a":"b"},"#,
        b"{",
        b"}",
        b",",
    ],
    fixup: Fixup(mend_header_length),
    memory_bound,
};

/// An element of a byte becomes one of 8, four tensors may share it, each is held twice while it is made; objects of
/// a pickle take the rest.
fn memory_bound(length: usize) -> usize {
    512 * length + (4 << 20)
}

fn run(name: &str, input: &[u8]) -> String {
    let dir = scratch();
    let path = dir.path().join(name);
    let mut file = std::fs::File::create(&path).expect("a temporary file can be made");
    std::io::Write::write_all(&mut file, input).expect("a temporary file can be written");
    match read_weights(&path, &Device::Cpu) {
        Ok(tensors) => {
            let mut kinds = BTreeSet::new();
            for tensor in tensors.values() {
                let values = tensor.flatten_all().and_then(|all| all.to_dtype(DType::F32)?.to_vec1::<f32>());
                let count = values.expect("what was read can be looked at").len();
                assert_eq!(count, tensor.elem_count(), "elements that are not there");
                kinds.insert(match (tensor.rank(), count) {
                    (_, 0) => "empty",
                    (0, _) => "scalar",
                    (1, _) => "vector",
                    _ => "matrix",
                });
            }
            format!("tensors: {kinds:?}")
        }
        Err(ModelError::Read { source, .. }) => match source.downcast_ref::<WeightsError>() {
            // What a hostile file says comes with the reason; only the reason is a kind of outcome.
            Some(WeightsError::Global { .. }) => "a name that is not known".to_owned(),
            Some(WeightsError::Archive { problem }) => {
                problem.split('`').next_back().unwrap_or("").to_owned()
            }
            Some(error) => error.to_string().split(['`', '"', '\\']).next().unwrap_or("").to_owned(),
            None => source.to_string(),
        },
        Err(other) => panic!("a damaged file is reported as {other:?}"),
    }
}

/// `{"a": tensor of four numbers}`, as torch writes it.
const PICKLE: &[u8] = b"\x80\x02}q\x00X\x01\0\0\0aq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\0\0\0storageq\x03\
ctorch\nFloatStorage\nq\x04X\x01\0\0\0\x30q\x05X\x03\0\0\0cpuq\x06K\x18tq\x07QK\x00K\x02K\x02\x86q\x08K\x02K\x01\x86q\x09\
\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.";

/// A zip archive of stored entries.
fn stored(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let offset = (file.len() as u32).to_le_bytes();
        let sizes = [(bytes.len() as u32).to_le_bytes(); 2].concat();
        let name_length = (name.len() as u16).to_le_bytes();
        // Version, flags, method, time, date; checksum, sizes, length of the name, of extra fields.
        let common = [
            &[20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0][..],
            &crc32fast::hash(bytes).to_le_bytes(),
            &sizes,
            &name_length,
            &[0; 2],
        ]
        .concat();
        file.extend([b"PK\x03\x04", &common[..], name.as_bytes(), bytes].concat());
        directory.extend([b"PK\x01\x02\x14\0", &common[..], &[0; 10], &offset, name.as_bytes()].concat());
    }
    let count = (entries.len() as u16).to_le_bytes();
    let (start, length) = ((file.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
    let end = [b"PK\x05\x06\0\0\0\0", &count[..], &count, &length, &start, &[0; 2]].concat();
    [file, directory, end].concat()
}

/// Writes the checksum of every entry whose place and length are known into the directory.
fn mend_checksums(input: &mut [u8]) {
    const HEADER: usize = 46;
    let number = |bytes: &[u8], at: usize, width: usize| {
        bytes[at..at + width].iter().rev().fold(0_usize, |number, byte| number << 8 | usize::from(*byte))
    };
    for at in 0..input.len().saturating_sub(HEADER) {
        if !input[at..].starts_with(b"PK\x01\x02") {
            continue;
        }
        let (size, local) = (number(input, at + 20, 4), number(input, at + 42, 4));
        if local.checked_add(30).is_none_or(|end| end > input.len()) {
            continue;
        }
        let start = local + 30 + number(input, local + 26, 2) + number(input, local + 28, 2);
        if let Some(bytes) = start.checked_add(size).and_then(|end| input.get(start..end)) {
            let checksum = crc32fast::hash(bytes).to_le_bytes();
            input[at + 16..at + 20].copy_from_slice(&checksum);
        }
    }
}

/// Writes the length of the header: up to the last brace.
fn mend_header_length(input: &mut [u8]) {
    if let Some(end) = input.iter().rposition(|byte| *byte == b'}').filter(|end| *end >= 8) {
        input[..8].copy_from_slice(&(end as u64 - 7).to_le_bytes());
    }
}
