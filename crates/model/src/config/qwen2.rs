//! Hugging Face's `Qwen2Config`, of transformers 4 and 5.

use super::Keys;
use crate::qwen2::Qwen2Config;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Windows of attention, which must be off, and the end of a text, which is the tokenizer's to say.
const PASSED_OVER: &[&str] = &["eos_token_id", "sliding_window"];

/// `rope_parameters` of transformers 5; before it was `rope_theta` and, for anything special, `rope_scaling`.
#[derive(Debug, Deserialize)]
struct RopeParameters {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// Before transformers 4.43; later ones may write both.
    r#type: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl TryFrom<Map<String, Value>> for Qwen2Config {
    type Error = String;

    /// Keys of ours or of Hugging Face's; the defaults are transformers'.
    fn try_from(keys: Map<String, Value>) -> Result<Self, String> {
        let mut keys = Keys::new(keys);
        keys.only("model_type", "qwen2")?;
        let config = Self::take_from(&mut keys)?;
        keys.finish()?;
        Ok(config)
    }
}

impl Qwen2Config {
    /// Takes the keys of a language model out of a table that may have others.
    pub(super) fn take_from(keys: &mut Keys) -> Result<Self, String> {
        let num_hidden_layers = keys.take_or("num_hidden_layers", 32)?;
        let num_attention_heads = keys.take_or("num_attention_heads", 32)?;
        let config = Self {
            vocab_size: keys.take_or("vocab_size", 151_936)?,
            hidden_size: keys.take_or("hidden_size", 4096)?,
            intermediate_size: keys.take_or("intermediate_size", 22_016)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads: keys.take_or("num_key_value_heads", num_attention_heads)?,
            max_position_embeddings: keys.take_or("max_position_embeddings", 32_768)?,
            rope_theta: rope_theta(keys)?,
            rms_norm_eps: keys.take_or("rms_norm_eps", 1e-6)?,
            tie_word_embeddings: keys.take_or("tie_word_embeddings", false)?,
        };
        keys.only("hidden_act", "silu")?;
        keys.only("use_mrope", false)?;
        if let Some(head_dim) = keys.take::<usize>("head_dim")?
            && head_dim.checked_mul(num_attention_heads) != Some(config.hidden_size)
        {
            let hidden = config.hidden_size;
            return Err(format!(
                "`head_dim` is {head_dim}, only hidden_size {hidden} / num_attention_heads {num_attention_heads} can \
                 be computed here"
            ));
        }
        check_attention(keys, num_hidden_layers)?;
        keys.pass_over(PASSED_OVER);
        Ok(config)
    }
}

/// Every layer must attend to everything before it.
fn check_attention(keys: &mut Keys, num_hidden_layers: usize) -> Result<(), String> {
    let first_window = keys.take::<usize>("max_window_layers")?.unwrap_or(28);
    let windows = keys.take::<bool>("use_sliding_window")?.unwrap_or(false);
    if windows && first_window < num_hidden_layers {
        return Err("`use_sliding_window` is true, only full attention can be computed here".to_owned());
    }
    let layers: Vec<String> = keys.take("layer_types")?.unwrap_or_default();
    match layers.iter().find(|layer| *layer != "full_attention") {
        Some(other) => Err(format!("`layer_types` has {other:?}, only full attention can be computed here")),
        None => Ok(()),
    }
}

fn rope_theta(keys: &mut Keys) -> Result<f64, String> {
    if let Some(factor) = keys.take::<f64>("partial_rotary_factor")?
        && factor != 1.0
    {
        return Err(format!("`partial_rotary_factor` is {factor}, only 1 can be computed here"));
    }
    let mut theta: Option<f64> = keys.take("rope_theta")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(parameters) = keys.take::<RopeParameters>(key)? else { continue };
        let mut kinds = [parameters.rope_type, parameters.r#type].into_iter().flatten();
        let plain = kinds.all(|kind| kind == "default");
        let mut rest = parameters.rest;
        rest.retain(|key, value| {
            !(value.is_null() || key == "partial_rotary_factor" && value.as_f64() == Some(1.0))
        });
        if !plain || !rest.is_empty() {
            return Err(format!("`{key}` asks for more than angles of one base, which is all there is here"));
        }
        theta = parameters.rope_theta.or(theta);
    }
    match theta {
        Some(theta) => Ok(theta),
        None => keys.take_or("rope_theta", 10_000.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ReferenceConfig;
    use serde_json::json;

    fn read(config: Value) -> Result<Qwen2Config, String> {
        serde_json::from_value(config).map_err(|error| error.to_string())
    }

    /// `config.json` of Qwen2.5-1.5B-Instruct, as it is on the hub.
    fn qwen_1_5b() -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151_643,
            "eos_token_id": 151_645, "hidden_act": "silu", "hidden_size": 1536, "initializer_range": 0.02,
            "intermediate_size": 8960, "max_position_embeddings": 32_768, "max_window_layers": 21,
            "model_type": "qwen2", "num_attention_heads": 12, "num_hidden_layers": 28, "num_key_value_heads": 2,
            "rms_norm_eps": 1e-6, "rope_theta": 1_000_000.0, "sliding_window": 32_768,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16", "transformers_version": "4.43.1",
            "use_cache": true, "use_sliding_window": false, "vocab_size": 151_936,
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = qwen_1_5b();
        config[key] = value;
        config
    }

    #[test]
    fn transformers_4_and_5_and_ours() {
        let expected = ReferenceConfig::released_language_model();
        assert_eq!(read(qwen_1_5b()).unwrap(), expected);
        assert_eq!(read(serde_json::to_value(&expected).unwrap()).unwrap(), expected);
        let mut five = with("rope_parameters", json!({"rope_theta": 1e6, "rope_type": "default"}));
        five.as_object_mut().unwrap().remove("rope_theta");
        five["layer_types"] = json!(vec!["full_attention"; 28]);
        five["sliding_window"] = Value::Null;
        five["head_dim"] = json!(128);
        five["dtype"] = json!("bfloat16");
        assert_eq!(read(five).unwrap(), expected);
        // Windows that begin behind the last layer are none.
        let mut none = with("use_sliding_window", json!(true));
        none["max_window_layers"] = json!(28);
        assert_eq!(read(none).unwrap(), expected);
    }

    #[test]
    fn what_is_not_said_is_transformers_default_but_ours_says_everything() {
        let config =
            read(json!({"model_type": "qwen2", "hidden_size": 64, "num_attention_heads": 4})).unwrap();
        assert_eq!((config.num_key_value_heads, config.rope_theta), (4, 10_000.0));
        assert_eq!((config.vocab_size, config.tie_word_embeddings), (151_936, false));
        let mut ours = serde_json::to_value(ReferenceConfig::released_language_model()).unwrap();
        ours.as_object_mut().unwrap().remove("rope_theta");
        assert_eq!(read(ours).unwrap_err(), "`rope_theta` is missing");
    }

    #[test]
    fn what_would_be_another_network_is_refused() {
        for (key, value, expected) in [
            ("model_type", json!("qwen3"), "`model_type` is \"qwen3\", only \"qwen2\""),
            ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", only \"silu\""),
            ("use_sliding_window", json!(true), "`use_sliding_window` is true"),
            ("layer_types", json!(["sliding_attention"]), "`layer_types` has \"sliding_attention\""),
            ("head_dim", json!(64), "`head_dim` is 64, only hidden_size 1536"),
            ("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "`rope_scaling` asks for more"),
            ("rope_parameters", json!({"rope_type": "default", "factor": 2.0}), "`rope_parameters` asks"),
            ("use_mrope", json!(true), "`use_mrope` is true, only false"),
            ("vocab_size", json!(-1), "`vocab_size` cannot be -1"),
            ("quantization_config", json!({}), "unknown key `quantization_config`"),
        ] {
            let error = read(with(key, value)).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
