//! How long operations take, beside PyTorch on the same GPU.

use crate::torch::Torch;
use anyhow::Context as _;
use half::bf16;
use oqvl_kernels::attention::{self, CuSeqlens, Mask, Operand, OperandMut, Sequences, Shape, Strides};
use oqvl_kernels::avg_pool::launch as avg_pool;
use oqvl_kernels::avg_pool::launch::Pooling;
use oqvl_kernels::bias_gelu::{Gelu, launch as bias_gelu};
use oqvl_kernels::column_sum::launch as column_sum;
use oqvl_kernels::device::{Cuda, CudaBuffer, Memory as _};
use oqvl_kernels::gemm::{self, Epilogue, Gemm};
use oqvl_kernels::{Output, Rows};
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
        Self { op: op.to_owned(), what, seconds: at(0.5), spread: (at(0.1), at(0.9)), peer: None, work }
    }

    /// Whether it is as fast as is asked for. What nothing is asked of is; what was not timed beside its peer is not.
    pub(crate) fn is_met(&self) -> bool {
        self.op == COPY
            || self.share().zip(self.peer.as_ref()).is_some_and(|(share, peer)| share >= peer.bound)
    }

    /// Ours over the peer's speed; above 1 is faster.
    fn share(&self) -> Option<f64> {
        self.peer.as_ref().map(|peer| peer.seconds / self.seconds)
    }
}

/// Attention as PyTorch is asked for it.
#[derive(Debug, Clone, Serialize)]
struct AttentionCall {
    batch: usize,
    heads: usize,
    kv_heads: usize,
    len: usize,
    head_dim: usize,
    causal: bool,
}

impl AttentionCall {
    fn name(&self) -> String {
        let Self { batch, heads, kv_heads, len, head_dim, causal } = self;
        let mask = if *causal { "causal" } else { "full" };
        format!("{batch} x {len}, {heads}:{kv_heads} heads of {head_dim}, {mask}")
    }

    /// Of the two products of the forward; the mask halves them.
    fn operations(&self) -> f64 {
        let scores = (self.batch * self.heads * self.len * self.len) as f64;
        4.0 * scores * self.head_dim as f64 * if self.causal { 0.5 } else { 1.0 }
    }
}

/// Seconds by what PyTorch computes with.
type Backends = BTreeMap<String, f64>;

/// What PyTorch answers of one call.
#[derive(Debug, Deserialize)]
struct AttentionTimes {
    forward: Backends,
    backward: Backends,
}

/// Times the operations that are wanted.
pub(crate) fn run(
    cuda: &Cuda,
    torch: Option<&Torch>,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Figure>> {
    let mut figures = Vec::new();
    if wanted("attention") {
        figures.extend(attention(cuda, torch)?);
    }
    if wanted("gemm") {
        figures.extend(gemms(cuda, torch)?);
    }
    if wanted("avg_pool") || wanted("bias_gelu") || wanted("column_sum") {
        let copy = copy(cuda)?;
        if wanted("avg_pool") {
            figures.extend(pooling(cuda, &copy)?);
        }
        if wanted("bias_gelu") {
            for kind in [Gelu::Exact, Gelu::Tanh] {
                figures.extend(activation(cuda, kind, &copy)?);
            }
        }
        if wanted("column_sum") {
            figures.push(sums(cuda, &copy)?);
        }
        figures.push(copy);
    }
    Ok(figures)
}

/// Runs of something that was run before.
fn time(cuda: &Cuda, mut work: impl FnMut() -> candle_core::Result<()>) -> anyhow::Result<Vec<f64>> {
    println!("  {RUNS} runs");
    cuda.seconds(WARM_UP_RUNS, &mut work)?;
    Ok(cuda.seconds(RUNS, work)?)
}

/// Numbers between -1 and 1 that repeat; what they are makes no difference to the time, that they are none but finite does.
fn numbers(cuda: &Cuda, len: usize) -> anyhow::Result<CudaBuffer<bf16>> {
    let values: Vec<bf16> = (0..len).map(|i| bf16::from_f32((i * 37 % 101) as f32 / 50.0 - 1.0)).collect();
    Ok(cuda.upload(&values)?)
}

fn room(cuda: &Cuda, len: usize) -> anyhow::Result<CudaBuffer<bf16>> {
    Ok(cuda.poisoned(len)?)
}

fn attention(cuda: &Cuda, torch: Option<&Torch>) -> anyhow::Result<Vec<Figure>> {
    /// Shares of the speed of PyTorch's best that are asked for on `mma.sync` alone.
    const FORWARD_BOUND: f64 = 0.6;
    const BACKWARD_BOUND: f64 = 0.5;
    let calls = [
        AttentionCall { batch: 1, heads: 12, kv_heads: 2, len: 4096, head_dim: 128, causal: true },
        AttentionCall { batch: 4, heads: 12, kv_heads: 2, len: 4096, head_dim: 128, causal: true },
        AttentionCall { batch: 23, heads: 16, kv_heads: 16, len: 729, head_dim: 72, causal: false },
    ];
    let mut figures = Vec::new();
    for call in &calls {
        println!("attention: {}", call.name());
        figures.extend(attention_call(cuda, call)?);
    }
    let Some(torch) = torch else { return Ok(figures) };
    println!("attention of PyTorch");
    let times: Vec<AttentionTimes> = match torch.timings(&serde_json::json!({ "attention": calls })) {
        Ok(times) => times,
        Err(error) => {
            println!("PyTorch gives no times: {error:#}");
            return Ok(figures);
        }
    };
    anyhow::ensure!(times.len() == calls.len(), "PyTorch answers {} of {} calls", times.len(), calls.len());
    for (pair, times) in figures.chunks_exact_mut(2).zip(times) {
        pair[0].peer = best(&times.forward, FORWARD_BOUND);
        pair[1].peer = best(&times.backward, BACKWARD_BOUND);
    }
    Ok(figures)
}

/// The fastest of PyTorch's ways.
fn best(backends: &Backends, bound: f64) -> Option<Peer> {
    let (name, seconds) = backends.iter().min_by(|left, right| left.1.total_cmp(right.1))?;
    Some(Peer { name: format!("PyTorch, {name}"), seconds: *seconds, bound })
}

fn attention_call(cuda: &Cuda, call: &AttentionCall) -> anyhow::Result<[Figure; 2]> {
    let AttentionCall { batch, heads, kv_heads, len, head_dim, causal } = *call;
    let mask = if causal { Mask::Causal } else { Mask::Full };
    // As training passes them: packed, the heads of a token beside each other.
    let boundaries =
        (0..=batch).map(|sequence| i32::try_from(sequence * len)).collect::<Result<Vec<i32>, _>>()?;
    let cu_seqlens = cuda.upload(&boundaries)?;
    let shape =
        Shape::new((heads, kv_heads), head_dim, mask, Sequences::Packed(CuSeqlens::new(boundaries)?))?;
    let [q_len, kv_len] = [heads, kv_heads].map(|heads| batch * heads * len * head_dim);
    let [q, k, v, dout] =
        [numbers(cuda, q_len)?, numbers(cuda, kv_len)?, numbers(cuda, kv_len)?, numbers(cuda, q_len)?];
    let [mut out, mut dq, mut dk, mut dv] =
        [room(cuda, q_len)?, room(cuda, q_len)?, room(cuda, kv_len)?, room(cuda, kv_len)?];
    let mut lse = cuda.poisoned::<f32>(shape.num_query_rows()?)?;
    let mut workspace = cuda.poisoned::<f32>(attention::backward_workspace_len(&shape)?)?;
    let of_q = Strides::rows_first(batch * len, heads, head_dim);
    let of_kv = Strides::rows_first(batch * len, kv_heads, head_dim);
    let forward = time(cuda, || {
        let args = attention::Forward {
            q: Operand { data: cuda.slice(&q), strides: of_q },
            k: Operand { data: cuda.slice(&k), strides: of_kv },
            v: Operand { data: cuda.slice(&v), strides: of_kv },
            cu_seqlens: Some(cuda.slice(&cu_seqlens)),
            out: OperandMut { data: cuda.slice_mut(&mut out), strides: of_q },
            lse: cuda.slice_mut(&mut lse),
        };
        attention::forward(cuda, &shape, args)
    })?;
    let backward = time(cuda, || {
        let args = attention::Backward {
            q: Operand { data: cuda.slice(&q), strides: of_q },
            k: Operand { data: cuda.slice(&k), strides: of_kv },
            v: Operand { data: cuda.slice(&v), strides: of_kv },
            cu_seqlens: Some(cuda.slice(&cu_seqlens)),
            out: Operand { data: cuda.slice(&out), strides: of_q },
            lse: cuda.slice(&lse),
            dout: Operand { data: cuda.slice(&dout), strides: of_q },
            dq: OperandMut { data: cuda.slice_mut(&mut dq), strides: of_q },
            dk: OperandMut { data: cuda.slice_mut(&mut dk), strides: of_kv },
            dv: OperandMut { data: cuda.slice_mut(&mut dv), strides: of_kv },
            workspace: cuda.slice_mut(&mut workspace),
        };
        attention::backward(cuda, &shape, args)
    })?;
    let operations = call.operations();
    Ok([
        Figure::new("attention", format!("forward, {}", call.name()), forward, Work::Operations(operations)),
        // Five products where the forward has two.
        Figure::new(
            "attention",
            format!("backward, {}", call.name()),
            backward,
            Work::Operations(2.5 * operations),
        ),
    ])
}

/// A product as PyTorch is asked for it.
#[derive(Debug, Clone, Serialize)]
struct GemmCall {
    what: &'static str,
    m: usize,
    n: usize,
    k: usize,
    bias: bool,
    /// Inputs as they come from the backward, the result added in f32.
    weight_gradient: bool,
}

/// The products of a layer of the language model for one pack of 4096 tokens.
const GEMMS: [GemmCall; 6] = [
    GemmCall { what: "q, k and v", m: 4096, n: 2048, k: 1536, bias: true, weight_gradient: false },
    GemmCall { what: "gate and up", m: 4096, n: 17_920, k: 1536, bias: false, weight_gradient: false },
    GemmCall { what: "down", m: 4096, n: 1536, k: 8960, bias: false, weight_gradient: false },
    GemmCall { what: "q, k and v", m: 2048, n: 1536, k: 4096, bias: false, weight_gradient: true },
    GemmCall { what: "gate and up", m: 17_920, n: 1536, k: 4096, bias: false, weight_gradient: true },
    GemmCall { what: "down", m: 1536, n: 8960, k: 4096, bias: false, weight_gradient: true },
];

fn gemms(cuda: &Cuda, torch: Option<&Torch>) -> anyhow::Result<Vec<Figure>> {
    /// Within 3 % of PyTorch.
    const BOUND: f64 = 0.97;
    let mut figures = Vec::new();
    for call in &GEMMS {
        let GemmCall { what, m, n, k, bias, weight_gradient } = *call;
        println!("gemm: {m} x {n} x {k}");
        let (a, b) = (numbers(cuda, m * k)?, numbers(cuda, n * k)?);
        let runs = if weight_gradient {
            let gemm = Gemm::new(m, n, k).with_a_transposed().accumulating();
            let mut d = cuda.upload(&vec![0f32; m * n])?;
            time(cuda, || {
                gemm::gemm(cuda, &gemm, cuda.slice(&a), cuda.slice(&b), None, cuda.slice_mut(&mut d))
            })?
        } else {
            let epilogue = if bias { Epilogue::Bias } else { Epilogue::None };
            let gemm = Gemm::new(m, n, k).with_b_transposed().with_epilogue(epilogue);
            let (of_bias, mut d) = (numbers(cuda, n)?, room(cuda, m * n)?);
            let of_bias = || bias.then(|| cuda.slice(&of_bias));
            time(cuda, || {
                gemm::gemm(cuda, &gemm, cuda.slice(&a), cuda.slice(&b), of_bias(), cuda.slice_mut(&mut d))
            })?
        };
        let kind = if weight_gradient { ", weight gradient added in f32" } else { "" };
        let work = Work::Operations(2.0 * (m * n * k) as f64);
        figures.push(Figure::new("gemm", format!("{what}{kind}, {m} x {n} x {k}"), runs, work));
    }
    let Some(torch) = torch else { return Ok(figures) };
    println!("gemm of PyTorch");
    let times: Vec<Backends> = match torch.timings(&serde_json::json!({ "gemm": GEMMS })) {
        Ok(times) => times,
        Err(error) => {
            println!("PyTorch gives no times: {error:#}");
            return Ok(figures);
        }
    };
    anyhow::ensure!(times.len() == GEMMS.len(), "PyTorch answers {} of {} calls", times.len(), GEMMS.len());
    for (figure, times) in figures.iter_mut().zip(times) {
        figure.peer = best(&times, BOUND);
    }
    Ok(figures)
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

fn pooling(cuda: &Cuda, copy: &Figure) -> anyhow::Result<[Figure; 2]> {
    let sizes = Pooling { batch: 512, grid: 27, pooled: 12, channels: 1152 };
    println!("avg_pool: {} grids of 27 to 12", sizes.batch);
    let len = |len: Option<usize>| len.context("the sizes fit");
    let (input_len, output_len) = (len(sizes.input_len())?, len(sizes.output_len())?);
    let (x, dy) = (numbers(cuda, input_len)?, numbers(cuda, output_len)?);
    let (mut y, mut dx) = (room(cuda, output_len)?, room(cuda, input_len)?);
    let forward = time(cuda, || avg_pool::forward(cuda, sizes, cuda.slice(&x), cuda.slice_mut(&mut y)))?;
    let backward = time(cuda, || avg_pool::backward(cuda, sizes, cuda.slice(&dy), cuda.slice_mut(&mut dx)))?;
    let work = Work::Bytes(2.0 * (input_len + output_len) as f64);
    let figure = |what: &str, runs| {
        let what = format!("{what}, {} grids, 27 to 12, {} channels", sizes.batch, sizes.channels);
        beside_copy(Figure::new("avg_pool", what, runs, work), copy, BANDWIDTH_BOUND)
    };
    Ok([figure("forward", forward), figure("backward", backward)])
}

fn activation(cuda: &Cuda, kind: Gelu, copy: &Figure) -> anyhow::Result<[Figure; 2]> {
    let sizes = Rows { rows: 131_072, cols: 1536 };
    println!("bias_gelu: {} x {}, {kind:?}", sizes.rows, sizes.cols);
    let len = sizes.rows * sizes.cols;
    let (x, bias, dy) = (numbers(cuda, len)?, numbers(cuda, sizes.cols)?, numbers(cuda, len)?);
    let (mut y, mut dx, mut dbias) = (room(cuda, len)?, room(cuda, len)?, room(cuda, sizes.cols)?);
    let mut partials = cuda.poisoned::<f32>(column_sum::partials_len(sizes).context("the sizes fit")?)?;
    let forward = time(cuda, || {
        bias_gelu::forward(cuda, sizes, kind, cuda.slice(&x), cuda.slice(&bias), cuda.slice_mut(&mut y))
    })?;
    let backward = time(cuda, || {
        let inputs = (cuda.slice(&x), cuda.slice(&bias), cuda.slice(&dy));
        let (partials, dbias) = (cuda.slice_mut(&mut partials), cuda.slice_mut(&mut dbias));
        let to_dbias = column_sum::BiasGradient { partials, dbias, output: Output::Overwrite };
        bias_gelu::backward(cuda, sizes, kind, inputs, cuda.slice_mut(&mut dx), to_dbias)
    })?;
    let figure = |what: &str, runs, tensors: usize| {
        let what = format!("{what}, {} x {}, {kind:?}", sizes.rows, sizes.cols);
        let work = Work::Bytes((tensors * len * size_of::<bf16>()) as f64);
        beside_copy(Figure::new("bias_gelu", what, runs, work), copy, BANDWIDTH_BOUND)
    };
    Ok([figure("forward", forward, 2), figure("backward", backward, 3)])
}

fn sums(cuda: &Cuda, copy: &Figure) -> anyhow::Result<Figure> {
    let sizes = Rows { rows: 131_072, cols: 2048 };
    println!("column_sum: {} x {}", sizes.rows, sizes.cols);
    let len = sizes.rows * sizes.cols;
    let x = numbers(cuda, len)?;
    let mut to = room(cuda, sizes.cols)?;
    let mut partials = cuda.poisoned::<f32>(column_sum::partials_len(sizes).context("the sizes fit")?)?;
    let runs = time(cuda, || {
        let (partials, to) = (cuda.slice_mut(&mut partials), cuda.slice_mut(&mut to));
        column_sum::column_sum(cuda, sizes, cuda.slice(&x), partials, to, Output::Overwrite)
    })?;
    let work = Work::Bytes((len * size_of::<bf16>()) as f64);
    let what = format!("{} x {}", sizes.rows, sizes.cols);
    Ok(beside_copy(Figure::new("column_sum", what, runs, work), copy, BANDWIDTH_BOUND))
}

/// The figures for a person.
pub(crate) fn table(figures: &[Figure]) -> String {
    let mut text = "| op | what | median | 10 % to 90 % | speed | beside | its median | ours to its speed | asked for | |\n\
                    |---|---|---:|---:|---:|---|---:|---:|---:|---|\n"
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
                let verdict = if share >= peer.bound { "kept" } else { "**missed**" };
                let its = microseconds(peer.seconds);
                writeln!(text, " {} | {its} | {share:.2} | {:.2} | {verdict} |", peer.name, peer.bound)
            }
            _ => writeln!(text, " | | | | |"),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

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
            lines[0].ends_with("| PyTorch, cudnn | 1500.0 us | 0.50 | 0.60 | **missed** |"),
            "{}",
            lines[0]
        );
        assert!(lines[1].ends_with("| 0.90 | 0.80 | kept |"), "{}", lines[1]);
        assert!(lines[2].ends_with("| 2000 GB/s | | | | | |"), "{}", lines[2]);
        assert!(best(&Backends::new(), 1.0).is_none());
    }

    #[test]
    fn figures_survive_the_file() {
        let figure = Figure::new("copy", "x".to_owned(), vec![0.25], Work::Bytes(1.0));
        let text = serde_json::to_string(&figure).unwrap();
        assert_eq!(serde_json::from_str::<Figure>(&text).unwrap(), figure);
    }
}
