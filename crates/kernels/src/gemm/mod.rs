//! Products of matrices in bf16 on a GPU, by cuBLASLt, with what comes after them in the same pass.
//!
//! - [`Gemm`] describes a product: sizes, layouts, what happens to the old output, and the [`Epilogue`].
//! - [`reference()`] computes the same on a CPU, in f32 or f64.
//! - [`gemm()`] runs it on a stream of a GPU, by a plan that is made once for each description.

#[cfg(any(test, feature = "cuda"))]
mod column_major;
#[cfg(feature = "cuda")]
mod cublaslt;
#[cfg(not(feature = "cuda"))]
mod no_cuda;
mod reference;

#[cfg(feature = "cuda")]
pub use cublaslt::gemm;
#[cfg(not(feature = "cuda"))]
pub use no_cuda::gemm;
pub use reference::reference;

use crate::device::{Float, Slice, SliceMut, check_alignment};
use crate::matmul::Output;
use candle_core::{Result, bail};
use half::bf16;

/// `D = epilogue(op(A) op(B) + old)`, all row-major, where `old` is what `D` holds before, or nothing. `op(A)`: `(m, k)`, `op(B)`:
/// `(k, n)`, `D`: `(m, n)`. Sums are f32. `D` is rounded once. An empty inner dimension (`k` of 0) makes `op(A) op(B)` zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Gemm {
    /// Rows of the output.
    pub m: usize,
    /// Columns of the output.
    pub n: usize,
    /// Terms of each sum.
    pub k: usize,
    /// How `A` is stored.
    pub a: Operand,
    /// How `B` is stored.
    pub b: Operand,
    /// Elements from one row of `D` to the next; `n` or more.
    pub d_stride: usize,
    /// What happens to the old content of `D`.
    pub output: Output,
    /// What is done to every element of the product.
    pub epilogue: Epilogue,
}

/// How an input is stored: row after row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Operand {
    /// Which of the two it is that is stored so.
    pub form: Form,
    /// Elements from one stored row to the next; the length of a row or more.
    pub stride: usize,
}

/// What of an operand is stored row after row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// The operand.
    Plain,
    /// Its transpose.
    Transposed,
}

/// What is done to every element of a product before it is stored. A bias has an element for each column of `D`, of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Epilogue {
    /// Nothing.
    None,
    /// The bias is added.
    Bias,
    /// GELU in its tanh form: `x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2`.
    ///
    /// Source: what cuBLASLt computes (`CUBLASLT_EPILOGUE_GELU`; pytorch/pytorch#104061 met it), as `gelu_pytorch_tanh`.
    /// It has no backward; [`bias_gelu`](mod@crate::bias_gelu) has, for both forms.
    Gelu,
    /// The bias is added, then GELU in its tanh form.
    GeluBias,
}

impl Epilogue {
    /// Whether it takes a bias.
    pub fn has_bias(self) -> bool {
        matches!(self, Self::Bias | Self::GeluBias)
    }
}

/// An output type of products on a GPU: bf16 or f32.
pub trait GemmOutput: sealed::Output + Float {}

impl GemmOutput for bf16 {}
impl GemmOutput for f32 {}

mod sealed {
    use half::bf16;

    /// Which output type it is.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum OutputType {
        Bf16,
        F32,
    }

    pub trait Output {
        const TYPE: OutputType;
    }

    impl Output for bf16 {
        const TYPE: OutputType = OutputType::Bf16;
    }

    impl Output for f32 {
        const TYPE: OutputType = OutputType::F32;
    }
}

/// Numbers of elements that a product is given.
#[derive(Debug, Clone, Copy)]
struct Lens {
    a: usize,
    b: usize,
    /// `None` if there is no bias.
    bias: Option<usize>,
    d: usize,
}

impl Gemm {
    /// The product of `(m, k)` and `(k, n)`, each stored without gaps, that overwrites its output and does nothing to it.
    pub fn new(m: usize, n: usize, k: usize) -> Self {
        let plain = |columns: usize| Operand { form: Form::Plain, stride: columns.max(1) };
        let (a, b) = (plain(k), plain(n));
        Self { m, n, k, a, b, d_stride: n.max(1), output: Output::Overwrite, epilogue: Epilogue::None }
    }

    /// The same with `A` stored transposed, `(k, m)`, without gaps.
    #[must_use]
    pub fn with_a_transposed(self) -> Self {
        Self { a: Operand { form: Form::Transposed, stride: self.m.max(1) }, ..self }
    }

    /// The same with `B` stored transposed, `(n, k)`, without gaps.
    #[must_use]
    pub fn with_b_transposed(self) -> Self {
        Self { b: Operand { form: Form::Transposed, stride: self.k.max(1) }, ..self }
    }

    /// The same with the product added to what is in the output.
    #[must_use]
    pub fn accumulating(self) -> Self {
        Self { output: Output::Accumulate, ..self }
    }

    /// The same with an epilogue.
    #[must_use]
    pub fn with_epilogue(self, epilogue: Epilogue) -> Self {
        Self { epilogue, ..self }
    }

    /// Rows and columns of `A` as it is stored.
    fn stored_a(&self) -> (usize, usize) {
        self.a.form.of(self.m, self.k)
    }

    /// Rows and columns of `B` as it is stored.
    fn stored_b(&self) -> (usize, usize) {
        self.b.form.of(self.k, self.n)
    }

    /// Refuses strides that are too short, sizes beyond 64 bits and slices that do not hold what the sizes say.
    fn check(&self, lens: Lens) -> Result<()> {
        /// So that offsets in bytes, of elements of four bytes at most, are within what cuBLASLt takes.
        const MAX: usize = (i64::MAX / 4) as usize;
        let stored = [
            ("A", self.stored_a(), self.a.stride, lens.a),
            ("B", self.stored_b(), self.b.stride, lens.b),
            ("D", (self.m, self.n), self.d_stride, lens.d),
        ];
        for (name, (rows, columns), stride, len) in stored {
            if stride < columns.max(1) {
                bail!("gemm: {name} has rows of {columns} elements {stride} apart");
            }
            match span(rows, columns, stride).filter(|needed| (*needed).max(stride).max(rows) <= MAX) {
                None => bail!("gemm: {name} of {rows} x {columns}, rows {stride} apart, is too large"),
                Some(needed) if needed > len => {
                    bail!("gemm: {name} of {rows} x {columns}, rows {stride} apart, is not in {len} elements")
                }
                Some(_) => {}
            }
        }
        let needed = self.epilogue.has_bias().then_some(self.n);
        if lens.bias != needed {
            bail!("gemm: the bias has {:?} elements, {:?} are needed", lens.bias, needed);
        }
        Ok(())
    }
}

impl Gemm {
    /// As [`check`](Self::check), of slices; and refuses addresses that are not multiples of 16 bytes.
    pub(crate) fn check_slices<D, O>(
        &self,
        a: Slice<'_, D, bf16>,
        b: Slice<'_, D, bf16>,
        bias: Option<Slice<'_, D, O>>,
        d: &SliceMut<'_, D, O>,
    ) -> Result<()> {
        self.check(Lens { a: a.len(), b: b.len(), bias: bias.map(|bias| bias.len()), d: d.len() })?;
        check_alignment("gemm A", a.address(), a.len())?;
        check_alignment("gemm B", b.address(), b.len())?;
        if let Some(bias) = bias {
            check_alignment("gemm bias", bias.address(), bias.len())?;
        }
        check_alignment("gemm D", d.address(), d.len())
    }
}

impl Form {
    /// Rows and columns of what is stored, from those of the operand.
    fn of(self, rows: usize, columns: usize) -> (usize, usize) {
        match self {
            Self::Plain => (rows, columns),
            Self::Transposed => (columns, rows),
        }
    }
}

/// Elements from the first to the last of a matrix; `None` if there is no such number.
fn span(rows: usize, columns: usize, stride: usize) -> Option<usize> {
    if rows == 0 || columns == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(stride)?.checked_add(columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(gemm: Gemm, lens: Lens) -> String {
        gemm.check(lens).unwrap_err().to_string()
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let gemm = Gemm::new(2, 3, 4);
        let lens = Lens { a: 8, b: 12, bias: None, d: 6 };
        gemm.check(lens).unwrap();
        assert!(refusal(gemm, Lens { a: 7, ..lens }).contains("A of 2 x 4"));
        assert!(refusal(gemm, Lens { b: 11, ..lens }).contains("B of 4 x 3"));
        assert!(refusal(gemm, Lens { d: 5, ..lens }).contains("D of 2 x 3"));
        assert!(refusal(gemm, Lens { bias: Some(3), ..lens }).contains("bias has Some(3)"));
        let with_bias = gemm.with_epilogue(Epilogue::GeluBias);
        assert!(refusal(with_bias, lens).contains("Some(3) are needed"));
        with_bias.check(Lens { bias: Some(3), ..lens }).unwrap();
        assert!(refusal(Gemm { d_stride: 2, ..gemm }, lens).contains("3 elements 2 apart"));
        // The last row need not be as long as the stride.
        Gemm { d_stride: 5, ..gemm }.check(Lens { d: 8, ..lens }).unwrap();
        assert!(refusal(Gemm { d_stride: 5, ..gemm }, Lens { d: 7, ..lens }).contains("is not in 7"));
        assert!(refusal(gemm.with_a_transposed(), Lens { a: 7, ..lens }).contains("A of 4 x 2"));
        assert!(refusal(gemm.with_b_transposed(), Lens { b: 11, ..lens }).contains("B of 3 x 4"));
        let vast = Gemm::new(1 << 40, 1, 1 << 40);
        assert!(refusal(vast, lens).contains("too large"));
        assert!(refusal(Gemm { m: 1, d_stride: usize::MAX, ..gemm }, lens).contains("too large"));
    }

    #[test]
    fn empty_matrices_need_no_elements() {
        let lens = Lens { a: 0, b: 0, bias: None, d: 0 };
        Gemm::new(0, 3, 4).check(Lens { b: 12, ..lens }).unwrap();
        Gemm::new(2, 0, 4).check(Lens { a: 8, ..lens }).unwrap();
        Gemm::new(2, 3, 0).check(Lens { d: 6, ..lens }).unwrap();
        Gemm::new(0, 0, 0).with_a_transposed().with_b_transposed().check(lens).unwrap();
    }
}
