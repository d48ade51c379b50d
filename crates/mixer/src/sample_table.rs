//! The metadata of samples as typed columns: what SQL sees of a shard.
//!
//! Columns, in this order: `shard`, `shard_index`, `position`, `key`, `uid`, `caption`; then every column of the
//! shard's own parquet (types carried through) or, where there is none for every sample, every field of the `json`
//! members; then the score sidecars. A field that has the name of one of the first six becomes `original_{name}`.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, NullArray, RecordBatch, StringArray,
    UInt32Array,
};
use arrow_schema::{Field, Schema};
use datafusion::arrow::compute::{concat_batches, take};
use oqvl_shard_io::{ScoreTable, without_parquet_panic};
use serde_json::{Map, Value};

use crate::MixerError;
use crate::columns::texts;
use crate::parquet_scan::{Batches, open_table};

/// Longest text that is kept of a caption or a field; of a longer one there is no value. A column of a piece of the
/// index is so held in less than 2 GiB, which is what it can.
const MAX_TEXT_BYTES: usize = 64 << 10;

/// Most texts that are kept of the fields of one sample, in bytes: bounds what a piece of the index holds in memory.
const MAX_SAMPLE_BYTES: usize = 256 << 10;

/// Most `json` fields that become columns: those that are met first.
const MAX_FIELDS: usize = 1000;

/// Columns every pool of shards has; a field of the same name is renamed.
pub(crate) const FIXED_COLUMNS: [&str; 6] = ["shard", "shard_index", "position", "key", "uid", "caption"];

/// The name under which a score of sidecar `index` is stored; SQL sees another one, see
/// [`public_names`](crate::columns::public_names).
pub(crate) fn score_column(index: usize, metric: &str) -> String {
    format!("score:{index}:{metric}")
}

/// The samples of a shard, row by row.
#[derive(Debug, Default)]
pub(crate) struct SampleRows {
    pub(crate) keys: Vec<String>,
    uids: Vec<Option<String>>,
    captions: Vec<Option<String>>,
    fields: Fields,
    /// Values that were too long, or in too many fields.
    pub(crate) num_dropped: u64,
}

/// The `json` fields of the samples, by column.
#[derive(Debug, Default)]
struct Fields {
    columns: Vec<(String, FieldValues)>,
    places: HashMap<String, usize>,
    num_rows: usize,
}

/// The values of a field that are not null, with their rows, which ascend. Nested ones are their JSON text.
type FieldValues = Vec<(usize, Value)>;

impl Fields {
    /// Adds a row; returns how many of its values are left out.
    fn push(&mut self, metadata: Option<Map<String, Value>>) -> u64 {
        let (mut num_bytes, mut num_dropped) = (0, 0);
        for (name, value) in metadata.into_iter().flatten() {
            let value = match value {
                Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value,
                nested => Value::String(nested.to_string()),
            };
            let len = value.as_str().map_or(0, str::len);
            let is_kept = len <= MAX_TEXT_BYTES && num_bytes + len <= MAX_SAMPLE_BYTES;
            let place = match self.places.get(&name) {
                Some(place) => *place,
                None if self.columns.len() == MAX_FIELDS => {
                    num_dropped += 1;
                    continue;
                }
                None => {
                    self.places.insert(name.clone(), self.columns.len());
                    self.columns.push((name, Vec::new()));
                    self.columns.len() - 1
                }
            };
            if !is_kept {
                num_dropped += 1;
            } else if !value.is_null() {
                num_bytes += len;
                self.columns[place].1.push((self.num_rows, value));
            }
        }
        self.num_rows += 1;
        num_dropped
    }
}

impl SampleRows {
    pub(crate) fn push(
        &mut self,
        key: String,
        uid: Option<String>,
        caption: Option<String>,
        mut metadata: Option<Map<String, Value>>,
    ) {
        let caption = caption.or_else(|| {
            let caption = metadata.as_mut()?.remove("caption")?;
            caption.as_str().map(str::to_owned)
        });
        let is_too_long = |caption: &String| caption.len() > MAX_TEXT_BYTES;
        self.num_dropped += u64::from(caption.as_ref().is_some_and(is_too_long));
        self.keys.push(key);
        self.uids.push(uid);
        self.captions.push(caption.filter(|caption| !is_too_long(caption)));
        self.num_dropped += self.fields.push(metadata);
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// The table of these rows, the first of which is at `first_position` of the shard.
    pub(crate) fn into_batch(
        self,
        shard: &str,
        shard_index: usize,
        first_position: usize,
        own_table: Option<&mut OwnTable>,
        scores: Vec<(String, ArrayRef)>,
    ) -> RecordBatch {
        let num_rows = self.len();
        let own_columns = own_table.and_then(|table| table.columns_for(&self.keys));
        let positions = (first_position..first_position + num_rows).map(|position| position as i64);
        let mut columns: Vec<(String, ArrayRef)> = vec![
            ("shard".into(), Arc::new(StringArray::from(vec![shard; num_rows]))),
            ("shard_index".into(), Arc::new(Int32Array::from(vec![shard_index as i32; num_rows]))),
            ("position".into(), Arc::new(Int64Array::from_iter_values(positions))),
            ("key".into(), Arc::new(StringArray::from_iter_values(&self.keys))),
            ("uid".into(), Arc::new(StringArray::from_iter(&self.uids))),
            ("caption".into(), Arc::new(StringArray::from_iter(&self.captions))),
        ];
        let fields = own_columns.unwrap_or_else(|| {
            let fields = self.fields.columns.into_iter();
            fields.map(|(name, values)| (name, json_column(values, num_rows))).collect()
        });
        for (name, column) in fields {
            // The two that every sample has once, under the first six names.
            if name == "uid" || name == "caption" {
                continue;
            }
            let is_taken = |name: &str| columns.iter().any(|(taken, _)| taken == name);
            let name = if FIXED_COLUMNS.contains(&&*name) { format!("original_{name}") } else { name };
            if !is_taken(&name) {
                columns.push((name, column));
            }
        }
        columns.extend(scores);
        batch_of(columns)
    }
}

/// A table of equally long, nullable columns.
pub(crate) fn batch_of(columns: Vec<(String, ArrayRef)>) -> RecordBatch {
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).expect("the columns are equally long")
}

/// The values of one `json` field in `num_rows` rows: integers, numbers, truth values or texts if all of them are;
/// mixtures become their JSON text.
fn json_column(values: FieldValues, num_rows: usize) -> ArrayRef {
    let all = |is: fn(&Value) -> bool| values.iter().all(|(_, value)| is(value));
    if values.is_empty() {
        return Arc::new(NullArray::new(num_rows));
    }
    if all(Value::is_i64) {
        return Arc::new(Int64Array::from_iter(in_rows(values, num_rows, |value| value.as_i64())));
    }
    if all(Value::is_number) {
        return Arc::new(Float64Array::from_iter(in_rows(values, num_rows, |value| value.as_f64())));
    }
    if all(Value::is_boolean) {
        return Arc::new(BooleanArray::from_iter(in_rows(values, num_rows, |value| value.as_bool())));
    }
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    Arc::new(StringArray::from_iter(in_rows(values, num_rows, text)))
}

/// The values of all rows, as `convert` has them.
fn in_rows<T>(
    values: FieldValues,
    num_rows: usize,
    convert: impl Fn(Value) -> Option<T>,
) -> impl Iterator<Item = Option<T>> {
    let mut values = values.into_iter().peekable();
    (0..num_rows).map(move |row| values.next_if(|(of, _)| *of == row).and_then(|(_, value)| convert(value)))
}

/// The parquet that lies beside a shard, `{shard}.parquet`: a row for every URL that was tried.
#[derive(Debug)]
pub(crate) struct OwnTable {
    /// Rows by key. A key that occurs several times takes its rows in their order, the last of them for good.
    rows: HashMap<String, VecDeque<u32>>,
    table: RecordBatch,
}

impl OwnTable {
    /// Reads it; `None` if there is none, or none with a text column `key`.
    pub(crate) fn read(path: &Path) -> Result<Option<OwnTable>, MixerError> {
        if !path.exists() {
            return Ok(None);
        }
        let builder = open_table(path)?;
        let schema = builder.schema().clone();
        let batches = Batches::start(path, builder)?.collect::<Result<Vec<_>, MixerError>>()?;
        let table = without_parquet_panic(|| Ok(concat_batches(&schema, &batches)?));
        let table = table
            .map_err(|error| MixerError::Table { path: path.to_path_buf(), problem: error.to_string() })?;
        let Some(keys) = table.column_by_name("key").and_then(texts) else { return Ok(None) };
        let mut rows: HashMap<String, VecDeque<u32>> = HashMap::with_capacity(keys.len());
        for (row, key) in keys.iter().enumerate() {
            if let (Some(key), Ok(row)) = (key, u32::try_from(row)) {
                rows.entry(key.to_owned()).or_default().push_back(row);
            }
        }
        Ok(Some(OwnTable { rows, table }))
    }

    /// Whether it has a row for every one of the samples `keys`.
    pub(crate) fn knows(&self, keys: &[String]) -> bool {
        keys.iter().all(|key| self.rows.contains_key(key))
    }

    /// The columns for the next samples, `keys`, if it has a row for every one of them.
    fn columns_for(&mut self, keys: &[String]) -> Option<Vec<(String, ArrayRef)>> {
        let mut next_row = |key: &String| {
            let rows = self.rows.get_mut(key)?;
            if rows.len() > 1 { rows.pop_front() } else { rows.front().copied() }
        };
        // All are asked, so that later samples find their rows next whether or not one is missing.
        let rows: Vec<Option<u32>> = keys.iter().map(&mut next_row).collect();
        let rows = UInt32Array::from(rows.into_iter().collect::<Option<Vec<u32>>>()?);
        let schema = self.table.schema();
        let columns = schema.fields().iter().zip(self.table.columns());
        let columns = columns.filter(|(field, _)| field.name() != "key");
        columns.map(|(field, column)| Some((field.name().clone(), take(column, &rows, None).ok()?))).collect()
    }
}

/// The scores of one sidecar, handed out to samples by key.
#[derive(Debug)]
pub(crate) struct ScoreRows {
    table: ScoreTable,
    /// Rows by key. A key that occurs several times takes its rows in their order.
    rows: HashMap<String, VecDeque<usize>>,
}

impl ScoreRows {
    /// Reads the sidecar at `path`.
    pub(crate) fn read(path: &Path) -> Result<ScoreRows, MixerError> {
        let table = ScoreTable::read(path)?;
        let mut rows: HashMap<String, VecDeque<usize>> = HashMap::with_capacity(table.keys.len());
        for (row, key) in table.keys.iter().enumerate() {
            rows.entry(key.clone()).or_default().push_back(row);
        }
        Ok(ScoreRows { table, rows })
    }

    /// The names of its metrics.
    pub(crate) fn metrics(&self) -> Vec<&str> {
        self.table.metrics.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// The columns for the next samples, `keys`; null where the sidecar has no row.
    pub(crate) fn columns_for(&mut self, index: usize, keys: &[String]) -> Vec<(String, ArrayRef)> {
        let take = |key: &String| self.rows.get_mut(key).and_then(VecDeque::pop_front);
        let rows: Vec<Option<usize>> = keys.iter().map(take).collect();
        let mut columns: Vec<(String, ArrayRef)> = Vec::new();
        for (name, scores) in &self.table.metrics {
            let score = |row: &Option<usize>| row.and_then(|row| scores[row]);
            let column = Float64Array::from_iter(rows.iter().map(score));
            columns.push((score_column(index, name), Arc::new(column)));
        }
        for (name, texts) in &self.table.texts {
            let text = |row: &Option<usize>| row.and_then(|row| texts[row].as_deref());
            let column = StringArray::from_iter(rows.iter().map(text));
            columns.push((score_column(index, name), Arc::new(column)));
        }
        columns
    }
}

#[cfg(test)]
mod tests {
    use arrow_schema::DataType;
    use serde_json::json;

    use super::*;

    fn rows(samples: &[(&str, Value)]) -> SampleRows {
        let mut rows = SampleRows::default();
        for (key, metadata) in samples {
            rows.push((*key).into(), Some("7".into()), None, metadata.as_object().cloned());
        }
        rows
    }

    fn types(batch: &RecordBatch) -> Vec<(String, DataType)> {
        let schema = batch.schema();
        let fields = schema.fields().iter().skip(FIXED_COLUMNS.len());
        fields.map(|field| (field.name().clone(), field.data_type().clone())).collect()
    }

    #[test]
    fn fields_get_the_type_that_all_their_values_have() {
        let samples = [
            (
                "a",
                json!({"key": "0", "width": 3, "score": 1, "url": "u", "ok": true, "odd": 1, "none": null}),
            ),
            ("b", json!({"width": 4, "score": 1.5, "odd": "x", "later": [1, 2], "caption": "words"})),
            ("c", json!(null)),
        ];
        let batch = rows(&samples).into_batch("00000", 3, 10, None, Vec::new());
        let expected = [
            ("original_key", DataType::Utf8),
            ("width", DataType::Int64),
            ("score", DataType::Float64),
            ("url", DataType::Utf8),
            ("ok", DataType::Boolean),
            ("odd", DataType::Utf8),
            ("none", DataType::Null),
            ("later", DataType::Utf8),
        ];
        assert_eq!(types(&batch), expected.map(|(name, kind)| (name.to_owned(), kind)));
        let text = |name: &str| {
            let column = crate::columns::texts(batch.column_by_name(name).unwrap()).unwrap();
            column.iter().map(|text| text.map(str::to_owned)).collect::<Vec<_>>()
        };
        assert_eq!(text("odd"), [Some("1".into()), Some("x".into()), None]);
        assert_eq!(text("later"), [None, Some("[1,2]".into()), None]);
        assert_eq!(text("caption"), [None, Some("words".into()), None]);
    }

    #[test]
    fn scores_are_joined_by_key() {
        let check = |keys: &[&str], table: &[(&str, Option<f64>)], expected: &[Option<f64>]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.parquet");
            let keys_of_table = table.iter().map(|(key, _)| (*key).to_owned()).collect();
            let scores = table.iter().map(|(_, score)| *score).collect();
            let table = ScoreTable {
                uids: vec![None; table.len()],
                keys: keys_of_table,
                metrics: vec![("clip".into(), scores)],
                ..ScoreTable::default()
            };
            table.write(&path).unwrap();
            let mut rows = ScoreRows::read(&path).unwrap();
            let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
            let (name, column) = rows.columns_for(2, &keys).remove(0);
            assert_eq!(name, "score:2:clip");
            let column = column.as_any().downcast_ref::<Float64Array>().unwrap().clone();
            assert_eq!(column.iter().collect::<Vec<_>>(), expected);
        };
        check(&[], &[("a", Some(1.0))], &[]);
        check(&["a", "b"], &[], &[None, None]);
        check(&["a", "b"], &[("b", Some(2.0)), ("a", Some(1.0))], &[Some(1.0), Some(2.0)]);
        let rows = [("a", Some(1.0)), ("b", Some(2.0)), ("a", Some(3.0))];
        check(&["a", "a", "a", "b"], &rows, &[Some(1.0), Some(3.0), None, Some(2.0)]);
    }

    #[test]
    fn the_table_beside_the_shard_gives_its_types_if_it_knows_every_sample() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000.parquet");
        let table = batch_of(vec![
            ("key".into(), Arc::new(StringArray::from(vec!["a", "b", "c"])) as ArrayRef),
            ("width".into(), Arc::new(Int32Array::from(vec![1, 2, 3]))),
        ]);
        let mut writer = oqvl_shard_io::TableWriter::create(&path, table.schema(), &[]).unwrap();
        writer.write(&table).unwrap();
        writer.finish().unwrap();
        let mut own = OwnTable::read(&path).unwrap().unwrap();
        let mut with = |key: &str| {
            let rows = rows(&[("c", json!({"width": 9})), (key, json!({"width": 9}))]);
            rows.into_batch("00000", 0, 0, Some(&mut own), Vec::new())
        };
        let known = with("a");
        assert_eq!(types(&known), [("width".to_owned(), DataType::Int32)]);
        assert_eq!(known.column_by_name("width").unwrap().as_ref(), &Int32Array::from(vec![3, 1]));
        assert_eq!(types(&with("other")), [("width".to_owned(), DataType::Int64)]);
        assert!(OwnTable::read(&dir.path().join("absent.parquet")).unwrap().is_none());
    }

    #[test]
    fn equal_keys_take_the_rows_of_the_table_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000.parquet");
        let table = batch_of(vec![
            ("key".into(), Arc::new(StringArray::from(vec!["a", "b", "a"])) as ArrayRef),
            ("width".into(), Arc::new(Int32Array::from(vec![1, 2, 3]))),
        ]);
        let mut writer = oqvl_shard_io::TableWriter::create(&path, table.schema(), &[]).unwrap();
        writer.write(&table).unwrap();
        writer.finish().unwrap();
        let mut own = OwnTable::read(&path).unwrap().unwrap();
        let mut widths = |keys: &[&str]| {
            let samples: Vec<_> = keys.iter().map(|key| (*key, json!({}))).collect();
            let batch = rows(&samples).into_batch("00000", 0, 0, Some(&mut own), Vec::new());
            let column = batch.column_by_name("width").unwrap();
            column.as_any().downcast_ref::<Int32Array>().unwrap().values().to_vec()
        };
        assert_eq!(widths(&["a", "b"]), [1, 2], "the first piece of a shard");
        assert_eq!(widths(&["a", "b", "a"]), [3, 2, 3], "the next");
    }

    #[test]
    fn damaged_tables_are_left_out() {
        let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds/parquet");
        for name in ["bit_width.parquet", "short_page.parquet"] {
            assert!(seeds.join(name).exists() && OwnTable::read(&seeds.join(name)).is_err(), "{name}");
        }
    }

    #[test]
    fn what_is_too_long_or_too_much_is_left_out() {
        let long = "x".repeat(MAX_TEXT_BYTES + 1);
        let kept = "y".repeat(MAX_TEXT_BYTES);
        let mut many: Map<String, Value> = (0..4).map(|index| (format!("b{index}"), json!(kept))).collect();
        many.insert("c".into(), json!("one more"));
        many.insert("d".into(), json!(7));
        let mut rows = SampleRows::default();
        rows.push(
            "0".into(),
            None,
            Some(long.clone()),
            json!({"long": long, "width": 1}).as_object().cloned(),
        );
        rows.push(
            "1".into(),
            None,
            Some(kept.clone()),
            json!({"long": [long], "nested": [1]}).as_object().cloned(),
        );
        rows.push("2".into(), None, None, Some(many));
        assert_eq!(rows.num_dropped, 4);
        let batch = rows.into_batch("00000", 0, 0, None, Vec::new());
        let is_there = |name: &str| {
            let column = batch.column_by_name(name).unwrap();
            (0..3).map(|row| !column.is_null(row)).collect::<Vec<_>>()
        };
        assert_eq!(is_there("caption"), [false, true, false]);
        assert_eq!(*batch.column_by_name("long").unwrap().data_type(), DataType::Null);
        assert_eq!(is_there("width"), [true, false, false]);
        assert_eq!(is_there("nested"), [false, true, false]);
        assert_eq!(is_there("b3"), [false, false, true]);
        assert_eq!(*batch.column_by_name("c").unwrap().data_type(), DataType::Null);
        assert_eq!(is_there("d"), [false, false, true]);
    }

    #[test]
    fn a_key_of_its_own_in_every_sample_does_not_take_a_column_each() {
        let mut rows = SampleRows::default();
        for number in 0..2 * MAX_FIELDS {
            let fields = json!({"width": number, format!("only {number}"): number});
            rows.push(number.to_string(), None, None, fields.as_object().cloned());
        }
        assert_eq!(rows.num_dropped as usize, MAX_FIELDS + 1);
        let batch = rows.into_batch("00000", 0, 0, None, Vec::new());
        assert_eq!(batch.num_columns(), FIXED_COLUMNS.len() + MAX_FIELDS);
        assert_eq!(batch.column_by_name("width").unwrap().null_count(), 0);
    }
}
