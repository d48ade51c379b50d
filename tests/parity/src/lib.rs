//! Parity: the networks, the tokenizers and the image transforms, held against what the Python originals made of the same
//! weights and inputs.
//!
//! A *fixture* is a small random network with inputs and outputs of its original, below `crates/model/tests/fixtures`,
//! where `cargo xtask fixtures` makes them. Measuring it gives [`Row`]s: what was compared, how far off it is, the bound
//! and whether it is kept. `cargo xtask parity` prints them and fails if
//! one of them is not kept.
//!
//! The error of a tensor is its largest difference from the original's, over the original's largest value:
//!
//! ```
//! use oqvl_parity::relative_error;
//!
//! assert_eq!(relative_error(&[1.0, -4.0], &[1.5, -4.0]), 0.125);
//! assert_eq!(relative_error(&[f32::NAN], &[1.0]), f64::INFINITY);
//! ```

mod exports;
mod fixture;
mod networks;
mod pixels;
mod prompts;
mod row;
mod tokens;

use std::path::Path;

pub use row::{Equal, Row, relative_error};

/// Rows of all committed fixtures: one that went missing unnoticed would be one that always keeps its bound.
const NUM_COMMITTED: usize = 164;

/// Everything that this machine can measure; exported folders with `python`, an interpreter that has transformers. What
/// cannot be measured is said by `skip`, one sentence each.
///
/// # Errors
/// If a fixture is missing, cannot be read, or its network not be run; or if transformers refuses an exported folder.
pub fn measure(python: Option<&Path>, mut skip: impl FnMut(String)) -> anyhow::Result<Vec<Row>> {
    let mut rows = networks::measure()?;
    rows.extend(pixels::measure()?);
    anyhow::ensure!(
        rows.len() == NUM_COMMITTED,
        "{} gives {} rows instead of {NUM_COMMITTED}: where a fixture was added, change NUM_COMMITTED",
        fixture::root().display(),
        rows.len()
    );
    rows.extend(tokens::measure(&mut skip)?);
    rows.extend(exports::measure(python, &mut skip)?);
    Ok(rows)
}
