//! Conversations in the LLaVA layout.

use oqvl_text_prep::{Role, Turn};
use serde::{Deserialize, Serialize};

/// One element of `llava_v1_5_mix665k.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conversation {
    /// Its name; a string or a number.
    pub id: serde_json::Value,
    /// Path of the image below the image directory; none for text-only conversations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Messages in turn.
    pub conversations: Vec<Message>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who speaks; ignored, as in the reference: the turn's parity decides.
    pub from: String,
    /// The text, with `<image>` where the image goes.
    pub value: String,
}

impl Conversation {
    /// The turns: even ones are questions, odd ones are answers to learn.
    #[must_use]
    pub fn turns(&self) -> Vec<Turn> {
        let role = |index: usize| if index.is_multiple_of(2) { Role::Human } else { Role::Assistant };
        let messages = self.conversations.iter().enumerate();
        messages.map(|(index, message)| Turn::new(role(index), message.value.clone())).collect()
    }

    /// Words of all messages, `<image>` counted as one: the length that batches are grouped by.
    #[must_use]
    pub fn num_words(&self) -> usize {
        self.conversations.iter().map(|message| message.value.split_whitespace().count()).sum()
    }
}
