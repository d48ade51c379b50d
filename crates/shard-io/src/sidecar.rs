//! Score sidecars: `{shard}.{scorer}.parquet` beside the shards, one row per scored sample.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, ArrayRef, Float64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};

use crate::ShardError;
use crate::parquet_table::{TableFile, TableWriter, nullable_column, required_column, table_error};

/// Rows decoded at once when a sidecar is read.
const BATCH_ROWS: usize = 8192;

/// The scores one scorer gave to the samples of one shard.
///
/// In parquet: `key` (string), `uid` (string, nullable), then the metrics (double, nullable), then the texts
/// (string, nullable); `scorer`, `model_digest` and `code_version` in the file metadata.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScoreTable {
    /// Who scored, e.g. `clip`.
    pub scorer: String,
    /// Digest of the scoring model's weights.
    pub model_digest: String,
    /// Version of the scoring code.
    pub code_version: String,
    /// Sample keys, in shard order.
    pub keys: Vec<String>,
    /// Sample uids, where the samples have one; as many as `keys`.
    pub uids: Vec<Option<String>>,
    /// Named score columns; `None` where the sample could not be scored. Each as long as `keys`.
    pub metrics: Vec<(String, Vec<Option<f64>>)>,
    /// Named text columns, e.g. what the model wrote. Each as long as `keys`.
    pub texts: Vec<(String, Vec<Option<String>>)>,
}

impl ScoreTable {
    /// The sidecar of `shard` (its file name without `.tar`) by `scorer` in `dir`.
    #[must_use]
    pub fn sidecar_path(dir: &Path, shard: &str, scorer: &str) -> PathBuf {
        dir.join(format!("{shard}.{scorer}.parquet"))
    }

    /// The scores under the metric `name`, in row order.
    #[must_use]
    pub fn metric(&self, name: &str) -> Option<&[Option<f64>]> {
        self.metrics.iter().find(|(metric, _)| metric == name).map(|(_, scores)| scores.as_slice())
    }

    /// Writes the table to `path`, atomically and with the same bytes for the same table.
    ///
    /// # Errors
    /// [`ShardError::Table`] if a column's length differs from that of `keys` or a name occurs twice,
    /// [`ShardError::Io`] or [`ShardError::Parquet`] if writing fails.
    pub fn write(&self, path: &Path) -> Result<(), ShardError> {
        self.check(path)?;
        let mut fields =
            vec![Field::new("key", DataType::Utf8, false), Field::new("uid", DataType::Utf8, true)];
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(&self.keys)),
            Arc::new(StringArray::from_iter(&self.uids)),
        ];
        for (name, scores) in &self.metrics {
            fields.push(Field::new(name, DataType::Float64, true));
            columns.push(Arc::new(Float64Array::from_iter(scores)));
        }
        for (name, texts) in &self.texts {
            fields.push(Field::new(name, DataType::Utf8, true));
            columns.push(Arc::new(StringArray::from_iter(texts)));
        }
        let schema = Arc::new(Schema::new(fields));
        let batch = RecordBatch::try_new(schema.clone(), columns)
            .expect("the columns were checked to be equally long and have the types of their fields");
        let metadata = [
            ("scorer", self.scorer.clone()),
            ("model_digest", self.model_digest.clone()),
            ("code_version", self.code_version.clone()),
        ];
        let mut writer = TableWriter::create(path, schema, &metadata)?;
        writer.write(&batch)?;
        writer.finish()
    }

    /// Reads the table at `path`.
    ///
    /// # Errors
    /// [`ShardError::Table`] if columns or metadata are missing or of another type, [`ShardError::Io`] or
    /// [`ShardError::Parquet`] if the file cannot be read.
    pub fn read(path: &Path) -> Result<ScoreTable, ShardError> {
        let file = TableFile::open(path)?;
        let mut table = ScoreTable {
            scorer: file.metadata("scorer")?,
            model_digest: file.metadata("model_digest")?,
            code_version: file.metadata("code_version")?,
            ..ScoreTable::default()
        };
        for field in file.schema().fields() {
            let name = field.name().clone();
            match field.data_type() {
                DataType::Utf8 if name == "key" || name == "uid" => {}
                DataType::Float64 => table.metrics.push((name, Vec::new())),
                DataType::Utf8 => table.texts.push((name, Vec::new())),
                other => return Err(table_error(path, &name, format!("unexpected type {other}"))),
            }
        }
        for batch in file.batches(BATCH_ROWS)? {
            table.append(&batch?, path)?;
        }
        Ok(table)
    }

    fn append(&mut self, batch: &RecordBatch, path: &Path) -> Result<(), ShardError> {
        let keys: &StringArray = required_column(batch, path, "key")?;
        self.keys.extend((0..keys.len()).map(|row| keys.value(row).to_owned()));
        let uids: &StringArray = nullable_column(batch, path, "uid")?;
        self.uids.extend(uids.iter().map(|uid| uid.map(str::to_owned)));
        for (name, scores) in &mut self.metrics {
            scores.extend(nullable_column::<Float64Array>(batch, path, name)?.iter());
        }
        for (name, texts) in &mut self.texts {
            let column: &StringArray = nullable_column(batch, path, name)?;
            texts.extend(column.iter().map(|text| text.map(str::to_owned)));
        }
        Ok(())
    }

    /// Equal lengths, distinct names.
    fn check(&self, path: &Path) -> Result<(), ShardError> {
        let lengths = std::iter::once(("uid", self.uids.len()))
            .chain(self.metrics.iter().map(|(name, scores)| (name.as_str(), scores.len())))
            .chain(self.texts.iter().map(|(name, texts)| (name.as_str(), texts.len())));
        let mut names = vec!["key"];
        for (name, length) in lengths {
            if length != self.keys.len() {
                let problem = format!("{length} values for {} keys", self.keys.len());
                return Err(table_error(path, name, problem));
            }
            if names.contains(&name) {
                return Err(table_error(path, name, "two columns have this name"));
            }
            names.push(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(num_rows: usize) -> ScoreTable {
        ScoreTable {
            scorer: "mlm".into(),
            model_digest: "d".into(),
            code_version: "0.1.0".into(),
            keys: (0..num_rows).map(|row| format!("{row:09}")).collect(),
            uids: (0..num_rows).map(|row| (row % 3 != 0).then(|| format!("{row:032x}"))).collect(),
            metrics: vec![
                ("z".into(), (0..num_rows).map(|row| (row % 2 == 0).then_some(row as f64 / 7.0)).collect()),
                ("a".into(), vec![None; num_rows]),
            ],
            texts: vec![("raw".into(), (0..num_rows).map(|row| Some(format!("{row}\n\"é"))).collect())],
        }
    }

    #[test]
    fn write_then_read_is_identity_and_bytes_repeat() {
        let dir = tempfile::tempdir().unwrap();
        for num_rows in [0, 1, 7, BATCH_ROWS + 1] {
            let path = ScoreTable::sidecar_path(dir.path(), "00003", "mlm");
            assert!(path.ends_with("00003.mlm.parquet"));
            let table = table(num_rows);
            table.write(&path).unwrap();
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(ScoreTable::read(&path).unwrap(), table);
            table.write(&path).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
        }
        assert_eq!(table(3).metric("z").unwrap().len(), 3);
        assert_eq!(table(3).metric("raw"), None);
    }

    #[test]
    fn a_page_header_is_not_believed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        table(3).write(&path).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        // An unknown field: a list of 2^31 - 1 doubles, for which the library would look half a minute long.
        bytes[4..11].copy_from_slice(&[0xf9, 0xf7, 0xff, 0xff, 0xff, 0xff, 0x07]);
        crate::write_atomic(&path, &bytes).unwrap();
        let error = ScoreTable::read(&path).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("the page header at byte 4 is damaged"), "{cause}");
    }

    #[test]
    fn uneven_or_doubled_columns_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        let mut uneven = table(3);
        uneven.metrics[1].1.pop();
        assert!(uneven.write(&path).unwrap_err().to_string().contains("`a`: 2 values for 3 keys"));
        let mut doubled = table(3);
        doubled.texts[0].0 = "uid".into();
        assert!(doubled.write(&path).unwrap_err().to_string().contains("`uid`"));
        assert!(!path.exists());
    }

    #[test]
    fn strangers_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.parquet");
        assert!(matches!(ScoreTable::read(&path), Err(ShardError::Io { .. })));
        for bytes in [&b""[..], b"PAR1", b"no parquet at all, but longer than a footer"] {
            crate::write_atomic(&path, bytes).unwrap();
            assert!(matches!(ScoreTable::read(&path), Err(ShardError::Parquet { .. })));
        }
        let schema = Arc::new(Schema::new(vec![Field::new("key", DataType::Utf8, false)]));
        TableWriter::create(&path, schema, &[]).unwrap().finish().unwrap();
        assert!(ScoreTable::read(&path).unwrap_err().to_string().contains("`scorer`"));
    }
}
