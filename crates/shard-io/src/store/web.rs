//! Plain HTTP: one file at a URL, or several whose names are counted off.

use super::settings::StoreSettings;
use super::uri::expand_braces;
use super::{Body, Listing, RemoteFile, Shape, StoreError, StoreUri, answered};
use bytes::Bytes;
use futures_util::stream::FuturesOrdered;
use futures_util::{StreamExt, TryStreamExt};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector as _, HttpErrorKind, HttpRequestBody, HttpResponseBody, ReqwestConnector,
};
use std::time::{Duration, Instant};

/// Requests under way while a listing is made.
const PROBES: usize = 16;
/// First wait before a request is sent again.
const FIRST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before a request is sent again.
const MAX_WAIT: Duration = Duration::from_secs(10);
/// How long a server is tried that there is no way to: a name that nobody knows, a port that nobody listens at, no network
/// at all. These seldom mend themselves. A download under way outlasts them, for as long as requests are tried again.
const NO_WAY_RETRY: Duration = Duration::from_secs(3);

/// An HTTP client that tries again where that may help.
#[derive(Debug, Clone)]
pub(super) struct Client {
    http: HttpClient,
    /// Sent with every request, but not to another host that one redirects to.
    authorization: Option<String>,
    retry: Duration,
}

/// An answer that is no success.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
}

impl Client {
    pub(super) fn new(
        uri: &str,
        authorization: Option<String>,
        retry: Duration,
    ) -> Result<Client, StoreError> {
        let options = ClientOptions::new()
            .with_timeout_disabled()
            .with_connect_timeout(Duration::from_secs(10))
            .with_allow_http(uri.starts_with("http://"));
        let http = ReqwestConnector::default().connect(&options);
        let http = http
            .map_err(|error| StoreError::Unreachable { uri: uri.to_owned(), problem: error.to_string() })?;
        Ok(Client { http, authorization, retry })
    }

    /// Sends a request until there is an answer that is final, or the time for trying is up.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &HeaderMap,
        body: Bytes,
    ) -> Result<Result<Response<HttpResponseBody>, Refusal>, StoreError> {
        let started = Instant::now();
        let mut wait = FIRST_WAIT;
        let mut is_first = true;
        loop {
            let mut request = Request::builder().method(method.clone()).uri(url);
            if let Some(all) = request.headers_mut() {
                all.extend(headers.clone());
                if let Some(value) = self.authorization.as_ref().and_then(|text| text.parse().ok()) {
                    all.insert(header::AUTHORIZATION, value);
                }
            }
            let request = request.body(HttpRequestBody::from(body.clone()));
            let request = request
                .map_err(|error| StoreError::Uri { uri: url.to_owned(), problem: error.to_string() })?;
            let sent = async { Ok(self.http.execute(request).await) };
            let mut limit = self.retry;
            let problem = match answered(url, sent).await? {
                Ok(response) if response.status().is_success() => return Ok(Ok(response)),
                Ok(response) if !is_transient(response.status()) => {
                    return Ok(Err(Refusal {
                        status: response.status(),
                        headers: response.headers().clone(),
                    }));
                }
                Ok(response) => format!("the server answers {}", response.status()),
                Err(error) => {
                    if error.kind() == HttpErrorKind::Connect {
                        limit = limit.min(NO_WAY_RETRY);
                    }
                    causes(&error)
                }
            };
            if started.elapsed() + wait > limit {
                return Err(StoreError::Unreachable { uri: url.to_owned(), problem });
            }
            if std::mem::take(&mut is_first) {
                let host = url.split('/').nth(2).unwrap_or(url);
                tracing::warn!("{host}: {problem}; trying again for up to {} s", limit.as_secs());
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(MAX_WAIT);
        }
    }
}

/// Answers that may be others in a moment.
fn is_transient(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// The causes of a failure, the last one in full.
fn causes(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    crate::error::printable(&last.to_string())
}

/// The bytes of a body.
pub(super) fn body_of(url: &str, response: Response<HttpResponseBody>) -> Body {
    let url = url.to_owned();
    let failed = move |error| StoreError::Unreachable { uri: url.clone(), problem: causes(&error) };
    response.into_body().bytes_stream().map_err(failed).boxed()
}

/// The header that asks for the bytes from `offset` on.
pub(super) fn range_from(offset: u64) -> Option<header::HeaderValue> {
    (offset > 0).then(|| format!("bytes={offset}-").parse().expect("digits are header text"))
}

/// The body from `offset` on, also where the server sends all of it.
pub(super) fn body_from(url: &str, response: Response<HttpResponseBody>, offset: u64) -> Body {
    let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
    let body = body_of(url, response);
    if is_part || offset == 0 {
        return body;
    }
    let mut to_skip = offset;
    let rest = body.map_ok(move |mut bytes: Bytes| {
        let skipped = to_skip.min(bytes.len() as u64);
        to_skip -= skipped;
        bytes.split_off(skipped as usize)
    });
    rest.boxed()
}

/// Files of a web server.
#[derive(Debug)]
pub(super) struct HttpFiles {
    client: Client,
}

impl HttpFiles {
    pub(super) fn new(uri: &StoreUri, settings: &StoreSettings) -> Result<HttpFiles, StoreError> {
        Ok(HttpFiles { client: Client::new(uri.as_str(), None, settings.retry)? })
    }

    /// A web server cannot be asked for its files, so every one is asked for by its name.
    pub(super) async fn list(&self, uri: &StoreUri) -> Result<Listing, StoreError> {
        let Some((base, urls)) = expand_braces(uri.key())? else {
            let name = file_name(uri.key());
            return Ok(Listing { files: vec![self.probe(uri.key(), name).await?], shape: Shape::File });
        };
        let mut files = Vec::with_capacity(urls.len());
        for some in urls.chunks(PROBES) {
            let probes = some.iter().map(|url| {
                let name = url[base.len()..].split('?').next().unwrap_or_default().to_owned();
                self.probe(url, name)
            });
            files.extend(probes.collect::<FuturesOrdered<_>>().try_collect::<Vec<_>>().await?);
        }
        Ok(Listing { files, shape: Shape::Directory })
    }

    /// Asks for the file and reads only the head of the answer: signed URLs are signed for GET, not for HEAD.
    async fn probe(&self, url: &str, name: String) -> Result<RemoteFile, StoreError> {
        let response = self.get(url, &HeaderMap::new()).await?;
        let text = |name: header::HeaderName| {
            response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
        };
        let num_bytes = text(header::CONTENT_LENGTH).and_then(|digits| digits.parse().ok());
        let tag = text(header::ETAG).or_else(|| text(header::LAST_MODIFIED));
        Ok(RemoteFile { name, key: url.to_owned(), num_bytes, tag, content: None })
    }

    pub(super) async fn read(&self, file: &RemoteFile, offset: u64) -> Result<Body, StoreError> {
        let mut headers = HeaderMap::new();
        if let Some(range) = range_from(offset) {
            headers.insert(header::RANGE, range);
            // Without its tag nobody knows whether the rest belongs to what is here; then all of it is sent.
            if let Some(tag) = file.tag.as_ref().and_then(|tag| tag.parse().ok()) {
                headers.insert(header::IF_RANGE, tag);
            } else {
                headers.remove(header::RANGE);
            }
        }
        let response = self.get(&file.key, &headers).await?;
        let tag =
            [header::ETAG, header::LAST_MODIFIED].into_iter().find_map(|name| response.headers().get(name));
        if tag.and_then(|tag| tag.to_str().ok()) != file.tag.as_deref() {
            let problem = "the file changed while it was read".to_owned();
            return Err(StoreError::Changed { uri: file.key.clone(), problem });
        }
        Ok(body_from(&file.key, response, offset))
    }

    async fn get(&self, url: &str, headers: &HeaderMap) -> Result<Response<HttpResponseBody>, StoreError> {
        self.client.send(Method::GET, url, headers, Bytes::new()).await?.map_err(|refusal| {
            let uri = url.to_owned();
            match refusal.status {
                StatusCode::NOT_FOUND | StatusCode::GONE => StoreError::NotFound { uri },
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    StoreError::Denied { uri, problem: format!("the server answers {}", refusal.status) }
                }
                status => StoreError::Refused { uri, problem: format!("the server answers {status}") },
            }
        })
    }
}

/// What to call the file of a URL.
fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let after_host = path.splitn(4, '/').nth(3).unwrap_or_default();
    match after_host.rsplit('/').next() {
        Some(name) if !name.is_empty() => name.to_owned(),
        _ => "download".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_called_as_their_urls_end() {
        for (url, name) in [
            ("https://h/a/list.csv.gz?sig=a/b#c", "list.csv.gz"),
            ("https://h/list.json", "list.json"),
            ("https://h/a/", "download"),
            ("https://h", "download"),
            ("https://h?x=/y", "download"),
        ] {
            assert_eq!(file_name(url), name, "{url}");
        }
    }
}
