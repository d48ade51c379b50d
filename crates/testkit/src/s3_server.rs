//! A real S3 server on this machine: moto's, from PyPI.

use crate::python_venv;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Ends the server when its standard input is closed, as it is when the tests end in whatever way.
const STARTER: &str = "\
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(['-H', '127.0.0.1', '-p', sys.argv[1]])
";

/// The server of this test process, shared by its tests; each has a bucket of its own.
#[derive(Debug, Clone, Copy)]
pub struct S3Server {
    /// Where it listens.
    pub address: SocketAddr,
}

impl S3Server {
    /// The server, started with the first call; `None`, with a line that says so, if Python or PyPI is not there.
    ///
    /// # Panics
    /// If it is installed and does not start.
    #[must_use]
    pub fn get() -> Option<Self> {
        static SERVER: OnceLock<Option<S3Server>> = OnceLock::new();
        let server = *SERVER.get_or_init(Self::start);
        if server.is_none() {
            // The first asking said why; every test says that it is skipped.
            let thread = std::thread::current();
            eprintln!("skipped: {} needs moto's S3 server", thread.name().unwrap_or("a test"));
        }
        server
    }

    fn start() -> Option<Self> {
        let venv = python_venv("moto", &["moto[server]==5.2.5"])?;
        // A port that was free a moment ago.
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port = port.expect("a port can be bound").port();
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let mut command = Command::new(venv.python());
        command.args(["-c", STARTER, &port.to_string()]).stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.stderr(Stdio::null()).spawn().expect("Python can be started");
        // Its standard input stays open until this process ends.
        std::mem::forget(child);
        let started = Instant::now();
        while TcpStream::connect(address).is_err() {
            assert!(started.elapsed() < Duration::from_secs(60), "moto's server does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(Self { address })
    }

    /// What a client needs in its environment to use the server.
    #[must_use]
    pub fn environment(address: SocketAddr) -> [(&'static str, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", "test".to_owned()),
            ("AWS_SECRET_ACCESS_KEY", "test".to_owned()),
            ("AWS_REGION", "us-east-1".to_owned()),
            ("AWS_ENDPOINT_URL", format!("http://{address}")),
        ]
    }

    /// A new bucket.
    ///
    /// # Panics
    /// If the server refuses.
    #[must_use]
    pub fn bucket(self, name: &'static str) -> Bucket {
        assert_eq!(request(self.address, "PUT", &format!("/{name}"), b"").0, 200);
        Bucket { server: self, name }
    }
}

/// A bucket, looked at and filled past the program under test.
#[derive(Debug, Clone, Copy)]
pub struct Bucket {
    server: S3Server,
    name: &'static str,
}

impl Bucket {
    fn path(&self, key: &str) -> String {
        format!("/{}/{}", self.name, key.replace(' ', "%20"))
    }

    /// Stores an object.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn put(&self, key: &str, content: &[u8]) {
        assert_eq!(request(self.server.address, "PUT", &self.path(key), content).0, 200, "{key}");
    }

    /// Stores an object that everybody may read.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn put_public(&self, key: &str, content: &[u8]) {
        let header = "x-amz-acl: public-read\r\n";
        assert_eq!(
            request_with(self.server.address, "PUT", &self.path(key), header, content).0,
            200,
            "{key}"
        );
    }

    /// The content of an object.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn get(&self, key: &str) -> Vec<u8> {
        let (status, content) = request(self.server.address, "GET", &self.path(key), b"");
        assert_eq!(status, 200, "{key}");
        content
    }

    /// Removes an object.
    ///
    /// # Panics
    /// If the server refuses.
    pub fn delete(&self, key: &str) {
        assert_eq!(request(self.server.address, "DELETE", &self.path(key), b"").0, 204, "{key}");
    }

    /// All keys, sorted.
    ///
    /// # Panics
    /// If the server refuses.
    #[must_use]
    pub fn keys(&self) -> Vec<String> {
        let path = format!("/{}?list-type=2&max-keys=1000", self.name);
        let (status, answer) = request(self.server.address, "GET", &path, b"");
        assert_eq!(status, 200);
        let answer = String::from_utf8(answer).expect("the server answers in HTTP");
        let keys = answer
            .split("<Key>")
            .skip(1)
            .map(|rest| rest.split("</Key>").next().expect("the server answers in HTTP").to_owned());
        let mut keys: Vec<_> = keys.collect();
        keys.sort();
        keys
    }
}

/// One request, one answer.
fn request(address: SocketAddr, method: &str, path: &str, body: &[u8]) -> (u16, Vec<u8>) {
    request_with(address, method, path, "", body)
}

fn request_with(address: SocketAddr, method: &str, path: &str, headers: &str, body: &[u8]) -> (u16, Vec<u8>) {
    let mut stream = TcpStream::connect(address).expect("the server answers in HTTP");
    // The server wants to know who asks, and believes it.
    let credential = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0";
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: {credential}\r\n{headers}Content-Length: {}\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat()).expect("the server answers in HTTP");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the server answers in HTTP");
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").expect("an HTTP answer") + 4;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let status = head
        .split(' ')
        .nth(1)
        .expect("the server answers in HTTP")
        .parse()
        .expect("the server answers in HTTP");
    let mut content = answer.split_off(end);
    if head.to_lowercase().contains("transfer-encoding: chunked") {
        content = unchunked(&content);
    }
    (status, content)
}

fn unchunked(mut bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = bytes.windows(2).position(|window| window == b"\r\n") {
        let size = usize::from_str_radix(
            std::str::from_utf8(&bytes[..end]).expect("the server answers in HTTP").trim(),
            16,
        )
        .expect("the server answers in HTTP");
        if size == 0 {
            break;
        }
        content.extend_from_slice(&bytes[end + 2..end + 2 + size]);
        bytes = &bytes[end + 4 + size..];
    }
    content
}
