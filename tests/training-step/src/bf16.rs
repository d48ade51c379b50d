//! How far a run in bf16 may be from that of PyTorch in f32.

use crate::{Example, Run};

/// What losses and parameters may be off by, and, as a share, norms of gradients.
const MAX_ERROR: f64 = 2e-2;
/// What the gradient of a tensor may be off by, as a share of it.
const MAX_OF_TENSOR: f64 = 3e-2;
/// And as a share of all gradients, where those of a tensor all but cancel, as of the biases of keys.
const MAX_OF_ALL: f64 = 1e-4;
/// What all parameters may be off by, as a share of the way they went.
const MAX_OF_WAY: f64 = 0.1;

/// What is further off than rounding to bf16 allows, in words.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BeyondBf16 {
    /// Of losses.
    pub losses: Vec<String>,
    /// Of norms of gradients.
    pub gradient_norms: Vec<String>,
    /// Of gradients of the first step.
    pub gradients: Vec<String>,
    /// Of parameters after the last. Nothing of a run that ended before.
    pub parameters: Vec<String>,
}

impl Example {
    /// Holds the first steps of a run in bf16, or all, against PyTorch's in f32.
    #[must_use]
    pub fn beyond_bf16(&self, found: &Run) -> BeyondBf16 {
        let expected = self.expected();
        let mut beyond = BeyondBf16::default();
        // Not a number is not below a bound either.
        let is_near = |(found, expected): (&f64, &f64)| (found - expected).abs() < MAX_ERROR;
        if !found.losses.iter().zip(&expected.losses).all(is_near) {
            beyond.losses.push(format!("a loss is off by {MAX_ERROR} or more"));
        }
        let norms = found.gradient_norms.iter().zip(&expected.gradient_norms);
        if !norms.into_iter().all(|(found, expected)| is_near((&(found / expected), &1.0))) {
            beyond.gradient_norms.push(format!("a norm is off by a share of {MAX_ERROR} or more"));
        }
        for (name, range) in self.tensors() {
            let expected_gradient = &expected.gradients[range.clone()];
            let error = norm_of_difference(&found.gradients[range], expected_gradient);
            let norm = norm(expected_gradient.iter().copied());
            let is_close = error < MAX_OF_TENSOR * norm + MAX_OF_ALL * expected.gradient_norms[0];
            if !is_close {
                let share = error / norm;
                beyond.gradients.push(format!("the gradient of {name} is off by {share:.1e}"));
            }
        }
        if found.losses.len() == expected.losses.len() {
            beyond.parameters.extend(self.parameters_beyond(&found.parameters));
        }
        beyond
    }

    fn parameters_beyond(&self, found: &[f64]) -> Option<String> {
        let expected = &self.expected().parameters;
        if !found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < MAX_ERROR) {
            return Some(format!("a parameter is off by {MAX_ERROR} or more"));
        }
        // Of the way that parameters went, not of where they are.
        let share = norm_of_difference(found, expected) / norm_of_difference(expected, self.initial());
        let is_close = share < MAX_OF_WAY;
        (!is_close).then(|| format!("parameters are off by {share:.1e} of the way they went"))
    }
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

fn norm_of_difference(left: &[f64], right: &[f64]) -> f64 {
    norm(left.iter().zip(right).map(|(left, right)| left - right))
}
