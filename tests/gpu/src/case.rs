//! One call of an operation: its inputs, its reference in f64 on the CPU, and the same on a device.

use anyhow::Context as _;
use candle_core::{DType, Device, Tensor, Var};
use half::bf16;
use oqvl_kernels::attention::{self, CuSeqlens, Mask, Operand, OperandMut, Sequences, Shape, Strides};
use oqvl_kernels::avg_pool::launch as avg_pool;
use oqvl_kernels::avg_pool::launch::Pooling;
use oqvl_kernels::backend::Products;
use oqvl_kernels::bias_gelu::{Gelu, launch as bias_gelu};
use oqvl_kernels::column_sum::launch as column_sum;
use oqvl_kernels::gemm::{self, Epilogue, Form, Gemm};
use oqvl_kernels::{Output, Rows, adaptive_avg_pool};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

/// The operations that are checked and timed on a GPU so far.
pub(crate) const OPS: [&str; 5] = ["attention", "avg_pool", "bias_gelu", "column_sum", "gemm"];

/// A call of an operation, with its sizes.
#[derive(Debug, Clone)]
pub(crate) enum Case {
    Attention(Shape),
    AvgPool(Pooling),
    BiasGelu(Gelu, Rows),
    ColumnSum(Rows),
    /// To bf16; to f32 where it is added to what is there.
    Gemm(Gemm),
}

/// An input of a call.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Vec<bf16>,
}

/// A result of a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Result {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
}

/// What PyTorch is told of a call.
#[derive(Debug, Serialize)]
pub(crate) struct Description {
    pub(crate) op: &'static str,
    /// Boundaries of packed sequences.
    pub(crate) cu_seqlens: Option<Vec<i32>>,
    pub(crate) causal: bool,
    /// Edges of the grids of a pooling.
    pub(crate) grid: usize,
    pub(crate) pooled: usize,
    /// Which inputs of a product are stored transposed, and whether GELU follows.
    pub(crate) transposed: [bool; 2],
    pub(crate) gelu: bool,
    /// Which form of GELU, in PyTorch's words.
    pub(crate) approximate: &'static str,
    /// Names of the results, in order.
    pub(crate) results: &'static [&'static str],
}

/// Attention of one length with as many keys as queries, or packed.
pub(crate) fn attention_case(
    heads: (usize, usize),
    head_dim: usize,
    mask: Mask,
    sequences: Sequences,
) -> Case {
    Case::Attention(Shape::new(heads, head_dim, mask, sequences).expect("the sizes of a case fit together"))
}

/// A batch of sequences of one length.
pub(crate) fn batch(batch: usize, len: usize) -> Sequences {
    Sequences::Batch { batch, q_len: len, kv_len: len }
}

/// Sequences one after another.
pub(crate) fn packed(boundaries: &[i32]) -> Sequences {
    Sequences::Packed(CuSeqlens::new(boundaries.to_vec()).expect("the boundaries of a case are in order"))
}

impl Case {
    /// Whether the result is f32 and was never rounded to bf16.
    pub(crate) fn is_in_f32(&self) -> bool {
        matches!(self, Self::Gemm(gemm) if gemm.output == Output::Accumulate)
    }

    pub(crate) fn op(&self) -> &'static str {
        match self {
            Self::Attention(_) => "attention",
            Self::AvgPool(_) => "avg_pool",
            Self::BiasGelu(..) => "bias_gelu",
            Self::ColumnSum(_) => "column_sum",
            Self::Gemm(_) => "gemm",
        }
    }

    /// The sizes, for a person.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Attention(shape) => {
                let mask = if shape.mask == Mask::Causal { "causal" } else { "full" };
                let heads = format!("{}:{} heads of {}", shape.num_heads, shape.num_kv_heads, shape.head_dim);
                match &shape.sequences {
                    Sequences::Batch { batch, q_len, kv_len } if q_len == kv_len => {
                        format!("{batch} x {q_len}, {heads}, {mask}")
                    }
                    Sequences::Batch { batch, q_len, kv_len } => {
                        format!("{batch} x {q_len} on {kv_len}, {heads}, {mask}")
                    }
                    Sequences::Packed(packed) => {
                        format!("{} packed in {}, {heads}, {mask}", packed.num_sequences(), packed.num_rows())
                    }
                }
            }
            Self::AvgPool(sizes) => {
                format!(
                    "{} grids, {} to {}, {} channels",
                    sizes.batch, sizes.grid, sizes.pooled, sizes.channels
                )
            }
            Self::BiasGelu(kind, rows) => format!("{} x {}, {kind:?}", rows.rows, rows.cols),
            Self::ColumnSum(rows) => format!("{} x {}", rows.rows, rows.cols),
            Self::Gemm(gemm) => {
                let transposed =
                    |operand: gemm::Operand| if operand.form == Form::Transposed { "^T" } else { "" };
                let (a, b) = (transposed(gemm.a), transposed(gemm.b));
                let output = match gemm.output {
                    Output::Overwrite => "to bf16",
                    Output::Accumulate => "added to f32",
                };
                format!("{} x {} x {}, A{a} B{b}, {:?} {output}", gemm.m, gemm.n, gemm.k, gemm.epilogue)
            }
        }
    }

    pub(crate) fn description(&self) -> Description {
        let mut description = Description {
            op: self.op(),
            cu_seqlens: None,
            causal: false,
            grid: 0,
            pooled: 0,
            transposed: [false; 2],
            gelu: false,
            approximate: "none",
            results: match self {
                Self::Attention(_) => &["out", "dq", "dk", "dv"],
                Self::AvgPool(_) => &["y", "dx"],
                Self::BiasGelu(..) => &["y", "dx", "dbias"],
                Self::ColumnSum(_) => &["sums"],
                Self::Gemm(_) => &["d"],
            },
        };
        match self {
            Self::Attention(shape) => {
                description.causal = shape.mask == Mask::Causal;
                if let Sequences::Packed(packed) = &shape.sequences {
                    description.cu_seqlens = Some(packed.boundaries().to_vec());
                }
            }
            Self::AvgPool(sizes) => (description.grid, description.pooled) = (sizes.grid, sizes.pooled),
            Self::Gemm(gemm) => {
                description.transposed = [gemm.a, gemm.b].map(|operand| operand.form == Form::Transposed);
                description.gelu = matches!(gemm.epilogue, Epilogue::Gelu | Epilogue::GeluBias);
            }
            Self::BiasGelu(Gelu::Tanh, _) => description.approximate = "tanh",
            Self::BiasGelu(Gelu::Exact, _) | Self::ColumnSum(_) => {}
        }
        description
    }

    /// The same numbers for the same seed: of the size that activations and their gradients have, bf16.
    pub(crate) fn inputs(&self, seed: u64) -> Vec<Input> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut input = |name: &'static str, dims: Vec<usize>| {
            let len = dims.iter().product();
            // The sum of three uniform numbers: variance 1, a little like a normal distribution.
            let mut number = || (0..3).map(|_| random.random_range(-1f32..1.0)).sum::<f32>();
            Input { name, dims, values: (0..len).map(|_| bf16::from_f32(number())).collect() }
        };
        match self {
            Self::Attention(shape) => {
                let dims = |heads: usize, of_queries: bool| match &shape.sequences {
                    Sequences::Batch { batch, q_len, kv_len } => {
                        vec![*batch, heads, if of_queries { *q_len } else { *kv_len }, shape.head_dim]
                    }
                    Sequences::Packed(packed) => vec![packed.num_rows(), heads, shape.head_dim],
                };
                vec![
                    input("q", dims(shape.num_heads, true)),
                    input("k", dims(shape.num_kv_heads, false)),
                    input("v", dims(shape.num_kv_heads, false)),
                    input("dout", dims(shape.num_heads, true)),
                ]
            }
            Self::AvgPool(sizes) => {
                let dims = |edge: usize| vec![sizes.batch, edge * edge, sizes.channels];
                vec![input("x", dims(sizes.grid)), input("dy", dims(sizes.pooled))]
            }
            Self::BiasGelu(_, Rows { rows, cols }) => {
                vec![
                    input("x", vec![*rows, *cols]),
                    input("bias", vec![*cols]),
                    input("dy", vec![*rows, *cols]),
                ]
            }
            Self::ColumnSum(Rows { rows, cols }) => vec![input("x", vec![*rows, *cols])],
            Self::Gemm(gemm) => {
                let stored = |form: Form, rows, columns| match form {
                    Form::Plain => vec![rows, columns],
                    Form::Transposed => vec![columns, rows],
                };
                let mut inputs = vec![
                    input("a", stored(gemm.a.form, gemm.m, gemm.k)),
                    input("b", stored(gemm.b.form, gemm.k, gemm.n)),
                ];
                if gemm.epilogue.has_bias() {
                    inputs.push(input("bias", vec![gemm.n]));
                }
                if gemm.output == Output::Accumulate {
                    inputs.push(input("old", vec![gemm.m, gemm.n]));
                }
                inputs
            }
        }
    }

    /// What the result should be, in f64 on the CPU.
    pub(crate) fn reference(&self, inputs: &[Input]) -> anyhow::Result<Vec<Result>> {
        let Self::Gemm(gemm) = self else { return self.through_candle(inputs, &Device::Cpu, DType::F64) };
        let wide = |name: &str| {
            let input = inputs.iter().find(|input| input.name == name)?;
            Some(input.values.iter().map(|value| value.to_f64()).collect::<Vec<f64>>())
        };
        let (a, b) = (wide("a").context("no a")?, wide("b").context("no b")?);
        let mut d = wide("old").unwrap_or_else(|| vec![0.0; gemm.m * gemm.n]);
        gemm::reference(gemm, &a, &b, wide("bias").as_deref(), &mut d)?;
        Ok(vec![Result { name: "d", values: d }])
    }

    /// What a candle program gets, by the operations that candle programs call and candle's autograd.
    pub(crate) fn through_candle(
        &self,
        inputs: &[Input],
        device: &Device,
        dtype: DType,
    ) -> anyhow::Result<Vec<Result>> {
        let tensors = inputs.iter().map(|input| {
            let tensor = Tensor::from_slice(&input.values, input.dims.as_slice(), device)?;
            Var::from_tensor(&tensor.to_dtype(dtype)?)
        });
        let tensors = tensors.collect::<candle_core::Result<Vec<Var>>>()?;
        let (y, dy) = match (self, tensors.as_slice()) {
            (Self::Attention(shape), [q, k, v, dout]) => {
                let out = match &shape.sequences {
                    Sequences::Batch { .. } => oqvl_kernels::attention(q, k, v, shape.mask)?,
                    Sequences::Packed(packed) => oqvl_kernels::attention_varlen(q, k, v, packed, shape.mask)?,
                };
                (out, dout)
            }
            (Self::AvgPool(sizes), [x, dy]) => (adaptive_avg_pool(x, sizes.pooled)?, dy),
            (Self::BiasGelu(Gelu::Exact, _), [x, bias, dy]) => (oqvl_kernels::bias_gelu(x, bias)?, dy),
            (Self::BiasGelu(Gelu::Tanh, _), [x, bias, dy]) => (oqvl_kernels::bias_gelu_tanh(x, bias)?, dy),
            (Self::ColumnSum(_), [x]) => return Ok(vec![result("sums", &x.as_tensor().sum(0)?)?]),
            _ => anyhow::bail!("{} does not take {} inputs", self.op(), inputs.len()),
        };
        let gradients = (&y * dy.as_tensor())?.sum_all()?.backward()?;
        let names = self.description().results;
        let mut results = vec![result(names[0], &y)?];
        for (name, tensor) in names[1..].iter().zip(&tensors) {
            results
                .push(result(name, gradients.get(tensor).with_context(|| format!("no gradient {name}"))?)?);
        }
        Ok(results)
    }

    /// What the kernels make of the inputs, by the launch functions, into memory that is poisoned before.
    pub(crate) fn on<D: Products>(&self, device: &D, inputs: &[Input]) -> anyhow::Result<Vec<Result>> {
        let uploaded = inputs.iter().map(|input| device.upload(&input.values));
        let uploaded = uploaded.collect::<candle_core::Result<Vec<_>>>()?;
        let read = |index: usize| device.slice(&uploaded[index]);
        let len = |index: usize| inputs[index].values.len();
        let mut results = Vec::new();
        let mut keep = |buffer: &D::Buffer<bf16>| -> anyhow::Result<()> {
            let values = device.download(buffer)?.into_iter().map(f64::from).collect();
            results.push(Result { name: self.description().results[results.len()], values });
            Ok(())
        };
        match self {
            Self::Attention(shape) => {
                let strides = |index: usize| match *inputs[index].dims.as_slice() {
                    [rows, heads, head_dim] => Strides::rows_first(rows, heads, head_dim),
                    [_, heads, rows, head_dim] => Strides::heads_first(heads, rows, head_dim),
                    _ => unreachable!("attention has three or four dimensions"),
                };
                let operand = |index: usize| Operand { data: read(index), strides: strides(index) };
                let cu_seqlens = match &shape.sequences {
                    Sequences::Batch { .. } => None,
                    Sequences::Packed(packed) => Some(device.upload(packed.boundaries())?),
                };
                let cu_seqlens = cu_seqlens.as_ref().map(|buffer| device.slice(buffer));
                let mut lse = device.poisoned::<f32>(shape.num_query_rows()?)?;
                let mut workspace = device.poisoned::<f32>(attention::backward_workspace_len(shape)?)?;
                let [mut out, mut dq, mut dk, mut dv] = [
                    device.poisoned(len(0))?,
                    device.poisoned(len(0))?,
                    device.poisoned(len(1))?,
                    device.poisoned(len(2))?,
                ];
                let forward = attention::Forward {
                    q: operand(0),
                    k: operand(1),
                    v: operand(2),
                    cu_seqlens,
                    out: OperandMut { data: device.slice_mut(&mut out), strides: strides(0) },
                    lse: device.slice_mut(&mut lse),
                };
                attention::forward(device, shape, forward)?;
                let backward = attention::Backward {
                    q: operand(0),
                    k: operand(1),
                    v: operand(2),
                    cu_seqlens,
                    out: Operand { data: device.slice(&out), strides: strides(0) },
                    lse: device.slice(&lse),
                    dout: operand(3),
                    dq: OperandMut { data: device.slice_mut(&mut dq), strides: strides(0) },
                    dk: OperandMut { data: device.slice_mut(&mut dk), strides: strides(1) },
                    dv: OperandMut { data: device.slice_mut(&mut dv), strides: strides(2) },
                    workspace: device.slice_mut(&mut workspace),
                };
                attention::backward(device, shape, backward)?;
                for buffer in [&out, &dq, &dk, &dv] {
                    keep(buffer)?;
                }
            }
            Self::AvgPool(sizes) => {
                let [mut y, mut dx] = [device.poisoned(len(1))?, device.poisoned(len(0))?];
                avg_pool::forward(device, *sizes, read(0), device.slice_mut(&mut y))?;
                avg_pool::backward(device, *sizes, read(1), device.slice_mut(&mut dx))?;
                keep(&y)?;
                keep(&dx)?;
            }
            Self::BiasGelu(kind, rows) => {
                let [mut y, mut dx, mut dbias] =
                    [device.poisoned(len(0))?, device.poisoned(len(0))?, device.poisoned(len(1))?];
                let partials = column_sum::partials_len(*rows).context("too many rows")?;
                let mut partials = device.poisoned::<f32>(partials)?;
                bias_gelu::forward(device, *rows, *kind, read(0), read(1), device.slice_mut(&mut y))?;
                let to_dx = device.slice_mut(&mut dx);
                let inputs = (read(0), read(1), read(2));
                let to_dbias = column_sum::BiasGradient {
                    partials: device.slice_mut(&mut partials),
                    dbias: device.slice_mut(&mut dbias),
                    output: Output::Overwrite,
                };
                bias_gelu::backward(device, *rows, *kind, inputs, to_dx, to_dbias)?;
                for buffer in [&y, &dx, &dbias] {
                    keep(buffer)?;
                }
            }
            Self::ColumnSum(rows) => {
                let mut sums = device.poisoned::<bf16>(rows.cols)?;
                let partials = column_sum::partials_len(*rows).context("too many rows")?;
                let mut partials = device.poisoned::<f32>(partials)?;
                let to = device.slice_mut(&mut sums);
                column_sum::column_sum(
                    device,
                    *rows,
                    read(0),
                    device.slice_mut(&mut partials),
                    to,
                    Output::Overwrite,
                )?;
                keep(&sums)?;
            }
            Self::Gemm(gemm) => {
                let values = match gemm.output {
                    Output::Overwrite => {
                        let mut d = device.poisoned::<bf16>(gemm.m * gemm.n)?;
                        let bias = gemm.epilogue.has_bias().then(|| read(2));
                        device.product(gemm, (read(0), read(1)), bias, device.slice_mut(&mut d))?;
                        device.download(&d)?.into_iter().map(f64::from).collect()
                    }
                    Output::Accumulate => {
                        anyhow::ensure!(!gemm.epilogue.has_bias(), "what is added to has no bias here");
                        let old: Vec<f32> = inputs[2].values.iter().map(|value| value.to_f32()).collect();
                        let mut d = device.upload(&old)?;
                        device.product(gemm, (read(0), read(1)), None, device.slice_mut(&mut d))?;
                        device.download(&d)?.into_iter().map(f64::from).collect()
                    }
                };
                return Ok(vec![Result { name: "d", values }]);
            }
        }
        Ok(results)
    }
}

fn result(name: &'static str, tensor: &Tensor) -> candle_core::Result<Result> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(Result { name, values })
}
