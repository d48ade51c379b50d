//! Every operation of a backend, as a call with arguments that is the same on any.

use crate::run::Slots;
use candle_core::Result;
use oqvl_kernels::adamw::launch::{Buffers, Control, Decay};
use oqvl_kernels::adamw::{AdamW, DecayRanges};
use oqvl_kernels::attention::{FusedBackward, FusedForward, Shape};
use oqvl_kernels::avg_pool::Pooling;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::column_sum::launch::BiasGradient;
use oqvl_kernels::cross_entropy::Loss;
use oqvl_kernels::cross_entropy::launch::{Arguments, Totals};
use oqvl_kernels::embedding::launch::{DeviceBuckets, Embeddings};
use oqvl_kernels::gemm::Gemm;
use oqvl_kernels::norm::{self, Norm};
use oqvl_kernels::patchify::Patches;
use oqvl_kernels::rope::launch::{Angles, Qkv};
use oqvl_kernels::{Output, Rows};

const SETTINGS: AdamW = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, max_norm: 1.0 };
pub(crate) const IGNORE: i32 = -100;
/// Ranges of weights with their decays.
const DECAYS: [(usize, f32); 4] = [(8, 0.5), (24, 0.0), (64, 0.1), (8, 0.25)];

/// Of the steps of [`Call::AdamwSteps`].
pub(crate) const GRADIENTS: [&str; 3] = ["first", "second", "third"];

/// Which of the two norms.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Form {
    Rms,
    Layer,
}

/// Which operation, of what sizes.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    Gemm(Gemm),
    GemmFull(Gemm),
    /// With boundaries on the device or without.
    Attention(Shape, bool),
    AttentionBackward(Shape, bool),
    Norm {
        norm: Norm,
        adds: bool,
        form: Form,
    },
    NormBackward {
        norm: Norm,
        past: bool,
        form: Form,
    },
    Rope(Qkv, bool),
    RopeBackward(Qkv, Option<Output>),
    Swiglu(Rows),
    SwigluBackward(Rows),
    BiasGelu(Rows, Gelu),
    BiasGeluBackward(Rows, Gelu, Output),
    AvgPool(Pooling),
    AvgPoolBackward(Pooling),
    Embedding(usize),
    EmbeddingBackward(usize),
    GatherRows(usize),
    Patchify(Patches),
    CrossEntropy {
        sizes: Rows,
        z_loss: f32,
        scaled: bool,
    },
    Totals {
        rows: usize,
        output: Output,
    },
    GradientNorm {
        len: usize,
        scaled: bool,
        infinite: bool,
    },
    /// One update, with what the norm would have left.
    Adamw {
        lr: f64,
        ema: Option<f32>,
        skips: bool,
    },
    /// Norms and updates, of gradients the second of which is infinite.
    AdamwSteps,
    ColumnSum(Rows, Output),
    ColumnSumFull(Rows, Output),
    Add(usize),
    AddAssign(usize),
    Narrow(usize),
    Widen(usize),
    Fill(usize),
}

pub(crate) fn adamw_ranges() -> DecayRanges {
    DecayRanges::new(&DECAYS).unwrap()
}

impl Call {
    /// Makes it.
    pub(crate) fn make<B: Backend>(&self, mut s: Slots<'_, B>) -> Result<()> {
        let on = s.on;
        match self {
            Self::Gemm(gemm) => {
                let bias = gemm.epilogue.has_bias().then(|| s.half("bias"));
                on.gemm(gemm, (s.half("a"), s.half("b")), bias, s.half_mut("d"))
            }
            Self::GemmFull(gemm) => on.gemm_full(gemm, (s.half("a"), s.half("b")), s.full_mut("d")),
            Self::Attention(shape, with_boundaries) => {
                let args = FusedForward {
                    qkv: s.half("qkv"),
                    cu_seqlens: with_boundaries.then(|| s.i32("cu_seqlens")),
                    out: s.half_mut("out"),
                    lse: s.full_mut("lse"),
                };
                on.attention_forward(shape, args)
            }
            Self::AttentionBackward(shape, with_boundaries) => {
                let args = FusedBackward {
                    qkv: s.half("qkv"),
                    cu_seqlens: with_boundaries.then(|| s.i32("cu_seqlens")),
                    out: s.half("out"),
                    lse: s.full("lse"),
                    dout: s.half("dout"),
                    dqkv: s.half_mut("dqkv"),
                    workspace: s.full_mut("workspace"),
                };
                on.attention_backward(shape, args)
            }
            Self::Norm { norm, adds, form } => {
                let args = norm::Forward {
                    x: s.half("x"),
                    residual: adds
                        .then(|| norm::Residual { residual: s.half("residual"), sum: s.half_mut("sum") }),
                    weight: s.half("weight"),
                    centre: (*form == Form::Layer)
                        .then(|| norm::Centre { bias: s.half("bias"), mean: s.full_mut("mean") }),
                    y: s.half_mut("y"),
                    inverse: s.full_mut("inverse"),
                };
                on.norm_forward(*norm, args)
            }
            Self::NormBackward { norm, past, form } => {
                let args = norm::Backward {
                    s: s.half("s"),
                    weight: s.half("weight"),
                    dy: s.half("dy"),
                    dresidual: past.then(|| s.half("dresidual")),
                    inverse: s.full("inverse"),
                    ds: s.half_mut("ds"),
                    dweight_partials: s.full_mut("dweight"),
                    centre: (*form == Form::Layer).then(|| norm::CentreBackward {
                        mean: s.full("mean"),
                        dbias_partials: s.full_mut("dbias"),
                    }),
                };
                on.norm_backward(*norm, args)
            }
            Self::Rope(sizes, has_bias) => {
                let bias = has_bias.then(|| s.half("bias"));
                on.rope_forward(*sizes, s.half_mut("qkv"), bias, angles(&mut s))
            }
            Self::RopeBackward(sizes, output) => {
                let bias = output.map(|output| gradient(&mut s, output));
                on.rope_backward(*sizes, s.half_mut("dqkv"), angles(&mut s), bias)
            }
            Self::Swiglu(sizes) => on.swiglu_forward(*sizes, s.half("gate_up"), s.half_mut("h")),
            Self::SwigluBackward(sizes) => {
                on.swiglu_backward(*sizes, s.half("gate_up"), s.half("dh"), s.half_mut("dgate_up"))
            }
            Self::BiasGelu(sizes, kind) => {
                on.bias_gelu_forward(*sizes, *kind, s.half("x"), s.half("bias"), s.half_mut("y"))
            }
            Self::BiasGeluBackward(sizes, kind, output) => {
                let inputs = (s.half("x"), s.half("bias"), s.half("dy"));
                let dx = s.half_mut("dx");
                on.bias_gelu_backward(*sizes, *kind, inputs, dx, gradient(&mut s, *output))
            }
            Self::AvgPool(sizes) => on.avg_pool_forward(*sizes, s.half("x"), s.half_mut("y")),
            Self::AvgPoolBackward(sizes) => on.avg_pool_backward(*sizes, s.half("dy"), s.half_mut("dx")),
            Self::Embedding(hidden) => {
                let from = Embeddings { table: s.half("table"), visual: s.half("visual") };
                on.embedding_forward(*hidden, from, s.i32("sources"), s.half_mut("to"))
            }
            Self::EmbeddingBackward(hidden) => {
                let buckets =
                    DeviceBuckets { ids: s.i32("ids"), starts: s.i32("starts"), rows: s.i32("rows") };
                on.embedding_backward(*hidden, s.half("dy"), buckets, s.full_mut("dtable"))
            }
            Self::GatherRows(cols) => {
                on.gather_rows(*cols, s.half("from"), s.i32("indices"), s.half_mut("to"))
            }
            Self::Patchify(sizes) => on.patchify(sizes, s.u8("pixels"), s.half_mut("rows")),
            Self::CrossEntropy { sizes, z_loss, scaled } => {
                let loss = Loss { ignore_index: IGNORE, scale: 0.5, z_loss: *z_loss };
                let args = Arguments {
                    logits: s.half_mut("logits"),
                    labels: s.i32("labels"),
                    scale: scaled.then(|| s.full("scale")),
                    stats: s.full_mut("stats"),
                };
                on.cross_entropy(*sizes, loss, args)
            }
            Self::Totals { output, .. } => {
                let (sums, counts) = (s.full_mut("sums"), s.i32_mut("counts"));
                on.cross_entropy_totals(s.full("stats"), Totals { sums, counts, output: *output })
            }
            Self::GradientNorm { scaled, .. } => {
                let scale = scaled.then(|| s.full("scale"));
                let mut control = Control { numbers: s.full_mut("control"), step: s.i32_mut("step") };
                on.gradient_norm(&SETTINGS, s.full("grad"), scale, s.full_mut("partials"), &mut control)
            }
            Self::Adamw { lr, ema, .. } => {
                let buffers = Buffers {
                    w: s.full_mut("w"),
                    grad: s.full_mut("grad"),
                    m: s.full_mut("m"),
                    v: s.full_mut("v"),
                    copy: Some(s.half_mut("copy")),
                    ema: ema.map(|keep| (s.full_mut("ema"), keep)),
                };
                let control = Control { numbers: s.full_mut("control"), step: s.i32_mut("step") };
                let decay = Decay { boundaries: s.i64("boundaries"), decays: s.full("decays") };
                on.adamw_update(&SETTINGS, *lr, buffers, &adamw_ranges(), decay, &control)
            }
            Self::AdamwSteps => adamw_steps(s),
            Self::ColumnSum(sizes, output) => {
                let (partials, to) = (s.full_mut("partials"), s.full_mut("dbias"));
                on.column_sum(*sizes, s.half("x"), partials, to, *output)
            }
            Self::ColumnSumFull(sizes, output) => {
                let (partials, to) = (s.full_mut("partials"), s.full_mut("dbias"));
                on.column_sum_full(*sizes, s.full("x"), partials, to, *output)
            }
            Self::Add(_) => on.add(s.half("left"), s.half("right"), s.half_mut("to")),
            Self::AddAssign(_) => on.add_assign(s.half("right"), s.half_mut("to")),
            Self::Narrow(_) => on.narrow(s.full("from"), s.half_mut("to")),
            Self::Widen(_) => on.widen(s.half("from"), s.full_mut("to")),
            Self::Fill(_) => on.fill(s.full_mut("to"), 0.7),
        }
    }
}

fn angles<'a, B: Backend>(s: &mut Slots<'a, B>) -> Angles<'a, B> {
    Angles { positions: s.i32("positions"), cos: s.full("cos"), sin: s.full("sin") }
}

fn gradient<'a, B: Backend>(s: &mut Slots<'a, B>, output: Output) -> BiasGradient<'a, B, B::Full> {
    BiasGradient { partials: s.full_mut("partials"), dbias: s.full_mut("dbias"), output }
}

fn adamw_steps<B: Backend>(mut s: Slots<'_, B>) -> Result<()> {
    let (on, ranges) = (s.on, adamw_ranges());
    let [mut w, mut m, mut v, mut ema, mut partials] =
        ["w", "m", "v", "ema", "partials"].map(|name| s.full_mut(name));
    let (mut copy, mut control) =
        (s.half_mut("copy"), Control { numbers: s.full_mut("control"), step: s.i32_mut("step") });
    let (boundaries, decays) = (s.i64("boundaries"), s.full("decays"));
    for name in GRADIENTS {
        let grad = s.full_mut(name);
        on.gradient_norm(&SETTINGS, grad.as_slice(), None, partials.reborrow(), &mut control)?;
        let buffers = Buffers {
            w: w.reborrow(),
            grad,
            m: m.reborrow(),
            v: v.reborrow(),
            copy: Some(copy.reborrow()),
            ema: Some((ema.reborrow(), 0.75)),
        };
        let decay = Decay { boundaries, decays };
        on.adamw_update(&SETTINGS, 5e-3, buffers, &ranges, decay, &control)?;
    }
    Ok(())
}
