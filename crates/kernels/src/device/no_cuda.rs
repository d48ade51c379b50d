//! What [`Cuda`] is in a program that was built without the feature `cuda`: something that cannot be had, so that programs
//! which use GPUs need not ask how they were built.

use super::{Description, Device, Grid, Kernel, Memory, Number, Params, Slice, SliceMut};
use candle_core::{CudaDevice, Result, bail};
use half::bf16;
use std::marker::PhantomData;

/// A stream of an NVIDIA GPU; there is none in this build.
#[derive(Debug, Clone)]
pub enum Cuda {}

/// Elements in the memory of a GPU; there are none in this build.
#[derive(Debug)]
pub struct CudaBuffer<T> {
    _gpu: Cuda,
    element: PhantomData<T>,
}

impl Cuda {
    /// Says how to build for GPUs.
    ///
    /// # Errors
    /// Always.
    pub fn new(_ordinal: usize) -> Result<Self> {
        bail!("this program is built without CUDA: `cargo xtask cuda build` builds it with it")
    }

    /// The device for candle's tensors.
    pub fn candle(&self) -> &CudaDevice {
        match *self {}
    }

    /// Copies elements within the GPU.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn copy<T: Number>(&self, _from: &CudaBuffer<T>, _to: &mut CudaBuffer<T>) -> Result<()> {
        match *self {}
    }

    /// Waits until all that was launched has run.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn synchronize(&self) -> Result<()> {
        match *self {}
    }

    /// Seconds that each of `runs` runs of what `work` launches takes.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn seconds(&self, _runs: usize, _work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        match *self {}
    }

    /// What GPU this is.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn description(&self) -> Result<Description> {
        match *self {}
    }
}

impl Memory for Cuda {
    type Half = bf16;
    type Full = f32;
    type Buffer<T: Number> = CudaBuffer<T>;

    fn poisoned<T: Number>(&self, _len: usize) -> Result<CudaBuffer<T>> {
        match *self {}
    }

    fn copy_from_host<T: Number>(&self, _from: &[T], _to: SliceMut<'_, Self, T>) -> Result<()> {
        match *self {}
    }

    fn download<T: Number>(&self, _buffer: &CudaBuffer<T>) -> Result<Vec<T>> {
        match *self {}
    }

    fn slice<'a, T: Number>(&self, _buffer: &'a CudaBuffer<T>) -> Slice<'a, Self, T> {
        match *self {}
    }

    fn slice_mut<'a, T: Number>(&self, _buffer: &'a mut CudaBuffer<T>) -> SliceMut<'a, Self, T> {
        match *self {}
    }
}

// SAFETY: there is none.
unsafe impl Device for Cuda {
    unsafe fn launch<P: Params>(&self, _kernel: &Kernel<P>, _grid: Grid, _params: &P) -> Result<()> {
        match *self {}
    }
}
