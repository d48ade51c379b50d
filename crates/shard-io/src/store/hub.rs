//! Models and data sets of the Hugging Face hub: its two interfaces for listing and reading files.
//!
//! A revision is pinned to its commit first, so that a listing and the files belong together. What the cache of
//! the hub's own tools holds of that commit is taken from there.

use super::content_id::{ContentId, is_digest};
use super::settings::StoreSettings;
use super::uri::{HubKind, Place};
use super::web::{Client, Refusal, body_from, range_from};
use super::{Body, Listing, RemoteFile, Shape, StoreError, StoreUri};
use crate::FilePattern;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use hf_hub::{Cache, Repo, RepoType};
use http::{HeaderMap, Method, StatusCode, header};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// Longest answer of the interface that is read, in bytes: a page holds a thousand files.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// Bytes read from the cache at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// One revision of one model or data set.
#[derive(Debug)]
pub(super) struct Hub {
    client: Client,
    endpoint: String,
    kind: HubKind,
    repo: String,
    revision: String,
    uri: String,
    has_token: bool,
    offline: bool,
    /// The cache of the hub's own tools, and what the repository is called in it.
    cache: Option<(Cache, Repo)>,
    /// The commit of the revision, once it is known.
    commit: OnceLock<String>,
}

/// An entry of a listing.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    oid: Option<String>,
    lfs: Option<LargeFile>,
}

/// Where the content of a large file lies; its id is the content's SHA-256.
#[derive(Debug, Deserialize)]
struct LargeFile {
    oid: String,
    size: u64,
}

#[derive(Debug, Deserialize)]
struct Revision {
    sha: String,
}

impl Hub {
    pub(super) fn new(uri: &StoreUri, settings: &StoreSettings) -> Result<Hub, StoreError> {
        let Place::Hub { kind, repo, revision } = uri.place() else {
            unreachable!("other places have clients of their own")
        };
        let (kind, repo_type) = match kind {
            HubKind::Model => (HubKind::Model, RepoType::Model),
            HubKind::Dataset => (HubKind::Dataset, RepoType::Dataset),
        };
        let token = settings.hub.token.as_deref().map(str::trim).filter(|token| !token.is_empty());
        let endpoint = settings.hub.endpoint.trim_end_matches('/').to_owned();
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            let problem = format!("expected http://… or https://…, got `{endpoint}`");
            return Err(StoreError::Setting { key: "HF_ENDPOINT", problem });
        }
        let authorization = token.map(|token| format!("Bearer {token}"));
        let in_cache = |dir: &PathBuf| {
            let repo = Repo::with_revision(repo.clone(), repo_type, revision.clone());
            (Cache::new(dir.clone()), repo)
        };
        Ok(Hub {
            client: Client::new(&endpoint, authorization, settings.retry)?,
            endpoint,
            kind,
            repo: repo.clone(),
            revision: revision.clone(),
            uri: uri.as_str().to_owned(),
            has_token: token.is_some(),
            offline: settings.offline,
            cache: settings.hub.cache_dir.as_ref().map(in_cache),
            commit: OnceLock::new(),
        })
    }

    pub(super) async fn list(&self, uri: &StoreUri) -> Result<Listing, StoreError> {
        if self.offline {
            return self.list_cache(uri.key());
        }
        let url = format!("{}/revision/{}", self.api(), escaped(&self.revision, false));
        let revision: Revision = self.json(Method::GET, &url, Bytes::new()).await?.0;
        if !is_digest(&revision.sha, 40) {
            let problem = "not the hub's answer: a revision without a commit".to_owned();
            return Err(StoreError::Refused { uri: url, problem });
        }
        let _ = self.commit.set(revision.sha);
        if let Some(pattern) = FilePattern::of_key(uri.key()) {
            let base = pattern.base().to_string_lossy().into_owned();
            let mut files = self.tree(&base).await?;
            files.retain(|file| pattern.matches(&file.name));
            if files.is_empty() {
                return Err(StoreError::NoMatch { uri: self.uri.clone() });
            }
            return Ok(Listing { files, shape: Shape::Pattern(pattern.relative().to_owned()) });
        }
        if !uri.key().is_empty() {
            let url = format!("{}/paths-info/{}", self.api(), self.commit());
            let wanted = serde_json::json!({"paths": [uri.key()], "expand": false}).to_string();
            let entries: Vec<Entry> = self.json(Method::POST, &url, wanted.into()).await?.0;
            match entries.into_iter().next() {
                None => return Err(StoreError::NotFound { uri: self.uri.clone() }),
                Some(entry) if entry.kind == "file" => {
                    let name = entry.path.rsplit('/').next().unwrap_or(&entry.path).to_owned();
                    return Ok(Listing { files: vec![self.remote_file(entry, name)], shape: Shape::File });
                }
                Some(_) => {}
            }
        }
        let files = self.tree(uri.key()).await?;
        if files.is_empty() {
            return Err(StoreError::NotFound { uri: self.uri.clone() });
        }
        Ok(Listing { files, shape: Shape::Directory })
    }

    /// Every file below a directory of the repository, page by page.
    async fn tree(&self, base: &str) -> Result<Vec<RemoteFile>, StoreError> {
        let below = if base.is_empty() { String::new() } else { format!("/{}", escaped(base, true)) };
        let folder = format!("{}/tree/{}{below}", self.api(), self.commit());
        let mut query = "recursive=true".to_owned();
        let skipped = if base.is_empty() { 0 } else { base.len() + 1 };
        let mut files = Vec::new();
        loop {
            let url = format!("{folder}?{query}");
            let (entries, headers): (Vec<Entry>, _) = self.json(Method::GET, &url, Bytes::new()).await?;
            for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
                let name = entry.path.get(skipped..).unwrap_or_default().to_owned();
                files.push(self.remote_file(entry, name));
            }
            // A mirror of the hub may pass on a link to the hub. The token must not follow it, only the place in the
            // list does.
            match next_page(&headers).as_deref().and_then(|next| next.split_once('?')) {
                Some((_, next)) if next != query => next.clone_into(&mut query),
                _ => return Ok(files),
            }
        }
    }

    pub(super) async fn read(&self, file: &RemoteFile, offset: u64) -> Result<Body, StoreError> {
        if let Some(cached) = self.cached(file) {
            return read_local(&cached, offset);
        }
        let commit = escaped(self.commit(), false);
        let below = match self.kind {
            HubKind::Model => "",
            HubKind::Dataset => "datasets/",
        };
        let (repo, key) = (&self.repo, escaped(&file.key, true));
        let url = format!("{}/{below}{repo}/resolve/{commit}/{key}", self.endpoint);
        let mut headers = HeaderMap::new();
        if let Some(range) = range_from(offset) {
            headers.insert(header::RANGE, range);
        }
        let response = self.client.send(Method::GET, &url, &headers, Bytes::new()).await?;
        let response = response.map_err(|refusal| self.refused(&refusal))?;
        Ok(body_from(&url, response, offset))
    }

    fn api(&self) -> String {
        let kind = match self.kind {
            HubKind::Model => "models",
            HubKind::Dataset => "datasets",
        };
        format!("{}/api/{kind}/{}", self.endpoint, self.repo)
    }

    /// The hub's cache and what the repository is called in it.
    pub(super) fn cache(&self) -> Option<(&Cache, &Repo)> {
        self.cache.as_ref().map(|(cache, repo)| (cache, repo))
    }

    /// The commit of the revision, after it has been listed.
    pub(super) fn commit(&self) -> &str {
        self.commit.get().map_or(&self.revision, String::as_str)
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        url: &str,
        body: Bytes,
    ) -> Result<(T, HeaderMap), StoreError> {
        let mut headers = HeaderMap::new();
        if !body.is_empty() {
            headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        }
        let response = self.client.send(method, url, &headers, body).await?;
        let response = response.map_err(|refusal| self.refused(&refusal))?;
        let headers = response.headers().clone();
        let mut answer = Vec::new();
        let mut chunks = super::web::body_of(url, response);
        while let Some(chunk) = chunks.next().await {
            answer.extend_from_slice(&chunk?);
            if answer.len() > MAX_ANSWER_BYTES {
                return Err(StoreError::Refused {
                    uri: url.to_owned(),
                    problem: "an answer without end".to_owned(),
                });
            }
        }
        let value = serde_json::from_slice(&answer).map_err(|error| StoreError::Refused {
            uri: url.to_owned(),
            problem: format!("not the hub's answer: {error}"),
        })?;
        Ok((value, headers))
    }

    /// The hub says in headers what is wrong.
    fn refused(&self, refusal: &Refusal) -> StoreError {
        let (uri, what) = (self.uri.clone(), self.kind.name());
        let text = |name: &str| {
            let value = refusal.headers.get(name).and_then(|value| value.to_str().ok());
            value.map(crate::error::printable)
        };
        let said = text("x-error-message").unwrap_or_else(|| format!("the hub answers {}", refusal.status));
        let denied = |problem: String| StoreError::Denied { uri: uri.clone(), problem };
        let is_denied = [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&refusal.status);
        match text("x-error-code").as_deref() {
            Some("RevisionNotFound") => {
                StoreError::NoSuchContainer { uri, what: "revision", name: self.revision.clone() }
            }
            Some("EntryNotFound") => StoreError::NotFound { uri },
            Some("GatedRepo") => {
                let page = format!("{}/{}", self.endpoint, self.repo);
                let remedy = if self.has_token { "with the account of HF_TOKEN" } else { "and set HF_TOKEN" };
                denied(format!("the {what} is gated: ask for access at {page} {remedy}"))
            }
            // Without a token, what is private is told apart from what is not there by nobody.
            Some("RepoNotFound") if !self.has_token => denied(format!(
                "there is no {what} `{}`, or it is private: {said} (there is no HF_TOKEN)",
                self.repo
            )),
            Some("RepoNotFound") => StoreError::NoSuchContainer { uri, what, name: self.repo.clone() },
            _ if is_denied && self.has_token => denied(format!("{said} (with the HF_TOKEN that is set)")),
            _ if is_denied => denied(format!("{said} (there is no HF_TOKEN)")),
            _ if refusal.status == StatusCode::NOT_FOUND => {
                StoreError::NoSuchContainer { uri, what, name: self.repo.clone() }
            }
            _ => StoreError::Refused { uri, problem: said },
        }
    }

    fn remote_file(&self, entry: Entry, name: String) -> RemoteFile {
        let oid = entry.oid.unwrap_or_default();
        let content = match &entry.lfs {
            Some(large) => ContentId::sha256(&large.oid),
            // Small files of data sets are known by their tag alone: in a mirror they may come from the hub's cache,
            // which is trusted.
            None if self.kind == HubKind::Dataset => None,
            None => ContentId::git_blob(&oid),
        };
        RemoteFile {
            name,
            key: entry.path,
            num_bytes: Some(entry.lfs.map_or(entry.size, |large| large.size)),
            tag: content.as_ref().map(|content| content.hex().to_owned()).or(Some(oid)),
            content,
        }
    }

    /// The file in the cache of the hub's own tools, if it is there and as long as it must be.
    fn cached(&self, file: &RemoteFile) -> Option<PathBuf> {
        let (cache, repo) = self.cache.as_ref()?;
        let path = cache.repo(repo.clone()).pointer_path(self.commit()).join(&file.key);
        let num_bytes = std::fs::metadata(&path).ok()?.len();
        (file.num_bytes == Some(num_bytes)).then_some(path)
    }

    /// Without a network, the revision and its files are those of the cache.
    pub(super) fn list_cache(&self, key: &str) -> Result<Listing, StoreError> {
        let absent = |problem: String| StoreError::Offline { uri: self.uri.clone(), problem };
        let Some((cache, repo)) = &self.cache else {
            return Err(absent("no cache of the hub is known".to_owned()));
        };
        let reference = cache.path().join(repo.folder_name()).join("refs").join(repo.revision());
        let commit = match std::fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => self.revision.clone(),
        };
        let snapshot = cache.repo(repo.clone()).pointer_path(&commit);
        if !snapshot.is_dir() {
            return Err(absent(format!("{} is not there either", snapshot.display())));
        }
        let _ = self.commit.set(commit);
        let pattern = FilePattern::of_key(key);
        let base =
            pattern.as_ref().map_or_else(|| PathBuf::from(key), |pattern| pattern.base().to_path_buf());
        let root = snapshot.join(&base);
        if pattern.is_none() && root.is_file() {
            let name = base.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Ok(Listing { files: vec![local_file(&root, name, key)?], shape: Shape::File });
        }
        let mut files = Vec::new();
        for path in files_below(&root)? {
            let name = path.strip_prefix(&root).unwrap_or(&path).to_string_lossy().into_owned();
            if pattern.as_ref().is_none_or(|pattern| pattern.matches(&name)) {
                let key = base.join(&name);
                files.push(local_file(&path, name, &key.to_string_lossy())?);
            }
        }
        if files.is_empty() {
            return Err(absent(format!("nothing of it in {}", snapshot.display())));
        }
        let shape = pattern.map_or(Shape::Directory, |pattern| Shape::Pattern(pattern.relative().to_owned()));
        Ok(Listing { files, shape })
    }
}

fn local_file(path: &Path, name: String, key: &str) -> Result<RemoteFile, StoreError> {
    let num_bytes = std::fs::metadata(path).map_err(StoreError::io(path))?.len();
    // Links of a snapshot point to blobs that are called after their content.
    let blob = std::fs::read_link(path)
        .ok()
        .and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned()));
    Ok(RemoteFile { name, key: key.to_owned(), num_bytes: Some(num_bytes), tag: blob, content: None })
}

/// All files below a directory; links to files count as files.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let (mut files, mut pending) = (Vec::new(), vec![dir.to_path_buf()]);
    while let Some(dir) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&dir) else { continue };
        for entry in entries {
            let path = entry.map_err(StoreError::io(&dir))?.path();
            // A link whose blob somebody removed is no file.
            if path.is_dir() {
                pending.push(path);
            } else if path.is_file() {
                files.push(path);
            }
        }
    }
    Ok(files)
}

fn read_local(path: &Path, offset: u64) -> Result<Body, StoreError> {
    let mut file = File::open(path).map_err(StoreError::io(path))?;
    file.seek(SeekFrom::Start(offset)).map_err(StoreError::io(path))?;
    let path = path.to_path_buf();
    let chunks = std::iter::from_fn(move || {
        let mut chunk = Vec::new();
        match (&mut file).take(CHUNK_BYTES as u64).read_to_end(&mut chunk) {
            Ok(0) => None,
            Ok(_) => Some(Ok(Bytes::from(chunk))),
            Err(source) => Some(Err(StoreError::Io { path: path.clone(), source })),
        }
    });
    Ok(futures_util::stream::iter(chunks).into_stream().boxed())
}

/// `Link: <url>; rel="next"`.
fn next_page(headers: &HeaderMap) -> Option<String> {
    let links = headers.get(header::LINK)?.to_str().ok()?;
    let next = links.split(',').find(|link| link.contains("rel=\"next\""))?;
    let (_, url) = next.split_once('<')?;
    Some(url.split_once('>')?.0.to_owned())
}

/// Percent-encoding of a path, with or without its slashes.
fn escaped(text: &str, keep_slashes: bool) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        let is_plain =
            byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || (keep_slashes && byte == b'/');
        if is_plain {
            escaped.push(char::from(byte));
        } else {
            escaped += &format!("%{byte:02X}");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_escaped_and_pages_found() {
        assert_eq!(escaped("a b/é#?.csv", true), "a%20b/%C3%A9%23%3F.csv");
        assert_eq!(escaped("refs/pr/1", false), "refs%2Fpr%2F1");
        let mut headers = HeaderMap::new();
        assert_eq!(next_page(&headers), None);
        headers.insert(header::LINK, "<http://h/a?cursor=x>; rel=\"next\"".parse().unwrap());
        assert_eq!(next_page(&headers).as_deref(), Some("http://h/a?cursor=x"));
    }
}
