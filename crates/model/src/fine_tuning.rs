//! How a checkpoint was fine-tuned, as far as its folder says.

use crate::ModelError;
use crate::checkpoint::read_config;
use oqvl_text_prep::{BOS_TOKEN, ChatTemplate, IM_START_TOKEN};
use serde_json::Value;
use std::path::Path;

/// Where transformers keeps the template of a folder: alone, or under a key of a JSON file.
const TEMPLATE_FILE: &str = "chat_template.jinja";
const TEMPLATE_JSON: &str = "chat_template.json";

/// The chat template that a vision-language model was fine-tuned with: the reference's for checkpoints of ours and of the
/// reference, and for a LLaVA whose own template opens as that one does, as those that [`export`](crate::export()) writes; for
/// all other LLaVA, and for `llava_qwen`, that of their language model.
///
/// # Errors
/// If the folder's config cannot be read.
pub fn chat_template(dir: &Path) -> Result<ChatTemplate, ModelError> {
    let config: Value = read_config(dir)?;
    let is_foreign = config.get("model_type").is_some();
    Ok(match is_foreign && !has_template_of_reference(dir) {
        true => ChatTemplate::Qwen,
        false => ChatTemplate::Reference,
    })
}

fn has_template_of_reference(dir: &Path) -> bool {
    let alone = std::fs::read_to_string(dir.join(TEMPLATE_FILE)).ok();
    let template = alone.or_else(|| {
        let json: Value = oqvl_shard_io::read_json(&dir.join(TEMPLATE_JSON)).ok()?;
        Some(json.get("chat_template")?.as_str()?.to_owned())
    });
    // No other conversation begins with this token, which the reference adds to the tokenizer.
    template.is_some_and(|template| template.contains(&format!("{BOS_TOKEN}{IM_START_TOKEN}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_atomic;
    use serde_json::json;

    #[test]
    fn whose_folder_it_is_decides() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| write_atomic(&dir.path().join(name), text.as_bytes()).unwrap();
        let found = |config: Value| {
            write("config.json", config.to_string());
            chat_template(dir.path()).unwrap()
        };
        assert_eq!(found(json!({"pooled_grid": 12})), ChatTemplate::Reference);
        assert_eq!(found(json!({"model": {"arch_specifier": "avgpool"}})), ChatTemplate::Reference);
        assert_eq!(found(json!({"model_type": "llava_qwen"})), ChatTemplate::Qwen);
        assert_eq!(found(json!({"model_type": "llava"})), ChatTemplate::Qwen);
        let template = |text: &str| write(TEMPLATE_JSON, json!({"chat_template": text}).to_string());
        template("{% for message in messages %}<|im_start|>{{ message['role'] }}");
        assert_eq!(found(json!({"model_type": "llava"})), ChatTemplate::Qwen);
        template(crate::export::CHAT_TEMPLATE);
        assert_eq!(found(json!({"model_type": "llava"})), ChatTemplate::Reference);
    }
}
