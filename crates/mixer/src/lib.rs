//! Selects samples by SQL, score, uid list and baseline, drops duplicates, and writes what is left as shards of equal
//! size.
//!
//! The nouns: the *pool* is every sample of the input shards, or every row of a metadata folder; a *subset* is a named
//! part of the pool, chosen by scores, a list of uids, SQL or a baseline of DataComp ([`SubsetConfig`]); the
//! *selection* is the union or intersection of the subsets without duplicates, near-duplicates and benchmark images
//! ([`Select`], [`DedupKey`], [`NearDuplicateConfig`], [`DecontaminateConfig`]); the [`Mixer`] stage writes it as output
//! shards, or for a metadata folder as lists of uids.
//!
//! It reads the samples twice and never holds them: the first pass notes in an index on the disk where each is and what
//! is known of it, the second copies the members of the selected ones byte for byte. Decisions are made over the index,
//! within a memory that does not grow with the pool but for a few bits a sample (`docs/decisions/008`).
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
//!     shards: Some("data-fetch".into()),
//!     select: Select::All,
//!     samples_per_shard: 2,
//!     ..MixerConfig::default()
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
//! the last with the rest, `{:08d}.parquet` with their metadata and scores, and `{:08d}_stats.json`
//! (`{"successes": n}`) beside each; `sizes.json`, the samples of every tar; `{subset}.npy`, the uids of each subset;
//! `selected.npy`, the uids of what was written. But for the parquet these are the files of the DataComp resharder, and
//! as it does, a sample is called `{uid}-0` while the `key` inside its `json` stays the old one. Unlike it, numbering
//! does not depend on timing and no uid is written twice (`dedup = ["uid"]`).
//!
//! # Samples without a uid
//! A sample whose `json` has no `uid` (img2dataset writes one only where the URL list had it) is known by its
//! key instead: it keeps its key in the output, and wherever a uid is needed the first 128 bits of the key's
//! BLAKE3 digest stand for it. Keys of one data set are unique, so this is safe within one pool.
//!
//! Left to others: computing scores (`clip-filter`, `mlm-filter`), decoding pixels (`image-prep`).

mod baseline;
mod baseline_config;
mod benchmark_images;
mod columns;
mod config;
mod duplicates;
mod earlier_output;
mod error;
mod external_sort;
mod hamming;
mod identity;
mod image_hash;
mod parquet_scan;
mod places;
mod pool;
mod query;
mod reject;
mod report;
mod reshard;
mod row_order;
mod row_set;
mod sample_index;
mod sample_table;
mod scratch;
mod selection;
mod sql_mistake;
#[cfg(test)]
mod sql_tests;
mod stage;
mod subset;
mod subset_config;
#[cfg(test)]
mod test_pool;
mod text_functions;
mod uid_order;

pub use baseline_config::{
    Baseline, BaselineAssets, BasicVariant, ClipArch, DEFAULT_FEATURES, LANGUAGE_MODEL_SHA256,
    WORDNET_IDS_SHA256,
};
pub use config::{
    DEFAULT_METADATA_FILES, DEFAULT_SAMPLES_PER_SHARD, DecontaminateConfig, DedupKey, JoinKey,
    MAX_HASH_DISTANCE, MixerConfig, NearDuplicateConfig, ScoreFiles, Select, TableConfig,
};
pub use error::MixerError;
pub use report::{
    DecontaminationReport, ImageMatch, MixerReport, NearDuplicateReport, OverlapReport, ShareReport,
};
pub use stage::Mixer;
pub use subset::SubsetReport;
pub use subset_config::SubsetConfig;
