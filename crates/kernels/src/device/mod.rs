//! Where kernels run, what they are given, and how one is started.
//!
//! The launch functions of every operation are generic over [`Device`]: the same checks, grids and parameters go to a CUDA
//! stream and to the emulation that runs the kernels' source on a CPU in the tests.

#[cfg(any(test, feature = "cuda"))]
mod capability;
mod checks;
#[cfg(feature = "cuda")]
mod cuda;
mod memory;
#[cfg(not(feature = "cuda"))]
mod no_cuda;
#[cfg(feature = "cuda")]
pub(crate) mod tensors;

pub(crate) use checks::{ALIGNMENT, check_alignment, check_element, check_sizes, num_rows, rows_are_aligned};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaBuffer, Reading, Writing, contiguous};
pub use memory::{Float, Memory, Number, POISON, Slice, SliceMut};
#[cfg(not(feature = "cuda"))]
pub use no_cuda::{Cuda, CudaBuffer};

use candle_core::{Result, bail};
use half::bf16;
use std::marker::PhantomData;

/// Runs kernels, in the order they are given, on bf16 and f32.
///
/// # Safety
/// `launch` runs exactly the named kernel with exactly these parameters, after everything launched before it.
pub unsafe trait Device: Memory<Half = bf16, Full = f32> {
    /// Starts `kernel` on every block of `grid`; it may still run when this returns.
    ///
    /// # Errors
    /// If the kernel is unknown to the device or cannot be started.
    ///
    /// # Safety
    /// Every address in `params` is of this device and valid for what the kernel reads and writes there, until it has run.
    unsafe fn launch<P: Params>(&self, kernel: &Kernel<P>, grid: Grid, params: &P) -> Result<()>;

    /// Told by a [`Backend`](crate::backend::Backend) what an operation costs, before its kernels are started. Nothing is done
    /// with it unless the device keeps count.
    fn record(&self, _operation: &'static str, _cost: impl FnOnce() -> Cost) {}
}

/// What an operation costs.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Cost {
    /// Products and sums on tensor cores, two for each multiply-add. Those of a causal mask are half of the full ones.
    pub operations: f64,
    /// Bytes that have to be read and written, each once unless the kernel does so more often. What products and attention read
    /// again from caches is not in it.
    pub bytes: f64,
}

/// A parameter struct of a kernel.
///
/// # Safety
/// `repr(C)`, with the fields of the struct of the `.cu` file in its order, and plain numbers alone.
pub unsafe trait Params: Copy + 'static {}

/// A kernel of a `.cu` file, with what is fixed about its launch.
pub struct Kernel<P> {
    /// The name in the source.
    pub name: &'static str,
    /// The file it is in.
    pub module: &'static Module,
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_memory: u32,
    params: PhantomData<fn(P)>,
}

impl<P: Params> Kernel<P> {
    pub(crate) const fn new(
        module: &'static Module,
        name: &'static str,
        threads: u32,
        shared_memory: u32,
    ) -> Self {
        assert!(threads.is_multiple_of(32) && threads <= 1024, "blocks are made of whole warps");
        Self { name, module, threads, shared_memory, params: PhantomData }
    }
}

/// One `.cu` file.
#[derive(Debug)]
pub struct Module {
    /// The file's name without its ending.
    pub name: &'static str,
    /// Machine code for compute capability 8.0.
    #[cfg(feature = "cuda")]
    pub(crate) sm_80: &'static [u8],
    /// Machine code for compute capability 9.0, with the instructions of Hopper alone.
    #[cfg(feature = "cuda")]
    pub(crate) sm_90a: &'static [u8],
}

/// The [`Module`] of a `.cu` file, by its name without the ending.
macro_rules! module {
    ($name:literal) => {
        $crate::device::Module {
            name: $name,
            #[cfg(feature = "cuda")]
            sm_80: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".sm_80.cubin")),
            #[cfg(feature = "cuda")]
            sm_90a: include_bytes!(concat!(env!("OUT_DIR"), "/", $name, ".sm_90a.cubin")),
        }
    };
}
pub(crate) use module;

/// What a GPU and its driver are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// As the driver names it.
    pub name: String,
    /// Compute capability: `9.0`.
    pub capability: String,
    /// Streaming multiprocessors.
    pub multiprocessors: i32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// The latest version of CUDA that the driver knows.
    pub driver_cuda: String,
    /// The version of CUDA this program is built with.
    pub built_with_cuda: String,
}

/// Blocks of a launch along x, y and z.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grid {
    /// Up to 2^31 - 1.
    pub x: u32,
    /// Up to 65,535.
    pub y: u32,
    /// Up to 65,535.
    pub z: u32,
}

impl Grid {
    /// Checks the sizes against the limits of CUDA. `None` if there is nothing to run.
    ///
    /// # Errors
    /// If a size is beyond its limit.
    pub(crate) fn new(what: &str, x: usize, y: usize, z: usize) -> Result<Option<Self>> {
        const MAX_X: usize = i32::MAX as usize;
        const MAX_YZ: usize = u16::MAX as usize;
        if x > MAX_X || y > MAX_YZ || z > MAX_YZ {
            bail!("{what}: a grid of {x} x {y} x {z} blocks is beyond CUDA's {MAX_X} x {MAX_YZ} x {MAX_YZ}");
        }
        Ok((x > 0 && y > 0 && z > 0).then_some(Self { x: x as u32, y: y as u32, z: z as u32 }))
    }
}
