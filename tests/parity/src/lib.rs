//! Parity: the networks, the tokenizers and the image transforms, held against what the Python originals made of the same
//! weights and inputs.
//!
//! A *fixture* is a small random network with inputs and outputs of its original, below `crates/model/tests/fixtures`,
//! where `cargo xtask fixtures` makes them. Measuring it gives [`Row`]s: what was compared, how far off it is, the bound
//! and whether it is kept. `cargo xtask parity` prints them, and the test of this package asserts on them.
//!
//! The error of a tensor is its largest difference from the original's, over the original's largest value:
//!
//! ```
//! use oqvl_parity::relative_error;
//!
//! assert_eq!(relative_error(&[1.0, -4.0], &[1.5, -4.0]), 0.125);
//! assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY);
//! ```

mod fixture;
mod networks;
mod pixels;
mod row;
mod tokens;

pub use row::{Equal, Row, relative_error};

/// Everything that this machine can measure. What it cannot is said by `skip`, one sentence each.
///
/// # Errors
/// If a fixture cannot be read or its network not be run.
pub fn measure(mut skip: impl FnMut(String)) -> anyhow::Result<Vec<Row>> {
    let mut rows = networks::measure()?;
    rows.extend(pixels::measure()?);
    rows.extend(tokens::measure(&mut skip)?);
    Ok(rows)
}
