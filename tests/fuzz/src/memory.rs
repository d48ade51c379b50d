//! How much memory one input takes: every allocation of the process is counted.

use peak_alloc::PeakAlloc;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// Bytes allocated above what there was, at the highest point since [`Watermark::set`].
///
/// Counts what Rust allocates, of all threads; what a C library takes for itself is bounded by the limit on the address
/// space that `cargo xtask fuzz` sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Watermark {
    before: usize,
}

impl Watermark {
    /// Starts counting here.
    pub(crate) fn set() -> Self {
        ALLOCATOR.reset_peak_usage();
        Self { before: ALLOCATOR.current_usage() }
    }

    /// The highest point since then.
    pub(crate) fn bytes(self) -> usize {
        ALLOCATOR.peak_usage().saturating_sub(self.before)
    }
}
