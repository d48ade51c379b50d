//! The packages of the workspace as cargo knows them, and what the lock file says lies below them.

use crate::cargo;
use anyhow::Context;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A workspace member.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) license: Option<String>,
    pub(super) manifest_path: PathBuf,
    pub(super) dependencies: Vec<Dependency>,
}

impl Package {
    /// Its directory below `crates/`, if it lies there.
    pub(super) fn crate_dir(&self) -> Option<&str> {
        let mut parts = self.manifest_path.iter().rev().skip(1);
        let (dir, parent) = (parts.next()?, parts.next()?);
        dir.to_str().filter(|_| parent == "crates")
    }
}

/// One line of a dependency table.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Dependency {
    pub(super) name: String,
    pub(super) kind: Option<Kind>,
}

/// Which table the dependency stands in; normal dependencies have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Kind {
    Dev,
    Build,
}

/// All workspace members.
pub(super) fn read() -> anyhow::Result<Vec<Package>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    let output = cargo::command(&["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("cannot start cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    Ok(metadata.packages)
}

/// Which package names every package name depends on, after the lock file. It does not tell kinds of dependencies
/// apart, so it serves for packages of others, whose development dependencies are not in it.
pub(super) fn lock_graph(root: &Path) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    let path = root.join("Cargo.lock");
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    parse_lock(&text).with_context(|| path.display().to_string())
}

fn parse_lock(text: &str) -> anyhow::Result<BTreeMap<String, BTreeSet<String>>> {
    #[derive(Deserialize)]
    struct Lock {
        package: Vec<Locked>,
    }
    #[derive(Deserialize)]
    struct Locked {
        name: String,
        #[serde(default)]
        dependencies: Vec<String>,
    }
    let lock: Lock = toml::from_str(text)?;
    let mut graph: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for locked in lock.package {
        // A dependency reads `name`, or `name version` where there are several.
        let names = locked.dependencies.iter().filter_map(|line| line.split(' ').next()).map(str::to_owned);
        graph.entry(locked.name).or_default().extend(names);
    }
    Ok(graph)
}

/// A crate of that name with these dependencies.
#[cfg(test)]
pub(super) fn package(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Package {
    let dir = name.strip_prefix("oqvl-").unwrap_or(name);
    let line = |&(name, kind): &(&str, Option<Kind>)| Dependency { name: name.to_owned(), kind };
    Package {
        name: name.to_owned(),
        description: None,
        license: None,
        manifest_path: format!("/repo/crates/{dir}/Cargo.toml").into(),
        dependencies: dependencies.iter().map(line).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_one_name_are_one_node() {
        let text = "version = 4\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\ndependencies = [\"b 1.0.0\", \"c\"]\n\
                    [[package]]\nname = \"a\"\nversion = \"2.0.0\"\ndependencies = [\"d\"]\n";
        let graph = parse_lock(text).unwrap();
        assert_eq!(graph["a"].iter().collect::<Vec<_>>(), ["b", "c", "d"]);
    }
}
