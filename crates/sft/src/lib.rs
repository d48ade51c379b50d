//! Visual instruction tuning: conversations in, instruct checkpoint out.
//!
//! - [`Conversation`]: the LLaVA layout of fine-tuning data
//! - [`SplitModalitySampler`]: batches of one modality, grouped by length, as the reference draws them
//! - [`Sft`]: the stage; the loop is that of `oqvl-trainer`, only answers are learnt, images have all their tokens
//!
//! ```
//! use oqvl_sft::Conversation;
//!
//! let json = r#"{"id": "1", "image": "a.jpg", "conversations": [
//!     {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A cat."}]}"#;
//! let conversation: Conversation = serde_json::from_str(json)?;
//! assert_eq!(conversation.turns().len(), 2);
//! // The reference counts words, the placeholder among them.
//! assert_eq!(conversation.num_words(), 6);
//! # Ok::<(), serde_json::Error>(())
//! ```

mod config;
mod conversation;
mod error;
mod sampler;
mod stage;

pub use config::SftConfig;
pub use conversation::{Conversation, Message};
pub use error::SftError;
pub use sampler::{ExampleShape, SplitModalitySampler};
pub use stage::{Sft, SftReport};
