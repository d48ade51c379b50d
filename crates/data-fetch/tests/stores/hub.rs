//! Lists on the Hugging Face hub: a small server that speaks the part of its interface that we use.

use crate::pictures::{self, csv};
use crate::program::Program;
use oqvl_testkit::{HttpRequest, HubFile, HubServer, http_head};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const COMMIT: &str = "0123456789012345678901234567890123456789";

/// First byte asked for.
pub(crate) fn range_start(request: &HttpRequest) -> usize {
    let range = request.headers.get("range").map_or("bytes=0-", String::as_str);
    range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: b"no".to_vec() }
    }

    /// The file from `start` on, with a tag.
    pub(crate) fn file(content: &[u8], start: usize) -> Self {
        let tag = format!("\"{}\"", &oqvl_shard_io::digest_bytes(content)[..8]);
        let status = if start > 0 { 206 } else { 200 };
        Self { status, headers: vec![("ETag", tag)], body: content[start..].to_vec() }
    }

    fn json(value: &Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: value.to_string().into_bytes() }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

/// A running server. It lives as long as the process.
#[derive(Debug)]
pub(crate) struct Web {
    pub(crate) address: SocketAddr,
    requests: Arc<Mutex<Vec<HttpRequest>>>,
}

impl Web {
    pub(crate) fn num_requests(&self) -> usize {
        self.requests.lock().unwrap().len()
    }

    fn requests(&self) -> Vec<HttpRequest> {
        self.requests.lock().unwrap().clone()
    }
}

pub(crate) fn serve(answer: impl Fn(&HttpRequest) -> Answer + Send + Sync + 'static) -> Web {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&requests);
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
            std::thread::spawn(move || {
                let Some(request) = HttpRequest::read(&stream) else { return };
                log.lock().unwrap().push(request.clone());
                write(stream, &answer(&request));
            });
        }
    });
    Web { address, requests }
}

fn write(mut stream: TcpStream, answer: &Answer) {
    let head = http_head(answer.status, &answer.headers, answer.body.len());
    let _ = stream.write_all(&[head.as_bytes(), &answer.body].concat());
}

/// The data set `team/lists` with a file and a folder, for whoever has the token.
fn hub(pictures: SocketAddr) -> Web {
    let files: BTreeMap<&str, String> = BTreeMap::from([
        ("top.csv", csv(pictures, &["t0"])),
        ("data/one.csv", csv(pictures, &["o0", "o1"])),
        ("data/two words.csv", csv(pictures, &["w0"])),
        ("data/more/three.csv", csv(pictures, &["h0"])),
        ("data/vectors.npz", "7".repeat(100_000)),
    ]);
    // Large files are known by the SHA-256 of their content; this one says something else of itself.
    let lying = csv(pictures, &["l0"]);
    serve(move |request| {
        if request.headers.get("authorization").map(String::as_str) != Some("Bearer hf_secret") {
            return Answer::status(401)
                .header("X-Error-Code", "RepoNotFound")
                .header("X-Error-Message", "Invalid username or password.");
        }
        let entry = |path: &str| {
            if path == "lying.csv" {
                let oid = "00".repeat(32);
                return json!({"type": "file", "path": path, "size": 130, "oid": "a", "lfs": {"oid": oid, "size": lying.len()}});
            }
            json!({"type": "file", "path": path, "size": files[path].len(), "oid": oqvl_shard_io::digest_bytes(files[path].as_bytes())[..40]})
        };
        let api = "/api/datasets/team/lists";
        let Some(rest) = request.path.strip_prefix(api) else {
            let resolve = format!("/datasets/team/lists/resolve/{COMMIT}/");
            let Some(name) = request.path.strip_prefix(&resolve) else {
                return Answer::status(404)
                    .header("X-Error-Code", "RepoNotFound")
                    .header("X-Error-Message", "Repository Not Found");
            };
            let name = name.replace("%20", " ");
            let content = if name == "lying.csv" { &lying } else { &files[name.as_str()] };
            return Answer::file(content.as_bytes(), range_start(request));
        };
        match rest {
            "/revision/main" | "/revision/refs%2Fconvert%2Fparquet" => Answer::json(&json!({"sha": COMMIT})),
            "/tree/0123456789012345678901234567890123456789/data?recursive=true" => {
                // Two pages.
                let next = format!(
                    "<http://{}{api}/tree/{COMMIT}/data?recursive=true&cursor=2>; rel=\"next\"",
                    request.headers["host"]
                );
                let page = json!([{"type": "directory", "path": "data/more", "oid": "x", "size": 0}, entry("data/one.csv"), entry("data/vectors.npz")]);
                Answer::json(&page).header("Link", &next)
            }
            "/tree/0123456789012345678901234567890123456789/data?recursive=true&cursor=2" => {
                Answer::json(&json!([entry("data/two words.csv"), entry("data/more/three.csv")]))
            }
            "/paths-info/0123456789012345678901234567890123456789" => {
                let asked: Value = serde_json::from_slice(&request.body).unwrap();
                match asked["paths"][0].as_str().unwrap() {
                    "data" => {
                        Answer::json(&json!([{"type": "directory", "path": "data", "oid": "x", "size": 0}]))
                    }
                    path if files.contains_key(path) || path == "lying.csv" => {
                        Answer::json(&json!([entry(path)]))
                    }
                    _ => Answer::json(&json!([])),
                }
            }
            _ => Answer::status(404)
                .header("X-Error-Code", "RevisionNotFound")
                .header("X-Error-Message", "Invalid rev id"),
        }
    })
}

fn program(web: &Web, uri: &str) -> Program {
    let mut program = Program::new(uri);
    program.variable("HF_ENDPOINT", &format!("http://{}", web.address));
    program.variable("HF_TOKEN", "hf_secret");
    program
}

#[test]
fn a_file_a_folder_and_a_pattern() {
    let web = hub(pictures::serve(Duration::ZERO));
    let captions = |uri: &str| {
        let program = program(&web, uri);
        program.succeed();
        program.captions()
    };
    assert_eq!(captions("hf://datasets/team/lists/top.csv"), ["t0"]);
    assert_eq!(captions("hf://datasets/team/lists/data"), ["o0", "o1", "w0"]);
    assert_eq!(captions("hf://datasets/team/lists@main/data/**/t*.csv"), ["h0", "w0"]);
    assert_eq!(captions("hf://datasets/team/lists@refs/convert/parquet/data/one.csv"), ["o0", "o1"]);
    let fetched: Vec<_> = web.requests().into_iter().filter(|request| request.path.contains("npz")).collect();
    assert!(fetched.is_empty(), "{fetched:?}");
}

#[test]
fn what_goes_wrong_is_one_sentence() {
    let web = hub(pictures::serve(Duration::ZERO));
    for (uri, sentence) in [
        ("hf://datasets/team/lists/none.csv", "there is no such file, and nothing below that name"),
        ("hf://datasets/team/lists/data/*.txt", "nothing matches this pattern"),
        ("hf://datasets/team/lists@v9/top.csv", "there is no revision `v9`"),
        ("hf://datasets/team/other/top.csv", "there is no data set `team/other`"),
        ("hf://datasets/team/lists/lying.csv", "its SHA-256 is not the listed one"),
    ] {
        let last = program(&web, uri).fail(1);
        assert!(last.contains(uri) && last.contains(sentence), "{last}");
    }
    let mut stranger = program(&web, "hf://datasets/team/lists/top.csv");
    stranger.variable("HF_TOKEN", "");
    let last = stranger.fail(1);
    let expected = "access denied: there is no data set `team/lists`, or it is private: Invalid username or password. \
                    (there is no HF_TOKEN)";
    assert!(last.contains(expected), "{last}");
    let last = program(&web, "hf://models/team/lists").fail(2);
    assert!(last.contains("or hf://datasets/owner/name[@revision]/path"), "{last}");
}

#[test]
fn offline_takes_the_copy_or_the_cache_of_the_hubs_own_tools() {
    let pictures = pictures::serve(Duration::ZERO);
    let web = hub(pictures);
    let mut online = program(&web, "hf://datasets/team/lists/top.csv");
    online.succeed();
    let num_requests = web.num_requests();
    online.variable("HF_HUB_OFFLINE", "1");
    assert!(online.succeed().stderr.contains("up to date"));
    assert_eq!(web.num_requests(), num_requests);

    let mut offline = program(&web, "hf://datasets/team/lists/data/*.csv");
    offline.variable("HF_HUB_OFFLINE", "1");
    let last = offline.fail(1);
    assert!(last.contains("offline, and there is no complete copy of it here"), "{last}");
    // What `huggingface-cli download` would have left.
    let cache = offline.dir.path().join("home/.cache/huggingface/hub/datasets--team--lists");
    let write = |name: &str, content: &str| {
        let path = cache.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        oqvl_shard_io::write_atomic(&path, content.as_bytes()).unwrap();
    };
    write("refs/main", COMMIT);
    write(&format!("snapshots/{COMMIT}/data/one.csv"), &csv(pictures, &["cached"]));
    offline.succeed();
    assert_eq!(offline.captions(), ["cached"]);
    assert_eq!(web.num_requests(), num_requests);

    // With a network the cache saves the download, if the file is as long as it should be.
    let mut cached = program(&web, "hf://datasets/team/lists/top.csv");
    cached.variable("HF_HOME", cache.parent().unwrap().parent().unwrap().to_str().unwrap());
    write(&format!("snapshots/{COMMIT}/top.csv"), &csv(pictures, &["c0"]));
    cached.succeed();
    assert_eq!(cached.captions(), ["c0"]);
    let resolved = web.requests().into_iter().filter(|request| request.path.contains("/resolve/")).count();
    assert_eq!(resolved, 1, "the first file of this test");
}

#[test]
fn a_file_of_a_model_is_an_input_too() {
    let pictures = pictures::serve(Duration::ZERO);
    let model = HubServer::start();
    model.put("lists/top.csv", HubFile::Small, csv(pictures, &["m0"]).as_bytes());
    model.put("model.safetensors", HubFile::Large, &[7; 1000]);
    let mut program = Program::new("hf://team/model/lists/top.csv");
    program.variable("HF_ENDPOINT", &model.endpoint());
    let said = program.succeed().stderr;
    assert!(said.contains("fetched 1 of 1 files"), "{said}");
    assert_eq!(program.captions(), ["m0"]);
    let cache = program.dir.path().join("home/.cache/huggingface/hub/models--team--model");
    assert!(cache.join("snapshots").join(model.commit()).join("lists/top.csv").is_file());
    let asked = model.take_requests();
    assert!(asked.iter().all(|request| request.is_hub), "the weights are not asked for: {asked:?}");
    assert!(program.succeed().stderr.contains("up to date"));
}
