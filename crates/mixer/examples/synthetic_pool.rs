//! Writes a metadata folder as DataComp publishes them, of any size: for measuring how selections grow.
//!
//! ```text
//! cargo run --release -p oqvl-mixer --example synthetic_pool -- WORK_DIR NUM_ROWS
//! ```
//!
//! In WORK_DIR: `metadata/{:08}.parquet` of a million rows each (uid, url, text, sizes, CLIP scores); `aesthetic.parquet`,
//! a score for half of the uids in another order; `dfn.npy`, the uids of 15 % of the rows and some more, in order, and
//! `shuffled.npy`, the same uids in no order; and `mixer.toml`, which selects by all of them.

use std::path::Path;
use std::sync::Arc;

use arrow_array::{ArrayRef, Float32Array, Float64Array, Int32Array, RecordBatch, StringArray};
use arrow_schema::{Field, Schema};
use oqvl_shard_io::{AtomicFile, TableWriter, Uid, UidWriter, write_atomic};
use rayon::prelude::*;

const ROWS_PER_FILE: u64 = 1_000_000;
const ROWS_PER_BATCH: u64 = 1 << 16;
const WORDS: [&str; 12] =
    ["red", "fox", "photo", "of", "the", "old", "church", "in", "summer", "two", "dogs", "playing"];

const CONFIG: &str = r#"seed = 7
[mixer]
metadata_dir = "metadata"
select = "union"
dedup = ["uid"]
[[mixer.table]]
name = "aesthetic"
path = "aesthetic.parquet"
on = "uid"
[[mixer.subset]]
name = "clip"
baseline = "clip_score"
arch = "l14"
fraction = 0.3
[[mixer.subset]]
name = "dfn"
uids = "dfn.npy"
[[mixer.subset]]
name = "shuffled"
uids = "shuffled.npy"
[[mixer.subset]]
name = "beautiful"
where = "aesthetic_score > 6 AND least(original_width, original_height) >= 200"
[[mixer.subset]]
name = "rare"
sql = "SELECT max(uid) AS uid FROM pool GROUP BY text HAVING count(*) = 1"
"#;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, dir, num_rows] = arguments.as_slice() else {
        return Err("usage: synthetic_pool WORK_DIR NUM_ROWS".into());
    };
    let (dir, num_rows): (&Path, u64) = (Path::new(dir), num_rows.parse()?);
    std::fs::create_dir_all(dir.join("metadata"))?;
    (0..num_rows.div_ceil(ROWS_PER_FILE)).into_par_iter().try_for_each(|file| {
        let rows = file * ROWS_PER_FILE..num_rows.min((file + 1) * ROWS_PER_FILE);
        write_table(&dir.join(format!("metadata/{file:08}.parquet")), rows, metadata)
    })?;
    // A step that is prime to the number of rows visits half of them in another order.
    let (half, step) = (num_rows / 2, (7_368_787 % num_rows.max(1)) | 1);
    let other_order = (0..half).map(|row| row * step % num_rows);
    write_table(&dir.join("aesthetic.parquet"), other_order, aesthetic)?;
    write_lists(dir, num_rows)?;
    write_atomic(&dir.join("mixer.toml"), CONFIG.as_bytes())?;
    Ok(())
}

/// Random bits of a row; the same in every run.
fn bits(row: u64, stream: u64) -> u64 {
    let mut z = (row ^ stream << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn share(row: u64, stream: u64) -> f64 {
    (bits(row, stream) >> 11) as f64 / (1_u64 << 53) as f64
}

fn uid(row: u64) -> Uid {
    Uid::from_halves(bits(row, 1), row)
}

fn text(row: u64) -> String {
    let words = 3 + bits(row, 2) % 9;
    let word = |index| WORDS[(bits(row, 10 + index) % 12) as usize];
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

/// The columns of a table, from the numbers of its rows.
type Columns = Vec<(&'static str, ArrayRef)>;

fn metadata(row: &[u64]) -> Columns {
    let side =
        |stream| Int32Array::from_iter_values(row.iter().map(|row| 50 + (bits(*row, stream) % 2000) as i32));
    let score =
        |stream| Float32Array::from_iter_values(row.iter().map(|row| share(*row, stream) as f32 * 0.4));
    let strings = |text: &dyn Fn(u64) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(row.iter().map(|row| text(*row))))
    };
    vec![
        ("uid", strings(&|row| uid(row).to_string())),
        (
            "url",
            strings(&|row| format!("https://host{}.example/{:x}.jpg", bits(row, 3) % 5000, bits(row, 4))),
        ),
        ("text", strings(&text)),
        ("original_width", Arc::new(side(5))),
        ("original_height", Arc::new(side(6))),
        ("clip_b32_similarity_score", Arc::new(score(7))),
        ("clip_l14_similarity_score", Arc::new(score(8))),
    ]
}

fn aesthetic(rows: &[u64]) -> Columns {
    let uids = StringArray::from_iter_values(rows.iter().map(|row| uid(*row).to_string()));
    let scores = Float64Array::from_iter_values(rows.iter().map(|row| 10.0 * share(*row, 9)));
    vec![("uid", Arc::new(uids)), ("aesthetic_score", Arc::new(scores))]
}

fn write_table(
    path: &Path,
    rows: impl Iterator<Item = u64>,
    columns: fn(&[u64]) -> Columns,
) -> Result<(), oqvl_shard_io::ShardError> {
    let mut writer: Option<TableWriter> = None;
    let all: Vec<u64> = rows.collect();
    for rows in all.chunks(ROWS_PER_BATCH as usize) {
        let columns = columns(rows);
        let fields: Vec<Field> =
            columns.iter().map(|(name, it)| Field::new(*name, it.data_type().clone(), true)).collect();
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns.into_iter().map(|(_, it)| it).collect());
        let batch = batch.expect("the columns are equally long");
        let open = match &mut writer {
            Some(writer) => writer,
            None => writer.insert(TableWriter::create(path, schema, &[])?),
        };
        open.write(&batch)?;
    }
    writer.map_or(Ok(()), TableWriter::finish)
}

fn write_lists(dir: &Path, num_rows: u64) -> Result<(), Box<dyn std::error::Error>> {
    use std::io::Write as _;
    // A few uids that no row has, as in real lists.
    let all = (0..num_rows + num_rows / 50).filter(|row| share(*row, 20) < 0.15).map(uid);
    let shuffled: Vec<Uid> = all.collect();
    let mut sorted = shuffled.clone();
    sorted.par_sort_unstable();
    let mut list = UidWriter::create(&dir.join("dfn.npy"), sorted.len() as u64)?;
    sorted.into_iter().try_for_each(|uid| list.push(uid))?;
    list.finish()?;
    // Without a header and out of order: records alone.
    let mut bare = AtomicFile::create(&dir.join("shuffled.npy"))?;
    for uid in shuffled {
        let (high, low) = uid.halves();
        bare.write_all(&high.to_le_bytes())?;
        bare.write_all(&low.to_le_bytes())?;
    }
    Ok(bare.commit()?)
}
