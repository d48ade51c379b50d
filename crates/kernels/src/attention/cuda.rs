//! The candle operations on tensors of a GPU.

use super::launch::{self, Backward, Forward, Operand, OperandMut, backward_workspace_len};
use super::op::Attention;
use super::shape::Shape;
use super::sys::Strides;
use crate::device::{Cuda, Reading};
use candle_core::backend::BackendStorage as _;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Layout, Result, Storage, Tensor, bail};
use half::bf16;
use std::sync::{Arc, Mutex};

/// What the forward keeps for the backward.
#[derive(Default)]
pub(super) struct Saved(Mutex<Option<Arc<Numbers>>>);

/// On the device. A clone would copy them there.
struct Numbers {
    lse: CudaSlice<f32>,
    /// Not read where sequences are not packed.
    cu_seqlens: CudaSlice<i32>,
}

/// The elements of a tensor from its first on, wherever its rows are.
fn view<'a>(what: &str, storage: &'a CudaStorage, layout: &Layout) -> Result<CudaView<'a, bf16>> {
    if storage.dtype() != DType::BF16 {
        let dtype = storage.dtype();
        bail!("attention on a GPU takes bf16, {what} is {dtype:?}: convert it with to_dtype(DType::BF16)");
    }
    let elements = storage.as_cuda_slice::<bf16>()?;
    // An empty view may begin beyond the end of its storage.
    Ok(elements.slice(layout.start_offset().min(elements.len())..))
}

fn operand<'a>(reading: &'a Reading<'_, bf16>, strides: Strides) -> Operand<'a, Cuda> {
    Operand { data: reading.slice(), strides }
}

/// `out`, contiguous.
pub(super) fn forward(
    op: &Attention,
    shape: &Shape,
    [q, k, v]: [(&CudaStorage, &Layout); 3],
) -> Result<CudaStorage> {
    let cuda = Cuda::from_candle(q.0.device())?;
    let boundaries = op.packed.as_ref().map_or(&[0][..], |packed| packed.boundaries());
    let cu_seqlens = q.0.device().clone_htod(boundaries)?;
    let num_rows = shape.num_query_rows()?;
    // SAFETY: the launch writes both whole.
    let (mut out, mut lse) = unsafe {
        let len = q.1.shape().elem_count();
        (cuda.uninitialised::<bf16>(len)?, cuda.uninitialised::<f32>(num_rows)?)
    };
    {
        let [q_view, k_view, v_view] = [view("q", q.0, q.1)?, view("k", k.0, k.1)?, view("v", v.0, v.1)?];
        let (q_read, k_read, v_read) = (cuda.read(&q_view)?, cuda.read(&k_view)?, cuda.read(&v_view)?);
        let boundaries = cuda.read(&cu_seqlens)?;
        let mut lse = lse.slice_mut(..num_rows);
        let (mut out_write, mut lse_write) = (cuda.write(&mut out)?, cuda.write(&mut lse)?);
        let arguments = Forward {
            q: operand(&q_read, op.strides(q.1.stride())),
            k: operand(&k_read, op.strides(k.1.stride())),
            v: operand(&v_read, op.strides(v.1.stride())),
            cu_seqlens: op.packed.is_some().then(|| boundaries.slice()),
            out: OperandMut { data: out_write.slice(), strides: op.dense_strides(q.1.dims()) },
            lse: lse_write.slice(),
        };
        launch::forward(&cuda, shape, arguments)?;
    }
    *op.saved.0.lock().expect("nothing panics while it holds this") =
        Some(Arc::new(Numbers { lse, cu_seqlens }));
    Ok(CudaStorage::wrap_cuda_slice(out, q.0.device().clone()))
}

/// Gradients of `q`, `k` and `v`, contiguous.
pub(super) fn backward(op: &Attention, shape: &Shape, tensors: [&Tensor; 5]) -> Result<[Tensor; 3]> {
    let Some(saved) = op.saved.0.lock().expect("nothing panics while it holds this").clone() else {
        bail!("attention: the backward on a GPU follows a forward there")
    };
    let storages = tensors.map(Tensor::storage_and_layout);
    let mut views = Vec::with_capacity(storages.len());
    for ((storage, layout), what) in storages.iter().zip(["q", "k", "v", "the result", "its gradient"]) {
        let Storage::Cuda(storage) = &**storage else {
            bail!("attention: {what} is not on the GPU of the others")
        };
        views.push((view(what, storage, layout)?, op.strides(layout.stride())));
    }
    let device = tensors[0].device().as_cuda_device()?;
    let cuda = Cuda::from_candle(device)?;
    let reading = views.iter().map(|(view, _)| cuda.read(view)).collect::<Result<Vec<_>>>()?;
    let part = |index: usize| operand(&reading[index], views[index].1);
    let [q, k, v, ..] = tensors;
    // SAFETY: the launches write the gradients whole, and the workspace before they read it.
    let (mut dq, mut dk, mut dv, mut workspace) = unsafe {
        (
            cuda.uninitialised::<bf16>(q.elem_count())?,
            cuda.uninitialised::<bf16>(k.elem_count())?,
            cuda.uninitialised::<bf16>(v.elem_count())?,
            cuda.uninitialised::<f32>(backward_workspace_len(shape)?)?,
        )
    };
    {
        let lse = saved.lse.slice(..shape.num_query_rows()?);
        let (lse, boundaries) = (cuda.read(&lse)?, cuda.read(&saved.cu_seqlens)?);
        let (mut dq, mut dk, mut dv) = (cuda.write(&mut dq)?, cuda.write(&mut dk)?, cuda.write(&mut dv)?);
        let mut workspace = cuda.write(&mut workspace)?;
        let arguments = Backward {
            q: part(0),
            k: part(1),
            v: part(2),
            cu_seqlens: op.packed.is_some().then(|| boundaries.slice()),
            out: part(3),
            lse: lse.slice(),
            dout: part(4),
            dq: OperandMut { data: dq.slice(), strides: op.dense_strides(q.dims()) },
            dk: OperandMut { data: dk.slice(), strides: op.dense_strides(k.dims()) },
            dv: OperandMut { data: dv.slice(), strides: op.dense_strides(v.dims()) },
            workspace: workspace.slice(),
        };
        launch::backward(&cuda, shape, arguments)?;
    }
    let tensor = |slice: CudaSlice<bf16>, like: &Tensor| {
        let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, device.clone()));
        // forward only: these are gradients, which have none of their own.
        Tensor::from_storage(storage, like.shape().clone(), BackpropOp::none(), false)
    };
    Ok([tensor(dq, q), tensor(dk, k), tensor(dv, v)])
}
