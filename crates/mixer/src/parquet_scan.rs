//! Reading columns of many parquet files, row group by row group, in parallel and in order.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{RecordBatch, new_null_array};
use arrow_schema::{DataType, Schema};
use oqvl_stage::RunContext;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReaderBuilder,
};
use rayon::prelude::*;

use crate::MixerError;
use crate::columns::{MergedColumns, list_names};
use crate::sample_table::batch_of;

/// Rows decoded at once.
const BATCH_ROWS: usize = 16_384;

/// Parquet files whose rows, one file after the other, are numbered from 0.
#[derive(Debug)]
pub(crate) struct ParquetFiles {
    pub(crate) files: Vec<ParquetFile>,
    groups: Vec<RowGroup>,
    pub(crate) schema: Arc<Schema>,
    pub(crate) num_rows: u64,
}

/// One of them.
#[derive(Debug)]
pub(crate) struct ParquetFile {
    pub(crate) path: PathBuf,
    /// Its first row among those of all files.
    pub(crate) first_row: u64,
    pub(crate) num_rows: u64,
}

#[derive(Debug)]
struct RowGroup {
    file: usize,
    index: usize,
    first_row: u64,
}

/// Some consecutive rows of one file.
#[derive(Debug)]
pub(crate) struct Rows {
    /// Index of the file.
    pub(crate) file: usize,
    /// The first of them among those of all files.
    pub(crate) first_row: u64,
    /// The columns asked for, in that order.
    pub(crate) batch: RecordBatch,
}

impl ParquetFiles {
    /// Reads the footers of `paths`.
    pub(crate) fn open(paths: Vec<PathBuf>, run: &RunContext) -> Result<ParquetFiles, MixerError> {
        ParquetFiles::with_columns(MergedColumns::default(), paths, run)
    }

    /// Reads the footers of `paths`; the schema begins with `columns`.
    pub(crate) fn with_columns(
        mut columns: MergedColumns,
        paths: Vec<PathBuf>,
        run: &RunContext,
    ) -> Result<ParquetFiles, MixerError> {
        let footers = paths.par_iter().map(|path| {
            run.check_interrupt()?;
            let file = open_file(path)?;
            ArrowReaderMetadata::load(&file, ArrowReaderOptions::new()).map_err(table_error(path))
        });
        let footers = footers.collect::<Result<Vec<_>, MixerError>>()?;
        let (mut files, mut groups) = (Vec::with_capacity(paths.len()), Vec::new());
        let mut num_rows = 0;
        for (path, footer) in paths.into_iter().zip(footers) {
            let first_row = num_rows;
            columns.add(footer.schema());
            for (index, group) in footer.metadata().row_groups().iter().enumerate() {
                groups.push(RowGroup { file: files.len(), index, first_row: num_rows });
                num_rows += group.num_rows() as u64;
            }
            files.push(ParquetFile { path, first_row, num_rows: num_rows - first_row });
        }
        Ok(ParquetFiles { files, groups, schema: Arc::new(columns.schema()), num_rows })
    }

    /// Checks that at least one file has the column `name`.
    pub(crate) fn require(&self, name: &str) -> Result<(), MixerError> {
        if self.num_rows == 0 || self.schema.index_of(name).is_ok() {
            return Ok(());
        }
        let known = list_names(self.schema.fields().iter().map(|field| field.name().as_str()));
        let path = self.files.first().map(|file| file.path.clone()).unwrap_or_default();
        Err(MixerError::NoSuchColumn { path, column: name.to_owned(), known })
    }

    /// Hands the columns `names` of all rows (nulls where a file lacks one) to `map`, in parallel, and what it makes of them to `take`, in row order.
    /// A few row groups are in memory at a time.
    pub(crate) fn scan<T: Send>(
        &self,
        names: &[&str],
        run: &RunContext,
        map: impl Fn(Rows) -> Result<T, MixerError> + Sync,
        mut take: impl FnMut(T) -> Result<(), MixerError>,
    ) -> Result<(), MixerError> {
        for groups in self.groups.chunks(rayon::current_num_threads().max(1)) {
            run.check_interrupt()?;
            let mapped: Vec<Vec<T>> = groups
                .par_iter()
                .map(|group| self.read_group(group, names)?.map(|rows| map(rows?)).collect())
                .collect::<Result<_, MixerError>>()?;
            mapped.into_iter().flatten().try_for_each(&mut take)?;
        }
        Ok(())
    }

    fn read_group<'a>(
        &'a self,
        group: &'a RowGroup,
        names: &[&str],
    ) -> Result<impl Iterator<Item = Result<Rows, MixerError>> + 'a, MixerError> {
        let path = &self.files[group.file].path;
        let builder = projected(path, names)?.with_row_groups(vec![group.index]).with_batch_size(BATCH_ROWS);
        let reader = builder.build().map_err(table_error(path))?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut first_row = group.first_row;
        Ok(reader.map(move |batch| {
            let batch = in_order(&batch.map_err(|error| table_error(path)(error.into()))?, &names);
            let rows = Rows { file: group.file, first_row, batch };
            first_row += rows.batch.num_rows() as u64;
            Ok(rows)
        }))
    }

    /// The columns `names` of one row.
    pub(crate) fn read_row(&self, row: u64, names: &[&str]) -> Result<RecordBatch, MixerError> {
        let index = self.files.partition_point(|file| file.first_row <= row) - 1;
        let file = &self.files[index];
        let builder =
            projected(&file.path, names)?.with_offset((row - file.first_row) as usize).with_limit(1);
        let mut reader = builder.build().map_err(table_error(&file.path))?;
        let batch = reader.next().ok_or_else(|| MixerError::InputChanged { path: file.path.clone() })?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(in_order(&batch.map_err(|error| table_error(&file.path)(error.into()))?, &names))
    }
}

/// A reader of those of the columns `names` that the file has.
fn projected(path: &Path, names: &[&str]) -> Result<ParquetRecordBatchReaderBuilder<File>, MixerError> {
    let builder = ParquetRecordBatchReaderBuilder::try_new(open_file(path)?).map_err(table_error(path))?;
    let columns: Vec<usize> = names.iter().filter_map(|name| builder.schema().index_of(name).ok()).collect();
    let mask = ProjectionMask::roots(builder.parquet_schema(), columns);
    Ok(builder.with_projection(mask))
}

/// The columns `names` in this order; nulls for one that the file does not have.
fn in_order(batch: &RecordBatch, names: &[String]) -> RecordBatch {
    if names.is_empty() {
        // Rows without columns: they can be counted.
        return batch.clone();
    }
    let column = |name: &String| {
        let absent = || new_null_array(&DataType::Null, batch.num_rows());
        (name.clone(), batch.column_by_name(name).cloned().unwrap_or_else(absent))
    };
    batch_of(names.iter().map(column).collect())
}

fn open_file(path: &Path) -> Result<File, MixerError> {
    File::open(path)
        .map_err(|source| oqvl_shard_io::ShardError::Io { path: path.to_path_buf(), source }.into())
}

pub(crate) fn table_error(path: &Path) -> impl FnOnce(parquet::errors::ParquetError) -> MixerError + '_ {
    |error| MixerError::Table { path: path.to_path_buf(), problem: error.to_string() }
}
