//! Tensors of candle on a GPU, as launch functions take them.

use super::{Cuda, SliceMut, contiguous};
use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::CudaDType;
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, Layout, Result, Shape, Storage, Tensor, WithDType, bail};
use cudarc::driver::{CudaSlice, CudaView, DeviceRepr};

/// What tensors of a GPU hold.
pub(crate) trait Element: CudaDType + DeviceRepr + WithDType {}

impl<T: CudaDType + DeviceRepr + WithDType> Element for T {}

/// The elements of a contiguous input of an operation.
pub(crate) fn elements<'a, T: Element>(
    operation: &str,
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    let (found, taken) = (storage.dtype(), T::DTYPE);
    if found != taken {
        bail!(
            "{operation} on a GPU takes {taken:?}, got {found:?}: convert it with to_dtype(DType::{taken:?})"
        );
    }
    contiguous(operation, storage, layout)
}

/// Calls `f` with the elements of a contiguous tensor of a GPU.
pub(crate) fn with_elements<T: Element, R>(
    operation: &str,
    tensor: &Tensor,
    f: impl FnOnce(CudaView<'_, T>) -> Result<R>,
) -> Result<R> {
    let (storage, layout) = tensor.storage_and_layout();
    match &*storage {
        Storage::Cuda(storage) => f(elements(operation, storage, layout)?),
        _ => bail!("{operation}: the tensors are on different devices"),
    }
}

/// New memory of `len` elements.
///
/// # Safety
/// `fill` has every one of them written by the stream of `cuda`, if it returns no error.
pub(crate) unsafe fn filled<T: DeviceRepr>(
    cuda: &Cuda,
    len: usize,
    fill: impl FnOnce(SliceMut<'_, Cuda, T>) -> Result<()>,
) -> Result<CudaSlice<T>> {
    // SAFETY: the caller fills it; an element beyond `len` is in no tensor.
    let mut memory = unsafe { cuda.uninitialised::<T>(len)? };
    {
        let mut view = memory.slice_mut(..len);
        fill(cuda.write(&mut view)?.slice())?;
    }
    Ok(memory)
}

/// A contiguous tensor, without a past, of what [`filled`] gives.
pub(crate) fn tensor<T: Element>(cuda: &Cuda, memory: CudaSlice<T>, shape: impl Into<Shape>) -> Tensor {
    let storage = Storage::Cuda(storage(cuda, memory));
    // forward only: these are gradients, which have none of their own.
    Tensor::from_storage(storage, shape, BackpropOp::none(), false)
}

/// What a `cuda_fwd` returns of what [`filled`] gives.
pub(crate) fn storage<T: Element>(cuda: &Cuda, memory: CudaSlice<T>) -> CudaStorage {
    CudaStorage::wrap_cuda_slice(memory, cuda.candle().clone())
}
