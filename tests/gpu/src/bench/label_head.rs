//! The head of a language model with its loss, forward and backward, beside PyTorch on all logits.

use super::{Figure, Peer, Sizes, Space, Timed, Work, time, timings};
use crate::case::LabelHeadCall;
use crate::torch::Torch;
use anyhow::Context as _;
use oqvl_kernels::label_head::HeadSizes;
use serde::Deserialize;

/// How many times as fast as PyTorch it has to be.
const SPEED_BOUND: f64 = 3.0;
/// How many times as much memory PyTorch has to need.
const SPACE_BOUND: f64 = 5.0;
const IGNORE: i32 = -1;

/// What PyTorch answers.
#[derive(Debug, Deserialize)]
struct Times {
    seconds: f64,
    /// Most bytes at one time besides states, weight and their gradients.
    peak_bytes: f64,
}

/// Of one pack, of which as many rows carry a label as in the pre-training.
pub(super) fn figure<B: Timed>(b: &B, torch: Option<&Torch>, sizes: Sizes) -> anyhow::Result<Figure> {
    let Sizes { pack_rows: rows, hidden, vocab, label_rows, chunk_rows, .. } = sizes;
    println!("cross_entropy: {label_rows} of {rows} rows, {vocab} tokens");
    let calls =
        [serde_json::json!({ "rows": rows, "label_rows": label_rows, "hidden": hidden, "vocab": vocab })];
    let times = timings::<Times>(torch, "label_head", &calls);
    // Labels are spread over the pack.
    let has_label = |row: usize| (row + 1) * label_rows / rows > row * label_rows / rows;
    let labels: Vec<i32> =
        (0..rows).map(|row| if has_label(row) { (row * 37 % vocab) as i32 } else { IGNORE }).collect();
    let call = LabelHeadCall { rows, hidden, vocab, chunk_rows };
    let mut buffers = call.buffers(b, &labels, IGNORE, |len| super::numbers(b, len))?;
    b.fill(b.slice_mut(&mut buffers.dweight), 0.0)?;
    let runs = time(b, || call.step(b, &mut buffers, IGNORE))?;
    // Three products over the rows with a label: logits and both gradients.
    let work = Work::Operations(6.0 * (label_rows * hidden * vocab) as f64);
    let what = format!(
        "head, loss and gradients, {label_rows} of {rows} rows with a label, {hidden} channels, {vocab} tokens"
    );
    let mut figure = Figure::new("cross_entropy", what, runs, work);
    if let Some(times) = times {
        let Times { seconds, peak_bytes } = times.first().context("PyTorch answers no call")?;
        let name = "PyTorch: all logits, F.cross_entropy".to_owned();
        figure.peer = Some(Peer { name, seconds: *seconds, bound: SPEED_BOUND });
        let ours = HeadSizes { rows, label_rows, hidden, vocab, chunk_rows }.bytes();
        let ours = ours.context("the sizes can be counted")? as f64;
        figure.space = Some(Space { ours, peer: *peak_bytes, bound: SPACE_BOUND });
    }
    Ok(figure)
}
