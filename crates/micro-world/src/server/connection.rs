//! One connection: requests one after the other, each with its answer.

use super::ServedWorld;
use super::answer::{respond, respond_with_status};
use super::request::{Connection, MAX_HEAD_BYTES, Method, head_end, parse};
use std::io;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a connection may take to send the next request.
const MAX_IDLE: Duration = Duration::from_secs(60);

/// Serves a connection until one side has enough of it.
pub(super) async fn serve(mut stream: TcpStream, world: &ServedWorld) {
    // A fetcher waits for the last packet of an answer; it should not wait for more data to fill that packet.
    let _ = stream.set_nodelay(true);
    let mut pending = Vec::new();
    // A client that goes away in the middle is none of our business.
    while let Ok(Connection::KeepAlive) = serve_one(&mut stream, &mut pending, world).await {}
}

/// Reads one request, of which `pending` may hold the beginning, and answers it.
async fn serve_one(
    stream: &mut TcpStream,
    pending: &mut Vec<u8>,
    world: &ServedWorld,
) -> io::Result<Connection> {
    let head_bytes = match timeout(MAX_IDLE, read_head(stream, pending)).await {
        Ok(Ok(Some(bytes))) => bytes,
        Ok(Ok(None)) => {
            respond_with_status(stream, 431, Method::Get, Connection::Close).await?;
            return Ok(Connection::Close);
        }
        Ok(Err(error)) => return Err(error),
        Err(_elapsed) => return Ok(Connection::Close),
    };
    let parsed = parse(&pending[..head_bytes]);
    pending.drain(..head_bytes);
    match parsed {
        Ok(request) => respond(stream, &request, world).await,
        Err(status) => {
            respond_with_status(stream, status, Method::Get, Connection::Close).await?;
            Ok(Connection::Close)
        }
    }
}

/// Reads until `pending` holds a whole head; returns its length, or nothing if it is too long.
async fn read_head(stream: &mut TcpStream, pending: &mut Vec<u8>) -> io::Result<Option<usize>> {
    loop {
        if let Some(end) = head_end(pending) {
            return Ok((end <= MAX_HEAD_BYTES).then_some(end));
        }
        if pending.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
        if stream.read_buf(pending).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}
