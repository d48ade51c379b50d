//! Reading the head of an HTTP/1.1 request (RFC 9112): the little of it that serving files takes.

/// Largest head that is read, in bytes.
pub(super) const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What the request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Head,
}

/// What becomes of the connection after the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connection {
    KeepAlive,
    Close,
}

/// A request without body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: Method,
    /// Lower case, no port.
    pub(super) host: String,
    /// Path and query.
    pub(super) target: String,
    pub(super) connection: Connection,
}

/// The end of the head in `bytes`, behind its empty line, if it is there.
pub(super) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

/// Parses a head that ends with its empty line.
///
/// # Errors
/// The status to answer with; the connection is then of no more use.
pub(super) fn parse(head: &[u8]) -> Result<Request, u16> {
    const BAD_REQUEST: u16 = 400;
    let text = std::str::from_utf8(head).map_err(|_| BAD_REQUEST)?;
    let mut lines = text.split("\r\n");
    let mut words = lines.next().unwrap_or_default().split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(BAD_REQUEST);
    };
    let mut connection = match version {
        "HTTP/1.1" => Connection::KeepAlive,
        "HTTP/1.0" => Connection::Close,
        _ => return Err(505),
    };
    let mut host = None;
    for line in lines.filter(|line| !line.is_empty()) {
        let (name, value) = line.split_once(':').ok_or(BAD_REQUEST)?;
        let value = value.trim();
        match name.to_ascii_lowercase().as_str() {
            "host" if host.is_some() => return Err(BAD_REQUEST),
            "host" => host = Some(value),
            "connection" if value.eq_ignore_ascii_case("close") => connection = Connection::Close,
            // Bodies are neither wanted nor read.
            "content-length" if value != "0" => return Err(413),
            "transfer-encoding" => return Err(413),
            _ => {}
        }
    }
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        _ => return Err(405),
    };
    let (host, target) = match target.strip_prefix("http://") {
        // The form a proxy gets.
        Some(rest) => rest.split_at(rest.find('/').unwrap_or(rest.len())),
        None => (host.ok_or(BAD_REQUEST)?, target),
    };
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name).to_ascii_lowercase();
    let target = if target.is_empty() { "/" } else { target };
    if !target.starts_with('/') {
        return Err(BAD_REQUEST);
    }
    Ok(Request { method, host, target: target.to_owned(), connection })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, expected: Result<(Method, &str, &str, Connection), u16>) {
        let parsed = parse(head.as_bytes());
        let parsed = parsed
            .as_ref()
            .map(|request| {
                (request.method, request.host.as_str(), request.target.as_str(), request.connection)
            })
            .map_err(|status| *status);
        assert_eq!(parsed, expected, "{head:?}");
    }

    #[test]
    fn heads_are_read() {
        use Connection::{Close, KeepAlive};
        use Method::{Get, Head};
        check("GET /a?b=c HTTP/1.1\r\nHost: A.test:80\r\n\r\n", Ok((Get, "a.test", "/a?b=c", KeepAlive)));
        check(
            "HEAD / HTTP/1.1\r\nhost:a.test\r\nConnection: Close\r\n\r\n",
            Ok((Head, "a.test", "/", Close)),
        );
        check("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n", Ok((Get, "a.test", "/", Close)));
        check("GET http://b.test:8/x HTTP/1.1\r\nHost: a.test\r\n\r\n", Ok((Get, "b.test", "/x", KeepAlive)));
        check("GET http://b.test HTTP/1.1\r\n\r\n", Ok((Get, "b.test", "/", KeepAlive)));
    }

    #[test]
    fn what_is_wrong_gets_a_status() {
        for (head, status) in [
            ("\r\n\r\n", 400),
            ("GET /\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET a HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost a\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nHost: a\r\n\r\n", 405),
            ("GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", 413),
            ("GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", 413),
            ("GET / HTTP/2\r\nHost: a\r\n\r\n", 505),
        ] {
            check(head, Err(status));
        }
        assert_eq!(parse(b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n"), Err(400));
    }

    #[test]
    fn the_end_of_a_head_is_found() {
        assert_eq!(head_end(b""), None);
        assert_eq!(head_end(b"GET / HTTP/1.1\r\n\r"), None);
        assert_eq!(head_end(b"a\r\n\r\nb"), Some(5));
    }
}
