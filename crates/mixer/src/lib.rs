//! Selects samples by score and by uid, drops duplicates, and writes what is left as shards of equal size.
//!
//! The nouns: the *pool* is every sample of the input shards; a *subset* is a named part of the pool, chosen by
//! the scores of a filter or by a list of uids ([`SubsetConfig`]); the *selection* is the union or intersection
//! of the subsets without duplicates ([`Select`], [`DedupKey`]); the [`Mixer`] stage writes it as output shards.
//!
//! It reads the pool twice and never holds images: the first pass notes for each sample its place, uid, digests
//! and scores (about 60 bytes and 8 per score), the second copies the members of the selected ones byte for byte.
//!
//! ```
//! use oqvl_mixer::{Mixer, MixerConfig, Select};
//! use oqvl_shard_io::ShardReader;
//! use oqvl_stage::{RunContext, Stage};
//! use oqvl_testkit::{tiny_shard, tiny_uid};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let work_dir = tempfile::tempdir()?;
//! let pool = [("a", "one"), ("b", "two"), ("c", "three")];
//! tiny_shard(&work_dir.path().join("data-fetch"), "00000", &pool);
//!
//! let config = MixerConfig {
//!     shards: "data-fetch".into(),
//!     select: Select::All,
//!     dedup: vec![],
//!     samples_per_shard: 2,
//!     subset: vec![],
//! };
//! let run = RunContext::for_test::<Mixer>(work_dir.path(), 7)?;
//! let report = Mixer::run(&config, &run)?;
//! assert_eq!((report.tally.kept, report.output_shards), (3, 2));
//!
//! let first = ShardReader::open(&run.out_dir.join("00000000.tar"))?.next().expect("two samples")?;
//! assert_eq!(first.key.as_str(), format!("{}-0", tiny_uid("a")));
//! # Ok(())
//! # }
//! ```
//!
//! # Output
//! In input order (shards by name, samples by position): `{:08d}.tar` with exactly `samples_per_shard` samples,
//! the last with the rest, and `{:08d}_stats.json` (`{"successes": n}`) beside each; `sizes.json`, the samples
//! of every tar; `{subset}.npy`, the uids of each subset; `selected.npy`, the uids of what was written. These are
//! the files of the DataComp resharder, and as it does, a sample is called `{uid}-0` while the `key` inside its
//! `json` stays the old one. Unlike it, numbering does not depend on timing and no uid is written twice
//! (`dedup = ["uid"]`).
//!
//! # Samples without a uid
//! A sample whose `json` has no `uid` (img2dataset writes one only where the URL list had it) is known by its
//! key instead: it keeps its key in the output, and wherever a uid is needed the first 128 bits of the key's
//! BLAKE3 digest stand for it. Keys of one data set are unique, so this is safe within one pool.
//!
//! Left to others: computing scores (`clip-filter`, `mlm-filter`), looking into images.

mod config;
mod decide;
mod error;
mod identity;
mod pool;
mod reject;
mod reshard;
mod stage;
mod subset;
#[cfg(test)]
mod test_pool;

pub use config::{DedupKey, MixerConfig, Select, SubsetConfig};
pub use error::MixerError;
pub use stage::{Mixer, MixerReport, OverlapReport};
pub use subset::SubsetReport;
