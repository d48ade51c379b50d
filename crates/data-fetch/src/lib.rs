//! Downloads the images of a URL list into WebDataset shards and says of every URL what became of it.
//!
//! The stage reads a list of URLs with captions (txt, csv, tsv, jsonl, json, plain, `.gz` or `.zst`; parquet; a
//! file, a folder or a pattern),
//! fetches them concurrently, checks, resizes and re-encodes the images, and writes shards laid out as
//! img2dataset lays them out: `{shard}.tar` with the kept samples, `{shard}.parquet` with one row per URL,
//! `{shard}_stats.json` with the counts.
//!
//! Nouns: [`DataFetch`] (the stage), [`DataFetchConfig`] (its table), [`UrlList`] and [`UrlRow`] (the list),
//! [`Reject`] (why a URL did not become a sample), [`DataFetchReport`] (the counts).
//!
//! What it promises:
//! - **Every URL is accounted for.** It is in a tar or under one of the stable reasons of [`Reject`].
//! - **Same answers, same bytes.** Samples are written in key order, whatever order servers answer in.
//! - **Politeness.** A cap and a rate per host, backoff with jitter, `Retry-After`, an honest user agent,
//!   `X-Robots-Tag` opt-outs.
//! - **No way in.** Only http and https, only public addresses (checked after name resolution and at every
//!   redirect), limits on bytes, pixels, redirects and time.
//! - **Resumable.** Shards whose tar, table and stats are there and whole are finished; everything else is made again.
//!   Rows that failed can be fetched again in a later run, alone.
//! - **Never stuck.** Every URL has a deadline, and a host that only fails is given up.
//!
//! ```
//! use oqvl_data_fetch::{DataFetch, DataFetchConfig};
//! use oqvl_shard_io::ShardReader;
//! use oqvl_stage::{RunContext, Stage as _};
//! use std::io::{Read as _, Write as _};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! // A server with one picture, under a name that only our hosts file knows.
//! let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
//! let address = listener.local_addr()?;
//! let pixels = vec![128; 40 * 30 * 3];
//! let picture = oqvl_image_prep::encode_jpeg(&oqvl_image_prep::RgbImage::new(40, 30, pixels)?, 95);
//! std::thread::spawn(move || -> std::io::Result<()> {
//!     for stream in listener.incoming() {
//!         let mut stream = stream?;
//!         let _ = stream.read(&mut [0; 1024])?;
//!         let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", picture.len());
//!         stream.write_all(&[head.as_bytes(), &picture].concat())?;
//!     }
//!     Ok(())
//! });
//!
//! let work = tempfile::tempdir()?;
//! let write = |name: &str, text: &str| oqvl_shard_io::write_atomic(&work.path().join(name), text.as_bytes());
//! write("hosts.local.json", &format!(r#"{{"pictures.test": "{address}"}}"#))?;
//! write("urls.csv", "url,caption\n\
//!     http://pictures.test/grey.jpg,a grey rectangle\n\
//!     ftp://pictures.test/grey.jpg,the same by other means\n\
//!     http://169.254.169.254/latest/meta-data,none of our business\n")?;
//!
//! let config = DataFetchConfig {
//!     url_list: "urls.csv".into(),
//!     hosts_file: Some("hosts.local.json".into()),
//!     ..DataFetchConfig::default()
//! };
//! let run = RunContext::for_test::<DataFetch>(work.path(), 7)?;
//! let report = DataFetch::run(&config, &run)?;
//!
//! assert_eq!((report.tally.seen, report.tally.kept), (3, 1));
//! assert_eq!(report.tally.rejected["bad-scheme"], 1);
//! assert_eq!(report.tally.rejected["private-address"], 1);
//! let sample = ShardReader::open(&work.path().join("data-fetch/00000.tar"))?.next().expect("one sample")?;
//! assert_eq!(sample.key.as_str(), "000000000");
//! assert_eq!(sample.caption()?, Some("a grey rectangle"));
//! # Ok(())
//! # }
//! ```
//!
//! Left to others: formats on disk (`oqvl-shard-io`), pixels (`oqvl-image-prep`), filtering by content,
//! removing duplicates and choosing what to train on (the stages after this one). Not there: `robots.txt`.

mod client;
mod config;
mod dispatch;
mod error;
mod fetch;
mod host_gate;
mod http_date;
mod pipeline;
mod reject;
mod reorder;
mod report;
mod resize_policy;
mod resolver;
mod revisit;
mod robots;
mod sample_json;
mod sample_table;
mod shard;
mod shard_numbers;
mod transform;
mod url_list;

pub use config::{
    ComputeHash, DEFAULT_BACKOFF_SECONDS, DEFAULT_CONNECT_TIMEOUT_SECONDS, DEFAULT_DEADLINE_SECONDS,
    DEFAULT_DISALLOWED_DIRECTIVES, DEFAULT_ENCODE_QUALITY, DEFAULT_IMAGE_SIZE, DEFAULT_IN_FLIGHT,
    DEFAULT_MAX_BACKOFF_SECONDS, DEFAULT_MAX_BODY_BYTES, DEFAULT_MAX_DECODED_PIXELS,
    DEFAULT_MAX_HOST_FAILURES, DEFAULT_MAX_REDIRECTS, DEFAULT_MAX_RETRY_AFTER_SECONDS,
    DEFAULT_NUMBER_SAMPLE_PER_SHARD, DEFAULT_OOM_SHARD_COUNT, DEFAULT_PER_HOST_IN_FLIGHT,
    DEFAULT_REORDER_BUFFER_BYTES, DEFAULT_RETRIES, DEFAULT_ROBOTS_AGENTS, DEFAULT_TIMEOUT,
    DEFAULT_USER_AGENT, DataFetchConfig, EncodeFormat, IncrementalMode, InputFormat, ResizeMode, RetryFailed,
};
pub use error::DataFetchError;
pub use reject::{Reject, RowStatus};
pub use report::DataFetchReport;
pub use robots::OptOutPolicy;
pub use shard::{ShardNetwork, ShardStats};
pub use url_list::{CarriedColumn, ShardRows, UrlList, UrlRow};

use oqvl_stage::{RunContext, Stage};
use pipeline::NetworkFiles;
use shard_numbers::ShardNumbers;

/// The stage: `[data-fetch]` in, `data-fetch/` out.
#[derive(Debug, Clone, Copy)]
pub struct DataFetch;

impl Stage for DataFetch {
    const NAME: &'static str = "data-fetch";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    /// To be raised when shards come out otherwise from the same bodies: a directory then holds either kind, not both.
    const OUTPUT_VERSION: &'static str = "2";
    /// The seed decides on the jitter of waits alone.
    const SEEDED: bool = false;
    const SHARDED: bool = true;
    const CHECKS_FIRST: bool = true;
    type Config = DataFetchConfig;
    type Report = DataFetchReport;
    type Error = DataFetchError;

    fn run(config: &DataFetchConfig, run: &RunContext) -> Result<DataFetchReport, DataFetchError> {
        let check_interrupt = || run.check_interrupt().map_err(DataFetchError::from);
        let list = UrlList::survey(config, &run.resolve(&config.url_list), &check_interrupt)?;
        let files = NetworkFiles::read(config, run)?;
        let (list, numbers) = ShardNumbers::choose(config, run, list)?;
        run.begin()?;
        numbers.write()?;
        pipeline::fetch_shards(config, run, list.clone(), files)?;
        let report = DataFetchReport::of_shards(config, run, &list)?;
        report.check_failures(config)?;
        Ok(report)
    }

    fn check_report(config: &DataFetchConfig, report: &serde_json::Value) -> Result<(), DataFetchError> {
        DataFetchReport::check_written(report, config)
    }
}
