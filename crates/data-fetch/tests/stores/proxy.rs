//! A wire that can be cut: a TCP proxy that counts bytes and, at a limit, drops every connection.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A proxy before a server. It lives as long as the process.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    /// Bytes to the server and from it.
    up: AtomicU64,
    down: AtomicU64,
    /// Bytes in both directions after which nothing passes any more.
    limit: AtomicU64,
}

impl Proxy {
    pub(crate) fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let counts = Arc::new(Counts {
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            limit: AtomicU64::new(u64::MAX),
        });
        let shared = Arc::clone(&counts);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(upstream) = TcpStream::connect(server) else { continue };
                if shared.is_cut() {
                    continue;
                }
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                let (client_read, upstream_write) =
                    (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                std::thread::spawn(move || pass(client_read, upstream_write, &up, |counts| &counts.up));
                std::thread::spawn(move || pass(upstream, client, &down, |counts| &counts.down));
            }
        });
        Self { address, counts }
    }

    /// From now on this many bytes pass, and then none.
    pub(crate) fn cut_after(&self, num_bytes: u64) {
        self.counts.limit.store(self.counts.total() + num_bytes, Ordering::SeqCst);
    }

    /// Everything passes again.
    pub(crate) fn mend(&self) {
        self.counts.limit.store(u64::MAX, Ordering::SeqCst);
    }

    /// Bytes that went to the server and came from it since the last call.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        (self.counts.up.swap(0, Ordering::SeqCst), self.counts.down.swap(0, Ordering::SeqCst))
    }
}

impl Counts {
    fn total(&self) -> u64 {
        self.up.load(Ordering::SeqCst) + self.down.load(Ordering::SeqCst)
    }

    fn is_cut(&self) -> bool {
        self.total() >= self.limit.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, counts: &Counts, count: impl Fn(&Counts) -> &AtomicU64) {
    let mut buffer = [0; 8192];
    while let Ok(num_bytes @ 1..) = from.read(&mut buffer) {
        if counts.is_cut() || to.write_all(&buffer[..num_bytes]).is_err() {
            break;
        }
        count(counts).fetch_add(num_bytes as u64, Ordering::SeqCst);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
