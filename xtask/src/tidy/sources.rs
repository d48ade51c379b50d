//! What every source file keeps to.

use super::Source;

/// File and directory names that attract what has no name yet.
const NAMELESS: [&str; 6] = ["utils", "util", "common", "helpers", "helper", "misc"];
/// What must not be left in a source file, put together so that this file does not contain it.
const UNFINISHED: [&str; 4] =
    [concat!("to", "do!("), concat!("unimple", "mented!("), concat!("db", "g!("), concat!("#[ign", "ore")];
/// Constants of the method that are defined once, in the crate that owns the idea.
const SINGLE_OWNER_VALUES: [&str; 2] = ["-200", "-100"];

/// What asks at compile time whether there are GPUs, put together like [`UNFINISHED`], and the crates that may.
const CUDA_FEATURE: &str = concat!("feature = ", "\"cuda\"");
const CUDA_CRATES: [&str; 2] = ["kernels", "collectives"];

/// Rules for one file.
pub(super) fn check(source: &Source) -> Vec<String> {
    let mut violations = Vec::new();
    let path = &source.path;
    let first_line = source.text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    if !first_line.starts_with("//!") {
        violations.push(format!("{path}: a module opens with `//!`: what it is, in a sentence"));
    }
    if path.split('/').any(|part| NAMELESS.contains(&part.trim_end_matches(".rs"))) {
        violations.push(format!("{path}: name it for what it holds"));
    }
    for (number, code) in source.code_lines() {
        for pattern in UNFINISHED.iter().filter(|pattern| code.contains(**pattern)) {
            violations.push(format!("{path}:{number}: `{pattern}` must not stay"));
        }
        if code.contains(CUDA_FEATURE) && !source.crate_dir().is_some_and(|name| CUDA_CRATES.contains(&name))
        {
            violations.push(format!("{path}:{number}: only {} ask for `cuda`", CUDA_CRATES.join(" and ")));
        }
        let trimmed = code.trim_start();
        let attribute = trimmed.strip_prefix("#[").or_else(|| trimmed.strip_prefix("#!["));
        let is_argued = code.contains("reason =") || follows_a_comment(&source.text, number);
        if attribute.is_some_and(|rest| rest.starts_with("allow(")) && !is_argued {
            violations.push(format!("{path}:{number}: an allowed lint has a reason, or a comment above it"));
        }
    }
    if path.ends_with("/src/lib.rs") && !has_worked_example(&source.text) {
        violations.push(format!("{path}: the front page needs a worked example that runs as a doctest"));
    }
    violations
}

/// Whether the line before `number`, counted from 1, is a comment.
fn follows_a_comment(text: &str, number: usize) -> bool {
    let before = number.checked_sub(2).and_then(|index| text.lines().nth(index));
    before.is_some_and(|line| line.trim_start().starts_with("// "))
}

/// Whether the `//!` lines hold a fence that rustdoc compiles.
fn has_worked_example(text: &str) -> bool {
    let mut front_page = text.lines().map(str::trim).filter_map(|line| line.strip_prefix("//!"));
    front_page.any(|line| matches!(line.trim(), "```" | "```rust" | "```no_run"))
}

/// Each of [`SINGLE_OWNER_VALUES`] is the value of at most one constant.
pub(super) fn check_single_owners(sources: &[Source]) -> Vec<String> {
    let mut violations = Vec::new();
    for value in SINGLE_OWNER_VALUES {
        let ending = format!("= {value};");
        let owners: Vec<&str> = sources
            .iter()
            .filter(|source| source.path.contains("/src/"))
            .filter(|source| {
                source.code_lines().any(|(_, code)| code.contains("const ") && code.contains(&ending))
            })
            .map(|source| source.path.as_str())
            .collect();
        if owners.len() > 1 {
            violations.push(format!("{value} is defined more than once: {}", owners.join(", ")));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(path: &str, text: &str) -> Source {
        Source { path: path.to_owned(), text: text.to_owned() }
    }

    #[test]
    fn a_module_without_a_first_sentence_is_noticed() {
        assert!(check(&source("crates/a/src/b.rs", "\n//! What it is.\nfn f() {}")).is_empty());
        assert_eq!(check(&source("crates/a/src/b.rs", "fn f() {}")).len(), 1);
        assert_eq!(check(&source("crates/a/src/b.rs", "")).len(), 1);
    }

    #[test]
    fn nameless_files_and_unfinished_code_are_noticed() {
        assert_eq!(check(&source("crates/a/src/utils.rs", "//! x")).len(), 1);
        assert_eq!(check(&source("crates/a/src/common/b.rs", "//! x")).len(), 1);
        for pattern in UNFINISHED {
            assert_eq!(
                check(&source("crates/a/src/b.rs", &format!("//! x\n  {pattern}"))).len(),
                1,
                "{pattern}"
            );
            assert!(check(&source("crates/a/src/b.rs", &format!("//! x\n// {pattern}"))).is_empty());
        }
    }

    #[test]
    fn few_crates_may_ask_for_gpus() {
        let text = format!("//! x\n#[cfg({CUDA_FEATURE})]\nmod a;");
        assert_eq!(check(&source("crates/model/src/a.rs", &text)).len(), 1);
        assert_eq!(check(&source("tests/a.rs", &text)).len(), 1);
        assert!(check(&source("crates/kernels/src/a.rs", &text)).is_empty());
    }

    #[test]
    fn an_allowed_lint_needs_a_reason() {
        let silent = concat!("//! x\n#[al", "low(dead_code)]\n");
        assert_eq!(check(&source("crates/a/src/b.rs", silent)).len(), 1);
        for argued in [
            concat!("//! x\n#![al", "low(unsafe_code, reason = \"device calls\")]\n"),
            concat!("//! x\n// Device calls.\n#![al", "low(unsafe_code)]\n"),
        ] {
            assert!(check(&source("crates/a/src/b.rs", argued)).is_empty());
        }
    }

    #[test]
    fn a_front_page_shows_how() {
        assert_eq!(check(&source("crates/a/src/lib.rs", "//! x\n//! ```text\n//! ```text")).len(), 1);
        assert!(check(&source("crates/a/src/lib.rs", "//! x\n//! ```\n//! a();\n//! ```")).is_empty());
    }

    #[test]
    fn a_constant_has_one_owner() {
        let line = concat!("pub const A: i64 = -2", "00;");
        let (left, right) = (source("crates/a/src/b.rs", line), source("crates/c/src/d.rs", line));
        assert!(check_single_owners(std::slice::from_ref(&left)).is_empty());
        assert_eq!(check_single_owners(&[left, right]).len(), 1);
    }
}
