//! The server from outside: plain sockets against a small world.

use super::WorldServer;
use crate::records::{Fault, TruthRecord, UrlRecord};
use crate::world_dir::{WorldDir, read_jsonl};
use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A small world and its server, for all tests.
struct Served {
    server: WorldServer,
    world: WorldDir,
    _dir: tempfile::TempDir,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let (dir, world) = crate::tests::small_world(7);
    let server = WorldServer::start(world.path("").as_path(), 0).unwrap();
    Served { server, world, _dir: dir }
});

#[derive(Debug, Clone, PartialEq)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

impl Reply {
    fn content_length(&self) -> usize {
        self.headers["content-length"].parse().unwrap()
    }
}

/// Why no whole reply came.
#[derive(Debug, PartialEq)]
enum NoReply {
    /// Nothing, or not all of it, until the client lost patience.
    TimedOut(usize),
    /// The connection ended early.
    Short(usize),
}

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    stream
}

/// Reads one reply; a slow one may take as long as each piece comes in time.
fn read_reply(stream: &mut TcpStream, method: &str) -> Result<Reply, NoReply> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        if let Some(end) = super::request::head_end(&bytes) {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let mut lines = head.trim_end().split("\r\n");
            let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
            let headers: BTreeMap<_, _> = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
                .collect();
            let reply = Reply { status, headers, body: bytes[end..].to_vec() };
            if method == "HEAD" || reply.body.len() == reply.content_length() {
                return Ok(reply);
            }
        }
        match stream.read(&mut buffer) {
            Ok(0) => return Err(NoReply::Short(bytes.len())),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Err(NoReply::TimedOut(bytes.len()));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

fn split_url(url: &str) -> (&str, &str) {
    let rest = url.strip_prefix("http://").unwrap();
    rest.split_at(rest.find('/').unwrap())
}

fn request(url: &str, method: &str) -> Result<Reply, NoReply> {
    let (host, target) = split_url(url);
    let mut stream = connect(SERVED.server.address());
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: test\r\n\r\n").unwrap();
    read_reply(&mut stream, method)
}

/// Follows up to five redirects.
fn get(url: &str) -> Result<Reply, NoReply> {
    let mut url = url.to_owned();
    for _ in 0..5 {
        let reply = request(&url, "GET")?;
        let Some(location) = reply.headers.get("location") else { return Ok(reply) };
        let (host, _) = split_url(&url);
        url = if location.starts_with('/') { format!("http://{host}{location}") } else { location.clone() };
    }
    request(&url, "GET")
}

fn truth() -> Vec<TruthRecord> {
    read_jsonl(&SERVED.world.truth()).unwrap()
}

fn faulty(fault: Fault) -> Vec<TruthRecord> {
    let records: Vec<_> =
        truth().into_iter().filter(|record| record.fault.as_ref() == Some(&fault)).collect();
    assert!(records.len() >= 2, "{fault}: {}", records.len());
    records
}

fn assert_is_picture(reply: &Reply) {
    assert_eq!(reply.status, 200);
    let picture = image::load_from_memory(&reply.body).unwrap();
    assert!(picture.width() >= 96 && picture.height() >= 96);
}

#[test]
fn what_has_no_fault_is_a_picture() {
    let mut num_redirects = 0;
    for record in truth().iter().filter(|record| record.fault.is_none()) {
        num_redirects += usize::from(request(&record.url, "HEAD").unwrap().status == 302);
        let reply = get(&record.url).unwrap();
        assert_is_picture(&reply);
        assert!(reply.headers["content-type"].starts_with("image/"));
        assert!(!reply.headers.contains_key("x-robots-tag"));
    }
    assert!(num_redirects > 0);
}

#[test]
fn missing_pictures_have_their_status() {
    for (fault, status) in [(Fault::NotFound, 404), (Fault::Gone, 410)] {
        for record in faulty(fault) {
            assert_eq!(get(&record.url).unwrap().status, status);
        }
    }
}

#[test]
fn server_errors_pass() {
    for record in faulty(Fault::ServerErrorThenFine) {
        let statuses: Vec<_> = (0..4).map(|_| get(&record.url).unwrap().status).collect();
        assert_eq!((statuses[0], statuses[2], statuses[3]), (500, 200, 200), "{statuses:?}");
    }
}

#[test]
fn slow_pictures_arrive() {
    let record = &faulty(Fault::Slow)[0];
    let start = Instant::now();
    assert_is_picture(&get(&record.url).unwrap());
    assert!(start.elapsed() > Duration::from_millis(500));
}

#[test]
fn hanging_pictures_do_not() {
    for record in faulty(Fault::Hanging) {
        assert!(matches!(get(&record.url), Err(NoReply::TimedOut(_))));
    }
}

#[test]
fn truncated_pictures_end_early() {
    for record in faulty(Fault::Truncated) {
        let announced = request(&record.url, "HEAD").unwrap().content_length();
        let Err(NoReply::Short(count)) = get(&record.url) else { panic!("not truncated") };
        assert!(count > 0 && count < announced + 200);
    }
}

#[test]
fn types_and_bodies_disagree() {
    for record in faulty(Fault::WrongContentType) {
        let reply = get(&record.url).unwrap();
        assert!(reply.headers["content-type"].starts_with("text/html"));
        assert_is_picture(&reply);
    }
    for record in faulty(Fault::NotAnImage) {
        let reply = get(&record.url).unwrap();
        assert_eq!((reply.status, reply.headers["content-type"].as_str()), (200, "image/jpeg"));
        assert!(reply.body.starts_with(b"<!DOCTYPE html>"));
    }
}

#[test]
fn sizes_are_extreme() {
    for record in faulty(Fault::Tiny) {
        let picture = image::load_from_memory(&get(&record.url).unwrap().body).unwrap();
        assert!(picture.width() <= 2 && picture.height() <= 2);
    }
    for record in faulty(Fault::HugeDimensions) {
        let body = get(&record.url).unwrap().body;
        let reader = image::ImageReader::new(std::io::Cursor::new(&body)).with_guessed_format().unwrap();
        assert_eq!(reader.into_dimensions().unwrap(), (60_000, 60_000));
        assert!(body.len() < 1000);
    }
}

#[test]
fn redirects_loop() {
    for record in faulty(Fault::RedirectLoop) {
        assert_eq!(get(&record.url).unwrap().status, 302);
    }
}

#[test]
fn opt_outs_say_so() {
    for record in faulty(Fault::OptOut) {
        let reply = get(&record.url).unwrap();
        assert!(reply.headers["x-robots-tag"].contains("noai"));
        assert_is_picture(&reply);
    }
}

#[test]
fn duplicates_have_the_same_bytes_and_near_duplicates_do_not() {
    let truth = truth();
    let url_of = |uid: &str| truth.iter().find(|record| record.uid == uid).unwrap().url.clone();
    for record in faulty(Fault::DuplicateContent) {
        let original = url_of(record.duplicate_of.as_ref().unwrap());
        assert_eq!(get(&record.url).unwrap().body, get(&original).unwrap().body);
    }
    let near: Vec<_> = truth.iter().filter(|record| record.near_duplicate_of.is_some()).collect();
    assert!(near.len() >= 2);
    for record in near.into_iter().filter(|record| record.fault.is_none()) {
        let original = url_of(record.near_duplicate_of.as_ref().unwrap());
        assert_ne!(get(&record.url).unwrap().body, get(&original).unwrap().body);
    }
}

#[test]
fn a_connection_serves_many_requests() {
    let urls: Vec<UrlRecord> = read_jsonl(&SERVED.world.urls()).unwrap();
    let mut stream = connect(SERVED.server.address());
    let fine = truth().into_iter().filter(|record| record.fault.is_none()).take(20);
    for record in fine {
        assert!(urls.iter().any(|url| url.url == record.url));
        let (host, target) = split_url(&record.url);
        // The port that a client without hosts file would add is no part of the name.
        write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}:80\r\n\r\n").unwrap();
        let reply = read_reply(&mut stream, "GET").unwrap();
        assert!([200, 302].contains(&reply.status));
        assert_eq!(reply.headers["connection"], "keep-alive");
    }
    write!(stream, "GET / HTTP/1.1\r\nHost: a.micro-world.test\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!(read_reply(&mut stream, "GET").unwrap().status, 404);
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0, "closed on request");
}

#[test]
fn bad_requests_are_answered_and_end_the_connection() {
    for (bytes, status) in [
        (b"nonsense\r\n\r\n".to_vec(), 400),
        (b"DELETE / HTTP/1.1\r\nHost: a.micro-world.test\r\n\r\n".to_vec(), 405),
        (b"GET / HTTP/1.1\r\nHost: unknown.test\r\nConnection: close\r\n\r\n".to_vec(), 404),
        ([b"GET /".to_vec(), vec![b'x'; 17 * 1024]].concat(), 431),
    ] {
        let mut stream = connect(SERVED.server.address());
        stream.write_all(&bytes).unwrap();
        assert_eq!(read_reply(&mut stream, "GET").unwrap().status, status);
    }
}

#[test]
fn stopping_frees_the_port_and_ends_hanging_connections() {
    let (_dir, world) = crate::tests::small_world(7);
    let server = WorldServer::start(world.path("").as_path(), 0).unwrap();
    let address = server.address();
    let hanging = faulty(Fault::Hanging).remove(0);
    let (host, target) = split_url(&hanging.url);
    let mut stream = connect(address);
    write!(stream, "GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n").unwrap();
    assert!(matches!(read_reply(&mut stream, "GET"), Err(NoReply::TimedOut(_))));
    server.stop();
    assert!(matches!(stream.read(&mut [0; 4096]), Ok(0) | Err(_)));
    assert!(WorldServer::start(world.path("").as_path(), address.port()).is_ok());
}

#[test]
fn the_hosts_file_names_every_host() {
    let path = SERVED.world.path("hosts.local.json");
    SERVED.server.write_hosts_file(&path).unwrap();
    let hosts: BTreeMap<String, SocketAddr> = oqvl_shard_io::read_json(&path).unwrap();
    assert_eq!(hosts.len(), 4);
    for record in truth() {
        assert_eq!(hosts[split_url(&record.url).0], SERVED.server.address());
    }
}

#[test]
fn a_world_that_is_none_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let world = WorldDir::new(dir.path());
    let start = || WorldServer::start(dir.path(), 0).unwrap_err().to_string();
    assert!(start().contains("routes.jsonl: cannot read"), "{}", start());
    for (routes, problem) in [
        ("{\"host\":1}", "line 1"),
        (
            "{\"host\":\"a\",\"target\":\"/\",\"answer\":{\"kind\":\"status\",\"status\":404}}\n\
             {\"host\":\"A\",\"target\":\"/\",\"answer\":{\"kind\":\"status\",\"status\":410}}",
            "http://a/ has two routes",
        ),
        (
            "{\"host\":\"a\",\"target\":\"/\",\"answer\":{\"kind\":\"body\",\"content_type\":\"x\",\
             \"body\":{\"shard\":\"../x\",\"offset\":0,\"num_bytes\":1}}}",
            "`../x` is not the name of a file",
        ),
    ] {
        world.write("routes.jsonl", routes.as_bytes()).unwrap();
        assert!(start().contains(problem), "{}", start());
    }
}
