//! The `[data-fetch]` table.

use oqvl_stage::{ConfigError, StageConfig};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Shorter side of a stored image, in pixels: the recipe for the CCS set (paper, section 3.1).
pub const DEFAULT_IMAGE_SIZE: u32 = 512;
/// Rows of the list per shard (img2dataset `number_sample_per_shard`).
pub const DEFAULT_NUMBER_SAMPLE_PER_SHARD: u32 = 10_000;
/// Digits of a shard's name (img2dataset `oom_shard_count`); the DataComp downloader takes 8.
pub const DEFAULT_SHARD_DIGITS: u32 = 5;
/// JPEG quality (img2dataset `encode_quality`).
pub const DEFAULT_ENCODE_QUALITY: u8 = 95;
/// Most pixels an image may have before it is decoded: twice Pillow's decompression-bomb warning, which is
/// where Pillow refuses (`Image.MAX_IMAGE_PIXELS`, 2 * 89,478,485).
pub const DEFAULT_MAX_DECODED_PIXELS: u64 = 178_956_970;
/// Longest body accepted, in bytes.
pub const DEFAULT_MAX_BODY_BYTES: u64 = 20 << 20;
/// Requests under way at the same time.
pub const DEFAULT_IN_FLIGHT: usize = 128;
/// Requests under way at the same time at one host.
pub const DEFAULT_PER_HOST_IN_FLIGHT: usize = 8;
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
/// Out-of-order images a shard holds in memory before it spills them to a temporary file, in bytes.
pub const DEFAULT_REORDER_BUFFER_BYTES: u64 = 128 << 20;
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

/// Column names the stage writes itself; an additional column cannot have one of them (img2dataset's list).
const RESERVED_COLUMNS: [&str; 13] = [
    "key",
    "caption",
    "url",
    "width",
    "height",
    "original_width",
    "original_height",
    "status",
    "error_message",
    "exif",
    "md5",
    "sha256",
    "sha512",
];

/// Longest duration accepted anywhere: a week. It keeps every sum of durations far from overflow.
const MAX_SECONDS: f64 = 7.0 * 24.0 * 3600.0;

/// Format of a URL list; with `.gz` appended to the file name, any but parquet may be compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum InputFormat {
    /// One URL per line, no captions.
    Txt,
    /// Comma-separated, with a header line.
    Csv,
    /// Tab-separated, with a header line, quoted as CSV is.
    Tsv,
    /// One JSON object per line.
    Jsonl,
    /// One JSON list of objects.
    Json,
    /// Parquet.
    Parquet,
}

impl InputFormat {
    /// The name in the config.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Csv => "csv",
            Self::Tsv => "tsv",
            Self::Jsonl => "jsonl",
            Self::Json => "json",
            Self::Parquet => "parquet",
        }
    }
}

/// How an image is brought to `image_size`; names and meaning of img2dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResizeMode {
    /// Not at all.
    No,
    /// Longer side to `image_size`, then white borders to a square.
    Border,
    /// Shorter side to `image_size`.
    KeepRatio,
    /// Longer side to `image_size`.
    KeepRatioLargest,
    /// Shorter side to `image_size`, then the middle square.
    CenterCrop,
}

/// Format of the stored images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EncodeFormat {
    /// JPEG at `encode_quality`.
    Jpg,
    /// PNG.
    Png,
    /// Lossless WebP.
    Webp,
}

impl EncodeFormat {
    /// Extension of the tar member.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpg => "jpg",
            Self::Png => "png",
            Self::Webp => "webp",
        }
    }
}

/// The `[data-fetch]` table. Every key but `url_list` has a default; the `DEFAULT_*` constants say where it
/// comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DataFetchConfig {
    /// The list, or a folder of lists (taken in the order of their names). Required.
    pub url_list: PathBuf,
    /// Format of the list; by default what each file's extension says.
    pub input_format: Option<InputFormat>,
    /// Column of the URLs.
    pub url_column: String,
    /// Column of the captions; by default `caption` where there is such a column.
    pub caption_column: Option<String>,
    /// Column of the uids, stored as `uid`; by default `uid` where there is such a column.
    pub uid_column: Option<String>,
    /// Further columns to carry into the samples' metadata, after `uid`.
    pub save_additional_columns: Vec<String>,
    /// Rows of the list per shard; the last shard of each file is shorter.
    pub number_sample_per_shard: u32,
    /// Digits of a shard's name, zero-padded.
    pub shard_digits: u32,

    /// Target size of a side, in pixels; which side, `resize_mode` says.
    pub image_size: u32,
    /// How an image is brought to `image_size`.
    pub resize_mode: ResizeMode,
    /// Leave images alone that are not larger than `image_size` (instead of enlarging them).
    pub resize_only_if_bigger: bool,
    /// Format of the stored images.
    pub encode_format: EncodeFormat,
    /// JPEG quality, 1 to 100.
    pub encode_quality: u8,
    /// Store the downloaded bytes as they are when they already have the right format and nothing was
    /// resized.
    pub skip_reencode: bool,
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
    /// Seconds until a connection must be established.
    pub connect_timeout_seconds: f64,
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
    /// Agent names in an `X-Robots-Tag` that mean us.
    pub robots_agents: Vec<String>,
    /// `X-Robots-Tag` directives that forbid keeping an image; an empty list ignores the header.
    pub disallowed_header_directives: Vec<String>,
    /// Allow loopback, private and link-local addresses.
    pub allow_private_addresses: bool,
    /// JSON map from host names to `address:port`, an `/etc/hosts` with ports; the addresses may be private.
    /// Read at start; its content is not part of the stage's fingerprint.
    pub hosts_file: Option<PathBuf>,
}

impl Default for DataFetchConfig {
    fn default() -> Self {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        Self {
            url_list: PathBuf::new(),
            input_format: None,
            url_column: "url".to_owned(),
            caption_column: None,
            uid_column: None,
            save_additional_columns: Vec::new(),
            number_sample_per_shard: DEFAULT_NUMBER_SAMPLE_PER_SHARD,
            shard_digits: DEFAULT_SHARD_DIGITS,
            image_size: DEFAULT_IMAGE_SIZE,
            resize_mode: ResizeMode::KeepRatio,
            resize_only_if_bigger: true,
            encode_format: EncodeFormat::Jpg,
            encode_quality: DEFAULT_ENCODE_QUALITY,
            skip_reencode: true,
            min_image_size: 0,
            max_image_area: None,
            max_aspect_ratio: None,
            max_decoded_pixels: DEFAULT_MAX_DECODED_PIXELS,
            in_flight: DEFAULT_IN_FLIGHT,
            per_host_in_flight: DEFAULT_PER_HOST_IN_FLIGHT,
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
            connect_timeout_seconds: DEFAULT_CONNECT_TIMEOUT_SECONDS,
            deadline_seconds: DEFAULT_DEADLINE_SECONDS,
            retries: DEFAULT_RETRIES,
            backoff_seconds: DEFAULT_BACKOFF_SECONDS,
            max_backoff_seconds: DEFAULT_MAX_BACKOFF_SECONDS,
            max_retry_after_seconds: DEFAULT_MAX_RETRY_AFTER_SECONDS,
            max_redirects: DEFAULT_MAX_REDIRECTS,
            reorder_buffer_bytes: DEFAULT_REORDER_BUFFER_BYTES,
            user_agent: DEFAULT_USER_AGENT.to_owned(),
            robots_agents: owned(&DEFAULT_ROBOTS_AGENTS),
            disallowed_header_directives: owned(&DEFAULT_DISALLOWED_DIRECTIVES),
            allow_private_addresses: false,
            hosts_file: None,
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
        format!("{number:0width$}", width = (row_digits + self.shard_digits) as usize)
    }

    /// The name of a shard's files, without extension.
    #[must_use]
    pub fn shard_name(&self, shard_idx: usize) -> String {
        format!("{shard_idx:0width$}", width = self.shard_digits as usize)
    }

    fn check_columns(&self) -> Result<(), ConfigError> {
        if self.url_column.is_empty() {
            return Err(ConfigError::new("url_column", "must name a column"));
        }
        let mut seen = std::collections::BTreeSet::new();
        for name in &self.save_additional_columns {
            if RESERVED_COLUMNS.contains(&name.as_str()) {
                return Err(ConfigError::new(
                    "save_additional_columns",
                    format!("`{name}` is a name the stage writes itself"),
                ));
            }
            if name == "uid" {
                let message = "`uid` is always carried along; name its column with `uid_column`";
                return Err(ConfigError::new("save_additional_columns", message));
            }
            if !seen.insert(name) {
                return Err(ConfigError::new("save_additional_columns", format!("`{name}` is there twice")));
            }
        }
        Ok(())
    }

    fn check_image(&self) -> Result<(), ConfigError> {
        // 65,500 is the largest side libjpeg writes.
        in_range("image_size", u64::from(self.image_size), 1, 65_500)?;
        in_range("encode_quality", u64::from(self.encode_quality), 1, 100)?;
        // Above 2^30 the pixels of one image alone would take 3 GiB.
        in_range("max_decoded_pixels", self.max_decoded_pixels, 1, 1 << 30)?;
        if let Some(ratio) = self.max_aspect_ratio
            && (ratio.is_nan() || ratio < 1.0)
        {
            return Err(ConfigError::new("max_aspect_ratio", format!("must be at least 1, got {ratio}")));
        }
        Ok(())
    }

    fn check_network(&self) -> Result<(), ConfigError> {
        in_range("in_flight", self.in_flight as u64, 1, 100_000)?;
        in_range("per_host_in_flight", self.per_host_in_flight as u64, 1, 100_000)?;
        in_range("max_body_bytes", self.max_body_bytes, 1, 1 << 32)?;
        in_range("retries", u64::from(self.retries), 0, 100)?;
        in_range("max_redirects", u64::from(self.max_redirects), 0, 100)?;
        for (key, seconds, least) in [
            ("connect_timeout_seconds", self.connect_timeout_seconds, 0.001),
            ("deadline_seconds", self.deadline_seconds, 0.001),
            ("backoff_seconds", self.backoff_seconds, 0.0),
            ("max_backoff_seconds", self.max_backoff_seconds, 0.0),
            ("max_retry_after_seconds", self.max_retry_after_seconds, 0.0),
        ] {
            if !(least..=MAX_SECONDS).contains(&seconds) {
                return Err(ConfigError::new(
                    key,
                    format!("must be from {least} to {MAX_SECONDS}, got {seconds}"),
                ));
            }
        }
        // What an HTTP header may hold (RFC 9110 section 5.5), without the obsolete rest.
        let is_header_text = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if self.user_agent.is_empty() || !self.user_agent.bytes().all(is_header_text) {
            return Err(ConfigError::new("user_agent", "must be printable ASCII and not empty"));
        }
        Ok(())
    }
}

impl StageConfig for DataFetchConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.url_list.as_os_str().is_empty() {
            return Err(ConfigError::new(
                "url_list",
                "is missing: it names the list of URLs, a file or a folder",
            ));
        }
        in_range("number_sample_per_shard", u64::from(self.number_sample_per_shard), 1, 10_000_000)?;
        in_range("shard_digits", u64::from(self.shard_digits), 1, 18)?;
        self.check_columns()?;
        self.check_image()?;
        self.check_network()
    }

    fn inputs(&self) -> Vec<PathBuf> {
        vec![self.url_list.clone()]
    }
}

/// `ceil(log10(count))`: digits of the largest row number.
fn row_digits(count: u32) -> u32 {
    count.saturating_sub(1).checked_ilog10().map_or(0, |exponent| exponent + 1)
}

fn in_range(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("must be from {least} to {most}, got {value}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_stage::ConfigFile;

    fn check(lines: &str) -> Result<DataFetchConfig, String> {
        let file = ConfigFile::parse(&format!("seed = 1\n[data-fetch]\n{lines}")).unwrap();
        file.stage("data-fetch").map_err(|error| error.to_string())
    }

    #[test]
    fn formats_are_called_what_the_config_calls_them() {
        use InputFormat::{Csv, Json, Jsonl, Parquet, Tsv, Txt};
        for format in [Txt, Csv, Tsv, Jsonl, Json, Parquet] {
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
    }

    #[test]
    fn keys_are_those_of_img2dataset() {
        let key = |per_shard, digits, shard, row| {
            let config = DataFetchConfig {
                number_sample_per_shard: per_shard,
                shard_digits: digits,
                ..Default::default()
            };
            config.sample_key(shard, row)
        };
        assert_eq!(key(10_000, 5, 0, 0), "000000000");
        assert_eq!(key(10_000, 8, 0, 0), "000000000000");
        assert_eq!(key(1_000, 5, 0, 1), "00000001");
        assert_eq!(key(10_000, 5, 1302, 9999), "013029999");
        assert_eq!(key(10_001, 5, 1, 10_000), "0000110000");
        assert_eq!(key(1, 5, 7, 0), "00007");
        assert_eq!(key(10, 1, 123, 4), "1234");
    }

    #[test]
    fn keys_are_unique_and_ordered() {
        for per_shard in [1, 2, 9, 10, 11, 1000] {
            let config = DataFetchConfig { number_sample_per_shard: per_shard, ..Default::default() };
            let keys: Vec<_> =
                (0..3).flat_map(|shard| (0..per_shard as usize).map(move |row| (shard, row))).collect();
            let keys: Vec<_> = keys.into_iter().map(|(shard, row)| config.sample_key(shard, row)).collect();
            assert!(keys.windows(2).all(|pair| pair[0] < pair[1]), "{per_shard}");
        }
    }

    #[test]
    fn a_list_is_all_one_must_name() {
        let config = check("url_list = \"urls.txt\"").unwrap();
        assert_eq!(config, DataFetchConfig { url_list: "urls.txt".into(), ..Default::default() });
        assert_eq!(config.inputs(), [PathBuf::from("urls.txt")]);
        assert!(check("").unwrap_err().starts_with("data-fetch.url_list: is missing"));
    }

    #[test]
    fn choices_have_the_names_of_img2dataset() {
        let config =
            check("url_list = \"u\"\nresize_mode = \"keep_ratio_largest\"\nencode_format = \"webp\"")
                .unwrap();
        assert_eq!(
            (config.resize_mode, config.encode_format),
            (ResizeMode::KeepRatioLargest, EncodeFormat::Webp)
        );
        assert!(
            check("url_list = \"u\"\nresize_mode = \"largest\"").unwrap_err().contains("keep_ratio_largest")
        );
    }

    #[test]
    fn wrong_values_name_their_key() {
        for (line, key) in [
            ("image_size = 0", "image_size"),
            ("encode_quality = 101", "encode_quality"),
            ("max_aspect_ratio = nan", "max_aspect_ratio"),
            ("max_aspect_ratio = 0.5", "max_aspect_ratio"),
            ("deadline_seconds = 0.0", "deadline_seconds"),
            ("deadline_seconds = inf", "deadline_seconds"),
            ("backoff_seconds = -1.0", "backoff_seconds"),
            ("in_flight = 0", "in_flight"),
            ("user_agent = \"a\\nb\"", "user_agent"),
            ("number_sample_per_shard = 0", "number_sample_per_shard"),
            ("save_additional_columns = [\"sha256\"]", "save_additional_columns"),
            ("save_additional_columns = [\"a\", \"a\"]", "save_additional_columns"),
            ("url_colum = \"u\"", "(table)"),
        ] {
            let error = check(&format!("url_list = \"u\"\n{line}")).unwrap_err();
            assert!(error.starts_with(&format!("data-fetch.{key}: ")), "{line}: {error}");
        }
    }
}
