//! What [`Cuda`] is in a program that was built without the feature `cuda`: something that cannot be had, so that programs
//! which use GPUs need not ask how they were built.

use super::{Description, Device, Grid, Kernel, Number, Params, Slice, SliceMut};
use candle_core::{CudaDevice, Result, bail};
use std::marker::PhantomData;

/// A stream of an NVIDIA GPU; there is none in this build.
#[derive(Debug, Clone)]
pub enum Cuda {}

/// Elements in the memory of a GPU; there are none in this build.
#[derive(Debug)]
pub struct CudaBuffer<T> {
    gpu: Cuda,
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

    /// Elements of this program, copied to the GPU.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn upload<T: Number>(&self, _elements: &[T]) -> Result<CudaBuffer<T>> {
        match *self {}
    }

    /// `len` elements whose every byte is `byte`.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn filled<T: Number>(&self, _len: usize, _byte: u8) -> Result<CudaBuffer<T>> {
        match *self {}
    }

    /// Elements of the GPU, copied to this program.
    ///
    /// # Errors
    /// None: there is no GPU to call this with.
    pub fn download<T: Number>(&self, _buffer: &CudaBuffer<T>) -> Result<Vec<T>> {
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

impl<T: Number> CudaBuffer<T> {
    /// To read.
    pub fn slice(&self) -> Slice<'_, Cuda, T> {
        match self.gpu {}
    }

    /// To write.
    pub fn slice_mut(&mut self) -> SliceMut<'_, Cuda, T> {
        match self.gpu {}
    }
}

// SAFETY: there is none.
unsafe impl Device for Cuda {
    unsafe fn launch<P: Params>(&self, _kernel: &Kernel<P>, _grid: Grid, _params: &P) -> Result<()> {
        match *self {}
    }
}
