//! How a checkpoint was fine-tuned, as far as its folder says.

use crate::ModelError;
use crate::checkpoint::{read_config, unreadable};
use oqvl_text_prep::{BOS_TOKEN, ChatTemplate, IM_START_TOKEN};
use serde::Deserialize;
use serde_json::Value;
use std::io::ErrorKind;
use std::path::Path;

/// Where transformers keeps the template of a folder: alone, or under a key of a JSON file.
const TEMPLATE_FILE: &str = "chat_template.jinja";
pub(crate) const TEMPLATE_JSON: &str = "chat_template.json";

/// The chat template that a vision-language model was fine-tuned with: the reference's for checkpoints of ours and of the
/// reference, and for a LLaVA whose own template says `<s><|im_start|>`, with which that one's conversations open, as those that
/// [`export`](crate::export()) writes; for all other LLaVA, and for `llava_qwen`, that of their language model.
///
/// # Errors
/// If the folder's config, or a template that is there, cannot be read.
pub fn chat_template(dir: &Path) -> Result<ChatTemplate, ModelError> {
    let config: Value = read_config(dir)?;
    let is_foreign = config.get("model_type").is_some();
    Ok(match is_foreign && !has_template_of_reference(dir)? {
        true => ChatTemplate::Qwen,
        false => ChatTemplate::Reference,
    })
}

/// As much of [`TEMPLATE_JSON`] as is read.
#[derive(Deserialize)]
struct TemplateJson {
    chat_template: String,
}

fn has_template_of_reference(dir: &Path) -> Result<bool, ModelError> {
    // No other conversation begins with this token, which the reference adds to the tokenizer.
    let opening = format!("{BOS_TOKEN}{IM_START_TOKEN}");
    if let Some(template) = read_if_there(&dir.join(TEMPLATE_FILE))? {
        return Ok(template.contains(&opening));
    }
    let path = dir.join(TEMPLATE_JSON);
    let Some(json) = read_if_there(&path)? else { return Ok(false) };
    let json: TemplateJson = serde_json::from_str(&json).map_err(|error| unreadable(&path, error))?;
    Ok(json.chat_template.contains(&opening))
}

fn read_if_there(path: &Path) -> Result<Option<String>, ModelError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(path, error)),
    }
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

    /// A template that is there and cannot be read is not taken for none.
    #[test]
    fn a_broken_template_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: &[u8]| write_atomic(&dir.path().join(name), bytes).unwrap();
        write("config.json", b"{\"model_type\": \"llava\"}");
        for (name, content) in [
            (TEMPLATE_JSON, &b"{\"chat_template\": \"cut"[..]),
            (TEMPLATE_JSON, b"{\"chat_template\": [1]}"),
            (TEMPLATE_JSON, b"{}"),
            (TEMPLATE_FILE, b"\xff"),
        ] {
            write(name, content);
            let error = chat_template(dir.path()).unwrap_err();
            let is_named = matches!(&error, ModelError::Read { path, .. } if path.ends_with(name));
            assert!(is_named, "{error:?}");
        }
        // Of a checkpoint of ours no template is looked at.
        write("config.json", b"{\"pooled_grid\": 12}");
        assert_eq!(chat_template(dir.path()).unwrap(), ChatTemplate::Reference);
    }
}
