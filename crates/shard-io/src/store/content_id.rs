//! What the hub calls the content of a file: a digest that can be computed from what arrived.

use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// Bytes read at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// A digest of a file, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContentId {
    /// SHA-256 of the content: the id of a large file.
    Sha256(String),
    /// Git's name of the content as a blob, which is SHA-1 of its length and itself: the id of a small file.
    GitBlob(String),
}

impl ContentId {
    /// What the hub calls a large file: `sha256:` may stand before the digits.
    pub(super) fn sha256(oid: &str) -> Option<ContentId> {
        let digits = oid.trim_start_matches("sha256:");
        is_digest(digits, 64).then(|| ContentId::Sha256(digits.to_owned()))
    }

    /// What git calls a small file.
    pub(super) fn git_blob(oid: &str) -> Option<ContentId> {
        is_digest(oid, 40).then(|| ContentId::GitBlob(oid.to_owned()))
    }

    /// The digest: what the hub sends as the file's entity tag, and what its cache calls the file.
    pub(super) fn hex(&self) -> &str {
        let (ContentId::Sha256(hex) | ContentId::GitBlob(hex)) = self;
        hex
    }

    /// The name of the kind of digest, for messages.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            ContentId::Sha256(_) => "SHA-256",
            ContentId::GitBlob(_) => "git SHA-1",
        }
    }

    /// Whether it is the digest of the file's content. Other work goes on, and may be stopped, between two pieces.
    pub(super) async fn is_of(&self, path: &Path) -> io::Result<bool> {
        let file = File::open(path)?;
        let found = match self {
            ContentId::Sha256(_) => digest(Sha256::new(), file).await?,
            ContentId::GitBlob(_) => {
                let num_bytes = file.metadata()?.len();
                digest(Sha1::new().chain_update(format!("blob {num_bytes}\0")), file).await?
            }
        };
        Ok(found == self.hex())
    }
}

/// Whether a text from outside is a digest, and so a safe file name.
pub(super) fn is_digest(text: &str, num_digits: usize) -> bool {
    text.len() == num_digits && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

async fn digest(mut hasher: impl Digest, mut file: File) -> io::Result<String> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            num_bytes => hasher.update(&chunk[..num_bytes]),
        }
        tokio::task::yield_now().await;
    }
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `printf 'abc' | sha256sum`, `printf 'abc' | git hash-object --stdin`.
    #[test]
    fn digests_are_those_of_sha256sum_and_git() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        crate::write_atomic(&path, b"abc").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let is_of = |id: &ContentId| runtime.block_on(id.is_of(&path)).unwrap();
        let sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert!(is_of(&ContentId::sha256(&format!("sha256:{sha256}")).unwrap()));
        assert!(is_of(&ContentId::git_blob("f2ba8f84ab5c1bce84a7b441cb1959cfc7093b7f").unwrap()));
        assert!(!is_of(&ContentId::git_blob(&"0".repeat(40)).unwrap()));
    }

    #[test]
    fn what_is_no_digest_is_none() {
        for text in ["", "../../../x", &"A".repeat(64), &"a".repeat(63), &"g".repeat(64)] {
            assert_eq!((ContentId::sha256(text), ContentId::git_blob(text)), (None, None), "{text}");
        }
    }
}
