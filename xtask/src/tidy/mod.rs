//! `cargo xtask tidy`: the rules of the house as code.
//!
//! Each rule is a function from what it looks at to the list of violations; the text of a violation says where it
//! is and what to do instead.

mod arrows;
mod manifests;
mod packages;
mod sources;
mod top_level;
mod trainable;

use crate::cargo;
use anyhow::Context;
use std::fs;
use std::path::{Path, PathBuf};

/// Directories that hold Rust sources.
const SOURCE_ROOTS: [&str; 4] = ["crates", "xtask", "tests", "benches"];

/// Runs the command.
pub(crate) fn run() -> anyhow::Result<()> {
    let root = cargo::workspace_root();
    let packages = packages::read()?;
    let sources = read_sources(&root)?;
    let mut violations = Vec::new();
    violations.extend(top_level::check(&root)?);
    violations.extend(arrows::check(&packages));
    violations.extend(arrows::check_candle_free(&packages, &packages::lock_graph(&root)?));
    violations.extend(trainable::check_crates(&packages));
    violations.extend(manifests::check(&root, &packages)?);
    for source in &sources {
        violations.extend(sources::check(source));
        violations.extend(trainable::check(source));
    }
    violations.extend(sources::check_single_owners(&sources));
    violations.sort();
    for violation in &violations {
        eprintln!("tidy: {violation}");
    }
    anyhow::ensure!(violations.is_empty(), "tidy found {} violations", violations.len());
    println!("tidy: {} packages and {} source files keep the rules", packages.len(), sources.len());
    Ok(())
}

/// A Rust source file of the workspace.
#[derive(Debug)]
struct Source {
    /// Relative to the workspace root, with forward slashes.
    path: String,
    text: String,
}

impl Source {
    /// The crate directory below `crates/`, if the file is in one.
    fn crate_dir(&self) -> Option<&str> {
        self.path.strip_prefix("crates/")?.split('/').next()
    }

    /// Lines with their numbers from 1; a comment is cut off where it begins.
    fn code_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text
            .lines()
            .enumerate()
            .map(|(index, line)| (index + 1, line.split("//").next().unwrap_or_default()))
    }
}

fn read_sources(root: &Path) -> anyhow::Result<Vec<Source>> {
    let mut sources = Vec::new();
    let mut pending: Vec<PathBuf> =
        SOURCE_ROOTS.iter().map(|dir| root.join(dir)).filter(|dir| dir.is_dir()).collect();
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).with_context(|| directory.display().to_string())? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                let relative = path.strip_prefix(root).context("found below the root")?;
                sources.push(Source { path: relative.to_string_lossy().replace('\\', "/"), text });
            }
        }
    }
    sources.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(sources)
}
