//! Ranges of the numbers that shape a network, wherever its config is from.
//!
//! Outside of them a network computes no numbers, and its weights would get the blame.

use crate::ModelError;
use std::ops::RangeInclusive;

/// Published networks have 1e-5 and 1e-6. Its inverse root is still a number where a norm is of nothing but zeros.
const NORM_EPS: RangeInclusive<f64> = 1e-30..=1.0;
/// A base of 1 turns all features alike; the longest contexts have some ten millions.
const ROPE_THETA: RangeInclusive<f64> = 1.0..=1e12;

/// # Errors
/// If `eps`, the key `key` of the config of `part`, is none of a norm.
pub(crate) fn check_norm_eps(part: &str, key: &str, eps: f64) -> Result<(), ModelError> {
    check_range(&format!("{part}: `{key}`"), eps, &NORM_EPS).map_err(ModelError::Config)
}

/// # Errors
/// If `theta` is no base of rotary angles.
pub(crate) fn check_rope_theta(part: &str, theta: f64) -> Result<(), ModelError> {
    check_range(&format!("{part}: `rope_theta`"), theta, &ROPE_THETA).map_err(ModelError::Config)
}

/// # Errors
/// If `value` is out of its range, or no number; says so of `name`.
pub(crate) fn check_range(name: &str, value: f64, range: &RangeInclusive<f64>) -> Result<(), String> {
    // Not a comparison with either end: a NaN is in no range.
    if range.contains(&value) {
        return Ok(());
    }
    let (min, max) = (range.start(), range.end());
    Err(format!("{name} must be from {min:?} to {max:?}, got {value:?}"))
}

/// # Errors
/// If there is no token, or no position for one.
pub(crate) fn check_vocabulary(
    part: &str,
    vocab_size: usize,
    num_positions: usize,
) -> Result<(), ModelError> {
    if vocab_size == 0 || num_positions == 0 {
        return Err(ModelError::Config(format!(
            "{part}: vocab_size and max_position_embeddings must be at least 1, got {vocab_size} and {num_positions}"
        )));
    }
    Ok(())
}

/// # Errors
/// If `hidden_size` is not `heads` heads of one width.
pub(crate) fn check_heads(part: &str, heads: usize, hidden_size: usize) -> Result<(), ModelError> {
    if heads == 0 || !hidden_size.is_multiple_of(heads) {
        return Err(ModelError::Config(format!(
            "{part}: {heads} heads do not divide hidden_size {hidden_size}"
        )));
    }
    Ok(())
}

/// # Errors
/// If no whole patch fits into the image, both of so many pixels along an edge.
pub(crate) fn check_patches(part: &str, image_size: usize, patch_size: usize) -> Result<(), ModelError> {
    if patch_size == 0 || image_size < patch_size {
        return Err(ModelError::Config(format!(
            "{part}: image_size {image_size} holds no patch of {patch_size}"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_gives_no_numbers_is_named_with_its_range() {
        for eps in [1e-6, 1e-5, 1e-12, 1.0] {
            check_norm_eps("text", "layer_norm_eps", eps).unwrap();
        }
        for eps in [-1.0, 0.0, 1e-40, 2.0, f64::NAN, f64::INFINITY] {
            let error = check_norm_eps("text", "layer_norm_eps", eps).unwrap_err().to_string();
            let expected = format!("config: text: `layer_norm_eps` must be from 1e-30 to 1.0, got {eps:?}");
            assert_eq!(error, expected);
        }
        for theta in [1e4, 1e6, 1e9] {
            check_rope_theta("language model", theta).unwrap();
        }
        for theta in [0.0, -1e4, 1e300, f64::NAN] {
            let error = check_rope_theta("language model", theta).unwrap_err().to_string();
            assert!(error.starts_with("config: language model: `rope_theta` must be from 1.0 to"), "{error}");
        }
        check_vocabulary("text", 1, 1).unwrap();
        assert!(check_vocabulary("text", 0, 1).is_err() && check_vocabulary("text", 1, 0).is_err());
        assert!(check_heads("vision", 0, 8).is_err() && check_heads("vision", 3, 8).is_err());
        assert!(check_patches("vision", 8, 0).is_err() && check_patches("vision", 8, 9).is_err());
    }
}
