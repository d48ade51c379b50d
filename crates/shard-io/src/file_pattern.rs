//! Paths with wildcards.

use glob::{MatchOptions, Pattern};
use std::io;
use std::path::{Path, PathBuf};

/// `*` stays within a name, `**` goes through directories, and hidden files are only found by their own name.
const OPTIONS: MatchOptions =
    MatchOptions { case_sensitive: true, require_literal_separator: true, require_literal_leading_dot: true };

/// Files named by a pattern: `*`, `?`, `[abc]` within a name, `**` for any directories.
///
/// ```
/// use oqvl_shard_io::{FilePattern, write_atomic};
///
/// # fn main() -> std::io::Result<()> {
/// let dir = tempfile::tempdir()?;
/// for name in ["part-1.csv", "part-0.csv", "notes.txt"] {
///     write_atomic(&dir.path().join(name), b"")?;
/// }
/// let pattern = FilePattern::of_path(&dir.path().join("part-*.csv")).expect("it has a wildcard");
/// assert_eq!(pattern.files()?, [dir.path().join("part-0.csv"), dir.path().join("part-1.csv")]);
/// assert!(FilePattern::of_path(&dir.path().join("notes.txt")).is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePattern {
    base: PathBuf,
    pattern: Pattern,
}

impl FilePattern {
    /// The pattern in `path`, if it is one. Directories and files that are there are taken by their names,
    /// whatever characters these have.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<FilePattern> {
        if path.exists() {
            return None;
        }
        let mut base = PathBuf::new();
        let mut components = path.components();
        let mut rest = components.as_path();
        while let Some(component) = components.next() {
            let next = base.join(component);
            if has_wildcard(&component.as_os_str().to_string_lossy()) && !next.exists() {
                let pattern = Pattern::new(rest.to_str()?).ok()?;
                return Some(FilePattern { base, pattern });
            }
            base = next;
            rest = components.as_path();
        }
        None
    }

    /// The pattern in a text with `/` between names, and the part before the first name that has a wildcard.
    #[must_use]
    pub fn of_key(key: &str) -> Option<FilePattern> {
        let first = key.split('/').position(has_wildcard)?;
        let start = key.split('/').take(first).map(|name| name.len() + 1).sum();
        let pattern = Pattern::new(&key[start..]).ok()?;
        Some(FilePattern { base: PathBuf::from(key[..start].trim_end_matches('/')), pattern })
    }

    /// The directory that the pattern starts in.
    #[must_use]
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The pattern below [`base`](FilePattern::base).
    #[must_use]
    pub fn relative(&self) -> &str {
        self.pattern.as_str()
    }

    /// Whether a file below [`base`](FilePattern::base) is meant.
    #[must_use]
    pub fn matches(&self, relative: &str) -> bool {
        self.pattern.matches_with(relative, OPTIONS)
    }

    /// The files that are there, sorted by path.
    ///
    /// # Errors
    /// If a directory on the way cannot be read.
    pub fn files(&self) -> io::Result<Vec<PathBuf>> {
        let base = Pattern::escape(&self.base.to_string_lossy());
        let whole = if base.is_empty() || base.ends_with('/') { base } else { base + "/" } + self.relative();
        let paths = glob::glob_with(&whole, OPTIONS).map_err(io::Error::other)?;
        let mut files = Vec::new();
        for path in paths {
            let path = path.map_err(io::Error::from)?;
            if path.is_file() {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

fn has_wildcard(name: &str) -> bool {
    name.contains(['*', '?', '['])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::write_atomic;

    #[test]
    fn names_with_wildcard_characters_can_be_named() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join("set [1]");
        std::fs::create_dir_all(odd.join("deep")).unwrap();
        for name in ["a*.csv", "b.csv", ".hidden.csv", "deep/c.csv"] {
            write_atomic(&odd.join(name), b"").unwrap();
        }
        let files = |pattern: &str| {
            let pattern = FilePattern::of_path(&odd.join(pattern)).unwrap();
            assert_eq!(pattern.base(), odd);
            let files = pattern.files().unwrap();
            files
                .iter()
                .map(|file| file.strip_prefix(&odd).unwrap().display().to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(files("*.csv"), ["a*.csv", "b.csv"]);
        assert_eq!(files("**/*.csv"), ["a*.csv", "b.csv", "deep/c.csv"]);
        assert_eq!(files("?.csv"), ["b.csv"]);
        assert_eq!(files("[x-z]*"), [""; 0]);
        assert_eq!(FilePattern::of_path(&odd.join("a*.csv")), None);
        assert_eq!(FilePattern::of_path(&odd), None);
        assert_eq!(FilePattern::of_path(&odd.join("nothing.csv")), None);
    }

    #[test]
    fn keys_are_split_at_the_first_wildcard() {
        let split = |key: &str| {
            let pattern = FilePattern::of_key(key)?;
            Some((pattern.base().display().to_string(), pattern.relative().to_owned()))
        };
        let owned = |base: &str, rest: &str| Some((base.to_owned(), rest.to_owned()));
        assert_eq!(split("a/b/c.csv"), None);
        assert_eq!(split("a/b*/c.csv"), owned("a", "b*/c.csv"));
        assert_eq!(split("*.csv"), owned("", "*.csv"));
        assert_eq!(split("a/**/*.parquet"), owned("a", "**/*.parquet"));
        let pattern = FilePattern::of_key("a/**/*.parquet").unwrap();
        assert!(
            pattern.matches("x.parquet") && pattern.matches("b/c/x.parquet") && !pattern.matches("x.csv")
        );
        assert!(!FilePattern::of_key("a/*.csv").unwrap().matches("b/c.csv"));
    }
}
