//! Content digests: BLAKE3, in lower-case hexadecimal.

use std::fs::File;
use std::io;
use std::path::Path;

/// The BLAKE3 digest of `bytes`: 64 lower-case hexadecimal digits.
#[must_use]
pub fn digest_bytes(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// The BLAKE3 digest of a file's content, read in bounded chunks.
///
/// # Errors
/// If the file cannot be opened or read.
pub fn digest_file(path: &Path) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digest_of_nothing_is_the_published_one() {
        // From the BLAKE3 test vectors, input length 0.
        assert_eq!(digest_bytes(b""), "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262");
    }

    #[test]
    fn file_and_bytes_agree() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let bytes: Vec<u8> = (0..200_001_u32).map(|i| (i % 251) as u8).collect();
        crate::write_atomic(&path, &bytes).unwrap();
        assert_eq!(digest_file(&path).unwrap(), digest_bytes(&bytes));
        assert!(digest_file(&dir.path().join("absent")).is_err());
    }
}
