//! Memory of the emulated device.

use oqvl_kernels::device::Number;
use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// CUDA aligns to 256 bytes; kernels may count on 16.
const ALIGNMENT: usize = 16;
/// A NaN in every type of float.
const POISON: u8 = 0xff;

/// Elements in an allocation of their own: 16 bytes aligned, and not a byte longer than they are, so that the address sanitizer
/// sees the first byte too many.
pub struct Buffer<T: Number> {
    start: NonNull<T>,
    len: usize,
}

impl<T: Number> Buffer<T> {
    /// Elements that nobody has written: every byte is 0xff, which is NaN as a float.
    ///
    /// # Panics
    /// If they do not fit into memory.
    #[must_use]
    pub fn poisoned(len: usize) -> Self {
        let layout = layout::<T>(len);
        if layout.size() == 0 {
            let start = NonNull::new(std::ptr::without_provenance_mut(ALIGNMENT)).expect("not zero");
            return Self { start, len };
        }
        // SAFETY: the size is not zero.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start.cast::<T>()) else { handle_alloc_error(layout) };
        // SAFETY: as many bytes were just allocated.
        unsafe { start.cast::<u8>().write_bytes(POISON, layout.size()) };
        Self { start, len }
    }
}

fn layout<T>(len: usize) -> Layout {
    let layout = Layout::array::<T>(len).and_then(|layout| layout.align_to(ALIGNMENT));
    layout.expect("a buffer fits into memory")
}

impl<T: Number> Drop for Buffer<T> {
    fn drop(&mut self) {
        let layout = layout::<T>(self.len);
        if layout.size() > 0 {
            // SAFETY: allocated with this layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}

impl<T: Number> Deref for Buffer<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: allocated for `len` elements, and any bytes are a value.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Number> DerefMut for Buffer<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl<T: Number> From<&[T]> for Buffer<T> {
    fn from(elements: &[T]) -> Self {
        let mut buffer = Self::poisoned(elements.len());
        buffer.copy_from_slice(elements);
        buffer
    }
}

impl<T: Number> FromIterator<T> for Buffer<T> {
    fn from_iter<I: IntoIterator<Item = T>>(elements: I) -> Self {
        Self::from(elements.into_iter().collect::<Vec<T>>().as_slice())
    }
}

impl<T: Number> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self::from(&**self)
    }
}

impl<T: Number + fmt::Debug> fmt::Debug for Buffer<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

// SAFETY: it owns its elements, which may go to any thread.
unsafe impl<T: Number> Send for Buffer<T> {}
// SAFETY: shared, it only lets read.
unsafe impl<T: Number> Sync for Buffer<T> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_poisoned() {
        for len in [0, 1, 3, 1000] {
            let buffer = Buffer::<half::bf16>::poisoned(len);
            assert_eq!((buffer.len(), buffer.as_ptr().addr() % ALIGNMENT), (len, 0));
            assert!(buffer.iter().all(|x| x.is_nan()));
        }
        let copy: Buffer<i32> = (0..5).collect();
        assert_eq!(copy.clone()[..], [0, 1, 2, 3, 4]);
    }
}
