//! The top level is fixed, so that a newcomer takes it in at one glance.

use anyhow::Context;
use std::fs;
use std::path::Path;

/// What may lie at the top besides dotted tool files.
const ENTRIES: [&str; 12] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "benches",
    "configs",
    "crates",
    "docs",
    "rust-toolchain.toml",
    "tests",
    "xtask",
];
/// What a build or a run leaves there; ignored by git.
const IGNORED: [&str; 2] = ["target", "work"];
const MAP: &str = "docs/architecture.md";

/// Checks the entries of the root and that the map names every crate.
pub(super) fn check(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut violations = check_entries(&names_in(root)?);
    let map = root.join(MAP);
    match fs::read_to_string(&map) {
        Ok(text) => violations.extend(check_map(&text, &names_in(&root.join("crates"))?)),
        Err(error) => violations.push(format!("{MAP}: {error}")),
    }
    Ok(violations)
}

fn names_in(directory: &Path) -> anyhow::Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<String> = entries
        .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_, _>>()?;
    names.sort();
    Ok(names)
}

fn check_entries(names: &[String]) -> Vec<String> {
    let extra = names.iter().map(String::as_str).filter(|name| !name.starts_with('.'));
    let extra = extra.filter(|name| !ENTRIES.contains(name) && !IGNORED.contains(name));
    let missing = ENTRIES.iter().filter(|entry| names.iter().all(|name| name != *entry));
    extra
        .map(|name| format!("{name}: the top level is fixed; docs/architecture.md says where things go"))
        .chain(missing.map(|entry| format!("{entry}: missing at the top level")))
        .collect()
}

fn check_map(map: &str, crates: &[String]) -> Vec<String> {
    let named = |name: &str| map.lines().any(|line| line.trim_start().starts_with(&format!("{name}/")));
    let absent = crates.iter().filter(|name| !name.starts_with('.') && !named(name));
    absent.map(|name| format!("{MAP}: the layout does not name crates/{name}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_and_gaps_are_named() {
        let mut names: Vec<String> = ENTRIES.iter().chain(&IGNORED).map(|name| (*name).to_owned()).collect();
        names.push(".gitignore".to_owned());
        assert!(check_entries(&names).is_empty());
        names.push("notes.txt".to_owned());
        names.retain(|name| name != "README.md");
        let violations = check_entries(&names);
        assert_eq!(violations.len(), 2);
        assert!(violations[0].starts_with("notes.txt:") && violations[1].starts_with("README.md:"));
    }

    #[test]
    fn the_map_names_every_crate() {
        let map = "crates/\n  packer/   packs\n";
        let crates = ["packer".to_owned(), "mixer".to_owned()];
        assert_eq!(check_map(map, &crates), ["docs/architecture.md: the layout does not name crates/mixer"]);
    }
}
