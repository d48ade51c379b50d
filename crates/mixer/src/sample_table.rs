//! The metadata of samples as typed columns: what SQL sees of a shard.
//!
//! Columns, in this order: `shard`, `shard_index`, `position`, `key`, `uid`, `caption`; then every column of the
//! shard's own parquet (types carried through) or, where there is none for every sample, every field of the `json`
//! members; then the score sidecars. A field that has the name of one of the first six becomes `original_{name}`.

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use arrow_array::{
    ArrayRef, BooleanArray, Float64Array, Int32Array, Int64Array, NullArray, RecordBatch, StringArray,
    UInt32Array,
};
use arrow_schema::{Field, Schema};
use datafusion::arrow::compute::{concat_batches, take};
use oqvl_shard_io::ScoreTable;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Map, Value};

use crate::MixerError;

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
}

/// The `json` fields of the samples, by column.
#[derive(Debug, Default)]
struct Fields {
    columns: Vec<(String, Vec<Value>)>,
    places: HashMap<String, usize>,
    num_rows: usize,
}

impl Fields {
    fn push(&mut self, metadata: Option<Map<String, Value>>) {
        for (name, value) in metadata.into_iter().flatten() {
            let place = match self.places.get(&name) {
                Some(place) => *place,
                None => {
                    self.places.insert(name.clone(), self.columns.len());
                    self.columns.push((name, vec![Value::Null; self.num_rows]));
                    self.columns.len() - 1
                }
            };
            self.columns[place].1.push(value);
        }
        self.num_rows += 1;
        for (_, values) in &mut self.columns {
            values.resize(self.num_rows, Value::Null);
        }
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
        self.keys.push(key);
        self.uids.push(uid);
        self.captions.push(caption);
        self.fields.push(metadata);
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
        own_table: Option<&OwnTable>,
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
            fields.map(|(name, values)| (name, json_column(values))).collect()
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

/// The values of one `json` field: integers, numbers, truth values or texts if all of them are; nested values and
/// mixtures become their JSON text.
fn json_column(values: Vec<Value>) -> ArrayRef {
    let all = |is: fn(&Value) -> bool| values.iter().all(|value| value.is_null() || is(value));
    if all(|_| false) {
        return Arc::new(NullArray::new(values.len()));
    }
    if all(Value::is_i64) {
        return Arc::new(Int64Array::from_iter(values.iter().map(Value::as_i64)));
    }
    if all(Value::is_number) {
        return Arc::new(Float64Array::from_iter(values.iter().map(Value::as_f64)));
    }
    if all(Value::is_boolean) {
        return Arc::new(BooleanArray::from_iter(values.iter().map(Value::as_bool)));
    }
    let text = |value: Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text),
        other => Some(other.to_string()),
    };
    Arc::new(StringArray::from_iter(values.into_iter().map(text)))
}

/// The parquet that lies beside a shard, `{shard}.parquet`: a row for every URL that was tried.
#[derive(Debug)]
pub(crate) struct OwnTable {
    rows: HashMap<String, u32>,
    table: RecordBatch,
}

impl OwnTable {
    /// Reads it, if there is one that can be read and has a text column `key`.
    pub(crate) fn read(path: &Path) -> Option<OwnTable> {
        if !path.exists() {
            return None;
        }
        let read = || -> Result<RecordBatch, Box<dyn std::error::Error>> {
            let builder = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(path)?)?;
            let schema = builder.schema().clone();
            let batches = builder.build()?.collect::<Result<Vec<_>, _>>()?;
            Ok(concat_batches(&schema, &batches)?)
        };
        let table = match read() {
            Ok(table) => table,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the table beside the shard is left out");
                return None;
            }
        };
        let keys = crate::columns::texts(table.column_by_name("key")?)?;
        let rows = keys.iter().enumerate();
        let rows = rows.filter_map(|(row, key)| Some((key?.to_owned(), u32::try_from(row).ok()?))).collect();
        Some(OwnTable { rows, table })
    }

    /// The columns for the samples `keys`, if it has a row for every one of them.
    fn columns_for(&self, keys: &[String]) -> Option<Vec<(String, ArrayRef)>> {
        let rows: Option<Vec<u32>> = keys.iter().map(|key| self.rows.get(key).copied()).collect();
        let rows = UInt32Array::from(rows?);
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
        let own = OwnTable::read(&path).unwrap();
        let with = |key: &str| {
            let rows = rows(&[("c", json!({"width": 9})), (key, json!({"width": 9}))]);
            rows.into_batch("00000", 0, 0, Some(&own), Vec::new())
        };
        let known = with("a");
        assert_eq!(types(&known), [("width".to_owned(), DataType::Int32)]);
        assert_eq!(known.column_by_name("width").unwrap().as_ref(), &Int32Array::from(vec![3, 1]));
        assert_eq!(types(&with("other")), [("width".to_owned(), DataType::Int64)]);
        assert!(OwnTable::read(&dir.path().join("absent.parquet")).is_none());
    }
}
