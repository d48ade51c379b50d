//! How long operations take, beside PyTorch on the same GPU and beside a copy.

mod adamw;
mod attention;
mod gemm;
mod label_head;
mod streams;

use crate::torch::Torch;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::device::{Cuda, Float, Memory as _};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::Write as _;

const WARM_UP_RUNS: usize = 10;
const RUNS: usize = 50;
/// Larger than the caches of any GPU, so that copies and what is held against them go through memory.
const COPY_BYTES: usize = 1 << 30;
/// The figure that others are held against.
const COPY: &str = "copy";

/// One timing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Figure {
    pub(crate) op: String,
    pub(crate) what: String,
    /// Median of the runs.
    pub(crate) seconds: f64,
    /// The tenth and the ninetieth of a hundred.
    pub(crate) spread: (f64, f64),
    /// What it was held against.
    pub(crate) peer: Option<Peer>,
    /// What was timed beside it, and nothing is asked of: seconds by name.
    #[serde(default)]
    pub(crate) beside: BTreeMap<String, f64>,
    /// Memory that it takes, where less is asked for.
    #[serde(default)]
    pub(crate) space: Option<Space>,
    /// What it does.
    pub(crate) work: Work,
}

/// The other side of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) seconds: f64,
    /// The share of the peer's speed that is asked for.
    pub(crate) bound: f64,
}

/// Memory of ours and of the peer, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Space {
    pub(crate) ours: f64,
    pub(crate) peer: f64,
    /// How many times the peer's has to be ours.
    pub(crate) bound: f64,
}

impl Space {
    fn is_met(&self) -> bool {
        self.peer >= self.bound * self.ours
    }
}

/// What makes a time a speed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Work {
    /// Products and sums, two for each multiply-add.
    Operations(f64),
    /// Bytes that have to be read and written at least.
    Bytes(f64),
}

impl Figure {
    fn new(op: &str, what: String, mut runs: Vec<f64>, work: Work) -> Self {
        runs.sort_by(f64::total_cmp);
        let at = |share: f64| runs[((runs.len() - 1) as f64 * share).round() as usize];
        Self {
            op: op.to_owned(),
            what,
            seconds: at(0.5),
            spread: (at(0.1), at(0.9)),
            peer: None,
            beside: BTreeMap::new(),
            space: None,
            work,
        }
    }

    /// Whether it is as fast, and takes as little memory, as is asked for. What nothing is asked of is; what was not timed beside
    /// its peer is not.
    pub(crate) fn is_met(&self) -> bool {
        self.op == COPY || self.is_fast() && self.space.is_none_or(|space| space.is_met())
    }

    fn is_fast(&self) -> bool {
        self.share().zip(self.peer.as_ref()).is_some_and(|(share, peer)| share >= peer.bound)
    }

    /// Ours over the peer's speed; above 1 is faster.
    fn share(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| peer.seconds / self.seconds)
    }
}

/// Seconds by what PyTorch computes with.
type Backends = BTreeMap<String, f64>;

/// A backend that can be timed.
pub(crate) trait Timed: Backend {
    /// Seconds that each run takes, after some that are not counted.
    fn seconds(&self, work: impl FnMut() -> candle_core::Result<()>) -> candle_core::Result<Vec<f64>>;
}

impl Timed for Cuda {
    fn seconds(&self, mut work: impl FnMut() -> candle_core::Result<()>) -> candle_core::Result<Vec<f64>> {
        Cuda::seconds(self, WARM_UP_RUNS, &mut work)?;
        Cuda::seconds(self, RUNS, work)
    }
}

/// What is timed: the sizes of Qwen2.5-1.5B and of SigLIP, so many packs at a time that nothing stays in a cache.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Rows of all packs together, and of one.
    rows: usize,
    pack_rows: usize,
    hidden: usize,
    intermediate: usize,
    heads: (usize, usize),
    head_dim: usize,
    vocab: usize,
    /// Images of all packs, the edge of their grids and of those that are pooled, pixels along a patch, and channels.
    images: usize,
    grid: usize,
    pooled: usize,
    patch: usize,
    vision: usize,
    /// Rows of a pack that carry a label, and how many of them are multiplied at a time.
    label_rows: usize,
    chunk_rows: usize,
    /// Weights of the optimizer.
    parameters: usize,
}

impl Sizes {
    /// Of training, on a GPU with so much memory.
    fn of_training(memory_bytes: u64) -> Self {
        Self {
            rows: 131_072,
            pack_rows: 4096,
            hidden: 1536,
            intermediate: 8960,
            heads: (12, 2),
            head_dim: 128,
            vocab: 151_936,
            images: 23 * 32,
            grid: 27,
            pooled: 12,
            patch: 14,
            vision: 1152,
            // Of a pack of the pre-training.
            label_rows: 746,
            chunk_rows: 1024,
            parameters: adamw::parameters(memory_bytes),
        }
    }
}

/// Times the operations that are wanted.
pub(crate) fn run(
    cuda: &Cuda,
    torch: Option<&Torch>,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Figure>> {
    let sizes = Sizes::of_training(cuda.description()?.memory_bytes);
    let mut figures = Vec::new();
    if wanted("attention") {
        figures.extend(attention::figures(cuda, torch, &attention::CALLS)?);
    }
    if wanted("gemm") {
        figures.extend(gemm::figures(cuda, torch, &gemm::CALLS)?);
    }
    if wanted("cross_entropy") {
        figures.push(label_head::figure(cuda, torch, sizes)?);
    }
    if wanted("adamw") || streams::OPS.iter().any(|op| wanted(op)) {
        let copy = copy(cuda)?;
        figures.extend(streams::figures(cuda, torch, sizes, &copy, &wanted)?);
        // Last: this program keeps the memory that it has had.
        if wanted("adamw") {
            figures.extend(adamw::figures(cuda, torch, sizes, &copy)?);
        }
        figures.push(copy);
    }
    anyhow::ensure!(!figures.is_empty(), "a training step is checked, and not timed");
    Ok(figures)
}

/// Runs of something that was run before.
fn time<B: Timed>(b: &B, work: impl FnMut() -> candle_core::Result<()>) -> anyhow::Result<Vec<f64>> {
    println!("  {RUNS} runs");
    Ok(b.seconds(work)?)
}

/// Numbers between -1 and 1 that repeat; what they are makes no difference to the time, that they are none but finite does.
fn numbers<B: Backend>(b: &B, len: usize) -> anyhow::Result<B::Buffer<B::Half>> {
    let cycle: Vec<B::Half> =
        (0..101).map(|i| B::Half::from_f64(f64::from(i * 37 % 101) / 50.0 - 1.0)).collect();
    let values: Vec<B::Half> = cycle.into_iter().cycle().take(len).collect();
    Ok(b.upload(&values)?)
}

fn room<B: Backend>(b: &B, len: usize) -> anyhow::Result<B::Buffer<B::Half>> {
    Ok(b.poisoned(len)?)
}

fn full_room<B: Backend>(b: &B, len: usize) -> anyhow::Result<B::Buffer<B::Full>> {
    Ok(b.poisoned(len)?)
}

/// What PyTorch times of a request; `None`, after a line that says why, where it does not.
fn timings<A: serde::de::DeserializeOwned>(
    torch: Option<&Torch>,
    what: &str,
    calls: &impl Serialize,
) -> Option<Vec<A>> {
    let torch = torch?;
    println!("{what} of PyTorch");
    match torch.timings(&serde_json::json!({ what: calls })) {
        Ok(times) => Some(times),
        Err(error) => {
            println!("PyTorch gives no times: {error:#}");
            None
        }
    }
}

/// The fastest of PyTorch's ways.
fn best(backends: &Backends, bound: f64) -> Option<Peer> {
    let (name, seconds) = backends.iter().min_by(|left, right| left.1.total_cmp(right.1))?;
    Some(Peer { name: format!("PyTorch, {name}"), seconds: *seconds, bound })
}

/// The bandwidth that others are held against: a copy within the memory of the GPU.
fn copy(cuda: &Cuda) -> anyhow::Result<Figure> {
    println!("a copy within the GPU");
    let from = cuda.poisoned::<u8>(COPY_BYTES)?;
    let mut to = cuda.poisoned::<u8>(COPY_BYTES)?;
    let runs = time(cuda, || cuda.copy(&from, &mut to))?;
    Ok(Figure::new(COPY, "1 GiB within the GPU".to_owned(), runs, Work::Bytes(2.0 * COPY_BYTES as f64)))
}

/// Holds a figure against the bandwidth of a copy.
fn beside_copy(mut figure: Figure, copy: &Figure, bound: f64) -> Figure {
    if let (Work::Bytes(bytes), Work::Bytes(copied)) = (figure.work, copy.work) {
        let seconds = copy.seconds * bytes / copied;
        figure.peer = Some(Peer { name: "a copy of as many bytes".to_owned(), seconds, bound });
    }
    figure
}

/// The share of the bandwidth of a copy that is asked for.
const BANDWIDTH_BOUND: f64 = 0.8;

/// The figures for a person.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = "| op | what | median | 10 % to 90 % | speed | beside | its median | ours to its speed | asked for | | |\n\
                    |---|---|---:|---:|---:|---|---:|---:|---:|---|---|\n"
        .to_owned();
    for figure in figures {
        let speed = match figure.work {
            Work::Operations(operations) => format!("{:.0} TFLOP/s", operations / figure.seconds / 1e12),
            Work::Bytes(bytes) => format!("{:.0} GB/s", bytes / figure.seconds / 1e9),
        };
        let microseconds = |seconds: f64| format!("{:.1} us", seconds * 1e6);
        let (low, high) = figure.spread;
        let _ = write!(
            text,
            "| {} | {} | {} | {} to {} | {speed} |",
            figure.op,
            figure.what,
            microseconds(figure.seconds),
            microseconds(low),
            microseconds(high)
        );
        let _ = match (&figure.peer, figure.share()) {
            (Some(peer), Some(share)) => {
                let verdict = if figure.is_met() { "kept" } else { "**missed**" };
                let its = microseconds(peer.seconds);
                write!(text, " {} | {its} | {share:.2} | {:.2} | {verdict}", peer.name, peer.bound)
            }
            _ => write!(text, " | | | |"),
        };
        let mut remarks = Vec::new();
        if let Some(Space { ours, peer, bound }) = figure.space {
            let megabytes = |bytes: f64| format!("{:.0} MB", bytes / 1e6);
            let (ours, peer, share) = (megabytes(ours), megabytes(peer), peer / ours);
            remarks.push(format!("{ours} of memory, its {peer}: {share:.1} times, asked for {bound:.0}"));
        }
        remarks.extend(
            figure.beside.iter().map(|(name, seconds)| format!("{name}: {}", microseconds(*seconds))),
        );
        let _ = writeln!(text, " | {} |", remarks.join("; "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::OPS;
    use std::collections::BTreeSet;

    #[test]
    fn a_figure_is_the_median_and_its_speed_is_held_against_the_bound() {
        let runs = vec![4e-3, 1e-3, 2e-3, 3e-3, 100e-3];
        let mut figure = Figure::new("attention", "forward".to_owned(), runs, Work::Operations(3e11));
        assert_eq!(figure.seconds, 3e-3);
        figure.peer = best(&Backends::from([("flash".to_owned(), 2e-3), ("cudnn".to_owned(), 1.5e-3)]), 0.6);
        assert_eq!(figure.share(), Some(0.5));
        let copy = Figure::new("copy", "1 GiB".to_owned(), vec![1e-3], Work::Bytes(2e9));
        let pool = Figure::new("avg_pool", "forward".to_owned(), vec![1e-3], Work::Bytes(1.8e9));
        let pool = beside_copy(pool, &copy, BANDWIDTH_BOUND);
        let text = table(&[figure, pool, copy]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].contains("| 3000.0 us |") && lines[0].contains("100 TFLOP/s"), "{}", lines[0]);
        assert!(
            lines[0].ends_with("| PyTorch, cudnn | 1500.0 us | 0.50 | 0.60 | **missed** |  |"),
            "{}",
            lines[0]
        );
        assert!(lines[1].ends_with("| 0.90 | 0.80 | kept |  |"), "{}", lines[1]);
        assert!(lines[2].ends_with("| 2000 GB/s | | | | | |  |"), "{}", lines[2]);
        assert!(best(&Backends::new(), 1.0).is_none());
    }

    #[test]
    fn figures_survive_the_file() {
        let mut figure = Figure::new("copy", "x".to_owned(), vec![0.25], Work::Bytes(1.0));
        figure.space = Some(Space { ours: 1.0, peer: 2.0, bound: 3.0 });
        let text = serde_json::to_string(&figure).unwrap();
        assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), figure);
    }

    #[test]
    fn memory_is_held_against_its_bound_too() {
        let mut figure = Figure::new("cross_entropy", "head".to_owned(), vec![1e-3], Work::Operations(1e9));
        figure.peer = Some(Peer { name: "PyTorch".to_owned(), seconds: 4e-3, bound: 3.0 });
        assert!(figure.is_met());
        figure.space = Some(Space { ours: 200e6, peer: 3000e6, bound: 5.0 });
        figure.beside = Backends::from([("compiled".to_owned(), 2e-3)]);
        assert!(figure.is_met());
        let line = table(std::slice::from_ref(&figure));
        let end = "| 4.00 | 3.00 | kept | 200 MB of memory, its 3000 MB: 15.0 times, asked for 5; compiled: 2000.0 us |\n";
        assert!(line.ends_with(end), "{line}");
        figure.space = Some(Space { ours: 700e6, peer: 3000e6, bound: 5.0 });
        assert!(!figure.is_met() && table(&[figure]).contains("| **missed** |"));
    }

    /// By the clock of the CPU, once: the calls are made as on a GPU, and none is refused.
    impl Timed for oqvl_emulation::Emulation {
        fn seconds(
            &self,
            mut work: impl FnMut() -> candle_core::Result<()>,
        ) -> candle_core::Result<Vec<f64>> {
            let start = std::time::Instant::now();
            work()?;
            Ok(vec![start.elapsed().as_secs_f64()])
        }
    }

    /// All figures of small sizes.
    fn small_figures(torch: Option<&Torch>) -> Option<Vec<Figure>> {
        let emulation = oqvl_emulation::Emulation::new(oqvl_emulation::Mode::Plain).unwrap()?;
        let sizes = Sizes {
            rows: 40,
            pack_rows: 20,
            hidden: 64,
            intermediate: 128,
            heads: (2, 1),
            head_dim: 64,
            vocab: 101,
            images: 2,
            grid: 5,
            pooled: 3,
            patch: 4,
            vision: 72,
            label_rows: 7,
            chunk_rows: 4,
            parameters: 4096,
        };
        let copy = Figure::new(COPY, "1 GiB".to_owned(), vec![1e-3], Work::Bytes(1e9));
        let mut figures = streams::figures(&emulation, torch, sizes, &copy, |_| true).unwrap();
        figures.extend(adamw::figures(&emulation, torch, sizes, &copy).unwrap());
        figures.push(label_head::figure(&emulation, torch, sizes).unwrap());
        figures.extend(attention::figures(&emulation, torch, &attention::small_calls()).unwrap());
        figures.extend(gemm::figures(&emulation, torch, &gemm::small_calls()).unwrap());
        Some(figures)
    }

    #[test]
    fn everything_is_timed_in_emulation() {
        let Some(figures) = small_figures(None) else { return };
        let ops: BTreeSet<&str> = figures.iter().map(|figure| figure.op.as_str()).collect();
        for op in OPS.iter().filter(|op| **op != "training_step") {
            assert!(ops.contains(op), "{op}");
        }
        let names: BTreeSet<(&str, &str)> =
            figures.iter().map(|figure| (figure.op.as_str(), figure.what.as_str())).collect();
        assert_eq!(names.len(), figures.len(), "no two figures have one name");
    }

    /// With a PyTorch at hand, on its CPU: it answers every call, and each answer finds its figure.
    #[test]
    fn pytorch_is_timed_beside_everything() {
        let Some(torch) = Torch::on_the_cpu() else { return };
        let Some(figures) = small_figures(Some(&torch)) else { return };
        for figure in &figures {
            assert!(figure.peer.is_some(), "{figure:?}");
            let is_copied = ["avg_pool", "column_sum"].contains(&figure.op.as_str())
                || (figure.op == "adamw" && !figure.what.contains("and"));
            let is_against_pytorch = ["attention", "gemm", "cross_entropy"].contains(&figure.op.as_str());
            assert_eq!(figure.beside.is_empty(), is_copied || is_against_pytorch, "{figure:?}");
            assert_eq!(figure.space.is_some(), figure.op == "cross_entropy", "{figure:?}");
        }
    }
}
