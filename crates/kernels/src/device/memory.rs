//! Memory that operations work in, and what is in it.

use candle_core::Result;
use half::bf16;
use std::marker::PhantomData;
use std::ops::Range;

/// What every byte of memory is that nobody has written: a NaN in every type of float, -1 in every integer.
pub const POISON: u8 = 0xff;

/// Memory of one kind, and the types of float that operations have in it.
pub trait Memory: Sized {
    /// Of weights, activations and their gradients: bf16 on a GPU.
    type Half: Float;
    /// Of sums, statistics, the gradients of weights, and the state of the optimizer: f32 on a GPU.
    type Full: Float;
    /// Elements in this memory.
    type Buffer<T: Number>;

    /// `len` elements that nobody has written: every byte is [`POISON`].
    ///
    /// # Errors
    /// If there is not enough memory.
    fn poisoned<T: Number>(&self, len: usize) -> Result<Self::Buffer<T>>;

    /// Overwrites elements by those of this program, which may go away when this returns.
    ///
    /// # Errors
    /// If there are not as many elements in both.
    fn copy_from_host<T: Number>(&self, from: &[T], to: SliceMut<'_, Self, T>) -> Result<()>;

    /// Elements, copied to this program, when all that was asked for before is done.
    ///
    /// # Errors
    /// If something that was asked for before has failed.
    fn download<T: Number>(&self, buffer: &Self::Buffer<T>) -> Result<Vec<T>>;

    /// All elements, to read.
    fn slice<'a, T: Number>(&self, buffer: &'a Self::Buffer<T>) -> Slice<'a, Self, T>;

    /// All elements, to write.
    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut Self::Buffer<T>) -> SliceMut<'a, Self, T>;

    /// Elements of this program, copied to new memory.
    ///
    /// # Errors
    /// If there is not enough memory.
    fn upload<T: Number>(&self, elements: &[T]) -> Result<Self::Buffer<T>> {
        let mut buffer = self.poisoned(elements.len())?;
        self.copy_from_host(elements, self.slice_mut(&mut buffer))?;
        Ok(buffer)
    }
}

/// Numbers that memory is filled with.
///
/// # Safety
/// Any bytes are a value, and every byte of a value is initialised.
pub unsafe trait Number: Copy + Send + Sync + 'static {}

macro_rules! numbers {
    ($($number:ty),*) => {
        $(
            // SAFETY: a plain number.
            unsafe impl Number for $number {}
        )*
    };
}
numbers!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64, half::bf16, half::f16);

/// A float that memory is filled with.
pub trait Float: Number {
    /// The nearest, or infinity.
    fn from_f64(value: f64) -> Self;

    /// The same number.
    fn to_f64(self) -> f64;
}

impl Float for bf16 {
    fn from_f64(value: f64) -> Self {
        Self::from_f64(value)
    }

    fn to_f64(self) -> f64 {
        self.to_f64()
    }
}

impl Float for f32 {
    fn from_f64(value: f64) -> Self {
        value as Self
    }

    fn to_f64(self) -> f64 {
        self.into()
    }
}

impl Float for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn to_f64(self) -> f64 {
        self
    }
}

/// Ties elements to the memory they are in, without holding it.
type On<D> = PhantomData<fn() -> D>;

/// Elements in memory, to read.
pub struct Slice<'a, D, T> {
    address: u64,
    len: usize,
    owner: PhantomData<(&'a [T], On<D>)>,
}

impl<D, T> Clone for Slice<'_, D, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D, T> Copy for Slice<'_, D, T> {}

impl<D, T> Slice<'_, D, T> {
    /// The elements at an address.
    ///
    /// # Safety
    /// `len` elements are there, in memory of `D`, aligned for `T`, and nothing writes them for `'a`. In memory of this process
    /// they are initialised and their provenance is exposed. Memory that nothing goes to may have any address.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, owner: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are, as kernels are told.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Some of them.
    ///
    /// # Panics
    /// If they are not there.
    #[must_use]
    pub fn range(&self, range: Range<usize>) -> Self {
        let address = address_of::<T>(self.address, self.len, &range);
        Self { address, len: range.len(), owner: PhantomData }
    }
}

/// Where a range of `len` elements begins.
fn address_of<T>(address: u64, len: usize, range: &Range<usize>) -> u64 {
    assert!(range.start <= range.end && range.end <= len, "{range:?} of {len} elements");
    // Within memory that is there, or could be: nothing overflows.
    address + (range.start * size_of::<T>()) as u64
}

/// Elements in memory, to write.
pub struct SliceMut<'a, D, T> {
    address: u64,
    len: usize,
    owner: PhantomData<(&'a mut [T], On<D>)>,
}

impl<'a, D, T> SliceMut<'a, D, T> {
    /// The elements at an address.
    ///
    /// # Safety
    /// Memory of `D` for `len` elements is there, aligned for `T`, and nothing else reads or writes it for `'a`; of the outputs of one
    /// launch, nothing else those of its elements that their strides address. In memory of this process elements are initialised
    /// and their provenance is exposed; in that of a device, what a launch function says that it writes whole needs no content
    /// before. Memory that nothing goes to may have any address.
    pub unsafe fn from_raw(address: u64, len: usize) -> Self {
        Self { address, len, owner: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where they are, as kernels are told.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The same elements to read, while this is borrowed.
    pub fn as_slice(&self) -> Slice<'_, D, T> {
        Slice { address: self.address, len: self.len, owner: PhantomData }
    }

    /// The same elements, for as long as this is borrowed.
    pub fn reborrow(&mut self) -> SliceMut<'_, D, T> {
        self.range(0..self.len)
    }

    /// Some of them, for as long as this is borrowed.
    ///
    /// # Panics
    /// If they are not there.
    pub fn range(&mut self, range: Range<usize>) -> SliceMut<'_, D, T> {
        let address = address_of::<T>(self.address, self.len, &range);
        SliceMut { address, len: range.len(), owner: PhantomData }
    }

    /// Those before `mid`, and those from there on.
    ///
    /// # Panics
    /// If there are fewer.
    #[must_use]
    pub fn split_at(self, mid: usize) -> (SliceMut<'a, D, T>, SliceMut<'a, D, T>) {
        let address = address_of::<T>(self.address, self.len, &(mid..self.len));
        let left = SliceMut { address: self.address, len: mid, owner: PhantomData };
        (left, SliceMut { address, len: self.len - mid, owner: PhantomData })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::CpuRef;

    #[test]
    fn parts_of_slices_are_where_they_belong() {
        let memory = CpuRef::<f64>::default();
        let mut buffer = memory.upload(&[1i32, 2, 3, 4, 5]).unwrap();
        assert_eq!(memory.slice(&buffer).range(1..3).range(1..2).elements(), [3]);
        assert!(memory.slice(&buffer).range(5..5).is_empty());
        let (mut left, mut right) = memory.slice_mut(&mut buffer).split_at(2);
        left.range(1..2).reborrow().elements_mut()[0] = 20;
        right.reborrow().elements_mut()[2] = 50;
        assert_eq!((left.len(), right.len(), right.as_slice().elements()), (2, 3, &[3, 4, 50][..]));
        assert_eq!(memory.download(&buffer).unwrap(), [1, 20, 3, 4, 50]);
    }

    #[test]
    #[should_panic(expected = "2..6 of 5 elements")]
    fn parts_beyond_the_end_are_refused() {
        let memory = CpuRef::<f32>::default();
        let buffer = memory.poisoned::<f32>(5).unwrap();
        let _ = memory.slice(&buffer).range(2..6);
    }

    #[test]
    fn memory_that_nobody_has_written_is_nan() {
        let memory = CpuRef::<f32>::default();
        assert!(memory.download(&memory.poisoned::<f64>(3).unwrap()).unwrap().iter().all(|x| x.is_nan()));
        assert_eq!(memory.download(&memory.poisoned::<i32>(2).unwrap()).unwrap(), [-1, -1]);
    }
}
