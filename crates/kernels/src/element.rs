//! Element types and access to contiguous CPU storages.

use candle_core::{CpuStorage, Layout, Result, Storage, Tensor, WithDType, bail};

/// f32 or f64.
pub(crate) trait Element:
    WithDType + num_traits::Float + std::iter::Sum + std::ops::AddAssign
{
}

impl Element for f32 {}
impl Element for f64 {}

/// A constant in the element type.
pub(crate) fn lit<T: Element>(value: f64) -> T {
    <T as num_traits::NumCast>::from(value).expect("f32 and f64 hold every finite constant")
}

/// The elements of a contiguous storage.
pub(crate) fn elements<'a, T: Element>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [T]> {
    let Some((start, end)) = layout.contiguous_offsets() else {
        bail!("expected a contiguous tensor, got {layout:?}")
    };
    Ok(&T::cpu_storage_as_slice(storage)?[start..end])
}

/// Calls `f` with the elements of a contiguous CPU tensor.
pub(crate) fn with_elements<T: Element, R>(tensor: &Tensor, f: impl FnOnce(&[T]) -> Result<R>) -> Result<R> {
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cpu(storage) => f(elements(storage, layout)?),
        _ => bail!("this operation has no CUDA backward yet"),
    }
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
            dtype => candle_core::bail!("{} takes f32 or f64, got {dtype:?}", $name),
        }
    };
}
pub(crate) use dispatch;
