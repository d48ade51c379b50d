//! The shards of a directory.

use crate::ShardError;
use std::path::{Path, PathBuf};

/// All `*.tar` files of a directory, sorted by name; hidden ones (unfinished files) are left out.
///
/// # Errors
/// If the directory cannot be read or has no shard: a stage that read none would finish with nothing done.
pub fn list_shards(dir: &Path) -> Result<Vec<PathBuf>, ShardError> {
    let failed = |source| ShardError::Io { path: dir.to_path_buf(), source };
    let mut shards = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|ending| ending == "tar") {
            shards.push(path);
        }
    }
    if shards.is_empty() {
        return Err(ShardError::NoShards { path: dir.to_path_buf() });
    }
    shards.sort();
    Ok(shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_atomic;

    #[test]
    fn shards_come_sorted_and_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["00001.tar", "00000.tar", ".tmp-00002.tar", "00000.parquet"] {
            write_atomic(&dir.path().join(name), b"").unwrap();
        }
        let names: Vec<_> = list_shards(dir.path()).unwrap();
        assert_eq!(names, [dir.path().join("00000.tar"), dir.path().join("00001.tar")]);
        assert!(matches!(list_shards(&dir.path().join("nowhere")), Err(ShardError::Io { .. })));
        let empty = tempfile::tempdir().unwrap();
        assert!(matches!(list_shards(empty.path()), Err(ShardError::NoShards { .. })));
    }
}
