//! How much memory one input takes: every allocation of the process is counted.

use peak_alloc::PeakAlloc;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// There is one count for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Bytes allocated above what there was, at the highest point since [`Watermark::set`].
///
/// Counts what Rust allocates, of all threads; what a C library takes for itself is bounded by the limit on the address
/// space that `cargo xtask fuzz` sets. A second thread that sets one waits until the first is gone.
#[derive(Debug)]
pub(crate) struct Watermark {
    before: usize,
    _only: MutexGuard<'static, ()>,
}

impl Watermark {
    /// Starts counting here.
    pub(crate) fn set() -> Self {
        let only = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        ALLOCATOR.reset_peak_usage();
        Self { before: ALLOCATOR.current_usage(), _only: only }
    }

    /// The highest point since then.
    pub(crate) fn bytes(&self) -> usize {
        ALLOCATOR.peak_usage().saturating_sub(self.before)
    }
}
