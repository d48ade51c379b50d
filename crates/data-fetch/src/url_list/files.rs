//! The files of a list and their formats.

use crate::config::InputFormat;
use crate::error::DataFetchError;
use oqvl_shard_io::FilePattern;
use oqvl_stage::ConfigError;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files of the list with their formats, in the order of their names: the file, the lists of the folder,
/// or what matches the pattern.
pub(super) fn list_files(
    path: &Path,
    format: Option<InputFormat>,
) -> Result<Vec<(PathBuf, InputFormat)>, DataFetchError> {
    let unknown = |problem| unknown_list(path, problem);
    let with_format =
        |file: &Path| format.or_else(|| format_of(file)).map(|found| (file.to_path_buf(), found));
    if let Some(pattern) = FilePattern::of_path(path) {
        let matches = pattern.files().map_err(DataFetchError::io(path))?;
        if matches.is_empty() {
            return Err(unknown("no file matches this pattern"));
        }
        // Whoever names files means them: one that is no list is a mistake, not to be passed over.
        let files = matches
            .iter()
            .map(|file| with_format(file).ok_or_else(|| unknown_list(file, "its extension names no format")));
        return files.collect();
    }
    if !path.is_dir() {
        // Opening it tells a missing file from an unknown extension.
        std::fs::metadata(path).map_err(DataFetchError::io(path))?;
        let file = with_format(path).ok_or_else(|| unknown("its extension names no format"))?;
        return Ok(vec![file]);
    }
    let mut paths = BTreeSet::new();
    for entry in std::fs::read_dir(path).map_err(DataFetchError::io(path))? {
        paths.insert(entry.map_err(DataFetchError::io(path))?.path());
    }
    let files: Vec<_> = paths
        .into_iter()
        .filter(|file| is_list_in_folder(file, format) && file.is_file())
        .filter_map(|file| format_of(&file).map(|found| (file, found)))
        .collect();
    if files.is_empty() { Err(unknown("no list in this folder")) } else { Ok(files) }
}

fn unknown_list(path: &Path, problem: &str) -> DataFetchError {
    let message = format!(
        "{}: {problem}; the known extensions are txt, csv, tsv, jsonl, json (each also with .gz or .zst) and parquet, and \
         `data-fetch.input_format` says the format where there is none",
        path.display()
    );
    ConfigError::new("url_list", message).into()
}

/// Whether a file of this name counts as a list in a folder that is one.
pub(crate) fn is_list_in_folder(file: &Path, format: Option<InputFormat>) -> bool {
    format_of(file).is_some_and(|found| format.is_none_or(|format| format == found))
}

fn format_of(path: &Path) -> Option<InputFormat> {
    let name = path.file_name()?.to_str()?.to_lowercase();
    if name.starts_with('.') {
        return None;
    }
    let plain = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let format = match plain.rsplit_once('.')?.1 {
        "txt" => InputFormat::Txt,
        "csv" => InputFormat::Csv,
        "tsv" => InputFormat::Tsv,
        "jsonl" | "ndjson" => InputFormat::Jsonl,
        "json" => InputFormat::Json,
        "parquet" if plain == name => InputFormat::Parquet,
        _ => return None,
    };
    Some(format)
}
