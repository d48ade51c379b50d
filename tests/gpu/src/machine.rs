//! Where operations are checked: a GPU, and in the tests of this program the emulation of one.

use candle_core::Result;
use half::bf16;
use oqvl_kernels::device::{Cuda, CudaBuffer, Device, Number, Slice, SliceMut};
use oqvl_kernels::gemm::{Gemm, GemmOutput};

/// What a byte of memory is that nobody has written: a NaN in every type of float.
pub(crate) const POISON: u8 = 0xff;

/// A device with its memory.
pub(crate) trait Machine {
    /// Runs kernels.
    type Device: Device;
    /// Elements in its memory.
    type Buffer<T: Number>;

    fn device(&self) -> &Self::Device;
    fn upload<T: Number>(&self, elements: &[T]) -> Result<Self::Buffer<T>>;
    /// Elements that nobody has written.
    fn poisoned<T: Number>(&self, len: usize) -> Result<Self::Buffer<T>>;
    /// Waits for what was launched.
    fn download<T: Number>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;
    fn slice<'a, T: Number>(&self, buffer: &'a Self::Buffer<T>) -> Slice<'a, Self::Device, T>;
    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut Self::Buffer<T>) -> SliceMut<'a, Self::Device, T>;
    /// A product, by the library that the device has for it.
    fn gemm<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        operands: (Slice<'_, Self::Device, bf16>, Slice<'_, Self::Device, bf16>),
        bias: Option<Slice<'_, Self::Device, O>>,
        d: SliceMut<'_, Self::Device, O>,
    ) -> Result<()>;
}

impl Machine for Cuda {
    type Device = Self;
    type Buffer<T: Number> = CudaBuffer<T>;

    fn device(&self) -> &Self {
        self
    }

    fn upload<T: Number>(&self, elements: &[T]) -> Result<CudaBuffer<T>> {
        self.upload(elements)
    }

    fn poisoned<T: Number>(&self, len: usize) -> Result<CudaBuffer<T>> {
        self.filled(len, POISON)
    }

    fn download<T: Number>(&self, buffer: &CudaBuffer<T>) -> Result<Vec<T>> {
        self.download(buffer)
    }

    fn slice<'a, T: Number>(&self, buffer: &'a CudaBuffer<T>) -> Slice<'a, Self, T> {
        buffer.slice()
    }

    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut CudaBuffer<T>) -> SliceMut<'a, Self, T> {
        buffer.slice_mut()
    }

    fn gemm<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        (a, b): (Slice<'_, Self, bf16>, Slice<'_, Self, bf16>),
        bias: Option<Slice<'_, Self, O>>,
        d: SliceMut<'_, Self, O>,
    ) -> Result<()> {
        oqvl_kernels::gemm::gemm(self, gemm, a, b, bias, d)
    }
}
