//! The shards and the plans of a directory.

use crate::ShardError;
use std::path::{Path, PathBuf};

/// All `*.tar` files of a directory, sorted by name; hidden ones (unfinished files) are left out.
///
/// # Errors
/// If the directory cannot be read or has no shard: a stage that read none would finish with nothing done.
pub fn list_shards(dir: &Path) -> Result<Vec<PathBuf>, ShardError> {
    let shards = list_files(dir, ".tar")?;
    if shards.is_empty() { Err(ShardError::NoShards { path: dir.to_path_buf() }) } else { Ok(shards) }
}

/// All `*.plan.parquet` files of a directory, sorted by name; there may be none.
///
/// # Errors
/// If the directory cannot be read.
pub fn list_plans(dir: &Path) -> Result<Vec<PathBuf>, ShardError> {
    list_files(dir, ".plan.parquet")
}

/// The files whose names end so, but for hidden ones, sorted.
fn list_files(dir: &Path, ending: &str) -> Result<Vec<PathBuf>, ShardError> {
    let failed = |source| ShardError::Io { path: dir.to_path_buf(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(ending) && !name.starts_with('.') {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_atomic;

    #[test]
    fn shards_come_sorted_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["00001.tar", "00000.tar", ".tmp-00002.tar", "00000.parquet", "0.plan.parquet", ".x.plan.parquet"]
        {
            write_atomic(&dir.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = list_shards(dir.path()).unwrap();
        assert_eq!(names, [dir.path().join("00000.tar"), dir.path().join("00001.tar")]);
        assert_eq!(list_plans(dir.path()).unwrap(), [dir.path().join("0.plan.parquet")]);
        assert!(matches!(list_shards(&dir.path().join("nowhere")), Err(ShardError::Io { .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(list_plans(empty.path()).unwrap().is_empty());
        assert!(matches!(list_shards(empty.path()), Err(ShardError::NoShards { .. })));
    }
}
