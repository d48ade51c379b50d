//! What the works with networks share: random models of real sizes in transformers' folders.

use super::super::Context;
use super::super::record::Check;
use crate::exit::Exit;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Threads of both sides.
pub(super) const THREADS: &str = "2";

/// The tokenizers are not made, they are those that lie beside the checkout.
pub(super) fn tokenizer(context: &Context, name: &str) -> anyhow::Result<PathBuf> {
    let dir = context.shared_data().map(|data| data.join("tokenizers").join(name));
    dir.filter(|dir| dir.is_dir()).ok_or_else(|| {
        Exit::wrong_request(format!("this work needs the tokenizer `{name}` in ../shared/data/tokenizers"))
    })
}

/// The folder of a model: made by `make_models.py` with the seed and the sizes it names.
pub(super) fn model(context: &Context, kind: &str, tokenizer_name: &str) -> anyhow::Result<PathBuf> {
    let dir = context.data_dir.join(kind);
    // Written last by the script.
    if dir.join("tokenizer_config.json").is_file() {
        return Ok(dir);
    }
    println!("  making {kind}");
    let mut make = Command::new(context.models_venv()?.python());
    make.arg(context.script("make_models.py")).arg(kind).arg(&dir).arg(tokenizer(context, tokenizer_name)?);
    if context.quick {
        make.arg("--quick");
    }
    let status = make.stdin(Stdio::null()).status()?;
    anyhow::ensure!(status.success(), "make_models.py failed ({status})");
    Ok(dir)
}

/// Whether two lists of numbers lie within `bound` of each other.
pub(super) fn near(what: &str, peer: &[f64], ours: &[f64], bound: f64) -> Check {
    let distance = peer.iter().zip(ours).map(|(peer, ours)| (peer - ours).abs()).fold(0.0, f64::max);
    let passed = !peer.is_empty() && peer.len() == ours.len() && distance <= bound;
    let detail = json!({ "largest": distance, "allowed": bound, "peer": peer.len(), "ours": ours.len() });
    Check::new(what, passed, detail)
}

/// The versions of the packages that did the work.
pub(super) fn versions(context: &Context) -> anyhow::Result<serde_json::Map<String, Value>> {
    context.models_venv()?.versions()
}
