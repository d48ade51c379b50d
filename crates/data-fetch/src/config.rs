//! The `[data-fetch]` table.

mod checks;
mod choices;

pub use choices::{ComputeHash, EncodeFormat, IncrementalMode, InputFormat, ResizeMode, RetryFailed};

use crate::shard;
use crate::shard_numbers;
use crate::url_list::is_list_in_folder;
use checks::in_range;
use oqvl_image_prep::{Encoding, Interpolation};
use oqvl_stage::{ConfigError, EarlierOutput, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Shorter side of a stored image, in pixels: the recipe for the CCS set (paper, section 3.1).
pub const DEFAULT_IMAGE_SIZE: u32 = 512;
/// Rows of the list per shard (img2dataset `number_sample_per_shard`).
pub const DEFAULT_NUMBER_SAMPLE_PER_SHARD: u32 = 10_000;
/// Digits of a shard's name (img2dataset `oom_shard_count`); the DataComp downloader takes 8.
pub const DEFAULT_OOM_SHARD_COUNT: u32 = 5;
/// Quality of JPEG and WebP (img2dataset `encode_quality`).
pub const DEFAULT_ENCODE_QUALITY: u8 = 95;
/// The `encode_quality` that makes WebP lossless, as OpenCV has it.
pub(crate) const LOSSLESS_WEBP: u8 = 101;
/// Most pixels an image may have before it is decoded: twice Pillow's decompression-bomb warning, which is
/// where Pillow refuses (`Image.MAX_IMAGE_PIXELS`, 2 * 89,478,485).
pub const DEFAULT_MAX_DECODED_PIXELS: u64 = 178_956_970;
/// Longest body accepted, in bytes.
pub const DEFAULT_MAX_BODY_BYTES: u64 = 20 << 20;
/// Requests under way at the same time.
pub const DEFAULT_IN_FLIGHT: usize = 128;
/// Requests under way at the same time at one host.
pub const DEFAULT_PER_HOST_IN_FLIGHT: usize = 8;
/// Failures in a row after which a host is given up: twice [`DEFAULT_PER_HOST_IN_FLIGHT`], so that one burst of bad
/// luck is not enough.
pub const DEFAULT_MAX_HOST_FAILURES: u32 = 16;
/// Seconds a server may be silent (img2dataset `timeout`).
pub const DEFAULT_TIMEOUT: f64 = 10.0;
/// Seconds until a connection must be established, name resolution and TLS included.
pub const DEFAULT_CONNECT_TIMEOUT_SECONDS: f64 = 5.0;
/// Seconds of network time per URL, over all attempts and redirects.
pub const DEFAULT_DEADLINE_SECONDS: f64 = 20.0;
/// Further attempts after a transient failure (the DataComp downloader's value).
pub const DEFAULT_RETRIES: u32 = 2;
/// Mean of the first wait before another attempt, in seconds; it doubles with each.
pub const DEFAULT_BACKOFF_SECONDS: f64 = 0.5;
/// Longest wait before another attempt, in seconds.
pub const DEFAULT_MAX_BACKOFF_SECONDS: f64 = 10.0;
/// Longest total time a URL waits for hosts that answered with `Retry-After`, in seconds.
pub const DEFAULT_MAX_RETRY_AFTER_SECONDS: f64 = 60.0;
/// Redirects followed per attempt (as urllib, hence img2dataset).
pub const DEFAULT_MAX_REDIRECTS: u32 = 10;
/// Out-of-order images a shard holds in memory before it spills them to a temporary file, in bytes. The file costs
/// little: it stays in the system's cache and has no name.
pub const DEFAULT_REORDER_BUFFER_BYTES: u64 = 4 << 20;
/// What the server sees. It says what we are; img2dataset claims to be Firefox 72.
pub const DEFAULT_USER_AGENT: &str = concat!(
    "oqvl-data-fetch/",
    env!("CARGO_PKG_VERSION"),
    " (image-text dataset downloader; honours X-Robots-Tag)"
);
/// Directives that forbid (img2dataset `disallowed_header_directives`).
pub const DEFAULT_DISALLOWED_DIRECTIVES: [&str; 4] = ["noai", "noimageai", "noindex", "noimageindex"];
/// Agent names in an `X-Robots-Tag` that mean us. Sites that address img2dataset mean every downloader of its
/// kind.
pub const DEFAULT_ROBOTS_AGENTS: [&str; 2] = ["oqvl-data-fetch", "img2dataset"];

/// Keys that decide how long one waits and how hard one tries: what comes out depends on the network's mood anyway, and
/// a week's download must not be thrown away because somebody asked for fewer requests at a time.
const KEYS_WITHOUT_EFFECT: [&str; 20] = [
    "incremental_mode",
    "retry_failed",
    "max_failed_fraction",
    "in_flight",
    "per_host_in_flight",
    "per_host_requests_per_second",
    "max_host_failures",
    "connect_timeout_seconds",
    "timeout",
    "deadline_seconds",
    "retries",
    "backoff_seconds",
    "max_backoff_seconds",
    "max_retry_after_seconds",
    "max_redirects",
    "reorder_buffer_bytes",
    "user_agent",
    "user_agent_token",
    "hosts_file",
    "ca_file",
];

/// The `[data-fetch]` table. Every key but `url_list` has a default; the `DEFAULT_*` constants say where it
/// comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataFetchConfig {
    /// The list, a folder of lists, or a pattern (`lists/part-*.csv.gz`); files are taken in the order of their
    /// names. Required.
    pub url_list: PathBuf,
    /// Format of the list; by default what each file's extension says.
    pub input_format: Option<InputFormat>,
    /// Column of the URLs.
    pub url_col: String,
    /// Column of the captions; by default `caption` where there is such a column.
    pub caption_col: Option<String>,
    /// Column of the uids, stored as `uid`; by default `uid` where there is such a column.
    pub uid_col: Option<String>,
    /// Further columns to carry into the samples' metadata, after `uid` (which may be named, as for img2dataset, and is
    /// then required).
    pub save_additional_columns: Vec<String>,
    /// Rows of the list per shard; the last shard of each file is shorter.
    pub number_sample_per_shard: u32,
    /// Digits of a shard's name, zero-padded.
    pub oom_shard_count: u32,
    /// Store the EXIF tags of the downloaded images, in a column `exif`.
    pub extract_exif: bool,
    /// Digest of the downloaded bytes that is stored, in a column of this name.
    pub compute_hash: ComputeHash,
    /// Column of the list with the digests the downloaded bytes must have, and their kind, which must be that
    /// of `compute_hash`. The column is not carried along: the computed digests stand in its place.
    #[serde(deserialize_with = "choices::column_and_hash")]
    pub verify_hash: Option<(String, ComputeHash)>,

    /// What becomes of shards that are there already.
    pub incremental_mode: IncrementalMode,
    /// Which rows of finished shards are fetched again: `true` for those whose reason may have passed (timeouts,
    /// server errors, …), or a list of reasons.
    pub retry_failed: RetryFailed,
    /// The run fails, with all its shards kept, if more than this fraction of the rows was rejected.
    pub max_failed_fraction: Option<f64>,

    /// Target size of a side, in pixels; which side, `resize_mode` says.
    pub image_size: u32,
    /// How an image is brought to `image_size`.
    pub resize_mode: ResizeMode,
    /// Leave images alone that are not larger than `image_size` (instead of enlarging them).
    pub resize_only_if_bigger: bool,
    /// Resampling of images that are enlarged.
    pub upscale_interpolation: Interpolation,
    /// Resampling of images that are reduced. With `fast` JPEG files are also decoded less exactly, see
    /// `docs/stages/data-fetch.md`.
    pub downscale_interpolation: Interpolation,
    /// Format of the stored images.
    pub encode_format: EncodeFormat,
    /// For jpg the quality, 1 to 100; for png the compression level, 0 to 9; for webp the quality, 1 to 100, or 101 for
    /// lossless. By default 95, for png 6.
    pub encode_quality: Option<u8>,
    /// Store the downloaded bytes as they are when they already have the right format and nothing was
    /// resized.
    pub skip_reencode: bool,
    /// Store all bodies as they are, images or not, under the extension of `encode_format`.
    pub disable_all_reencoding: bool,
    /// Column of boxes to blur, such as faces: lists of left, top, right, bottom, in parts of the sides. The column is
    /// carried along.
    pub bbox_col: Option<String>,
    /// Reject images whose shorter side is below this many pixels.
    pub min_image_size: u32,
    /// Reject images with more pixels than this; unlimited by default.
    pub max_image_area: Option<u64>,
    /// Reject images whose longer side exceeds the shorter this many times; unlimited by default.
    pub max_aspect_ratio: Option<f64>,
    /// Reject images with more pixels than this before decoding them (decompression bombs).
    pub max_decoded_pixels: u64,

    /// Requests under way at the same time.
    pub in_flight: usize,
    /// Requests under way at the same time at one host.
    pub per_host_in_flight: usize,
    /// Longest body accepted, in bytes.
    pub max_body_bytes: u64,
    /// Requests per second at one host in the long run; no limit by default.
    pub per_host_requests_per_second: Option<f64>,
    /// Failures in a row (over at least `deadline_seconds`) after which a host is left alone for ten minutes and
    /// its URLs are rejected as `host-failing`; 0 for never.
    pub max_host_failures: u32,
    /// Seconds until a connection must be established.
    pub connect_timeout_seconds: f64,
    /// Seconds a server may be silent before an attempt is over (img2dataset's meaning, and its only limit).
    pub timeout: f64,
    /// Seconds of network time per URL, over all attempts and redirects.
    pub deadline_seconds: f64,
    /// Further attempts after a transient failure.
    pub retries: u32,
    /// Mean of the first wait before another attempt, in seconds; it doubles with each.
    pub backoff_seconds: f64,
    /// Longest wait before another attempt, in seconds.
    pub max_backoff_seconds: f64,
    /// Longest total time a URL waits for hosts that answered with `Retry-After`, in seconds.
    pub max_retry_after_seconds: f64,
    /// Redirects followed per attempt.
    pub max_redirects: u32,
    /// Out-of-order images a shard holds in memory before it spills them to a temporary file, in bytes.
    pub reorder_buffer_bytes: u64,

    /// What the servers see.
    pub user_agent: String,
    /// A name to be known by: it is appended to `user_agent`, and an `X-Robots-Tag` that addresses it means us.
    pub user_agent_token: Option<String>,
    /// Agent names in an `X-Robots-Tag` that mean us.
    pub robots_agents: Vec<String>,
    /// `X-Robots-Tag` directives that forbid keeping an image; an empty list ignores the header.
    pub disallowed_header_directives: Vec<String>,
    /// Allow loopback, private and link-local addresses.
    pub allow_private_addresses: bool,
    /// JSON map from host names to `address:port`, an `/etc/hosts` with ports; the addresses may be private.
    /// Read at start; its content is not part of the stage's fingerprint.
    pub hosts_file: Option<PathBuf>,
    /// PEM file of certificate authorities to trust besides those of the system.
    pub ca_file: Option<PathBuf>,
}

impl Default for DataFetchConfig {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Self {
            url_list: PathBuf::new(),
            input_format: None,
            url_col: "url".to_owned(),
            caption_col: None,
            uid_col: None,
            save_additional_columns: Vec::new(),
            number_sample_per_shard: DEFAULT_NUMBER_SAMPLE_PER_SHARD,
            oom_shard_count: DEFAULT_OOM_SHARD_COUNT,
            extract_exif: true,
            compute_hash: ComputeHash::Sha256,
            verify_hash: None,
            incremental_mode: IncrementalMode::Incremental,
            retry_failed: RetryFailed::Switch(false),
            max_failed_fraction: None,
            image_size: DEFAULT_IMAGE_SIZE,
            resize_mode: ResizeMode::KeepRatio,
            resize_only_if_bigger: true,
            upscale_interpolation: Interpolation::Lanczos,
            downscale_interpolation: Interpolation::Area,
            encode_format: EncodeFormat::Jpg,
            encode_quality: None,
            skip_reencode: true,
            disable_all_reencoding: false,
            bbox_col: None,
            min_image_size: 0,
            max_image_area: None,
            max_aspect_ratio: None,
            max_decoded_pixels: DEFAULT_MAX_DECODED_PIXELS,
            in_flight: DEFAULT_IN_FLIGHT,
            per_host_in_flight: DEFAULT_PER_HOST_IN_FLIGHT,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            per_host_requests_per_second: None,
            max_host_failures: DEFAULT_MAX_HOST_FAILURES,
            connect_timeout_seconds: DEFAULT_CONNECT_TIMEOUT_SECONDS,
            timeout: DEFAULT_TIMEOUT,
            deadline_seconds: DEFAULT_DEADLINE_SECONDS,
            retries: DEFAULT_RETRIES,
            backoff_seconds: DEFAULT_BACKOFF_SECONDS,
            max_backoff_seconds: DEFAULT_MAX_BACKOFF_SECONDS,
            max_retry_after_seconds: DEFAULT_MAX_RETRY_AFTER_SECONDS,
            max_redirects: DEFAULT_MAX_REDIRECTS,
            reorder_buffer_bytes: DEFAULT_REORDER_BUFFER_BYTES,
            user_agent: DEFAULT_USER_AGENT.to_owned(),
            user_agent_token: None,
            robots_agents: owned(&DEFAULT_ROBOTS_AGENTS),
            disallowed_header_directives: owned(&DEFAULT_DISALLOWED_DIRECTIVES),
            allow_private_addresses: false,
            hosts_file: None,
            ca_file: None,
        }
    }
}

impl DataFetchConfig {
    /// The key of the sample at `row_idx` of shard `shard_idx`: the shard's number times the next power of
    /// ten above the shard size, plus the row, zero-padded. Source: img2dataset `downloader.py`,
    /// `compute_key`.
    #[must_use]
    pub fn sample_key(&self, shard_idx: usize, row_idx: usize) -> String {
        let row_digits = row_digits(self.number_sample_per_shard);
        let number = shard_idx as u128 * 10_u128.pow(row_digits) + row_idx as u128;
        format!("{number:0width$}", width = (row_digits + self.oom_shard_count) as usize)
    }

    /// Format and setting of the stored images.
    pub(crate) fn encoding(&self) -> Encoding {
        match self.encode_format {
            EncodeFormat::Jpg => {
                Encoding::Jpeg { quality: self.encode_quality.unwrap_or(DEFAULT_ENCODE_QUALITY) }
            }
            EncodeFormat::Png => {
                Encoding::Png { level: self.encode_quality.unwrap_or(Encoding::DEFAULT_PNG_LEVEL) }
            }
            EncodeFormat::Webp => match self.encode_quality.unwrap_or(DEFAULT_ENCODE_QUALITY) {
                LOSSLESS_WEBP => Encoding::WebpLossless,
                quality => Encoding::WebpLossy { quality },
            },
        }
    }

    /// The `User-Agent` header: `user_agent`, and the token in img2dataset's form.
    pub(crate) fn user_agent_header(&self) -> String {
        match &self.user_agent_token {
            Some(token) => format!("{} (compatible; {token})", self.user_agent),
            None => self.user_agent.clone(),
        }
    }

    /// The agent names in an `X-Robots-Tag` that mean us.
    pub(crate) fn robots_names(&self) -> Vec<String> {
        self.robots_agents.iter().chain(&self.user_agent_token).cloned().collect()
    }

    /// The name of a shard's files, without extension.
    #[must_use]
    pub fn shard_name(&self, shard_idx: usize) -> String {
        format!("{shard_idx:0width$}", width = self.oom_shard_count as usize)
    }
}

impl StageConfig for DataFetchConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.url_list.as_os_str().is_empty() {
            return Err(ConfigError::new(
                "url_list",
                "is missing: it names the list of URLs: a file, a folder or a pattern",
            ));
        }
        in_range("number_sample_per_shard", u64::from(self.number_sample_per_shard), 1, 10_000_000)?;
        in_range("oom_shard_count", u64::from(self.oom_shard_count), 1, 18)?;
        self.check_columns()?;
        self.check_hashes()?;
        self.check_failures()?;
        self.check_image()?;
        self.check_network()
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.url_list.clone()]
    }

    /// Of a remote folder, what would count as a list in a local one.
    fn wants_file(&self, _input: &Path, name: &str) -> bool {
        !name.contains('/') && is_list_in_folder(Path::new(name), self.input_format)
    }

    fn keys_without_effect(&self) -> &'static [&'static str] {
        &KEYS_WITHOUT_EFFECT
    }

    fn earlier_output(&self) -> EarlierOutput {
        match self.incremental_mode {
            IncrementalMode::Incremental => EarlierOutput::Complete,
            IncrementalMode::Overwrite => EarlierOutput::Discard,
            IncrementalMode::Extend => EarlierOutput::Extend,
        }
    }

    /// What was downloaded does not go because a list was touched: servers may not give it again.
    fn check_discard(&self, out_dir: &Path) -> Result<(), ConfigError> {
        let finished = shard::num_finished(out_dir);
        if finished == 0 {
            return Ok(());
        }
        let lists = shard_numbers::lists_in(out_dir);
        let message = if let [_, _, ..] = &lists[..] {
            format!(
                "{} holds {finished} finished shards of {} requests, one added to the other ({}): set `extend` to complete the \
                 one that is asked for, or to add to them, and `overwrite` to discard them all",
                out_dir.display(),
                lists.len(),
                lists.join(", ")
            )
        } else {
            format!(
                "{} holds {finished} finished shards of another list or of other settings, which are not removed unasked: \
                 set `overwrite` to discard them, `extend` to add to them, or choose another work directory",
                out_dir.display()
            )
        };
        Err(ConfigError::new("incremental_mode", message))
    }

    fn revisits_finished_output(&self) -> bool {
        self.retry_failed.is_on()
    }
}

/// `ceil(log10(count))`: digits of the largest row number.
fn row_digits(count: u32) -> u32 {
    count.saturating_sub(1).checked_ilog10().map_or(0, |exponent| exponent + 1)
}

#[cfg(test)]
mod tests;
