//! Decontamination: samples whose image looks like one of a benchmark.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_array::{Array, ArrayRef, cast::AsArray};
use arrow_schema::DataType;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use datafusion::arrow::compute::cast;
use oqvl_shard_io::{IMAGE_EXTENSIONS, ShardError, ShardReader};
use oqvl_stage::RunContext;
use rayon::prelude::*;

use crate::MixerError;
use crate::config::DecontaminateConfig;
use crate::duplicates::for_each_place;
use crate::hamming::HashIndex;
use crate::image_hash::hash_of_file;
use crate::parquet_scan::{Batches, open_table};
use crate::pool::Pool;
use crate::row_set::RowSet;
use crate::selection::MAX_LISTED;

/// Texts shorter than this in the column `image` of a TSV are not images: VLMEvalKit writes there the index of the row
/// that has the image.
const MIN_BASE64_LEN: usize = 64;

/// Rows of a parquet file decoded at once: images are large.
const BATCH_ROWS: usize = 64;

/// The hashes of all benchmark images.
#[derive(Debug)]
pub(crate) struct BenchmarkImages {
    names: Vec<String>,
    index: HashIndex,
    /// Images that cannot be decoded.
    pub(crate) num_unreadable: u64,
}

/// The samples that look like them.
#[derive(Debug)]
pub(crate) struct Contamination {
    pub(crate) rows: RowSet,
    pub(crate) num_images: u64,
    pub(crate) num_unreadable: u64,
    /// The first of them: row, benchmark image, bits of difference.
    pub(crate) matches: Vec<(u64, String, u32)>,
}

impl BenchmarkImages {
    /// Reads and hashes the images of the config.
    pub(crate) fn read(
        config: &DecontaminateConfig,
        run: &RunContext,
    ) -> Result<BenchmarkImages, MixerError> {
        let mut files = Vec::new();
        for root in &config.images {
            let root = run.resolve(root);
            let before = files.len();
            collect_files(&root, &mut files)?;
            if files.len() == before {
                let problem = "no images, tars, TSVs or parquet files here".to_owned();
                return Err(MixerError::Asset { path: root, problem });
            }
        }
        let num_unreadable = AtomicU64::new(0);
        let progress = run.progress(files.len() as u64, "benchmark files read");
        let hashed: Vec<Vec<(String, u64)>> = files
            .par_iter()
            .map(|path| {
                let mut hashes = Vec::new();
                let mut take = |name: String, bytes: &[u8]| -> Result<(), MixerError> {
                    run.check_interrupt()?;
                    match hash_of_file(bytes) {
                        Some(hash) => hashes.push((name, hash)),
                        None => drop(num_unreadable.fetch_add(1, Ordering::Relaxed)),
                    }
                    Ok(())
                };
                read_images(path, &mut take)?;
                progress.inc(1);
                Ok(hashes)
            })
            .collect::<Result<_, MixerError>>()?;
        progress.finish();
        let (names, hashes): (Vec<String>, Vec<u64>) = hashed.into_iter().flatten().unzip();
        let index = HashIndex::new(hashes, config.max_distance);
        Ok(BenchmarkImages { names, index, num_unreadable: num_unreadable.into_inner() })
    }

    /// The usable samples of the pool that look like one of them.
    pub(crate) fn find_in(&self, pool: &Pool, run: &RunContext) -> Result<Contamination, MixerError> {
        let mut rows = RowSet::none(pool.num_rows);
        let mut matches = Vec::new();
        for_each_place(pool, &pool.usable, run, |row, place| {
            if let Some((image, distance)) = place.image_hash.and_then(|hash| self.index.closest(hash)) {
                rows.insert(row);
                if matches.len() < MAX_LISTED {
                    matches.push((row, self.names[image].clone(), distance));
                }
            }
            Ok(())
        })?;
        let num_images = self.names.len() as u64;
        Ok(Contamination { rows, num_images, num_unreadable: self.num_unreadable, matches })
    }
}

/// The files below `path` that can hold images, by name.
fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), MixerError> {
    let failed = |source| MixerError::Shard(ShardError::Io { path: path.to_path_buf(), source });
    if path.is_file() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    let mut entries = Vec::new();
    for entry in std::fs::read_dir(path).map_err(failed)? {
        entries.push(entry.map_err(failed)?.path());
    }
    entries.sort();
    for entry in entries {
        let is_hidden = entry.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if entry.is_dir() && !is_hidden {
            collect_files(&entry, files)?;
        } else if !is_hidden && is_readable(&entry) {
            files.push(entry);
        }
    }
    Ok(())
}

fn ending(path: &Path) -> String {
    path.extension().unwrap_or_default().to_string_lossy().to_lowercase()
}

fn is_readable(path: &Path) -> bool {
    let ending = ending(path);
    IMAGE_EXTENSIONS.contains(&&*ending) || ["tar", "tsv", "parquet"].contains(&&*ending)
}

/// Hands every image of a file to `take`, with a name.
fn read_images(
    path: &Path,
    take: &mut impl FnMut(String, &[u8]) -> Result<(), MixerError>,
) -> Result<(), MixerError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match &*ending(path) {
        "tar" => {
            for sample in ShardReader::open(path)? {
                let sample = sample?;
                if let Some(image) = sample.image() {
                    take(format!("{name}/{}", sample.key), &image.data)?;
                }
            }
            Ok(())
        }
        "tsv" => read_tsv(path, &name, take),
        "parquet" => read_parquet(path, &name, take),
        _ => {
            let bytes =
                std::fs::read(path).map_err(|source| ShardError::Io { path: path.to_path_buf(), source })?;
            take(name, &bytes)
        }
    }
}

fn read_tsv(
    path: &Path,
    name: &str,
    take: &mut impl FnMut(String, &[u8]) -> Result<(), MixerError>,
) -> Result<(), MixerError> {
    let failed =
        |error: csv::Error| MixerError::Table { path: path.to_path_buf(), problem: error.to_string() };
    let mut reader =
        csv::ReaderBuilder::new().delimiter(b'\t').flexible(true).from_path(path).map_err(failed)?;
    let headers = reader.byte_headers().map_err(failed)?;
    let Some(column) = headers.iter().position(|header| header == b"image") else {
        return Err(MixerError::Table { path: path.to_path_buf(), problem: "no column `image`".into() });
    };
    for (row, record) in reader.byte_records().enumerate() {
        let record = record.map_err(failed)?;
        let text = record.get(column).unwrap_or_default().trim_ascii();
        if text.starts_with(b"[") {
            // A list that cannot be read counts as an image that cannot.
            for (index, image) in
                texts_of_list(text).unwrap_or_else(|| vec![String::new()]).iter().enumerate()
            {
                take(format!("{name}/{row}/{index}"), &STANDARD.decode(image).unwrap_or_default())?;
            }
        } else if text.len() >= MIN_BASE64_LEN {
            take(format!("{name}/{row}"), &STANDARD.decode(text).unwrap_or_default())?;
        }
    }
    Ok(())
}

/// The texts of a list as JSON or Python writes it; what stands in base64 has no quotes inside. `None` for anything
/// else.
fn texts_of_list(text: &[u8]) -> Option<Vec<String>> {
    let as_json = |text: &[u8]| serde_json::from_slice(text).ok();
    as_json(text).or_else(|| {
        let quote = |byte: &u8| if *byte == b'\'' { b'"' } else { *byte };
        as_json(&text.iter().map(quote).collect::<Vec<u8>>())
    })
}

/// Images in a column `image`: bytes, or Hugging Face's struct of `bytes` and `path`.
fn read_parquet(
    path: &Path,
    name: &str,
    take: &mut impl FnMut(String, &[u8]) -> Result<(), MixerError>,
) -> Result<(), MixerError> {
    let batches = Batches::start(path, open_table(path)?.with_batch_size(BATCH_ROWS))?;
    let mut row = 0;
    for batch in batches {
        let batch = batch?;
        let images = batch.column_by_name("image").and_then(image_bytes).ok_or_else(|| {
            let problem = "no column `image` of bytes or of a struct with `bytes`".to_owned();
            MixerError::Table { path: path.to_path_buf(), problem }
        })?;
        for image in images.as_binary::<i32>() {
            if let Some(bytes) = image {
                take(format!("{name}/{row}"), bytes)?;
            }
            row += 1;
        }
    }
    Ok(())
}

fn image_bytes(column: &ArrayRef) -> Option<ArrayRef> {
    let bytes = match column.data_type() {
        DataType::Struct(_) => column.as_struct().column_by_name("bytes")?.clone(),
        _ => column.clone(),
    };
    let is_binary =
        matches!(bytes.data_type(), DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
    is_binary.then(|| cast(&bytes, &DataType::Binary).ok()).flatten()
}
