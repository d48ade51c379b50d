//! One call of an operation: its inputs, and what is asked of a [`Backend`]. The same code makes the call on a GPU, in the emulation
//! and, in f64, on a CPU, which is the reference.

mod adamw;
mod attention;
mod avg_pool;
mod bias_gelu;
mod column_sum;
mod cross_entropy;
mod elementwise;
mod embedding;
mod gather_rows;
mod gemm;
mod label_head;
mod norm;
mod patchify;
mod rope;
mod swiglu;

pub(crate) use adamw::{AdamWCall, Gradients};
pub(crate) use attention::AttentionCall;
pub(crate) use avg_pool::AvgPoolCall;
pub(crate) use bias_gelu::BiasGeluCall;
pub(crate) use column_sum::ColumnSumCall;
pub(crate) use cross_entropy::CrossEntropyCall;
pub(crate) use elementwise::ElementwiseCall;
pub(crate) use embedding::EmbeddingCall;
pub(crate) use gather_rows::GatherRowsCall;
pub(crate) use gemm::{GemmCall, Precision};
pub(crate) use label_head::LabelHeadCall;
pub(crate) use norm::{Kind, NormCall, Past};
pub(crate) use patchify::PatchifyCall;
pub(crate) use rope::RopeCall;
pub(crate) use swiglu::SwigluCall;

use anyhow::Context as _;
use candle_core::{DType, Device, Tensor, Var};
use half::bf16;
use oqvl_kernels::backend::{Backend, CpuRef};
use oqvl_kernels::device::{Float, Number};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};
use std::ops::Range;

/// What is checked and timed on a GPU: the operations, and the step that is made of them.
pub(crate) const OPS: [&str; 15] = [
    "attention",
    "avg_pool",
    "bias_gelu",
    "column_sum",
    "gemm",
    "norm",
    "swiglu",
    "rope",
    "embedding",
    "gather_rows",
    "patchify",
    "adamw",
    "cross_entropy",
    "elementwise",
    "training_step",
];

/// A call of an operation, with its sizes.
pub(crate) trait Call {
    /// The operation.
    const OP: &'static str;

    /// The sizes, for a person.
    fn name(&self) -> String;

    /// Numbers that are the same for the same state of `random`.
    fn inputs(&self, random: &mut Random) -> Vec<Input>;

    /// What PyTorch is told besides the inputs.
    fn settings(&self) -> Value {
        json!({})
    }

    /// The call, into memory that is poisoned before.
    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>>;

    /// The same by the operations that candle programs call, and candle's autograd: those results that they have. `None` where a
    /// candle program has no way to the kernels.
    fn through_candle(&self, _inputs: &Tensors) -> Option<anyhow::Result<Vec<Found>>> {
        None
    }
}

/// A call of any operation.
#[derive(Debug, Clone)]
pub(crate) enum Case {
    AdamW(AdamWCall),
    Attention(AttentionCall),
    AvgPool(AvgPoolCall),
    BiasGelu(BiasGeluCall),
    ColumnSum(ColumnSumCall),
    CrossEntropy(CrossEntropyCall),
    Elementwise(ElementwiseCall),
    Embedding(EmbeddingCall),
    GatherRows(GatherRowsCall),
    Gemm(GemmCall),
    LabelHead(LabelHeadCall),
    Norm(NormCall),
    Patchify(PatchifyCall),
    Rope(RopeCall),
    Swiglu(SwigluCall),
}

/// Evaluates an expression for the call that a case is: `of_call!(case, call => expression)`.
macro_rules! of_call {
    ($case:expr, $call:ident => $body:expr) => {
        match $case {
            Case::AdamW($call) => $body,
            Case::Attention($call) => $body,
            Case::AvgPool($call) => $body,
            Case::BiasGelu($call) => $body,
            Case::ColumnSum($call) => $body,
            Case::CrossEntropy($call) => $body,
            Case::Elementwise($call) => $body,
            Case::Embedding($call) => $body,
            Case::GatherRows($call) => $body,
            Case::Gemm($call) => $body,
            Case::LabelHead($call) => $body,
            Case::Norm($call) => $body,
            Case::Patchify($call) => $body,
            Case::Rope($call) => $body,
            Case::Swiglu($call) => $body,
        }
    };
}

impl Case {
    pub(crate) fn op(&self) -> &'static str {
        fn of<C: Call>(_call: &C) -> &'static str {
            C::OP
        }
        of_call!(self, call => of(call))
    }

    /// The sizes, for a person.
    pub(crate) fn name(&self) -> String {
        of_call!(self, call => call.name())
    }

    /// What PyTorch is told besides the inputs.
    pub(crate) fn settings(&self) -> Value {
        of_call!(self, call => call.settings())
    }

    /// The same numbers for the same seed.
    pub(crate) fn inputs(&self, seed: u64) -> Vec<Input> {
        let mut random = Random(ChaCha8Rng::seed_from_u64(seed));
        of_call!(self, call => call.inputs(&mut random))
    }

    /// What the results should be, in f64 on the CPU.
    pub(crate) fn reference(&self, inputs: &[Input]) -> anyhow::Result<Vec<Found>> {
        self.on(&CpuRef::<f64>::default(), inputs)
    }

    /// What a backend makes of the inputs.
    pub(crate) fn on<B: Backend>(&self, backend: &B, inputs: &[Input]) -> anyhow::Result<Vec<Found>> {
        let on = On { backend, inputs };
        of_call!(self, call => call.run(&on))
    }

    /// What a candle program gets.
    pub(crate) fn through_candle(
        &self,
        inputs: &[Input],
        device: &Device,
        dtype: DType,
    ) -> Option<anyhow::Result<Vec<Found>>> {
        let tensors = Tensors { inputs, device, dtype };
        of_call!(self, call => call.through_candle(&tensors))
    }
}

/// An input of a call.
#[derive(Debug, Clone)]
pub(crate) struct Input {
    pub(crate) name: &'static str,
    pub(crate) dims: Vec<usize>,
    pub(crate) values: Values,
}

/// The numbers of an input.
#[derive(Debug, Clone)]
pub(crate) enum Values {
    /// Half precision where a backend has such.
    Half(Vec<bf16>),
    /// Full precision.
    Full(Vec<f32>),
    Ints(Vec<i32>),
    Bytes(Vec<u8>),
}

impl Values {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Half(values) => values.len(),
            Self::Full(values) => values.len(),
            Self::Ints(values) => values.len(),
            Self::Bytes(values) => values.len(),
        }
    }

    /// The type, in PyTorch's words.
    pub(crate) fn dtype(&self) -> &'static str {
        match self {
            Self::Half(_) => "bfloat16",
            Self::Full(_) => "float32",
            Self::Ints(_) => "int32",
            Self::Bytes(_) => "uint8",
        }
    }

    pub(crate) fn to_le_bytes(&self) -> Vec<u8> {
        match self {
            Self::Half(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Full(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Ints(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Self::Bytes(values) => values.clone(),
        }
    }
}

/// How near to the reference a result has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    /// At most twice as far as PyTorch in bf16: what is rounded to bf16, or comes of what is.
    BesidePytorch,
    /// The same, and no further than this share of the numbers: sums in f32 of inputs as they are.
    Within(f64),
    /// The very numbers of the reference: what is only moved.
    Exact,
}

/// What sums in f32 are held to.
pub(crate) const IN_F32: Bound = Bound::Within(1e-5);

/// A result of a call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Found {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f64>,
    pub(crate) bound: Bound,
}

impl Found {
    pub(crate) fn within(self, bound: Bound) -> Self {
        Self { bound, ..self }
    }

    /// Some columns of a result, as a result of their own.
    pub(crate) fn columns(&self, name: &'static str, cols: usize, range: Range<usize>) -> Self {
        let rows = self.values.chunks_exact(cols.max(1));
        let values = rows.flat_map(|row| row[range.clone()].iter().copied()).collect();
        Self { name, values, bound: self.bound }
    }
}

/// Where inputs come from.
pub(crate) struct Random(ChaCha8Rng);

impl Random {
    /// Of the size that activations and their gradients have: the sum of three uniform numbers, of variance 1, a little like a
    /// normal distribution.
    fn number(&mut self) -> f32 {
        (0..3).map(|_| self.0.random_range(-1f32..1.0)).sum()
    }

    fn half(&mut self, name: &'static str, dims: &[usize]) -> Input {
        self.scaled(name, dims, 1.0)
    }

    fn scaled(&mut self, name: &'static str, dims: &[usize], scale: f32) -> Input {
        let len = dims.iter().product();
        let values = (0..len).map(|_| bf16::from_f32(scale * self.number())).collect();
        Input { name, dims: dims.to_vec(), values: Values::Half(values) }
    }

    fn full(&mut self, name: &'static str, dims: &[usize]) -> Input {
        let len = dims.iter().product();
        Input { name, dims: dims.to_vec(), values: Values::Full((0..len).map(|_| self.number()).collect()) }
    }

    /// Numbers that are none, each of its place.
    fn ints(
        &mut self,
        name: &'static str,
        len: usize,
        mut number: impl FnMut(&mut Self, usize) -> i32,
    ) -> Input {
        let values = (0..len).map(|at| number(self, at)).collect();
        Input { name, dims: vec![len], values: Values::Ints(values) }
    }

    fn below(&mut self, end: usize) -> i32 {
        self.0.random_range(0..i32::try_from(end).expect("the sizes of a case are small"))
    }
}

fn input<'a>(inputs: &'a [Input], name: &str) -> anyhow::Result<&'a Input> {
    inputs.iter().find(|input| input.name == name).with_context(|| format!("no input {name}"))
}

/// A backend, and the inputs of a call.
pub(crate) struct On<'a, B> {
    pub(crate) backend: &'a B,
    inputs: &'a [Input],
}

impl<B: Backend> On<'_, B> {
    fn half(&self, name: &str) -> anyhow::Result<B::Buffer<B::Half>> {
        self.floats(self.half_of(name)?)
    }

    fn half_of(&self, name: &str) -> anyhow::Result<&[bf16]> {
        match &input(self.inputs, name)?.values {
            Values::Half(values) => Ok(values),
            values => anyhow::bail!("{name} is {}", values.dtype()),
        }
    }

    fn full(&self, name: &str) -> anyhow::Result<B::Buffer<B::Full>> {
        match &input(self.inputs, name)?.values {
            Values::Full(values) => self.floats(values),
            values => anyhow::bail!("{name} is {}", values.dtype()),
        }
    }

    /// Full precision of what was made in half.
    fn widened(&self, name: &str) -> anyhow::Result<B::Buffer<B::Full>> {
        self.floats(self.half_of(name)?)
    }

    fn floats<F: Float, T: Float>(&self, values: &[F]) -> anyhow::Result<B::Buffer<T>> {
        let values: Vec<T> = values.iter().map(|value| T::from_f64(value.to_f64())).collect();
        Ok(self.backend.upload(&values)?)
    }

    fn ints_of(&self, name: &str) -> anyhow::Result<&[i32]> {
        match &input(self.inputs, name)?.values {
            Values::Ints(values) => Ok(values),
            values => anyhow::bail!("{name} is {}", values.dtype()),
        }
    }

    fn ints(&self, name: &str) -> anyhow::Result<B::Buffer<i32>> {
        Ok(self.backend.upload(self.ints_of(name)?)?)
    }

    fn bytes(&self, name: &str) -> anyhow::Result<B::Buffer<u8>> {
        match &input(self.inputs, name)?.values {
            Values::Bytes(values) => Ok(self.backend.upload(values)?),
            values => anyhow::bail!("{name} is {}", values.dtype()),
        }
    }

    /// Poisoned room.
    fn room<T: Number>(&self, len: usize) -> anyhow::Result<B::Buffer<T>> {
        Ok(self.backend.poisoned(len)?)
    }

    fn found<T: Float>(&self, name: &'static str, buffer: &B::Buffer<T>) -> anyhow::Result<Found> {
        let values = self.backend.download(buffer)?.into_iter().map(Float::to_f64).collect();
        Ok(Found { name, values, bound: Bound::BesidePytorch })
    }
}

/// The inputs of a call as tensors of candle.
pub(crate) struct Tensors<'a> {
    inputs: &'a [Input],
    device: &'a Device,
    dtype: DType,
}

impl Tensors<'_> {
    /// One that gradients are asked of.
    fn var(&self, name: &str) -> anyhow::Result<Var> {
        let Input { dims, values, .. } = input(self.inputs, name)?;
        let tensor = match values {
            Values::Half(values) => Tensor::from_slice(values, dims.as_slice(), self.device)?,
            values => anyhow::bail!("{name} is {}", values.dtype()),
        };
        Ok(Var::from_tensor(&tensor.to_dtype(self.dtype)?)?)
    }

    /// A result and its gradients, with `dy` as that of the result.
    fn backward(
        &self,
        y: &Tensor,
        dy: &Tensor,
        leaves: &[(&'static str, &Var)],
    ) -> anyhow::Result<Vec<Found>> {
        let gradients = (y * dy)?.sum_all()?.backward()?;
        let of = |(name, leaf): &(&'static str, &Var)| {
            tensor(name, gradients.get(leaf).with_context(|| format!("no gradient {name}"))?)
        };
        leaves.iter().map(of).collect()
    }
}

fn tensor(name: &'static str, tensor: &Tensor) -> anyhow::Result<Found> {
    let values = tensor.to_device(&Device::Cpu)?.to_dtype(DType::F64)?.flatten_all()?.to_vec1()?;
    Ok(Found { name, values, bound: Bound::BesidePytorch })
}

/// Floats that operations need between the two stages of a sum of columns.
fn sum_partials(rows: oqvl_kernels::Rows) -> anyhow::Result<usize> {
    oqvl_kernels::column_sum::launch::partials_len(rows).context("the sizes of a case can be counted")
}
