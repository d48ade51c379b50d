//! JSON-lines files.

use crate::error::ReportError;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// Reads every non-empty line of a file.
pub(crate) fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, ReportError> {
    let file = File::open(path).map_err(ReportError::io(path))?;
    let mut values = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(ReportError::io(path))?;
        if line.trim().is_empty() {
            continue;
        }
        let value = serde_json::from_str(&line).map_err(|source| ReportError::Line {
            path: path.to_path_buf(),
            line: index + 1,
            source,
        })?;
        values.push(value);
    }
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_atomic;

    #[test]
    fn a_wrong_line_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.jsonl");
        write_atomic(&path, b"1\n\n2\n").unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), [1, 2]);
        write_atomic(&path, b"1\nx\n").unwrap();
        let error = read::<u32>(&path).unwrap_err().to_string();
        assert!(error.ends_with("x.jsonl, line 2"), "{error}");
    }
}
