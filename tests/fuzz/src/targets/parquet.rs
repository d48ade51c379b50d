//! Score sidecars and pack plans: parquet files that are anything.

use super::{Fixup, Target, scratch, seed_files, with_file};
use oqvl_shard_io::{
    ImageEncoding, ImageRef, ImageShrink, Pack, PackInfo, ScoreTable, ShardError, read_plan, write_plan,
};
use std::path::Path;

pub(super) const SCORES: Target = Target {
    name: "parquet-scores",
    run: run_scores,
    seeds: score_seeds,
    words: WORDS,
    fixup: Fixup(mend_footer),
    memory_bound,
};

pub(super) const PLAN: Target = Target {
    name: "parquet-plan",
    run: run_plan,
    seeds: plan_seeds,
    words: WORDS,
    fixup: Fixup(mend_footer),
    memory_bound,
};

pub(super) const WORDS: &[&[u8]] = &[
    b"PAR1",
    b"PARE",
    b"ARROW:schema",
    b"scorer",
    b"model_digest",
    b"input_ids",
    b"\x15\x00\x15",
    b"\x19\x4c",
    b"\x28\xb5\x2f\xfd",
    b"\xff\xff\xff\xff\x0f",
    b"\x80\x80\x80\x80\x08",
];

/// The formats' readers hold a batch of rows, decompressed.
pub(super) fn memory_bound(length: usize) -> usize {
    256 * length + (64 << 20)
}

fn run_scores(input: &[u8]) -> String {
    with_file(input, |path| match ScoreTable::read(path) {
        Ok(table) => {
            let rows = table.keys.len();
            assert_eq!(table.uids.len(), rows, "uneven columns");
            assert!(table.metrics.iter().all(|(_, scores)| scores.len() == rows), "uneven columns");
            assert!(table.texts.iter().all(|(_, texts)| texts.len() == rows), "uneven columns");
            let dir = scratch();
            let again = dir.path().join("x.parquet");
            // Only a table with a column name twice cannot be written.
            if table.write(&again).is_ok() {
                let read = ScoreTable::read(&again).expect("we wrote it");
                // NaN is not equal to itself.
                assert_eq!(format!("{read:?}"), format!("{table:?}"), "a written table is read otherwise");
            }
            format!("{rows} rows")
        }
        Err(error) => kind(&error),
    })
}

fn run_plan(input: &[u8]) -> String {
    with_file(input, |path| match read_plan(path) {
        Ok((info, packs)) => {
            for pack in &packs {
                assert_eq!(pack.keys.len(), pack.lengths.len(), "a pack with uneven lists");
            }
            let dir = scratch();
            let again = dir.path().join("x.parquet");
            write_plan(&again, &info, &packs).expect("what was read can be written");
            assert_eq!(
                read_plan(&again).expect("we wrote it"),
                (info, packs),
                "a written plan is read otherwise"
            );
            "a plan".to_owned()
        }
        Err(error) => kind(&error),
    })
}

/// The kind of an error and its first words.
fn kind(error: &ShardError) -> String {
    match error {
        ShardError::Parquet { source, .. } => {
            let text = source.to_string();
            format!("parquet: {}", text.chars().take(40).collect::<String>())
        }
        ShardError::Table { column, problem, .. } if column.len() < 20 => {
            format!("table: {column}: {problem}")
        }
        ShardError::Table { .. } => "table: a strange column".to_owned(),
        other => panic!("a damaged file is reported as {other:?}"),
    }
}

/// Writes the magic and a footer length that fits at the end.
pub(super) fn mend_footer(input: &mut [u8]) {
    if input.len() < 12 {
        return;
    }
    input[..4].copy_from_slice(b"PAR1");
    let end = input.len();
    input[end - 4..].copy_from_slice(b"PAR1");
    let claimed = u32::from_le_bytes(input[end - 8..end - 4].try_into().expect("four bytes"));
    if claimed as usize > end - 12 {
        let fitting = (end as u32 - 12).to_le_bytes();
        input[end - 8..end - 4].copy_from_slice(&fitting);
    }
}

/// The bytes of a file that `write` makes.
pub(super) fn written(write: impl FnOnce(&Path)) -> Vec<u8> {
    let dir = scratch();
    let path = dir.path().join("x.parquet");
    write(&path);
    std::fs::read(&path).expect("it was just written")
}

fn score_seeds() -> Vec<Vec<u8>> {
    let table = |rows: usize| ScoreTable {
        scorer: "clip".into(),
        model_digest: "d".into(),
        code_version: "0.1.0".into(),
        keys: (0..rows).map(|row| format!("{row:09}")).collect(),
        uids: (0..rows).map(|row| (row % 3 != 0).then(|| format!("{row:032x}"))).collect(),
        metrics: vec![(
            "clip_score".into(),
            (0..rows).map(|row| (row % 4 != 0).then_some(row as f64 / 7.0)).collect(),
        )],
        texts: vec![("raw".into(), (0..rows).map(|row| Some(format!("{row}\n"))).collect())],
    };
    let mut seeds =
        [0, 1, 40].map(|rows| written(|path| table(rows).write(path).expect("a good table"))).to_vec();
    // The parquet library panics on it: a level of more bits than there are.
    seeds.extend(seed_files!("parquet/bit_width.parquet"));
    seeds
}

fn plan_seeds() -> Vec<Vec<u8>> {
    let info = PackInfo {
        seq_len: 32,
        num_image_tokens: 9,
        tokenizer_digest: "d".into(),
        images_dir: "mixer".into(),
        image_shrink: ImageShrink::None,
    };
    let pack = |number: u32| Pack {
        input_ids: vec![1, -200, 198, 5, 2],
        lengths: vec![13],
        keys: vec![format!("{number:09}")],
        images: vec![ImageRef {
            shard: "00000000.tar".into(),
            key: format!("{number:09}"),
            offset: 512,
            num_bytes: 700,
            encoding: ImageEncoding::default(),
        }],
    };
    let mut seeds = [0, 1, 20]
        .map(|packs| {
            let packs: Vec<Pack> = (0..packs).map(pack).collect();
            written(|path| write_plan(path, &info, &packs).expect("a good plan"))
        })
        .to_vec();
    // The parquet library panics on it: a page shorter than its lengths say.
    seeds.extend(seed_files!("parquet/short_page.parquet"));
    seeds
}
