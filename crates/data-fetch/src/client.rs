//! One GET: from a checked URL to a body, a redirect, or a reason for neither.

use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::http_date;
use crate::reject::Reject;
use crate::resolver::{GuardedResolver, ResolveError};
use crate::robots::OptOutPolicy;
use reqwest::header::{CONTENT_TYPE, HeaderMap, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Client, ClientBuilder, Response, Url, redirect};
use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

/// How long an idle connection is kept. Short: the images of a list lie on very many hosts, and each open
/// connection is a file descriptor.
const IDLE_CONNECTION_SECONDS: u64 = 2;
/// Bytes of a body that cost nothing: most images have fewer.
const FREE_BODY_BYTES: usize = 256 << 10;
/// Bytes that all longer bodies may have in memory together.
const LONG_BODIES_BYTES: u64 = 64 << 20;
/// Servers put up with a reader that stops for less.
const NOTICEABLE_PAUSE: Duration = Duration::from_secs(1);
/// What an HTTP/2 server may send ahead, per image and per connection; the library's own defaults are 2 and 5 MiB.
const HTTP2_STREAM_WINDOW: u32 = 256 << 10;
const HTTP2_CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of headers an HTTP/2 server may send; HTTP/1 has 100 headers and about 400 KiB.
const HTTP2_HEADER_BYTES: u32 = 64 << 10;

/// A complete body.
#[derive(Debug)]
pub(crate) struct Body {
    /// The bytes, as sent.
    pub(crate) bytes: Vec<u8>,
    /// The media type in the `Content-Type` header, lower-case, without parameters.
    pub(crate) media_type: Option<String>,
    /// A long body's share of the memory.
    pub(crate) memory: Option<OwnedSemaphorePermit>,
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
    /// We stopped reading for a while, for want of memory: that the server then hung up says nothing of it.
    pub(crate) kept_waiting: bool,
}

impl From<Reject> for Refusal {
    fn from(reject: Reject) -> Self {
        Self { reject, retry_after: None, kept_waiting: false }
    }
}

/// The HTTP client of the stage.
#[derive(Debug, Clone)]
pub(crate) struct HttpClient {
    client: Client,
    opt_out: OptOutPolicy,
    max_body_bytes: u64,
    /// KiB left for long bodies.
    long_bodies: Arc<Semaphore>,
}

impl HttpClient {
    /// # Errors
    /// [`DataFetchError::Client`] if the TLS library cannot be set up.
    pub(crate) fn new(
        config: &DataFetchConfig,
        resolver: &GuardedResolver,
        authorities: &[Certificate],
    ) -> Result<Self, DataFetchError> {
        let builder = || -> ClientBuilder {
            Client::builder()
                .user_agent(config.user_agent_header())
                .redirect(redirect::Policy::none()) // each hop is checked and queued by `fetch`
                .retry(reqwest::retry::never()) // retries are counted, so they are ours alone
                .referer(false)
                .no_proxy() // a proxy would resolve names where the guard cannot look
                .dns_resolver(resolver.clone())
                .connect_timeout(Duration::from_secs_f64(config.connect_timeout_seconds))
                .read_timeout(Duration::from_secs_f64(config.timeout))
                .http2_initial_stream_window_size(HTTP2_STREAM_WINDOW)
                .http2_initial_connection_window_size(HTTP2_CONNECTION_WINDOW)
                .http2_max_header_list_size(HTTP2_HEADER_BYTES)
                .pool_idle_timeout(Duration::from_secs(IDLE_CONNECTION_SECONDS))
                .pool_max_idle_per_host(config.per_host_in_flight)
        };
        let client = builder().tls_certs_merge(authorities.to_vec()).build().or_else(|error| {
            tracing::warn!(
                "no certificate authorities found ({error}): https URLs will be rejected as `tls-failed`"
            );
            builder()
                .tls_certs_only(authorities.to_vec())
                .build()
                .map_err(|source| DataFetchError::Client { source: source.into() })
        })?;
        let opt_out = OptOutPolicy::new(&config.robots_names(), &config.disallowed_header_directives);
        let max_body_bytes = config.max_body_bytes;
        let long_bodies = Arc::new(Semaphore::new(kibibytes(LONG_BODIES_BYTES.max(max_body_bytes)) as usize));
        Ok(Self { client, opt_out, max_body_bytes, long_bodies })
    }

    /// Sends one GET and reads the answer to its end, for as long as `network` has time left. What it takes is taken from
    /// there, but for the time in which it waits for memory here.
    ///
    /// # Errors
    /// A [`Refusal`] with the reason; [`Reject::Timeout`] if `network` is used up.
    pub(crate) async fn get(&self, url: &Url, network: &mut Duration) -> Result<Answer, Refusal> {
        let mut clock = NetworkClock::start(*network);
        let answer = self.exchange(url, &mut clock).await;
        *network = clock.left();
        answer.map_err(|refusal| Refusal { kept_waiting: clock.has_stood, ..refusal })
    }

    async fn exchange(&self, url: &Url, clock: &mut NetworkClock) -> Result<Answer, Refusal> {
        let response = clock.run(self.client.get(url.clone()).send()).await?;
        let response = response.map_err(|error| reject_of(&error, Phase::Head))?;
        let status = response.status().as_u16();
        if matches!(status, 301 | 302 | 303 | 307 | 308)
            && let Some(location) = response.headers().get(LOCATION)
        {
            let target = std::str::from_utf8(location.as_bytes()).ok().and_then(|text| url.join(text).ok());
            return Ok(Answer::Redirect(target.ok_or(Reject::BadUrl)?));
        }
        if let Some(refusal) = refusal_of(status, response.headers()) {
            return Err(refusal);
        }
        if self.opts_out(response.headers()) {
            return Err(Reject::OptedOut.into());
        }
        Ok(Answer::Body(self.read_body(response, clock).await?))
    }

    fn opts_out(&self, headers: &HeaderMap) -> bool {
        let lines = headers.get_all("x-robots-tag");
        let lines: Vec<Cow<'_, str>> =
            lines.iter().map(|line| String::from_utf8_lossy(line.as_bytes())).collect();
        self.opt_out.forbids(lines.iter().map(AsRef::as_ref), SystemTime::now())
    }

    async fn read_body(&self, mut response: Response, clock: &mut NetworkClock) -> Result<Body, Reject> {
        let media_type = media_type(response.headers());
        let announced = response.content_length();
        if announced.is_some_and(|length| length > self.max_body_bytes) {
            return Err(Reject::TooManyBytes);
        }
        let mut memory = None;
        let announced = usize::try_from(announced.unwrap_or(0)).unwrap_or(0);
        if announced > FREE_BODY_BYTES {
            memory = Some(clock.stand(self.reserve(announced as u64)).await);
        }
        let mut bytes = Vec::with_capacity(announced);
        while let Some(chunk) =
            clock.run(response.chunk()).await?.map_err(|error| reject_of(&error, Phase::Body))?
        {
            let num_bytes = bytes.len() + chunk.len();
            if num_bytes as u64 > self.max_body_bytes {
                return Err(Reject::TooManyBytes);
            }
            if num_bytes > FREE_BODY_BYTES && memory.is_none() {
                // All it may ever need, at once: bodies that each held some and waited for more would wait for
                // ever.
                memory = Some(clock.stand(self.reserve(self.max_body_bytes)).await);
                // A vector that grows by itself is up to three times as large while it moves.
                bytes.reserve_exact(
                    usize::try_from(self.max_body_bytes).unwrap_or(0).saturating_sub(bytes.len()),
                );
            }
            bytes.extend_from_slice(&chunk);
        }
        if bytes.is_empty() { Err(Reject::EmptyBody) } else { Ok(Body { bytes, media_type, memory }) }
    }

    /// Waits until so many bytes may be held. Those who hold some wait for nothing but the network, which has deadlines,
    /// and the decoders.
    async fn reserve(&self, num_bytes: u64) -> OwnedSemaphorePermit {
        let permits = Arc::clone(&self.long_bodies).acquire_many_owned(kibibytes(num_bytes)).await;
        permits.expect("the semaphore is never closed")
    }
}

/// The network time of one exchange.
#[derive(Debug)]
struct NetworkClock {
    end: Instant,
    /// Whether it ever stood for a time that a server may notice.
    has_stood: bool,
}

impl NetworkClock {
    fn start(time: Duration) -> Self {
        Self { end: Instant::now() + time, has_stood: false }
    }

    fn left(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Waits for something that takes network time.
    async fn run<T>(&self, step: impl Future<Output = T>) -> Result<T, Reject> {
        timeout_at(self.end, step).await.map_err(|_elapsed| Reject::Timeout)
    }

    /// Waits for something that does not.
    async fn stand<T>(&mut self, step: impl Future<Output = T>) -> T {
        let started = Instant::now();
        let result = step.await;
        let stood = started.elapsed();
        self.end += stood;
        self.has_stood |= stood >= NOTICEABLE_PAUSE;
        result
    }
}

/// Rounded up; `max_body_bytes` is at most 4 GiB.
fn kibibytes(num_bytes: u64) -> u32 {
    u32::try_from(num_bytes.div_ceil(1024)).unwrap_or(u32::MAX)
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

/// What a status that is no success stands for. `Retry-After` counts where it means a pause for all requests: with 429 and
/// 503 (RFC 9110 section 10.2.3, RFC 6585 section 4).
fn refusal_of(status: u16, headers: &HeaderMap) -> Option<Refusal> {
    let reject = Reject::from_http_status(status)?;
    let retry_after = if matches!(status, 429 | 503) { retry_after(headers) } else { None };
    Some(Refusal { retry_after, ..reject.into() })
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
    fn only_a_server_that_has_too_much_to_do_is_left_alone() {
        for (status, expected) in
            [(429, Some(120)), (503, Some(120)), (404, None), (403, None), (500, None), (408, None)]
        {
            let refusal = refusal_of(status, &headers(RETRY_AFTER, "120")).unwrap();
            assert_eq!(refusal.retry_after.map(|pause| pause.as_secs()), expected, "{status}");
        }
        assert_eq!(refusal_of(204, &headers(RETRY_AFTER, "120")), None);
    }

    #[tokio::test]
    async fn the_clock_stands_while_we_keep_a_server_waiting() {
        let half = NOTICEABLE_PAUSE / 2;
        let mut clock = NetworkClock::start(half);
        clock.stand(tokio::time::sleep(half / 2)).await;
        assert!(!clock.has_stood && clock.left() > half / 2);
        clock.stand(tokio::time::sleep(NOTICEABLE_PAUSE)).await;
        assert!(clock.has_stood && clock.left() > half / 2);
        assert_eq!(clock.run(tokio::time::sleep(NOTICEABLE_PAUSE)).await, Err(Reject::Timeout));
        assert!(clock.left().is_zero());
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
