//! Operators that candle computes without a backward pass must not appear where gradients have to flow.
//!
//! They do not fail there: their result is silently detached, and the parameters below never learn. Code that only
//! ever runs forward says so with the marker [`FORWARD_ONLY`] in a comment on the same line or on the line above.

use super::Source;
use super::packages::{Kind, Package};

/// Crates whose networks are trained.
const TRAINABLE: [&str; 5] = ["bootstrap", "kernels", "model", "sft", "trainer"];
/// Crates that ask networks and never train one.
const ASKING: [&str; 5] = ["chat", "clip-filter", "evaluator", "export", "mlm-filter"];
/// Who depends on one of these has networks; who depends on the last trains them.
const NETWORKS: [&str; 4] = ["candle-core", "oqvl-kernels", "oqvl-model", TRAINER];
const TRAINER: &str = "oqvl-trainer";
/// Comment that allows a forward-only operator, with the reason after it.
const FORWARD_ONLY: &str = "forward only:";
/// Names that exist in candle alone.
const NAMES: [&str; 18] = [
    "softmax_last_dim",
    "sdpa",
    "rope_i",
    "rope_thd",
    "flash_attn",
    "flash_attn_varlen_cpu",
    "run_flash_attn_cpu",
    "moe_gemm",
    "apply_op1_no_bwd",
    "apply_op2_no_bwd",
    "apply_op3_no_bwd",
    // What they write has no past.
    "inplace_op1",
    "inplace_op2",
    "inplace_op3",
    "slice_set",
    "scatter_set",
    "scatter_add_set",
    "detach",
];
/// Paths whose last word alone would be too common.
const PATHS: [&str; 4] = ["ops::rms_norm", "ops::layer_norm", "rotary_emb::rope", "BackpropOp::none"];
/// What `candle_nn` has under names that are as common: operators, modules whose `forward` takes the fused path, and what
/// makes those.
const IN_CANDLE_NN: [&str; 7] =
    ["RmsNorm", "LayerNorm", "rms_norm", "layer_norm", "layer_norm_no_bias", "rope", "kv_cache"];

/// Checks that it is known of every crate with networks whether it trains them.
pub(super) fn check_crates(packages: &[Package]) -> Vec<String> {
    let mut violations = Vec::new();
    let known = |name: &str| packages.iter().any(|package| package.crate_dir() == Some(name));
    for name in TRAINABLE.iter().chain(&ASKING).filter(|name| !known(name)) {
        violations.push(format!("crates/{name} is not there: take it off the lists of xtask's trainable.rs"));
    }
    for package in packages {
        let Some(name) = package.crate_dir() else { continue };
        let needs = |wanted: &str| {
            package.dependencies.iter().any(|needed| needed.name == wanted && needed.kind != Some(Kind::Dev))
        };
        if needs(TRAINER) && !TRAINABLE.contains(&name) {
            violations.push(format!("crates/{name} trains networks: add it to TRAINABLE of xtask"));
        } else if NETWORKS.into_iter().any(needs) && !TRAINABLE.iter().chain(&ASKING).any(|it| *it == name) {
            violations.push(format!(
                "crates/{name} has networks: add it to TRAINABLE of xtask, or to ASKING if it trains none"
            ));
        }
    }
    violations
}

/// Looks for forward-only operators in a file of a trainable crate.
pub(super) fn check(source: &Source) -> Vec<String> {
    let in_library = source.path.contains("/src/");
    if !in_library || !source.crate_dir().is_some_and(|name| TRAINABLE.contains(&name)) {
        return Vec::new();
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let mut inside_use = false;
    let mut violations = Vec::new();
    for (number, code) in source.code_lines() {
        inside_use |= code.contains("use candle_nn::");
        let found = NAMES.iter().chain(&PATHS).find(|name| has_word(code, name)).copied().or_else(|| {
            IN_CANDLE_NN.into_iter().find(|name| {
                has_word(code, &format!("candle_nn::{name}")) || (inside_use && has_word(code, name))
            })
        });
        if code.contains(';') {
            inside_use = false;
        }
        if has_word(code, "candle_nn as") {
            violations.push(format!(
                "{}:{number}: `candle_nn` under another name: what detaches is found by its own",
                source.path
            ));
        }
        let above = number.checked_sub(2).map(|index| lines[index]).unwrap_or_default();
        if let Some(name) =
            found.filter(|_| ![above, lines[number - 1]].iter().any(|l| l.contains(FORWARD_ONLY)))
        {
            violations.push(format!(
                "{}:{number}: `{name}` has no backward in candle and detaches silently; mark it `// {FORWARD_ONLY} why` \
                 or use an operator that has one",
                source.path
            ));
        }
    }
    violations
}

/// Whether `word` stands in `code` with no letter, digit or underscore on either side.
fn has_word(code: &str, word: &str) -> bool {
    let is_part = |character: Option<char>| character.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(start, _)| {
        !is_part(code[..start].chars().next_back()) && !is_part(code[start + word.len()..].chars().next())
    })
}

#[cfg(test)]
mod tests {
    use super::super::packages::package;
    use super::*;

    fn check(path: &str, text: &str) -> usize {
        super::check(&Source { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn fused_operators_are_found_however_they_are_named() {
        for line in [
            "let y = candle_nn::ops::softmax_last_dim(&x)?;",
            "let y = ops::rms_norm(&x, &w, eps)?;",
            "use candle_nn as nn;",
            "use candle_nn::kv_cache::KvCache;",
            "let y = candle_nn::rotary_emb::rope(&x, &cos, &sin)?;",
            "use candle_nn::{Linear, RmsNorm};",
            "use candle_nn::{\n    LayerNorm,\n    Linear,\n};",
            "use candle_nn::{ops::{rms_norm, softmax}, rotary_emb::rope_slow};",
            "let norm = candle_nn::layer_norm_no_bias(h, eps, vb)?;",
            "let y = x.apply_op3_no_bwd(&w, &b, &op)?;",
            "cache.slice_set(&keys, 2, len)?;",
            "let x = x.detach();",
            "Tensor::from_storage(storage, shape, BackpropOp::none(), false)",
            "norm: candle_nn::LayerNorm,",
        ] {
            for name in TRAINABLE {
                assert_eq!(check(&format!("crates/{name}/src/a.rs"), line), 1, "{line}");
            }
            assert_eq!(check("crates/packer/src/a.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn twins_with_a_backward_own_types_and_comments_pass() {
        for line in [
            "let y = candle_nn::ops::softmax(&x, D::Minus1)?;",
            "let y = rotary_emb::rope_slow(&x, &cos, &sin)?;",
            "let eps = config.rms_norm_eps;",
            "use candle_nn::Linear;\nstruct RmsNorm;",
            "use candle_nn::Linear;\nlet y = rope(&x, &tables, 0)?;",
            "use candle_nn::{ops::softmax, rotary_emb::rope_slow};",
            "let x = x.apply_op3(&w, &b, op)?;",
            "// softmax_last_dim would detach.",
        ] {
            assert_eq!(check("crates/model/src/a.rs", line), 0, "{line}");
        }
    }

    #[test]
    fn marked_lines_pass() {
        let marked =
            "// forward only: greedy decoding.\nlet y = ops::softmax_last_dim(&x)?;\nlet z = sdpa(&x)?;";
        assert_eq!(check("crates/model/src/a.rs", marked), 1);
    }

    #[test]
    fn every_crate_with_networks_is_listed() {
        let listed = TRAINABLE.iter().chain(&ASKING);
        let mut packages: Vec<Package> =
            listed.map(|name| package(&format!("oqvl-{name}"), &[("oqvl-model", None)])).collect();
        packages.push(package("oqvl-packer", &[("candle-core", Some(Kind::Dev)), ("serde", None)]));
        assert_eq!(check_crates(&packages), Vec::<String>::new());
        packages.push(package("oqvl-engine", &[("oqvl-kernels", None)]));
        packages.push(package("oqvl-chat", &[("oqvl-trainer", None)]));
        let sft = packages.iter().position(|package| package.name == "oqvl-sft").unwrap();
        packages.remove(sft);
        let violations = check_crates(&packages);
        assert_eq!(violations.len(), 3, "{violations:?}");
        for (violation, part) in violations.iter().zip(["sft is not there", "engine has", "chat trains"]) {
            assert!(violation.contains(part), "{violation}");
        }
    }
}
