//! The keys of a `config.json`, taken one by one; a key that nobody takes is an error.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Keys of every config of Hugging Face's that say how files were made, how a network is trained, or how one that
/// generates text does it. Old releases write all of them at every level.
///
/// Source: `PretrainedConfig.to_dict` of transformers 4.6 to 5.
const UNREAD: &[&str] = &[
    "_attn_implementation",
    "_attn_implementation_autoset",
    "_commit_hash",
    "_name_or_path",
    "add_cross_attention",
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "chunk_size_feed_forward",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dropout",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "gradient_checkpointing",
    "id2label",
    "initializer_factor",
    "initializer_range",
    "is_decoder",
    "is_encoder_decoder",
    "label2id",
    "length_penalty",
    "logit_scale_init_value",
    "max_length",
    "min_length",
    "model_type",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_past",
    "output_scores",
    "pad_token_id",
    "prefix",
    "problem_type",
    "pruned_heads",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "tie_word_embeddings",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "torchscript",
    "transformers_version",
    "typical_p",
    "use_bfloat16",
    "use_cache",
];

/// One table of a `config.json`.
#[derive(Debug)]
pub(crate) struct Keys {
    keys: Map<String, Value>,
    of_hugging_face: bool,
}

impl Keys {
    /// Hugging Face's configs have a `model_type`, and leave out what has its default; ours say everything.
    pub(crate) fn new(keys: Map<String, Value>) -> Self {
        let of_hugging_face = keys.contains_key("model_type");
        Self { keys, of_hugging_face }
    }

    pub(crate) fn is_of_hugging_face(&self) -> bool {
        self.of_hugging_face
    }

    /// Reads the table as one of Hugging Face's, whatever it says, if it is within one.
    pub(crate) fn within(mut self, of_hugging_face: bool) -> Self {
        self.of_hugging_face |= of_hugging_face;
        self
    }

    pub(crate) fn contains(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }

    /// A value that stays.
    pub(crate) fn peek(&self, key: &str) -> Option<&Value> {
        self.keys.get(key)
    }

    /// The value, if there is one; `null` is none.
    pub(crate) fn take<T: DeserializeOwned>(&mut self, key: &str) -> Result<Option<T>, String> {
        match self.keys.remove(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let shown = value.to_string();
                let wrong = |error| format!("`{key}` cannot be {shown}: {error}");
                serde_json::from_value(value).map(Some).map_err(wrong)
            }
        }
    }

    /// The value; an error without one.
    pub(crate) fn require<T: DeserializeOwned>(&mut self, key: &str) -> Result<T, String> {
        self.take(key)?.ok_or_else(|| format!("`{key}` is missing"))
    }

    /// The value; in a config of Hugging Face's it has a default.
    pub(crate) fn take_or<T: DeserializeOwned>(&mut self, key: &str, default: T) -> Result<T, String> {
        match self.take(key)? {
            None if self.of_hugging_face => Ok(default),
            None => Err(format!("`{key}` is missing")),
            Some(value) => Ok(value),
        }
    }

    /// A table within the table.
    pub(crate) fn table(&mut self, key: &str) -> Result<Map<String, Value>, String> {
        match self.keys.remove(key) {
            Some(Value::Object(table)) => Ok(table),
            None | Some(Value::Null) => Err(format!("`{key}` is missing")),
            Some(_) => Err(format!("`{key}` must be a table")),
        }
    }

    /// Something that may be said, but only so: anything else would be another network than ours.
    pub(crate) fn only(&mut self, key: &str, expected: impl Into<Value>) -> Result<(), String> {
        let expected = expected.into();
        match self.keys.remove(key) {
            None | Some(Value::Null) => Ok(()),
            Some(value) if value == expected => Ok(()),
            Some(value) => Err(format!("`{key}` is {value}, only {expected} can be computed here")),
        }
    }

    /// Passes over keys that say nothing about what the network computes: those of every config of Hugging Face's if
    /// this is one, and `here`.
    pub(crate) fn pass_over(&mut self, here: &[&str]) {
        let of_hugging_face = self.of_hugging_face;
        let says_nothing = |key: &str| here.contains(&key) || of_hugging_face && UNREAD.contains(&key);
        self.keys.retain(|key, _| !says_nothing(key));
    }

    /// # Errors
    /// Lists every key that was not taken.
    pub(crate) fn finish(self) -> Result<(), String> {
        let left: Vec<String> = self.keys.keys().map(|key| format!("`{key}`")).collect();
        match left.len() {
            0 => Ok(()),
            1 => Err(format!("unknown key {}", left[0])),
            _ => Err(format!("unknown keys {}", left.join(", "))),
        }
    }
}
