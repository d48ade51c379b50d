//! The products on a GPU, by cuBLASLt: descriptions become plans, which are kept.

use super::column_major::{ColumnMajor, Layout};
use super::sealed::OutputType;
use super::{Epilogue, Form, Gemm, GemmOutput};
use crate::device::{Cuda, Slice, SliceMut};
use crate::matmul::Output;
use candle_core::{Result, bail};
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys::{
    self, cublasLtEpilogue_t as LtEpilogue, cublasLtMatmulAlgo_t, cublasLtMatmulDesc_t,
    cublasLtMatmulDescAttributes_t as DescAttribute, cublasLtMatmulPreference_t,
    cublasLtMatmulPreferenceAttributes_t as PreferenceAttribute, cublasLtMatrixLayout_t,
    cublasLtReductionScheme_t as Reduction, cudaDataType,
};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtrMut as _};
use half::bf16;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;

/// Bytes that cuBLASLt may use for sums of parts. What NVIDIA recommends for Hopper; others are recommended 4 MiB, and do not
/// mind more.
const WORKSPACE: usize = 32 << 20;
/// What every address is a multiple of; plans count on it, and the widest loads of the GPU need no more.
const ALIGNMENT: u32 = crate::device::ALIGNMENT as u32;

fn element(output: OutputType) -> cudaDataType {
    match output {
        OutputType::Bf16 => cudaDataType::CUDA_R_16BF,
        OutputType::F32 => cudaDataType::CUDA_R_32F,
    }
}

/// Runs the product on the stream of `cuda`; it may still run when this returns. Slices hold what the strides of `gemm` say, or
/// more; `bias` has an element for each column, where the epilogue takes one. Only elements of the output are written.
///
/// Sums are f32, and parts of one sum are added in f32 and in one order: the same product gives the same bits, on the same GPU
/// and version of cuBLASLt. The first product of a description makes its plan, which takes longer. Memory of 32 MiB for
/// intermediate sums is taken once for each stream.
///
/// # Errors
/// If a slice or a stride is too short, an address is not a multiple of 16 bytes, there is a bias where none is taken or none
/// where one is, or cuBLASLt has no way to do it.
pub fn gemm<O: GemmOutput>(
    cuda: &Cuda,
    gemm: &Gemm,
    a: Slice<'_, Cuda, bf16>,
    b: Slice<'_, Cuda, bf16>,
    bias: Option<Slice<'_, Cuda, O>>,
    d: SliceMut<'_, Cuda, O>,
) -> Result<()> {
    gemm.check_slices(a, b, bias, &d)?;
    if gemm.m == 0 || gemm.n == 0 {
        return Ok(());
    }
    let addresses =
        Addresses { a: a.address(), b: b.address(), bias: bias.map(|bias| bias.address()), d: d.address() };
    if gemm.k > 0 {
        // SAFETY: the slices hold every element that the sizes and strides of `gemm` address (checked above), `d` is borrowed
        // mutably and nothing else is written.
        return unsafe { multiply(cuda, gemm, addresses, element(O::TYPE)) };
    }
    // Sums of one product of zeros are those of none.
    let zeros = cuda.candle().alloc_zeros::<bf16>(gemm.m.max(gemm.n))?;
    let zeros = cuda.read(&zeros)?;
    let address = zeros.slice().address();
    let one = Gemm { k: 1, ..*gemm };
    let one = Gemm { a: Gemm::new(gemm.m, gemm.n, 1).a, b: Gemm::new(gemm.m, gemm.n, 1).b, ..one };
    // SAFETY: as above; one column of `m` and one row of `n` are in the zeros, which are freed on the stream, after their use.
    unsafe { multiply(cuda, &one, Addresses { a: address, b: address, ..addresses }, element(O::TYPE)) }
}

/// Where the elements of a product are.
#[derive(Clone, Copy)]
struct Addresses {
    a: u64,
    b: u64,
    bias: Option<u64>,
    d: u64,
}

/// # Safety
/// The elements that `gemm`, without an empty dimension, speaks of are at the addresses, which are multiples of 16 bytes, and
/// nothing else reads or writes those of the output until the stream has done this.
unsafe fn multiply(cuda: &Cuda, gemm: &Gemm, addresses: Addresses, output: cudaDataType) -> Result<()> {
    let stream = cuda.stream();
    let bound = stream.context().bind_to_thread();
    bound.or_else(|error| bail!("gemm: cannot use GPU {}: {error}", stream.context().ordinal()))?;
    let blas = Blas::of(stream)?;
    let mut blas = blas.lock().expect("nothing panics while it holds this");
    // SAFETY: what the caller promises.
    let launched = unsafe { blas.run(gemm, addresses, output) };
    launched.or_else(|error| bail!("gemm: cuBLASLt fails at {gemm:?} to {output:?}: {error}"))
}

/// cuBLASLt on one stream.
struct Blas {
    handle: sys::cublasLtHandle_t,
    workspace: CudaSlice<u8>,
    /// Keeps the stream, so that no other gets its handle.
    stream: Arc<CudaStream>,
    plans: HashMap<(Gemm, cudaDataType), Plan>,
}

// SAFETY: the library's handles are of no thread; the lock around a `Blas` lets one at a time use them.
unsafe impl Send for Blas {}

/// A stream: its context and handle, and the thread where the handle means another stream in every thread.
type StreamId = (usize, usize, Option<ThreadId>);

impl Blas {
    /// That of a stream, which lives as long as the process.
    fn of(stream: &Arc<CudaStream>) -> Result<Arc<Mutex<Self>>> {
        /// `CU_STREAM_PER_THREAD`.
        const PER_THREAD: usize = 2;
        static ALL: OnceLock<Mutex<HashMap<StreamId, Arc<Mutex<Blas>>>>> = OnceLock::new();
        let (context, handle) = (stream.context().cu_ctx() as usize, stream.cu_stream() as usize);
        let id = (context, handle, (handle == PER_THREAD).then(|| std::thread::current().id()));
        let mut all = ALL.get_or_init(Mutex::default).lock().expect("nothing panics while it holds this");
        if let Some(blas) = all.get(&id) {
            return Ok(blas.clone());
        }
        // SAFETY: cuBLASLt writes there before it reads.
        let workspace = unsafe { stream.alloc::<u8>(WORKSPACE) };
        let workspace =
            workspace.or_else(|error| bail!("gemm: no memory for cuBLASLt ({WORKSPACE} bytes): {error}"))?;
        let handle =
            result::create_handle().or_else(|error| bail!("gemm: cuBLASLt does not start: {error}"))?;
        let blas = Self { handle, workspace, stream: stream.clone(), plans: HashMap::new() };
        let blas = Arc::new(Mutex::new(blas));
        all.insert(id, blas.clone());
        Ok(blas)
    }

    /// # Safety
    /// As [`multiply`], whose stream is this one's.
    unsafe fn run(
        &mut self,
        gemm: &Gemm,
        addresses: Addresses,
        output: cudaDataType,
    ) -> std::result::Result<(), CublasError> {
        let Self { handle, workspace, stream, plans } = self;
        let plan = match plans.entry((*gemm, output)) {
            std::collections::hash_map::Entry::Occupied(plan) => plan.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(Plan::new(*handle, gemm, output)?)
            }
        };
        if let Some(bias) = addresses.bias {
            plan.product.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias)?;
        }
        let alpha = 1f32;
        let beta = if gemm.output == Output::Accumulate { 1f32 } else { 0f32 };
        let (workspace, _guard) = workspace.device_ptr_mut(stream);
        let pointer = |address: u64| address as *const c_void;
        // SAFETY: the descriptors are alive and say what `gemm` does, whose elements are at the addresses (promised by the
        // caller); scales are read before the call returns; the workspace has the bytes the plan was made with, and only this
        // stream uses it.
        unsafe {
            result::matmul(
                *handle,
                plan.product.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(addresses.b),
                plan.first.0,
                pointer(addresses.a),
                plan.second.0,
                pointer(addresses.d),
                plan.output.0,
                addresses.d as *mut c_void,
                plan.output.0,
                &plan.algorithm,
                workspace as *mut c_void,
                WORKSPACE,
                stream.cu_stream().cast(),
            )
        }
    }
}

/// Everything about a product but its addresses.
struct Plan {
    product: Description,
    first: MatrixLayout,
    second: MatrixLayout,
    output: MatrixLayout,
    algorithm: cublasLtMatmulAlgo_t,
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        gemm: &Gemm,
        output: cudaDataType,
    ) -> std::result::Result<Self, CublasError> {
        let ColumnMajor { first, second, output: d } = ColumnMajor::of(gemm);
        let product = Description::new()?;
        product.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSA, &transposition(first.form))?;
        product.set(DescAttribute::CUBLASLT_MATMUL_DESC_TRANSB, &transposition(second.form))?;
        product.set(DescAttribute::CUBLASLT_MATMUL_DESC_EPILOGUE, &(epilogue(gemm.epilogue) as u32))?;
        if gemm.epilogue.has_bias() {
            // The heuristic looks at how the pointer is aligned, and at nothing behind it.
            product.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_POINTER, &u64::from(ALIGNMENT))?;
            product.set(DescAttribute::CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &(output as i32))?;
        }
        let first = MatrixLayout::new(cudaDataType::CUDA_R_16BF, first.layout)?;
        let second = MatrixLayout::new(cudaDataType::CUDA_R_16BF, second.layout)?;
        let output = MatrixLayout::new(output, d)?;
        let preference = Preference::new()?;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &(WORKSPACE as u64))?;
        // Parts of a sum are added in f32 from the workspace, after another: neither rounded before, nor in the order in which
        // blocks come to it.
        let reduction = Reduction::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        preference.set(PreferenceAttribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reduction)?;
        for alignment in [
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
            PreferenceAttribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
        ] {
            preference.set(alignment, &ALIGNMENT)?;
        }
        // SAFETY: the handle and the descriptors are alive.
        let found = unsafe {
            result::get_matmul_algo_heuristic(
                handle,
                product.0,
                first.0,
                second.0,
                output.0,
                output.0,
                preference.0,
            )?
        };
        Ok(Self { product, first, second, output, algorithm: found.algo })
    }
}

/// A `cublasOperation_t`.
fn transposition(form: Form) -> i32 {
    match form {
        Form::Plain => 0,
        Form::Transposed => 1,
    }
}

fn epilogue(epilogue: Epilogue) -> LtEpilogue {
    match epilogue {
        Epilogue::None => LtEpilogue::CUBLASLT_EPILOGUE_DEFAULT,
        Epilogue::Bias => LtEpilogue::CUBLASLT_EPILOGUE_BIAS,
        Epilogue::Gelu => LtEpilogue::CUBLASLT_EPILOGUE_GELU,
        Epilogue::GeluBias => LtEpilogue::CUBLASLT_EPILOGUE_GELU_BIAS,
    }
}

/// What is multiplied with what, and what comes after.
struct Description(cublasLtMatmulDesc_t);

impl Description {
    fn new() -> std::result::Result<Self, CublasError> {
        result::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, cudaDataType::CUDA_R_32F)
            .map(Self)
    }

    fn set<T: Copy>(&self, attribute: DescAttribute, value: &T) -> std::result::Result<(), CublasError> {
        // SAFETY: the description is alive, and the value is copied; the library checks its size.
        unsafe {
            let value = std::ptr::from_ref(value).cast();
            result::set_matmul_desc_attribute(self.0, attribute, value, size_of::<T>())
        }
    }
}

impl Drop for Description {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody after this. There is nothing to do about an error.
        let _ = unsafe { result::destroy_matmul_desc(self.0) };
    }
}

/// How a matrix is stored.
struct MatrixLayout(cublasLtMatrixLayout_t);

impl MatrixLayout {
    fn new(element: cudaDataType, layout: Layout) -> std::result::Result<Self, CublasError> {
        let Layout { rows, columns, stride } = layout;
        result::create_matrix_layout(element, rows as u64, columns as u64, stride as i64).map(Self)
    }
}

impl Drop for MatrixLayout {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody after this. There is nothing to do about an error.
        let _ = unsafe { result::destroy_matrix_layout(self.0) };
    }
}

/// What an algorithm must keep to.
struct Preference(cublasLtMatmulPreference_t);

impl Preference {
    fn new() -> std::result::Result<Self, CublasError> {
        result::create_matmul_pref().map(Self)
    }

    fn set<T: Copy>(
        &self,
        attribute: PreferenceAttribute,
        value: &T,
    ) -> std::result::Result<(), CublasError> {
        // SAFETY: the preference is alive, and the value is copied; the library checks its size.
        unsafe {
            let value = std::ptr::from_ref(value).cast();
            result::set_matmul_pref_attribute(self.0, attribute, value, size_of::<T>())
        }
    }
}

impl Drop for Preference {
    fn drop(&mut self) {
        // SAFETY: made by `new`, and used by nobody after this. There is nothing to do about an error.
        let _ = unsafe { result::destroy_matmul_pref(self.0) };
    }
}
