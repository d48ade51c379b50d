//! What else a training step does to every element of a buffer: sums, casts, fills.

mod launch;
mod sys;

pub use launch::{add, add_assign, fill, narrow, widen};

use crate::element::Element;
use candle_core::{Result, bail};

/// `to = left + right` on the CPU.
///
/// # Errors
/// If lengths differ.
pub fn reference_add<T: Element>(left: &[T], right: &[T], to: &mut [T]) -> Result<()> {
    if left.len() != to.len() || right.len() != to.len() {
        bail!("elementwise: buffers of {}, {} and {} elements", left.len(), right.len(), to.len());
    }
    to.iter_mut().zip(left).zip(right).for_each(|((to, left), right)| *to = *left + *right);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_element_by_element() {
        let mut to = [f32::NAN; 3];
        reference_add(&[1.0, 2.0, 3.0], &[10.0, 20.0, -3.0], &mut to).unwrap();
        assert_eq!(to, [11.0, 22.0, 0.0]);
        let error = reference_add(&[1.0f32], &[1.0, 2.0], &mut to).unwrap_err().to_string();
        assert!(error.contains("buffers of 1, 2 and 3 elements"), "{error}");
    }
}
