//! Finished files that are not whole.
//!
//! Stages write files under their names when they are finished, and do not write one again that is there. But a disk that
//! failed, or a copy that was stopped, leaves a part of one, and until the manifest is written nobody knows how long it was.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::parquet_claims::PARQUET_MAGIC;
use crate::tar_entries::TAR_END;

/// Whether a tar or a parquet file, told by its name, lacks its end, or cannot be read; of other files nothing is known.
/// What was changed before the end is not seen.
#[must_use]
pub fn is_cut_short(path: &Path) -> bool {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("tar") => !ends_with(path, &TAR_END),
        Some("parquet") => !ends_with(path, &PARQUET_MAGIC),
        _ => false,
    }
}

fn ends_with<const N: usize>(path: &Path, end: &[u8; N]) -> bool {
    let read = || -> std::io::Result<[u8; N]> {
        let mut file = File::open(path)?;
        let mut found = [0; N];
        file.seek(SeekFrom::End(-(N as i64)))?;
        file.read_exact(&mut found)?;
        Ok(found)
    };
    read().is_ok_and(|found| found == *end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_tells() {
        let dir = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: &[u8]| {
            let path = dir.path().join(name);
            crate::write_atomic(&path, bytes).unwrap();
            is_cut_short(&path)
        };
        let tar = [[7; 512], [0; 512], [0; 512]].concat();
        assert!(!check("a.tar", &tar));
        for len in [0, 3, 512, 1024, 1535] {
            assert!(check("a.tar", &tar[..len]), "{len}");
        }
        assert!(!check("a.parquet", b"PAR1...PAR1"));
        assert!(check("a.parquet", b"PAR1...PAR") && check("a.parquet", b""));
        assert!(!check("a_stats.json", b"{"));
        assert!(is_cut_short(&dir.path().join("absent.tar")));
    }
}
