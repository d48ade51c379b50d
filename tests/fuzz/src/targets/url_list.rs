//! URL lists in parquet: any file, surveyed and read as `data-fetch` does.

use super::parquet::{WORDS, memory_bound, mend_footer, written};
use super::{Fixup, Target, seed_files, with_file};
use oqvl_data_fetch::{DataFetchConfig, DataFetchError, InputFormat, UrlList};
use oqvl_shard_io::ScoreTable;
use std::ops::ControlFlow;

pub(super) const TARGET: Target =
    Target { name: "parquet-list", run, seeds, words: WORDS, fixup: Fixup(mend_footer), memory_bound };

/// A damaged footer may claim any number of rows of nothing, which take no bytes of the file.
const MAX_ROWS: usize = 1000;

fn run(input: &[u8]) -> String {
    let config = DataFetchConfig {
        input_format: Some(InputFormat::Parquet),
        url_col: "key".to_owned(),
        save_additional_columns: vec!["clip_score".to_owned()],
        number_sample_per_shard: 7,
        ..DataFetchConfig::default()
    };
    with_file(input, |path| {
        let list = match UrlList::survey(&config, path, &|| Ok(())) {
            Ok(list) => list,
            Err(error) => return kind(&error),
        };
        let num_columns = list.columns().len();
        let mut num_rows = 0;
        let read = list.for_each_shard(&|_| true, &|| ControlFlow::Continue(()), &mut |shard| {
            assert!(
                shard.rows.len() as u64 <= list.rows_in_shard(shard.shard_idx),
                "a shard that is too long"
            );
            assert!(shard.rows.iter().all(|row| row.extra.len() == num_columns), "uneven rows");
            num_rows += shard.rows.len();
            if num_rows < MAX_ROWS { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        match read {
            Ok(()) => format!("{num_rows} rows, {num_columns} columns"),
            Err(error) => kind(&error),
        }
    })
}

/// The kind of an error and its first words.
fn kind(error: &DataFetchError) -> String {
    match error {
        DataFetchError::ListFormat { problem, .. } => problem.chars().take(40).collect(),
        DataFetchError::Config(wrong) => format!("the config does not fit: {}", wrong.key()),
        DataFetchError::ColumnType { column, .. } => format!("column {column} of a type that is not carried"),
        DataFetchError::ListChanged { .. } => "another number of rows than it claims".to_owned(),
        other => panic!("a damaged list is reported as {other:?}"),
    }
}

/// Scores look like lists with other names.
fn seeds() -> Vec<Vec<u8>> {
    let table = |rows: usize| ScoreTable {
        scorer: "clip".into(),
        model_digest: "d".into(),
        code_version: "0.1.0".into(),
        keys: (0..rows).map(|row| format!("http://a/{row}")).collect(),
        uids: (0..rows).map(|row| (row % 3 != 0).then(|| format!("{row:032x}"))).collect(),
        metrics: vec![(
            "clip_score".into(),
            (0..rows).map(|row| (row % 4 != 0).then_some(row as f64 / 7.0)).collect(),
        )],
        texts: vec![("caption".into(), (0..rows).map(|row| Some(format!("{row}\n"))).collect())],
    };
    let mut seeds =
        [0, 1, 40].map(|rows| written(|path| table(rows).write(path).expect("a good table"))).to_vec();
    // The parquet library panics on them.
    seeds.extend(seed_files!("parquet/bit_width.parquet", "parquet/short_page.parquet"));
    seeds
}
