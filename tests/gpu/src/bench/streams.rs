//! Operations that memory bounds, beside a copy of as many bytes; what `torch.compile` makes of the same formula stands by.

use super::{
    BANDWIDTH_BOUND, Backends, Figure, Sizes, Timed, Work, beside_copy, full_room, numbers, room, time,
    timings,
};
use crate::torch::Torch;
use anyhow::Context as _;
use oqvl_kernels::Rows;
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::column_sum::launch::{BiasGradient, partials_len};
use oqvl_kernels::embedding::Buckets;
use oqvl_kernels::embedding::launch::{DeviceBuckets, Embeddings};
use oqvl_kernels::norm::{self, Norm};
use oqvl_kernels::patchify::Patches;
use oqvl_kernels::rope::launch::{Angles, Qkv};
use oqvl_kernels::{Output, RopeTables};
use serde::{Deserialize, Serialize};

pub(super) const OPS: [&str; 10] = [
    "avg_pool",
    "bias_gelu",
    "column_sum",
    "norm",
    "swiglu",
    "rope",
    "embedding",
    "gather_rows",
    "patchify",
    "elementwise",
];

const HALF: usize = 2;
const FULL: usize = 4;

/// A formula as PyTorch is asked for it, with the sizes that it needs.
#[derive(Debug, Clone, Default, Serialize)]
struct Formula {
    name: &'static str,
    rows: usize,
    cols: usize,
    /// Rows of what is taken from, and whatever else there is one of.
    other: usize,
    heads: (usize, usize),
}

/// What PyTorch answers of one formula: `eager` and `compiled`, if it can.
#[derive(Debug, Deserialize)]
struct Times {
    forward: Backends,
    backward: Backends,
}

/// A forward and, if there is one, a backward.
struct Pair {
    figures: Vec<Figure>,
    formula: Option<Formula>,
}

/// Where figures of one operation come from.
struct Bench<'a, B> {
    b: &'a B,
    sizes: Sizes,
    copy: &'a Figure,
}

/// Every operation that is wanted.
pub(super) fn figures<B: Timed>(
    b: &B,
    torch: Option<&Torch>,
    sizes: Sizes,
    copy: &Figure,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Figure>> {
    let bench = Bench { b, sizes, copy };
    let mut pairs = Vec::new();
    for op in OPS.into_iter().filter(|op| wanted(op)) {
        println!("{op}: forward and backward");
        match op {
            "avg_pool" => pairs.push(bench.avg_pool()?),
            "bias_gelu" => {
                for kind in [Gelu::Exact, Gelu::Tanh] {
                    pairs.push(bench.bias_gelu(kind)?);
                }
            }
            "column_sum" => pairs.push(bench.column_sum()?),
            "norm" => pairs.extend([bench.rms_norm()?, bench.layer_norm()?]),
            "swiglu" => pairs.push(bench.swiglu()?),
            "rope" => pairs.push(bench.rope()?),
            "embedding" => pairs.push(bench.embedding()?),
            "gather_rows" => pairs.push(bench.gather_rows()?),
            "patchify" => pairs.push(bench.patchify()?),
            _ => pairs.extend(bench.elementwise()?),
        }
    }
    add_times_of_pytorch(torch, &mut pairs)?;
    Ok(pairs.into_iter().flat_map(|pair| pair.figures).collect())
}

/// Puts what PyTorch takes for the same formulas beside the figures.
fn add_times_of_pytorch(torch: Option<&Torch>, pairs: &mut [Pair]) -> anyhow::Result<()> {
    let formulas: Vec<Formula> = pairs.iter().filter_map(|pair| pair.formula.clone()).collect();
    if formulas.is_empty() {
        return Ok(());
    }
    let Some(times) = timings::<Times>(torch, "formulas", &formulas) else { return Ok(()) };
    anyhow::ensure!(times.len() == formulas.len(), "PyTorch answers {} of {}", times.len(), formulas.len());
    for (pair, times) in pairs.iter_mut().filter(|pair| pair.formula.is_some()).zip(times) {
        for (figure, backends) in pair.figures.iter_mut().zip([times.forward, times.backward]) {
            figure.beside =
                backends.into_iter().map(|(name, time)| (format!("PyTorch, {name}"), time)).collect();
        }
    }
    Ok(())
}

impl<B: Timed> Bench<'_, B> {
    /// A figure beside a copy of `bytes`: of what has to be read and written at least.
    fn figure(
        &self,
        op: &str,
        what: String,
        bytes: usize,
        work: impl FnMut() -> candle_core::Result<()>,
    ) -> anyhow::Result<Figure> {
        let runs = time(self.b, work)?;
        Ok(beside_copy(Figure::new(op, what, runs, Work::Bytes(bytes as f64)), self.copy, BANDWIDTH_BOUND))
    }

    fn partials(&self, sizes: Rows) -> anyhow::Result<B::Buffer<B::Full>> {
        full_room(self.b, partials_len(sizes).context("the sizes can be counted")?)
    }

    fn avg_pool(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { images, grid, pooled, vision: channels, .. }) = (self.b, self.sizes);
        let sizes = Pooling { batch: images, grid, pooled, channels };
        let lens = sizes.input_len().zip(sizes.output_len()).context("the sizes can be counted")?;
        let (x, dy) = (numbers(b, lens.0)?, numbers(b, lens.1)?);
        let (mut y, mut dx) = (room(b, lens.1)?, room(b, lens.0)?);
        let what = |way: &str| format!("{way}, {images} grids, {grid} to {pooled}, {channels} channels");
        let bytes = HALF * (lens.0 + lens.1);
        let figures = vec![
            self.figure("avg_pool", what("forward"), bytes, || {
                b.avg_pool_forward(sizes, b.slice(&x), b.slice_mut(&mut y))
            })?,
            self.figure("avg_pool", what("backward"), bytes, || {
                b.avg_pool_backward(sizes, b.slice(&dy), b.slice_mut(&mut dx))
            })?,
        ];
        Ok(Pair { figures, formula: None })
    }

    fn bias_gelu(&self, kind: Gelu) -> anyhow::Result<Pair> {
        let b = self.b;
        let sizes @ Rows { rows, cols } = Rows { rows: self.sizes.rows, cols: self.sizes.hidden };
        let len = rows * cols;
        let (x, bias, dy) = (numbers(b, len)?, numbers(b, cols)?, numbers(b, len)?);
        let (mut y, mut dx, mut dbias) = (room(b, len)?, room(b, len)?, full_room(b, cols)?);
        let mut partials = self.partials(sizes)?;
        let what = |way: &str| format!("{way}, {rows} x {cols}, {kind:?}");
        let figures = vec![
            self.figure("bias_gelu", what("forward"), 2 * HALF * len, || {
                b.bias_gelu_forward(sizes, kind, b.slice(&x), b.slice(&bias), b.slice_mut(&mut y))
            })?,
            self.figure("bias_gelu", what("backward"), 3 * HALF * len, || {
                let inputs = (b.slice(&x), b.slice(&bias), b.slice(&dy));
                let (partials, dbias) = (b.slice_mut(&mut partials), b.slice_mut(&mut dbias));
                let to_dbias = BiasGradient { partials, dbias, output: Output::Overwrite };
                b.bias_gelu_backward(sizes, kind, inputs, b.slice_mut(&mut dx), to_dbias)
            })?,
        ];
        let name = if kind == Gelu::Exact { "bias_gelu" } else { "bias_gelu_tanh" };
        Ok(Pair { figures, formula: Some(Formula { name, rows, cols, ..Formula::default() }) })
    }

    fn column_sum(&self) -> anyhow::Result<Pair> {
        let b = self.b;
        let sizes @ Rows { rows, cols } = Rows { rows: self.sizes.rows, cols: self.qkv_cols() };
        let x = numbers(b, rows * cols)?;
        let (mut to, mut partials) = (full_room(b, cols)?, self.partials(sizes)?);
        let figure = self.figure("column_sum", format!("{rows} x {cols}"), HALF * rows * cols, || {
            let (partials, to) = (b.slice_mut(&mut partials), b.slice_mut(&mut to));
            b.column_sum(sizes, b.slice(&x), partials, to, Output::Overwrite)
        })?;
        Ok(Pair { figures: vec![figure], formula: None })
    }

    fn qkv_cols(&self) -> usize {
        (self.sizes.heads.0 + 2 * self.sizes.heads.1) * self.sizes.head_dim
    }

    /// As layers of the language model call it: with the residual stream.
    fn rms_norm(&self) -> anyhow::Result<Pair> {
        let b = self.b;
        let (rows, cols) = (self.sizes.rows, self.sizes.hidden);
        let sizes = Norm { rows, hidden: cols, eps: 1e-6 };
        let len = rows * cols;
        let [x, residual, dy, dresidual] =
            [numbers(b, len)?, numbers(b, len)?, numbers(b, len)?, numbers(b, len)?];
        let weight = numbers(b, cols)?;
        let (mut sum, mut y, mut ds) = (room(b, len)?, room(b, len)?, room(b, len)?);
        let (mut inverse, mut dweight) = (full_room(b, rows)?, full_room(b, cols)?);
        let mut of_weight = full_room(b, norm::partials_len(sizes)?)?;
        let sums = Rows { rows: norm::num_partials(sizes), cols };
        let mut partials = self.partials(sums)?;
        let what = |way: &str| format!("RMSNorm {way}, {rows} x {cols}, with the residual stream");
        // Four matrices each way: two read and two written, three read and one written.
        let bytes = 4 * HALF * len;
        let figures = vec![
            self.figure("norm", what("forward"), bytes, || {
                let added = norm::Residual { residual: b.slice(&residual), sum: b.slice_mut(&mut sum) };
                let args = norm::Forward {
                    x: b.slice(&x),
                    residual: Some(added),
                    weight: b.slice(&weight),
                    centre: None,
                    y: b.slice_mut(&mut y),
                    inverse: b.slice_mut(&mut inverse),
                };
                b.norm_forward(sizes, args)
            })?,
            self.figure("norm", what("backward"), bytes, || {
                let args = norm::Backward {
                    s: b.slice(&sum),
                    weight: b.slice(&weight),
                    dy: b.slice(&dy),
                    dresidual: Some(b.slice(&dresidual)),
                    inverse: b.slice(&inverse),
                    ds: b.slice_mut(&mut ds),
                    dweight_partials: b.slice_mut(&mut of_weight),
                    centre: None,
                };
                b.norm_backward(sizes, args)?;
                let (partials, to) = (b.slice_mut(&mut partials), b.slice_mut(&mut dweight));
                b.column_sum_full(sums, b.slice(&of_weight), partials, to, Output::Overwrite)
            })?,
        ];
        Ok(Pair { figures, formula: Some(Formula { name: "rms_norm", rows, cols, ..Formula::default() }) })
    }

    /// As layers of the vision tower would, alone.
    fn layer_norm(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { images, grid, vision: cols, .. }) = (self.b, self.sizes);
        let rows = images * grid * grid;
        let sizes = Norm { rows, hidden: cols, eps: 1e-6 };
        let len = rows * cols;
        let (x, dy, weight, bias) =
            (numbers(b, len)?, numbers(b, len)?, numbers(b, cols)?, numbers(b, cols)?);
        let (mut y, mut dx) = (room(b, len)?, room(b, len)?);
        let (mut inverse, mut mean) = (full_room(b, rows)?, full_room(b, rows)?);
        let num_partials = norm::partials_len(sizes)?;
        let [mut of_weight, mut of_bias] = [full_room(b, num_partials)?, full_room(b, num_partials)?];
        let [mut dweight, mut dbias] = [full_room(b, cols)?, full_room(b, cols)?];
        let sums = Rows { rows: norm::num_partials(sizes), cols };
        let mut partials = self.partials(sums)?;
        let what = |way: &str| format!("LayerNorm {way}, {rows} x {cols}");
        let figures = vec![
            self.figure("norm", what("forward"), 2 * HALF * len, || {
                let args = norm::Forward {
                    x: b.slice(&x),
                    residual: None,
                    weight: b.slice(&weight),
                    centre: Some(norm::Centre { bias: b.slice(&bias), mean: b.slice_mut(&mut mean) }),
                    y: b.slice_mut(&mut y),
                    inverse: b.slice_mut(&mut inverse),
                };
                b.norm_forward(sizes, args)
            })?,
            self.figure("norm", what("backward"), 3 * HALF * len, || {
                let centre =
                    norm::CentreBackward { mean: b.slice(&mean), dbias_partials: b.slice_mut(&mut of_bias) };
                let args = norm::Backward {
                    s: b.slice(&x),
                    weight: b.slice(&weight),
                    dy: b.slice(&dy),
                    dresidual: None,
                    inverse: b.slice(&inverse),
                    ds: b.slice_mut(&mut dx),
                    dweight_partials: b.slice_mut(&mut of_weight),
                    centre: Some(centre),
                };
                b.norm_backward(sizes, args)?;
                for (from, to) in [(&of_weight, &mut dweight), (&of_bias, &mut dbias)] {
                    let between = b.slice_mut(&mut partials);
                    b.column_sum_full(sums, b.slice(from), between, b.slice_mut(to), Output::Overwrite)?;
                }
                Ok(())
            })?,
        ];
        Ok(Pair { figures, formula: Some(Formula { name: "layer_norm", rows, cols, ..Formula::default() }) })
    }

    fn swiglu(&self) -> anyhow::Result<Pair> {
        let b = self.b;
        // Rows are long: a few packs are much.
        let sizes @ Rows { rows, cols } =
            Rows { rows: self.sizes.rows.div_ceil(8), cols: self.sizes.intermediate };
        let len = rows * cols;
        let (gate_up, dh) = (numbers(b, 2 * len)?, numbers(b, len)?);
        let (mut h, mut dgate_up) = (room(b, len)?, room(b, 2 * len)?);
        let what = |way: &str| format!("{way}, {rows} x {cols}");
        let figures = vec![
            self.figure("swiglu", what("forward"), 3 * HALF * len, || {
                b.swiglu_forward(sizes, b.slice(&gate_up), b.slice_mut(&mut h))
            })?,
            self.figure("swiglu", what("backward"), 5 * HALF * len, || {
                b.swiglu_backward(sizes, b.slice(&gate_up), b.slice(&dh), b.slice_mut(&mut dgate_up))
            })?,
        ];
        Ok(Pair { figures, formula: Some(Formula { name: "swiglu", rows, cols, ..Formula::default() }) })
    }

    fn rope(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { rows, pack_rows, heads, head_dim, .. }) = (self.b, self.sizes);
        let sizes = Qkv { rows, num_heads: heads.0, num_kv_heads: heads.1, head_dim };
        let matrix = sizes.sizes().context("the sizes can be counted")?;
        let (cos, sin) = RopeTables::new(head_dim, pack_rows, 1_000_000.0).cos_sin::<B::Full>();
        let positions = (0..rows).map(|row| i32::try_from(row % pack_rows)).collect::<Result<Vec<_>, _>>()?;
        let (positions, cos, sin) = (b.upload(&positions)?, b.upload(&cos)?, b.upload(&sin)?);
        let len = rows * matrix.cols;
        // In place, run after run: without a bias to add, numbers keep their size.
        let (mut qkv, mut dqkv) = (numbers(b, len)?, numbers(b, len)?);
        let mut bias = room(b, matrix.cols)?;
        let mut zeros = full_room(b, matrix.cols)?;
        b.fill(b.slice_mut(&mut zeros), 0.0)?;
        b.narrow(b.slice(&zeros), b.slice_mut(&mut bias))?;
        let (mut dbias, mut partials) = (full_room(b, matrix.cols)?, self.partials(matrix)?);
        let angles = || Angles { positions: b.slice(&positions), cos: b.slice(&cos), sin: b.slice(&sin) };
        let what = |way: &str| {
            format!("{way}, {rows} rows, {}:{} heads of {head_dim}, with a bias", heads.0, heads.1)
        };
        let bytes = 2 * HALF * len;
        let figures = vec![
            self.figure("rope", what("forward"), bytes, || {
                b.rope_forward(sizes, b.slice_mut(&mut qkv), Some(b.slice(&bias)), angles())
            })?,
            self.figure("rope", what("backward"), bytes, || {
                let (partials, dbias) = (b.slice_mut(&mut partials), b.slice_mut(&mut dbias));
                let to_dbias = BiasGradient { partials, dbias, output: Output::Overwrite };
                b.rope_backward(sizes, b.slice_mut(&mut dqkv), angles(), Some(to_dbias))
            })?,
        ];
        let formula = Formula { name: "rope", rows, cols: head_dim, other: pack_rows, heads };
        Ok(Pair { figures, formula: Some(formula) })
    }

    /// Tokens that are all different, so that none comes from a cache.
    fn embedding(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { vocab, hidden, .. }) = (self.b, self.sizes);
        let rows = self.sizes.rows.min(vocab);
        let sources = scattered(rows, vocab)?;
        let buckets = Buckets::new(&sources, None);
        let [ids, starts, listed] =
            [b.upload(buckets.ids())?, b.upload(buckets.starts())?, b.upload(buckets.rows())?];
        let sources = b.upload(&sources)?;
        let (table, visual, dy) = (numbers(b, vocab * hidden)?, numbers(b, 0)?, numbers(b, rows * hidden)?);
        let (mut y, mut dtable) = (room(b, rows * hidden)?, full_room(b, vocab * hidden)?);
        b.fill(b.slice_mut(&mut dtable), 0.0)?;
        let what = |way: &str| format!("{way}, {rows} different tokens of {vocab}, {hidden} channels");
        let figures = vec![
            self.figure("embedding", what("forward"), 2 * HALF * rows * hidden, || {
                let from = Embeddings { table: b.slice(&table), visual: b.slice(&visual) };
                b.embedding_forward(hidden, from, b.slice(&sources), b.slice_mut(&mut y))
            })?,
            // Gradients are read, and rows of the table's read and written.
            self.figure("embedding", what("backward"), (HALF + 2 * FULL) * rows * hidden, || {
                let buckets =
                    DeviceBuckets { ids: b.slice(&ids), starts: b.slice(&starts), rows: b.slice(&listed) };
                b.embedding_backward(hidden, b.slice(&dy), buckets, b.slice_mut(&mut dtable))
            })?,
        ];
        let formula = Formula { name: "embedding", rows, cols: hidden, other: vocab, ..Formula::default() };
        Ok(Pair { figures, formula: Some(formula) })
    }

    fn gather_rows(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { rows, hidden: cols, .. }) = (self.b, self.sizes);
        let indices = b.upload(&scattered(rows, rows)?)?;
        let (from, mut to) = (numbers(b, rows * cols)?, room(b, rows * cols)?);
        let what = format!("{rows} x {cols}, in another order");
        let figure = self.figure("gather_rows", what, 2 * HALF * rows * cols, || {
            b.gather_rows(cols, b.slice(&from), b.slice(&indices), b.slice_mut(&mut to))
        })?;
        let formula = Formula { name: "gather_rows", rows, cols, other: rows, ..Formula::default() };
        Ok(Pair { figures: vec![figure], formula: Some(formula) })
    }

    fn patchify(&self) -> anyhow::Result<Pair> {
        let (b, Sizes { images, grid, patch: edge, .. }) = (self.b, self.sizes);
        let half = [0.5; 3];
        let sizes =
            Patches { batch: images, grid_rows: grid, grid_cols: grid, edge, mean: half, deviation: half };
        let num_pixels = images * grid * grid * edge * edge * 3;
        let pixels: Vec<u8> = (0..num_pixels).map(|at| (at * 37 % 251) as u8).collect();
        let pixels = b.upload(&pixels)?;
        let len = sizes.num_patches()? * sizes.cols()?;
        let mut rows = room(b, len)?;
        let what = format!("{images} images of {0} x {0} patches of edge {edge}", grid);
        let figure = self.figure("patchify", what, num_pixels + HALF * len, || {
            b.patchify(&sizes, b.slice(&pixels), b.slice_mut(&mut rows))
        })?;
        let formula =
            Formula { name: "patchify", rows: images, cols: edge, other: grid, ..Formula::default() };
        Ok(Pair { figures: vec![figure], formula: Some(formula) })
    }

    fn elementwise(&self) -> anyhow::Result<Vec<Pair>> {
        let b = self.b;
        let (rows, cols) = (self.sizes.rows, self.sizes.hidden);
        let len = rows * cols;
        let (left, right) = (numbers(b, len)?, numbers(b, len)?);
        let (mut to, mut wide) = (room(b, len)?, full_room(b, len)?);
        let pair = |name: &'static str, figure: Figure| Pair {
            figures: vec![figure],
            formula: Some(Formula { name, rows, cols, ..Formula::default() }),
        };
        let what = |name: &str| format!("{name}, {len} elements");
        let widen = self.figure("elementwise", what("widen"), (HALF + FULL) * len, || {
            b.widen(b.slice(&left), b.slice_mut(&mut wide))
        })?;
        let narrow = self.figure("elementwise", what("narrow"), (HALF + FULL) * len, || {
            b.narrow(b.slice(&wide), b.slice_mut(&mut to))
        })?;
        let add = self.figure("elementwise", what("add"), 3 * HALF * len, || {
            b.add(b.slice(&left), b.slice(&right), b.slice_mut(&mut to))
        })?;
        let fill =
            self.figure("elementwise", what("fill"), FULL * len, || b.fill(b.slice_mut(&mut wide), 0.0))?;
        Ok(vec![pair("widen", widen), pair("narrow", narrow), pair("add", add), pair("fill", fill)])
    }
}

/// So many different numbers below `end`, not in order.
fn scattered(len: usize, end: usize) -> anyhow::Result<Vec<i32>> {
    // A prime, and so coprime to every smaller end but its own multiples, of which there are none below its square.
    const STEP: usize = 1_000_003;
    anyhow::ensure!(len <= end && end < STEP, "{len} numbers below {end}");
    Ok((0..len).map(|at| i32::try_from(at * STEP % end)).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattered_numbers_are_different() {
        let mut numbers = scattered(1000, 1201).unwrap();
        assert!(!numbers.is_sorted());
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 1000);
        assert!(scattered(3, 2).is_err());
    }
}
