//! One GET: from a checked URL to a body, a redirect, or a reason for neither.

use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::http_date;
use crate::reject::Reject;
use crate::resolver::{GuardedResolver, ResolveError};
use crate::robots::OptOutPolicy;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Client, ClientBuilder, Response, Url, redirect};
use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::time::{Duration, SystemTime};

/// How long an idle connection is kept. Short: the images of a list lie on very many hosts, and each open
/// connection is a file descriptor.
const IDLE_CONNECTION_SECONDS: u64 = 2;
/// Memory set aside for a body before its first byte has arrived; the announced length is not believed beyond
/// it.
const MAX_RESERVED_BYTES: u64 = 1 << 20;

/// A complete body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Body {
    /// The bytes, as sent.
    pub(crate) bytes: Vec<u8>,
    /// The media type in the `Content-Type` header, lower-case, without parameters.
    pub(crate) media_type: Option<String>,
}

/// What a server answered.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Success.
    Body(Body),
    /// The image is elsewhere; the URL is not checked yet.
    Redirect(Url),
}

/// Why there is no answer to use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// The reason.
    pub(crate) reject: Reject,
    /// How long the server wants to be left alone.
    pub(crate) retry_after: Option<Duration>,
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self { reject, retry_after: None }
    }
}

/// The HTTP client of the stage.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    client: Client,
    opt_out: OptOutPolicy,
    max_body_bytes: u64,
}

impl HttpClient {
    /// # Errors
    /// [`DataFetchError::Client`] if the TLS library cannot be set up.
    pub(crate) fn new(config: &DataFetchConfig, resolver: &GuardedResolver) -> Result<Self, DataFetchError> {
        let builder = || -> ClientBuilder {
            Client::builder()
                .user_agent(config.user_agent_header())
                .redirect(redirect::Policy::none()) // each hop is checked and queued by `fetch`
                .retry(reqwest::retry::never()) // retries are counted, so they are ours alone
                .referer(false)
                .no_proxy() // a proxy would resolve names where the guard cannot look
                .dns_resolver(resolver.clone())
                .connect_timeout(Duration::from_secs_f64(config.connect_timeout_seconds))
                .pool_idle_timeout(Duration::from_secs(IDLE_CONNECTION_SECONDS))
                .pool_max_idle_per_host(config.per_host_in_flight)
        };
        let client = builder().build().or_else(|error| {
            tracing::warn!(
                "no certificate authorities found ({error}): https URLs will be rejected as `tls-failed`"
            );
            builder()
                .tls_certs_only([])
                .build()
                .map_err(|source| DataFetchError::Client { source: source.into() })
        })?;
        let opt_out = OptOutPolicy::new(&config.robots_names(), &config.disallowed_header_directives);
        Ok(Self { client, opt_out, max_body_bytes: config.max_body_bytes })
    }

    /// Sends one GET and reads the answer to its end. There is no time limit here beyond that for connecting.
    ///
    /// # Errors
    /// A [`Refusal`] with the reason.
    pub(crate) async fn get(&self, url: &Url) -> Result<Answer, Refusal> {
        let response =
            self.client.get(url.clone()).send().await.map_err(|error| reject_of(&error, Phase::Head))?;
        let status = response.status().as_u16();
        if matches!(status, 301 | 302 | 303 | 307 | 308)
            && let Some(location) = response.headers().get(LOCATION)
        {
            let target = std::str::from_utf8(location.as_bytes()).ok().and_then(|text| url.join(text).ok());
            return Ok(Answer::Redirect(target.ok_or(Reject::BadUrl)?));
        }
        if let Some(reject) = Reject::from_http_status(status) {
            return Err(Refusal { reject, retry_after: retry_after(response.headers()) });
        }
        if self.opts_out(response.headers()) {
            return Err(Reject::OptedOut.into());
        }
        Ok(Answer::Body(self.read_body(response).await?))
    }

    fn opts_out(&self, headers: &HeaderMap) -> bool {
        let lines = headers.get_all("x-robots-tag");
        let lines: Vec<Cow<'_, str>> =
            lines.iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        self.opt_out.forbids(lines.iter().map(AsRef::as_ref))
    }

    async fn read_body(&self, mut response: Response) -> Result<Body, Reject> {
        let media_type = media_type(response.headers());
        let announced = response.content_length();
        if announced.is_some_and(|length| length > self.max_body_bytes) {
            return Err(Reject::TooManyBytes);
        }
        let reserved = announced.unwrap_or(0).min(MAX_RESERVED_BYTES);
        let mut bytes = Vec::with_capacity(usize::try_from(reserved).unwrap_or(0));
        while let Some(chunk) = response.chunk().await.map_err(|error| reject_of(&error, Phase::Body))? {
            if (bytes.len() + chunk.len()) as u64 > self.max_body_bytes {
                return Err(Reject::TooManyBytes);
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() { Err(Reject::EmptyBody) } else { Ok(Body { bytes, media_type }) }
    }
}

/// How far an exchange had come when it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Head,
    Body,
}

fn reject_of(error: &reqwest::Error, phase: Phase) -> Reject {
    let mut resolve_error = None;
    let mut is_tls = false;
    for_each_cause(error, &mut |cause| {
        resolve_error = resolve_error.or_else(|| cause.downcast_ref::<ResolveError>().copied());
        // Before a connection stands, only the TLS handshake gives errors of these kinds: one for what the
        // library finds wrong, one for a server that hangs up on it. A connection that cannot be made has
        // other kinds.
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        is_tls |= matches!(kind, Some(io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof));
    });
    match resolve_error {
        Some(ResolveError::PrivateAddress) => Reject::PrivateAddress,
        Some(ResolveError::NoAddress) => Reject::DnsFailed,
        None if error.is_connect() && is_tls => Reject::TlsFailed,
        None if error.is_connect() => Reject::ConnectFailed,
        None if error.is_timeout() => Reject::Timeout,
        None if phase == Phase::Body => Reject::TruncatedBody,
        None => Reject::BadResponse,
    }
}

/// Visits an error and its causes, including those inside I/O errors, which `source` leaves out.
fn for_each_cause(error: &(dyn Error + 'static), visit: &mut dyn FnMut(&(dyn Error + 'static))) {
    let mut next = Some(error);
    while let Some(cause) = next {
        visit(cause);
        let inner = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => cause.source(),
        };
    }
}

fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    let essence = text.split(';').next().unwrap_or(text).trim().to_lowercase();
    (!essence.is_empty()).then_some(essence)
}

/// `Retry-After`: seconds, or the time of an HTTP date (RFC 9110 section 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = http_date::parse(text)?;
    Some(then.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn headers(name: HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_static(value))])
    }

    #[test]
    fn media_types_lose_case_and_parameters() {
        for (value, expected) in [
            ("image/jpeg", Some("image/jpeg")),
            ("Image/PNG; charset=x", Some("image/png")),
            ("", None),
            (" ;x", None),
        ] {
            assert_eq!(media_type(&headers(CONTENT_TYPE, value)).as_deref(), expected, "{value}");
        }
        assert_eq!(media_type(&HeaderMap::new()), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let parse = |value| retry_after(&headers(RETRY_AFTER, value)).map(|pause| pause.as_secs());
        assert_eq!(parse("120"), Some(120));
        assert_eq!(parse(" 0 "), Some(0));
        assert_eq!(parse("18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse("soon"), None);
        assert_eq!(parse("-1"), None);
        assert_eq!(parse("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert!(parse("Fri, 31 Dec 2999 23:59:59 GMT").unwrap() > 1_000_000);
    }
}
