//! A CUDA stream as a [`Device`].

use super::capability::{Code, driver_is_too_old};
use super::{Description, Device, Grid, Kernel, Memory, Module, Number, POISON, Params, Slice, SliceMut};
use candle_core::cuda_backend::CudaDType;
use candle_core::{CudaDevice, CudaStorage, Layout, Result, bail};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUfunction_attribute_enum as FunctionAttribute};
use cudarc::driver::{CudaContext, CudaFunction, CudaModule, CudaSlice, CudaStream, CudaView};
use cudarc::driver::{DevicePtr, DevicePtrMut, SyncOnDrop};
use cudarc::nvrtc::Ptx;
use half::bf16;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, OnceLock, RwLock};

/// A stream of an NVIDIA GPU: kernels run on it in the order they are launched.
///
/// Kernels are loaded when they are first launched, once in the life of the process, however many `Cuda` there are.
#[derive(Clone)]
pub struct Cuda {
    device: CudaDevice,
    stream: Arc<CudaStream>,
    code: Code,
}

impl fmt::Debug for Cuda {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cuda").field("ordinal", &self.stream.context().ordinal()).finish_non_exhaustive()
    }
}

impl Cuda {
    /// The GPU number `ordinal`, with a stream of its own, which [`Cuda::candle`] shares.
    ///
    /// candle's tensors of this device are not tracked by events, which cost more than small kernels: whoever makes other
    /// streams orders them by hand. Memory that was freed stays with the process, to be given out again.
    ///
    /// # Errors
    /// If there is no driver, no GPU, or one that this build has no code for; the text says which and what to do.
    pub fn new(ordinal: usize) -> Result<Self> {
        let context = open(ordinal)?;
        let code = Code::for_context(&context)?;
        keep_freed_memory(&context)?;
        let device = CudaDevice::new_with_stream(ordinal)?;
        // SAFETY: every tensor of `device` is made, used and freed on its one stream; who makes others is told above.
        unsafe { device.disable_event_tracking() };
        Ok(Self { stream: device.cuda_stream(), device, code })
    }

    /// The stream of a device of candle, which keeps what it has of event tracking. That of `Device::new_cuda` is another in every
    /// thread: tensors that go to other threads want a device of [`Cuda::candle`].
    ///
    /// # Errors
    /// If this build has no code for the GPU.
    pub fn from_candle(device: &CudaDevice) -> Result<Self> {
        let stream = device.cuda_stream();
        let code = Code::for_context(stream.context())?;
        Ok(Self { device: device.clone(), stream, code })
    }

    /// The device for candle's tensors.
    pub fn candle(&self) -> &CudaDevice {
        &self.device
    }

    /// The stream kernels run on.
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Elements to read, for as long as the result lives.
    ///
    /// # Errors
    /// If they are of another GPU.
    pub fn read<'a, T>(&'a self, elements: &'a impl DevicePtr<T>) -> Result<Reading<'a, T>> {
        self.check_gpu(elements.stream())?;
        let (address, guard) = elements.device_ptr(&self.stream);
        // SAFETY: `elements` has as many, of this GPU, and is borrowed for `'a`.
        Ok(Reading { slice: unsafe { Slice::from_raw(address, elements.len()) }, _guard: guard })
    }

    /// Elements to write, for as long as the result lives.
    ///
    /// # Errors
    /// If they are of another GPU.
    pub fn write<'a, T>(&'a self, elements: &'a mut impl DevicePtrMut<T>) -> Result<Writing<'a, T>> {
        self.check_gpu(elements.stream())?;
        let len = elements.len();
        let (address, guard) = elements.device_ptr_mut(&self.stream);
        // SAFETY: `elements` has as many, of this GPU, and is borrowed for `'a` by this alone.
        Ok(Writing { slice: unsafe { SliceMut::from_raw(address, len) }, _guard: guard })
    }

    fn check_gpu(&self, of_elements: &CudaStream) -> Result<()> {
        let (ours, theirs) = (self.stream.context(), of_elements.context());
        if ours != theirs {
            bail!("the elements are on GPU {}, the kernel runs on {}", theirs.ordinal(), ours.ordinal());
        }
        // Where events are tracked they order the streams.
        if !ours.is_event_tracking() && of_elements.cu_stream() != self.stream.cu_stream() {
            bail!(
                "the elements belong to another stream of the GPU than the kernel, and nothing orders the two"
            );
        }
        Ok(())
    }

    fn check_stream<T>(&self, buffer: &CudaBuffer<T>) {
        let stream = buffer.bytes.stream();
        let same = stream.context() == self.stream.context() && stream.cu_stream() == self.stream.cu_stream();
        assert!(same, "the elements belong to another GPU or stream than the one that is to use them");
    }

    /// Copies elements within the GPU.
    ///
    /// # Errors
    /// If there are not as many elements in both.
    pub fn copy<T: Number>(&self, from: &CudaBuffer<T>, to: &mut CudaBuffer<T>) -> Result<()> {
        if from.len != to.len {
            bail!("{} elements cannot be copied to {}", from.len, to.len);
        }
        let copied = self.stream.memcpy_dtod(&from.bytes, &mut to.bytes);
        copied.or_else(|error| bail!("cannot copy within the GPU: {}", text(error)))
    }

    /// Waits until all that was launched has run.
    ///
    /// # Errors
    /// If something that was launched has failed.
    pub fn synchronize(&self) -> Result<()> {
        self.stream.synchronize().or_else(|error| bail!("the GPU failed: {}", text(error)))
    }

    /// Seconds that each of `runs` runs of what `work` launches takes, by the clock of the GPU.
    ///
    /// # Errors
    /// If `work` fails, or what it launches.
    pub fn seconds(&self, runs: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let record = || {
            let event = self.stream.record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT));
            event.or_else(|error| bail!("cannot record an event: {}", text(error)))
        };
        let mut pairs = Vec::with_capacity(runs);
        for _ in 0..runs {
            let start = record()?;
            work()?;
            pairs.push((start, record()?));
        }
        self.synchronize()?;
        let seconds = pairs.iter().map(|(start, end)| match start.elapsed_ms(end) {
            Ok(milliseconds) => Ok(f64::from(milliseconds) / 1000.0),
            Err(error) => bail!("cannot read an event: {}", text(error)),
        });
        seconds.collect()
    }

    /// What GPU this is.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn description(&self) -> Result<Description> {
        let context = self.stream.context();
        let ask = || {
            let (major, minor) = context.compute_capability()?;
            let multiprocessors = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
            let mut driver = 0;
            // SAFETY: writes the one number.
            unsafe { sys::cuDriverGetVersion(&mut driver) }.result()?;
            Ok(Description {
                name: context.name()?,
                capability: format!("{major}.{minor}"),
                multiprocessors: context.attribute(multiprocessors)?,
                memory_bytes: context.total_mem()? as u64,
                driver_cuda: format!("{}.{}", driver / 1000, driver % 1000 / 10),
                built_with_cuda: format!("{}.{}", sys::CUDA_VERSION / 1000, sys::CUDA_VERSION % 1000 / 10),
            })
        };
        ask().or_else(|error: DriverError| bail!("cannot ask the GPU what it is: {}", text(error)))
    }

    /// Room for `len` elements that a kernel writes whole before anything reads them; for one at least, since the driver gives no
    /// memory of no bytes.
    ///
    /// # Errors
    /// If the memory of the GPU does not suffice.
    ///
    /// # Safety
    /// Nothing is there until it is written.
    pub unsafe fn uninitialised<T: cudarc::driver::DeviceRepr>(&self, len: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the caller writes before it reads.
        unsafe { self.device.alloc(len.max(1)) }
    }
}

/// Elements in the memory of a GPU, which are its owner's.
pub struct CudaBuffer<T> {
    bytes: CudaSlice<u8>,
    address: u64,
    len: usize,
    element: PhantomData<T>,
}

impl Memory for Cuda {
    type Half = bf16;
    type Full = f32;
    type Buffer<T: Number> = CudaBuffer<T>;

    fn poisoned<T: Number>(&self, len: usize) -> Result<CudaBuffer<T>> {
        let Some(num_bytes) = len.checked_mul(size_of::<T>()) else {
            bail!("{len} elements are more than can be counted")
        };
        // One byte for nothing: the driver refuses allocations of no bytes.
        // SAFETY: written before anything reads it, just below.
        let bytes = unsafe { self.stream.alloc::<u8>(num_bytes.max(1)) };
        let mut bytes =
            bytes.or_else(|error| bail!("cannot allocate {num_bytes} bytes on the GPU: {}", text(error)))?;
        let size = bytes.len();
        let (address, guard) = bytes.device_ptr_mut(&self.stream);
        // SAFETY: as many bytes were just allocated there.
        let filled = unsafe { result::memset_d8_async(address, POISON, size, self.stream.cu_stream()) };
        drop(guard);
        filled.or_else(|error| bail!("cannot fill {num_bytes} bytes of the GPU: {}", text(error)))?;
        Ok(CudaBuffer { bytes, address, len, element: PhantomData })
    }

    /// Waits for the stream: the driver does not promise to be done with the source before that.
    fn copy_from_host<T: Number>(&self, from: &[T], to: SliceMut<'_, Self, T>) -> Result<()> {
        if from.len() != to.len() {
            bail!("{} elements cannot be copied to {} on the GPU", from.len(), to.len());
        }
        if from.is_empty() {
            return Ok(());
        }
        let bound = self.stream.context().bind_to_thread();
        // SAFETY: as many elements are there, which nothing else reaches; the source is borrowed until the copy is made, just below.
        let copied = bound
            .and_then(|()| unsafe { result::memcpy_htod_async(to.address(), from, self.stream.cu_stream()) });
        copied.or_else(|error| bail!("cannot copy to the GPU: {}", text(error)))?;
        self.synchronize()
    }

    fn download<T: Number>(&self, buffer: &CudaBuffer<T>) -> Result<Vec<T>> {
        let bytes = self.stream.clone_dtoh(&buffer.bytes);
        let bytes = bytes.or_else(|error| bail!("cannot copy from the GPU: {}", text(error)))?;
        self.synchronize()?;
        let mut elements = Vec::<T>::with_capacity(buffer.len);
        // SAFETY: there is room for `len` elements and there are as many bytes, and any bytes are a number.
        unsafe {
            let size = buffer.len * size_of::<T>();
            elements.as_mut_ptr().cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), size);
            elements.set_len(buffer.len);
        }
        Ok(elements)
    }

    /// # Panics
    /// If the buffer is of another stream: nothing would order what the two do with it.
    fn slice<'a, T: Number>(&self, buffer: &'a CudaBuffer<T>) -> Slice<'a, Self, T> {
        self.check_stream(buffer);
        // SAFETY: it has as many, all written, and is borrowed.
        unsafe { Slice::from_raw(buffer.address, buffer.len) }
    }

    /// # Panics
    /// As `slice`.
    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut CudaBuffer<T>) -> SliceMut<'a, Self, T> {
        self.check_stream(buffer);
        // SAFETY: it has as many, and is borrowed by this alone.
        unsafe { SliceMut::from_raw(buffer.address, buffer.len) }
    }
}

/// What a contiguous tensor holds.
///
/// # Errors
/// If it holds elements of another kind, or not one after the other.
pub fn contiguous<'a, T: CudaDType + cudarc::driver::DeviceRepr>(
    what: &str,
    storage: &'a CudaStorage,
    layout: &Layout,
) -> Result<CudaView<'a, T>> {
    match layout.contiguous_offsets() {
        // An empty view may begin beyond the end of its storage.
        Some((start, end)) if start == end => Ok(storage.as_cuda_slice::<T>()?.slice(0..0)),
        Some((start, end)) => Ok(storage.as_cuda_slice::<T>()?.slice(start..end)),
        None => bail!("{what} is not contiguous: {layout:?}"),
    }
}

/// Elements that a launch may read. Work of other streams on them waits for this where events are tracked.
pub struct Reading<'a, T> {
    slice: Slice<'a, Cuda, T>,
    _guard: SyncOnDrop<'a>,
}

impl<T> Reading<'_, T> {
    /// For launch functions.
    pub fn slice(&self) -> Slice<'_, Cuda, T> {
        self.slice
    }
}

/// Elements that a launch may write. Work of other streams on them waits for this where events are tracked.
pub struct Writing<'a, T> {
    slice: SliceMut<'a, Cuda, T>,
    _guard: SyncOnDrop<'a>,
}

impl<T> Writing<'_, T> {
    /// For launch functions.
    pub fn slice(&mut self) -> SliceMut<'_, Cuda, T> {
        // SAFETY: the same elements, which nothing else reaches while `self` is borrowed.
        unsafe { SliceMut::from_raw(self.slice.address(), self.slice.len()) }
    }
}

// SAFETY: the function is looked up by the kernel's name in the kernel's module, gets the one struct that `Params` says is
// the kernel's, and the stream runs what it is given in order.
unsafe impl Device for Cuda {
    unsafe fn launch<P: Params>(&self, kernel: &Kernel<P>, grid: Grid, params: &P) -> Result<()> {
        let context = self.stream.context();
        let function = function(context, self.code, kernel.module, kernel.name)?;
        if kernel.shared_memory > function.max_dynamic_shared_memory {
            bail!(
                "{} needs {} bytes of dynamic shared memory a block; this GPU allows {}",
                kernel.name,
                kernel.shared_memory,
                function.max_dynamic_shared_memory
            );
        }
        let mut pointers = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let Grid { x, y, z } = grid;
        let bound = context.bind_to_thread();
        // SAFETY: the kernel takes one struct, which `params` is and which is copied before the call returns; what its
        // addresses point to is the caller's promise; the module lives as long as the process.
        let launched = bound.and_then(|()| unsafe {
            let shape = ((x, y, z), (kernel.threads, 1, 1), kernel.shared_memory);
            let stream = self.stream.cu_stream();
            result::launch_kernel(
                function.handle.cu_function(),
                shape.0,
                shape.1,
                shape.2,
                stream,
                &mut pointers,
            )
        });
        launched.or_else(|error| {
            let threads = kernel.threads;
            bail!(
                "cannot launch {} on {x} x {y} x {z} blocks of {threads} threads: {}",
                kernel.name,
                text(error)
            )
        })
    }
}

impl Code {
    fn for_context(context: &CudaContext) -> Result<Self> {
        let capability = context.compute_capability();
        let (major, minor) =
            capability.or_else(|error| bail!("cannot ask the GPU what it is: {}", text(error)))?;
        match Self::for_capability(major, minor) {
            Ok(code) => Ok(code),
            Err(why) => {
                let name = context.name().unwrap_or_else(|_| "this GPU".to_owned());
                bail!("{name} has compute capability {major}.{minor}: {why}")
            }
        }
    }

    fn of(self, module: &Module) -> &'static [u8] {
        match self {
            Self::Sm80 => module.sm_80,
            Self::Sm90a => module.sm_90a,
        }
    }
}

/// A kernel that is ready to be launched.
#[derive(Clone)]
struct Function {
    handle: CudaFunction,
    /// Bytes of dynamic shared memory of a block, as many as the GPU allows.
    max_dynamic_shared_memory: u32,
}

/// Modules and functions that were loaded, by the handle of the context and the name. They keep their context, so that no
/// other gets its handle.
#[derive(Default)]
struct Loaded {
    modules: HashMap<(usize, &'static str), Arc<CudaModule>>,
    functions: HashMap<(usize, &'static str), Function>,
}

/// The function of a kernel; loads its module at the first use.
fn function(
    context: &Arc<CudaContext>,
    code: Code,
    module: &'static Module,
    name: &'static str,
) -> Result<Function> {
    static LOADED: OnceLock<RwLock<Loaded>> = OnceLock::new();
    let loaded = LOADED.get_or_init(RwLock::default);
    let context_id = context.cu_ctx() as usize;
    let key = (context_id, name);
    if let Some(function) = loaded.read().expect("no loader panics").functions.get(&key) {
        return Ok(function.clone());
    }
    let mut loaded = loaded.write().expect("no loader panics");
    if let Some(function) = loaded.functions.get(&key) {
        return Ok(function.clone());
    }
    let module_key = (context_id, module.name);
    let file = match loaded.modules.get(&module_key) {
        Some(file) => file.clone(),
        None => {
            let file = context.load_module(Ptx::from_binary(code.of(module).to_vec()));
            let file =
                file.or_else(|error| bail!("cannot load the kernels of {}: {}", module.name, text(error)))?;
            loaded.modules.insert(module_key, file.clone());
            file
        }
    };
    let handle = file.load_function(name);
    let handle = handle.or_else(|error| bail!("no kernel {name} in {}: {}", module.name, text(error)))?;
    let max = max_dynamic_shared_memory(context, &handle);
    let max_dynamic_shared_memory = max.or_else(|error| bail!("{name}: {}", text(error)))?;
    let function = Function { handle, max_dynamic_shared_memory };
    loaded.functions.insert(key, function.clone());
    Ok(function)
}

/// Allows the function all the shared memory that blocks can have on this GPU. More than 48 KiB has to be asked for.
fn max_dynamic_shared_memory(
    context: &CudaContext,
    function: &CudaFunction,
) -> std::result::Result<u32, DriverError> {
    let limit = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let of_block = context.attribute(limit)?;
    let dynamic = (of_block - function.shared_size_bytes()?).max(0);
    function.set_attribute(FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, dynamic)?;
    Ok(dynamic as u32)
}

/// The context of a GPU, after the questions whose answers a person can act on.
fn open(ordinal: usize) -> Result<Arc<CudaContext>> {
    if let Err(error) = result::init() {
        bail!("{}", no_driver(error));
    }
    let (mut of_driver, toolkit) = (0, sys::CUDA_VERSION as i32);
    // SAFETY: writes the one number.
    let asked = unsafe { sys::cuDriverGetVersion(&mut of_driver) }.result();
    asked.or_else(|error| bail!("cannot ask the driver for its version: {}", text(error)))?;
    if let Some(why) = driver_is_too_old(of_driver, toolkit) {
        bail!("{why}");
    }
    let count = CudaContext::device_count();
    let count = count.or_else(|error| bail!("cannot count the GPUs: {}", text(error)))?;
    if ordinal >= usize::try_from(count).unwrap_or(0) {
        bail!("there is no GPU {ordinal}: the driver shows {count} (CUDA_VISIBLE_DEVICES hides others)");
    }
    CudaContext::new(ordinal).or_else(|error| bail!("cannot use GPU {ordinal}: {}", text(error)))
}

/// What the failure of the driver's first call means.
fn no_driver(error: DriverError) -> String {
    use sys::CUresult;
    match error.0 {
        CUresult::CUDA_ERROR_NO_DEVICE => {
            "the driver finds no GPU (CUDA_VISIBLE_DEVICES may hide it; `nvidia-smi` lists what there is)".to_owned()
        }
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            "libcuda.so.1 is the stub that programs are linked with, not a driver: no NVIDIA driver is installed, or the \
             stub stands before it in LD_LIBRARY_PATH"
                .to_owned()
        }
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "libcuda.so.1 is not of the version of the running kernel module: reboot, or reload the driver".to_owned()
        }
        _ => format!("the NVIDIA driver does not start: {}", text(error)),
    }
}

/// Lets the default pool keep what is freed; as it comes, each synchronisation may hand it back to the system.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    let mut threshold = u64::MAX;
    // SAFETY: the device is that of a live context, and the attribute is a `u64`.
    let set = unsafe {
        result::device::get_default_mem_pool(context.cu_device()).and_then(|pool| {
            let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            result::mem_pool::set_attribute(pool, attribute, std::ptr::from_mut(&mut threshold).cast())
        })
    };
    set.or_else(|error| bail!("cannot set up the memory pool of the GPU: {}", text(error)))
}

/// The driver's words for an error.
fn text(error: DriverError) -> String {
    match (error.error_name(), error.error_string()) {
        (Ok(name), Ok(string)) => format!("{} ({})", string.to_string_lossy(), name.to_string_lossy()),
        _ => format!("{:?}", error.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a GPU one sentence says what is missing; with one, this is the proof that it opens.
    #[test]
    fn a_machine_without_a_gpu_is_told_so() {
        match Cuda::new(0) {
            Ok(cuda) => assert_eq!(cuda.stream().context().ordinal(), 0),
            Err(error) => {
                let sentence = error.to_string();
                let known = ["no NVIDIA driver", "no GPU", "does not start", "compute capability"];
                assert!(known.iter().any(|known| sentence.contains(known)), "{sentence}");
                eprintln!("skipped: opening a GPU ({sentence})");
            }
        }
    }
}
