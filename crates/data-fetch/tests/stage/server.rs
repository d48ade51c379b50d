//! A small HTTP server that misbehaves on request.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A request as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) host: String,
    pub(crate) path: String,
    pub(crate) user_agent: String,
    /// Earlier requests for the same host and path.
    pub(crate) num_earlier: usize,
    pub(crate) arrived: Instant,
}

/// An answer, good or bad.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) delivery: Delivery,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// With `Content-Length`.
    Whole,
    /// Without `Content-Length`, ended by closing.
    Unannounced,
    /// All after a while.
    Late(Duration),
    /// Half of the body, then the end of the connection.
    Truncated,
    /// Half of the body, then nothing.
    Stalled,
    /// Nothing at all, the connection open.
    Silent,
    /// The connection closed without an answer.
    Closed,
    /// Bytes that are not HTTP.
    Garbage,
    /// One byte, a while, another byte.
    Drip(Duration),
    /// The body over and over, without end.
    Endless,
    /// So many bytes announced, and sent as long as the client takes them.
    Announced(u64),
    /// Half of the body's length announced, all of it sent.
    Understated,
    /// Headers without end.
    HeaderFlood,
}

impl Reply {
    pub(crate) fn ok(body: &[u8]) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.to_vec(), delivery: Delivery::Whole }
    }

    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::ok(b"no image") }
    }

    pub(crate) fn redirect(location: &str) -> Self {
        Self::status(302).header("Location", location)
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(crate) fn delivered(self, delivery: Delivery) -> Self {
        Self { delivery, ..self }
    }
}

/// The running server. It lives as long as the process.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    log: Arc<Mutex<Log>>,
}

#[derive(Default)]
struct Log {
    requests: Vec<Request>,
    open: HashMap<String, usize>,
    most_open: usize,
    most_open_per_host: usize,
}

impl Server {
    pub(crate) fn start(respond: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Log::default()));
        let (respond, shared) = (Arc::new(respond), Arc::clone(&log));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (respond, log) = (Arc::clone(&respond), Arc::clone(&shared));
                std::thread::spawn(move || serve(stream, &*respond, &log));
            }
        });
        Self { address, log }
    }

    /// Requests so far, in order of arrival.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().requests.clone()
    }

    pub(crate) fn num_requests(&self, host: &str, path: &str) -> usize {
        self.requests().iter().filter(|request| request.host == host && request.path == path).count()
    }

    /// Most requests that were being answered at the same time: in all, and at one host.
    pub(crate) fn most_open(&self) -> (usize, usize) {
        let log = self.log.lock().unwrap();
        (log.most_open, log.most_open_per_host)
    }
}

fn serve(mut stream: TcpStream, respond: &dyn Fn(&Request) -> Reply, log: &Mutex<Log>) {
    let Some(mut request) = read_request(&stream) else {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        return;
    };
    {
        let mut log = log.lock().unwrap();
        let is_same = |earlier: &&Request| earlier.path == request.path && earlier.host == request.host;
        request.num_earlier = log.requests.iter().filter(is_same).count();
        log.requests.push(request.clone());
        *log.open.entry(request.host.clone()).or_default() += 1;
        log.most_open = log.most_open.max(log.open.values().sum());
        log.most_open_per_host = log.most_open_per_host.max(log.open[&request.host]);
    }
    let reply = respond(&request);
    if let Delivery::Late(delay) = reply.delivery {
        std::thread::sleep(delay);
    }
    *log.lock().unwrap().open.get_mut(&request.host).unwrap() -= 1;
    // A client that has gone away is its own affair.
    let _ = deliver(&mut stream, &reply);
}

/// The head of a GET; `None` for anything else, such as a TLS handshake (which starts with byte 22).
fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut first_byte = [0];
    if stream.peek(&mut first_byte).ok()? == 0 || first_byte[0] == 22 {
        return None;
    }
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ');
    if words.next() != Some("GET") {
        return None;
    }
    let path = words.next()?.to_owned();
    let (mut host, mut user_agent) = (String::new(), String::new());
    for line in lines {
        let line = line.ok()?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("host") => host = value.to_owned(),
            Some((name, value)) if name.eq_ignore_ascii_case("user-agent") => user_agent = value.to_owned(),
            _ if line.is_empty() => break,
            _ => {}
        }
    }
    Some(Request { host, path, user_agent, num_earlier: 0, arrived: Instant::now() })
}

fn deliver(stream: &mut TcpStream, reply: &Reply) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} Status\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let announced = match reply.delivery {
        Delivery::Unannounced | Delivery::Endless | Delivery::HeaderFlood => None,
        Delivery::Announced(num_bytes) => Some(num_bytes),
        Delivery::Understated => Some(reply.body.len() as u64 / 2),
        _ => Some(reply.body.len() as u64),
    };
    if let Some(num_bytes) = announced {
        head += &format!("Content-Length: {num_bytes}\r\n");
    }
    if reply.delivery == Delivery::HeaderFlood {
        stream.write_all(head.as_bytes())?;
        loop {
            stream.write_all(format!("X-Flood: {}\r\n", "x".repeat(1000)).as_bytes())?;
        }
    }
    head += "\r\n";
    let half = &reply.body[..reply.body.len() / 2];
    match reply.delivery {
        Delivery::Whole | Delivery::Unannounced | Delivery::Late(_) | Delivery::Understated => {
            stream.write_all(&[head.as_bytes(), &reply.body].concat())
        }
        Delivery::Truncated => stream.write_all(&[head.as_bytes(), half].concat()),
        Delivery::Stalled => {
            stream.write_all(&[head.as_bytes(), half].concat())?;
            wait_for_end(stream)
        }
        Delivery::Drip(pause) => {
            stream.write_all(head.as_bytes())?;
            reply.body.chunks(1).try_for_each(|byte| {
                std::thread::sleep(pause);
                stream.write_all(byte)
            })
        }
        Delivery::Endless | Delivery::Announced(_) => {
            stream.write_all(head.as_bytes())?;
            let much = reply.body.repeat((1 << 16) / reply.body.len() + 1);
            loop {
                stream.write_all(&much)?;
            }
        }
        Delivery::HeaderFlood => unreachable!("its head has no end"),
        Delivery::Silent => wait_for_end(stream),
        Delivery::Closed => Ok(()),
        Delivery::Garbage => stream.write_all(b"220 mail.example ESMTP ready\r\n\r\n"),
    }
}

/// Until the client closes the connection.
fn wait_for_end(stream: &mut TcpStream) -> std::io::Result<()> {
    while stream.read(&mut [0; 64])? > 0 {}
    Ok(())
}
