//! Operators that candle computes without a backward pass must not appear where gradients have to flow.
//!
//! They do not fail there: their result is silently detached, and the parameters below never learn. Code that only
//! ever runs forward says so with the marker [`FORWARD_ONLY`] in a comment on the same line or on the line above.

use super::Source;

/// Crates whose networks are trained.
const TRAINABLE: [&str; 5] = ["bootstrap", "kernels", "model", "sft", "trainer"];
/// Comment that allows a forward-only operator, with the reason after it.
const FORWARD_ONLY: &str = "forward only:";
/// Names that exist in candle alone.
const NAMES: [&str; 5] = ["softmax_last_dim", "sdpa", "rope_i", "rope_thd", "apply_op1_no_bwd"];
/// Paths whose last word alone would be too common.
const PATHS: [&str; 6] = [
    "ops::rms_norm",
    "ops::layer_norm",
    "rotary_emb::rope",
    "candle_nn::rms_norm",
    "candle_nn::layer_norm",
    "candle_nn::layer_norm_no_bias",
];
/// Modules of `candle_nn` whose `forward` takes the fused path.
const MODULES: [&str; 2] = ["RmsNorm", "LayerNorm"];

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
            MODULES.into_iter().find(|module| {
                has_word(code, &format!("candle_nn::{module}")) || (inside_use && has_word(code, module))
            })
        });
        if code.contains(';') {
            inside_use = false;
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
    use super::*;

    fn check(path: &str, text: &str) -> usize {
        super::check(&Source { path: path.to_owned(), text: text.to_owned() }).len()
    }

    #[test]
    fn fused_operators_are_found_however_they_are_named() {
        for line in [
            "let y = candle_nn::ops::softmax_last_dim(&x)?;",
            "let y = ops::rms_norm(&x, &w, eps)?;",
            "let y = candle_nn::rotary_emb::rope(&x, &cos, &sin)?;",
            "use candle_nn::{Linear, RmsNorm};",
            "use candle_nn::{\n    LayerNorm,\n    Linear,\n};",
            "norm: candle_nn::LayerNorm,",
        ] {
            assert_eq!(check("crates/model/src/a.rs", line), 1, "{line}");
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
}
