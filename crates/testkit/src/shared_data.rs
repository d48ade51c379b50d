//! Real data that may lie beside the checkout.

use std::path::PathBuf;

/// The directory of real images, captions and tokenizers (`../shared/data` seen from the workspace root), if
/// there is one.
///
/// Where there is none, a line on standard error says that the calling test is skipped and why; the test then
/// returns early.
#[must_use]
pub fn shared_data() -> Option<PathBuf> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data"));
    if dir.is_dir() {
        return Some(dir);
    }
    let thread = std::thread::current();
    let test = thread.name().unwrap_or("a test");
    eprintln!("skipped: {test} needs the real data, and {} is not a directory", dir.display());
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_the_data() {
        let Some(dir) = shared_data() else { return };
        assert!(dir.join("images").is_dir(), "{} holds no images", dir.display());
    }
}
