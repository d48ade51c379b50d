//! Backends against each other, operation by operation: the kernels in bf16 and f32, and the references in f64.
//!
//! - `calls`: every operation of [`Backend`], as a call that is the same on any.
//! - `arguments`: what each is given.
//! - `run`: memory around the arguments of a call, and what the call did to it.

mod arguments;
mod calls;
mod run;

use calls::{Call, Form};
use oqvl_emulation::Emulation;
use oqvl_kernels::attention::{FusedForward, Mask, Sequences, Shape};
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::backend::{Backend, CpuRef};
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::gemm::{Epilogue, Gemm};
use oqvl_kernels::norm::Norm;
use oqvl_kernels::patchify::Patches;
use oqvl_kernels::rope::launch::{Angles, Qkv};
use oqvl_kernels::{CuSeqlens, Output, Rows};
use run::{Arg, Change, Kind, Lengths, Memories, Role};

const BOTH: [bool; 2] = [false, true];
const OUTPUTS: [Output; 2] = [Output::Overwrite, Output::Accumulate];
const GELUS: [Gelu; 2] = [Gelu::Exact, Gelu::Tanh];

/// Three sequences, one of which is empty.
fn packed() -> Shape {
    let packed = Sequences::Packed(CuSeqlens::new(vec![0, 5, 5, 22]).unwrap());
    Shape::new((4, 2), 16, Mask::Causal, packed).unwrap()
}

fn batch() -> Shape {
    let sequences = Sequences::Batch { batch: 2, q_len: 9, kv_len: 9 };
    Shape::new((2, 2), 24, Mask::Full, sequences).unwrap()
}

const NORM: Norm = Norm { rows: 37, hidden: 24, eps: 1e-5 };
const QKV: Qkv = Qkv { rows: 37, num_heads: 3, num_kv_heads: 1, head_dim: 8 };
const MATRIX: Rows = Rows { rows: 37, cols: 24 };
const POOLING: Pooling = Pooling { batch: 2, grid: 5, pooled: 3, channels: 10 };
const PATCHES: Patches = Patches {
    batch: 2,
    grid_rows: 2,
    grid_cols: 3,
    edge: 3,
    mean: [0.5, 0.4, 0.3],
    deviation: [0.5, 0.25, 0.2],
};

/// Every operation, in every form. All are right.
fn calls() -> Vec<Call> {
    let mut calls = vec![
        Call::Gemm(Gemm::new(7, 8, 9)),
        Call::Gemm(Gemm::new(7, 8, 9).with_a_transposed().with_epilogue(Epilogue::Bias)),
        Call::Gemm(Gemm::new(7, 8, 9).with_b_transposed().with_epilogue(Epilogue::GeluBias)),
        Call::Gemm(Gemm { d_stride: 11, ..Gemm::new(7, 8, 9) }.accumulating()),
        Call::GemmFull(Gemm::new(7, 8, 9).with_a_transposed()),
        Call::GemmFull(Gemm { d_stride: 11, ..Gemm::new(7, 8, 9) }),
        Call::GemmFull(Gemm::new(7, 8, 9).with_b_transposed().accumulating()),
        Call::Attention(packed(), true),
        Call::Attention(batch(), false),
        Call::AttentionBackward(packed(), true),
        Call::AttentionBackward(batch(), false),
        Call::RopeBackward(QKV, None),
        Call::Swiglu(MATRIX),
        Call::SwigluBackward(MATRIX),
        Call::AvgPool(POOLING),
        Call::AvgPoolBackward(POOLING),
        Call::Embedding(12),
        Call::EmbeddingBackward(12),
        Call::GatherRows(12),
        Call::Patchify(PATCHES),
        Call::Adamw { lr: 5e-3, ema: None, skips: false },
        Call::Adamw { lr: 5e-3, ema: Some(0.75), skips: false },
        Call::Adamw { lr: 5e-3, ema: Some(0.75), skips: true },
        Call::AdamwSteps,
        Call::Add(83),
        Call::AddAssign(83),
        Call::Narrow(83),
        Call::Widen(83),
        Call::Fill(83),
    ];
    for first in BOTH {
        calls.push(Call::Rope(QKV, first));
        // More than one partial sum.
        calls.extend(BOTH.map(|infinite| Call::GradientNorm { len: 70_000, scaled: first, infinite }));
        for form in [Form::Rms, Form::Layer] {
            calls.push(Call::Norm { norm: NORM, adds: first, form });
            calls.push(Call::NormBackward { norm: NORM, past: first, form });
        }
        for z_loss in [0.0, 0.01] {
            calls.push(Call::CrossEntropy { sizes: Rows { rows: 7, cols: 19 }, z_loss, scaled: first });
        }
    }
    for output in OUTPUTS {
        calls.push(Call::RopeBackward(QKV, Some(output)));
        calls.push(Call::Totals { rows: 37, output });
        calls.push(Call::ColumnSum(MATRIX, output));
        calls.push(Call::ColumnSumFull(MATRIX, output));
        calls.extend(GELUS.map(|kind| Call::BiasGeluBackward(MATRIX, kind, output)));
    }
    calls.extend(GELUS.map(|kind| Call::BiasGelu(MATRIX, kind)));
    calls
}

#[track_caller]
fn assert_role(call: &Call, arg: &Arg, memories: &Memories) {
    let name = arg.name;
    assert!(memories.margins_are_unchanged(), "{call:?}: elements around {name} were written");
    if matches!(arg.role, Role::Input | Role::Kept) {
        assert!(memories.is_unchanged(), "{call:?}: {name} was written");
    }
}

/// As close as one rounding to the type allows, and what the call rounds before.
#[track_caller]
fn assert_close(call: &Call, arg: &Arg, found: &[f64], expected: &[f64]) {
    assert_eq!(found.len(), expected.len());
    let share = match arg.kind {
        Kind::Half => 1.0 / 128.0,
        Kind::Full => 1e-5,
        Kind::I32 | Kind::I64 | Kind::U8 => 0.0,
    };
    let slack = if share > 0.0 { arg.slack } else { 0.0 };
    for (at, (found, expected)) in found.iter().zip(expected).enumerate() {
        let is_close = (found - expected).abs() <= share * expected.abs() + slack;
        // An infinite norm is one.
        assert!(is_close || found == expected, "{call:?}: {}[{at}]: {found} is not {expected}", arg.name);
    }
}

#[test]
fn backends_agree() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    for call in calls() {
        let (on_cpu, expected) = run::run(&CpuRef::<f64>::default(), &call, Change::None);
        on_cpu.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        let (on_device, found) = run::run(&emulation, &call, Change::None);
        on_device.unwrap_or_else(|error| panic!("{call:?}: {error}"));
        for ((arg, expected), found) in call.args().iter().zip(&expected).zip(&found) {
            assert_role(&call, arg, expected);
            assert_role(&call, arg, found);
            if matches!(arg.role, Role::Output | Role::InPlace) {
                assert_close(&call, arg, found.elements(), expected.elements());
            }
        }
    }
}

/// A backend refuses a call with an error, and has written nothing then.
#[track_caller]
fn assert_refused<B: Backend>(on: &B, call: &Call, change: Change) {
    let what = format!("{} {call:?} with {change:?}", std::any::type_name::<B>());
    let (result, memories) = run::run(on, call, change);
    assert!(result.is_err(), "{what} is not refused");
    for (arg, memories) in call.args().iter().zip(memories) {
        assert!(memories.is_unchanged(), "{what} is refused, but {} was written", arg.name);
    }
}

#[test]
fn lengths_that_do_not_fit_are_refused() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    // Of several calls, the first would not be refused.
    for call in calls().into_iter().filter(|call| !matches!(call, Call::AdamwSteps)) {
        for arg in call.args() {
            let by: &[isize] = match arg.lengths {
                Lengths::Exact => &[-1, 1],
                Lengths::OrMore => &[-1],
                Lengths::Any => &[],
            };
            for by in by {
                let longer = Change::Longer(arg.name, *by);
                assert_refused(&CpuRef::<f64>::default(), &call, longer);
                assert_refused(&CpuRef::<f32>::default(), &call, longer);
                assert_refused(&emulation, &call, longer);
            }
        }
    }
}

#[test]
fn settings_that_mean_nothing_are_refused() {
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    let adamw = |lr: f64, ema: Option<f32>| Call::Adamw { lr, ema, skips: false };
    let calls = [
        Call::Attention(packed(), false),
        Call::Attention(batch(), true),
        Call::AttentionBackward(packed(), false),
        Call::AttentionBackward(batch(), true),
        Call::Norm { norm: Norm { eps: -1.0, ..NORM }, adds: true, form: Form::Layer },
        Call::Norm { norm: Norm { eps: f64::NAN, ..NORM }, adds: true, form: Form::Layer },
        adamw(f64::NAN, None),
        adamw(f64::INFINITY, Some(0.75)),
        adamw(5e-3, Some(-0.25)),
        adamw(5e-3, Some(1.25)),
        adamw(5e-3, Some(f32::NAN)),
        Call::Patchify(Patches { deviation: [0.5, 0.0, 0.5], ..PATCHES }),
        Call::Patchify(Patches { mean: [0.5, f64::NAN, 0.5], ..PATCHES }),
    ];
    for call in calls {
        assert_refused(&CpuRef::<f64>::default(), &call, Change::None);
        assert_refused(&emulation, &call, Change::None);
    }
}

/// Kernels take what lists in the memory of the device say, which only the host could check; the references refuse them.
#[test]
fn references_refuse_lists_that_are_wrong() {
    let adamw = || Call::Adamw { lr: 5e-3, ema: Some(0.75), skips: false };
    for (call, name, last) in [
        (Call::Attention(packed(), true), "cu_seqlens", 21.0),
        (Call::AttentionBackward(packed(), true), "cu_seqlens", 21.0),
        (Call::Rope(QKV, true), "positions", 7.0),
        (Call::RopeBackward(QKV, Some(Output::Overwrite)), "positions", -1.0),
        (Call::Embedding(12), "sources", 11.0),
        (Call::EmbeddingBackward(12), "ids", 11.0),
        (Call::EmbeddingBackward(12), "starts", 99.0),
        (Call::EmbeddingBackward(12), "rows", 99.0),
        (Call::GatherRows(12), "indices", 5.0),
        (Call::CrossEntropy { sizes: MATRIX, z_loss: 0.0, scaled: true }, "labels", 24.0),
        (adamw(), "boundaries", 112.0),
        (adamw(), "decays", 0.75),
    ] {
        assert_refused(&CpuRef::<f64>::default(), &call, Change::Last(name, last));
        assert_refused(&CpuRef::<f32>::default(), &call, Change::Last(name, last));
    }
}

/// Sizes for which there is no memory, of calls that have none.
#[test]
fn sizes_that_cannot_be_counted_are_refused() {
    fn refuses<B: Backend>(on: &B) {
        let (half, mut half_to) = (on.poisoned::<B::Half>(0).unwrap(), on.poisoned::<B::Half>(0).unwrap());
        let sizes = Rows { rows: 0, cols: 1 << 63 };
        assert!(on.swiglu_forward(sizes, on.slice(&half), on.slice_mut(&mut half_to)).is_err());
        let (gate_up, dh) = (on.slice(&half), on.slice(&half));
        assert!(on.swiglu_backward(sizes, gate_up, dh, on.slice_mut(&mut half_to)).is_err());
        let mut lse = on.poisoned::<B::Full>(0).unwrap();
        // Strides of 2^65 elements, and of 2^63.
        for q_len in [1 << 60, 1 << 58] {
            let sequences = Sequences::Batch { batch: 0, q_len, kv_len: q_len };
            let args = FusedForward {
                qkv: on.slice(&half),
                cu_seqlens: None,
                out: on.slice_mut(&mut half_to),
                lse: on.slice_mut(&mut lse),
            };
            let shape = Shape::new((2, 1), 8, Mask::Full, sequences).unwrap();
            assert!(on.attention_forward(&shape, args).is_err());
        }
        // Heads of no channels have no pairs.
        let positions = on.upload(&[0, 0]).unwrap();
        let table = on.poisoned::<B::Full>(0).unwrap();
        let angles = Angles { positions: on.slice(&positions), cos: on.slice(&table), sin: on.slice(&table) };
        let sizes = Qkv { rows: 2, num_heads: 1, num_kv_heads: 1, head_dim: 0 };
        assert!(on.rope_forward(sizes, on.slice_mut(&mut half_to), None, angles).is_err());
    }
    let Some(emulation) = Emulation::from_env().unwrap() else { return };
    refuses(&CpuRef::<f64>::default());
    refuses(&emulation);
}
