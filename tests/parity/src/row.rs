//! What one comparison has shown.

use serde::Serialize;

/// Largest error of float32 against the original in float32.
const F32_BOUND: f64 = 1e-5;
/// How many times the error of PyTorch's own bfloat16 ours may have, both against the original in float32.
const BF16_FACTOR: f64 = 2.0;

/// One comparison.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// The kind of network or table.
    pub architecture: &'static str,
    /// The fixture below `crates/model/tests/fixtures`, or the file beside the checkout.
    pub fixture: String,
    /// Type of weights and activations; `-` where there are none.
    pub dtype: &'static str,
    /// The output that is compared.
    pub what: String,
    /// Error of a tensor, as [`relative_error`] has it; none for a sequence.
    pub max_error: Option<f64>,
    /// What the error may be at most.
    pub bound: Option<f64>,
    /// In bfloat16, the error that PyTorch itself has.
    pub pytorch_error: Option<f64>,
    /// For sequences, how much of them is equal; all of it must be.
    pub equal: Option<Equal>,
    /// Whether the bound is kept.
    pub passed: bool,
}

/// Items that are the original's, of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Equal {
    /// Equal ones.
    pub num_equal: usize,
    /// All.
    pub num_items: usize,
}

impl Equal {
    /// Counts equal items; a different number of them counts as different items.
    pub(crate) fn of<T: PartialEq>(found: &[T], expected: &[T]) -> Self {
        let num_equal = found.iter().zip(expected).filter(|(found, expected)| found == expected).count();
        Self { num_equal, num_items: found.len().max(expected.len()) }
    }
}

/// Where a row belongs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) architecture: &'static str,
    pub(crate) fixture: String,
}

impl Place {
    /// A tensor in float32.
    pub(crate) fn f32(&self, what: &str, found: &[f32], expected: &[f32]) -> Row {
        let error = relative_error(found, expected);
        Row { max_error: Some(error), ..self.row("f32", what, F32_BOUND, error) }
    }

    /// A tensor in bfloat16, beside PyTorch's.
    pub(crate) fn bf16(&self, what: &str, found: &[f32], pytorch: &[f32], truth: &[f32]) -> Row {
        let (error, pytorch) = (relative_error(found, truth), relative_error(pytorch, truth));
        Row {
            max_error: Some(error),
            pytorch_error: Some(pytorch),
            ..self.row("bf16", what, BF16_FACTOR * pytorch, error)
        }
    }

    /// A sequence.
    pub(crate) fn sequence(&self, dtype: &'static str, what: &str, equal: Equal) -> Row {
        let passed = equal.num_equal == equal.num_items && equal.num_items > 0;
        Row { bound: None, equal: Some(equal), passed, ..self.row(dtype, what, 0.0, 0.0) }
    }

    fn row(&self, dtype: &'static str, what: &str, bound: f64, error: f64) -> Row {
        Row {
            architecture: self.architecture,
            fixture: self.fixture.clone(),
            dtype,
            what: what.to_owned(),
            max_error: None,
            bound: Some(bound),
            pytorch_error: None,
            equal: None,
            passed: error <= bound,
        }
    }
}

/// `max |found - expected| / max |expected|`; infinite if the lengths differ or a value is not a number.
#[must_use]
pub fn relative_error(found: &[f32], expected: &[f32]) -> f64 {
    let all_finite = found.iter().chain(expected).all(|value| value.is_finite());
    if found.len() != expected.len() || !all_finite {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(0.0, |largest, value| f64::max(largest, f64::from(value.abs())));
    let differences = found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    match differences.fold(0.0, f64::max) {
        0.0 => 0.0,
        difference => difference / largest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_its_bound_does_not_pass() {
        let place = Place { architecture: "a", fixture: "b/c".to_owned() };
        let truth = [100.0, -3.0];
        assert!(place.f32("x", &[100.0009, -3.0], &truth).passed);
        assert!(!place.f32("x", &[100.0011, -3.0], &truth).passed);
        assert!(!place.f32("x", &[f32::NAN, -3.0], &truth).passed);
        assert!(!place.f32("x", &[100.0], &truth).passed);
        assert!(place.bf16("x", &[101.9, -3.0], &[99.0, -3.0], &truth).passed);
        assert!(!place.bf16("x", &[102.1, -3.0], &[99.0, -3.0], &truth).passed);
        assert!(!place.bf16("x", &[100.1, -3.0], &truth, &truth).passed);
        assert!(place.sequence("-", "x", Equal::of(&[1, 2], &[1, 2])).passed);
        for (found, expected) in [(&[1, 2][..], &[1, 3][..]), (&[1], &[1, 2]), (&[1, 2], &[1]), (&[], &[])] {
            assert!(!place.sequence("-", "x", Equal::of(found, expected)).passed);
        }
        assert_eq!(relative_error(&[1.0], &[0.0]), f64::INFINITY);
    }
}
