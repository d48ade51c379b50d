//! What launch functions refuse before a kernel would go astray.

use crate::Rows;
use candle_core::{Result, bail};

/// Kernels read and write 16 bytes at once.
pub(crate) const ALIGNMENT: u64 = 16;

/// Refuses an address that 16 bytes cannot be read from at once. An empty slice may lie anywhere.
pub(crate) fn check_alignment(what: &str, address: u64, len: usize) -> Result<()> {
    if len > 0 && !address.is_multiple_of(ALIGNMENT) {
        bail!("{what}: the address {address:#x} is not a multiple of {ALIGNMENT} bytes");
    }
    Ok(())
}

/// Refuses sizes that numbers of 32 bits cannot hold.
pub(crate) fn check_sizes(what: &str, sizes: Rows) -> Result<()> {
    const MAX: usize = i32::MAX as usize;
    if sizes.rows > MAX || sizes.cols > MAX {
        bail!("{what}: rows and columns go up to {MAX}, got {sizes:?}");
    }
    Ok(())
}

/// Rows of `cols` elements in so many. Refuses a part of a row, and more rows than numbers of 32 bits hold.
pub(crate) fn num_rows(what: &str, name: &str, len: usize, cols: usize) -> Result<usize> {
    let rows = len / cols.max(1);
    if rows * cols != len {
        bail!("{what}: {name} has {len} elements, which are no rows of {cols}");
    }
    check_sizes(what, Rows { rows, cols })?;
    Ok(rows)
}

/// Refuses an address that no element of the type can have.
pub(crate) fn check_element<T>(what: &str, address: u64) -> Result<()> {
    let size = size_of::<T>();
    if !address.is_multiple_of(size as u64) {
        bail!("{what}: the address {address:#x} is not a multiple of {size} bytes");
    }
    Ok(())
}

/// Whether each row of `cols` elements, of matrices at these addresses, is a whole number of aligned sixteen bytes.
pub(crate) fn rows_are_aligned<T>(cols: usize, addresses: &[u64]) -> bool {
    (cols * size_of::<T>()).is_multiple_of(ALIGNMENT as usize)
        && addresses.iter().all(|address| address.is_multiple_of(ALIGNMENT))
}
