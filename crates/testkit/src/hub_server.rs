//! A server that speaks the part of the Hugging Face hub's interface that models are fetched by, and a second one that
//! plays the network of caches to which it sends readers of large files.
//!
//! Paths, headers and answers are those that `huggingface_hub` (`hf_api.py`, `file_download.py`) relies on: `GET
//! /api/models/{id}/revision/{revision}`, `…/tree/{commit}?recursive=true`, `POST …/paths-info/{commit}`, and
//! `/{id}/resolve/{commit}/{path}` with `X-Repo-Commit`, `ETag`, `X-Linked-ETag`, `X-Linked-Size` and `X-Error-Code`.

use crate::http::{HttpRequest, http_head};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Files of a listing that are sent at a time.
const PAGE_FILES: usize = 4;

/// One repository of models and its two servers; they live as long as the process.
#[derive(Debug, Clone)]
pub struct HubServer {
    hub: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

/// How the hub keeps a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubFile {
    /// In git: known by git's SHA-1, sent by the hub itself.
    Small,
    /// Beside git: known by its SHA-256, sent by the other server.
    Large,
}

/// A request that came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubRequest {
    /// Whether the hub itself was asked, and not the server of large files.
    pub is_hub: bool,
    /// `GET`, `HEAD` or `POST`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The header `Authorization`.
    pub authorization: Option<String>,
    /// The header `Range`.
    pub range: Option<String>,
}

/// What the servers know and what they are to do.
#[derive(Debug)]
struct State {
    commit: String,
    files: BTreeMap<String, File>,
    /// Without it nobody learns anything.
    token: Option<String>,
    /// Whose holder nevertheless gets no file.
    is_gated: bool,
    /// Bodies of large files end after so many bytes, so often.
    cut: (usize, usize),
    /// Bodies of large files wait after so many bytes.
    pause: Option<usize>,
    /// So many answers of the hub are this status.
    failures: (usize, u16),
    requests: Vec<HubRequest>,
}

#[derive(Debug, Clone)]
struct File {
    kind: HubFile,
    /// What is listed.
    oid: String,
    num_bytes: usize,
    /// What is sent.
    content: Vec<u8>,
}

/// What git calls a file of this content.
#[must_use]
pub fn git_blob_id(content: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize())
}

/// The SHA-256 of the content.
#[must_use]
pub fn sha256_hex(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl HubServer {
    /// The model that the hub has.
    pub const MODEL: &'static str = "team/model";

    /// An empty repository.
    ///
    /// # Panics
    /// If no port can be bound.
    #[must_use]
    pub fn start() -> Self {
        let state = State {
            commit: "a".repeat(40),
            files: BTreeMap::new(),
            token: None,
            is_gated: false,
            cut: (0, 0),
            pause: None,
            failures: (0, 0),
            requests: Vec::new(),
        };
        let state = Arc::new((Mutex::new(state), Condvar::new()));
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port can be bound");
        let (hub, others) = (listen(), listen());
        let address = |listener: &TcpListener| listener.local_addr().expect("a bound port has a number");
        let (hub_address, others_address) = (address(&hub), address(&others));
        for (listener, is_hub) in [(hub, true), (others, false)] {
            let state = Arc::clone(&state);
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let state = Arc::clone(&state);
                    std::thread::spawn(move || serve(&stream, &state, is_hub, others_address));
                }
            });
        }
        Self { hub: hub_address, state }
    }

    /// `HF_ENDPOINT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// The commit of `main` and of `refs/pr/1`.
    #[must_use]
    pub fn commit(&self) -> String {
        self.state().commit.clone()
    }

    /// Puts a file into the repository, and so makes it another commit.
    pub fn put(&self, path: &str, kind: HubFile, content: &[u8]) {
        let oid = if kind == HubFile::Large { sha256_hex(content) } else { git_blob_id(content) };
        let file = File { kind, oid, num_bytes: content.len(), content: content.to_vec() };
        let mut state = self.state();
        state.files.insert(path.to_owned(), file);
        let oids: String = state.files.iter().map(|(path, file)| format!("{path} {}\n", file.oid)).collect();
        state.commit = git_blob_id(oids.as_bytes());
    }

    /// What is sent is from now on this, of the same length; what is listed stays.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn send_instead(&self, path: &str, content: &[u8]) {
        self.state().files.get_mut(path).expect("a file that was put there").content = content.to_vec();
    }

    /// What is listed as the digest is from now on this.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn list_digest(&self, path: &str, oid: &str) {
        oid.clone_into(&mut self.state().files.get_mut(path).expect("a file that was put there").oid);
    }

    /// Only who has this token learns anything.
    pub fn require_token(&self, token: &str) {
        self.state().token = Some(token.to_owned());
    }

    /// Everybody learns what there is, and nobody gets it.
    pub fn gate(&self) {
        self.state().is_gated = true;
    }

    /// The next bodies of large files end after so many bytes each.
    pub fn cut(&self, num_bodies: usize, num_bytes: usize) {
        self.state().cut = (num_bodies, num_bytes);
    }

    /// Bodies of large files wait after so many bytes until [`go_on`](HubServer::go_on).
    pub fn pause_after(&self, num_bytes: usize) {
        self.state().pause = Some(num_bytes);
    }

    /// Nothing waits any more.
    pub fn go_on(&self) {
        self.state().pause = None;
        self.state.1.notify_all();
    }

    /// The next answers of the hub are this status.
    pub fn fail(&self, num_answers: usize, status: u16) {
        self.state().failures = (num_answers, status);
    }

    /// The requests so far, taken away.
    #[must_use]
    pub fn take_requests(&self) -> Vec<HubRequest> {
        std::mem::take(&mut self.state().requests)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        locked(&self.state.0)
    }
}

/// The state, also after a test has panicked.
fn locked(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An answer.
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// The body ends here, whatever the headers say.
    cut: Option<usize>,
    is_large: bool,
}

impl Answer {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), cut: None, is_large: false }
    }

    fn json(value: &Value) -> Self {
        Self { body: value.to_string().into_bytes(), ..Self::new(200) }
            .with("Content-Type", "application/json")
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        Self::new(status).with("X-Error-Code", code).with("X-Error-Message", message)
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// The body from the asked byte on.
    fn part(mut self, range: Option<&str>) -> Self {
        let total = self.body.len();
        let Some(start): Option<usize> =
            range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok())
        else {
            return self;
        };
        if start >= total {
            return Self::new(416).with("Content-Range", format!("bytes */{total}"));
        }
        self.body.drain(..start);
        self.status = 206;
        self.with("Content-Range", format!("bytes {start}-{}/{total}", total - 1))
    }
}

fn serve(stream: &TcpStream, state: &(Mutex<State>, Condvar), is_hub: bool, others: SocketAddr) {
    let Some(HttpRequest { method, path, mut headers, body }) = HttpRequest::read(stream) else { return };
    let (authorization, range) = (headers.remove("authorization"), headers.remove("range"));
    let request = HubRequest { is_hub, method, path, authorization, range };
    let answer = {
        let mut state = locked(&state.0);
        state.requests.push(request.clone());
        if is_hub { state.answer(&request, &body, others) } else { state.large(&request) }
    };
    write(stream, state, &request, &answer);
}

fn write(mut stream: &TcpStream, state: &(Mutex<State>, Condvar), request: &HubRequest, answer: &Answer) {
    // Whoever does not listen any more needs no answer.
    let _ = stream.write_all(http_head(answer.status, &answer.headers, answer.body.len()).as_bytes());
    if request.method == "HEAD" {
        return;
    }
    let mut rest = &answer.body[..answer.cut.unwrap_or(answer.body.len()).min(answer.body.len())];
    if answer.is_large {
        let mut guard = locked(&state.0);
        let first = guard.pause.unwrap_or(rest.len()).min(rest.len());
        drop(guard);
        let _ = stream.write_all(&rest[..first]);
        rest = &rest[first..];
        guard = locked(&state.0);
        while guard.pause.is_some() && !rest.is_empty() {
            guard = state.1.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
    let _ = stream.write_all(rest);
}

impl State {
    fn answer(&mut self, request: &HubRequest, body: &[u8], others: SocketAddr) -> Answer {
        if self.failures.0 > 0 {
            self.failures.0 -= 1;
            return Answer::new(self.failures.1);
        }
        if let Some(token) = &self.token
            && request.authorization != Some(format!("Bearer {token}"))
        {
            // What the hub says to somebody unknown, and to a token that it does not know.
            return match request.authorization {
                None => Answer::error(401, "RepoNotFound", "Invalid username or password."),
                Some(_) => {
                    Answer::new(401).with("X-Error-Message", "Invalid credentials in Authorization header")
                }
            };
        }
        let api = format!("/api/models/{}/", HubServer::MODEL);
        let resolve = format!("/{}/resolve/", HubServer::MODEL);
        let asked = |rest: &str| -> Option<(String, String)> {
            let (revision, rest) = rest.split_once('/').unwrap_or((rest, ""));
            let is_known = [self.commit.as_str(), "main", "refs%2Fpr%2F1"].contains(&revision);
            is_known.then(|| (revision.to_owned(), rest.replace("%20", " ")))
        };
        let no_revision = || Answer::error(404, "RevisionNotFound", "Invalid rev id");
        if let Some(rest) = request.path.strip_prefix(&resolve) {
            return asked(rest).map_or_else(no_revision, |(_, path)| self.resolve(&path, request, others));
        }
        let (path, query) = request.path.split_once('?').unwrap_or((&request.path, ""));
        let Some((call, rest)) = path.strip_prefix(&api).and_then(|rest| rest.split_once('/')) else {
            return Answer::error(404, "RepoNotFound", "Repository not found");
        };
        let Some((_, below)) = asked(rest) else { return no_revision() };
        match call {
            "revision" => {
                let siblings: Vec<_> = self.files.keys().map(|path| json!({"rfilename": path})).collect();
                Answer::json(&json!({"id": HubServer::MODEL, "sha": self.commit, "siblings": siblings}))
            }
            "tree" => {
                let is_below = |path: &str| below.is_empty() || path.starts_with(&format!("{below}/"));
                let start: usize =
                    query.split("cursor=").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
                let mut files = self.files.iter().filter(|(path, _)| is_below(path)).skip(start);
                let page = files.by_ref().take(PAGE_FILES).map(|(path, file)| file.entry(path)).collect();
                let answer = Answer::json(&page);
                if files.next().is_none() {
                    return answer;
                }
                // A mirror of a hub passes on what the hub says: links to itself.
                let next = format!("http://hub.invalid{path}?recursive=true&cursor={}", start + PAGE_FILES);
                answer.with("Link", format!("<{next}>; rel=\"next\""))
            }
            "paths-info" => {
                let asked: Value = serde_json::from_slice(body).unwrap_or_default();
                let path = asked["paths"][0].as_str().unwrap_or_default();
                let is_folder = self.files.keys().any(|known| known.starts_with(&format!("{path}/")));
                Answer::json(&match self.files.get(path) {
                    Some(file) => json!([file.entry(path)]),
                    None if is_folder => json!([{"type": "directory", "path": path, "oid": "0", "size": 0}]),
                    None => json!([]),
                })
            }
            _ => Answer::new(404),
        }
    }

    /// A file of the repository, or the place where it is.
    fn resolve(&self, path: &str, request: &HubRequest, others: SocketAddr) -> Answer {
        if self.is_gated {
            let status = if request.authorization.is_some() { 403 } else { 401 };
            return Answer::error(status, "GatedRepo", "Access to model team/model is restricted.");
        }
        let Some(file) = self.files.get(path) else {
            return Answer::error(404, "EntryNotFound", "Entry not found");
        };
        let commit = &self.commit;
        match file.kind {
            HubFile::Small => Answer { body: file.content.clone(), ..Answer::new(200) }
                .with("ETag", format!("\"{}\"", file.oid))
                .with("X-Repo-Commit", commit)
                .part(request.range.as_deref()),
            HubFile::Large => Answer::new(302)
                .with("Location", format!("http://{others}/{}?signature=x", file.oid))
                .with("X-Repo-Commit", commit)
                .with("X-Linked-ETag", format!("\"{}\"", file.oid))
                .with("X-Linked-Size", file.num_bytes.to_string()),
        }
    }

    /// The content of a large file.
    fn large(&mut self, request: &HubRequest) -> Answer {
        let oid = request.path.trim_start_matches('/').split('?').next().unwrap_or_default();
        let Some(file) = self.files.values().find(|file| file.oid == oid) else { return Answer::new(404) };
        let content = file.content.clone();
        let mut answer = Answer { body: content, is_large: true, ..Answer::new(200) };
        if self.cut.0 > 0 {
            self.cut.0 -= 1;
            answer.cut = Some(self.cut.1);
        }
        answer.with("ETag", "\"of-the-cache\"").part(request.range.as_deref())
    }
}

impl File {
    /// What a listing says of it.
    fn entry(&self, path: &str) -> Value {
        let size = self.num_bytes;
        match self.kind {
            HubFile::Small => json!({"type": "file", "path": path, "oid": self.oid, "size": size}),
            // Git has a pointer of its own in the file's place.
            HubFile::Large => json!({
                "type": "file", "path": path, "oid": git_blob_id(self.oid.as_bytes()), "size": size,
                "lfs": {"oid": self.oid, "size": size, "pointerSize": 135},
            }),
        }
    }
}
