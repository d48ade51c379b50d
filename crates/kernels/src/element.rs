//! Element types and access to contiguous CPU storages.

use crate::device::ALIGNMENT;
use candle_core::{CpuStorage, DType, Layout, Result, Storage, Tensor, WithDType, bail};

/// f32 or f64.
pub trait Element: WithDType + num_traits::Float + std::iter::Sum + std::ops::AddAssign {
    /// `e^x` without a call, so that loops over it become vector code.
    fn exponential(self) -> Self;

    /// `erf(x)`, to the last digit or two.
    fn error_function(self) -> Self;
}

impl Element for f32 {
    /// To within 2e-7 of the value. Infinite above 88.37 (where `f32` ends at 88.72), 0 below -87.33 (where the normal
    /// numbers end).
    ///
    /// Source: the reduction by multiples of ln 2 and the polynomial of Cephes `expf`.
    fn exponential(self) -> f32 {
        // Adding 1.5 * 2^23 leaves no bits for a fraction: the nearest integer then is in the lowest bits.
        const SHIFT: f32 = 12_582_912.0;
        const EXPONENT_BIAS: u32 = 127;
        let shifted = self * std::f32::consts::LOG2_E + SHIFT;
        let multiple = shifted - SHIFT;
        // ln 2 in two parts, the first with so few bits that its product is exact.
        let rest = (self - multiple * 0.693_359_4) - multiple * -2.121_944_4e-4;
        let mut tail = 1.987_569_1e-4;
        for coefficient in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
            tail = tail * rest + coefficient;
        }
        let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(EXPONENT_BIAS << 23));
        let value = (tail * rest * rest + rest + 1.0) * power;
        let value = if self < -87.33 { 0.0 } else { value };
        if self > 88.37 { f32::INFINITY } else { value }
    }

    fn error_function(self) -> f32 {
        libm::erff(self)
    }
}

impl Element for f64 {
    fn exponential(self) -> f64 {
        self.exp()
    }

    fn error_function(self) -> f64 {
        libm::erf(self)
    }
}

/// A constant in the element type.
pub(crate) fn lit<T: Element>(value: f64) -> T {
    <T as num_traits::NumCast>::from(value).expect("f32 and f64 hold every finite constant")
}

/// The elements of a contiguous storage.
pub(crate) fn elements<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got {layout:?}")
    };
    // An empty view may begin beyond the end of its storage.
    if start == end {
        return Ok(&[]);
    }
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// The tensor itself where it is contiguous and, on a GPU, begins at a multiple of 16 bytes; a copy that does otherwise.
pub(crate) fn dense(tensor: &Tensor) -> Result<Tensor> {
    let start = tensor.layout().start_offset() * tensor.dtype().size_in_bytes();
    if tensor.device().is_cpu() || start.is_multiple_of(ALIGNMENT as usize) {
        tensor.contiguous()
    } else {
        tensor.force_contiguous()
    }
}

/// Calls `f` with the elements of a contiguous CPU tensor.
pub(crate) fn with_elements<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => bail!("the tensors of this operation are on different devices"),
    }
}

/// Runs an operation on inputs of one dtype: on bf16 of the CPU in f32, its result rounded once. Both conversions have
/// gradients. Kernels of a GPU take bf16 as it is.
///
/// Inputs of several dtypes go in as they are; the operation refuses them.
pub(crate) fn widened<const N: usize>(
    inputs: [&Tensor; N],
    operation: impl FnOnce([&Tensor; N]) -> Result<Tensor>,
) -> Result<Tensor> {
    if inputs.iter().any(|input| input.dtype() != DType::BF16 || !input.device().is_cpu()) {
        return operation(inputs);
    }
    let mut wide = Vec::with_capacity(N);
    for input in inputs {
        wide.push(input.to_dtype(DType::F32)?);
    }
    operation(std::array::from_fn(|index| &wide[index]))?.to_dtype(DType::BF16)
}

/// Runs the same generic expression for the dtype of a storage: `dispatch!(storage, T => body)`.
macro_rules! dispatch {
    ($dtype:expr, $name:expr, $element:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $element = f32;
                $body
            }
            candle_core::DType::F64 => {
                type $element = f64;
                $body
            }
            dtype => candle_core::bail!("{} takes bf16, f32 or f64, got {dtype:?}", $name),
        }
    };
}
pub(crate) use dispatch;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exponentials_are_within_the_stated_bound() {
        for step in -87_330..=88_370 {
            let x = step as f32 / 1000.0;
            let expected = f64::from(x).exp();
            let error = (f64::from(x.exponential()) - expected).abs() / expected;
            assert!(error < 2e-7, "exp({x}): relative error {error:e}");
        }
        assert_eq!(0f32.exponential(), 1.0);
        assert_eq!([f32::NEG_INFINITY, -1e30, -88.0].map(Element::exponential), [0.0; 3]);
        assert_eq!([f32::INFINITY, 1e30, 89.0].map(Element::exponential), [f32::INFINITY; 3]);
        assert!(f32::NAN.exponential().is_nan());
    }
}
