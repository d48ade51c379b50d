//! The arguments of every call, and what is in them.

use crate::calls::{Call, Form, GRADIENTS, IGNORE, adamw_ranges};
use crate::run::{Arg, Change, Kind, Lengths, Role, run};
use half::bf16;
use oqvl_kernels::adamw::CONTROL_LEN;
use oqvl_kernels::adamw::launch::partials_len as norm_partials;
use oqvl_kernels::attention::{Sequences, Shape, backward_workspace_len};
use oqvl_kernels::backend::CpuRef;
use oqvl_kernels::column_sum::launch::partials_len;
use oqvl_kernels::cross_entropy::CHANNELS;
use oqvl_kernels::embedding::{Buckets, visual_source};
use oqvl_kernels::gemm::Gemm;
use oqvl_kernels::norm::{self, Norm};
use oqvl_kernels::rope::launch::Qkv;
use oqvl_kernels::{Output, RopeTables, Rows};
use rand::{Rng as _, SeedableRng as _};
/// Numbers of which a sum of two is exact in bf16 too.
fn random(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| f64::from(rng.random_range(-32..=32)) / 32.0).collect()
}

fn integers(len: usize, seed: u64, range: std::ops::Range<i32>) -> Vec<f64> {
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
    (0..len).map(|_| f64::from(rng.random_range(range.clone()))).collect()
}

fn of_ints(values: &[i32]) -> Vec<f64> {
    values.iter().map(|value| f64::from(*value)).collect()
}

fn rounded(values: &[f64]) -> Vec<f64> {
    values.iter().map(|value| bf16::from_f64(*value).to_f64()).collect()
}

fn in_f32(values: impl IntoIterator<Item = f64>) -> Vec<f64> {
    values.into_iter().map(|value| f64::from(value as f32)).collect()
}

fn half(name: &'static str, len: usize, seed: u64) -> Arg {
    Arg::given(name, Kind::Half, Role::Input, random(len, seed))
}

fn ints(name: &'static str, values: &[i32]) -> Arg {
    Arg::given(name, Kind::I32, Role::Input, of_ints(values))
}

fn half_to(name: &'static str, len: usize) -> Arg {
    Arg::written(name, Kind::Half, Role::Output, len)
}

fn full_to(name: &'static str, len: usize) -> Arg {
    Arg::written(name, Kind::Full, Role::Output, len)
}

fn scratch(name: &'static str, len: usize) -> Arg {
    Arg::written(name, Kind::Full, Role::Scratch, len)
}

/// What is overwritten or added to.
fn sums_to(name: &'static str, kind: Kind, output: Output, values: Vec<f64>) -> Arg {
    match output {
        Output::Overwrite => Arg::written(name, kind, Role::Output, values.len()),
        Output::Accumulate => Arg::given(name, kind, Role::InPlace, values),
    }
}

fn gradient_args(matrix: Rows, output: Output) -> [Arg; 2] {
    let dbias = sums_to("dbias", Kind::Full, output, random(matrix.cols, 90));
    [scratch("partials", partials_len(matrix).unwrap()), dbias]
}

fn gemm_args(gemm: &Gemm, kind: Kind) -> Vec<Arg> {
    let inner = |name, len, seed| half(name, len, seed).lengths(Lengths::OrMore);
    let d = random((gemm.m - 1) * gemm.d_stride + gemm.n, 3);
    let is_read = gemm.output == Output::Accumulate || gemm.d_stride > gemm.n;
    let output = if is_read { Output::Accumulate } else { Output::Overwrite };
    let mut args = vec![
        inner("a", gemm.m * gemm.k, 1),
        inner("b", gemm.k * gemm.n, 2),
        sums_to("d", kind, output, d).lengths(Lengths::OrMore),
    ];
    args.extend(gemm.epilogue.has_bias().then(|| half("bias", gemm.n, 4)));
    args
}

/// Rows of a shape, columns of its fused projection, and of its result.
fn attention_sizes(shape: &Shape) -> (usize, usize, usize) {
    let rows = match &shape.sequences {
        Sequences::Batch { batch, q_len, .. } => batch * q_len,
        Sequences::Packed(packed) => packed.num_rows(),
    };
    let cols = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim;
    (rows, cols, shape.num_heads * shape.head_dim)
}

fn boundaries_arg(shape: &Shape, is_there: bool) -> Option<Arg> {
    let boundaries = match &shape.sequences {
        Sequences::Packed(packed) => packed.boundaries().to_vec(),
        Sequences::Batch { .. } => vec![0, 1],
    };
    is_there.then(|| ints("cu_seqlens", &boundaries))
}

fn attention_args(shape: &Shape, with_boundaries: bool) -> Vec<Arg> {
    let (rows, cols, out_cols) = attention_sizes(shape);
    let mut args = vec![
        half("qkv", rows * cols, 1),
        // Probabilities are rounded before they are multiplied.
        half_to("out", rows * out_cols).slack(2e-3),
        full_to("lse", shape.num_query_rows().unwrap()),
    ];
    args.extend(boundaries_arg(shape, with_boundaries));
    args
}

fn attention_backward_args(shape: &Shape, with_boundaries: bool) -> Vec<Arg> {
    let (rows, cols, out_cols) = attention_sizes(shape);
    let is_packed = matches!(shape.sequences, Sequences::Packed(_));
    let forward = Call::Attention(shape.clone(), is_packed);
    let (result, forward) = run(&CpuRef::<f64>::default(), &forward, Change::None);
    result.unwrap();
    let out = rounded(forward[1].elements());
    let lse = in_f32(forward[2].elements().iter().copied());
    let mut args = vec![
        half("qkv", rows * cols, 1),
        Arg::given("out", Kind::Half, Role::Input, out),
        Arg::given("lse", Kind::Full, Role::Input, lse),
        half("dout", rows * out_cols, 2),
        // So are the gradients of scores, and the result that they are made of.
        half_to("dqkv", rows * cols).slack(5e-3),
        scratch("workspace", backward_workspace_len(shape).unwrap()).lengths(Lengths::OrMore),
    ];
    args.extend(boundaries_arg(shape, with_boundaries));
    args
}

fn norm_args(norm: Norm, adds: bool, form: Form) -> Vec<Arg> {
    let len = norm.rows * norm.hidden;
    let mut args = vec![
        half("x", len, 1),
        half("weight", norm.hidden, 2),
        half_to("y", len),
        full_to("inverse", norm.rows),
    ];
    if adds {
        args.extend([half("residual", len, 3), half_to("sum", len)]);
    }
    if form == Form::Layer {
        args.extend([half("bias", norm.hidden, 4), full_to("mean", norm.rows)]);
    }
    args
}

fn norm_backward_args(norm: Norm, past: bool, form: Form) -> Vec<Arg> {
    let len = norm.rows * norm.hidden;
    let partials = norm::partials_len(norm).unwrap();
    let s = random(len, 1);
    let mean_of = |row: &[f64]| row.iter().sum::<f64>() / norm.hidden as f64;
    let means = s.chunks_exact(norm.hidden).map(mean_of);
    let means: Vec<f64> = if form == Form::Layer { means.collect() } else { vec![0.0; norm.rows] };
    let inverse = s.chunks_exact(norm.hidden).zip(&means).map(|(row, mean)| {
        let squares = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>();
        (squares / norm.hidden as f64 + norm.eps).sqrt().recip()
    });
    let mut args = vec![
        Arg::given("s", Kind::Half, Role::Input, s.clone()),
        half("weight", norm.hidden, 2),
        half("dy", len, 3),
        Arg::given("inverse", Kind::Full, Role::Input, in_f32(inverse)),
        half_to("ds", len),
        full_to("dweight", partials),
    ];
    args.extend(past.then(|| half("dresidual", len, 4)));
    if form == Form::Layer {
        args.push(Arg::given("mean", Kind::Full, Role::Input, in_f32(means)));
        args.push(full_to("dbias", partials));
    }
    args
}

fn rope_args(sizes: Qkv, name: &'static str) -> Vec<Arg> {
    const POSITIONS: usize = 7;
    let matrix = sizes.sizes().unwrap();
    let (cos, sin) = RopeTables::new(sizes.head_dim, POSITIONS, 10_000.0).cos_sin::<f32>();
    let table = |name, values: Vec<f32>| {
        Arg::given(name, Kind::Full, Role::Input, values.into_iter().map(f64::from).collect())
    };
    let positions = integers(sizes.rows, 5, 0..POSITIONS as i32);
    vec![
        Arg::given(name, Kind::Half, Role::InPlace, random(matrix.num_elements().unwrap(), 1)),
        Arg::given("positions", Kind::I32, Role::Input, positions),
        table("cos", cos),
        table("sin", sin),
    ]
}

const VOCAB: usize = 11;
const VISUAL: usize = 3;

fn sources() -> Vec<i32> {
    vec![4, visual_source(2), 10, 0, 4, visual_source(0), 7, 4, 10]
}

fn decay_args() -> [Arg; 2] {
    let ranges = adamw_ranges();
    let boundaries = ranges.boundaries().iter().map(|boundary| *boundary as f64).collect();
    let decays = ranges.decays().iter().map(|decay| f64::from(*decay)).collect();
    [
        Arg::given("boundaries", Kind::I64, Role::Input, boundaries),
        Arg::given("decays", Kind::Full, Role::Input, decays),
    ]
}

fn in_place(name: &'static str, values: Vec<f64>) -> Arg {
    Arg::given(name, Kind::Full, Role::InPlace, values)
}

fn adamw_args(ema: Option<f32>, skips: bool) -> Vec<Arg> {
    let len = adamw_ranges().len();
    let squares = random(len, 4).into_iter().map(|x| x * x).collect();
    let copy = if skips { Role::Kept } else { Role::Output };
    // Of the third step.
    let control = [2.0, 0.5, f64::from(u8::from(skips)), 0.271, 0.142_625];
    let mut args = vec![
        in_place("w", random(len, 1)),
        in_place("grad", random(len, 2)),
        in_place("m", random(len, 3)),
        in_place("v", squares),
        Arg::written("copy", Kind::Half, copy, len),
        Arg::given("control", Kind::Full, Role::InPlace, in_f32(control)),
        Arg::given("step", Kind::I32, Role::InPlace, vec![3.0]),
    ];
    args.extend(ema.map(|_| in_place("ema", random(len, 5))));
    args.extend(decay_args());
    args
}

fn adamw_steps_args() -> Vec<Arg> {
    let len = adamw_ranges().len();
    let mut gradients = [2, 6, 7].map(|seed| random(len, seed));
    gradients[1][len - 3] = f64::INFINITY;
    let mut args = vec![
        in_place("w", random(len, 1)),
        in_place("m", vec![0.0; len]),
        in_place("v", vec![0.0; len]),
        half_to("copy", len),
        in_place("ema", random(len, 1)),
        full_to("control", CONTROL_LEN),
        Arg::given("step", Kind::I32, Role::InPlace, vec![0.0]),
        scratch("partials", norm_partials(len)),
    ];
    args.extend(GRADIENTS.into_iter().zip(gradients).map(|(name, values)| in_place(name, values)));
    args.extend(decay_args());
    args
}

fn cross_entropy_args(sizes: Rows, scaled: bool) -> Vec<Arg> {
    let logits = random(sizes.rows * sizes.cols, 1).into_iter().map(|x| 4.0 * x).collect();
    let mut labels = integers(sizes.rows, 2, 0..sizes.cols as i32);
    labels.iter_mut().skip(1).step_by(3).for_each(|label| *label = f64::from(IGNORE));
    let mut args = vec![
        Arg::given("logits", Kind::Half, Role::InPlace, logits),
        Arg::given("labels", Kind::I32, Role::Input, labels),
        full_to("stats", CHANNELS * sizes.rows),
    ];
    args.extend(scaled.then(|| Arg::given("scale", Kind::Full, Role::Input, vec![0.375])));
    args
}

fn totals_args(rows: usize, output: Output) -> Vec<Arg> {
    let is_set = |x: f64| f64::from(u8::from(x > 0.0));
    let stats = random(CHANNELS * rows, 1).into_iter().enumerate();
    let stats = stats.map(|(at, x)| if at % CHANNELS < 2 { x } else { is_set(x) }).collect();
    vec![
        Arg::given("stats", Kind::Full, Role::Input, stats),
        sums_to("sums", Kind::Full, output, vec![0.5, 0.25]),
        sums_to("counts", Kind::I32, output, vec![7.0, 3.0]),
    ]
}

fn column_sum_args(sizes: Rows, kind: Kind, output: Output) -> Vec<Arg> {
    let x = Arg::given("x", kind, Role::Input, random(sizes.num_elements().unwrap(), 1));
    [x].into_iter().chain(gradient_args(sizes, output)).collect()
}

impl Call {
    /// What it takes.
    pub(crate) fn args(&self) -> Vec<Arg> {
        let of = |sizes: &Rows| sizes.num_elements().unwrap();
        match self {
            Self::Gemm(gemm) => gemm_args(gemm, Kind::Half),
            Self::GemmFull(gemm) => gemm_args(gemm, Kind::Full),
            Self::Attention(shape, with_boundaries) => attention_args(shape, *with_boundaries),
            Self::AttentionBackward(shape, with_boundaries) => {
                attention_backward_args(shape, *with_boundaries)
            }
            Self::Norm { norm, adds, form } => norm_args(*norm, *adds, *form),
            Self::NormBackward { norm, past, form } => norm_backward_args(*norm, *past, *form),
            Self::Rope(sizes, has_bias) => {
                let mut args = rope_args(*sizes, "qkv");
                args.extend(has_bias.then(|| half("bias", sizes.sizes().unwrap().cols, 2)));
                args
            }
            Self::RopeBackward(sizes, output) => {
                let mut args = rope_args(*sizes, "dqkv");
                let gradient = output.map(|output| gradient_args(sizes.sizes().unwrap(), output));
                args.extend(gradient.into_iter().flatten());
                args
            }
            Self::Swiglu(sizes) => vec![half("gate_up", 2 * of(sizes), 1), half_to("h", of(sizes))],
            Self::SwigluBackward(sizes) => vec![
                half("gate_up", 2 * of(sizes), 1),
                half("dh", of(sizes), 2),
                half_to("dgate_up", 2 * of(sizes)),
            ],
            Self::BiasGelu(sizes, _) => {
                vec![half("x", of(sizes), 1), half("bias", sizes.cols, 2), half_to("y", of(sizes))]
            }
            Self::BiasGeluBackward(sizes, _, output) => {
                let mut args = vec![half("x", of(sizes), 1), half("bias", sizes.cols, 2)];
                args.extend([half("dy", of(sizes), 3), half_to("dx", of(sizes))]);
                args.extend(gradient_args(*sizes, *output));
                args
            }
            Self::AvgPool(sizes) => {
                vec![half("x", sizes.input_len().unwrap(), 1), half_to("y", sizes.output_len().unwrap())]
            }
            Self::AvgPoolBackward(sizes) => {
                vec![half("dy", sizes.output_len().unwrap(), 1), half_to("dx", sizes.input_len().unwrap())]
            }
            Self::Embedding(hidden) => vec![
                half("table", VOCAB * hidden, 1),
                half("visual", VISUAL * hidden, 2),
                ints("sources", &sources()),
                half_to("to", sources().len() * hidden),
            ],
            Self::EmbeddingBackward(hidden) => {
                let buckets = Buckets::new(&sources(), Some(10));
                vec![
                    half("dy", sources().len() * hidden, 1),
                    ints("ids", buckets.ids()),
                    ints("starts", buckets.starts()),
                    // How many there are, only the starts say.
                    ints("rows", buckets.rows()).lengths(Lengths::Any),
                    in_place("dtable", random(VOCAB * hidden, 2)),
                ]
            }
            Self::GatherRows(cols) => vec![
                half("from", 5 * cols, 1),
                ints("indices", &[4, -1, 0, 2, 2, 4]),
                half_to("to", 6 * cols),
            ],
            Self::Patchify(sizes) => {
                let patches = sizes.num_patches().unwrap();
                let pixels = integers(patches * sizes.edge * sizes.edge * 3, 1, 0..256);
                vec![
                    Arg::given("pixels", Kind::U8, Role::Input, pixels),
                    half_to("rows", patches * sizes.cols().unwrap()),
                ]
            }
            Self::CrossEntropy { sizes, scaled, .. } => cross_entropy_args(*sizes, *scaled),
            Self::Totals { rows, output } => totals_args(*rows, *output),
            Self::GradientNorm { len, scaled, infinite } => {
                let mut grad = random(*len, 1);
                grad.iter_mut().rev().take(usize::from(*infinite)).for_each(|last| *last = f64::INFINITY);
                let mut args = vec![
                    // Partial sums are of many numbers.
                    Arg::given("grad", Kind::Full, Role::Input, grad).lengths(Lengths::Any),
                    scratch("partials", norm_partials(*len)),
                    full_to("control", CONTROL_LEN),
                    Arg::given("step", Kind::I32, Role::InPlace, vec![2.0]),
                ];
                args.extend(scaled.then(|| Arg::given("scale", Kind::Full, Role::Input, vec![0.375])));
                args
            }
            Self::Adamw { ema, skips, .. } => adamw_args(*ema, *skips),
            Self::AdamwSteps => adamw_steps_args(),
            Self::ColumnSum(sizes, output) => column_sum_args(*sizes, Kind::Half, *output),
            Self::ColumnSumFull(sizes, output) => column_sum_args(*sizes, Kind::Full, *output),
            Self::Add(len) => vec![half("left", *len, 1), half("right", *len, 2), half_to("to", *len)],
            Self::AddAssign(len) => {
                vec![half("right", *len, 1), Arg::given("to", Kind::Half, Role::InPlace, random(*len, 2))]
            }
            Self::Narrow(len) => {
                let from = in_f32(random(*len, 1).into_iter().map(|x| x / 3.0));
                vec![Arg::given("from", Kind::Full, Role::Input, from), half_to("to", *len)]
            }
            Self::Widen(len) => vec![half("from", *len, 1), full_to("to", *len)],
            Self::Fill(len) => vec![full_to("to", *len).lengths(Lengths::Any)],
        }
    }
}
