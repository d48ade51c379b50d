//! What a step of Open-Qwen2VL's pre-training costs, counted: `cargo run --release -p oqvl-training-step --example count`.
//!
//! Times are what an H200 would need for as many operations and bytes at the speeds that others have measured, 790 TFLOP/s in bf16
//! and 4.3 TB/s. They are no measurement: kernels are slower than that, by what docs/gpu.md will say.

use oqvl_kernels::backend::Count;
use oqvl_training_step::{Activations, Cost, PAPER, PAPER_TOWER};
use std::io::Write as _;

const OPERATIONS_PER_SECOND: f64 = 790e12;
const BYTES_PER_SECOND: f64 = 4.3e12;

fn main() -> anyhow::Result<()> {
    let mut to = std::io::stdout().lock();
    let tower = Cost::of_tower(PAPER_TOWER)?;
    let images = PAPER_TOWER.batch;
    write!(to, "{}", table(&format!("vision tower, forward, {images} images"), &tower))?;
    for activations in [Activations::Saved, Activations::CheapRecomputed] {
        let name = format!("projector and language model, {} tokens, {activations:?}", PAPER.rows);
        write!(to, "\n{}", table(&name, &Cost::of_paper(activations)?))?;
    }
    Ok(())
}

fn table(name: &str, cost: &Cost) -> String {
    let gigabytes = cost.memory_bytes as f64 / 1e9;
    let mut text = format!("{name}: {gigabytes:.2} GB of memory\n\n");
    text += "| operation | calls | TFLOP | GB | ms |\n|---|---:|---:|---:|---:|\n";
    let (mut total, mut total_time) = (Count::default(), 0.0);
    for (operation, count) in &cost.counts {
        let time =
            1e3 * (count.cost.operations / OPERATIONS_PER_SECOND).max(count.cost.bytes / BYTES_PER_SECOND);
        text += &row(operation, count, time);
        total.calls += count.calls;
        total.cost.operations += count.cost.operations;
        total.cost.bytes += count.cost.bytes;
        total_time += time;
    }
    text + &row("all", &total, total_time)
}

fn row(operation: &str, count: &Count, milliseconds: f64) -> String {
    let Count { calls, cost } = count;
    let (tera, giga) = (cost.operations / 1e12, cost.bytes / 1e9);
    format!("| {operation} | {calls} | {tera:.2} | {giga:.2} | {milliseconds:.2} |\n")
}
