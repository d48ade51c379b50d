//! Every on-disk format of the pipeline: shards, score sidecars, uid subsets, packs and manifests.
//!
//! The nouns:
//!
//! * a [`Sample`] is one image-text pair: a [`SampleKey`] and its [`Member`]s (`jpg`, `json`, `txt`);
//! * a *shard* is a WebDataset tar of samples, read in a stream by [`ShardReader`], written by [`ShardWriter`],
//!   and read at random by [`ShardFile`];
//! * a [`ScoreTable`] is the parquet sidecar in which a filter leaves its scores beside a shard; where a language model
//!   scores, [`score_in_answer`] is how its answers, which a sidecar may hold as texts, are read;
//! * a [`UidSubset`] is a sorted `.npy` list of the 128-bit uids to keep;
//! * a [`Pack`] is one packed training sequence, stored as a *plan* ([`write_plan`]: image bytes stay in their
//!   shards) or as a self-contained tar ([`write_pack_tar`]);
//! * a [`Store`] copies what lies in object stores here ([`Mirror`]), and a [`Destination`] takes finished files there;
//! * a [`Manifest`] says what a stage did: configuration, seed, inputs, outputs and counts.
//!
//! Whatever is written appears under its final name complete or not at all ([`AtomicFile`]), and the same values
//! always give the same bytes: no clock, no random name, no hash-map order reaches a file. Whatever is read may
//! be damaged or hostile: the answer is a [`ShardError`] that names the file, the sample and the byte.
//!
//! ```
//! use oqvl_shard_io::{Sample, SampleKey, ShardFile, ShardReader, ShardWriter};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let dir = tempfile::tempdir()?;
//! let path = dir.path().join("00000.tar");
//!
//! let mut sample = Sample::new(SampleKey::new("000000007")?);
//! sample.push("txt", b"a red square".to_vec());
//! sample.push("jpg", vec![0xff, 0xd8, 0xff]);
//! let mut writer = ShardWriter::create(&path)?;
//! let locations = writer.push(&sample)?;
//! let summary = writer.finish()?;
//! assert_eq!(summary.num_samples, 1);
//!
//! // In a stream, one sample at a time ...
//! for sample in ShardReader::open(&path)? {
//!     let sample = sample?;
//!     assert_eq!(sample.key.as_str(), "000000007");
//!     assert_eq!(sample.caption()?, Some("a red square"));
//! }
//! // ... or one member at its place.
//! let image = &locations[0];
//! assert_eq!(image.extension, "jpg");
//! assert_eq!(ShardFile::open(&path)?.read(image.offset, image.num_bytes)?, [0xff, 0xd8, 0xff]);
//! # Ok(())
//! # }
//! ```
//!
//! Left to others: decoding pixels (`image-prep`), tokens and the meaning of the ids in a pack (`text-prep`),
//! fetching the images of a list (`data-fetch`).

mod atomic;
mod checked_parquet;
mod digest;
mod error;
mod file_end;
mod file_pattern;
mod image_files;
mod manifest;
mod pack;
mod pack_tar;
mod parquet_claims;
mod parquet_table;
mod plan;
mod python_json;
mod sample;
mod score_answer;
mod shard_file;
mod shard_list;
mod shard_reader;
mod sidecar;
mod store;
mod tar_entries;
mod tar_writer;
mod uid_subset;
mod unique_map;
mod weight_index;

pub use atomic::{AtomicFile, TEMPORARY_PREFIX, read_json, remove_if_there, write_atomic, write_json_atomic};
pub use checked_parquet::{CheckedParquet, ChunkStart};
pub use digest::{digest_bytes, digest_file};
pub use error::ShardError;
pub use file_end::is_cut_short;
pub use file_pattern::FilePattern;
pub use image_files::ImageFiles;
pub use manifest::Manifest;
pub use pack::{ImageEncoding, ImageRef, ImageShrink, Pack, PackInfo};
pub use pack_tar::{PackTarReader, PackWithImages, index_pack_tar, read_pack_tar, write_pack_tar};
pub use parquet_table::{TableWriter, open_parquet, without_parquet_panic};
pub use plan::{PlanWriter, read_plan, write_plan};
pub use python_json::{PythonJsonReader, from_python_json};
pub use sample::{IMAGE_EXTENSIONS, Member, Sample, SampleKey};
pub use score_answer::score_in_answer;
pub use shard_file::ShardFile;
pub use shard_list::{list_plans, list_shards};
pub use shard_reader::{ReadLimits, ShardReader};
pub use sidecar::ScoreTable;
pub use store::{
    Claim, Destination, HubSettings, Mirror, MirrorOptions, MirroredFile, Sent, Store, StoreError,
    StoreSettings, StoreUri, WEIGHT_FILES, weight_file_names,
};
pub use tar_entries::TAR_END;
pub use tar_writer::{MemberLocation, ShardSummary, ShardWriter};
pub use uid_subset::{Uid, UidReader, UidSubset, UidWriter};
pub use unique_map::UniqueMap;
pub use weight_index::{WeightIndex, WeightIndexError};
