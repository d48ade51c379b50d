//! Packs captioned images and interleaved documents into training sequences of at most `seq_len` tokens.
//!
//! The nouns: a *document* is a captioned image, or texts and images in turn, as token ids
//! ([`oqvl_text_prep::caption_document`], [`oqvl_text_prep::interleaved_document`]) with its *length*, the tokens it takes
//! once its image placeholders have become `pooled_grid` squared embeddings each; a *bin* is a set of documents that share
//! a sequence ([`first_fit_decreasing`]); a [`Pack`](oqvl_shard_io::Pack) is a bin written down. A *unit* is what is packed
//! together, one input tar or [several](AcrossShards): nothing is carried from one to the next, so units run in parallel,
//! and a stopped run goes on where it was.
//!
//! ```
//! use oqvl_packer::{AcrossShards, Overlong, PackAlgorithm, PackInput, PackOutput, Packer, PackerConfig, Parity};
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
//!     input: PackInput::Captions,
//!     tokenizer: "tokenizer.json".into(),
//!     seq_len: 32,
//!     pooled_grid: 3,
//!     parity: Parity::Off,
//!     algorithm: PackAlgorithm::FirstFitDecreasing,
//!     pack_across_shards: AcrossShards::Count(1),
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
//! # Input and output
//! [`PackInput`] says what the input is, [`PackOutput`] what becomes of it. For unit number `n`: `{n:08}.plan.parquet`,
//! `{n:08}.tar`, or the directory `{n}` of packed JSON; and `{n:08}_stats.json`, whose `len` lists the tokens of every pack
//! as the reference's file does. Packs are not padded: a sequence's end is the trainer's to fill and mask.
//!
//! # The reference, equalled or mended
//! With [`Parity`] the bins, ids and lengths are those of one of the reference's two packers, oddities included; the rules
//! that make the difference stand together in `document.rs`. Without, this differs from both:
//! - No pad ids are written. The reference pads with a token its trainer does not know, which is then trained on.
//! - Images stay as they are. The reference squashes them to 384 x 384 first, and so resamples twice.
//! - Two samples of one tar under one key are both kept, and counted; in the reference the later replaces the earlier.
//! - A sample is known by its key in the tar, not by the `key` in its `json`, which a resharder leaves stale.
//! - An interleaved document may have any number of images and ids.
//!
//! In both: broken samples are counted with a reason instead of ending the run, and where the reference stops (a
//! placeholder without an image, a document whose last image was cut), parity does what the default does.
//!
//! Images are looked at, not decoded: one whose header is fine and whose pixels are broken passes here.
//!
//! Left to others: filling and masking (`trainer`), choosing samples (`mixer`), decoding pixels (`image-prep`).
//!
//! Source: `mm_sequence_packing/sequence_packing_image_to_pil.py` and `…_to_json.py` of Open-Qwen2VL; Algorithm 1 of its
//! paper.

mod bin_packing;
mod caption;
mod config;
mod document;
mod error;
mod interleaved;
mod json_text;
mod packed_json;
mod report;
mod source;
mod spool;
mod stage;
mod unit;

pub use bin_packing::{first_fit_decreasing, one_per_bin};
pub use config::{
    AcrossShards, DEFAULT_SEQ_LEN, Overlong, PackAlgorithm, PackInput, PackOutput, PackerConfig, Parity,
};
pub use error::PackerError;
pub use report::{LengthHistogram, PackContents, PackerReport};
pub use stage::Packer;
