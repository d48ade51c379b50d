//! Text for Open-Qwen2VL: tokenizer, special tokens, image placeholders, document layouts and the chat template.
//!
//! The nouns:
//! - [`Tokenizer`]: a Hugging Face `tokenizer.json` plus the two special tokens Open-Qwen2VL adds to Qwen2.5.
//! - [`tokenize_with_images`]: text with `<image>` in it becomes ids with [`IMAGE_TOKEN_ID`] (−200) in it; the model
//!   later replaces each of those by the image's embeddings, and [`expanded_len`] says how long the result is.
//! - [`caption_document`] and [`interleaved_document`]: the pre-training documents that the packer packs.
//! - [`ChatTemplate`]: conversations as fine-tuning sees them, with labels, and the prompt that generation starts from.
//! - [`ClipTokenizer`]: captions as CLIP's text towers take them, cleaned by [`clean_clip_text`].
//! - [`SiglipTokenizer`]: captions as SigLIP's text towers take them.
//! - [`BpeTrainer`]: learns a small tokenizer of the same kind from text, for runs that bring no public one.
//!
//! Nothing here knows of images, models or files other than tokenizers; how many embeddings an image takes is
//! the business of `oqvl-image-prep`.
//!
//! # Example
//!
//! ```
//! use oqvl_text_prep::{BpeTrainer, IMAGE_TOKEN_ID, IGNORE_INDEX, ChatTemplate, Role, Turn};
//! use oqvl_text_prep::{caption_document, expanded_len};
//!
//! // Any Qwen2.5-like `tokenizer.json` would do: `Tokenizer::from_file("tokenizer.json")`.
//! let captions = ["a red cube on a table", "a red ball under a table", "two red cubes"];
//! let trained = BpeTrainer::new(300).train(captions.iter().map(|text| text.to_string()))?;
//! let tokenizer = trained.tokenizer()?;
//!
//! // A pre-training document: <s>, the image, a newline and the caption, <|im_end|>.
//! let ids = caption_document(&tokenizer, "a red cube")?;
//! assert_eq!(ids[..2], [tokenizer.bos_id(), IMAGE_TOKEN_ID]);
//! assert_eq!(ids.last(), Some(&tokenizer.eos_id()));
//! assert_eq!(expanded_len(ids.len(), 1, 144), ids.len() + 143);
//!
//! // A fine-tuning example: the question is context, the answer is what the loss sees.
//! let turns = [Turn::new(Role::Human, "<image>\nWhat is it?"), Turn::new(Role::Assistant, "a cube")];
//! let example = ChatTemplate::Reference.sft_example(&tokenizer, &turns)?;
//! let prompt = ChatTemplate::Reference.generation_prompt(&tokenizer, "<image>\nWhat is it?")?;
//! assert_eq!(example.input_ids[..prompt.len()], prompt);
//! assert!(example.labels[..prompt.len()].iter().all(|&label| label == IGNORE_INDEX));
//! # Ok::<(), oqvl_text_prep::TextError>(())
//! ```

mod bpe_merges;
mod bpe_trainer;
mod chat;
mod clip;
mod document;
mod error;
mod ftfy;
mod html;
mod placeholder;
mod siglip;
mod tokenizer;

pub use bpe_trainer::{BpeTrainer, DEFAULT_MIN_FREQUENCY, DEFAULT_MUST_INCLUDE, TrainedTokenizer};
pub use chat::{ChatExample, ChatTemplate, Role, Turn};
pub use clip::{CLIP_CONTEXT_LENGTH, ClipInput, ClipTextStyle, ClipTokenizer, clean_clip_text};
pub use document::{ESCAPED_PLACEHOLDER, InterleavedItem, TextEnd, caption_document, interleaved_document};
pub use error::TextError;
pub use ftfy::fix_text;
pub use html::unescape_html;
pub use placeholder::{
    IGNORE_INDEX, IMAGE_PLACEHOLDER, IMAGE_TOKEN_ID, expanded_len, fitting_len, tokenize_with_images,
};
pub use siglip::{SiglipTextStyle, SiglipTokenizer, clean_siglip_text};
pub use tokenizer::{
    BOS_TOKEN, ENDOFCHUNK_TOKEN, EOS_TOKEN, IM_START_TOKEN, PAD_TOKEN, SpecialTokens, Tokenizer,
};
