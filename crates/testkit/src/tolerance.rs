//! How close is close enough.

/// Largest accepted difference: `absolute + relative * |expected|`, element by element.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// The part that does not depend on the value.
    pub absolute: f32,
    /// The part that grows with the expected value.
    pub relative: f32,
}

impl Tolerance {
    /// Two f32 computations that differ in the order of their sums.
    pub const F32: Tolerance = Tolerance { absolute: 1e-5, relative: 1e-5 };
}

/// Asserts that `actual` and `expected` have the same length and agree within `tolerance`.
///
/// # Panics
/// If they do not, naming the element that is furthest out of tolerance. A NaN agrees with nothing.
#[track_caller]
pub fn assert_close(actual: &[f32], expected: &[f32], tolerance: Tolerance) {
    assert_eq!(actual.len(), expected.len(), "lengths differ");
    let mut worst: Option<(usize, f32)> = None;
    for (index, (&a, &e)) in actual.iter().zip(expected).enumerate() {
        let allowed = tolerance.absolute + tolerance.relative * e.abs();
        let excess = if a.is_nan() || e.is_nan() { f32::INFINITY } else { (a - e).abs() - allowed };
        if excess > 0.0 && worst.is_none_or(|(_, most)| excess > most) {
            worst = Some((index, excess));
        }
    }
    if let Some((index, excess)) = worst {
        panic!(
            "element {index} of {}: got {}, expected {}, {excess} beyond {tolerance:?}",
            actual.len(),
            actual[index],
            expected[index]
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agree(actual: &[f32], expected: &[f32]) -> bool {
        std::panic::catch_unwind(|| assert_close(actual, expected, Tolerance::F32)).is_ok()
    }

    #[test]
    fn agrees_within_the_tolerance_only() {
        assert!(agree(&[], &[]));
        assert!(agree(&[1.0, 0.0, -1e6], &[1.000_01, 5e-6, -1e6 - 1.0]));
        assert!(!agree(&[1.0], &[1.0, 1.0]));
        assert!(!agree(&[1.0], &[1.001]));
        assert!(!agree(&[f32::NAN], &[f32::NAN]));
        assert!(!agree(&[f32::NAN], &[0.0]));
        assert!(!agree(&[f32::INFINITY], &[0.0]));
    }

    #[test]
    #[should_panic(expected = "element 2 of 3")]
    fn names_the_worst_element() {
        assert_close(&[0.0, 1.0, 9.0], &[0.0, 1.1, 0.0], Tolerance::F32);
    }
}
