//! Why a URL of the list did not become a sample.

use std::borrow::Cow;

/// What became of one row of the list: the `status` column of the shard's parquet, as img2dataset names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowStatus {
    /// The image is in the tar.
    Success,
    /// No usable bytes arrived.
    FailedToDownload,
    /// Bytes arrived, but no usable image.
    FailedToResize,
}

impl RowStatus {
    /// The text in the parquet.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::FailedToDownload => "failed_to_download",
            Self::FailedToResize => "failed_to_resize",
        }
    }
}

/// Why a row of the list was rejected. [`reason`](Reject::reason) is its stable name in reports and in the
/// `error_message` column; new reasons may be added, existing ones keep their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reject {
    /// `bad-row`: the line or row is not what the format says (broken JSON, invalid UTF-8, no object).
    BadRow,
    /// `bad-url`: there is no URL, or none that can be parsed.
    BadUrl,
    /// `bad-scheme`: neither `http` nor `https`, in the list or in a redirect.
    BadScheme,
    /// `private-address`: the host is, or resolves to, an address that is not on the public internet.
    PrivateAddress,
    /// `dns-failed`: the host name has no address.
    DnsFailed,
    /// `connect-failed`: no connection: refused, unreachable, reset, or not established in time.
    ConnectFailed,
    /// `tls-failed`: the TLS handshake failed: certificate, protocol version or cipher.
    TlsFailed,
    /// `timeout`: the answer was not complete when the URL's deadline passed.
    Timeout,
    /// `host-failing`: nothing but failures came from the host for a while, so it was not asked.
    HostFailing,
    /// `bad-response`: the server closed the connection without an answer, or the answer is not HTTP.
    BadResponse,
    /// `redirect-loop`: more redirects than allowed.
    RedirectLoop,
    /// `not-found`: status 404.
    NotFound,
    /// `gone`: status 410.
    Gone,
    /// `forbidden`: status 403.
    Forbidden,
    /// `rate-limited`: status 429, or the host asked for a longer pause than we are willing to wait.
    RateLimited,
    /// `server-error`: status 500 to 599.
    ServerError,
    /// `http-status-NNN`: any other status that is no success.
    HttpStatus(u16),
    /// `opted-out`: an `X-Robots-Tag` header forbids this use of the image.
    OptedOut,
    /// `truncated-body`: the connection ended before the announced end of the body.
    TruncatedBody,
    /// `too-many-bytes`: the body is longer than `max_body_bytes`.
    TooManyBytes,
    /// `empty-body`: success, but not one byte.
    EmptyBody,
    /// `hash-mismatch`: the bytes have another digest than the list says.
    HashMismatch,
    /// `unknown-format`: the bytes are in no image format we know.
    UnknownFormat,
    /// `truncated-image`: the file ends before its image does.
    TruncatedImage,
    /// `corrupt-image`: an image format, but the data are damaged.
    CorruptImage,
    /// `unsupported-image`: a part of an image format that nobody here decodes.
    UnsupportedImage,
    /// `decoder-panicked`: a bug in a decoder.
    DecoderPanicked,
    /// `image-too-large`: more pixels than `max_decoded_pixels` or `max_image_area` allow, before or after
    /// resizing.
    ImageTooLarge,
    /// `image-too-small`: the shorter side is below `min_image_size`.
    ImageTooSmall,
    /// `bad-boxes`: the boxes to blur are not a list of four numbers each.
    BadBoxes,
    /// `aspect-ratio`: longer side over shorter side exceeds `max_aspect_ratio`.
    AspectRatio,
}

/// Every reason but the `http-status-NNN`.
const NAMED: [Reject; 30] = [
    Reject::BadRow,
    Reject::BadUrl,
    Reject::BadScheme,
    Reject::PrivateAddress,
    Reject::DnsFailed,
    Reject::ConnectFailed,
    Reject::TlsFailed,
    Reject::Timeout,
    Reject::HostFailing,
    Reject::BadResponse,
    Reject::RedirectLoop,
    Reject::NotFound,
    Reject::Gone,
    Reject::Forbidden,
    Reject::RateLimited,
    Reject::ServerError,
    Reject::OptedOut,
    Reject::TruncatedBody,
    Reject::TooManyBytes,
    Reject::EmptyBody,
    Reject::HashMismatch,
    Reject::UnknownFormat,
    Reject::TruncatedImage,
    Reject::CorruptImage,
    Reject::UnsupportedImage,
    Reject::DecoderPanicked,
    Reject::ImageTooLarge,
    Reject::ImageTooSmall,
    Reject::AspectRatio,
    Reject::BadBoxes,
];

impl Reject {
    /// The reason of that name.
    #[must_use]
    pub fn from_reason(name: &str) -> Option<Self> {
        if let Some(status) = name.strip_prefix("http-status-") {
            return status.parse().ok().map(Self::HttpStatus);
        }
        NAMED.into_iter().find(|reject| reject.reason() == name)
    }

    /// Whether it may be another story in a later run. 404, 410 and opt-outs are final, as is whatever the list or the
    /// image itself is to blame for.
    #[must_use]
    pub fn may_pass_later(self) -> bool {
        self.is_transient() || matches!(self, Self::TlsFailed | Self::HostFailing)
    }

    /// The stable kebab-case name.
    #[must_use]
    pub fn reason(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::BadRow => "bad-row",
            Self::BadUrl => "bad-url",
            Self::BadScheme => "bad-scheme",
            Self::PrivateAddress => "private-address",
            Self::DnsFailed => "dns-failed",
            Self::ConnectFailed => "connect-failed",
            Self::TlsFailed => "tls-failed",
            Self::Timeout => "timeout",
            Self::HostFailing => "host-failing",
            Self::BadResponse => "bad-response",
            Self::RedirectLoop => "redirect-loop",
            Self::NotFound => "not-found",
            Self::Gone => "gone",
            Self::Forbidden => "forbidden",
            Self::RateLimited => "rate-limited",
            Self::ServerError => "server-error",
            Self::HttpStatus(status) => return Cow::Owned(format!("http-status-{status}")),
            Self::OptedOut => "opted-out",
            Self::TruncatedBody => "truncated-body",
            Self::TooManyBytes => "too-many-bytes",
            Self::EmptyBody => "empty-body",
            Self::HashMismatch => "hash-mismatch",
            Self::UnknownFormat => "unknown-format",
            Self::TruncatedImage => "truncated-image",
            Self::UnsupportedImage => "unsupported-image",
            Self::DecoderPanicked => "decoder-panicked",
            Self::CorruptImage => "corrupt-image",
            Self::ImageTooLarge => "image-too-large",
            Self::ImageTooSmall => "image-too-small",
            Self::BadBoxes => "bad-boxes",
            Self::AspectRatio => "aspect-ratio",
        })
    }

    /// The `status` column that goes with the reason.
    #[must_use]
    pub fn status(self) -> RowStatus {
        match self {
            Self::UnknownFormat
            | Self::TruncatedImage
            | Self::CorruptImage
            | Self::UnsupportedImage
            | Self::DecoderPanicked
            | Self::ImageTooLarge
            | Self::ImageTooSmall
            | Self::BadBoxes
            | Self::AspectRatio => RowStatus::FailedToResize,
            _ => RowStatus::FailedToDownload,
        }
    }

    /// Whether asking again at once may help. Everything else (404, 410, opt-outs, bad schemes, …) is asked for
    /// once.
    #[must_use]
    pub fn is_transient(self) -> bool {
        match self {
            Self::DnsFailed
            | Self::ConnectFailed
            | Self::Timeout
            | Self::BadResponse
            | Self::RateLimited
            | Self::ServerError
            | Self::TruncatedBody => true,
            // Request Timeout and Too Early, RFC 9110 section 15.5.9 and RFC 8470 section 5.2.
            Self::HttpStatus(status) => matches!(status, 408 | 425),
            _ => false,
        }
    }

    /// Whether it tells against the host: it did not answer, or not now. What else it says shows that it works.
    #[must_use]
    pub(crate) fn is_hosts_failure(self) -> bool {
        self.is_transient() || self == Self::TlsFailed
    }

    /// The rejection a response status stands for; `None` for a success (200 to 299).
    #[must_use]
    pub fn from_http_status(status: u16) -> Option<Self> {
        match status {
            200..=299 => None,
            403 => Some(Self::Forbidden),
            404 => Some(Self::NotFound),
            410 => Some(Self::Gone),
            429 => Some(Self::RateLimited),
            500..=599 => Some(Self::ServerError),
            other => Some(Self::HttpStatus(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_have_their_reasons() {
        for (status, reason, transient) in [
            (404, "not-found", false),
            (410, "gone", false),
            (403, "forbidden", false),
            (429, "rate-limited", true),
            (500, "server-error", true),
            (503, "server-error", true),
            (401, "http-status-401", false),
            (408, "http-status-408", true),
            (304, "http-status-304", false),
        ] {
            let reject = Reject::from_http_status(status).unwrap();
            assert_eq!(reject.reason(), reason);
            assert_eq!(reject.is_transient(), transient, "{reason}");
            assert_eq!(reject.status(), RowStatus::FailedToDownload);
        }
        assert_eq!(Reject::from_http_status(200), None);
        assert_eq!(Reject::from_http_status(299), None);
    }

    #[test]
    fn reasons_are_read_back() {
        let statuses = [Reject::HttpStatus(401), Reject::HttpStatus(999)];
        for reject in NAMED.into_iter().chain(statuses) {
            assert_eq!(Reject::from_reason(&reject.reason()), Some(reject));
        }
        assert_eq!(Reject::from_reason("success"), None);
        assert!(!Reject::NotFound.may_pass_later() && !Reject::OptedOut.may_pass_later());
        assert!(Reject::TlsFailed.is_hosts_failure() && Reject::Timeout.is_hosts_failure());
        assert!(!Reject::NotFound.is_hosts_failure() && !Reject::HttpStatus(418).is_hosts_failure());
        assert!(Reject::Timeout.may_pass_later() && Reject::HostFailing.may_pass_later());
    }
}
