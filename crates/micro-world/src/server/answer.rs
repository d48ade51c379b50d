//! Answers, the faulty ones included.

use super::request::{Connection, Method, Request};
use super::{ServedRoute, ServedWorld};
use crate::records::{Answer, BodyRef, Delivery};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// How long a hanging connection is kept open for a client that never gives up.
const MAX_HANG: Duration = Duration::from_secs(600);
/// Number of pieces in which a slow body comes.
const SLOW_PIECES: usize = 10;

/// Answers a request and says whether the connection can go on.
pub(super) async fn respond(
    stream: &mut TcpStream,
    request: &Request,
    world: &ServedWorld,
) -> io::Result<Connection> {
    let Some(route) = world.route(&request.host, &request.target) else {
        return respond_with_status(stream, 404, request.method, request.connection).await;
    };
    match &route.answer {
        Answer::Status { status } => {
            respond_with_status(stream, *status, request.method, request.connection).await
        }
        Answer::Redirect { location } => {
            let head = Head { status: 302, num_bytes: 0, extra: vec![("Location", location)], request };
            stream.write_all(&head.bytes()).await?;
            Ok(request.connection)
        }
        Answer::Body { body, content_type, delivery, robots_tag } => {
            let mut extra = vec![("Content-Type", content_type)];
            extra.extend(robots_tag.as_ref().map(|tag| ("X-Robots-Tag", tag)));
            let Some(bytes) = read_body(world, body) else {
                return respond_with_status(stream, 500, request.method, request.connection).await;
            };
            let head = Head { status: 200, num_bytes: bytes.len(), extra, request };
            deliver(stream, &head, &bytes, *delivery, route).await
        }
    }
}

/// A body of a few words that name the status.
pub(super) async fn respond_with_status(
    stream: &mut TcpStream,
    status: u16,
    method: Method,
    connection: Connection,
) -> io::Result<Connection> {
    let body = format!("<html><body>{status} {}</body></html>\n", reason(status));
    let request = Request { method, host: String::new(), target: String::new(), connection };
    let content_type = "text/html; charset=utf-8".to_owned();
    let head = Head {
        status,
        num_bytes: body.len(),
        extra: vec![("Content-Type", &content_type)],
        request: &request,
    };
    let mut bytes = head.bytes();
    if method == Method::Get {
        bytes.extend_from_slice(body.as_bytes());
    }
    stream.write_all(&bytes).await?;
    Ok(connection)
}

fn read_body(world: &ServedWorld, body: &BodyRef) -> Option<Vec<u8>> {
    let shard = world.shards.get(&body.shard)?;
    match shard.read(body.offset, body.num_bytes) {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!(%error, shard = body.shard, offset = body.offset, "cannot read a body");
            None
        }
    }
}

/// Sends head and body the way the route wants it.
async fn deliver(
    stream: &mut TcpStream,
    head: &Head<'_>,
    body: &[u8],
    delivery: Delivery,
    route: &ServedRoute,
) -> io::Result<Connection> {
    let num_earlier = route.count_request();
    let (method, connection) = (head.request.method, head.request.connection);
    if let Delivery::AfterErrors { num_failures } = delivery
        && num_earlier < num_failures
    {
        return respond_with_status(stream, 500, method, connection).await;
    }
    if delivery == Delivery::Silent {
        return hang(stream).await;
    }
    stream.write_all(&head.bytes()).await?;
    if method == Method::Head {
        return Ok(connection);
    }
    let half = &body[..body.len() / 2];
    match delivery {
        Delivery::Plain | Delivery::AfterErrors { .. } | Delivery::Silent => stream.write_all(body).await?,
        Delivery::Slow { milliseconds } => {
            let piece_bytes = body.len().div_ceil(SLOW_PIECES).max(1);
            for piece in body.chunks(piece_bytes) {
                sleep(Duration::from_millis(milliseconds / SLOW_PIECES as u64)).await;
                stream.write_all(piece).await?;
            }
        }
        Delivery::Stalled => {
            stream.write_all(half).await?;
            return hang(stream).await;
        }
        Delivery::Truncated => {
            stream.write_all(half).await?;
            stream.shutdown().await?;
            return Ok(Connection::Close);
        }
    }
    Ok(connection)
}

/// Says nothing until the client has enough.
async fn hang(stream: &mut TcpStream) -> io::Result<Connection> {
    let mut ignored = [0; 1024];
    let until_closed = async { while !matches!(stream.read(&mut ignored).await, Ok(0) | Err(_)) {} };
    let _ = timeout(MAX_HANG, until_closed).await;
    Ok(Connection::Close)
}

/// Status line and headers.
struct Head<'a> {
    status: u16,
    /// `Content-Length`.
    num_bytes: usize,
    extra: Vec<(&'static str, &'a String)>,
    request: &'a Request,
}

impl Head<'_> {
    fn bytes(&self) -> Vec<u8> {
        let mut head = format!("HTTP/1.1 {} {}\r\n", self.status, reason(self.status));
        for (name, value) in &self.extra {
            head += &format!("{name}: {value}\r\n");
        }
        let connection = match self.request.connection {
            Connection::KeepAlive => "keep-alive",
            Connection::Close => "close",
        };
        head += &format!("Content-Length: {}\r\nConnection: {connection}\r\n\r\n", self.num_bytes);
        head.into_bytes()
    }
}

/// Reason phrases of RFC 9110.
fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        302 => "Found",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        410 => "Gone",
        413 => "Content Too Large",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        505 => "HTTP Version Not Supported",
        _ => "Other",
    }
}
