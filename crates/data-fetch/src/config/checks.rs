//! What the types of the keys do not rule out.

use super::{ComputeHash, DEFAULT_TIMEOUT, DataFetchConfig, EncodeFormat, LOSSLESS_WEBP, RetryFailed};
use crate::reject::Reject;
use crate::robots::is_addressable;
use oqvl_stage::ConfigError;

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

impl DataFetchConfig {
    pub(super) fn check_columns(&self) -> Result<(), ConfigError> {
        if self.url_col.is_empty() {
            return Err(ConfigError::new("url_col", "must name a column"));
        }
        if let Some(name) = &self.bbox_col
            && (name.is_empty() || name == "uid" || RESERVED_COLUMNS.contains(&name.as_str()))
        {
            return Err(ConfigError::new("bbox_col", format!("`{name}` cannot be a column of boxes")));
        }
        let mut seen = std::collections::BTreeSet::new();
        for name in &self.save_additional_columns {
            if RESERVED_COLUMNS.contains(&name.as_str()) {
                return Err(ConfigError::new(
                    "save_additional_columns",
                    format!("`{name}` is a name the stage writes itself"),
                ));
            }
            if name == "uid" && self.uid_col.as_ref().is_some_and(|column| column != "uid") {
                let message = "`uid` is what `data-fetch.uid_col` names already";
                return Err(ConfigError::new("save_additional_columns", message));
            }
            if self.bbox_col.as_ref() == Some(name) {
                let message = format!("`{name}` is carried along already: `data-fetch.bbox_col` names it");
                return Err(ConfigError::new("save_additional_columns", message));
            }
            if !seen.insert(name) {
                return Err(ConfigError::new("save_additional_columns", format!("`{name}` is there twice")));
            }
        }
        Ok(())
    }

    pub(super) fn check_hashes(&self) -> Result<(), ConfigError> {
        let Some((column, kind)) = &self.verify_hash else { return Ok(()) };
        if column.is_empty() {
            return Err(ConfigError::new("verify_hash", "must name a column"));
        }
        if *kind == ComputeHash::None || *kind != self.compute_hash {
            let message = format!(
                "verifies {}, but `data-fetch.compute_hash` is {}: the two must be the same",
                kind.name(),
                self.compute_hash.name()
            );
            return Err(ConfigError::new("verify_hash", message));
        }
        Ok(())
    }

    pub(super) fn check_failures(&self) -> Result<(), ConfigError> {
        if let RetryFailed::Reasons(reasons) = &self.retry_failed {
            for reason in reasons {
                let message = match Reject::from_reason(reason) {
                    None => format!("`{reason}` is no reason for a rejection"),
                    Some(Reject::NotFound | Reject::Gone | Reject::OptedOut) => {
                        format!("`{reason}` is final: such URLs are never asked for again")
                    }
                    Some(_) => continue,
                };
                return Err(ConfigError::new("retry_failed", message));
            }
        }
        if let Some(fraction) = self.max_failed_fraction
            && !(0.0..=1.0).contains(&fraction)
        {
            let message = format!("must be from 0 to 1, got {fraction}");
            return Err(ConfigError::new("max_failed_fraction", message));
        }
        Ok(())
    }

    fn check_quality(&self) -> Result<(), ConfigError> {
        let Some(quality) = self.encode_quality else { return Ok(()) };
        let (range, meaning) = match self.encode_format {
            EncodeFormat::Jpg => (1..=100, "for jpg is the quality and must be from 1 to 100"),
            EncodeFormat::Png => (0..=9, "for png is the compression level and must be from 0 to 9"),
            EncodeFormat::Webp => {
                (1..=LOSSLESS_WEBP, "for webp is the quality and must be from 1 to 100, or 101 for lossless")
            }
        };
        if range.contains(&quality) {
            return Ok(());
        }
        Err(ConfigError::new("encode_quality", format!("{meaning}, got {quality}")))
    }

    pub(super) fn check_image(&self) -> Result<(), ConfigError> {
        // 65,500 is the largest side libjpeg writes.
        in_range("image_size", u64::from(self.image_size), 1, 65_500)?;
        self.check_quality()?;
        // Above 2^30 the pixels of one image alone would take 3 GiB.
        in_range("max_decoded_pixels", self.max_decoded_pixels, 1, 1 << 30)?;
        if let Some(ratio) = self.max_aspect_ratio
            && (ratio.is_nan() || ratio < 1.0)
        {
            return Err(ConfigError::new("max_aspect_ratio", format!("must be at least 1, got {ratio}")));
        }
        Ok(())
    }

    pub(super) fn check_network(&self) -> Result<(), ConfigError> {
        in_range("in_flight", self.in_flight as u64, 1, 100_000)?;
        in_range("per_host_in_flight", self.per_host_in_flight as u64, 1, 100_000)?;
        in_range("max_body_bytes", self.max_body_bytes, 1, 1 << 32)?;
        in_range("retries", u64::from(self.retries), 0, 100)?;
        in_range("max_redirects", u64::from(self.max_redirects), 0, 100)?;
        for (key, seconds, least) in [
            ("connect_timeout_seconds", self.connect_timeout_seconds, 0.001),
            ("timeout", self.timeout, 0.001),
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
        // A deadline below the default is a limit for all; a longer silence than that somebody meant.
        if self.timeout > self.deadline_seconds && self.timeout.to_bits() != DEFAULT_TIMEOUT.to_bits() {
            let message = format!(
                "is {}, but a URL has no more than `data-fetch.deadline_seconds` = {}: raise that too",
                self.timeout, self.deadline_seconds
            );
            return Err(ConfigError::new("timeout", message));
        }
        if let Some(rate) = self.per_host_requests_per_second
            && !(0.001..=1e6).contains(&rate)
        {
            let message = format!("must be from 0.001 to 1000000, got {rate}");
            return Err(ConfigError::new("per_host_requests_per_second", message));
        }
        // What an HTTP header may hold (RFC 9110 section 5.5), without the obsolete rest.
        let is_header_text = |byte: u8| byte == b' ' || byte.is_ascii_graphic();
        if self.user_agent.is_empty() || !self.user_agent.bytes().all(is_header_text) {
            return Err(ConfigError::new("user_agent", "must be printable ASCII and not empty"));
        }
        let agents = self.robots_agents.iter().map(|name| ("robots_agents", name));
        for (key, name) in agents.chain(self.user_agent_token.iter().map(|name| ("user_agent_token", name))) {
            if !is_addressable(name) {
                let message = format!(
                    "must be one word of ASCII letters, digits, `-`, `_` and `.` that begins with a letter and is no \
                     directive, or no header could address it; got `{name}`"
                );
                return Err(ConfigError::new(key, message));
            }
        }
        Ok(())
    }
}

pub(super) fn in_range(key: &str, value: u64, least: u64, most: u64) -> Result<(), ConfigError> {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    Err(ConfigError::new(key, format!("must be from {least} to {most}, got {value}")))
}
