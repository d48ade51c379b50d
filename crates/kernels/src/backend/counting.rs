//! What a sequence of operations costs, before any of it is done.

use super::Products;
use crate::device::{Cost, Device, Grid, Kernel, Memory, Number, Params, Slice, SliceMut};
use crate::gemm::{Gemm, GemmOutput};
use candle_core::{Result, bail};
use half::bf16;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::marker::PhantomData;

/// A device that starts nothing: it adds up the memory that is taken of it, and what each operation would have to compute,
/// read and write on a GPU. Lengths and alignment are checked as there. So a run's memory, and about the least time of its step,
/// are known before it begins.
#[derive(Debug, Default)]
pub struct Counting {
    memory: Cell<usize>,
    counts: RefCell<BTreeMap<&'static str, Count>>,
}

/// What all calls of one operation cost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Count {
    /// How often it was called.
    pub calls: usize,
    /// Of all calls.
    pub cost: Cost,
}

/// So many elements that are not there.
#[derive(Debug)]
pub struct CountedBuffer<T> {
    len: usize,
    element: PhantomData<T>,
}

impl Counting {
    /// Bytes of all memory that was taken.
    pub fn memory_bytes(&self) -> usize {
        self.memory.get()
    }

    /// What was asked for since the last call of this, by operation.
    pub fn take_counts(&self) -> BTreeMap<&'static str, Count> {
        self.counts.take()
    }
}

impl Memory for Counting {
    type Half = bf16;
    type Full = f32;
    type Buffer<T: Number> = CountedBuffer<T>;

    fn poisoned<T: Number>(&self, len: usize) -> Result<CountedBuffer<T>> {
        let bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(self.memory.get()));
        let Some(bytes) = bytes else { bail!("{len} elements are more than can be counted") };
        self.memory.set(bytes);
        Ok(CountedBuffer { len, element: PhantomData })
    }

    fn copy_from_host<T: Number>(&self, from: &[T], to: SliceMut<'_, Self, T>) -> Result<()> {
        if from.len() != to.len() {
            bail!("{} elements cannot be copied to {}", from.len(), to.len());
        }
        Ok(())
    }

    /// # Errors
    /// Always: nothing is there.
    fn download<T: Number>(&self, _: &CountedBuffer<T>) -> Result<Vec<T>> {
        bail!("nothing was computed, only counted")
    }

    fn slice<'a, T: Number>(&self, buffer: &'a CountedBuffer<T>) -> Slice<'a, Self, T> {
        // SAFETY: this memory has no elements, and nothing of this device goes to one.
        unsafe { Slice::from_raw(0, buffer.len) }
    }

    fn slice_mut<'a, T: Number>(&self, buffer: &'a mut CountedBuffer<T>) -> SliceMut<'a, Self, T> {
        // SAFETY: as for `slice`.
        unsafe { SliceMut::from_raw(0, buffer.len) }
    }
}

// SAFETY: no kernel runs.
unsafe impl Device for Counting {
    unsafe fn launch<P: Params>(&self, _: &Kernel<P>, _: Grid, _: &P) -> Result<()> {
        Ok(())
    }

    fn record(&self, operation: &'static str, cost: impl FnOnce() -> Cost) {
        let mut counts = self.counts.borrow_mut();
        let count = counts.entry(operation).or_default();
        let Cost { operations, bytes } = cost();
        count.calls += 1;
        count.cost.operations += operations;
        count.cost.bytes += bytes;
    }
}

impl Products for Counting {
    fn product<O: GemmOutput>(
        &self,
        gemm: &Gemm,
        (a, b): (Slice<'_, Self, bf16>, Slice<'_, Self, bf16>),
        bias: Option<Slice<'_, Self, O>>,
        d: SliceMut<'_, Self, O>,
    ) -> Result<()> {
        gemm.check_slices(a, b, bias, &d)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Rows;
    use crate::backend::Backend as _;

    #[test]
    fn products_and_memory_are_counted() {
        let counting = Counting::default();
        let [x, w] = [12, 20].map(|len| counting.poisoned::<bf16>(len).unwrap());
        let mut y = counting.poisoned::<f32>(15).unwrap();
        assert_eq!(counting.memory_bytes(), 2 * 32 + 4 * 15);
        let operands = (counting.slice(&x), counting.slice(&w));
        let gemm = Gemm::new(3, 5, 4).accumulating();
        counting.gemm_full(&gemm, operands, counting.slice_mut(&mut y)).unwrap();
        let counts = counting.take_counts();
        let cost = Cost { operations: 120.0, bytes: f64::from(2 * 32 + 2 * 4 * 15) };
        assert_eq!(counts["gemm"], Count { calls: 1, cost });
        assert!(counting.take_counts().is_empty());
        let error = counting.download(&y).unwrap_err().to_string();
        assert!(error.contains("only counted"), "{error}");
    }

    #[test]
    fn what_does_not_fit_is_refused_as_on_a_gpu() {
        let counting = Counting::default();
        let [x, mut y] = [64, 40].map(|len| counting.poisoned::<bf16>(len).unwrap());
        let refusal = counting.swiglu_forward(
            Rows { rows: 4, cols: 8 },
            counting.slice(&x),
            counting.slice_mut(&mut y),
        );
        assert!(refusal.unwrap_err().to_string().contains("h has 40 elements"));
        let mut unaligned = counting.slice_mut(&mut y);
        let rows = Rows { rows: 4, cols: 8 };
        let refusal = counting.swiglu_forward(rows, counting.slice(&x), unaligned.range(1..33));
        assert!(refusal.unwrap_err().to_string().contains("not a multiple of 16"));
        let operands = (counting.slice(&x), counting.slice(&x));
        let mut y = counting.poisoned::<f32>(9).unwrap();
        let refusal = counting.gemm_full(&Gemm::new(2, 5, 4), operands, counting.slice_mut(&mut y));
        assert!(refusal.unwrap_err().to_string().contains("D of 2 x 5"));
    }
}
