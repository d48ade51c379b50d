//! The attention kernels against a plain computation in f64, element by element, within what rounding to bf16 explains.

#![expect(clippy::print_stdout, reason = "a test that is skipped says why")]

use half::bf16;
use oqvl_emulation::{BlockOrder, Buffer, Emulation, Mode};
use oqvl_kernels::attention::{
    Backward, CuSeqlens, Forward, Mask, Operand, OperandMut, Sequences, Shape, Strides, backward,
    backward_workspace_len, forward, reference,
};
use proptest::prelude::*;
use rand::SeedableRng as _;

/// The emulation that the environment asks for; nothing where there is no C++ compiler.
fn emulation() -> Option<Emulation> {
    Emulation::from_env().unwrap()
}

/// A tensor `(batch, heads, rows, channels)` anywhere in memory.
#[derive(Clone)]
struct Tensor {
    data: Buffer<bf16>,
    strides: Strides,
    batch: usize,
    heads: usize,
    rows: usize,
    channels: usize,
}

/// How the tensors of a case lie in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// `(batch, heads, rows, channels)`.
    HeadsFirst,
    /// `(batch, rows, heads, channels)` with 8 elements between rows that belong to nobody.
    RowsFirst,
}

impl Tensor {
    fn poisoned(layout: Layout, [batch, heads, rows, channels]: [usize; 4]) -> Self {
        let (strides, len) = match layout {
            Layout::HeadsFirst => {
                (Strides::heads_first(heads, rows, channels), batch * heads * rows * channels)
            }
            Layout::RowsFirst => {
                let row = heads * channels + 8;
                let strides = Strides { batch: (rows * row) as i64, head: channels as i64, row: row as i64 };
                (strides, batch * rows * row)
            }
        };
        Self { data: Buffer::poisoned(len), strides, batch, heads, rows, channels }
    }

    fn random(layout: Layout, dims: [usize; 4], seed: u64) -> Self {
        let mut tensor = Self::poisoned(layout, dims);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        for index in tensor.addresses() {
            tensor.data[index] = bf16::from_f32(rng.random_range(-2.0..2.0));
        }
        tensor
    }

    fn at(&self, batch: usize, head: usize, row: usize) -> usize {
        let Strides { batch: by_batch, head: by_head, row: by_row } = self.strides;
        batch * by_batch as usize + head * by_head as usize + row * by_row as usize
    }

    /// Where its elements are, in the order of the dimensions.
    fn addresses(&self) -> Vec<usize> {
        let mut all = Vec::new();
        for batch in 0..self.batch {
            for head in 0..self.heads {
                for row in 0..self.rows {
                    let start = self.at(batch, head, row);
                    all.extend(start..start + self.channels);
                }
            }
        }
        all
    }

    fn row(&self, batch: usize, head: usize, row: usize) -> Vec<f64> {
        let start = self.at(batch, head, row);
        self.data[start..start + self.channels].iter().map(|x| x.to_f64()).collect()
    }

    fn operand<'a>(&'a self, on: &Emulation) -> Operand<'a, Emulation> {
        Operand { data: on.read(&self.data), strides: self.strides }
    }

    fn operand_mut<'a>(&'a mut self, on: &Emulation) -> OperandMut<'a, Emulation> {
        OperandMut { data: on.write(&mut self.data), strides: self.strides }
    }

    /// Asserts that every element is within its bound, and that what lies between rows was not touched.
    fn assert_close(&self, what: &str, expected: &[Bounded]) {
        let addresses = self.addresses();
        assert_eq!(addresses.len(), expected.len());
        for (index, (address, expected)) in addresses.iter().zip(expected).enumerate() {
            let found = self.data[*address].to_f64();
            let error = (found - expected.value).abs();
            assert!(error <= expected.bound, "{what}[{index}]: {found} is not {expected:?}");
        }
        let mut untouched = vec![true; self.data.len()];
        addresses.iter().for_each(|at| untouched[*at] = false);
        for (at, value) in self.data.iter().enumerate() {
            assert!(!untouched[at] || value.to_bits() == u16::MAX, "{what} was written between its rows");
        }
    }
}

/// A number and how far rounding may lead away from it.
#[derive(Debug, Clone, Copy, Default)]
struct Bounded {
    value: f64,
    bound: f64,
}

/// Half of the distance between bf16 numbers, relative; a little more for the sums in f32.
const ROUNDING: f64 = 1.0 / 256.0 * 1.05;
/// Of sums in f32, and of the exponential.
const F32: f64 = 1e-5;

struct Case {
    shape: Shape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
}

/// What a case must give.
struct Expected {
    out: Vec<Bounded>,
    lse: Vec<f64>,
    dq: Vec<Bounded>,
    dk: Vec<Bounded>,
    dv: Vec<Bounded>,
}

/// What the kernels gave.
struct Found {
    out: Tensor,
    lse: Buffer<f32>,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
}

fn dims(shape: &Shape) -> ([usize; 4], [usize; 4]) {
    let (batch, q_rows, kv_rows) = match &shape.sequences {
        Sequences::Batch { batch, q_len, kv_len } => (*batch, *q_len, *kv_len),
        Sequences::Packed(packed) => (1, packed.num_rows(), packed.num_rows()),
    };
    ([batch, shape.num_heads, q_rows, shape.head_dim], [batch, shape.num_kv_heads, kv_rows, shape.head_dim])
}

/// `(batch entry, first row, queries, keys)` of every sequence.
fn sequences(shape: &Shape) -> Vec<(usize, usize, usize, usize)> {
    match &shape.sequences {
        Sequences::Batch { batch, q_len, kv_len } => {
            (0..*batch).map(|entry| (entry, 0, *q_len, *kv_len)).collect()
        }
        Sequences::Packed(packed) => packed
            .boundaries()
            .windows(2)
            .map(|pair| (0, pair[0] as usize, (pair[1] - pair[0]) as usize, (pair[1] - pair[0]) as usize))
            .collect(),
    }
}

fn dot(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

fn dot_abs(left: &[f64], right: &[f64]) -> f64 {
    left.iter().zip(right).map(|(left, right)| (left * right).abs()).sum()
}

impl Case {
    fn new(shape: Shape, layout: Layout, seed: u64) -> Self {
        let (q_dims, kv_dims) = dims(&shape);
        Self {
            q: Tensor::random(layout, q_dims, seed),
            k: Tensor::random(layout, kv_dims, seed + 1),
            v: Tensor::random(layout, kv_dims, seed + 2),
            dout: Tensor::random(layout, q_dims, seed + 3),
            shape,
        }
    }

    /// Every formula written out, one query and one key at a time; nothing shared with the kernels or their reference.
    fn expected(&self) -> Expected {
        let Self { shape, q, k, v, dout } = self;
        let (q_dims, kv_dims) = dims(shape);
        let channels = shape.head_dim;
        let group = shape.num_heads / shape.num_kv_heads;
        let (q_len, kv_len) = (q_dims[2], kv_dims[2]);
        let zeros = |dims: [usize; 4]| vec![Bounded::default(); dims.iter().product()];
        let (mut out, mut dq) = (zeros(q_dims), zeros(q_dims));
        let (mut dk, mut dv) = (zeros(kv_dims), zeros(kv_dims));
        let mut lse = vec![f64::NEG_INFINITY; q_dims[0] * q_dims[1] * q_dims[2]];
        let add = |to: &mut Bounded, value: f64, bound: f64| {
            to.value += value;
            to.bound += bound + F32 * value.abs();
        };
        for (entry, start, queries, keys) in sequences(shape) {
            for head in 0..shape.num_heads {
                let kv_head = head / group;
                let rows_of = |tensor: &Tensor, head: usize, len: usize| -> Vec<Vec<f64>> {
                    (0..len).map(|row| tensor.row(entry, head, start + row)).collect()
                };
                let (k, v) = (rows_of(k, kv_head, keys), rows_of(v, kv_head, keys));
                for query in 0..queries {
                    let row = (entry * shape.num_heads + head) * q_len + start + query;
                    let (q, dout) = (q.row(entry, head, start + query), dout.row(entry, head, start + query));
                    let seen = match shape.mask {
                        Mask::Full => keys,
                        Mask::Causal => keys - queries + query + 1,
                    };
                    if seen == 0 {
                        continue;
                    }
                    let scores: Vec<f64> = k[..seen].iter().map(|k| shape.scale * dot(&q, k)).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = scores.iter().map(|score| (score - max).exp()).sum();
                    lse[row] = max + sum.ln();
                    let p: Vec<f64> = scores.iter().map(|score| (score - lse[row]).exp()).collect();
                    for (p, v) in p.iter().zip(&v) {
                        for (to, v) in out[row * channels..].iter_mut().zip(v) {
                            // p is rounded, and the sum of these is.
                            add(to, p * v, 2.0 * ROUNDING * (p * v).abs());
                        }
                    }
                    let out = &out[row * channels..][..channels];
                    let delta: f64 = out.iter().zip(&dout).map(|(out, dout)| out.value * dout).sum();
                    let delta_bound: f64 =
                        out.iter().zip(&dout).map(|(out, dout)| out.bound * dout.abs()).sum();
                    for (key, p) in p.iter().enumerate() {
                        let dp = dot(&dout, &v[key]);
                        let ds = p * (dp - delta);
                        let dp_bound = F32 * dot_abs(&dout, &v[key]);
                        // The exponent is a sum in f32 too.
                        let exponent = F32 * shape.scale * dot_abs(&q, &k[key]);
                        let ds_bound = p * (delta_bound + dp_bound) + (ROUNDING + exponent) * ds.abs();
                        let kv_row =
                            ((entry * shape.num_kv_heads + kv_head) * kv_len + start + key) * channels;
                        for channel in 0..channels {
                            let (q, k) = (q[channel] * shape.scale, k[key][channel] * shape.scale);
                            add(&mut dq[row * channels + channel], ds * k, ds_bound * k.abs());
                            add(&mut dk[kv_row + channel], ds * q, ds_bound * q.abs());
                            let value = p * dout[channel];
                            add(&mut dv[kv_row + channel], value, (ROUNDING + exponent) * value.abs());
                        }
                    }
                }
            }
        }
        for gradient in [&mut dq, &mut dk, &mut dv] {
            gradient.iter_mut().for_each(|number| number.bound += ROUNDING * number.value.abs() + 1e-30);
        }
        Expected { out, lse, dq, dk, dv }
    }

    fn run(&self, on: &Emulation) -> Found {
        let (q_dims, kv_dims) = dims(&self.shape);
        let like = |tensor: &Tensor, dims: [usize; 4]| {
            let layout = if tensor.strides == Strides::heads_first(dims[1], dims[2], dims[3]) {
                Layout::HeadsFirst
            } else {
                Layout::RowsFirst
            };
            Tensor::poisoned(layout, dims)
        };
        let mut found = Found {
            out: like(&self.q, q_dims),
            lse: Buffer::poisoned(self.shape.num_query_rows().unwrap()),
            dq: like(&self.q, q_dims),
            dk: like(&self.k, kv_dims),
            dv: like(&self.v, kv_dims),
        };
        let cu_seqlens: Option<Buffer<i32>> = match &self.shape.sequences {
            Sequences::Batch { .. } => None,
            Sequences::Packed(packed) => Some(packed.boundaries().iter().copied().collect()),
        };
        let cu_seqlens = || cu_seqlens.as_ref().map(|boundaries| on.read(boundaries));
        let arguments = Forward {
            q: self.q.operand(on),
            k: self.k.operand(on),
            v: self.v.operand(on),
            cu_seqlens: cu_seqlens(),
            out: found.out.operand_mut(on),
            lse: on.write(&mut found.lse),
        };
        forward(on, &self.shape, arguments).unwrap();
        let mut workspace = Buffer::poisoned(backward_workspace_len(&self.shape).unwrap());
        let arguments = Backward {
            q: self.q.operand(on),
            k: self.k.operand(on),
            v: self.v.operand(on),
            cu_seqlens: cu_seqlens(),
            out: found.out.operand(on),
            lse: on.read(&found.lse),
            dout: self.dout.operand(on),
            dq: found.dq.operand_mut(on),
            dk: found.dk.operand_mut(on),
            dv: found.dv.operand_mut(on),
            workspace: on.write(&mut workspace),
        };
        backward(on, &self.shape, arguments).unwrap();
        found
    }

    /// Runs the kernels and compares everything.
    fn check(&self, on: &Emulation) {
        let (found, expected) = (self.run(on), self.expected());
        for (index, (found, expected)) in found.lse.iter().zip(&expected.lse).enumerate() {
            let found = f64::from(*found);
            let is_same = found == *expected || (found - expected).abs() <= F32 * (1.0 + expected.abs());
            assert!(is_same, "lse[{index}]: {found} is not {expected}");
        }
        found.out.assert_close("out", &expected.out);
        found.dq.assert_close("dq", &expected.dq);
        found.dk.assert_close("dk", &expected.dk);
        found.dv.assert_close("dv", &expected.dv);
    }
}

fn batch(heads: (usize, usize), head_dim: usize, mask: Mask, sizes: [usize; 3]) -> Shape {
    let [batch, q_len, kv_len] = sizes;
    Shape::new(heads, head_dim, mask, Sequences::Batch { batch, q_len, kv_len }).unwrap()
}

fn packed(heads: (usize, usize), head_dim: usize, mask: Mask, lengths: &[i32]) -> Shape {
    let mut boundaries = vec![0];
    for len in lengths {
        boundaries.push(boundaries[boundaries.len() - 1] + len);
    }
    Shape::new(heads, head_dim, mask, Sequences::Packed(CuSeqlens::new(boundaries).unwrap())).unwrap()
}

const MASKS: [Mask; 2] = [Mask::Causal, Mask::Full];

/// Around the tiles of 64 keys and 128 rows.
#[test]
fn attention_of_every_edge_length() {
    let Some(on) = emulation() else { return };
    for mask in MASKS {
        for len in [0, 1, 7, 63, 64, 65, 127, 128, 129] {
            Case::new(batch((1, 1), 64, mask, [1, len, len]), Layout::HeadsFirst, len as u64).check(&on);
        }
    }
}

#[test]
fn attention_of_every_head_dim() {
    let Some(on) = emulation() else { return };
    for (index, head_dim) in [8, 16, 56, 64, 72, 80, 88, 120, 128].into_iter().enumerate() {
        let mask = MASKS[index % 2];
        Case::new(batch((2, 1), head_dim, mask, [1, 67, 67]), Layout::RowsFirst, head_dim as u64).check(&on);
    }
}

#[test]
fn attention_of_any_ratio_of_heads() {
    let Some(on) = emulation() else { return };
    for (heads, kv_heads) in [(12, 2), (3, 3), (5, 1)] {
        Case::new(batch((heads, kv_heads), 128, Mask::Causal, [1, 33, 33]), Layout::RowsFirst, 1).check(&on);
        Case::new(batch((heads, kv_heads), 72, Mask::Full, [2, 20, 31]), Layout::HeadsFirst, 2).check(&on);
    }
}

/// A cache of keys, as in generation; and queries or keys that are not there.
#[test]
fn attention_with_more_keys_than_queries() {
    let Some(on) = emulation() else { return };
    for (q_len, kv_len) in [(1, 130), (70, 200), (129, 193), (0, 5)] {
        for mask in MASKS {
            Case::new(batch((2, 1), 64, mask, [2, q_len, kv_len]), Layout::RowsFirst, 5).check(&on);
        }
    }
    Case::new(batch((2, 1), 64, Mask::Full, [2, 200, 3]), Layout::RowsFirst, 6).check(&on);
    Case::new(batch((2, 1), 64, Mask::Full, [2, 3, 0]), Layout::RowsFirst, 7).check(&on);
    Case::new(batch((2, 1), 64, Mask::Full, [0, 3, 3]), Layout::RowsFirst, 8).check(&on);
}

#[test]
fn attention_of_packed_sequences() {
    let Some(on) = emulation() else { return };
    for lengths in [&[][..], &[0], &[5], &[1, 0, 130, 0, 0, 63, 64, 1], &[200, 3]] {
        for mask in MASKS {
            Case::new(packed((2, 1), 64, mask, lengths), Layout::RowsFirst, 11).check(&on);
        }
    }
    Case::new(packed((12, 2), 128, Mask::Causal, &[40, 90, 0, 2]), Layout::RowsFirst, 12).check(&on);
}

/// The vision tower's shape, one image and two heads of it.
#[test]
fn attention_of_the_vision_tower() {
    let Some(on) = emulation() else { return };
    if on.mode() == Mode::Race {
        println!("skipped: 729 tokens in mode race take minutes, and the paths are those of the other tests");
        return;
    }
    Case::new(batch((2, 2), 72, Mask::Full, [1, 729, 729]), Layout::RowsFirst, 21).check(&on);
}

/// A pack of the pre-training, one key head of it: norms against the reference, since the plain formulas would take minutes.
#[test]
fn attention_of_a_whole_pack() {
    let Some(on) = emulation() else { return };
    if on.mode() != Mode::Plain {
        println!(
            "skipped: 4096 tokens under a checker take minutes, and the paths are those of the other tests"
        );
        return;
    }
    let case = Case::new(packed((1, 1), 128, Mask::Causal, &[4096]), Layout::RowsFirst, 31);
    let found = case.run(&on);
    let widen = |tensor: &Tensor| tensor.data.iter().map(|x| x.to_f64()).collect::<Vec<f64>>();
    let data = [&case.q, &case.k, &case.v, &case.dout].map(widen);
    let operand = |index: usize| reference::Operand { data: &data[index][..], strides: case.q.strides };
    let mut outputs = [(); 4].map(|()| vec![0.0; data[0].len()]);
    let mut lse = vec![0.0; 4096];
    let [out, dq, dk, dv] = &mut outputs;
    let inputs = || [operand(0), operand(1), operand(2)];
    let output = |data| reference::OperandMut { data, strides: case.q.strides };
    reference::forward(&case.shape, inputs(), output(&mut out[..]), Some(&mut lse)).unwrap();
    let gradients = [output(&mut dq[..]), output(&mut dk[..]), output(&mut dv[..])];
    reference::backward(&case.shape, inputs(), operand(3), gradients).unwrap();
    for (name, found, expected) in
        [("out", &found.out, &out), ("dq", &found.dq, &dq), ("dk", &found.dk, &dk), ("dv", &found.dv, &dv)]
    {
        let (mut error_of_all, mut norm_of_all) = (0.0, 0.0);
        for row in 0..4096 {
            let found = found.row(0, 0, row);
            let start = case.q.at(0, 0, row);
            let expected = &expected[start..start + 128];
            let error: f64 =
                found.iter().zip(expected).map(|(found, expected)| (found - expected).powi(2)).sum();
            let norm: f64 = expected.iter().map(|x| x * x).sum();
            error_of_all += error;
            norm_of_all += norm;
            // Few keys or few queries: what cancels leaves little beside its rounding.
            let bound = if (64..4032).contains(&row) { 0.02 } else { 0.5 };
            let (error, norm) = (error.sqrt(), norm.sqrt());
            assert!(error <= bound * norm + 1e-6, "{name}, row {row}: {error} of {norm}");
        }
        assert!(error_of_all.sqrt() <= 0.005 * norm_of_all.sqrt(), "{name}: {error_of_all} of {norm_of_all}");
    }
    for (found, expected) in found.lse.iter().zip(&lse) {
        assert!((f64::from(*found) - expected).abs() < 1e-4);
    }
}

/// What another sequence holds reaches nobody else, not even if it is not a number.
#[test]
fn attention_does_not_look_into_other_sequences() {
    let Some(on) = emulation() else { return };
    for mask in MASKS {
        let mut case = Case::new(packed((2, 1), 64, mask, &[30, 70, 40]), Layout::HeadsFirst, 41);
        let clean = case.run(&on);
        for tensor in [&mut case.q, &mut case.k, &mut case.v, &mut case.dout] {
            for head in 0..tensor.heads {
                let (start, end) = (tensor.at(0, head, 30), tensor.at(0, head, 100));
                tensor.data[start..end].fill(bf16::NAN);
            }
        }
        let spoilt = case.run(&on);
        for (clean, spoilt) in [
            (&clean.out, &spoilt.out),
            (&clean.dq, &spoilt.dq),
            (&clean.dk, &spoilt.dk),
            (&clean.dv, &spoilt.dv),
        ] {
            for head in 0..clean.heads {
                for row in (0..30).chain(100..140) {
                    assert_eq!(clean.row(0, head, row), spoilt.row(0, head, row));
                }
                assert!(spoilt.row(0, head, 30).iter().all(|x| x.is_nan()));
            }
        }
    }
}

/// Scores of thousands overflow nothing, and a row that looks at one key copies its value.
#[test]
fn attention_of_large_scores() {
    let Some(on) = emulation() else { return };
    let mut case = Case::new(batch((1, 1), 64, Mask::Causal, [1, 100, 100]), Layout::HeadsFirst, 51);
    for tensor in [&mut case.q, &mut case.k] {
        tensor.data.iter_mut().for_each(|x| *x = bf16::from_f32(x.to_f32() * 100.0));
    }
    let found = case.run(&on);
    for tensor in [&found.out, &found.dq, &found.dk, &found.dv] {
        assert!(tensor.data.iter().all(|x| x.is_finite()));
    }
    assert_eq!(found.out.row(0, 0, 0), case.v.row(0, 0, 0));
}

/// The blocks may run in any order: the bits are the same.
#[test]
fn attention_is_deterministic() {
    let case = Case::new(packed((4, 2), 128, Mask::Causal, &[100, 150]), Layout::RowsFirst, 61);
    let runs = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(7)];
    let mut runs = runs.into_iter().filter_map(|order| {
        let found = case.run(&emulation()?.with_order(order));
        let tensors = [found.out, found.dq, found.dk, found.dv];
        Some(tensors.map(|tensor| tensor.data.iter().map(|x| x.to_bits()).collect::<Vec<u16>>()))
    });
    let Some(first) = runs.next() else { return };
    assert!(runs.all(|run| run == first));
}

/// Boundaries on the device that are not those of the shape give other results, and nothing worse.
#[test]
fn attention_stays_within_its_tensors() {
    let Some(on) = emulation() else { return };
    let case = Case::new(packed((2, 1), 64, Mask::Causal, &[30, 40]), Layout::HeadsFirst, 71);
    let Case { q, k, v, .. } = &case;
    for boundaries in [[-5, 10, 1000], [60, 50, i32::MIN], [i32::MAX, i32::MAX, i32::MAX]] {
        let boundaries: Buffer<i32> = boundaries.into_iter().collect();
        let (mut out, mut lse) = (q.clone(), Buffer::poisoned(140));
        let arguments = Forward {
            q: q.operand(&on),
            k: k.operand(&on),
            v: v.operand(&on),
            cu_seqlens: Some(on.read(&boundaries)),
            out: out.operand_mut(&on),
            lse: on.write(&mut lse),
        };
        forward(&on, &case.shape, arguments).unwrap();
    }
}

/// What [`forward`] says of a case one of whose parts was changed.
fn refusal(on: &Emulation, shape: &Shape, change: impl FnOnce(&mut Tensor, &mut Buffer<f32>)) -> String {
    let case = Case::new(shape.clone(), Layout::HeadsFirst, 81);
    let (mut out, mut lse) = (case.q.clone(), Buffer::poisoned(shape.num_query_rows().unwrap()));
    change(&mut out, &mut lse);
    let arguments = Forward {
        q: case.q.operand(on),
        k: case.k.operand(on),
        v: case.v.operand(on),
        cu_seqlens: None,
        out: out.operand_mut(on),
        lse: on.write(&mut lse),
    };
    forward(on, shape, arguments).unwrap_err().to_string()
}

#[test]
fn attention_refuses_what_it_cannot_do() {
    let Some(on) = emulation() else { return };
    let shape = batch((2, 1), 64, Mask::Full, [1, 4, 4]);
    let nothing = |_: &mut Tensor, _: &mut Buffer<f32>| ();
    let checks = [
        (refusal(&on, &batch((2, 1), 136, Mask::Full, [1, 4, 4]), nothing), "up to 128"),
        (refusal(&on, &batch((2, 1), 12, Mask::Full, [1, 4, 4]), nothing), "a multiple of 8"),
        (refusal(&on, &packed((2, 1), 64, Mask::Full, &[4]), nothing), "cu_seqlens goes with packed"),
        (refusal(&on, &Shape { scale: f64::NAN, ..shape.clone() }, nothing), "cannot be scaled"),
        (refusal(&on, &shape, |out, _| out.data = Buffer::poisoned(511)), "out has 511 elements"),
        (refusal(&on, &shape, |out, _| out.strides.row = 60), "overlap"),
        (refusal(&on, &shape, |_, lse| *lse = Buffer::poisoned(7)), "lse has 7 numbers, there are 8"),
    ];
    for (found, expected) in checks {
        assert!(found.contains(expected), "{found}");
    }
    let found = refusal(&on, &shape, |out, _| {
        out.strides = Strides { row: 65, head: 4 * 65, batch: 8 * 65 };
        out.data = Buffer::poisoned(8 * 65);
    });
    assert!(found.contains("multiples of 8"), "{found}");

    let case = Case::new(shape, Layout::HeadsFirst, 82);
    let (mut dq, mut dk, mut dv) = (case.q.clone(), case.k.clone(), case.v.clone());
    let (lse, mut workspace) = (Buffer::poisoned(8), Buffer::poisoned(8));
    let arguments = Backward {
        q: case.q.operand(&on),
        k: case.k.operand(&on),
        v: case.v.operand(&on),
        cu_seqlens: None,
        out: case.q.operand(&on),
        lse: on.read(&lse),
        dout: case.dout.operand(&on),
        dq: dq.operand_mut(&on),
        dk: dk.operand_mut(&on),
        dv: dv.operand_mut(&on),
        workspace: on.write(&mut workspace),
    };
    let error = backward(&on, &case.shape, arguments).unwrap_err().to_string();
    assert!(error.contains("the workspace has 8 numbers"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn attention_of_random_shapes(
        seed in 0u64..1000,
        (kv_heads, group) in (1usize..3, 1usize..4),
        head_dim in (1usize..17).prop_map(|units| units * 8),
        is_causal in any::<bool>(),
        lengths in proptest::collection::vec(0i32..90, 0..4),
        (q_len, more) in (0usize..150, 0usize..150),
        is_packed in any::<bool>(),
        is_heads_first in any::<bool>(),
    ) {
        let Some(on) = emulation() else { return Ok(()) };
        let mask = if is_causal { Mask::Causal } else { Mask::Full };
        let heads = (kv_heads * group, kv_heads);
        let shape = if is_packed {
            packed(heads, head_dim, mask, &lengths)
        } else {
            batch(heads, head_dim, mask, [2, q_len, q_len + more])
        };
        let layout = if is_heads_first { Layout::HeadsFirst } else { Layout::RowsFirst };
        Case::new(shape, layout, seed).check(&on);
    }
}
