//! Arrows between crates only point down.

use super::packages::{Kind, Package};
use std::collections::{BTreeMap, BTreeSet};

/// Prefix of every package under `crates/`.
const PREFIX: &str = "oqvl-";
/// Test support: a development dependency and nothing else.
const TESTKIT: &str = "testkit";

/// Libraries that a stage without networks may use.
const DATA: &[&str] = &["image-prep", "shard-io", "stage", "text-prep"];
/// Libraries that a stage with networks may use.
const NETWORK: &[&str] = &["image-prep", "kernels", "model", "shard-io", "stage", "text-prep"];
/// The same for a stage that trains.
const TRAINING: &[&str] = &["image-prep", "kernels", "model", "shard-io", "stage", "text-prep", "trainer"];
/// `bootstrap` trains on the very prompts that `mlm-filter` asks and owns.
const BOOTSTRAP: &[&str] =
    &["image-prep", "kernels", "mlm-filter", "model", "shard-io", "stage", "text-prep", "trainer"];

/// What each crate may depend on, from the bottom up: the picture of `docs/architecture.md`, section 2.
const ARROWS: [(&str, &[&str]); 20] = [
    ("image-prep", &[]),
    ("kernels", &[]),
    ("shard-io", &[]),
    ("text-prep", &[]),
    ("stage", &["shard-io"]),
    ("testkit", &["shard-io"]),
    ("model", &["image-prep", "kernels", "shard-io", "text-prep"]),
    ("data-fetch", DATA),
    ("micro-world", DATA),
    ("mixer", DATA),
    ("packer", DATA),
    ("report", DATA),
    ("clip-filter", NETWORK),
    ("evaluator", NETWORK),
    ("mlm-filter", NETWORK),
    ("trainer", NETWORK),
    ("export", &["model", "shard-io", "stage", "text-prep"]),
    ("chat", NETWORK),
    ("bootstrap", BOOTSTRAP),
    ("sft", TRAINING),
];

/// Crates below which candle must not appear: who only handles data compiles in a minute.
const CANDLE_FREE: [&str; 10] = [
    "data-fetch",
    "image-prep",
    "micro-world",
    "mixer",
    "packer",
    "report",
    "shard-io",
    "stage",
    "testkit",
    "text-prep",
];

/// Every arrow of every crate against [`ARROWS`].
pub(super) fn check(packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    for package in packages {
        let Some(name) = package.name.strip_prefix(PREFIX).filter(|_| package.crate_dir().is_some()) else {
            continue;
        };
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            violations
                .push(format!("crates/{name} has no place in the map: add it to xtask's ARROWS and the map"));
            continue;
        };
        for dependency in &package.dependencies {
            let Some(target) = dependency.name.strip_prefix(PREFIX) else { continue };
            // Test support may not test what it is made of: such a circle cannot be published.
            let is_test_support = target == TESTKIT && dependency.kind == Some(Kind::Dev) && !supports(name);
            if !allowed.contains(&target) && !is_test_support {
                violations.push(format!("crates/{name} may not depend on {target}: arrows only point down"));
            }
        }
    }
    violations
}

/// Whether test support itself stands on this crate.
fn supports(name: &str) -> bool {
    ARROWS.iter().any(|(known, allowed)| *known == TESTKIT && (*known == name || allowed.contains(&name)))
}

/// No path from a [`CANDLE_FREE`] crate to a candle package, development dependencies aside.
pub(super) fn check_candle_free(
    packages: &[Package],
    lock: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<String> {
    let own: BTreeMap<&str, &Package> =
        packages.iter().map(|package| (package.name.as_str(), package)).collect();
    let mut violations = Vec::new();
    for name in CANDLE_FREE {
        let start = format!("{PREFIX}{name}");
        let mut reached: BTreeSet<String> = BTreeSet::from([start.clone()]);
        let mut pending = vec![start];
        while let Some(current) = pending.pop() {
            let next: Vec<String> = match own.get(current.as_str()) {
                Some(package) => {
                    let shipped = package.dependencies.iter().filter(|d| d.kind != Some(Kind::Dev));
                    shipped.map(|dependency| dependency.name.clone()).collect()
                }
                None => lock.get(&current).into_iter().flatten().cloned().collect(),
            };
            pending.extend(next.into_iter().filter(|target| reached.insert(target.clone())));
        }
        let candle = reached.iter().find(|reached| reached.starts_with("candle-"));
        violations
            .extend(candle.map(|candle| format!("crates/{name} must not link candle, but reaches {candle}")));
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::packages::package;
    use super::*;

    #[test]
    fn arrows_down_pass_and_arrows_up_do_not() {
        let fine = package(
            "oqvl-packer",
            &[("oqvl-shard-io", None), ("oqvl-testkit", Some(Kind::Dev)), ("serde", None)],
        );
        assert!(check(&[fine]).is_empty());
        let up = package("oqvl-shard-io", &[("oqvl-packer", None)]);
        assert_eq!(check(&[up]), ["crates/shard-io may not depend on packer: arrows only point down"]);
        let sideways = package("oqvl-packer", &[("oqvl-mixer", Some(Kind::Dev))]);
        assert_eq!(check(&[sideways]).len(), 1);
    }

    #[test]
    fn test_support_is_for_tests_of_those_above_it() {
        assert_eq!(check(&[package("oqvl-packer", &[("oqvl-testkit", None)])]).len(), 1);
        assert_eq!(check(&[package("oqvl-shard-io", &[("oqvl-testkit", Some(Kind::Dev))])]).len(), 1);
    }

    #[test]
    fn a_crate_without_a_place_is_noticed() {
        assert!(check(&[package("oqvl-helpers", &[])])[0].contains("no place in the map"));
    }

    #[test]
    fn candle_is_found_behind_others_but_not_in_tests() {
        let lock = BTreeMap::from([("middle".to_owned(), BTreeSet::from(["candle-core".to_owned()]))]);
        let through = package("oqvl-packer", &[("middle", None)]);
        let violations = check_candle_free(&[through], &lock);
        assert_eq!(violations, ["crates/packer must not link candle, but reaches candle-core"]);
        let in_tests = package("oqvl-packer", &[("middle", Some(Kind::Dev))]);
        assert!(check_candle_free(&[in_tests], &lock).is_empty());
    }
}
