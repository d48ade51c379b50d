//! Packs captioned images into training sequences of at most `seq_len` tokens.
//!
//! The nouns: a *document* is one captioned image as token ids ([`oqvl_text_prep::caption_document`]) with its
//! *length*, the tokens it takes once its image placeholder has become `pooled_grid` squared embeddings; a *bin* is
//! a set of documents that share a sequence ([`first_fit_decreasing`]); a [`Pack`](oqvl_shard_io::Pack) is a bin
//! written down. One input tar is one packing unit: nothing is carried from one to the next, so units run in
//! parallel, and a stopped run goes on where it was.
//!
//! ```
//! use oqvl_packer::{Overlong, PackAlgorithm, PackOutput, Packer, PackerConfig};
//! use oqvl_shard_io::{read_plan, write_atomic};
//! use oqvl_stage::{RunContext, Stage};
//! use oqvl_testkit::tiny_shard;
//! use oqvl_text_prep::BpeTrainer;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let work_dir = tempfile::tempdir()?;
//! let pairs = [("a", "red"), ("b", "blue"), ("c", "green")];
//! let shard = tiny_shard(&work_dir.path().join("mixer"), "00000000", &pairs);
//! let trained = BpeTrainer::new(300).train(std::iter::empty())?; // bytes only: one token per letter
//! write_atomic(&work_dir.path().join("tokenizer.json"), trained.json())?;
//!
//! let config = PackerConfig {
//!     shards: "mixer".into(),
//!     tokenizer: "tokenizer.json".into(),
//!     seq_len: 32,
//!     pooled_grid: 3,
//!     algorithm: PackAlgorithm::FirstFitDecreasing,
//!     overlong: Overlong::Keep,
//!     output: PackOutput::Plan,
//! };
//! let run = RunContext::for_test::<Packer>(work_dir.path(), 7)?;
//! let report = Packer::run(&config, &run)?;
//! assert_eq!((report.tally.kept, report.num_packs), (3, 2));
//!
//! // Lengths are 9 image tokens, `<s>`, newline, `<|im_end|>` and the letters: 15, 16 and 17. The longest document
//! // goes first; 17 + 15 fill a sequence.
//! let (info, packs) = read_plan(&run.out_dir.join("00000000.plan.parquet"))?;
//! assert_eq!(info.num_image_tokens, 9);
//! assert_eq!((packs[0].keys.join(" "), &packs[0].lengths[..]), ("c a".to_owned(), &[17, 15][..]));
//! assert_eq!((packs[1].keys.join(" "), &packs[1].lengths[..]), ("b".to_owned(), &[16][..]));
//! # Ok(())
//! # }
//! ```
//!
//! # Output
//! For input tar number `n` in name order: `{n:08}.plan.parquet` (or `{n:08}.tar`, see [`PackOutput`]), and
//! `{n:08}_stats.json`, whose `len` lists the tokens of every pack as the reference's file does. Packs are not
//! padded: a sequence's end is the trainer's to fill and mask.
//!
//! # Where this differs from the reference
//! - No pad ids are written. The reference pads with a token its trainer does not know, which is then trained on.
//! - Images stay as they are. The reference squashes them to 384 x 384 first, and so resamples twice.
//! - Two samples of one tar under one key are both kept, and counted; in the reference the later replaces the earlier.
//! - A sample is known by its key in the tar, not by the `key` in its `json`, which a resharder leaves stale.
//! - Broken samples are counted with a reason instead of ending the run.
//!
//! The order of documents and bins, the ids and the lengths are the reference's, empty captions included: they are
//! documents like any other. Images are looked at, not decoded: one whose header is fine and whose pixels are broken
//! passes here.
//!
//! Left to others: filling and masking (`trainer`), choosing samples (`mixer`), decoding pixels (`image-prep`).
//!
//! Source: `mm_sequence_packing/sequence_packing_image_to_pil.py` of Open-Qwen2VL; Algorithm 1 of its paper.

mod bin_packing;
mod config;
mod document;
mod error;
mod report;
mod stage;
mod unit;

pub use bin_packing::{first_fit_decreasing, one_per_bin};
pub use config::{DEFAULT_SEQ_LEN, Overlong, PackAlgorithm, PackOutput, PackerConfig};
pub use error::PackerError;
pub use report::{LengthHistogram, PackerReport};
pub use stage::Packer;
