//! What became of every URL: the parquet files that data-fetch writes beside its shards.

use crate::error::ReportError;
use arrow_array::{Array, RecordBatch, StringArray};
use oqvl_shard_io::open_parquet;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use std::fs::File;
use std::path::Path;

/// `status` of a row whose image is in the shard.
const SUCCESS: &str = "success";

/// What became of one URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FetchedUrl {
    /// 32 hexadecimal digits, if the list had uids.
    pub(crate) uid: Option<String>,
    /// Why it was rejected; `None` if it was kept.
    pub(crate) reject: Option<String>,
}

/// Reads the rows of one shard's parquet.
pub(crate) fn read(path: &Path) -> Result<Vec<FetchedUrl>, ReportError> {
    let parquet_error = |source| ReportError::Parquet { path: path.to_path_buf(), source };
    let file = File::open(path).map_err(ReportError::io(path))?;
    let reader =
        open_parquet(file, ArrowReaderOptions::new()).and_then(ParquetRecordBatchReaderBuilder::build);
    let mut rows = Vec::new();
    for batch in reader.map_err(parquet_error)? {
        let batch = batch.map_err(|error| parquet_error(error.into()))?;
        let statuses = strings(&batch, path, "status")?;
        let messages = strings(&batch, path, "error_message")?;
        let uids =
            if batch.column_by_name("uid").is_some() { Some(strings(&batch, path, "uid")?) } else { None };
        for row in 0..batch.num_rows() {
            let uid = uids.filter(|uids| uids.is_valid(row)).map(|uids| uids.value(row).to_owned());
            let is_kept = statuses.is_valid(row) && statuses.value(row) == SUCCESS;
            let message = if messages.is_valid(row) { messages.value(row) } else { "unknown" };
            rows.push(FetchedUrl { uid, reject: (!is_kept).then(|| message.to_owned()) });
        }
    }
    Ok(rows)
}

fn strings<'a>(
    batch: &'a RecordBatch,
    path: &Path,
    column: &'static str,
) -> Result<&'a StringArray, ReportError> {
    let array = batch.column_by_name(column).and_then(|array| array.as_any().downcast_ref());
    array.ok_or_else(|| ReportError::Column { path: path.to_path_buf(), column })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use arrow_schema::{DataType, Field, Schema};
    use parquet::arrow::ArrowWriter;
    use std::sync::Arc;

    /// Writes rows of `(uid, status, error_message)` as data-fetch would.
    pub(crate) fn write(path: &Path, rows: &[(Option<&str>, &str, Option<&str>)]) {
        let column = |name| Field::new(name, DataType::Utf8, true);
        let schema = Arc::new(Schema::new(vec![column("uid"), column("status"), column("error_message")]));
        let uids = StringArray::from_iter(rows.iter().map(|row| row.0));
        let statuses = StringArray::from_iter(rows.iter().map(|row| Some(row.1)));
        let messages = StringArray::from_iter(rows.iter().map(|row| row.2));
        let batch = RecordBatch::try_new(
            schema.clone(),
            vec![Arc::new(uids), Arc::new(statuses), Arc::new(messages)],
        );
        let mut writer = ArrowWriter::try_new(File::create(path).unwrap(), schema, None).unwrap();
        writer.write(&batch.unwrap()).unwrap();
        writer.close().unwrap();
    }

    #[test]
    fn kept_and_rejected_rows_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000.parquet");
        write(
            &path,
            &[(Some("a"), "success", None), (None, "failed_to_download", Some("gone")), (None, "x", None)],
        );
        let row = |uid: Option<&str>, reject: Option<&str>| FetchedUrl {
            uid: uid.map(str::to_owned),
            reject: reject.map(str::to_owned),
        };
        assert_eq!(
            read(&path).unwrap(),
            [row(Some("a"), None), row(None, Some("gone")), row(None, Some("unknown"))]
        );
    }

    #[test]
    fn a_file_that_is_no_parquet_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("00000.parquet");
        File::create(&path).unwrap();
        assert!(matches!(read(&path), Err(ReportError::Parquet { .. })));
    }
}
