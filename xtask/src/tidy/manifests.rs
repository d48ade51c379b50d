//! `Cargo.toml` of every member: described, licensed, linted, and without versions of its own.

use super::packages::Package;
use anyhow::Context;
use std::path::Path;
use toml::{Table, Value};

const DEPENDENCY_TABLES: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];
/// Keys by which a dependency would say on its own where it comes from.
const ORIGINS: [&str; 4] = ["version", "path", "git", "registry"];

/// Checks the manifests of all members.
pub(super) fn check(root: &Path, packages: &[Package]) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for package in packages {
        let shown =
            package.manifest_path.strip_prefix(root).unwrap_or(&package.manifest_path).display().to_string();
        for (key, value) in [("description", &package.description), ("license", &package.license)] {
            if value.as_deref().unwrap_or_default().trim().is_empty() {
                violations.push(format!("{shown}: no {key}"));
            }
        }
        let text = std::fs::read_to_string(&package.manifest_path).with_context(|| shown.clone())?;
        let table: Table = text.parse().with_context(|| shown.clone())?;
        violations.extend(check_table(&table).into_iter().map(|violation| format!("{shown}: {violation}")));
    }
    Ok(violations)
}

fn check_table(manifest: &Table) -> Vec<String> {
    let mut violations = Vec::new();
    let inherits =
        |value: Option<&Value>| value.and_then(|v| v.get("workspace")) == Some(&Value::Boolean(true));
    if !inherits(manifest.get("lints")) {
        violations.push("[lints] must say workspace = true".to_owned());
    }
    let targets = manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
    let places = std::iter::once(manifest).chain(targets.filter_map(Value::as_table));
    for (place, table_name) in places.flat_map(|place| DEPENDENCY_TABLES.map(|name| (place, name))) {
        for (name, dependency) in place.get(table_name).and_then(Value::as_table).into_iter().flatten() {
            let own_origin = ORIGINS.iter().any(|key| dependency.get(key).is_some());
            if !inherits(Some(dependency)) || own_origin {
                violations.push(format!("[{table_name}] {name} must come from [workspace.dependencies]"));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str) -> Vec<String> {
        check_table(&text.parse().unwrap())
    }

    #[test]
    fn inherited_dependencies_pass() {
        let text = "[lints]\nworkspace = true\n[dependencies]\na.workspace = true\nb = { workspace = true, features = [\"x\"] }";
        assert!(check(text).is_empty());
    }

    #[test]
    fn versions_and_missing_lints_do_not() {
        let text =
            "[dependencies]\na = \"1\"\n[target.'cfg(unix)'.dev-dependencies]\nb = { path = \"../b\" }";
        assert_eq!(
            check(text),
            [
                "[lints] must say workspace = true",
                "[dependencies] a must come from [workspace.dependencies]",
                "[dev-dependencies] b must come from [workspace.dependencies]",
            ]
        );
    }
}
