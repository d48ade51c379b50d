//! Sizes that no network has.
//!
//! A damaged config may ask for any number of layers, and they would all be made before it shows that there are no weights
//! for them.

use serde_json::Value;

/// The deepest networks have some hundred.
const MAX_LAYERS: u64 = 1024;
/// Far above the largest vocabularies.
const MAX_SIZE: u64 = 1 << 24;

/// Twice what the longest contexts have; tables of all positions are made.
const MAX_POSITIONS: u64 = 1 << 21;

const LAYERS: &[&str] = &["layers", "num_hidden_layers"];
const SIZES: &[&str] = &[
    "context_length",
    "embed_dim",
    "head_dim",
    "head_width",
    "heads",
    "hidden_size",
    "image_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "patch_size",
    "pooled_grid",
    "projection_dim",
    "vocab_size",
    "width",
];

/// Refuses a size in `config`, or in a table within it, that is beyond all networks.
///
/// # Errors
/// Names the first.
pub(crate) fn check_sizes(config: &Value) -> Result<(), String> {
    let Some(keys) = config.as_object() else { return Ok(()) };
    for (key, value) in keys {
        check_sizes(value)?;
        let max = match key.as_str() {
            key if LAYERS.contains(&key) => MAX_LAYERS,
            "max_position_embeddings" => MAX_POSITIONS,
            key if SIZES.contains(&key) => MAX_SIZE,
            _ => continue,
        };
        if value.as_u64().is_some_and(|size| size > max) {
            return Err(format!("`{key}` is {value}, no network has more than {max}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_beyond_all_networks_are_refused_wherever_they_stand() {
        assert_eq!(
            check_sizes(&json!({"num_hidden_layers": 1024, "vocab_size": 151_936, "seed": 1_u64 << 40})),
            Ok(())
        );
        let error = check_sizes(&json!({"text_config": {"num_hidden_layers": 1025}})).unwrap_err();
        assert_eq!(error, "`num_hidden_layers` is 1025, no network has more than 1024");
        let error = check_sizes(&json!({"max_position_embeddings": 1 << 24})).unwrap_err();
        assert_eq!(error, "`max_position_embeddings` is 16777216, no network has more than 2097152");
        let error = check_sizes(&json!({"model_cfg": {"vision_cfg": {"width": u64::MAX}}})).unwrap_err();
        assert!(error.starts_with("`width` is 18446744073709551615, no network"), "{error}");
    }
}
